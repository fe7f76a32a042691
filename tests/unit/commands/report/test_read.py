"""Entries come whole and once, from a journal opened again and again, and from lines; nothing is lost unsaid."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from lab.records import START_USEC, entry, line, record

from s3daemon.commands.report.files import JournalFiles
from s3daemon.commands.report.read import REOPEN_AFTER, from_journal, from_lines
from s3daemon.commands.report.select import Entry, Selection
from s3daemon.errors import S3daemonError

SECOND = 1_000_000
FILES = JournalFiles(None, (Path("/j/system.journal"),))


class Journal:
    """What systemd-python's reader is to us: a shelf of entries, one second apart; each opening begins anew."""

    def __init__(self, count: int) -> None:
        self.cursors = [f"c{number}" for number in range(count)]
        self.opened = 0
        self.open_now = 0
        self.matches: list[str] = []

    def __call__(self, **place: Any) -> "Shelf":
        self.open_now += 1
        if not place:
            self.opened += 1
        return Shelf(self)


class Shelf:
    """One opening of it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.at = -1

    def add_match(self, match: str) -> None:
        self.journal.matches.append(match)

    def get_start(self) -> datetime:
        return datetime.fromtimestamp(START_USEC / 1e6, UTC)

    def seek_head(self) -> None:
        self.at = 0

    def seek_realtime(self, usec: int) -> None:
        self.at = max(0, -(-(usec - START_USEC) // SECOND))

    def seek_cursor(self, cursor: str) -> None:
        """At it, or, when it is gone, at what came next."""
        number = int(cursor[1:])
        self.at = next(i for i, c in enumerate(self.journal.cursors) if int(c[1:]) >= number)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for cursor in self.journal.cursors[self.at :]:
            yield {"__CURSOR": cursor, "__REALTIME_TIMESTAMP": START_USEC + int(cursor[1:]) * SECOND}

    def close(self) -> None:
        self.journal.open_now -= 1


def read(journal: Journal, notes: list[str] | None = None, **wanted: Any) -> list[str]:
    note = pytest.fail if notes is None else notes.append
    return [str(found["__CURSOR"]) for found in from_journal(FILES, Selection(**wanted), journal, note)]


@pytest.mark.parametrize("count", [0, 1, REOPEN_AFTER - 1, REOPEN_AFTER, REOPEN_AFTER + 1, 2 * REOPEN_AFTER + 7])
def test_reopening_loses_and_repeats_nothing(count: int) -> None:
    """However many records there are, each comes once and in order, and the journal is closed in the end."""
    journal = Journal(count)
    assert read(journal) == journal.cursors
    assert journal.opened == count // REOPEN_AFTER + 1
    assert journal.open_now == 0


def test_journald_removes_what_was_read() -> None:
    """When the last entry read is gone at the next opening, the one after it is not taken for it."""
    journal = Journal(REOPEN_AFTER + 3)
    seen = []
    for found in from_journal(FILES, Selection(), journal, pytest.fail):
        seen.append(found["__CURSOR"])
        if len(seen) == REOPEN_AFTER:
            del journal.cursors[:REOPEN_AFTER]
    assert seen[REOPEN_AFTER:] == journal.cursors


def test_bounds_of_time() -> None:
    """Reading begins at the one bound and ends at the other, and asks journald for what is wanted."""
    journal = Journal(10)
    assert read(journal, since_usec=START_USEC + 3 * SECOND, until_usec=START_USEC + 5 * SECOND) == ["c3", "c4", "c5"]
    assert journal.matches == Selection().matches()
    assert journal.open_now == 0


def test_a_journal_that_begins_later_is_told() -> None:
    """Where journald no longer has what is asked for, that is said."""
    notes: list[str] = []
    read(Journal(1), notes, since_usec=START_USEC - 1)
    begin = datetime.fromtimestamp(START_USEC / 1e6).astimezone()
    assert notes == [f"the journal begins at {begin:%Y-%m-%d %H:%M:%S %Z}, later than what is asked for"]


def lines(*given: bytes, notes: list[str] | None = None) -> list[Entry]:
    return list(from_lines(given, pytest.fail if notes is None else notes.append))


def test_lines_of_many_hosts() -> None:
    """Records are found among other entries, whichever hosts they come from; the notice of an empty journal is none."""
    other = b'{"MESSAGE": "hello"}\n'
    found = lines(line(record(1), "a"), other, b"-- No entries --\n", b"\n", line(record(2), "b"))
    assert found == [entry(record(1), "a"), entry(record(2), "b")]
    assert lines(b"-- No entries --\n") == lines(other) == []


def test_a_cut_line_is_told() -> None:
    """When a connection broke within a line, what came before counts and the break is told."""
    notes: list[str] = []
    whole = line(record(1))
    assert lines(whole, whole[:100], notes=notes) == [entry(record(1))]
    assert notes == ["1 of 2 lines are no JSON objects, the first is line 2: was the input cut off?"]


@pytest.mark.parametrize(
    ("given", "code"),
    [((), "NoInput"), ((b"\n",), "NoInput"), ((b"Nov 23 box s3daemon[1]: x\n",), "BadInput"),
     ((b"[1]\n", b"{\n"), "BadInput"), ((b'{"59de861c00b54c97810d5760a3b1b9a0" no}\n',), "BadInput")],
)  # fmt: skip
def test_no_lines_is_an_error(given: tuple[bytes, ...], code: str) -> None:
    """Nothing on standard input, as from a journalctl that may not read, and another format are errors."""
    with pytest.raises(S3daemonError) as caught:
        lines(*given)
    assert caught.value.code == code
