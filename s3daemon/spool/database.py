"""The rows of the spool: one SQLite file, its schema, and every statement that ever touches it. Synchronous, no policy.

    transfer        one row per transfer that is pending (failed = 0) or failed for good (failed = 1)
        seq             order of acceptance, never used twice: AUTOINCREMENT remembers the highest after its row is gone
        id, file (bytes), bucket, key, tags (a JSON array), size_bytes, mtime_ns, inode, device, accepted_usec
                        the `Transfer`; inode and device are unsigned in the kernel, signed here
        accepted_service, attempts, begun, code, text, failed, failed_service, told
                        as in `Entry`
    transfer_overtaken  index over the failed rows alone, by bucket and key: what a success for a destination clears
    state           one row: service, the seconds of service that ran until it was last written
    upload, part    multipart uploads: `spoolparts` draws them
    PRAGMA user_version     how many of `MIGRATIONS` have been applied

There is no index over `id`: ids are random, so each acceptance would dirty a page of its own of it; the spool knows the
seq of every id that it holds. The dialect is SQLite 3.34's.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from s3daemon.errors import Code, RequestError, StartError
from s3daemon.spool import upload_rows as spoolparts
from s3daemon.spool.rows import (
    COLUMNS,
    Change,
    ClearFailures,
    Delete,
    Entry,
    Expire,
    Insert,
    SaveClock,
    Update,
    Value,
    from_row,
    to_row,
)
from s3daemon.spool.upload_rows import UploadRows

#: Each brings the schema from the version of its index to the next; none is ever edited once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE transfer (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, file BLOB NOT NULL, bucket TEXT NOT NULL,
            key TEXT NOT NULL, tags TEXT NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
            inode INTEGER NOT NULL, device INTEGER NOT NULL, accepted_usec INTEGER NOT NULL,
            accepted_service REAL NOT NULL, attempts INTEGER NOT NULL, begun INTEGER NOT NULL, code TEXT NOT NULL,
            text TEXT NOT NULL, failed INTEGER NOT NULL, failed_service REAL NOT NULL, told INTEGER NOT NULL)""",
        "CREATE INDEX transfer_overtaken ON transfer (bucket, key) WHERE failed = 1",
        "CREATE TABLE state (service REAL NOT NULL)",
        "INSERT INTO state VALUES (0.0)",
    ),
    spoolparts.SCHEMA,
)
_INSERT = f"INSERT INTO transfer ({COLUMNS}) VALUES ({', '.join('?' * len(COLUMNS.split()))})"  # noqa: S608 - ours
_INSERT_IF_MISSING = _INSERT.replace("INSERT", "INSERT OR IGNORE", 1)
_SELECT = f"SELECT {COLUMNS} FROM transfer"  # noqa: S608 - the column names are ours

