"""A file as a request body: checked before it is opened, sent once, read without blocking the event loop.

`Source` is the opened file. Its checks are made on an `O_PATH` descriptor, and the very inode that passed them is the one
that is opened: a FIFO is never waited for, a device never touched, and no rename or symlink can slip in between.

`FileBody` hands a source to aiohttp. It is *consumed* from the start and refuses to be written twice: aiohttp counts PUT as
idempotent and would send it again by itself when a connection breaks, and so would botocore. What comes out of the page
cache is read at once (`preadv` with `RWF_NOWAIT`); only a miss costs the way through a thread.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import Payload

from .errors import FileError, one_line
from .request import FileState

#: Read and encrypt this much at a time. Larger gains nothing (a TLS record holds 16 KiB), smaller costs wake-ups.
CHUNK_BYTES = 256 * 1024
#: Up to here a file is read whole by the thread that opens it, and hashed in the event loop: one hop instead of three.
SMALL_BYTES = 64 * 1024

_T = TypeVar("_T")

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_REASONS = {
    errno.ENOENT: ("NoSuchFile", "no such file"),
    errno.ENOTDIR: ("NoSuchFile", "no such file: part of the path is not a directory"),
    errno.ELOOP: ("NoSuchFile", "no such file: too many symbolic links"),
    errno.ENAMETOOLONG: ("NoSuchFile", "no such file: the name is too long"),
    errno.EACCES: ("NotReadable", "the daemon's user may not read it"),
    errno.EPERM: ("NotReadable", "the daemon's user may not read it"),
}


def _file_error(path: str, exc: OSError) -> FileError:
    code, text = _REASONS.get(exc.errno or 0, ("ReadFailed", exc.strerror or "read error"))
    return FileError(code, f"{one_line(path)}: {text}")


class Source:
    """A regular file, open for reading. The opener owns it and closes it.

    Args:
        path: the name under which it was asked for.
        fd: descriptor, owned by this object from here on.
        state: the file as it was when opened.
        content: the whole content of a small file, or None.
    """

    def __init__(self, path: str, fd: int, state: FileState, content: bytes | None) -> None:
        self.path = path
        self.fd = fd
        self.state = state
        self.content = content

    @classmethod
    def open(cls, path: str, roots: Sequence[str] = ()) -> Source:
        """Open `path`. Blocks as long as its file system does: call it in a thread.

        Args:
            path: absolute.
            roots: real directories under one of which the opened file must lie; empty for anywhere.

        Raises:
            FileError: `NoSuchFile`, `NotRegularFile`, `NotReadable`, `NotAllowed` or `ReadFailed`.
        """
        try:
            name = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError as exc:
            raise _file_error(path, exc) from exc
        try:
            mode = os.fstat(name).st_mode
            if not stat.S_ISREG(mode):
                kind = next((kind for test, kind in _KINDS if test(mode)), "something else")
                raise FileError("NotRegularFile", f"{one_line(path)}: {kind}, not a regular file")
            _check_roots(path, name, roots)
            fd = os.open(f"/proc/self/fd/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise _file_error(path, exc) from exc
        finally:
            os.close(name)
        try:
            state = FileState.of(os.fstat(fd))
            content = os.pread(fd, state.size + 1, 0) if state.size <= SMALL_BYTES else None
            if content is not None and (len(content) != state.size or FileState.of(os.fstat(fd)) != state):
                raise FileError("FileChanged", f"{one_line(path)}: it changed while it was read")
        except OSError as exc:
            os.close(fd)
            raise _file_error(path, exc) from exc
        except FileError:
            os.close(fd)
            raise
        return cls(path, fd, state, content)

    def check_unchanged(self) -> None:
        """Make sure that the path still names what was opened, untouched. Blocks like `open`.

        Size, time and inode of the *path* are compared: a file replaced by rename leaves the open descriptor as it was.

        Raises:
            FileError: `FileChanged`, or `NoSuchFile` when it is gone.
        """
        try:
            now = FileState.of(os.stat(self.path))
        except OSError as exc:
            raise _file_error(self.path, exc) from exc
        if now != self.state:
            raise FileError("FileChanged", f"{one_line(self.path)}: it changed while it was sent")

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """What the page cache has there, or None when it would block or the file system cannot tell (tmpfs)."""
        buffer = bytearray(size)
        try:
            got = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise
        if not got:
            return None
        if got < size:
            del buffer[got:]
        return buffer

    def close(self) -> None:
        """Close the descriptor; again does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _check_roots(path: str, name: int, roots: Sequence[str]) -> None:
    if not roots:
        return
    real = os.readlink(f"/proc/self/fd/{name}")
    if not any(real == root or real.startswith(root.rstrip("/") + "/") for root in roots):
        raise FileError("NotAllowed", f"{one_line(path)}: {one_line(real)} is not under S3DAEMON_ALLOWED_ROOTS")


