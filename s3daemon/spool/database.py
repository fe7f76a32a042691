"""The spool's SQLite file: its schema, and every statement that ever touches it. Synchronous, no policy.

    transfer        one row per transfer that is pending (failed = 0) or failed permanently (failed = 1)
        seq             order of acceptance, never used twice: AUTOINCREMENT remembers the highest after its row is gone
        id, file (bytes), bucket, key, tags (a JSON array), size_bytes, mtime_ns, inode, device, ctime_ns, accepted_usec
                        the `Transfer`; inode and device are unsigned in the kernel, signed here
        accepted_service, attempts, begun, code, text, failed, failed_service, told, md5, changed
                        as in `Entry`; see `COLUMN_OF`
    transfer_overtaken  index over the failed rows alone, by bucket and key: what a success for a destination clears
    state           one row
        service         the active seconds when it was last written
        endpoint, rate_bps, bucket
                        as in `Hint`
    upload          one row for each multipart upload that a store may still hold
        id, endpoint    the store's name for it, and the URL of that store
        transfer_id, bucket, key, size_bytes, mark, part_bytes
                        as in `MultipartUpload`
        completing      the store was asked to create the object from it, and the answer is not known
    part            upload_id, number, etag: one row for each part that the store has acknowledged
    exposure, missing, counted, ended
                    the last exposures, see `exposures`
    PRAGMA user_version     of the schema: what the last of `MIGRATIONS` that was applied leads to

There is no index over `id`: ids are random, so each acceptance would dirty an index page of its own; the spool knows
the seq of every id that it holds. The dialect is SQLite 3.34's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import quote

from s3daemon.errors import Code, RequestError, StartError
from s3daemon.model.request import Destination
from s3daemon.spool import exposures
from s3daemon.spool.rows import (
    COLUMN_OF,
    COLUMNS,
    BeginUpload,
    Change,
    ClearFailures,
    Delete,
    EndUpload,
    Entry,
    Expire,
    Hint,
    Insert,
    MarkCompleting,
    MultipartUpload,
    OpenUpload,
    SaveClock,
    SaveHint,
    SavePart,
    Update,
    UploadChange,
    Value,
    from_row,
    to_row,
)

_log = logging.getLogger(__name__)

#: The version that the first of `MIGRATIONS` leads to. Those before it were of builds that were never released.
FIRST_VERSION = 4
#: Each brings the schema to the next version, the first of them an empty file; none is ever edited once released.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE transfer (
            seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, file BLOB NOT NULL, bucket TEXT NOT NULL,
            key TEXT NOT NULL, tags TEXT NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
            inode INTEGER NOT NULL, device INTEGER NOT NULL, ctime_ns INTEGER, accepted_usec INTEGER NOT NULL,
            accepted_service REAL NOT NULL, attempts INTEGER NOT NULL, begun INTEGER NOT NULL, code TEXT NOT NULL,
            text TEXT NOT NULL, failed INTEGER NOT NULL, failed_service REAL NOT NULL, told INTEGER NOT NULL,
            md5 TEXT NOT NULL)""",
        "CREATE INDEX transfer_overtaken ON transfer (bucket, key) WHERE failed = 1",
        "CREATE TABLE state (service REAL NOT NULL)",
        "INSERT INTO state VALUES (0.0)",
        """CREATE TABLE upload (
            id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, transfer_id TEXT NOT NULL, bucket TEXT NOT NULL,
            key TEXT NOT NULL, size_bytes INTEGER NOT NULL, mark TEXT NOT NULL, part_bytes INTEGER NOT NULL,
            completing INTEGER NOT NULL)""",
        """CREATE TABLE part (
            upload_id TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL,
            PRIMARY KEY (upload_id, number)) WITHOUT ROWID""",
        *exposures.TABLES,
    ),
    (
        "UPDATE transfer SET ctime_ns = 0 WHERE ctime_ns IS NULL",  # of builds before FIRST_VERSION: read as changed
        "ALTER TABLE state ADD COLUMN endpoint TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE state ADD COLUMN rate_bps INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE state ADD COLUMN bucket TEXT NOT NULL DEFAULT ''",
    ),
    (exposures.COUNTED,),
    ("ALTER TABLE transfer ADD COLUMN changed INTEGER NOT NULL DEFAULT 0",),
)
LAST_VERSION = FIRST_VERSION + len(MIGRATIONS) - 1
_INSERT = f"INSERT INTO transfer ({COLUMNS}) VALUES ({', '.join('?' * len(COLUMNS.split()))})"  # noqa: S608 - ours
_INSERT_IF_MISSING = _INSERT.replace("INSERT", "INSERT OR IGNORE", 1)
_SELECT = f"SELECT {COLUMNS} FROM transfer"  # noqa: S608 - the column names are ours
_INSERT_UPLOAD = """INSERT OR REPLACE INTO upload
    (id, endpoint, transfer_id, bucket, key, size_bytes, mark, part_bytes, completing)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)"""
