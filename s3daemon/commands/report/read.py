"""Read the entries of a report from the output of `journalctl -o json --all`, run here or elsewhere.

    journal    this host's journal
    --file     a directory of journal files, or one file, copied from anywhere
    --stdin    what `journalctl -o json --all` printed, of any number of hosts

So one parser serves all three. Times and damaged files are systemd's to judge as well: `usec_of` asks
`systemd-analyze timestamp`, whose parser is journalctl's own.

Measured side by side with 200 000 records (systemd 252, two busy cores; a night has a tenth of that): by
systemd-python's reader a report took 10 s of processor time in 11 to 15 s; this way it takes 8 s, and journalctl 13 s
beside it, in 25 to 38 s. But the reader gives entries in a second form, is that fast only with a private method
overridden, and has to be opened again and again, or it maps 512 MB of journal.

Nothing to read must not look like nothing happened. journalctl silently skips a file that it may not open as long as it
may open another, and succeeds where there is no file at all, so both are checked here first. What it says of damaged
files is passed on.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from s3daemon.commands.report.select import FIELDS, OTHERS, JournalEntry, Selection
from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.model.record import MessageId
from s3daemon.units import moment, plural, zone_name

#: Where journald keeps its files, in a directory named by the machine's id: across boots, and for this boot alone.
JOURNALS = (Path("/var/log/journal"), Path("/run/log/journal"))
MACHINE_ID = Path("/etc/machine-id")
#: The group that may read every journal of a host (systemd-journald.service(8)).
GROUP = "systemd-journal"
#: journalctl ends at the first entry after `--until`, in the order of writing, and so misses what was written after the
#: clock was set back. It is asked for so much more, microseconds; the selection leaves the rest out.
CLOCK_SET_BACK_USEC = 24 * 3600 * 1_000_000

Note = Callable[[str], None]
"""Takes one line for the operator: what is missing."""


def from_journal(
    place: Path | None, selection: Selection, note: Note, *, program: str = "journalctl"
) -> Iterator[JournalEntry]:
    """Yield the records of a journal, and what delayed or kept out others, by the time of recording.

    Args:
        place: a directory of journal files, or one file; None for this host's journal.
        selection: what journalctl is asked for; its bounds in time are on the time of recording.
        note: takes what is missing.
        program: journalctl.

    Raises:
        S3daemonError: `NoJournal`, `NotReadable`, `NoSuchFile`; `NoReader`, there is no journalctl.
    """
    _check_files(host_directories() if place is None else [place])
    run = [program, "--output=json", "--all", "--no-pager"]
    if place is not None:
        # journalctl takes a pattern for --file=, but not for --directory=.
        run.append(f"--directory={place}" if place.is_dir() else f"--file={glob.escape(str(place))}")
    _check_begin(run, selection.since_usec, note)
    until_usec = None if selection.until_usec is None else selection.until_usec + CLOCK_SET_BACK_USEC
    for bound, usec in (("since", selection.since_usec), ("until", until_usec)):
        if usec is not None:
            run.append(f"--{bound}=@{usec // 1_000_000}.{usec % 1_000_000:06}")
    # An entry has as many other fields; without them reading takes two thirds of the time.
    run.append(f"--output-fields={','.join(FIELDS)}")
    yield from _parsed(_printed([*run, *selection.matches()], note), note, required=False)


def from_lines(lines: Iterable[bytes], note: Note) -> Iterator[JournalEntry]:
    """Yield the records, and what delayed or kept out others, among lines of `journalctl -o json --all`.

    Args:
        lines: as they were printed.
        note: takes how many lines were something else, as the last one is when a connection broke.

    Raises:
        S3daemonError: `BadInput`, no line is a JSON object; `NoInput`, there is no line.
    """
    return _parsed(lines, note, required=True)


def usec_of(text: str, *, utc: bool, program: str = "systemd-analyze") -> int:
    """Return the point in time that a text names for journalctl, in microseconds since the epoch.

    Args:
        text: such as `2026-11-23 18:15`, `yesterday`, `-2h`, `@1795400534`; systemd.time(7) has them all.
        utc: what names no zone is UTC; else it is the system's zone.
        program: systemd-analyze.

    Raises:
        ValueError: the text names no point in time, or systemd-analyze is not installed.
    """
    environ = {**os.environ, "LC_ALL": "C", **({"TZ": "UTC"} if utc else {})}
    try:
        done = subprocess.run(  # noqa: S603 - an argument of its own, after the end of options
            [program, "timestamp", "--", text], env=environ, capture_output=True, text=True, check=False
        )
    except OSError as exc:
        raise ValueError(f"{program}, which parses times, cannot be run: {exc.strerror}") from exc
    found = re.search(r"UNIX seconds: @([0-9]+)(?:\.([0-9]{6}))?$", done.stdout, re.M)
    if found is None:
        raise ValueError(
            f"{text!r} is not a time that journalctl takes, such as '2026-11-23 18:15', 'yesterday', '-2h'"
        )
    return int(found[1]) * 1_000_000 + int(found[2] or 0)


def host_directories(roots: Sequence[Path] = JOURNALS, machine_id: Path = MACHINE_ID) -> list[Path]:
    """Return the directories in which journald keeps this host's journal, those that are there."""
    try:
        name = machine_id.read_text().strip()
    except OSError:
        return []
    return [root / name for root in roots if not _is_missing(root / name)]


