"""A journal that blocks costs entries and a warning, never a caller's time; no entry shows a secret; where entries go.

A journal that blocks is a sink that waits. The sinks are tested on real descriptors and a real datagram socket.
"""

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from lab.env import no_free_descriptor
from lab.records import record

import s3daemon.journal
from s3daemon.journal import (
    MAX_VALUE_BYTES,
    WARN_EVERY_S,
    Journal,
    LogLimit,
    Sink,
    choose_sink,
    journal_sink,
    text_sink,
    warn_on,
)
from s3daemon.model.record import MessageId

#: Ample for a thread to do what it has to; reached only by a test that fails.
PATIENCE_S = 10.0

RECORD = record(1, file="/data/\udcff", tags=("one", "two"))


class Gate:
    """A sink that blocks while shut, and refuses while broken."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Event()
        self.entries: list[list[tuple[str, bytes]]] = []
        self.broken = False

    def __call__(self, fields: Sequence[tuple[str, bytes]]) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        if self.broken:
            raise ConnectionRefusedError
        self.entries.append(list(fields))

    @property
    def messages(self) -> list[str]:
        return [dict(entry)["MESSAGE"].decode() for entry in self.entries]


class Warnings:
    """Standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def lost(count: int) -> str:
    entries = "1 journal entry is" if count == 1 else f"{count} journal entries are"
    return f"{entries} lost: the journal did not take them in time"


@contextmanager
def journal_to(
    sink: Sink, warnings: Warnings | None = None, limit: int = 100, secrets: Sequence[str] = ()
) -> Iterator[Journal]:
    journal = Journal(sink, warn=warnings or Warnings(), clock=lambda: 0.0, limit=limit)
    journal.hide(secrets)
    try:
        yield journal
    finally:
        journal.close(PATIENCE_S)


def test_a_record_is_written_whole_and_then_reported_done() -> None:
    gate, done = Gate(), threading.Event()
    gate.open.set()
    with journal_to(gate) as journal:
        assert journal.record(RECORD, done.set)
        assert done.wait(PATIENCE_S)
    names = [name for name, _ in gate.entries[0]]
    assert names.count("S3DAEMON_TAG") == 2
    assert dict(gate.entries[0])["S3DAEMON_FILE"] == b"/data/\xff"


def test_a_bug_of_a_caller_costs_no_entry() -> None:
    gate = Gate()
    gate.open.set()
    with journal_to(gate) as journal:
        journal.write([("MESSAGE", "one")], lambda: [][0])
        journal.write([("MESSAGE", "two")])
    assert gate.messages == ["one", "two"]


def test_a_journal_that_blocks_does_not_block_callers() -> None:
    gate, warnings, done = Gate(), Warnings(), []
    with journal_to(gate, warnings, limit=2) as journal:
        assert journal.write([("MESSAGE", "in the sink")])
        assert gate.entered.wait(PATIENCE_S)
        taken = [journal.write([("MESSAGE", str(n))], lambda: done.append(1)) for n in range(5)]
        assert taken == [True, True, False, False, False]
        assert len(done) == 3  # the dropped ones are done at once
        gate.open.set()
    # As soon as it works it gets the number of lost entries, as a warning; standard error gets nothing.
    assert gate.messages == ["in the sink", lost(3), "0", "1"]
    assert dict(gate.entries[1])["PRIORITY"] == b"4"
    assert not warnings.lines
    assert len(done) == 5


class Steps:
    """A sink that takes one entry at a time, when told to; warnings of lost entries it takes at once."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.warned = threading.Semaphore(0)
        self._taken, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, fields: Sequence[tuple[str, bytes]]) -> None:
        message = dict(fields)["MESSAGE"].decode()
        if message:
            self.warnings.append(message)
            self.warned.release()
            return
        self._taken.release()
        assert self._go.acquire(timeout=PATIENCE_S)

    def wait(self) -> None:
        assert self._taken.acquire(timeout=PATIENCE_S)

    def step(self) -> None:
        self.go()
        self.wait()

    def go(self, count: int = 1) -> None:
        self._go.release(count)


def test_warnings_of_lost_entries_are_a_second_apart() -> None:
    """However long entries are lost, there is one warning a second, and no loss is forgotten."""
    now, sink = [0.0], Steps()
    journal = Journal(sink, warn=Warnings(), clock=lambda: now[0], limit=3)
    journal.write([("MESSAGE", "")])
    sink.wait()
    for _ in range(4):  # one of them is lost
        journal.write([("MESSAGE", "")])
    sink.step()
    assert sink.warnings == [lost(1)]
    for _ in range(3):  # two are lost
        journal.write([("MESSAGE", "")])
    sink.step()
    assert sink.warnings == [lost(1)]
    now[0] += WARN_EVERY_S
    sink.step()
    assert sink.warnings == [lost(1), lost(2)]
    for _ in range(3):  # one is lost
        journal.write([("MESSAGE", "")])
    sink.go(4)
    journal.close(PATIENCE_S)
    assert sink.warnings == [lost(1), lost(2), lost(1)]


def test_a_loss_is_reported_though_no_entry_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second warning has to wait for its time, which passes by itself."""
    monkeypatch.setattr(s3daemon.journal, "WARN_EVERY_S", 0.05)
    sink = Steps()
    journal = Journal(sink, warn=Warnings(), clock=lambda: 0.0, limit=1)
    for expected in (lost(1), lost(2)):
        journal.write([("MESSAGE", "")])
        sink.wait()
        for _ in range(2 if expected == lost(1) else 3):
            journal.write([("MESSAGE", "")])
        sink.step()
        sink.go()
    for _ in range(2):
        assert sink.warned.acquire(timeout=PATIENCE_S)
    journal.close(PATIENCE_S)
    assert sink.warnings == [lost(1), lost(2)]


