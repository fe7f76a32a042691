"""The spool's rows of multipart uploads: what a store may hold of a file that is not stored yet. SQL, but no file.

One row of `upload` for each multipart upload that a store may still hold: from the moment that we know its id until we
know that it was completed, aborted or is gone. It outlives its transfer's row, so that however that one ended, and
whatever crashed meanwhile, somebody knows what is left to abort.

    upload      id, endpoint    the store's name for it, and the URL of that store
                transfer_id, bucket, key, size_bytes, mark, part_bytes
                                as in `MultipartUpload`
                completing      the store was asked to make the object of it, and its answer is not known
    part        upload_id, number, etag
                                one row for each part that the store has acknowledged
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from s3daemon.model.request import Destination

#: The migration that brought them.
SCHEMA = (
    """CREATE TABLE upload (
        id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, transfer_id TEXT NOT NULL, bucket TEXT NOT NULL, key TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, mark TEXT NOT NULL, part_bytes INTEGER NOT NULL,
        completing INTEGER NOT NULL)""",
    """CREATE TABLE part (
        upload_id TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL,
        PRIMARY KEY (upload_id, number)) WITHOUT ROWID""",
)


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """A multipart upload, and what it is of.

    Args:
        id: the store's name for it.
        endpoint: URL of the store.
        transfer_id: the transfer that began it.
        destination: where it would go.
        size: of the file, bytes.
        mark: which content of the file (`FileState.mark`).
        part_bytes: the size of every part but the last.
    """

    id: str
    endpoint: str
    transfer_id: str
    destination: Destination
    size: int
    mark: str
    part_bytes: int

    @property
    def count(self) -> int:
        """How many parts it has."""
        return -(-self.size // self.part_bytes)

    def offset(self, number: int) -> int:
        """Where part `number` (1 is the first) begins, bytes."""
        return (number - 1) * self.part_bytes

    def length(self, number: int) -> int:
        """How long part `number` is, bytes."""
        return min(self.part_bytes, self.size - self.offset(number))


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """Add `upload`; nothing when it is there."""

    upload: MultipartUpload

    @property
    def row(self) -> object:
        """What it is about, for compacting."""
        return ("upload", self.upload.id)


@dataclass(frozen=True, slots=True)
class SavePart:
    """The store has a part; nothing when its upload's row is gone."""

    upload_id: str
    number: int
    etag: str

    @property
    def row(self) -> object:
        """What it is about, for compacting."""
        return ("part", self.upload_id, self.number)


@dataclass(frozen=True, slots=True)
class MarkCompleting:
    """The store is asked to make the object; nothing when its upload's row is gone."""

    upload_id: str

    @property
    def row(self) -> object:
        """What it is about, for compacting."""
        return ("completing", self.upload_id)


@dataclass(frozen=True, slots=True)
class EndUpload:
    """Remove the upload and its parts."""

    upload_id: str

    @property
    def row(self) -> object:
        """What it is about, for compacting."""
        return ("upload", self.upload_id)


UploadChange = BeginUpload | SavePart | MarkCompleting | EndUpload


@dataclass(slots=True, eq=False)
class UploadRows:
    """An upload with its parts.

    Args:
        upload: what and where.
        etags: of the parts that the store has acknowledged, by number.
        completing: the store was asked to make the object of it, and its answer is not known.
    """

    upload: MultipartUpload
    etags: dict[int, str] = field(default_factory=dict)
    completing: bool = False

    def changes(self) -> list[UploadChange]:
        """What brings them into a spool that has none of it."""
        id_ = self.upload.id
        parts = [SavePart(id_, number, etag) for number, etag in self.etags.items()]
        return [BeginUpload(self.upload), *parts, *([MarkCompleting(id_)] if self.completing else [])]


Run = Callable[[str, tuple[Any, ...]], sqlite3.Cursor]


def carry_out(run: Run, change: UploadChange) -> None:
    """Carry out one change in the transaction of `run`, which executes a statement with values."""
    match change:
        case BeginUpload(u):
            values = (u.id, u.endpoint, u.transfer_id, u.destination.bucket, u.destination.key, u.size, u.mark)
            run("INSERT OR IGNORE INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", (*values, u.part_bytes))
        case SavePart(id_, number, etag):
            there = "SELECT ?, ?, ? WHERE EXISTS (SELECT 1 FROM upload WHERE id = ?)"
            run(f"INSERT OR REPLACE INTO part {there}", (id_, number, etag, id_))
        case MarkCompleting(id_):
            run("UPDATE upload SET completing = 1 WHERE id = ?", (id_,))
        case EndUpload(id_):
            run("DELETE FROM part WHERE upload_id = ?", (id_,))
            run("DELETE FROM upload WHERE id = ?", (id_,))


def read(run: Run) -> list[UploadRows]:
    """Read all uploads with their parts.

    Raises:
        ValueError, TypeError, RequestError: they hold what no daemon writes.
    """
    found: dict[str, UploadRows] = {}
    columns = "id, endpoint, transfer_id, bucket, key, size_bytes, mark, part_bytes, completing"
    rows = run(f"SELECT {columns} FROM upload ORDER BY rowid", ())  # noqa: S608 - the column names are ours
    for id_, endpoint, transfer_id, bucket, key, size, mark, part_bytes, completing in rows:
        if int(part_bytes) <= 0 or int(size) <= 0:
            raise ValueError(f"an upload of {size} bytes in parts of {part_bytes}")
        place = Destination(bucket, key)
        upload = MultipartUpload(id_, endpoint, transfer_id, place, int(size), mark, int(part_bytes))
        found[id_] = UploadRows(upload, completing=bool(completing))
    for id_, number, etag in run("SELECT upload_id, number, etag FROM part", ()):
        if id_ in found:
            found[id_].etags[int(number)] = str(etag)
    return list(found.values())
