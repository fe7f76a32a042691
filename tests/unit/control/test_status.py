"""The status: a typed picture of the daemon, with the words and the line that sum it up."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from lab.records import START_USEC
from lab.statuses import busy, empty

from s3daemon.control.status import (
    Condition,
    Connections,
    Receiver,
    Status,
    receivers_of,
    uploads_of,
)
from s3daemon.delivery.schedule import AttemptInFlight, QueuedTransfer
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.network.addresses import Limited
from s3daemon.network.uploads.progress import Progress, Upload


@dataclass(eq=False)
class Moving(Upload):
    """What a status asks of an upload."""

    size: int
    got: int
    address: str

    def acked(self) -> int:
        return self.got


def job(seq: int, started_at: float, got: int = 0) -> QueuedTransfer:
    transfer = Transfer(f"{seq:016x}", "/f", Destination("b", f"k{seq}"), (), FileState(1000, 1, 1, 1), START_USEC)
    made = QueuedTransfer(seq, transfer, 0.0, 0.0, attempts=1, started_at=(started_at,))
    task: Any = None
    made.attempt = AttemptInFlight(task, Progress())
    if got:
        made.attempt.progress.begin(Moving(1000, got, f"192.0.2.{seq}"))
    return made


def test_uploads_are_in_the_order_in_which_they_began() -> None:
    """One that just began has neither progress nor a division by zero; rates are those of acknowledged bytes."""
    first, second, third = uploads_of([job(3, 10.0), job(1, 9.0, 500), job(2, 8.0, 200)], 10.0)
    assert [first.key, second.key, third.key] == ["k2", "k1", "k3"]
    assert (first.acked_bytes, first.rate_bytes_per_s, first.seconds) == (200, 100, 2.0)
    assert (third.acked_bytes, third.rate_bytes_per_s, third.receivers) == (0, 0, ())


def test_the_recent_rate_is_that_since_the_oldest_sample() -> None:
    moving = job(1, 9.0, 500)
    assert moving.attempt
    moving.attempt.progress.sample(9.5)
    moving.attempt.progress.begin(Moving(1000, 250, ""))
    (upload,) = uploads_of([moving], 10.0)
    assert (upload.rate_bytes_per_s, upload.recent_bytes_per_s) == (750, 500)


def test_a_file_whose_parts_are_all_stored_stays_done_while_they_are_put_together() -> None:
    """No upload is in flight then, for minutes."""
    completing = job(1, 9.0, 500)
    assert completing.attempt
    progress = completing.attempt.progress = Progress()
    progress.add_stored(1000)
    (upload,) = uploads_of([completing], 10.0)
    assert (upload.acked_bytes, upload.rate_bytes_per_s) == (1000, 1000)


def test_receivers_have_connections_or_uploads_or_are_limited() -> None:
    uploads = uploads_of([job(1, 9.0, 500), job(2, 9.0, 200)], 10.0)
    limited = {
        "192.0.2.7": Limited("answered 503", 7.0, None), "192.0.2.9": Limited("no connection", 60.0001, 5.0)
    }  # fmt: skip
    assert receivers_of({"192.0.2.1": 4, "192.0.2.7": 1}, uploads, limited) == (
        Receiver("192.0.2.1", 4, 1, disabled=False),
        Receiver("192.0.2.2", 0, 1, disabled=False),
        Receiver("192.0.2.7", 1, 0, False, True, "answered 503", 7.0),
        Receiver("192.0.2.9", 0, 0, True, False, "no connection", 60.0, 5.0),
    )


AWAY = {"away": True, "away_reason": "Stalled: no"}
COUNTS = "2 in flight; 3 pending; the oldest is 1m02s old; 4 failed (s3daemon queue); 5 of 8 connections open"


@pytest.mark.parametrize(
    ("changes", "state", "line"),
    [
        ({}, "ok", COUNTS),
        (AWAY, "away", f"AWAY, Stalled: no; {COUNTS}"),
        (
            {**AWAY, "outage_s": 62.0, "next_probe_s": 12.4},
            "away",
            f"AWAY, Stalled: no, for 1m02s, next attempt in 13s; {COUNTS}",
        ),
        (
            {"held": "TLSRefused: no", "outage_s": 180_000.0, "next_probe_s": 299.0},
            "held",
            f"HELD, TLSRefused: no, for 2d02h, next attempt in 4m59s; {COUNTS}",
        ),
        ({"held": "TLSRefused: no"}, "held", f"HELD, TLSRefused: no; {COUNTS}"),
        ({"held": "TLSRefused: no", **AWAY}, "held", f"HELD, TLSRefused: no; {COUNTS}"),
        (
            {"spool_fault": "disk full", **AWAY},
            "refusing",
            f"refusing requests, disk full; AWAY, Stalled: no; {COUNTS}",
        ),
        ({"failing": "nothing stored for 1m00s"}, "failing", f"FAILING, nothing stored for 1m00s; {COUNTS}"),
        ({"failing": "x", **AWAY}, "away", f"AWAY, Stalled: no; {COUNTS}"),
        (
            {"failing": "x", "unreachable": "TLSFailed, no"},
            "failing",
            f"UNREACHABLE, TLSFailed, no; {COUNTS}",
        ),
        ({"silent_buckets": ["a", "b"]}, "ok", f"{COUNTS}; buckets without an answer: a, b"),
        ({"silent_buckets": ["a"], **AWAY}, "away", f"AWAY, Stalled: no; {COUNTS}"),
        ({"full_buckets": ["a", "b"]}, "ok", f"{COUNTS}; full buckets: a, b"),
        ({"reload_fault": "bad port"}, "ok", f"reload REFUSED, bad port; {COUNTS}"),
        (
            {"stopping": "draining", "spool_fault": "x", "held": "y", "reload_fault": "z"},
            "stopping",
            f"draining; refusing requests, x; HELD, y; reload REFUSED, z; {COUNTS}",
        ),
        ({"unreachable": "TLSFailed, no"}, "ok", f"UNREACHABLE, TLSFailed, no; {COUNTS}"),
        ({"unreachable": "TLSFailed, no", **AWAY}, "away", f"AWAY, Stalled: no; {COUNTS}"),
        ({"disabled": ("a", "b")}, "ok", f"{COUNTS}; receivers temporarily disabled: a, b"),
        ({"disabled": ("a",), **AWAY}, "away", f"AWAY, Stalled: no; {COUNTS}"),
        ({"disabled": ("a",), "unreachable": "TLSFailed, no"}, "ok", f"UNREACHABLE, TLSFailed, no; {COUNTS}"),
        ({"none_kept": True}, "ok", f"{COUNTS}; the store closes each connection after its answer"),
    ],
)
def test_the_worst_comes_first(changes: dict[str, Any], state: str, line: str) -> None:
    to_do: dict[str, Any] = {"in_flight": 2, "pending": 3, "oldest_s": 62.5, "failed": 4, "clients": 0}
    condition = Condition(**to_do, connections=Connections(open=5, opened=9, limit=8), **changes)
    assert (condition.state, condition.line) == (state, line)


def test_the_oldest_is_not_among_the_pending_when_all_are_in_flight() -> None:
    connections = Connections(open=8, opened=9, limit=8)
    condition = Condition(in_flight=2, pending=0, oldest_s=3.4, failed=0, clients=0, connections=connections)
    assert condition.line == "2 in flight; 0 pending; the oldest is 3s old; 8 of 8 connections open"


def test_with_nothing_to_do_only_counts_are_said() -> None:
    connections = Connections(open=0, opened=0, limit=8)
    condition = Condition(in_flight=0, pending=0, oldest_s=None, failed=0, clients=0, connections=connections)
    assert condition.line == "0 in flight; 0 pending; 0 of 8 connections open"


@pytest.mark.parametrize("answer", [empty(), busy()])
def test_keys_and_types_are_those_that_programs_read(answer: dict[str, Any]) -> None:
    status = Status.from_dict(json.loads(json.dumps(answer)))
    assert status.as_dict() == answer
    assert list(status.as_dict())[:2] == ["state", "status"], "what people look for comes first"
    assert (status.line, status.reload_fault) == (answer["status"], answer["refused"])