def wait_for(found: list[Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not found:
        assert time.monotonic() < until
        time.sleep(0.001)


def refused(journal: Journal, count: int) -> None:
    """Write so many entries, each when the one before it is done."""
    done = threading.Event()
    for _ in range(count):
        journal.write([("MESSAGE", "x")], done.set)
        assert done.wait(PATIENCE_S)
        done.clear()


def test_refused_entries_are_reported_on_standard_error() -> None:
    gate, warnings = Gate(), Warnings()
    gate.broken = True
    gate.open.set()
    with journal_to(gate, warnings) as journal:
        refused(journal, 3)
    assert warnings.lines == [lost(1), lost(2)]


@pytest.mark.parametrize("count", [1, 3])
def test_a_journal_that_works_again_gets_the_number_of_all_lost_entries(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """By itself, though some were reported on standard error: under systemd that leads to the journal too."""
    monkeypatch.setattr(s3daemon.journal, "WARN_EVERY_S", 0.05)
    gate, warnings = Gate(), Warnings()
    gate.broken = True
    gate.open.set()
    with journal_to(gate, warnings) as journal:
        refused(journal, count)
        wait_for(warnings.lines)
        gate.broken = False
        wait_for(gate.entries)
    assert gate.messages == [lost(count)]


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_close_gives_up_in_time(waiting: int) -> None:
    """With a queue that has space for the end mark, and with one that has not."""
    gate, warnings = Gate(), Warnings()
    journal = Journal(gate, warn=warnings, limit=2)
    journal.write([("MESSAGE", "in the sink")])
    assert gate.entered.wait(PATIENCE_S)
    for _ in range(waiting):
        journal.write([("MESSAGE", "waits")])
    before = time.monotonic()
    journal.close(0.1)
    assert time.monotonic() - before < 1
    assert warnings.lines == [lost(waiting + 1)]
    assert not journal.write([("MESSAGE", "too late")])
    gate.open.set()


def test_flush_waits_until_the_sink_has_everything() -> None:
    """It writes no entry of its own, and gives up after its timeout."""
    gate, done = Gate(), list[int]()
    with journal_to(gate) as journal:
        assert journal.flush(0.0), "there is nothing to wait for"
        for n in range(50):
            journal.write([("MESSAGE", str(n))], lambda: done.append(1))
        assert not journal.flush(0.01)
        gate.open.set()
        assert journal.flush(PATIENCE_S)
        assert gate.messages == [str(n) for n in range(50)]
        assert len(done) == 50
        gate.broken = True
        journal.write([("MESSAGE", "refused")])
        assert journal.flush(PATIENCE_S)
    assert len(gate.messages) == 50


def test_no_entry_shows_a_secret() -> None:
    gate = Gate()
    gate.open.set()
    with journal_to(gate, secrets=["wJalrXUtnFEMI/K7", "wJalrXUtnFEMI/K7+longer", "", "raw"]) as journal:
        journal.write([("MESSAGE", "key=wJalrXUtnFEMI/K7+longer"), ("BYTES", b"\xffwJalrXUtnFEMI/K7")])
        journal.write([("MESSAGE", "raw is a bucket, newtoken1 not yet known")])
        journal.hide(["newtoken1"])
        journal.write([("MESSAGE", "newtoken1 and wJalrXUtnFEMI/K7")])
    assert gate.entries[0] == [("MESSAGE", b"key=***"), ("BYTES", b"\xff***")]
    assert gate.messages[1].startswith("raw is a bucket")  # too short to be a secret
    assert gate.messages[2] == "*** and ***"


def test_a_long_value_is_cut() -> None:
    gate = Gate()
    gate.open.set()
    with journal_to(gate) as journal:
        journal.write([("MESSAGE", "x" * (MAX_VALUE_BYTES + 1))])
    assert len(gate.messages[0]) == MAX_VALUE_BYTES
    assert gate.messages[0].endswith("x...")


def a_logger(journal: Journal) -> logging.Logger:
    logger = logging.Logger("s3daemon.test")
    logger.addHandler(journal.handler())
    return logger


def test_log_lines_are_entries() -> None:
    gate = Gate()
    gate.open.set()
    with journal_to(gate) as journal:
        log = a_logger(journal)
        log.warning("held: %s", "QuotaExceeded", extra={"journal": {"S3DAEMON_KEY": "a", "MESSAGE_ID": "00"}})
        for level in (logging.DEBUG, logging.INFO, logging.ERROR, logging.CRITICAL, 60):
            log.log(level, "x")
        log.warning("over", extra={"journal": {"PRIORITY": 5}})
    entry = dict(gate.entries[0])
    assert (entry["MESSAGE"], entry["PRIORITY"], entry["S3DAEMON_KEY"]) == (b"held: QuotaExceeded", b"4", b"a")
    assert entry["CODE_FILE"].endswith(b"test_journal.py")
    assert entry["LOGGER"] == b"s3daemon.test"
    assert [dict(entry)["PRIORITY"] for entry in gate.entries[1:]] == [b"7", b"6", b"3", b"2", b"2", b"5"]
    assert [name for name, _ in gate.entries[-1]].count("PRIORITY") == 1  # the journal would keep both


def test_a_traceback_has_a_field_of_its_own() -> None:
    gate = Gate()
    gate.open.set()
    with journal_to(gate, secrets=["verysecret"]) as journal:
        try:
            raise RuntimeError("a bug\nwith verysecret in it")
        except RuntimeError:
            a_logger(journal).exception("unexpected")
    entry = dict(gate.entries[0])
    assert entry["MESSAGE"] == rb"unexpected: RuntimeError: a bug\nwith *** in it"
    assert entry["S3DAEMON_TRACEBACK"].startswith(b"Traceback")
    assert b"verysecret" not in entry["S3DAEMON_TRACEBACK"]


@contextmanager
def journald(path: Path) -> Iterator[socket.socket]:
    """A socket that receives as journald does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(PATIENCE_S)
        receiver.bind(str(path))
        yield receiver


def test_an_entry_is_a_datagram_in_the_native_protocol(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with journald(path) as receiver:
        journal_sink(path)([("MESSAGE", b"one"), ("TAG", b"a"), ("TAG", b"b"), ("FILE", b"two\nlines=\xff")])
        data = receiver.recv(65536)
    text = b"two\nlines=\xff"
    assert data == (
        b"MESSAGE=one\nTAG=a\nTAG=b\nFILE\n" + struct.pack("<Q", len(text)) + text + b"\nSYSLOG_IDENTIFIER=s3daemon\n"
    )


def test_other_threads_run_while_the_journal_blocks(tmp_path: Path) -> None:
    """The socket's queue is full, so the thread waits in the kernel; a lock kept there would stop this test."""
    path = tmp_path / "journal"
    with journald(path) as receiver:
        filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with filler, suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", str(path))
        done = threading.Event()
        journal = Journal(journal_sink(path), warn=print)
        try:
            journal.write([("MESSAGE", "x")], done.set)
            assert not done.wait(0.1)
            while receiver.recv(65536) == b"x":
                pass
            assert done.wait(PATIENCE_S)
        finally:
            journal.close(PATIENCE_S)


def test_a_missing_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        journal_sink(tmp_path / "none")([("MESSAGE", b"x")])


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_text_has_one_line_for_each_entry() -> None:
    with pipe() as (out, err):
        send = text_sink(err, clock=lambda: 1_764_000_000.0421)
        send([("MESSAGE", b"two\nlines \xff"), ("PRIORITY", b"4")])
        send([("MESSAGE", b"bug"), ("PRIORITY", b"3"), ("S3DAEMON_TRACEBACK", b"Traceback:\n  File x\n")])
        send([("MESSAGE", b"plain")])
        assert os.read(out, 65536).decode().splitlines() == [
            r"2025-11-24T16:00:00.042Z warning two\nlines \xff",
            "2025-11-24T16:00:00.042Z error bug",
            "    Traceback:",
            "      File x",
            "2025-11-24T16:00:00.042Z info plain",
        ]


def test_the_journal_is_chosen_only_where_standard_error_leads_to_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pipe() as (out, err), journald(path) as receiver:
        status = os.fstat(err)
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        choose_sink(stream, err, path)([("MESSAGE", b"to the journal")])
        assert b"to the journal" in receiver.recv(65536)
        not_the_journal: list[tuple[dict[str, str], Path]] = [
            ({}, path),
            ({"JOURNAL_STREAM": "1:1"}, path),
            ({"JOURNAL_STREAM": "nonsense"}, path),
            (stream, tmp_path / "none"),
        ]
        for environ, where in not_the_journal:
            choose_sink(environ, err, where)([("MESSAGE", b"as text")])
            assert os.read(out, 65536).endswith(b"info as text\n")


def test_the_journal_is_chosen_where_systemd_could_not_connect_standard_error_to_it(tmp_path: Path) -> None:
    """It gives /dev/null to a service that starts while journald is down; the socket may come later."""
    path = tmp_path / "journal"
    with open(os.devnull, "wb") as null:
        sink = choose_sink({"INVOCATION_ID": "0" * 32}, null.fileno(), path)
        with pytest.raises(FileNotFoundError):
            sink([("MESSAGE", b"journald is down")])
        with journald(path) as receiver:
            sink([("MESSAGE", b"it is back")])
            assert b"it is back" in receiver.recv(65536)
            receiver.setblocking(False)
            choose_sink({}, null.fileno(), path)([("MESSAGE", b"discarded by a user")])
            with pytest.raises(BlockingIOError):
                receiver.recv(65536)


def test_a_warning_on_standard_error_never_blocks() -> None:
    with pipe() as (out, err):
        warn_on(err)("3 are lost")
        assert os.read(out, 65536) == b"s3daemon: 3 are lost\n"
        os.set_blocking(err, False)
        with suppress(BlockingIOError):
            while True:
                os.write(err, b"x" * 4096)
        os.set_blocking(err, True)
        warn_on(err)("the pipe is full")
    warn_on(err)("standard error is closed")


@pytest.mark.parametrize(
    ("limit", "entries"),
    [
        (LogLimit(), [("a", 10 + n / 100, 0 if n < 5 else None) for n in range(8)] + [("a", 11.5, 3), ("a", 11.5, 0)]),
        (LogLimit(1), [("a", 10, 0), ("b", 10.5, 0), ("a", 10.9, None), ("b", 10.9, None), ("a", 11, 1), ("a", 12, 0)]),
        (LogLimit(1, 60), [("a", 0, 0), ("a", 59, None), ("a", 60, 1), ("a", 119, None), ("a", 120, 1)]),
        (
            LogLimit(2),
            [("a", 0, 0), *[("a", 0, r) for r in (0, None, None)], ("b", 900, 0), ("c", 901, 0), ("a", 902, 2)],
        ),
    ],
    ids=["a period begins with an entry", "each kind by itself", "a minute", "what was skipped is kept for long"],
)
def test_of_equal_entries_so_many_a_period_are_written_and_the_others_counted(
    limit: LogLimit, entries: list[tuple[str, float, int | None]]
) -> None:
    """The next one that is written has the number; None stands for one that is skipped."""
    assert [limit.admit(kind, now) for kind, now, _ in entries] == [skipped for *_, skipped in entries]


def test_a_period_of_log_entries_can_be_ended_early() -> None:
    limit = LogLimit(2)
    assert [limit.admit("a", 0.0) for _ in range(5)] == [0, 0, None, None, None]
    assert [limit.end_period("a"), limit.end_period("a"), limit.admit("a", 0.1)] == [3, 0, 0]


def test_the_journal_takes_entries_when_there_is_no_descriptor_left(tmp_path: Path) -> None:
    """Idle clients may have taken all of them: the record is not lost, nor with it the row in the spool."""
    with journald(tmp_path / "journal") as receiver:
        send = journal_sink(tmp_path / "journal")
        free = os.dup(0)
        os.close(free)
        with no_free_descriptor(free):
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            send([("MESSAGE", b"one")])
        assert receiver.recv(65536).startswith(b"MESSAGE=one\n")


def test_a_loss_has_fields() -> None:
    """A report counts lost entries by them."""
    now, taken = [0.0], list[dict[str, bytes]]()

    def sink(fields: Sequence[tuple[str, bytes]]) -> None:
        if dict(fields)["MESSAGE"] == b"refused":
            now[0] += WARN_EVERY_S
            raise OSError
        taken.append(dict(fields))

    journal = Journal(sink, warn=Warnings(), clock=lambda: now[0])
    journal.write([("MESSAGE", "refused")])
    journal.close(PATIENCE_S)
    assert [(each["MESSAGE_ID"], each["S3DAEMON_LOST"]) for each in taken] == [(MessageId.LOST.encode(), b"1")]
