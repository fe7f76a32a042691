"""The listing of the queue: aligned, counted, and on a narrow terminal without losing what names a transfer."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import s3daemon.journal
from s3daemon.commands.queue import record_dropped, result_of, table, total
from s3daemon.commands.table import lines
from s3daemon.control.rows import Row
from s3daemon.journal import QUEUE_LIMIT, journal_sink
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.rows import Entry

ROW = Row(
    id="0123456789abcdef", state="pending", age_s=3661, attempts=3, code="SlowDown", text="busy", next_in_s=12.7,
    size_bytes=8_388_608, destination="raw/2025/img_0001.fits", file="/data/2025/img_0001.fits", notified=False,
)  # fmt: skip
FAILED = Row(
    id="fedcba9876543210", state="failed", age_s=9, attempts=1, code="NoSuchBucket", text="no bucket", next_in_s=None,
    size_bytes=3000, destination="x/y", file="/a\n", notified=False,
)  # fmt: skip


def test_what_is_dropped_without_a_daemon_is_recorded_as_of_now() -> None:
    written: list[dict[str, bytes]] = []
    hour_ago_usec = time.time_ns() // 1000 - 3600 * 10**6
    transfer = Transfer("a" * 16, "/f", Destination("bucket", "key"), (), FileState(1, 2, 3, 4), hour_ago_usec)
    record_dropped([Entry(1, transfer, 0.0, file_changed=True)], lambda fields: written.append(dict(fields)))
    (fields,) = written
    assert (fields["S3DAEMON_OUTCOME"], fields["S3DAEMON_CHANGED"]) == (b"failed", b"1")
    assert 3600 * 10**6 <= int(fields["S3DAEMON_TOTAL_USEC"]) == int(fields["S3DAEMON_QUEUE_USEC"]) < 3700 * 10**6


def test_no_record_of_what_is_dropped_without_a_daemon_is_lost() -> None:
    """The journal takes none of them before the last is written; two nights of outage are more than its queue holds."""
    transfer = Transfer("a" * 16, "/f", Destination("bucket", "key"), (), FileState(1, 2, 3, 4), 5)
    all_written, taken = threading.Event(), 0

    class Rows(list[Entry]):
        def __iter__(self) -> Iterator[Entry]:
            yield from super().__iter__()
            all_written.set()

    def sink(_: object) -> None:
        nonlocal taken
        all_written.wait(60)
        taken += 1

    rows = Rows([Entry(1, transfer, 0.0)] * (QUEUE_LIMIT + 10))
    record_dropped(rows, sink)
    assert taken == len(rows)


@pytest.mark.parametrize("there", [True, False])
def test_dropped_transfers_are_recorded_in_the_journal_where_there_is_one(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A shell's standard error does not lead there. Without a journal they are lines on standard error."""
    path = tmp_path / "socket"
    monkeypatch.setattr(s3daemon.journal, "JOURNAL_SOCKET", path)
    monkeypatch.setattr(s3daemon.journal, "journal_sink", lambda: journal_sink(path))
    transfer = Transfer("a" * 16, "/f", Destination("bucket", "key"), (), FileState(1, 2, 3, 4), 5)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if there:
            sock.bind(os.fspath(path))
            sock.settimeout(10.0)
        record_dropped([Entry(1, transfer, 0.0)])
        text = sock.recv(10_000).decode() if there else capfd.readouterr().err
    assert "Dropped: dropped by an operator while the daemon was down" in text
    assert ("S3DAEMON_OUTCOME=failed" in text) is there


@pytest.mark.parametrize(("answer", "notes"), [
    ({"ids": ["a"]}, ""),
    ({"ids": ["a"], "held": "InvalidAccessKeyId: no"}, " once the queue is no longer held (InvalidAccessKeyId: no)"),
    ({"ids": ["a"], "unsaved": "read-only"}, "; not on disk yet, so a restart now would undo it: read-only"),
])  # fmt: skip
def test_what_the_daemon_says_about_a_retry_or_drop(answer: dict[str, object], notes: str) -> None:
    assert result_of([answer]) == ({"a"}, notes)


def test_a_line_for_each_transfer() -> None:
    assert [" ".join(line.split()) for line in lines(table([ROW, FAILED]), None)] == [
        "ID STATE AGE ATTEMPTS NEXT SIZE DESTINATION LAST ERROR FILE",
        "0123456789abcdef pending 1h01m 3 12s 8.39 MB raw/2025/img_0001.fits SlowDown: busy /data/2025/img_0001.fits",
        "fedcba9876543210 failed, client not notified 9s 1 3 kB x/y NoSuchBucket: no bucket /a\\n",
    ]


@pytest.mark.parametrize(
    ("width", "end", "beneath"),
    [
        (200, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  /data/2025/img_0001.fits", []),
        (115, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  …5/img_0001.fits", []),
        (100, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy", []),
        (80, "8.39 MB  SlowDown: busy", ["    raw/2025/img_0001.fits"]),
        (60, "8.39 MB", ["    raw/2025/img_0001.fits", "    SlowDown: busy"]),
    ],
)
def test_a_narrow_terminal_keeps_what_names_a_transfer(width: int, end: str, beneath: list[str]) -> None:
    """The file gives way first; the destination is never cut."""
    _, line, *rest = lines(table([ROW]), width)
    assert line.startswith("0123456789abcdef  pending ")
    assert line.endswith(end)
    assert len(line) <= width
    assert rest == beneath


def test_totals() -> None:
    assert total([]) == "nothing in the queue"
    assert total([ROW, FAILED]) == "2 transfers, 8.39 MB: 1 pending, 1 failed; the oldest 1h01m old"
