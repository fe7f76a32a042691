"""The rows of the spool as values: `Entry`, and the changes that a row goes through. No SQL, no file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.upload_rows import BeginUpload, EndUpload, MarkCompleting, SavePart, UploadChange

#: What a column can hold.
Value = int | float | str | bytes
#: In the order of `to_row` and `from_row`.
COLUMNS = (
    "seq, id, file, bucket, key, tags, size_bytes, mtime_ns, inode, device, accepted_usec, accepted_service, attempts, "
    "begun, code, text, failed, failed_service, told"
)
_SIGN, _WORD = 1 << 63, 1 << 64


@dataclass(frozen=True, slots=True)
class Entry:
    """One row.

    Args:
        seq: order of acceptance.
        transfer: the unit of work.
        accepted_service: seconds of service (`ActiveClock`) at acceptance.
        attempts: that have ended, the first included.
        begun: an attempt may have begun whose outcome is unknown: look the object up before sending.
        code: the last error's; empty when there was none.
        text: the last error's.
        failed: for good; False while pending.
        failed_service: seconds of service at that moment; 0 while pending.
        told: a client was told of the failure.
    """

    seq: int
    transfer: Transfer
    accepted_service: float
    attempts: int = 0
    begun: bool = False
    code: str = ""
    text: str = ""
    failed: bool = False
    failed_service: float = 0.0
    told: bool = False


def seen_columns(transfer: Transfer) -> dict[str, Value]:
    """Give the columns that a request which joins a transfer changes: its tags, and the file as it is now."""
    seen = transfer.file_state
    return {
        "tags": json.dumps(transfer.tags),
        "size_bytes": seen.size,
        "mtime_ns": seen.mtime_ns,
        "inode": _signed(seen.inode),
        "device": _signed(seen.device),
    }


def _signed(unsigned: int) -> int:
    """Fit a 64-bit unsigned number into SQLite's signed one."""
    return unsigned - _WORD if unsigned >= _SIGN else unsigned


def to_row(entry: Entry) -> tuple[Value, ...]:
    """Give the values of `COLUMNS`."""
    transfer = entry.transfer
    destination = transfer.destination
    seen = seen_columns(transfer)
    return (
        *(entry.seq, transfer.id, os.fsencode(transfer.file), destination.bucket, destination.key, *seen.values()),
        *(transfer.accepted_usec, entry.accepted_service, entry.attempts, entry.begun, entry.code, entry.text),
        *(entry.failed, entry.failed_service, entry.told),
    )


def from_row(row: tuple[Any, ...]) -> Entry:
    """Read the values of `COLUMNS`.

    Raises:
        ValueError, TypeError, RequestError: they hold what no daemon writes.
    """
    seq, id_, file, bucket, key, tags, size, mtime, inode, device, usec, service, attempts, begun, *rest = row
    code, text, failed, failed_service, told = rest
    seen = FileState(int(size), int(mtime), inode % _WORD, device % _WORD)
    transfer = Transfer(id_, os.fsdecode(file), Destination(bucket, key), tuple(json.loads(tags)), seen, int(usec))
    outcome = (bool(begun), str(code), str(text), bool(failed), float(failed_service), bool(told))
    return Entry(seq, transfer, float(service), int(attempts), *outcome)


@dataclass(frozen=True, slots=True)
class Insert:
    """Add `entry`; nothing when its seq is there already and `if_missing` says that this is no fault."""

    entry: Entry
    if_missing: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """Set `columns` of the row `seq`; nothing when it is gone."""

    seq: int
    columns: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the row `seq`."""

    seq: int


@dataclass(frozen=True, slots=True)
class ClearFailures:
    """Remove the failed rows of `destination`."""

    destination: Destination


@dataclass(frozen=True, slots=True)
class Expire:
    """Remove what failed before `before` (seconds of service)."""

    before: float


@dataclass(frozen=True, slots=True)
class SaveClock:
    """Note the seconds of service."""

    service: float


Change = Insert | Update | Delete | ClearFailures | Expire | SaveClock | UploadChange


def compact(changes: Iterable[Change]) -> list[Change]:
    """Give fewer changes with the same effect: at most one for each row, destination and purpose.

    What changes a row again moves behind what came in between, so that no failure is taken for one that was overtaken.
    """
    kept: dict[object, Change] = {}
    for change in changes:
        key: object = type(change)
        if isinstance(change, Insert):
            key = ("insert", change.entry.seq)
        elif isinstance(change, ClearFailures):
            key = change.destination
        elif isinstance(change, Update | Delete):
            key = change.seq
        elif isinstance(change, BeginUpload | SavePart | MarkCompleting | EndUpload):
            key = change.row
        before = kept.pop(key, None)
        if isinstance(change, Update) and isinstance(before, Update):
            change = Update(change.seq, {**before.columns, **change.columns})  # noqa: PLW2901 - the two are one now
        kept[key] = before if isinstance(before, Delete) else change
    return list(kept.values())
