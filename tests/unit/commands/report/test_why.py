"""Why a transfer took long is said in one line: the longest part first, and the error that cost the time."""

from datetime import UTC
from typing import Any

import pytest
from lab.records import START_USEC, record

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.why import Breakdown, Delays
from s3daemon.model.record import AttemptFailure, MessageId

SECOND = 1_000_000


def attempt_failed(
    number: int, at_s: float, code: str, *, delay_s: float | None = 1.0, host: str = "n"
) -> dict[str, object]:
    """The journal entry of a failed attempt, so many seconds after the first request."""
    delay_usec = None if delay_s is None else round(delay_s * SECOND)
    made = AttemptFailure(
        transfer_id=f"{number:016x}", bucket="b", key="k", attempt=1, code=code, text="x", delay_usec=delay_usec
    )
    entry: dict[str, object] = {name: str(value) for name, value in made.fields()}
    return entry | {"_HOSTNAME": host, "__REALTIME_TIMESTAMP": str(START_USEC + round(at_s * SECOND))}


def delays(*entries: dict[str, object]) -> Delays:
    made = Delays()
    for entry in entries:
        made.add(entry)
    made.sort()
    return made


def retried(attempts: int = 3, queue_s: float = 102.0, host: str = "n") -> ReportedTransfer:
    usec = round(queue_s * SECOND)
    return ReportedTransfer(record(1, attempts=attempts, queue_usec=usec, total_usec=usec + 402_000), host)


def test_the_error_that_cost_the_time_is_named() -> None:
    """Not the most frequent one: the one whose attempts and delays took longest together."""
    found = delays(
        attempt_failed(1, 60.0, "Stalled", delay_s=10),
        attempt_failed(1, 71.0, "ConnectionFailed"),
        attempt_failed(1, 73.0, "ConnectionFailed"),
    )
    why = Breakdown.of(retried(4), found, UTC)
    assert (why.cause, why.error) == ("retried", "Stalled")
    assert why.text == "4 attempts over 102.0 s, Stalled"


def test_neighbours_tell_where_the_journal_has_no_warning_of_ones_own() -> None:
    """Of many alike in a second some are only counted. Those of another host, or another time, tell nothing."""
    others = (
        attempt_failed(2, 50.0, "ConnectionFailed"),
        attempt_failed(3, 50.0, "Stalled", host="another"),
        attempt_failed(4, 300.0, "AccessDenied", delay_s=900),
        attempt_failed(5, -5.0, "AccessDenied", delay_s=900),
    )
    assert Breakdown.of(retried(), delays(*others), UTC).error == "ConnectionFailed"
    assert Breakdown.of(retried(host="third"), delays(*others), UTC).text == "3 attempts over 102.0 s"


def test_a_first_attempt_blames_no_error() -> None:
    """It waited for its turn, whatever failed meanwhile."""
    why = Breakdown.of(retried(attempts=1), delays(attempt_failed(2, 50.0, "Stalled")), UTC)
    assert (why.cause, why.error, why.text) == ("queued", "", "queued 102.0 s")


def outage(kind: MessageId, at_s: float, since_s: float) -> dict[str, object]:
    at, since = (str(START_USEC + round(s * SECOND)) for s in (at_s, since_s))
    return {"MESSAGE_ID": kind.value, "__REALTIME_TIMESTAMP": at, "S3DAEMON_SINCE_USEC": since, "_HOSTNAME": "n"}


AWAY, BACK = outage(MessageId.AWAY, 20, 20), outage(MessageId.BACK, 101, 20.4)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([AWAY, BACK], "3 attempts over 102.0 s; away from 02:13:40 to 02:15:01"),
        ([BACK, AWAY], "3 attempts over 102.0 s; away from 02:13:40 to 02:15:01"),
        ([AWAY], "3 attempts over 102.0 s; away from 02:13:40 on"),
        ([outage(MessageId.HELD, 20, 20), outage(MessageId.HELD, 44, 44), outage(MessageId.RELEASED, 70, 44)],
         "3 attempts over 102.0 s; held from 02:13:40 to 02:14:30"),
        ([outage(MessageId.HELD, 20, 20), outage(MessageId.HELD, 44, 44)],
         "3 attempts over 102.0 s; held from 02:13:40 on"),
        ([outage(MessageId.HELD, 20, 20), outage(MessageId.BACK, 70, 44)],
         "3 attempts over 102.0 s; held from 02:13:40 on; away from 02:14:04 to 02:14:30"),
        ([outage(MessageId.AWAY, -50, -50)], "3 attempts over 102.0 s"),
        ([outage(MessageId.BACK, -5, -50)], "3 attempts over 102.0 s"),
        ([outage(MessageId.BACK, 50, -86_400)], "3 attempts over 102.0 s; away from 2026-11-22 02:13:20 to 02:14:10"),
        ([outage(MessageId.RELEASED, 50, 1)], "3 attempts over 102.0 s; held from 02:13:21 to 02:14:10"),
        ([outage(MessageId.BACK, 10 * n + 5, 10 * n) for n in range(5)],
         "3 attempts over 102.0 s; away 5 times, first from 2026-11-23 02:13:20"),
    ],
)  # fmt: skip
def test_outages_in_which_it_waited(entries: list[dict[str, object]], text: str) -> None:
    """Each is said once, from when to when, whichever entry comes first, and only if the transfer waited through it."""
    assert Breakdown.of(retried(), delays(*entries), UTC).text == text


@pytest.mark.parametrize(
    ("times_s", "changes", "cause", "text"),
    [
        ((3.0, 0.2, 4.0), {}, "queued", "queued 3.000 s; 0.800 s after"),
        ((9.0, 1.0, 10.0), {"attempts": 4}, "retried", "4 attempts over 9.000 s"),
        ((9.0, 2.0, 11.0), {}, "queued", "queued 9.000 s; upload 2.000 s (4 MB/s, RTT 200 ms)"),
        ((0.0, 8.0, 8.0), {"rtt_usec": 203_456, "retransmits": 34}, "network",
         "upload 8.000 s (1 MB/s, RTT 203 ms, 34 segments sent again)"),
        ((0.0, 8.0, 8.0), {"retransmits": 1, "connection": "new"}, "network",
         "upload 8.000 s (1 MB/s, RTT 200 ms, 1 segment sent again, new connection)"),
        ((0.0, 8.0, 8.0), {"receiver": "192.0.2.1"}, "network", "upload 8.000 s (1 MB/s, RTT 200 ms, to 192.0.2.1)"),
        ((0.0, 8.0, 8.0), {"rtt_usec": None, "retransmits": None}, "network", "upload 8.000 s (1 MB/s)"),
        ((0.001, 1.0, 9.0), {}, "after", "7.999 s after the upload"),
        ((0.0, None, 0.0), {}, "queued", "queued 0.000 s"),
        # The clocks of two processes: the parts may add up to more than the whole.
        ((3.0, 2.0, 4.0), {}, "queued", "queued 3.000 s; upload 2.000 s"),
    ],
)  # fmt: skip
def test_the_longest_part_comes_first(
    times_s: tuple[float, float | None, float], changes: dict[str, Any], cause: str, text: str
) -> None:
    """The cause is the longest part; the others follow when they matter."""
    queue_usec, upload_usec, total_usec = (None if s is None else round(s * 1e6) for s in times_s)
    made = record(1, queue_usec=queue_usec, upload_usec=upload_usec, total_usec=total_usec, **changes)
    found = Breakdown.of(ReportedTransfer(made, "n"), Delays(), UTC)
    assert found.cause == cause
    assert found.text.startswith(text)
