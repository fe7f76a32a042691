"""A journal that stands still costs entries and a note, never a caller's time; and no entry shows a secret.

A journal that stands still is a sink that waits.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from s3daemon.journal import MAX_VALUE_BYTES, NOTE_EVERY_S, Journal
from s3daemon.model.record import TransferRecord
from s3daemon.sinks import Sink

#: Ample for a thread to do what it has to; reached only by a test that fails.
PATIENCE_S = 10.0

RECORD = TransferRecord(
    transfer_id="0123456789abcdef",
    outcome="stored",
    file="/data/\udcff",
    bucket="raw",
    key="a",
    tags=("one", "two"),
    size_bytes=1,
    start_usec=1,
    total_usec=1,
    attempts=1,
)


class Gate:
    """A sink that stands still while shut, and refuses while broken."""

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


class Notes:
    """Standard error."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def lost(count: int) -> str:
    return f"{count} journal entries are lost: the journal did not take them, or not in time"


@contextmanager
def journal_to(
    sink: Sink, notes: Notes | None = None, limit: int = 100, secrets: Sequence[str] = ()
) -> Iterator[Journal]:
    journal = Journal(sink, note=notes or Notes(), clock=lambda: 0.0, limit=limit, secrets=secrets)
    try:
        yield journal
    finally:
        journal.close(PATIENCE_S)


def test_a_record_goes_through_whole_and_its_end_is_told() -> None:
    gate, done = Gate(), threading.Event()
    gate.open.set()
    with journal_to(gate) as journal:
        assert journal.record(RECORD, done.set)
        assert done.wait(PATIENCE_S)
    names = [name for name, _ in gate.entries[0]]
    assert names.count("S3DAEMON_TAG") == 2
    assert dict(gate.entries[0])["S3DAEMON_FILE"] == b"/data/\xff"


def test_a_journal_that_stands_still_holds_nobody_up() -> None:
    gate, notes, done = Gate(), Notes(), []
    with journal_to(gate, notes, limit=2) as journal:
        assert journal.write([("MESSAGE", "in the sink")])
        assert gate.entered.wait(PATIENCE_S)
        taken = [journal.write([("MESSAGE", str(n))], lambda: done.append(1)) for n in range(5)]
        assert taken == [True, True, False, False, False]
        assert len(done) == 3  # the dropped ones are out of our hands at once
        gate.open.set()
    # As soon as it moves it is told what it missed, as a warning, and standard error nothing.
    assert gate.messages == ["in the sink", lost(3), "0", "1"]
    assert dict(gate.entries[1])["PRIORITY"] == b"4"
    assert not notes.lines
    assert len(done) == 5


class Steps:
    """A sink that takes one entry at a time, when told to; its own notes it takes at once."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.noted = threading.Semaphore(0)
        self._taken, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, fields: Sequence[tuple[str, bytes]]) -> None:
        message = dict(fields)["MESSAGE"].decode()
        if message:
            self.notes.append(message)
            self.noted.release()
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


def test_notes_of_loss_keep_their_distance() -> None:
    """However long entries are lost, one note goes out per second, and none is forgotten."""
    now, sink = [0.0], Steps()
    journal = Journal(sink, note=Notes(), clock=lambda: now[0], limit=3)
    journal.write([("MESSAGE", "")])
    sink.wait()
    for _ in range(4):  # one of them is lost
        journal.write([("MESSAGE", "")])
    sink.step()
    assert sink.notes == [lost(1)]
    for _ in range(3):  # two are lost
        journal.write([("MESSAGE", "")])
    sink.step()
    assert sink.notes == [lost(1)]
    now[0] += NOTE_EVERY_S
    sink.step()
    assert sink.notes == [lost(1), lost(2)]
    for _ in range(3):  # one is lost
        journal.write([("MESSAGE", "")])
    sink.go(4)
    journal.close(PATIENCE_S)
    assert sink.notes == [lost(1), lost(2), lost(1)]


def test_a_loss_is_told_though_no_entry_follows() -> None:
    """The second note has to wait for its time, which passes by itself."""
    sink = Steps()
    journal = Journal(sink, note=Notes(), clock=lambda: 0.0, limit=1)
    for expected in (lost(1), lost(2)):
        journal.write([("MESSAGE", "")])
        sink.wait()
        for _ in range(2 if expected == lost(1) else 3):
            journal.write([("MESSAGE", "")])
        sink.step()
        sink.go()
    for _ in range(2):
        assert sink.noted.acquire(timeout=PATIENCE_S)
    journal.close(PATIENCE_S)
    assert sink.notes == [lost(1), lost(2)]


def refused(journal: Journal, count: int) -> None:
    """Write so many entries, each once the one before it is out of our hands."""
    done = threading.Event()
    for _ in range(count):
        journal.write([("MESSAGE", "x")], done.set)
        assert done.wait(PATIENCE_S)
        done.clear()


def test_what_is_refused_is_noted_on_standard_error() -> None:
    gate, notes = Gate(), Notes()
    gate.broken = True
    gate.open.set()
    with journal_to(gate, notes) as journal:
        refused(journal, 3)
    assert notes.lines == [lost(1), lost(2)]


def test_a_journal_that_is_back_is_told_all_that_it_missed() -> None:
    """By itself, though standard error was told of some: under systemd that leads to the journal too."""
    gate, notes = Gate(), Notes()
    gate.broken = True
    gate.open.set()
    with journal_to(gate, notes) as journal:
        refused(journal, 3)
        gate.broken = False
        until = time.monotonic() + PATIENCE_S
        while not gate.entries and time.monotonic() < until:
            time.sleep(0.01)
    assert gate.messages == [lost(3)]


@pytest.mark.parametrize("waiting", [0, 1, 2])
def test_close_gives_up_in_time(waiting: int) -> None:
    """With a queue that has room for the end mark, and with one that has not."""
    gate, notes = Gate(), Notes()
    journal = Journal(gate, note=notes, limit=2)
    journal.write([("MESSAGE", "in the sink")])
    assert gate.entered.wait(PATIENCE_S)
    for _ in range(waiting):
        journal.write([("MESSAGE", "waits")])
    before = time.monotonic()
    journal.close(0.1)
    assert time.monotonic() - before < 1
    assert notes.lines == [lost(waiting + 1)]
    assert not journal.write([("MESSAGE", "too late")])
    gate.open.set()


def test_close_sends_what_waits() -> None:
    gate = Gate()
    with journal_to(gate) as journal:
        for n in range(50):
            journal.write([("MESSAGE", str(n))])
        gate.open.set()
    assert gate.messages == [str(n) for n in range(50)]


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


def test_log_lines_go_the_same_way() -> None:
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
