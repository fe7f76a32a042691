"""A file as a request body: sent once, and read without blocking the event loop.

A `FileBody` counts as *consumed* from the start and refuses to be written twice: aiohttp considers PUT idempotent and
would send it again by itself when a connection breaks, and so would botocore. What is in the page cache is read at once
(`preadv` with `RWF_NOWAIT`); only what is not there requires a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import Payload

from s3daemon.errors import Code, FileError, one_line
from s3daemon.model.files.source import SMALL_BYTES, Source, file_error
from s3daemon.model.files.turns import Turns
from s3daemon.network.tcp import tcp_transport_of

_T = TypeVar("_T")

#: How much is read and encrypted at a time. More gains nothing (a TLS record holds 16 KiB), less costs wake-ups.
CHUNK_BYTES = 256 * 1024
#: The pieces that are hashed by one call of a thread: at most 2 MiB are held for it, and the calls cost little beside
#: the MD5.
CHUNKS_HASHED = 4


class _Md5:
    """The MD5 of a body that is given in chunks; that of a large one is computed on another core meanwhile."""

    def __init__(self, size: int) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._is_small = size <= SMALL_BYTES
        self._unhashed: list[bytes | bytearray] = []
        self._hashing: asyncio.Future[None] | None = None

    async def add(self, chunk: bytes | bytearray, *, is_last: bool) -> None:
        """Add the next chunk; wait until all was hashed if it is the last one."""
        if self._is_small:
            self._md5.update(chunk)
            return
        self._unhashed.append(chunk)
        if is_last or len(self._unhashed) == CHUNKS_HASHED:
            await self._settle()
            self._hashing = asyncio.get_running_loop().run_in_executor(None, self._hash, self._unhashed)
            self._unhashed = []
        if is_last:  # the answer may end the caller before all was hashed
            await self._settle()

    def _hash(self, chunks: Sequence[bytes | bytearray]) -> None:
        for chunk in chunks:
            self._md5.update(chunk)

    async def _settle(self) -> None:
        """Wait until no thread is hashing."""
        if self._hashing is not None:
            await self._hashing

    def hexdigest(self) -> str:
        """Return the digest of all that was hashed."""
        return self._md5.hexdigest()


class FileBody(Payload):
    """A file or a slice of one, as aiohttp's payload and botocore's file-like object, for one request.

    Args:
        source: the open file; the caller closes it.
        offset: start of the slice, bytes.
        size: length of the slice, bytes.
        digest: compute the MD5 of what is sent.
        turns: taken for each chunk of a large body. While 23 images are sent, each step of a sidecar's answer through
            the event loop would wait for a chunk of every one.
        on_start: called with the transport just before the first byte is written.

    Attributes:
        sent: bytes handed to the transport so far.
        error: the error of the file that ended the reading; None without one.
        reading: a thread is waiting for the file system.
        transport: the connection's transport, once sending has begun.
    """

    def __init__(
        self,
        source: Source,
        offset: int,
        size: int,
        *,
        digest: bool,
        turns: Turns,
        on_start: Callable[[asyncio.BaseTransport], None] = lambda _: None,
    ) -> None:
        super().__init__(source)
        self._source = source
        self._offset = offset
        self._length = size
        self._md5 = _Md5(self._length) if digest else None
        self._turns = turns
        self._on_start = on_start
        self._position = 0
        self.sent = 0
        self.error: FileError | None = None
        self.reading = False
        self.transport: asyncio.Transport | None = None

    @property
    def md5(self) -> str:
        """Hex MD5 of the body once all was sent; empty without `digest`."""
        return self._md5.hexdigest() if self._md5 and self.finished else ""

    @property
    def finished(self) -> bool:
        """True when all of the body was handed to the transport."""
        return self.transport is not None and self.sent == self._length

    @property
    def size(self) -> int:
        """Length of the body, bytes, for aiohttp."""
        return self._length

    @property
    def consumed(self) -> bool:
        """Always True, so that aiohttp never sends the body again."""
        return True

    def __len__(self) -> int:
        """Length of the body, bytes, for botocore."""
        return self._length

    def __bool__(self) -> bool:
        """Always True: an empty file is a body too, and is sent like others."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, for botocore, which measures a body by seeking to its end."""
        self._position = offset + (len(self) if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the position, for botocore."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Refuse; botocore takes only a body that has `read` for a file, but does not call it."""
        raise FileError(Code.INTERNAL, "only write_with_length may read the body")

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Refuse; aiohttp never calls it on a request's body."""
        raise FileError(Code.INTERNAL, "the body is binary")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body, as `write_with_length` does."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send the body, once.

        Raises:
            FileError: also kept in `error`, since aiohttp wraps whatever is raised here.
        """
        if self.transport is not None:
            raise FileError(Code.INTERNAL, "a body is sent once")
        assert isinstance(writer, StreamWriter), "aiohttp's own, which knows its transport"
        assert writer.transport is not None
        self.transport = tcp_transport_of(writer.transport)
        self._on_start(self.transport)
        is_large = self._length > SMALL_BYTES
        try:
            while self.sent < len(self):
                if is_large:
                    await self._turns.take()
                chunk = await self._next_chunk()
                is_last = self.sent + len(chunk) == len(self)
                if self._md5 is not None:
                    await self._md5.add(chunk, is_last=is_last)
                await writer.write(chunk)
                self.sent += len(chunk)
        except FileError as exc:
            self.error = exc
            raise

    async def _next_chunk(self) -> bytes | bytearray:
        source = self._source
        if source.content is not None:
            return source.content
        size = min(CHUNK_BYTES, len(self) - self.sent)
        position = self._offset + self.sent
        try:
            chunk: bytes | bytearray | None = source.read_now(position, size)
            if chunk is None:
                chunk = await self._in_thread(os.pread, source.fd, size, position)
        except OSError as exc:
            raise await self._in_thread(file_error, source.path, exc) from exc
        if not chunk:
            raise FileError(Code.FILE_CHANGED, f"{one_line(source.path)}: it became shorter while it was sent")
        if self.sent + len(chunk) == len(self):  # where it changed, the end is withheld, and the store keeps nothing
            await self._in_thread(source.check_unchanged)
        return chunk

    async def _in_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        self.reading = True
        try:
            return await asyncio.get_running_loop().run_in_executor(None, call, *args)
        finally:
            self.reading = False
