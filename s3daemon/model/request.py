"""Requests and transfers: frozen and valid by construction, so nothing downstream checks them again.

A `Request` is what one client asks for; a `Transfer` is the unit of work that the daemon owns from the moment the spool
has it. A transfer keeps the file's name, not its content: an attempt sends what it finds under that name.
"""

from __future__ import annotations

import os
import secrets
import unicodedata
from dataclasses import dataclass, field

from s3daemon.errors import Code, RequestError, quoted

#: S3's own limit, "Creating object key names", Amazon S3 User Guide.
MAX_KEY_BYTES = 1024
#: S3 allows 63 characters, Ceph's older rule 255, and a `tenant:bucket` is longer still. The store decides.
MAX_BUCKET_BYTES = 512
#: No bucket/key is longer, characters.
MAX_DESTINATION_CHARS = MAX_BUCKET_BYTES + len("/") + MAX_KEY_BYTES
#: A tag names an exposure or a run; this is long enough, and keeps a record's line readable.
MAX_TAG_CHARS = 128


def prefix_of(destination: str) -> str:
    """Return bucket/key up to its last slash, that one included."""
    return destination[: destination.rfind("/") + 1]


def _bad_request(text: str) -> RequestError:
    return RequestError(Code.BAD_REQUEST, text)


def _is_printable(text: str) -> bool:
    """Return whether `text` can be encoded in UTF-8 and has no control characters."""
    if text.isascii():
        return text.isprintable()
    return not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)  # Cs: lone surrogates


@dataclass(frozen=True, slots=True)
class Destination:
    """Bucket and key of an object. Control characters are refused: no tool could show or type such a key again.

    Args:
        bucket: its name; Ceph's `tenant:bucket` is allowed.
        key: the object's key, any printable characters, slashes included.

    Raises:
        RequestError: `BadRequest` when either is empty, too long, or not printable UTF-8.
    """

    bucket: str
    key: str

    def __post_init__(self) -> None:
        for name, value, limit in (("bucket", self.bucket, MAX_BUCKET_BYTES), ("key", self.key, MAX_KEY_BYTES)):
            if not value:
                raise _bad_request(f"no {name} is given")
            if not _is_printable(value):
                raise _bad_request(f"the {name} {quoted(value)} has a control character or is not UTF-8")
            if len(value.encode()) > limit:
                raise _bad_request(f"the {name} is longer than {limit} bytes")
        if "/" in self.bucket:
            raise _bad_request(f"the bucket {quoted(self.bucket)} has a slash")

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Parse `alias/bucket/key`, the form that `mc cp` takes; the alias is ignored, and may be empty.

        Raises:
            RequestError: `BadRequest`.
        """
        _, _, rest = text.partition("/")
        bucket, _, key = rest.partition("/")
        if not (bucket and key):
            raise _bad_request(f"{quoted(text)} is not alias/bucket/key")
        return cls(bucket, key)

    @property
    def misleading(self) -> str:
        """Why no request may name this destination, or "".

        A key that ends in a slash was meant as a directory: every file sent there would replace the one before. A `.`
        or `..` between slashes is resolved by many a proxy, so that the object would land under another key, or in a
        bucket that is not allowed. Neither is checked where a transfer is read back from the spool.
        """
        if self.key.endswith("/"):
            return (
                f"the key {quoted(self.key)} ends in a slash: give the whole key, with the object's own name at its end"
            )
        if not {".", ".."}.isdisjoint((self.bucket, *self.key.split("/"))):
            return f"{quoted(str(self))} has a part that is . or .., which proxies resolve: give the key without it"
        return ""

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}"


@dataclass(frozen=True, slots=True)
class Request:
    """What one client asks for.

    Args:
        file: absolute path; bytes that are not UTF-8 are lone surrogates, as in `os.fsdecode`.
        destination: the object to store the file in.
        wait: reply when the transfer is stored or failed (True), or as soon as it is durable (False).
        tag: groups transfers in the report, for example an exposure's name; empty for none.
        extended: the request came as a JSON object, and the reply is one.

    Raises:
        RequestError: `BadRequest`.
    """

    file: str
    destination: Destination
    wait: bool = True
    tag: str = ""
    extended: bool = False

    def __post_init__(self) -> None:
        if reason := self.destination.misleading:
            raise _bad_request(reason)
        if not self.file.startswith("/"):
            raise _bad_request(f"{quoted(self.file)} is not an absolute path")
        if "\0" in self.file:
            raise _bad_request("the file name has a NUL byte")
        try:
            os.fsencode(self.file)
        except UnicodeEncodeError as exc:
            raise _bad_request(f"{quoted(self.file)} is not a file name: it has a lone surrogate") from exc
        if len(self.tag) > MAX_TAG_CHARS or not _is_printable(self.tag):
            raise _bad_request(f"a tag has at most {MAX_TAG_CHARS} characters, none of them a control character")


@dataclass(frozen=True, slots=True)
class FileState:
    """Size, times and inode of a file, which distinguish two contents of one path without reading them.

    A program can set the modification time back after it has changed the content; the change time it cannot.

    Args:
        size: bytes.
        mtime_ns: modification time, nanoseconds since the epoch, modulo 2**64 into 64 signed bits: file systems have
            times up to some billions of years ahead.
        inode: inode number.
        device: device number of its file system; not compared, since a reboot may change it.
        ctime_ns: change time, likewise.
    """

    size: int
    mtime_ns: int
    inode: int
    device: int = field(compare=False)
    ctime_ns: int = 0

    @classmethod
    def of(cls, stat: os.stat_result) -> FileState:
        """Return the state that a result of `os.stat` describes."""
        ctime_ns = _signed64(stat.st_ctime_ns)
        return cls(stat.st_size, _signed64(stat.st_mtime_ns), stat.st_ino, stat.st_dev, ctime_ns)

    def difference(self, other: FileState) -> str:
        """Return the names of what differs from another state; the change time, which every change sets, if alone."""
        named = {"size": "size", "inode": "inode number", "mtime_ns": "modification time"}
        found = [name for field_, name in named.items() if getattr(self, field_) != getattr(other, field_)]
        return ", ".join(found) or "change time"

    @property
    def mark(self) -> str:
        """The text that stands for the state in an object's metadata; without the device, as a reboot may change it."""
        return f"{self.mtime_ns}-{self.inode}-{self.ctime_ns}"


def _signed64(number: int) -> int:
    """Fit a number into 64 signed bits, modulo 2**64."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@dataclass(frozen=True, slots=True)
class Transfer:
    """An accepted unit of work.

    Args:
        id: random, 16 hex digits; names the transfer to the world, in the journal and in the object's metadata.
        file: as in `Request`.
        destination: as in `Request`.
        tags: the tags of all requests that it serves, in order, without empty ones.
        file_state: the file as it was when it was opened last: at acceptance, or by an attempt that found it changed.
        accepted_usec: wall clock at acceptance, microseconds since the epoch; shown, never used to expire anything.
    """

    id: str
    file: str
    destination: Destination
    tags: tuple[str, ...]
    file_state: FileState
    accepted_usec: int

    @classmethod
    def accept(cls, request: Request, file_state: FileState, now_usec: int) -> Transfer:
        """Return a transfer with a new id that serves `request`."""
        tags = (request.tag,) if request.tag else ()
        return cls(secrets.token_hex(8), request.file, request.destination, tags, file_state, now_usec)

    def age_s(self, wall: float) -> float:
        """Return the seconds since its acceptance by the wall clock, which is `wall` seconds since the epoch."""
        return max(0.0, wall - self.accepted_usec / 1e6)
