"""Opening the spool's file, and replacing it when it is damaged, so that no crash meanwhile loses what could be read.

It is replaced too when it, or its WAL, is no longer at its path while it is open: nobody would find it there again.

The steps, each harmless to repeat (`directory` lists the files):

    1. what can be read of spool.db goes to spool.db.new, in one commit, which is written back into that file
    2. spool.db.new is renamed spool.db.rescued: from now on it is complete, and opening the spool begins with step 3
    3. what there is of spool.db-wal, -shm and spool.db is renamed spool.db.corrupt-...
    4. spool.db.rescued is renamed spool.db
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from s3daemon.errors import Code, StartError, one_line
from s3daemon.spool.database import SpoolFile, is_corrupt
from s3daemon.spool.directory import EMPTY_SPOOL, obstacle
from s3daemon.spool.exposures import KeptExposures
from s3daemon.spool.rows import Change, Entry, Hint, Insert, OpenUpload, SaveClock, SaveHint
from s3daemon.units import plural

#: The most reads that may fail while a damaged file is searched for rows, each some 50 us. A row of a damaged page
#: takes two, so these are half a million rows, as of ten outages of 48 h. Without a bound a file that lost its root
#: would be searched for every seq there ever was.
MAX_BAD_READS = 1_000_000

T = TypeVar("T")
_log = logging.getLogger(__name__)


def cannot_open(file: Path, error: sqlite3.Error | OSError) -> StartError:
    """Return the error for people that `error`, raised while the spool's file was opened, means."""
    directory = file.parent
    if is_corrupt(error):
        text = f"the spool in {directory} is damaged; the daemon repairs it when it starts"
        return StartError(Code.SPOOL_CORRUPT, text)
    # SQLite says "unable to open database file" or "disk I/O error" where the system has a reason.
    if (found := obstacle(file)) is not None:
        return found
    text = f"the spool in {directory} cannot be opened: {error}: examine its file system"
    return StartError(Code.SPOOL_BROKEN, text)


@dataclass(slots=True)
class Contents:
    """What was read of a file.

    Args:
        entries: the rows of transfers, in order.
        uploads: the multipart uploads; all or none: a transfer without its upload starts from the first part again.
        kept: the last exposures.
        hint: what was known about the store.
        active_base_s: the active seconds.
        last_seq: the highest ever used.
        lost: how many rows could not be read, at most; None when nothing tells.
    """

    entries: list[Entry] = field(default_factory=list)
    uploads: list[OpenUpload] = field(default_factory=list)
    kept: KeptExposures = field(default_factory=KeptExposures)
    hint: Hint = field(default_factory=Hint)
    active_base_s: float = 0.0
    last_seq: int = 0
    lost: int | None = 0

    @classmethod
    def read(cls, file: SpoolFile) -> Contents:
        """Read all of a sound file."""
        entries, uploads, kept = file.entries(), file.uploads(), file.kept()
        return cls(entries, uploads, kept, file.hint, file.active_base_s, file.last_seq)

    def batches(self) -> list[Sequence[Change]]:
        """Return the changes that bring it into an empty file."""
        return [
            [Insert(entry, if_missing=True) for entry in self.entries],
            *(upload.changes() for upload in self.uploads),
            [self.kept],
            [SaveClock(self.active_base_s), SaveHint(self.hint)],
        ]