class FileBody(Payload):
    """A source as aiohttp's payload and botocore's file-like object, good for one sending.

    Args:
        source: the open file; stays the caller's.
        digest: compute the MD5 of what is sent.
        on_start: called with the transport just before the first byte is written.

    Attributes:
        sent: bytes handed to the transport so far.
        error: why reading stopped, if it did.
        reading: a thread is waiting for the file system.
        transport: the connection that carries it, once sending began.
    """

    _consumed = True  # never sent again by aiohttp

    def __init__(
        self,
        source: Source,
        *,
        digest: bool,
        on_start: Callable[[asyncio.BaseTransport], None] = lambda _: None,
    ) -> None:
        super().__init__(source)
        self._source = source
        self._size = source.state.size
        self._md5 = hashlib.md5(usedforsecurity=False) if digest else None
        self._on_start = on_start
        self._position = 0
        self.sent = 0
        self.error: FileError | None = None
        self.reading = False
        self.transport: asyncio.Transport | None = None

    @property
    def md5(self) -> str:
        """Hex MD5 of the body once all was sent; empty when it was not asked for."""
        return self._md5.hexdigest() if self._md5 and self.sent == self._size else ""

    @property
    def finished(self) -> bool:
        """All was handed to the transport."""
        return self.transport is not None and self.sent == self._size

    def __len__(self) -> int:
        """Bytes, as botocore asks for them."""
        return self._size or 0

    def __bool__(self) -> bool:
        """An empty file is a body too, and goes the same way."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """For botocore, which measures a body by seeking to its end."""
        self._position = offset + (len(self) if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """For botocore."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """For botocore, which takes a body with `read` for a file; nobody may call it."""
        raise FileError("Internal", "the body is read by its own writer alone")

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """For aiohttp, which never calls it on a request's body."""
        raise FileError("Internal", "the body is binary")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of it."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send all of it, once.

        Raises:
            FileError: kept in `error` too, since aiohttp wraps whatever is raised here.
        """
        if self.transport is not None:
            raise FileError("Internal", "a body is sent once")
        assert isinstance(writer, StreamWriter), "aiohttp's own, which knows its transport"
        assert writer.transport is not None
        self.transport = writer.transport
        self._on_start(self.transport)
        hashing: asyncio.Future[Any] | None = None
        try:
            while self.sent < len(self):
                chunk = await self._next_chunk()
                if self._md5 is not None and len(self) <= SMALL_BYTES:
                    self._md5.update(chunk)
                elif self._md5 is not None:  # hashed by another core while this one encrypts
                    if hashing is not None:
                        await hashing
                    hashing = asyncio.get_running_loop().run_in_executor(None, self._md5.update, chunk)
                await writer.write(chunk)
                self.sent += len(chunk)
        except FileError as exc:
            self.error = exc
            raise
        finally:
            if hashing is not None:
                await hashing

    async def _next_chunk(self) -> bytes | bytearray:
        source = self._source
        if source.content is not None:
            return source.content
        size = min(CHUNK_BYTES, len(self) - self.sent)
        try:
            chunk: bytes | bytearray | None = source.read_now(self.sent, size)
            if chunk is None:
                chunk = await self._in_thread(os.pread, source.fd, size, self.sent)
        except OSError as exc:
            raise _file_error(source.path, exc) from exc
        if not chunk:
            raise FileError("FileChanged", f"{one_line(source.path)}: it became shorter while it was sent")
        if self.sent + len(chunk) == len(self):  # withhold the end of a mixture: without it the store keeps nothing
            await self._in_thread(source.check_unchanged)
        return chunk

    async def _in_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        self.reading = True
        result = await asyncio.get_running_loop().run_in_executor(None, call, *args)
        self.reading = False
        return result
