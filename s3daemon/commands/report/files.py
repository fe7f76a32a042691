"""The journal files that a report is read from: this host's, or saved ones.

Nothing to read must not look like nothing happened. Libsystemd passes over a file that it may not open or finds
damaged, so each is tried here first: one that may not be read ends the report, one that is damaged is told.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3daemon.errors import Code, S3daemonError, one_line

#: Where journald keeps its files, in a directory named by the machine's id: what outlasts a boot, and what does not.
ROOTS = (Path("/var/log/journal"), Path("/run/log/journal"))
MACHINE_ID = Path("/etc/machine-id")
#: The group that may read every journal of a host (systemd-journald.service(8)).
GROUP = "systemd-journal"
_ID_DIGITS = 32

#: `systemd.journal.Reader`, or one like it.
Opener = Callable[..., Any]
#: Takes one line for the operator.
Note = Callable[[str], None]


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
        files = [file for place in places if _is_dir(place) for file in _listed(place)]
        if not files:
            text = f"this host has no journal in {' or '.join(map(str, roots))}; --file and --stdin read others"
            raise S3daemonError(Code.NO_JOURNAL, text)
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
            raise S3daemonError(Code.NO_JOURNAL, f"there is no journal file in {place}")
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
            raise S3daemonError(Code.NO_JOURNAL, "no journal file could be read")


def _listed(place: Path) -> list[Path]:
    """The journal files in a directory; those with a tilde were left by a crash and are read like the others."""
    return [file for file in _within(place) if file.suffix in (".journal", ".journal~")]


def _directories(place: Path) -> list[Path]:
    return [below for below in _within(place) if _is_machine_id(below.name.partition(".")[0]) and _is_dir(below)]


def _is_dir(place: Path) -> bool:
    try:
        return place.is_dir()
    except PermissionError as exc:
        raise _not_readable(place) from exc


def _is_machine_id(name: str) -> bool:
    return len(name) == _ID_DIGITS and all(c in "0123456789abcdef" for c in name)


def _within(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except PermissionError as exc:
        raise _not_readable(place) from exc
    except OSError as exc:
        code = Code.NO_SUCH_FILE if exc.errno == errno.ENOENT else Code.NO_JOURNAL
        raise S3daemonError(code, f"cannot read {one_line(str(place))}: {exc.strerror or exc}") from exc


def _not_readable(place: Path) -> S3daemonError:
    text = f"{place} may be read by root and the group {GROUP} only: usermod -aG {GROUP} USER, and log in again"
    return S3daemonError(Code.NOT_READABLE, text)
