"""Where a report's entries come from: this host's journal, a saved one, or lines of `journalctl -o json`.

    journal    the files of this host's journal, through systemd-python's reader
    --file     a directory of journal files, or one file, copied from anywhere
    --stdin    what `journalctl -o json --all` printed, of as many hosts as one likes

Nothing to read must not look like nothing happened. Libsystemd passes over what it may not open or finds damaged, so
each file is tried here first: one that may not be read ends the report, one that is damaged is told.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .errors import S3daemonError, one_line
from .record import MessageId
from .report_select import Entry, Selection

#: Where journald keeps its files, in a directory named by the machine's id: those of before this boot, and of this one.
ROOTS = (Path("/var/log/journal"), Path("/run/log/journal"))
MACHINE_ID = Path("/etc/machine-id")
#: The group that may read every journal of a host (systemd-journald.service(8)).
GROUP = "systemd-journal"
#: Entries between two openings of the journal. Libsystemd keeps up to 512 MB of journal files mapped, and an entry
#: with its fields is some 2 kB of them: opened anew now and then, which takes 3 ms, it keeps to 20 MB.
REOPEN_AFTER = 10_000
#: How many of the first lines without a JSON object show that it is the wrong format; later ones are counted.
_SECONDS = 1_000_000

#: `systemd.journal.Reader`, or one like it.
Opener = Callable[..., Any]
#: Takes one line for the operator.
Note = Callable[[str], None]


def reader() -> Opener:
    """systemd-python's reader, without its conversions.

    Raises:
        S3daemonError: `NoReader`, it is not installed.
    """
    try:
        from systemd import journal
    except ImportError as exc:
        text = "systemd-python is not installed; without it: journalctl -o json --all | s3daemon report --stdin"
        raise S3daemonError("NoReader", text) from exc

    class Reader(journal.Reader):  # type: ignore[misc] # systemd-python has no types
        def _convert_entry(self, entry: dict[str, Any]) -> dict[str, Any]:
            # Each of an entry's 45 fields would be decoded, of which 20 are read: half of the time of a report. Should
            # a later version not ask here, the record reads what it converts as well.
            return entry

    return Reader


@dataclass(frozen=True, slots=True)
class JournalFiles:
    """Journal files to read together.

    Args:
        place: what the reader opens: a directory, a file, or None for this host's journal.
        files: what there is; at least one.
    """

    place: Path | None
    files: tuple[Path, ...]

    @classmethod
    def of_host(cls, roots: Sequence[Path] = ROOTS, machine_id: Path = MACHINE_ID) -> JournalFiles:
        """This host's.

        Raises:
            S3daemonError: `NoJournal`, there is none; `NotReadable`.
        """
        try:
            places = [root / machine_id.read_text().strip() for root in roots]
        except OSError:
            places = []
        files = [file for place in places if place.is_dir() for file in _listed(place)]
        if not files:
            text = f"this host has no journal in {' or '.join(map(str, roots))}; --file and --stdin read others"
            raise S3daemonError("NoJournal", text)
        return cls(None, tuple(files))

    @classmethod
    def saved(cls, place: Path) -> JournalFiles:
        """Those of a directory, also in the directories in it that are named by a machine's id; or a single file.

        Raises:
            S3daemonError: `NoJournal`, there is none; `NotReadable`.
        """
        if place.is_file():
            return cls(place, (place,))
        files = [*_listed(place), *(file for below in _directories(place) for file in _listed(below))]
        if not files:
            raise S3daemonError("NoJournal", f"there is no journal file in {place}")
        return cls(place, tuple(files))

    def open(self, opener: Opener) -> Any:
        """A reader of all of them.

        Raises:
            OSError: it cannot be opened.
        """
        if self.place is None:
            return opener()
        if self.place.is_file():
            return opener(files=[str(self.place)])
        return opener(path=str(self.place))

    def check(self, opener: Opener, note: Note) -> None:
        """Try each file.

        Raises:
            S3daemonError: `NotReadable`, one of them may not be read; `NoJournal`, none of them can be.
        """
        damaged = 0
        for file in self.files:
            try:
                opener(files=[str(file)]).close()
            except PermissionError as exc:
                raise _not_readable(file) from exc
            except FileNotFoundError:
                pass  # journald has renamed or removed it meanwhile; the reader finds what it is now
            except OSError as exc:
                damaged += 1
                note(f"{file} is left out, damaged or of a newer systemd: {exc.strerror or exc}")
        if damaged == len(self.files):
            raise S3daemonError("NoJournal", "no journal file could be read")


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
        text = line.strip()
        if not text or text.startswith(b"-- "):  # "-- No entries --"
            good += bool(text)
            continue
        entry = _object(text, parse=wanted in text)
        if entry is None:
            bad += 1
            first_bad = first_bad or number
            continue
        good += 1
        if entry:
            yield entry
    if not good and not bad:
        text = "standard input is empty; journalctl prints no line also when it may not read the journal"
        raise S3daemonError("NoInput", text)
    if not good:
        raise S3daemonError("BadInput", "standard input is not what journalctl -o json --all prints")
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
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _opened(files: JournalFiles, selection: Selection, opener: Opener) -> Any:
    try:
        journal = files.open(opener)
    except OSError as exc:
        raise S3daemonError("NoJournal", f"the journal cannot be opened: {exc.strerror or exc}") from exc
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


def _listed(place: Path) -> list[Path]:
    """The journal files in a directory; those with a tilde were left by a crash and are read like the others."""
    return [file for file in _within(place) if file.suffix in (".journal", ".journal~")]


def _directories(place: Path) -> list[Path]:
    return [below for below in _within(place) if below.is_dir() and _is_machine_id(below.name.partition(".")[0])]


def _is_machine_id(name: str) -> bool:
    return len(name) == len(MessageId.RECORD) and all(c in "0123456789abcdef" for c in name)


def _within(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except PermissionError as exc:
        raise _not_readable(place) from exc
    except OSError as exc:
        code = "NoSuchFile" if exc.errno == errno.ENOENT else "NoJournal"
        raise S3daemonError(code, f"cannot read {one_line(str(place))}: {exc.strerror or exc}") from exc


def _not_readable(place: Path) -> S3daemonError:
    text = f"{place} may be read by root and the group {GROUP} only: usermod -aG {GROUP} USER, and log in again"
    return S3daemonError("NotReadable", text)
