"""One record per transfer, and the kinds of entries that the journal gets from the daemon.

`TransferRecord` is the only schema: `fields()` is what the writer sends to the journal, `from_fields()` is how a report
reads it back, `message()` is the line that people see. An attempt that failed on the way is an `AttemptFailure`: a
warning with the same `S3DAEMON_TRANSFER_ID`. So `journalctl -u s3daemon S3DAEMON_KEY=...` tells a transfer's story.

A field that is empty or was not measured is left out. Names of files that are not UTF-8 go as the bytes that they are.
`journalctl -o json` shortens a field of more than 4096 bytes to null unless it is given `--all`; readers give it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from s3daemon.model.kinds import MessageId, Priority

__all__ = ["AttemptFailure", "Deferral", "Field", "MessageId", "Priority", "TransferRecord"]

Field = tuple[str, str | bytes | int]

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """How one transfer ended. Durations are differences of a monotonic clock, in microseconds.

    Args:
        transfer_id: 16 hex digits, from `Transfer.id`.
        outcome: "stored" or "failed".
        file: absolute path, from the request; lone surrogates stand for bytes that are not UTF-8.
        bucket: from the request.
        key: from the request.
        tags: of every request that the transfer served, in order.
        size_bytes: of what was sent; of what was accepted when nothing was.
        start_usec: wall clock at acceptance, microseconds since the epoch.
        queue_usec: from acceptance to the start of the attempt that ended the transfer.
        upload_usec: the attempt that stored it, from its start to the store's answer; None when it failed.
        total_usec: from acceptance to the end, whatever lay between.
        attempts: the first included; 0 when the transfer ended before one began (dropped by an operator).
        endpoint: URL of the last attempt's store; empty without an attempt.
        etag: as the store returned it, without quotes; empty when it did not.
        error: `CODE: text` of the error that ended it; empty exactly when stored.
        rtt_usec: smoothed round-trip time of the last attempt's connection (TCP_INFO); None when not read.
        retransmits: segments that this connection sent again during the last attempt (TCP_INFO); None when not read.
        connection: "new" when the last attempt had to open it, "warm" when it stood open, "" without an attempt.
        receiver: the address that took it, of parts the last one's, or where the last attempt failed; empty when that
            got nowhere, or found the object there.
        changed: what was sent differed in size, mtime or inode from what was accepted.
        parts: how many it was stored in; None when it was one PUT. `rtt_usec` is then their median, `retransmits` their
            sum, and `connection` "new" when one of them had to open its own.

    Raises:
        ValueError: a value is out of range; a bug of the caller.
    """

    transfer_id: str
    outcome: str
    file: str
    bucket: str
    key: str
    size_bytes: int
    start_usec: int
    total_usec: int
    attempts: int
    tags: tuple[str, ...] = ()
    queue_usec: int = 0
    upload_usec: int | None = None
    endpoint: str = ""
    etag: str = ""
    error: str = ""
    rtt_usec: int | None = None
    retransmits: int | None = None
    connection: str = ""
    receiver: str = ""
    changed: bool = False
    parts: int | None = None

    def __post_init__(self) -> None:
        if self.outcome not in ("stored", "failed"):
            raise ValueError(f"outcome {self.outcome!r} is neither stored nor failed")
        if bool(self.error) != (self.outcome == "failed"):
            raise ValueError(f"{self.outcome} with the error {self.error!r}")
        if self.connection not in ("", "new", "warm"):
            raise ValueError(f"connection {self.connection!r} is neither new nor warm")
        if not (self.transfer_id and self.bucket and self.key):
            raise ValueError("a record needs a transfer id, a bucket and a key")
        for name in (*_INTEGERS, *_OPTIONAL_INTEGERS):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is negative: {value}")

    @property
    def stored(self) -> bool:
        """Whether the object is in the store."""
        return self.outcome == "stored"

    def message(self) -> str:
        """`START SECONDS sec - bucket/key` and what became of it.

        START is when it was accepted, Unix seconds with six decimals; SECONDS is the total from there to the end, with
        three: what the caller waited for, as finely as a network can be judged. Exact figures are in the fields.
        """
        seconds, micro = divmod(self.start_usec, _MICROSECONDS)
        plural = "" if self.attempts == 1 else "s"
        text = (
            f"{seconds}.{micro:06} {self.total_usec / _MICROSECONDS:.3f} sec - {self.bucket}/{self.key}"
            f" {self.outcome}, {self.size_bytes} bytes, {self.attempts} attempt{plural}"
        )
        return f"{text}, {self.error}" if self.error else text

    def fields(self) -> list[Field]:
        """The journal entry. A name occurs twice only for `S3DAEMON_TAG`, which the journal allows."""
        head: list[Field] = [
            ("MESSAGE", self.message()),
            ("MESSAGE_ID", MessageId.RECORD.value),
            ("PRIORITY", int(Priority.INFO if self.stored else Priority.ERROR)),
            (_name("file"), os.fsencode(self.file)),
        ]
        texts = [(_name(name), getattr(self, name)) for name in _TEXTS]
        numbers = [(_name(name), getattr(self, name)) for name in (*_INTEGERS, *_OPTIONAL_INTEGERS)]
        tags = [(_name("tag"), tag) for tag in self.tags]
        changed: list[Field] = [(_name("changed"), 1)] if self.changed else []
        return head + [f for f in texts if f[1]] + [f for f in numbers if f[1] is not None] + tags + changed

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> TransferRecord | None:
        """Read a journal entry back.

        Args:
            fields: one entry as `journalctl -o json --all` or `systemd.journal.Reader` gives it: text, a number, bytes
                or a list of byte values; a list of these where a field repeats. Other fields are ignored.

        Returns:
            The record, or None when the entry is no record, or not one that this version can read.
        """
        try:
            if _texts(fields.get("MESSAGE_ID"))[:1] != [MessageId.RECORD.value]:
                return None
            single = {name: text for name in _READ if (text := "".join(_texts(fields.get(_name(name)))[:1]))}
            values: dict[str, Any] = {name: single.get(name, "") for name in ("file", *_TEXTS)}
            values |= {name: int(single[name]) for name in _INTEGERS}
            values |= {name: int(single[name]) for name in _OPTIONAL_INTEGERS if name in single}
            return cls(**values, tags=tuple(_texts(fields.get(_name("tag")))), changed="changed" in single)
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailure:
    """One attempt failed and another will follow. What ends a transfer is in its record alone.

    Args:
        transfer_id, bucket, key: as in `TransferRecord`.
        attempt: its number, from 1.
        code, text: of the error, one line.
        receiver: the address where it failed; empty when it got nowhere.
        delay_usec: from the failure to the next attempt, microseconds; None when that waits for something else.
    """

    transfer_id: str
    bucket: str
    key: str
    attempt: int
    code: str
    text: str
    receiver: str = ""
    delay_usec: int | None

    def message(self) -> str:
        """One line for people."""
        then = "kept" if self.delay_usec is None else f"next in {self.delay_usec / _MICROSECONDS:.1f} s"
        return f"{self.bucket}/{self.key} attempt {self.attempt} failed, {then}, {self.code}: {self.text}"

    def fields(self) -> list[Field]:
        """The journal entry."""
        receiver: list[Field] = [(_name("receiver"), self.receiver)] if self.receiver else []
        delay: list[Field] = [] if self.delay_usec is None else [(_name("delay_usec"), self.delay_usec)]
        return [
            ("MESSAGE", self.message()),
            ("MESSAGE_ID", MessageId.ATTEMPT_FAILED.value),
            ("PRIORITY", int(Priority.WARNING)),
            (_name("transfer_id"), self.transfer_id),
            (_name("bucket"), self.bucket),
            (_name("key"), self.key),
            (_name("attempt"), self.attempt),
            (_name("error"), f"{self.code}: {self.text}"),
            *receiver,
            *delay,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """Clients that wait for a transfer are told that they need not: it is kept, and not stored yet.

    Args:
        transfer_id, bucket, key: as in `TransferRecord`.
        attempts: that have begun.
        why: it is not stored yet, one line.
    """

    transfer_id: str
    bucket: str
    key: str
    attempts: int
    why: str

    def fields(self) -> list[Field]:
        """The journal entry."""
        return [
            ("MESSAGE", f"{self.bucket}/{self.key} deferred, its client was told that it is kept; {self.why}"),
            ("MESSAGE_ID", MessageId.DEFERRED.value),
            ("PRIORITY", int(Priority.NOTICE)),
            (_name("transfer_id"), self.transfer_id),
            (_name("bucket"), self.bucket),
            (_name("key"), self.key),
            (_name("attempts"), self.attempts),
        ]


_TEXTS = ("transfer_id", "outcome", "bucket", "key", "endpoint", "etag", "error", "connection", "receiver")
_INTEGERS = ("size_bytes", "start_usec", "queue_usec", "total_usec", "attempts")
_OPTIONAL_INTEGERS = ("upload_usec", "rtt_usec", "retransmits", "parts")
_READ = ("file", *_TEXTS, *_INTEGERS, *_OPTIONAL_INTEGERS, "changed")


def _name(attribute: str) -> str:
    return "S3DAEMON_" + attribute.upper()


def _texts(value: object) -> list[str]:
    """All values of a field as text, whichever of its readers' forms it has; empty when there is none."""
    if value is None:
        return []
    if isinstance(value, bytes):
        return [os.fsdecode(value)]
    if isinstance(value, Iterable) and not isinstance(value, str):
        items = list(value)
        if items and all(isinstance(item, int) for item in items):
            return [os.fsdecode(bytes(items))]
        return [text for item in items for text in _texts(item)]
    # `systemd.journal.Reader` makes a UUID of MESSAGE_ID.
    return [value.hex if isinstance(value, UUID) else str(value)]