_INSERT_PART = """INSERT OR REPLACE INTO part (upload_id, number, etag)
    SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM upload WHERE id = ?)"""
_SELECT_UPLOADS = """SELECT id, endpoint, transfer_id, bucket, key, size_bytes, mark, part_bytes, completing
    FROM upload ORDER BY rowid"""

#: The WAL is written back when it has this many 4 KiB pages. Half of the reserved space: releasing that must leave room
#: for the write-back and for the removals that free more.
_WAL_PAGES = 32
#: What one bad change raises when the others of its commit are fine (a value that cannot be bound, a constraint).
_ONE_CHANGE = (ValueError, TypeError, OverflowError, sqlite3.IntegrityError, sqlite3.ProgrammingError)
_LAST_SEQ = (1 << 63) - 1


class Damaged(sqlite3.DatabaseError):
    """The file can be read as a database, but not as a spool: as bad as SQLITE_CORRUPT."""


def is_corrupt(error: Exception) -> bool:
    """Whether `error` says that the file itself is damaged, rather than its disk full or away."""
    if isinstance(error, Damaged):
        return True
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def primary_code(error: Exception) -> int:
    """Return SQLite's primary result code of `error`, 0 when it has none."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextlib.contextmanager
def _invalid_is_damaged() -> Iterator[None]:
    """Raise `Damaged` for rows that cannot be valid; let the errors of a failing disk pass."""
    try:
        yield
    except (RequestError, ValueError, TypeError) as exc:
        raise Damaged(f"a row is not valid: {exc}") from exc
    except sqlite3.OperationalError as exc:
        if primary_code(exc) > sqlite3.SQLITE_ERROR:
            raise
        raise Damaged(str(exc)) from exc  # "no such table"; or Python's own complaint: text that is not UTF-8


class SpoolFile:
    """The open file. Used by one thread at a time, in a process that holds the spool's lock.

    Args:
        path: of the file.
        create: create it when it does not exist; False: it must exist.
        damaged: open it only to read what can be read, without any check.

    Raises:
        StartError: `SpoolNewer`, a release that has another schema wrote it.
        sqlite3.Error: damaged (`is_corrupt`), or it cannot be opened.
    """

    def __init__(self, path: Path, *, create: bool, damaged: bool = False) -> None:
        # SQLite takes URIs only when asked to, and a path may hold a question mark.
        uri = f"file:{quote(os.fsencode(path))}?mode={'rwc' if create else 'rw'}"
        self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        self.active_base_s = 0.0  #: active seconds as last saved
        self.last_seq = 0  #: the highest ever used
        self.hint = Hint()  #: as last saved; of no store when it cannot be read
        self._select = _SELECT
        try:
            # Exclusive: the lock file keeps others out already, and so the WAL's index lives in memory, not in a shared
            # mapping that a full tmpfs would answer with SIGBUS.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            if damaged:
                self._db.execute("PRAGMA writable_schema = ON")  # SQLite then reads a file shorter than it says
                self.read_state()
                if not self._has_changed():
                    self._select = _SELECT.replace(", changed", ", 0")
            else:
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        version = self._number("PRAGMA user_version")
        if version and not FIRST_VERSION <= version <= LAST_VERSION:
            known = f"{FIRST_VERSION} to {LAST_VERSION}"
            text = f"the spool has schema {version}, this s3daemon knows {known}: reinstall the release that wrote it"
            raise StartError(Code.SPOOL_NEWER, text)
        limits = f"wal_autocheckpoint = {_WAL_PAGES}", f"journal_size_limit = {_WAL_PAGES * 4096}"
        # The change of mode is committed only once its answer is fetched: without that, a disk error is not raised.
        (mode,) = self._db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"SQLite keeps a journal of the mode {mode} there, and no WAL")
        for pragma in ("synchronous = FULL", *limits):
            self._db.execute(f"PRAGMA {pragma}")
        for number, statements in enumerate(MIGRATIONS, FIRST_VERSION):
            if number <= version:
                continue
            with self._transaction():
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise Damaged(str(verdict).splitlines()[-1])
        with _invalid_is_damaged():
            state = self._db.execute("SELECT service FROM state").fetchone()
            if state is None:
                raise ValueError("the table state is empty")
            self.active_base_s = float(state[0])
            self.last_seq = self._number("SELECT max(seq) FROM sqlite_sequence")
        try:
            self._read_hint()
        except (sqlite3.Error, RequestError, ValueError, TypeError) as exc:
            _log.warning("what was found about the store cannot be read from the spool, %s: it is found anew", exc)

    def read_state(self) -> None:
        """Read the clock, the hint and the highest seq anew, as far as they can be read."""
        with contextlib.suppress(sqlite3.Error, RequestError, TypeError, ValueError):
            self._read_hint()
        with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
            self.active_base_s = float(self._db.execute("SELECT service FROM state").fetchone()[0])
        for query in ("SELECT max(seq) FROM transfer", "SELECT max(seq) FROM sqlite_sequence"):
            with contextlib.suppress(sqlite3.Error, TypeError, ValueError):
                self.last_seq = max(self.last_seq, self._number(query))

    def _has_changed(self) -> bool:
        """Return whether there is the column `changed`, which a damaged file of an older version lacks."""
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("SELECT changed FROM transfer LIMIT 0")
            return True
        return False

    def _read_hint(self) -> None:
        self.hint = Hint.from_row(*self._db.execute("SELECT endpoint, rate_bps, bucket FROM state").fetchone())

    def _number(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0] or 0)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is done within, or nothing of it: a failed change must not become part of the next commit."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                    self._db.execute("ROLLBACK")
            raise

    def entries(self, first: int = 0, last: int = _LAST_SEQ) -> list[Entry]:
        """Read the rows with `first` <= seq <= `last`, in order of seq.

        Raises:
            sqlite3.Error: a row or its page is damaged (`is_corrupt`), or the disk fails.
        """
        return self._read_entries(f"{self._select} WHERE seq BETWEEN ? AND ? ORDER BY seq", first, last)

    def failures(self) -> list[Entry]:
        """Read the failed rows as `entries` does; the cost grows with their number, not with that of pending ones."""
        return self._read_entries(f"{self._select} INDEXED BY transfer_overtaken WHERE failed = 1 ORDER BY seq")

    def count_failures(self, last: int) -> tuple[int, list[Entry]]:
        """Count the failed rows, and read the `last` of them as `failures` does; the cost hardly grows with others."""
        failed = "FROM transfer INDEXED BY transfer_overtaken WHERE failed = 1"
        seqs = f"SELECT seq {failed} ORDER BY seq DESC LIMIT ?"
        found = self._read_entries(f"{self._select} WHERE seq IN ({seqs}) ORDER BY seq", last)
        return self._number(f"SELECT count(*) {failed}"), found

    def _read_entries(self, query: str, *values: Value) -> list[Entry]:
        with _invalid_is_damaged():
            return [from_row(row) for row in self._db.execute(query, values)]

    def uploads(self) -> list[OpenUpload]:
        """Read the multipart uploads with their parts, as `entries` reads transfers."""
        with _invalid_is_damaged():
            found = {row[0]: _upload_from_row(row) for row in self._db.execute(_SELECT_UPLOADS)}
            for id_, number, etag in self._db.execute("SELECT upload_id, number, etag FROM part"):
                if id_ in found:
                    found[id_].etags[int(number)] = str(etag)
        return list(found.values())

    def kept(self) -> exposures.KeptExposures:
        """Read the last exposures, as `entries` reads transfers."""
        with _invalid_is_damaged():
            return exposures.read(self._db)

    def commit(self, batches: Sequence[Sequence[Change]]) -> list[list[str] | Exception]:
        """Carry out the changes of all `batches` in one commit: durable when this returns, undone when it raises.

        Returns:
            for each batch the ids of the rows that it removed without naming them (`ClearFailures`, `Expire`); or, when
            one of its changes cannot be carried out on any disk, the error.

        Raises:
            sqlite3.Error: the disk or the file.
        """
        results: list[list[str] | Exception] = []
        with self._transaction():
            for changes in batches:
                try:
                    results.append([id_ for change in changes for id_ in self._carry_out(change)])
                except _ONE_CHANGE as exc:
                    results.append(exc)
        return results

    def _carry_out(self, change: Change) -> list[str]:
        run = self._db.execute
        removed: list[str] = []
        match change:
            case Insert(entry, if_missing):
                run(_INSERT_IF_MISSING if if_missing else _INSERT, to_row(entry))
            case Update(seq, columns):
                names = ", ".join(f"{COLUMN_OF.get(name, name)} = ?" for name in columns)
                run(f"UPDATE transfer SET {names} WHERE seq = ?", (*columns.values(), seq))  # noqa: S608 - our names
            case Delete(seq, stored):
                run("DELETE FROM transfer WHERE seq = ?", (seq,))
                if stored is not None:
                    exposures.count_stored(self._db, seq, stored)
            case exposures.SaveLoss() | exposures.KeptExposures():
                exposures.save(self._db, change)
            case ClearFailures(destination, before):
                where = "failed = 1 AND bucket = ? AND key = ? AND seq < ?"
                removed = self._remove(where, destination.bucket, destination.key, before)
            case Expire(before):
                removed = self._remove("failed = 1 AND failed_service < ?", before)
            case SaveClock(active_s):
                run("UPDATE state SET service = ?", (active_s,))
            case SaveHint(hint):
                run("UPDATE state SET endpoint = ?, rate_bps = ?, bucket = ?", astuple(hint))
            case _:
                self._carry_out_upload(change)
        return removed

    def _carry_out_upload(self, change: UploadChange) -> None:
        run = self._db.execute
        match change:
            case BeginUpload(upload):
                values = (upload.id, upload.endpoint, upload.transfer_id, upload.destination.bucket)
                run("DELETE FROM part WHERE upload_id = ?", (upload.id,))
                run(_INSERT_UPLOAD, (*values, upload.destination.key, upload.size, upload.mark, upload.part_bytes))
            case SavePart(upload_id, number, etag):
                run(_INSERT_PART, (upload_id, number, etag, upload_id))
            case MarkCompleting(upload_id):
                run("UPDATE upload SET completing = 1 WHERE id = ?", (upload_id,))
            case EndUpload(upload_id):
                run("DELETE FROM part WHERE upload_id = ?", (upload_id,))
                run("DELETE FROM upload WHERE id = ?", (upload_id,))

    def _remove(self, where: str, *values: Value) -> list[str]:
        ids = [row[0] for row in self._db.execute(f"SELECT id FROM transfer WHERE {where}", values)]  # noqa: S608 - ours
        if ids:
            self._db.execute(f"DELETE FROM transfer WHERE {where}", values)  # noqa: S608 - `where` is one of two above
        return ids

    def probe(self) -> None:
        """Make a durable write that changes nothing.

        Raises:
            sqlite3.Error: what an acceptance would raise.
        """
        with self._transaction():
            self._db.execute(f"PRAGMA user_version = {LAST_VERSION}")

    def checkpoint(self) -> None:
        """Write the WAL back into the file and truncate it.

        Raises:
            sqlite3.Error: not all of it could be written back; nothing is lost, the WAL still holds it.
        """
        if self._number("PRAGMA wal_checkpoint(TRUNCATE)"):
            raise sqlite3.OperationalError("the WAL is busy")

    def close(self) -> None:
        """Close the file; SQLite writes the WAL back if it can."""
        self._db.close()


def _upload_from_row(row: tuple[Any, ...]) -> OpenUpload:
    """Read the values of `_SELECT_UPLOADS`.

    Raises:
        ValueError, TypeError, RequestError: they hold what the daemon never writes.
    """
    id_, endpoint, transfer_id, bucket, key, size, mark, part_bytes, completing = row
    if int(part_bytes) <= 0 or int(size) <= 0:
        raise ValueError(f"an upload of {size} bytes in parts of {part_bytes}")
    destination = Destination(bucket, key)
    upload = MultipartUpload(id_, endpoint, transfer_id, destination, int(size), mark, int(part_bytes))
    return OpenUpload(upload, completing=bool(completing))