def _is_missing(path: Path) -> bool:
    """Whether nothing has that name; what may not be examined does."""
    try:
        path.stat()
    except OSError as exc:
        return isinstance(exc, FileNotFoundError)
    return False


def _check_files(places: Sequence[Path]) -> None:
    """Open each journal file in these directories, or these files.

    Raises:
        S3daemonError: one of them may not be read, or there is none.
    """
    count = 0
    for place in places:
        for file in _journal_files(place):
            count += 1
            try:
                file.open("rb").close()
            except FileNotFoundError:
                pass  # journald has renamed or removed it meanwhile
            except OSError as exc:
                raise _unreadable(file, exc) from exc
    if not count:
        where = " or ".join(map(str, places or JOURNALS))
        raise S3daemonError(Code.NO_JOURNAL, f"there is no journal file in {where}; --file and --stdin read others")


def _journal_files(place: Path) -> Iterator[Path]:
    """Yield the journal files of a place; those with a tilde were left by a crash and are read like the others."""
    if os.path.isfile(place):  # noqa: PTH113 - False, not an error, where the directory above is closed
        yield place
        return

    def refuse(error: OSError) -> None:
        raise _unreadable(Path(error.filename), error) from error

    for top, _, names in os.walk(place, onerror=refuse):
        yield from (Path(top, name) for name in names if name.endswith((".journal", ".journal~")))


def _unreadable(place: Path, error: OSError) -> S3daemonError:
    if isinstance(error, PermissionError):
        text = f"{place} may be read by root and the group {GROUP} only: usermod -aG {GROUP} USER, and log in again"
        return S3daemonError(Code.NOT_READABLE, text)
    code = Code.NO_SUCH_FILE if isinstance(error, FileNotFoundError) else Code.NO_JOURNAL
    return S3daemonError(code, f"cannot read {one_line(str(place))}: {error.strerror or error}")


def _check_begin(run: Sequence[str], since_usec: int | None, note: Note) -> None:
    """Read the first entry of all, and say so when the journal begins later than what is asked for.

    Raises:
        S3daemonError: there is none, so no file can be read: journald writes an entry into each that it makes.
    """
    said: list[str] = []
    with closing(_printed([*run, "--output-fields=MESSAGE_ID"], said.append)) as lines:
        first = _object(next(lines, b"").strip(), parse=True)
    begin = str((first or {}).get("__REALTIME_TIMESTAMP"))
    if not begin.isdecimal():
        raise S3daemonError(Code.NO_JOURNAL, f"no journal file could be read: {'; '.join(said) or 'they are empty'}")
    if since_usec is not None and int(begin) > since_usec:
        at = f"{moment(int(begin), None)} {zone_name(int(begin), None)}"
        note(f"the journal begins at {at}, later than the time requested")


def _printed(run: Sequence[str], note: Note) -> Generator[bytes, None, None]:
    """Yield the lines that a command prints; what it says on standard error is noted at its end.

    Raises:
        S3daemonError: it cannot be run, or fails.
    """
    with tempfile.TemporaryFile() as complaints:
        try:
            process = subprocess.Popen(run, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)  # noqa: S603 - matches are arguments of their own
        except OSError as exc:
            text = f"{run[0]} cannot be run: {exc.strerror}; pass the output of journalctl -o json --all to --stdin"
            raise S3daemonError(Code.NO_READER, text) from exc
        with process:
            try:
                yield from process.stdout or ()
            except BaseException:
                process.kill()  # or it would wait for someone to read on
                raise
        complaints.seek(0)
        said = [one_line(line) for line in complaints.read().decode(errors="backslashreplace").splitlines()]
    if process.returncode:
        text = said[-1] if said else f"it ended with status {process.returncode}"
        raise S3daemonError(Code.NO_JOURNAL, f"journalctl cannot read the journal: {text}")
    for text in said:
        note(text)


def _parsed(lines: Iterable[bytes], note: Note, *, required: bool) -> Iterator[JournalEntry]:
    """Yield what is wanted among lines; no line at all is an error where some are `required`."""
    good = bad = first_bad = 0
    wanted = re.compile("|".join((MessageId.RECORD, *OTHERS)).encode())
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"-- "):  # "-- No entries --"
            good += bool(stripped)
            continue
        entry = _object(stripped, parse=wanted.search(stripped) is not None)
        if entry is None:
            bad += 1
            first_bad = first_bad or number
            continue
        good += 1
        if entry:
            yield entry
    if required and not good and not bad:
        text = "standard input is empty; journalctl also prints nothing when it may not read the journal"
        raise S3daemonError(Code.NO_INPUT, text)
    if required and not good:
        raise S3daemonError(Code.BAD_INPUT, "standard input is not what journalctl -o json --all prints")
    if bad:
        note(
            f"not a JSON object: {bad} of {plural(good + bad, 'line')}, first line {first_bad}: was the input cut off?"
        )


def _object(text: bytes, *, parse: bool) -> JournalEntry | None:
    """Return the object on a line; an empty one when its content is not wanted; None when it is not an object."""
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return None
    if not parse:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
