"""Each record counts once and where it belongs; what Prometheus reads is well formed and named by its conventions.

The dashboards and alerts over these names are tested in test_monitoring.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
from fakes import exposition

from s3daemon import __version__
from s3daemon.http.figures import Figure
from s3daemon.http.metrics import (
    LABELS,
    RTT_SECONDS,
    SECONDS,
    Metrics,
)
from s3daemon.model.exposure import Exposures
from s3daemon.model.record import AttemptEnd, Refusal, TransferRecord


def record(**changes: Any) -> TransferRecord:
    given: dict[str, Any] = {
        "transfer_id": "00000000000000aa", "outcome": "stored", "file": "/f", "bucket": "b", "key": "k",
        "size_bytes": 3000, "start_usec": 1, "total_usec": 300_000, "queue_usec": 60_000, "upload_usec": 240_000,
        "attempts": 1, "rtt_usec": 205_000, "retransmits": 2, "connection": "warm",
    }  # fmt: skip
    return TransferRecord(**given | changes)


FAILED = {"outcome": "failed", "error": "AccessDenied: no", "upload_usec": None, "rtt_usec": None, "connection": ""}


def samples(made: Metrics) -> dict[str, float]:
    """Each line of the exposition: its name with its labels, and its value."""
    lines = made.expose()[0].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_records_are_counted() -> None:
    """By outcome; times, sizes and bytes are those of what was stored."""
    made = Metrics()
    for one in (record(), record(size_bytes=8_000_000, attempts=3, connection="new"), record(**FAILED, attempts=5)):
        made.see(one)
    found = samples(made)
    assert found['s3daemon_transfers_total{outcome="stored"}'] == 2
    assert found['s3daemon_transfers_total{outcome="failed"}'] == 1
    assert found["s3daemon_stored_bytes_total"] == 8_003_000
    assert found['s3daemon_uploads_total{connection="new"}'] == found['s3daemon_uploads_total{connection="warm"}'] == 1
    assert found["s3daemon_retransmits_total"] == 4
    for name in ("transfer_duration_seconds", "queue_duration_seconds", "upload_duration_seconds", "object_size_bytes"):
        assert found[f"s3daemon_{name}_count"] == 2
    assert found["s3daemon_transfer_duration_seconds_sum"] == pytest.approx(0.6)
    assert found['s3daemon_queue_duration_seconds_bucket{le="0.05"}'] == 0
    assert found['s3daemon_queue_duration_seconds_bucket{le="0.1"}'] == 2
    assert found['s3daemon_upload_duration_seconds_bucket{le="0.25"}'] == 2
    assert found['s3daemon_object_size_bytes_bucket{le="4000.0"}'] == 1
    assert found['s3daemon_rtt_seconds_bucket{le="0.2"}'] == 0
    assert found['s3daemon_rtt_seconds_bucket{le="0.21"}'] == 2


def test_what_was_not_measured_is_not_counted_as_nothing() -> None:
    """Found stored after an attempt of unknown outcome: neither time nor network is known."""
    made = Metrics()
    made.see(record(upload_usec=None, rtt_usec=None, retransmits=None, connection=""))
    found = samples(made)
    assert found["s3daemon_upload_duration_seconds_count"] == found["s3daemon_rtt_seconds_count"] == 0
    assert found["s3daemon_transfer_duration_seconds_count"] == 1


def test_every_series_is_there_from_the_start() -> None:
    """rate() does not see the step to a series' first value."""
    found = samples(Metrics())
    assert found['s3daemon_transfers_total{outcome="failed"}'] == 0
    assert found['s3daemon_uploads_total{connection="new"}'] == 0
    assert found[f's3daemon_build_info{{name="s3daemon",version="{__version__}"}}'] == 1


def test_what_holds_now_is_asked_for_at_each_scrape() -> None:
    figures = [Figure("s3daemon_held", "", value=False)]
    made = Metrics(lambda: figures)
    assert samples(made)["s3daemon_held"] == 0
    figures[:] = (
        Figure("s3daemon_held", "", value=True),
        Figure("s3daemon_oldest_pending_age_seconds", "", 12.5),
        Figure("s3daemon_connections_opened", "", 7, counter=True),
        Figure("s3daemon_refused", "", {"NotReadable": 3}, "code", counter=True),
    )
    found = samples(made)
    assert found["s3daemon_held"] == 1
    assert found["s3daemon_oldest_pending_age_seconds"] == 12.5
    assert found["s3daemon_connections_opened_total"] == 7
    assert found['s3daemon_refused_total{code="NotReadable"}'] == 3