class RecoverableFile:
    """The spool's file, opened at first use, replaced when it turns out to be damaged. One thread at a time uses it.

    Args:
        path: of the file.
        create: create it when there is none, replace it when it is damaged; False for an operator's tool, whose files
            the service's user could not open.

    Attributes:
        on_damaged: called, by the thread that uses it, before it is replaced, which may take minutes.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        self.on_damaged: Callable[[], None] = lambda: None
        self._path, self._create = path, create
        self._lock = threading.Lock()
        self._file: SpoolFile | None = None
        self._opened: list[tuple[int, int]] = []  # what `_found` was then
        self._replaced = False

    def use(self, work: Callable[[SpoolFile], T]) -> T:
        """Call `work` with the file; when that finds the file damaged or gone, with its replacement.

        Raises:
            StartError: `SpoolNewer`; without `create` also `SpoolCorrupt`, the file is empty.
            sqlite3.Error, OSError: the disk fails; or the file is damaged (`is_corrupt`) and `create` is False.
        """
        with self._lock:
            try:
                file = self._open_file()
                if self._create and self._found() != self._opened:
                    self._write_anew(file)
                    file = self._open_file()
                return work(file)
            except sqlite3.Error as exc:
                if not self._create or not is_corrupt(exc):
                    raise
                self._close_file()
                self._repair(exc)
            return work(self._open_file())

    def take_replaced(self) -> bool:
        """Whether the file was replaced since this was last asked."""
        replaced, self._replaced = self._replaced, False
        return replaced

    def close(self) -> None:
        """Close the file; SQLite writes the WAL back if it can."""
        with self._lock:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_file(self) -> SpoolFile:
        if self._file is None:
            if self._create:
                self._finish_interrupted()
            if self._path.exists() and not self._path.stat().st_size:
                if not self._create:  # opening it makes it a sound spool, and the daemon would say nothing
                    raise StartError(Code.SPOOL_CORRUPT, f"{self._path} {EMPTY_SPOOL}; the daemon makes a new one")
                _log.error("%s %s", self._path, EMPTY_SPOOL)
            self._file = SpoolFile(self._path, create=self._create)
            self._opened = self._found()
        return self._file

    def _found(self) -> list[tuple[int, int]]:
        """Return which files are at the paths of the file and of its WAL: device and inode; takes 6 us."""
        found = []
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(f"{self._path}{suffix}")  # noqa: PTH116 - twice as fast
                found.append((status.st_dev, status.st_ino))
        return found

    def _finish_interrupted(self) -> None:
        """Finish, or undo, a replacement that a crash interrupted."""
        if _rescued(self._path).exists():
            _swap_in(self._path)
        for suffix in ("", "-wal"):
            Path(f"{_new(self._path)}{suffix}").unlink(missing_ok=True)

    def _write_anew(self, file: SpoolFile) -> None:
        """Write what the open file holds to a file at its path."""
        self._finish_interrupted()
        file.read_state()
        found = Contents.read(file)
        self._replace(found)
        _log.error(
            "the files of the spool were removed or replaced while the daemon runs: %s written anew to "
            "%s; leave it alone until the daemon has stopped",
            *(plural(len(found.entries), "transfer"), self._path),
        )

    def _repair(self, reason: sqlite3.Error) -> None:
        """Replace a damaged file by what can be read of it."""
        self.on_damaged()
        self._finish_interrupted()
        found = _salvage(self._path)
        old_file = self._replace(found)
        lost = "an unknown number" if found.lost is None else f"up to {found.lost}"
        _log.error(
            "the spool was damaged (%s): %s carried over, %s could not be read; the old file is %s",
            *(one_line(str(reason)), plural(len(found.entries), "transfer"), lost, old_file),
        )

    def _replace(self, contents: Contents) -> Path:
        """Put a file with `contents` in place of what there is, and return the new name of that."""
        replacement = SpoolFile(_new(self._path), create=True)
        try:
            replacement.commit(contents.batches())
            replacement.checkpoint()
        finally:
            replacement.close()
        _new(self._path).rename(_rescued(self._path))
        self._close_file()
        old_file = _swap_in(self._path)
        self._replaced = True
        return old_file


def _new(path: Path) -> Path:
    return Path(f"{path}.new")


def _rescued(path: Path) -> Path:
    return Path(f"{path}.rescued")


def _swap_in(path: Path) -> Path:
    """Rename what there is of the file, put the rescued one there (steps 3 and 4), and return the old file's new name.

    The WAL goes first: were it left beside the replacement, SQLite would take it for the replacement's own.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    old_file = Path(f"{path}.corrupt-{stamp}")
    number = 1
    while any(Path(f"{old_file}{suffix}").exists() for suffix in ("-wal", "-shm", "")):
        number += 1
        old_file = Path(f"{path}.corrupt-{stamp}.{number}")
    for suffix in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{old_file}{suffix}")
    _rescued(path).rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return old_file


def _salvage(path: Path) -> Contents:
    """Read what can be read of a damaged file.

    A range of rows that cannot be read is halved until the damaged rows are isolated.
    """
    try:
        file = SpoolFile(path, create=False, damaged=True)
    except sqlite3.Error:
        return Contents(lost=None)
    found = Contents(hint=file.hint, active_base_s=file.active_base_s)
    bad_reads, bad_rows = 0, 0
    ranges = [(1, file.last_seq)] if file.last_seq else []
    while ranges and bad_reads < MAX_BAD_READS:
        first, last = ranges.pop()
        try:
            found.entries += file.entries(first, last)
        except sqlite3.Error:
            bad_reads += 1
            if first == last:
                bad_rows += 1
            else:
                middle = (first + last) // 2
                ranges += [(middle + 1, last), (first, middle)]
    with contextlib.suppress(sqlite3.Error):
        found.uploads = file.uploads()
    with contextlib.suppress(sqlite3.Error):
        found.kept = file.kept()
    file.close()
    unread = sum(last - first + 1 for first, last in ranges)  # the search was given up
    found.lost = bad_rows + unread if file.last_seq else None
    return found
