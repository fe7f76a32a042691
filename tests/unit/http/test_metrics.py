"""Each record counts once and where it belongs; what Prometheus reads is well formed and named by its conventions.

The dashboards and alerts over these names are tested in test_monitoring.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

from s3daemon import __version__
from s3daemon.http.metrics import LIVE, RTT_SECONDS, SECONDS, Metrics
from s3daemon.model.record import TransferRecord


def record(**changes: Any) -> TransferRecord:
    given: dict[str, Any] = {
        "transfer_id": "00000000000000aa", "outcome": "stored", "file": "/f", "bucket": "b", "key": "k",
        "size_bytes": 3000, "start_usec": 1, "total_usec": 300_000, "queue_usec": 60_000, "upload_usec": 240_000,
        "attempts": 1, "rtt_usec": 205_000, "retransmits": 2, "connection": "warm",
    }  # fmt: skip
    return TransferRecord(**given | changes)


FAILED = {"outcome": "failed", "error": "AccessDenied: no", "upload_usec": None, "rtt_usec": None, "connection": ""}


def metrics(**figures: float) -> Metrics:
    return Metrics(lambda: dict.fromkeys(LIVE, 0.0) | {f"s3daemon_{name}": value for name, value in figures.items()})


def samples(made: Metrics) -> dict[str, float]:
    """Each line of the exposition: its name with its labels, and its value."""
    lines = made.expose()[0].decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_records_are_counted() -> None:
    """By outcome; times, sizes and bytes are those of what was stored, attempts those of all."""
    made = metrics()
    for one in (record(), record(size_bytes=8_000_000, attempts=3, connection="new"), record(**FAILED, attempts=5)):
        made.see(one)
    found = samples(made)
    assert found['s3daemon_transfers_total{outcome="stored"}'] == 2
    assert found['s3daemon_transfers_total{outcome="failed"}'] == 1
    assert found["s3daemon_stored_bytes_total"] == 8_003_000
    assert found["s3daemon_attempts_total"] == 9
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
    made = metrics()
    made.see(record(upload_usec=None, rtt_usec=None, retransmits=None, connection=""))
    found = samples(made)
    assert found["s3daemon_upload_duration_seconds_count"] == found["s3daemon_rtt_seconds_count"] == 0
    assert found["s3daemon_transfer_duration_seconds_count"] == 1


def test_every_series_is_there_from_the_start() -> None:
    """rate() does not see the step to a series' first value."""
    found = samples(metrics())
    assert found['s3daemon_transfers_total{outcome="failed"}'] == 0
    assert found['s3daemon_uploads_total{connection="new"}'] == 0
    assert found[f's3daemon_build_info{{name="s3daemon",version="{__version__}"}}'] == 1


def test_what_holds_now_is_asked_for_at_each_scrape() -> None:
    figures = dict.fromkeys(LIVE, 0.0)
    made = Metrics(lambda: figures)
    assert samples(made)["s3daemon_held"] == 0
    figures |= {"s3daemon_held": True, "s3daemon_oldest_pending_age_seconds": 12.5, "s3daemon_connections_opened": 7}
    found = samples(made)
    assert found["s3daemon_held"] == 1
    assert found["s3daemon_oldest_pending_age_seconds"] == 12.5
    assert found["s3daemon_connections_opened_total"] == 7


def test_the_process_by_the_names_that_dashboards_know() -> None:
    """Also where only /proc/self is to be seen."""
    made = Metrics(lambda: dict.fromkeys(LIVE, 0.0), wall=lambda: 1234.5)
    found = samples(made)
    assert found["process_start_time_seconds"] == 1234.5
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_resident_memory_bytes"] > 1_000_000
    with open("/dev/null"), open("/dev/null"):
        assert samples(made)["process_open_fds"] == found["process_open_fds"] + 2


def test_two_daemons_in_a_process_share_nothing() -> None:
    one, other = metrics(), metrics()
    one.see(record())
    assert samples(other)['s3daemon_transfers_total{outcome="stored"}'] == 0


def test_buckets_have_the_limits_that_operations_judge_by() -> None:
    assert {0.25, 7, 10, 30, 48 * 3600} <= set(SECONDS)
    assert sum(0.15 <= bound <= 0.25 for bound in RTT_SECONDS) >= 5


def test_scrapers_choose_their_format() -> None:
    made = metrics()
    text, content_type = made.expose("text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert not re.search(rb"_created\b", text)
    text, content_type = made.expose("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert text.endswith(b"# EOF\n")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_finds_no_fault() -> None:
    made = metrics(pending=3)
    made.see(record())
    made.see(record(**FAILED))
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=made.expose()[0], capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