#: The WAL is written back when it has this many 4 KiB pages. Half of the ballast: giving up the ballast must leave room
#: for the write-back and for the removals that free more.
_WAL_PAGES = 32
#: What one bad change raises when the others of its commit are fine (a value that cannot be bound, a constraint).
_ONE_CHANGE = (ValueError, TypeError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
_LAST_SEQ = (1 << 63) - 1


class Damaged(sqlite3.DatabaseError):
    """The file can be read as a database, but not as a spool: as bad as SQLITE_CORRUPT."""


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether `error` says that the file itself is damaged, rather than its disk full or away."""
    if isinstance(error, Damaged):
        return True
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary_code(error: sqlite3.Error) -> int:
    """Give SQLite's primary result code of `error`, 0 when it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextlib.contextmanager
def _sense() -> Iterator[None]:
    """Tell what was read and makes no sense from a disk that fails."""
    try:
        yield
    except (RequestError, ValueError, TypeError) as exc:
        raise Damaged(f"a row makes no sense: {exc}") from exc
    except sqlite3.OperationalError as exc:
        if primary_code(exc) > sqlite3.SQLITE_ERROR:
            raise
        raise Damaged(str(exc)) from exc  # "no such table"; or Python's own complaint: text that is not UTF-8


class SpoolFile:
    """The open file. One thread at a time; whoever opens it holds the spool's lock.

    Args:
        path: of the file.
        create: make it when it is not there, else it must be.
        damaged: only to read from it what can be read, with no check of anything.

    Raises:
        StartError: `SpoolNewer`, a later release wrote it.
        sqlite3.Error: damaged (`is_corrupt`), or it cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool, damaged: bool = False) -> None:
        # SQLite opens URIs only when told so, and a path may hold a question mark.
        uri = f"file:{quote(os.fsencode(path))}?mode={'rwc' if create else 'rw'}"
        self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        self.service_base = 0.0  #: seconds of service as last written
        self.last_seq = 0  #: the highest ever used
        try:
            # Exclusive: the lock file keeps others out already, and so the WAL's index lives in memory, not in a shared
            # mapping that a full tmpfs would answer with SIGBUS.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if damaged:
                self._look_through()
            else:
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        version = self._number("PRAGMA user_version")
        if version > len(MIGRATIONS):
            text = f"the spool has schema {version}, this s3daemon knows {len(MIGRATIONS)}: install the newer one again"
            raise StartError(Code.SPOOL_NEWER, text)
        limits = f"wal_autocheckpoint = {_WAL_PAGES}", f"journal_size_limit = {_WAL_PAGES * 4096}"
        for pragma in ("journal_mode = WAL", "synchronous = FULL", *limits):
            self._db.execute(f"PRAGMA {pragma}")
        for number, statements in enumerate(MIGRATIONS[version:], version + 1):
            with self._transaction():
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Damaged(str(verdict).splitlines()[-1])
        with _sense():
            self.service_base = float(self._db.execute("SELECT service FROM state").fetchone()[0])
            self.last_seq = self._number("SELECT max(seq) FROM sqlite_sequence")

    def _look_through(self) -> None:
        """Take from a damaged file what can be had."""
        self._db.execute("PRAGMA writable_schema = ON")  # SQLite then reads a file that is shorter than it says
        with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
            self.service_base = float(self._db.execute("SELECT service FROM state").fetchone()[0])
        for query in ("SELECT max(seq) FROM transfer", "SELECT max(seq) FROM sqlite_sequence"):
            with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
                self.last_seq = max(self.last_seq, self._number(query))

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0] or 0)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it: what failed must not be swept up by the next commit."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                    self._db.execute("ROLLBACK")
            raise

    def entries(self, first: int = 0, last: int = _LAST_SEQ) -> list[Entry]:
        """Read the rows with `first` <= seq <= `last`, in order of seq.

        Raises:
            sqlite3.Error: a row or its page is damaged (`is_corrupt`), or the disk fails.
        """
        return self._read(f"{_SELECT} WHERE seq BETWEEN ? AND ? ORDER BY seq", first, last)

    def failures(self) -> list[Entry]:
        """Read the failed rows as `entries` does; costs what they are, however many are pending."""
        return self._read(f"{_SELECT} INDEXED BY transfer_overtaken WHERE failed = 1 ORDER BY seq")

    def uploads(self) -> list[UploadRows]:
        """Read the multipart uploads as `entries` reads transfers."""
        with _sense():
            return spoolparts.read(self._db.execute)

    def _read(self, query: str, *values: Value) -> list[Entry]:
        with _sense():
            return [from_row(row) for row in self._db.execute(query, values)]

    def commit(self, jobs: Sequence[Sequence[Change]]) -> list[list[str] | Exception]:
        """Carry out all `jobs` in one commit: durable when this returns, undone when it raises.

        Returns:
            for each job the ids of rows that were removed by what they had in common (`ClearFailures`, `Expire`); or,
            when one of its changes cannot be carried out whatever the disk does, what was wrong with it.

        Raises:
            sqlite3.Error: the disk or the file.
        """
        results: list[list[str] | Exception] = []
        with self._transaction():
            for changes in jobs:
                try:
                    results.append([id_ for change in changes for id_ in self._carry_out(change)])
                except _ONE_CHANGE as exc:
                    results.append(exc)
        return results

    def _carry_out(self, change: Change) -> list[str]:
        run = self._db.execute
        match change:
            case Insert(entry, if_missing):
                run(_INSERT_IF_MISSING if if_missing else _INSERT, to_row(entry))
            case Update(seq, columns):
                names = ", ".join(f"{name} = ?" for name in columns)
                run(f"UPDATE transfer SET {names} WHERE seq = ?", (*columns.values(), seq))  # noqa: S608 - our names
            case Delete(seq):
                run("DELETE FROM transfer WHERE seq = ?", (seq,))
            case ClearFailures(destination):
                return self._remove("failed = 1 AND bucket = ? AND key = ?", destination.bucket, destination.key)
            case Expire(before):
                return self._remove("failed = 1 AND failed_service < ?", before)
            case SaveClock(service):
                run("UPDATE state SET service = ?", (service,))
            case _:
                spoolparts.carry_out(run, change)
        return []

    def _remove(self, where: str, *values: Value) -> list[str]:
        ids = [row[0] for row in self._db.execute(f"SELECT id FROM transfer WHERE {where}", values)]  # noqa: S608 - ours
        if ids:
            self._db.execute(f"DELETE FROM transfer WHERE {where}", values)  # noqa: S608 - `where` is one of two above
        return ids

    def probe(self) -> None:
        """Write something, durably, that changes nothing.

        Raises:
            sqlite3.Error: what an acceptance would meet.
        """
        with self._transaction():
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def checkpoint(self) -> None:
        """Write the WAL back into the file and cut it to nothing.

        Raises:
            sqlite3.Error: it could not be written whole; nothing is lost, the WAL still holds it.
        """
        if self._number("PRAGMA wal_checkpoint(TRUNCATE)"):
            raise sqlite3.OperationalError("the WAL is busy")

    def close(self) -> None:
        """Close the file; SQLite writes the WAL back if it can."""
        self._db.close()
