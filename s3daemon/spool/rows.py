"""The rows of the spool as values, and the changes that they go through. No SQL, no file.

A row of a transfer is an `Entry`. A multipart upload that a store may still hold has rows of its own (`OpenUpload`),
from the moment that its id is known until it is known to be completed, aborted or gone. They outlive the transfer's
row: however that transfer ended, and whatever crashed meanwhile, it stays known what is left to abort.

Active seconds are those of `ActiveClock`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from s3daemon.config.values import LEAST_BPS, MOST_BPS
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.exposures import KeptExposures, SaveLoss

#: What a column can hold.
Value = int | float | str | bytes | None
#: In the order of `to_row` and `from_row`.
COLUMNS = (
    "seq, id, file, bucket, key, tags, size_bytes, mtime_ns, inode, device, ctime_ns, accepted_usec, accepted_service, "
    "attempts, begun, code, text, failed, failed_service, told, md5, changed"
)
#: Columns whose names, those of the first schema, differ from the fields of `Entry`.
COLUMN_OF = {
    "accepted_active_s": "accepted_service",
    "attempt_started": "begun",
    "failed_active_s": "failed_service",
    "client_notified": "told",
    "sent_etag": "md5",
    "file_changed": "changed",
}
_SIGN, _WORD = 1 << 63, 1 << 64


@dataclass(frozen=True, slots=True)
class Entry:
    """The row of one transfer.

    Args:
        seq: order of acceptance.
        transfer: the unit of work.
        accepted_active_s: active seconds at acceptance.
        attempts: those that have ended.
        attempt_started: an attempt may have started whose outcome is unknown: look the object up before sending.
        code: the last error's; empty when there was none.
        text: the last error's.
        failed: permanently; False while pending.
        failed_active_s: active seconds at that moment; 0 while pending.
        client_notified: a client has received the failure.
        sent_etag: of what an attempt of unknown outcome has sent: the ETag that its object must have where that is made
            of MD5 sums; empty when it is not known.
        file_changed: the file differed from what was accepted when an attempt started.
    """

    seq: int
    transfer: Transfer
    accepted_active_s: float
    attempts: int = 0
    attempt_started: bool = False
    code: str = ""
    text: str = ""
    failed: bool = False
    failed_active_s: float = 0.0
    client_notified: bool = False
    sent_etag: str = ""
    file_changed: bool = False


def file_columns(transfer: Transfer) -> dict[str, Value]:
    """Return the columns with the state of a transfer's file."""
    state = transfer.file_state
    return {
        "size_bytes": state.size,
        "mtime_ns": state.mtime_ns,
        "inode": _signed(state.inode),
        "device": _signed(state.device),
        "ctime_ns": state.ctime_ns,
    }


def tag_columns(transfer: Transfer) -> dict[str, Value]:
    """Return the column with a transfer's tags."""
    return {"tags": json.dumps(transfer.tags)}


def _signed(unsigned: int) -> int:
    """Fit a 64-bit unsigned number into SQLite's signed one."""
    return unsigned - _WORD if unsigned >= _SIGN else unsigned


def to_row(entry: Entry) -> tuple[Value, ...]:
    """Return the values of `COLUMNS`."""
    transfer = entry.transfer
    return (
        entry.seq,
        transfer.id,
        os.fsencode(transfer.file),
        transfer.destination.bucket,
        transfer.destination.key,
        *tag_columns(transfer).values(),
        *file_columns(transfer).values(),
        transfer.accepted_usec,
        entry.accepted_active_s,
        entry.attempts,
        entry.attempt_started,
        entry.code,
        entry.text,
        entry.failed,
        entry.failed_active_s,
        entry.client_notified,
        entry.sent_etag,
        entry.file_changed,
    )


def from_row(row: tuple[Any, ...]) -> Entry:
    """Read the values of `COLUMNS`.

    Raises:
        ValueError, TypeError, RequestError: they hold what the daemon never writes.
    """
    seq, id_, file, bucket, key, tags, size, mtime, inode, device, ctime, usec, accepted_active_s, *rest = row
    attempts, attempt_started, code, text, failed, failed_active_s, client_notified, sent_etag, file_changed = rest
    state = FileState(int(size), int(mtime), inode % _WORD, device % _WORD, int(ctime))
    transfer = Transfer(id_, os.fsdecode(file), Destination(bucket, key), tuple(json.loads(tags)), state, int(usec))
    return Entry(
        seq,
        transfer,
        float(accepted_active_s),
        int(attempts),
        attempt_started=bool(attempt_started),
        code=str(code),
        text=str(text),
        failed=bool(failed),
        failed_active_s=float(failed_active_s),
        client_notified=bool(client_notified),
        sent_etag=str(sent_etag),
        file_changed=bool(file_changed),
    )


