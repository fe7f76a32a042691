"""Where a report's entries come from: journal files, or lines of `journalctl -o json`.

    journal    the files of this host's journal, through systemd-python's reader
    --file     a directory of journal files, or one file, copied from anywhere
    --stdin    what `journalctl -o json --all` printed, of as many hosts as one likes

An entry is what its reader makes of it; `report_select` and `record` read all forms.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from typing import Any

from s3daemon.commands.report.files import JournalFiles, Note, Opener
from s3daemon.commands.report.select import Entry, Selection
from s3daemon.errors import Code, S3daemonError
from s3daemon.model.record import MessageId

#: Records between two openings of the journal. Libsystemd keeps up to 512 MB of journal files mapped, all resident once
#: read. Opened anew after so many it kept to 120 MB, for a tenth more of its 1.5 s with 200 000 records (systemd 252).
REOPEN_AFTER = 2_000
_SECONDS = 1_000_000


def reader() -> Opener:
    """systemd-python's reader, without its conversions.

    Raises:
        S3daemonError: `NoReader`, it is not installed.
    """
    try:
        from systemd.journal import Reader
    except ImportError as exc:
        text = "systemd-python is not installed; without it: journalctl -o json --all | s3daemon report --stdin"
        raise S3daemonError(Code.NO_READER, text) from exc

    class Plain(Reader):  # type: ignore[misc] # systemd-python has no types
        def _convert_entry(self, entry: dict[str, Any]) -> dict[str, Any]:
            # Each of an entry's 45 fields would be decoded, of which 20 are read: half of the time of a report. Should
            # a later version not ask here, the record reads what it converts as well.
            return entry

    return Plain


def from_journal(files: JournalFiles, selection: Selection, opener: Opener, note: Note) -> Iterator[Entry]:
    """The records in journal files, by the time of recording.

    Args:
        files: which.
        selection: narrows what is looked up; its bounds in time are journalctl's, on the time of recording.
        opener: makes a reader.
        note: is told what is missing.

    Raises:
        S3daemonError: nothing may or can be read.
    """
    files.check(opener, note)
    since, until = selection.since_usec, selection.until_usec
    cursor: str | None = None
    while True:
        with closing(_opened(files, selection, opener)) as journal:
            if cursor is None:
                _note_begin(journal, since, note)
                journal.seek_realtime(since) if since is not None else journal.seek_head()
                entries = iter(journal)
            else:
                journal.seek_cursor(cursor)
                entries = (entry for entry in iter(journal) if entry["__CURSOR"] != cursor)
            for count, entry in enumerate(entries, 1):
                if until is not None and _realtime_usec(entry) > until:
                    return
                yield entry
                if count == REOPEN_AFTER:
                    cursor = entry["__CURSOR"]
                    break
            else:
                return


def from_lines(lines: Iterable[bytes], note: Note) -> Iterator[Entry]:
    """The records among lines of `journalctl -o json --all`.

    Args:
        lines: as they were printed.
        note: is told how many lines were something else; the last one is when a connection broke.

    Raises:
        S3daemonError: `BadInput`, no line is a JSON object; `NoInput`, there is no line.
    """
    good = bad = first_bad = 0
    wanted = MessageId.RECORD.encode()
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"-- "):  # "-- No entries --"
            good += bool(stripped)
            continue
        entry = _object(stripped, parse=wanted in stripped)
        if entry is None:
            bad += 1
            first_bad = first_bad or number
            continue
        good += 1
        if entry:
            yield entry
    if not good and not bad:
        text = "standard input is empty; journalctl prints no line also when it may not read the journal"
        raise S3daemonError(Code.NO_INPUT, text)
    if not good:
        raise S3daemonError(Code.BAD_INPUT, "standard input is not what journalctl -o json --all prints")
    if bad:
        note(f"{bad} of {good + bad} lines are no JSON objects, the first is line {first_bad}: was the input cut off?")


def _object(text: bytes, *, parse: bool) -> Entry | None:
    """The object on a line; an empty one when its content is not wanted; None when it is no object."""
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return None
    if not parse:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _opened(files: JournalFiles, selection: Selection, opener: Opener) -> Any:
    try:
        journal = files.open(opener)
    except OSError as exc:
        raise S3daemonError(Code.NO_JOURNAL, f"the journal cannot be opened: {exc.strerror or exc}") from exc
    for match in selection.matches():
        journal.add_match(match)
    return journal


def _note_begin(journal: Any, since_usec: int | None, note: Note) -> None:
    """Say so when what is asked for begins before the journal does."""
    begin: datetime = journal.get_start()
    begin_s = begin.timestamp()
    if since_usec is not None and begin_s * _SECONDS > since_usec:
        note(f"the journal begins at {begin.astimezone():%Y-%m-%d %H:%M:%S %Z}, later than what is asked for")


def _realtime_usec(entry: Entry) -> float:
    when = entry["__REALTIME_TIMESTAMP"]
    return when.timestamp() * _SECONDS if isinstance(when, datetime) else int(str(when))