def test_the_process_by_the_names_that_dashboards_know() -> None:
    """Also where only /proc/self is to be seen."""
    made = Metrics(wall=lambda: 1234.5)
    found = samples(made)
    assert found["process_start_time_seconds"] == 1234.5
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_resident_memory_bytes"] > 1_000_000
    with open("/dev/null"), open("/dev/null"):
        assert samples(made)["process_open_fds"] == found["process_open_fds"] + 2


def test_two_daemons_in_a_process_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.see(record())
    assert samples(other)['s3daemon_transfers_total{outcome="stored"}'] == 0


def test_buckets_have_the_limits_that_operations_judge_by() -> None:
    assert {0.25, 7, 10, 30, 48 * 3600} <= set(SECONDS)
    assert sum(0.15 <= bound <= 0.25 for bound in RTT_SECONDS) >= 5


def test_scrapers_choose_their_format() -> None:
    made = Metrics()
    text, content_type = made.expose("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert not re.search(rb"_created\b", text)
    for version in ("1.0.0", '"1.0.0"', "1.0.0 "):
        text, content_type = made.expose(f"application/openmetrics-text;version={version},text/plain;q=0.5")
        assert content_type.startswith("application/openmetrics-text; version=1.0.0")
        assert text.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "version", ["latest", "1.0.x", "1..0", "v1.0.0", "2.\xff", "2.\udcff", "", "9" * 5000, "\u0661.0"]
)
@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
def test_a_version_that_is_not_one_gets_the_plain_format(kind: str, version: str) -> None:
    assert Metrics().expose(f"{kind};version={version}")[1].startswith("text/plain; version=0.0.4")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_finds_no_fault() -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(), capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_attempts_count_as_they_end() -> None:
    """By code, status and address, during an outage too; an answer that is none has no status."""
    made = Metrics()
    down = AttemptEnd(code="ConnectionFailed", receiver="192.0.2.2", again=True)
    busy = AttemptEnd(code="SlowDown", status=503, receiver="192.0.2.1", again=False)
    for end in (down, down, busy, AttemptEnd(status=200, receiver="192.0.2.1", size_bytes=7), AttemptEnd(size_bytes=9)):
        made.see_attempt(end)
    found = samples(made)
    assert found['s3daemon_attempts_total{code="ConnectionFailed"}'] == 2
    assert found['s3daemon_attempts_total{code="none"}'] == 2
    assert found['s3daemon_retries_total{code="ConnectionFailed"}'] == 2
    assert 's3daemon_retries_total{code="SlowDown"}' not in found
    assert found['s3daemon_answers_total{status="503"}'] == found['s3daemon_answers_total{status="200"}'] == 1
    assert found['s3daemon_receiver_stored_bytes_total{receiver="192.0.2.1"}'] == 7
    assert found['s3daemon_receiver_errors_total{receiver="192.0.2.2"}'] == 2


def test_a_store_with_endless_codes_makes_a_bounded_number_of_series() -> None:
    made = Metrics()
    for number in range(3 * LABELS):
        made.see_attempt(AttemptEnd(code=f"Code{number}"))
    found = samples(made)
    assert sum(name.startswith("s3daemon_attempts_total") for name in found) <= LABELS + 2
    assert found['s3daemon_attempts_total{code="other"}'] >= 2 * LABELS


def test_exposures_by_verdict() -> None:
    """Recent ones as they are now; each that is over once, when nothing came for a while. What was over before is not
    counted again."""
    wall = [1e9]
    exposures = Exposures()

    def over(name: str, took_s: float) -> None:
        tags = (name,) if name else ()
        exposures.recorded(record(tags=tags, start_usec=round(wall[0] * 1e6), total_usec=round(took_s * 1e6)))

    over("before", 2.0)
    wall[0] += 100
    made = Metrics(exposures=exposures, wall=lambda: wall[0])
    over("a", 2.0)
    over("b", 12.0)
    over("c", 31.0)
    over("", 31.0)
    exposures.refused(Refusal(code="NotReadable", text="", destination="b/x", tag="a"), round(wall[0] * 1e6))
    recent = {"in time": 1.0, "incomplete": 1.0, "late": 1.0, "lost": 1.0, "untagged": 1.0}
    for passed_s, counted in ((1, 0), (29, 0), (33, 3), (10, 3)):
        wall[0] += passed_s
        found = samples(made)
        assert {verdict: found[f's3daemon_recent_exposures{{verdict="{verdict}"}}'] for verdict in recent} == recent
        totals = {verdict: found[f's3daemon_exposures_total{{verdict="{verdict}"}}'] for verdict in recent}
        assert sum(totals.values()) - totals["untagged"] == counted == found["s3daemon_exposure_duration_seconds_count"]
    assert totals == {"in time": 0, "incomplete": 1, "late": 1, "lost": 1, "untagged": 1}
    wall[0] += 3600
    assert samples(made)['s3daemon_recent_exposures{verdict="lost"}'] == 0