@dataclass(frozen=True, slots=True)
class Hint:
    """What was found about a store. It is kept across restarts; if it is lost, it is found again.

    Args:
        endpoint: URL of the store.
        rate_bps: of the narrowest link to it, bit/s; 0: not known.
        bucket: that something was stored in last; empty: not known.
    """

    endpoint: str = ""
    rate_bps: int = 0
    bucket: str = ""

    @classmethod
    def from_row(cls, endpoint: Any, rate_bps: Any, bucket: Any) -> Hint:
        """Read the columns.

        Raises:
            ValueError, TypeError, RequestError: they hold what the daemon never writes.
        """
        if rate_bps and not (isinstance(rate_bps, int) and LEAST_BPS <= rate_bps <= MOST_BPS):
            raise ValueError(f"a rate of {rate_bps!r}")
        return cls(str(endpoint), rate_bps, Destination(bucket, "key").bucket if bucket else "")


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """A multipart upload, and which content it is of.

    Args:
        id: the store's name for it.
        endpoint: URL of the store.
        transfer_id: the transfer that created it.
        destination: where its object would be stored.
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
        """The number of parts of the upload."""
        return -(-self.size // self.part_bytes)

    def offset(self, number: int) -> int:
        """Return where part `number` (1 is the first) begins, bytes."""
        return (number - 1) * self.part_bytes

    def length(self, number: int) -> int:
        """Return how long part `number` is, bytes."""
        return min(self.part_bytes, self.size - self.offset(number))


@dataclass(slots=True, eq=False)
class OpenUpload:
    """A multipart upload that a store may still hold, with its parts.

    Args:
        upload: what it is of, and where.
        etags: of the parts that the store has acknowledged, by number.
        sent: MD5 sums of parts that were sent whole, by number; the store may have these too. Only in memory.
        completing: the store was asked to create the object from it, and the answer is not known.
        failed_completions: how often the store answered that with an error of its own. Only in memory.
        abandoned: no attempt continues it, though its transfer may be pending: it is to be aborted. Only in memory;
            after a restart the transfer's next attempt finds out anew.
    """

    upload: MultipartUpload
    etags: dict[int, str] = field(default_factory=dict)
    sent: dict[int, str] = field(default_factory=dict)
    completing: bool = False
    failed_completions: int = 0
    abandoned: bool = False

    def changes(self) -> list[UploadChange]:
        """Return the changes that bring the upload into a spool that has none of it."""
        id_ = self.upload.id
        parts = [SavePart(id_, number, etag) for number, etag in self.etags.items()]
        return [BeginUpload(self.upload), *parts, *([MarkCompleting(id_)] if self.completing else [])]


@dataclass(frozen=True, slots=True)
class Insert:
    """Add `entry`; nothing when its seq is there already and `if_missing` says that this is no error."""

    entry: Entry
    if_missing: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Set `columns`, by field of `Entry` or by column, of the row `seq`; nothing when it is gone."""

    seq: int
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the row `seq`, 0 when there is none; in the same commit, count the object if `stored` has its record."""

    seq: int
    stored: TransferRecord | None = None


@dataclass(frozen=True, slots=True)
class ClearFailures:
    """Remove the failed rows of `destination` that were accepted before the one with seq `before`."""

    destination: Destination
    before: int


@dataclass(frozen=True, slots=True)
class Expire:
    """Remove what failed before `before` (active seconds)."""

    before: float


@dataclass(frozen=True, slots=True)
class SaveClock:
    """Save the active seconds so far."""

    active_s: float


@dataclass(frozen=True, slots=True)
class SaveHint:
    """Save what was found about the store in place of what was saved before."""

    hint: Hint


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """Add `upload`, without parts, in place of what has its id."""

    upload: MultipartUpload


@dataclass(frozen=True, slots=True)
class SavePart:
    """Save that the store has a part; nothing when its upload's row is gone."""

    upload_id: str
    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class MarkCompleting:
    """Save that the store is asked to create the object; nothing when its upload's row is gone."""

    upload_id: str


@dataclass(frozen=True, slots=True)
class EndUpload:
    """Remove the upload and its parts."""

    upload_id: str


UploadChange = BeginUpload | SavePart | MarkCompleting | EndUpload
Change = (
    Insert | Update | Delete | ClearFailures | Expire | SaveClock | SaveHint | UploadChange | SaveLoss | KeptExposures
)


def compact(changes: Iterable[Change]) -> list[Change]:
    """Return fewer changes with the same effect: at most one for each row and purpose.

    A change to a row that was changed before moves behind what came in between, so that `ClearFailures` never removes a
    failure that came after it.
    """
    kept: dict[object, Change] = {}
    for change in changes:
        key = _compact_key(change)
        before = kept.pop(key, None)
        if isinstance(change, Update) and isinstance(before, Update):
            change = Update(change.seq, {**before.columns, **change.columns})  # noqa: PLW2901 - the two are one now
        kept[key] = before if isinstance(before, Delete) else change
    return list(kept.values())


def _compact_key(change: Change) -> object:
    """Return what `change` is about: of two changes with the same key, one is kept."""
    key: object = type(change)
    match change:
        case Insert(entry):
            key = ("insert", entry.seq)
        case Delete(0) | ClearFailures():
            key = change
        case Update(seq) | Delete(seq):
            key = ("row", seq)
        case SaveLoss(loss):
            key = (loss.names, loss.what)
        case BeginUpload(MultipartUpload(id=upload_id)) | EndUpload(upload_id):
            key = ("upload", upload_id)
        case SavePart(upload_id, number):
            key = ("part", upload_id, number)
        case MarkCompleting(upload_id):
            key = ("completing", upload_id)
    return key
