"""The journal entries about transfers: one record for each transfer, its failed attempts, its deferral.

`TransferRecord` is the only schema: `fields()` is what the writer sends to the journal, `from_fields()` is how a report
reads it back, `message()` is the line that people see. An attempt that failed before the transfer ended is an
`AttemptFailure`: a warning with the same `S3DAEMON_TRANSFER_ID`. So `journalctl -u s3daemon S3DAEMON_KEY=...` shows all
that happened to a transfer.

A field that is empty or was not measured is left out. File names that are not UTF-8 are written as their bytes.
`journalctl -o json` replaces a field of more than 4096 bytes by null without `--all`; our readers use `--all`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

from s3daemon.errors import one_line
from s3daemon.units import plural, whole

Field = tuple[str, str | bytes | int]

_MICROSECONDS = 1_000_000


class MessageId(StrEnum):
    """The MESSAGE_ID of each kind of entry; `systemd/s3daemon.catalog` explains them under the same ids."""

    #: The transfer has ended, stored or failed: one id for both, so that one match finds every transfer.
    RECORD = "59de861c00b54c97810d5760a3b1b9a0"
    ATTEMPT_FAILED = "e3e2e43e172e458d9cce4364dccb89e8"
    DEFERRED = "8e30c6257aeb45cfa6adcb1bf5ba5ba6"
    HELD = "3aba696119f64c20a250e69b4fda689f"
    ADDRESS_DISABLED = "deef83802f6b4baca55f48fbe103025c"
    SPOOL_FULL = "8fddd14d9438493b8285f10ebc69eb78"
    SPOOL_WRITABLE = "cbb9ce6e3e7b49aa9becfd35516eb903"
    REFUSED = "339529112b20454a9cf8be29ffb8e24e"
    AWAY = "18c83cb6a57d4eab8cf5e99f19e962e6"
    BACK = "198c45b3375b446ba45940b1ab1fe4dd"
    RELEASED = "aa050bc6fa4a45d49e5bcaa03ef010c5"
    ADDRESS_ENABLED = "5aaa8b9e72dc45b0b9e235d450dc3aca"
    UNREACHABLE = "dcebca75d3f44b82b0ef27ea8df02d6e"
    REACHED = "f3bbf3710d1d407bbeaa0f84c13cd0cf"
    RELOAD_REFUSED = "056c350a058746c88f2970399dfc4374"
    LOST = "c7a4d61b0e9f4f2c8b35a1d2e6f07948"


class Priority(IntEnum):
    """The values of PRIORITY, as in syslog(3)."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRecord:
    """The result of one transfer. Durations are differences of a monotonic clock, in microseconds.

    Args:
        transfer_id: 16 hex digits, from `Transfer.id`.
        outcome: "stored" or "failed".
        file: absolute path, from the request; lone surrogates stand for bytes that are not UTF-8.
        bucket: from the request.
        key: from the request.
        tags: the tags of all requests that the transfer served, in order.
        size_bytes: the size of what was sent; where nothing was sent, of the file as it was accepted.
        start_usec: wall clock at acceptance, microseconds since the epoch.
        queue_usec: from acceptance to the start of the last attempt, or to the end if this process made none.
        upload_usec: from the start of the attempt that stored it to the store's answer; None when it failed.
        total_usec: from acceptance to the end, all delays included.
        attempts: how many were started; 0 when the transfer ended before the first (dropped by an operator).
        endpoint: URL of the last attempt's store; empty if this process made none.
        etag: as the store returned it, without quotes; empty when it returned none.
        error: `CODE: text` of the error that ended it; empty exactly when stored.
        rtt_usec: smoothed round-trip time of the last attempt's connection (TCP_INFO); None when not read.
        retransmits: segments that this connection sent again during the last attempt (TCP_INFO); None when not read.
        connection: "new" when the last attempt had to open one, "warm" when it used an open one, "" without an attempt.
        receiver: the address that the object (its last part) was sent to, or where the last attempt failed; empty when
            no address was reached, or the object was found in the store.
        changed: the file that was sent differed in size, mtime, ctime or inode from the one that was accepted.
        parts: the number of parts; None when it was one PUT. `rtt_usec` is the median of the parts, `retransmits` their
            sum, and `connection` is "new" when at least one of them had to open its own.
        moved: how often its upload, or one of its parts, was moved away from a connection that was far slower than
            others; None when it never was. A move is no attempt.

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
    moved: int | None = None

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
        """True when the object is in the store."""
        return self.outcome == "stored"

    @property
    def destination(self) -> str:
        """Bucket/key."""
        return f"{self.bucket}/{self.key}"

    @property
    def end_usec(self) -> int:
        """When the transfer ended: microseconds since the epoch."""
        return self.start_usec + self.total_usec

    def message(self) -> str:
        """Return the line for people: `START SECONDS sec - bucket/key`, then the result.

        START is the time of acceptance, Unix seconds with six decimals; SECONDS is the total from there to the end,
        with three: what the caller waited for, as precisely as matters on a network. Exact figures are in the fields.
        """
        seconds, micro = divmod(self.start_usec, _MICROSECONDS)
        text = (
            f"{seconds}.{micro:06} {self.total_usec / _MICROSECONDS:.3f} sec - {self.destination}"
            f" {self.outcome}, {self.size_bytes} bytes, {plural(self.attempts, 'attempt')}"
        )
        return f"{text}, {self.error}" if self.error else text

    def fields(self) -> list[Field]:
        """Return the journal entry. Only `S3DAEMON_TAG` may occur more than once, which the journal allows."""
        priority = Priority.INFO if self.stored else Priority.ERROR
        members = {name: getattr(self, name) for name in (*_TEXTS, *_INTEGERS, *_OPTIONAL_INTEGERS)}
        members |= {"changed": 1 if self.changed else None, "file": os.fsencode(self.file)}
        tags: list[Field] = [(_name("tag"), tag) for tag in self.tags]
        return _entry(MessageId.RECORD, priority, self.message(), members) + tags

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> TransferRecord | None:
        """Parse a journal entry.

        Args:
            fields: one entry as `journalctl -o json --all` prints it: text or a list of byte values; a list of these
                where a field repeats. Other fields are ignored.

        Returns:
            The record, or None when the entry is not a record, or not one that this version can read.
        """
        try:
            if _texts(fields.get("MESSAGE_ID"))[:1] != [MessageId.RECORD.value]:
                return None
            single = {name: text for name in _READ if (text := "".join(_texts(fields.get(_name(name)))[:1]))}
            values: dict[str, Any] = {name: single.get(name, "") for name in ("file", *_TEXTS)}
            values |= {name: whole(single[name]) for name in _INTEGERS}
            values |= {name: whole(single[name]) for name in _OPTIONAL_INTEGERS if name in single}
            return cls(**values, tags=tuple(_texts(fields.get(_name("tag")))), changed="changed" in single)
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailure:
    """An attempt that failed and that another one will follow. What ends a transfer is only in its record.

    Args:
        transfer_id, bucket, key: as in `TransferRecord`.
        attempt: its number, from 1.
        code, text: the error's, one line.
        receiver: the address where it failed; empty when no address was reached.
        delay_usec: from the failure to the next attempt, microseconds; None when that waits for something else.
        skipped: how many such entries were not written since the last one.
    """

    transfer_id: str
    bucket: str
    key: str
    attempt: int
    code: str
    text: str
    receiver: str = ""
    delay_usec: int | None
    skipped: int = 0

    def message(self) -> str:
        """Return the line for people."""
        then = "kept" if self.delay_usec is None else f"next in {self.delay_usec / _MICROSECONDS:.1f} s"
        more = f" ({self.skipped} more like this not logged)" if self.skipped else ""
        return f"{self.bucket}/{self.key} attempt {self.attempt} failed, {then}, {self.code}: {self.text}{more}"

    def fields(self) -> list[Field]:
        """Return the journal entry."""
        members = {name: getattr(self, name) for name in ("transfer_id", "bucket", "key", "attempt", "receiver")}
        members |= {"error": f"{self.code}: {self.text}", "delay_usec": self.delay_usec}
        return _entry(MessageId.ATTEMPT_FAILED, Priority.WARNING, self.message(), members)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How one attempt ended, for those who count.

    Args:
        code: the error's; empty when the object is stored.
        status: of the store's answer, an HTTP status; 0 when there was none, or the object was found.
        receiver: the address of the store; empty when none was reached, or the object was found.
        size_bytes: stored.
        again: another attempt follows.
    """

    code: str = ""
    status: int = 0
    receiver: str = ""
    size_bytes: int = 0
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """The reply `deferred` to a client that waits: its transfer is kept, but not stored yet.

    Args:
        transfer_id, bucket, key: as in `TransferRecord`.
        attempts: how many were started.
        why: the reason that it is not stored yet, one line.
    """

    transfer_id: str
    bucket: str
    key: str
    attempts: int
    why: str

    def fields(self) -> list[Field]:
        """Return the journal entry."""
        message = f"{self.bucket}/{self.key} deferred, its client was notified that it is kept; {self.why}"
        members = {name: getattr(self, name) for name in ("transfer_id", "bucket", "key", "attempts")}
        return _entry(MessageId.DEFERRED, Priority.NOTICE, message, members)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A request that was refused: nothing was accepted, and no client repeats a request.

    Args:
        code, text: the error's, one line.
        file: as given; empty when it could not be read.
        destination: bucket/key as given; empty when it could not be read.
        tag: as given.
        uid: the client's user; None when it is not known.
        skipped: how many such entries were not written since the last one.
    """

    code: str
    text: str
    file: str = ""
    destination: str = ""
    tag: str = ""
    uid: int | None = None
    skipped: int = 0

    def message(self) -> str:
        """Return the line for people."""
        what = " to ".join(one_line(word) for word in (self.file, self.destination) if word) or "a request"
        who = "an unknown user" if self.uid is None else f"user {self.uid}"
        tag = f" ({one_line(self.tag)})" if self.tag else ""
        more = f" ({self.skipped} more like this not logged)" if self.skipped else ""
        return f"refused {what}{tag}, asked by {who}, {self.code}: {one_line(self.text)}{more}"

    def fields(self) -> list[Field]:
        """Return the journal entry."""
        bucket, _, key = self.destination.partition("/")
        members = {
            "code": self.code,
            "error": f"{self.code}: {self.text}",
            "file": self.file.encode("utf-8", "surrogateescape"),
            "bucket": bucket,
            "key": key,
            "tag": self.tag,
            "peer_uid": self.uid,
        }
        return _entry(MessageId.REFUSED, Priority.WARNING, self.message(), members)


_TEXTS = ("transfer_id", "outcome", "bucket", "key", "endpoint", "etag", "error", "connection", "receiver")
_INTEGERS = ("size_bytes", "start_usec", "queue_usec", "total_usec", "attempts")
_OPTIONAL_INTEGERS = ("upload_usec", "rtt_usec", "retransmits", "parts", "moved")
_READ = ("file", *_TEXTS, *_INTEGERS, *_OPTIONAL_INTEGERS, "changed")


def _name(attribute: str) -> str:
    return "S3DAEMON_" + attribute.upper()


def _entry(
    kind: MessageId, priority: Priority, message: str, members: Mapping[str, str | bytes | int | None]
) -> list[Field]:
    """Return a journal entry; of its members those are left out that are empty or None."""
    head: list[Field] = [("MESSAGE", message), ("MESSAGE_ID", kind.value), ("PRIORITY", int(priority))]
    return head + [(_name(name), value) for name, value in members.items() if value or value == 0]


def _texts(value: object) -> list[str]:
    """Return all values of a field as text; empty when there is none."""
    if value is None:
        return []
    if isinstance(value, Iterable) and not isinstance(value, str):
        items = list(value)
        if items and all(isinstance(item, int) for item in items):
            return [os.fsdecode(bytes(items))]
        return [text for item in items for text in _texts(item)]
    return [str(value)]
