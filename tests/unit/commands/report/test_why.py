"""Why a transfer was slow is told by the longest part of its time, with what the network did."""

from typing import Any

import pytest
from lab.records import record

from s3daemon.commands.report.why import Breakdown, bound, seconds


@pytest.mark.parametrize(
    ("times_s", "changes", "cause", "text"),
    [
        ((3.0, 0.2, 4.0), {}, "queued", "queued 3.000 s; 0.800 s after"),
        ((9.0, 1.0, 10.0), {"attempts": 4}, "retried", "4 attempts, the last began after 9.000 s"),
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
    found = Breakdown.of(record(1, queue_usec=queue_usec, upload_usec=upload_usec, total_usec=total_usec, **changes))
    assert found.cause == cause
    assert found.text.startswith(text)


@pytest.mark.parametrize(
    ("usec", "text"),
    [(0, "0.000 s"), (241_499, "0.241 s"), (9_999_000, "9.999 s"), (12_345_678, "12.35 s"), (123_456_789, "123.5 s"),
     (604_800_000_000, "604800 s")],
)  # fmt: skip
def test_seconds(usec: int, text: str) -> None:
    """Times have as many digits as tell something."""
    assert seconds(usec) == text


def test_bound() -> None:
    """A limit is shown as it was given."""
    assert [bound(7_000_000), bound(2_500_000), bound(1_000)] == ["7 s", "2.5 s", "0.001 s"]
