"""A file as a request body: sent once, read without blocking the event loop.

A `FileBody` is *consumed* from the start and refuses to be written twice: aiohttp counts PUT as idempotent and would
send it again by itself when a connection breaks, and so would botocore. What comes out of the page cache is read at
once (`preadv` with `RWF_NOWAIT`); only a miss costs the way through a thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import StreamWriter
from aiohttp.payload import Payload

from s3daemon.errors import Code, FileError, one_line
from s3daemon.model.source import SMALL_BYTES, Source, file_error
from s3daemon.network import tcp

_T = TypeVar("_T")

#: Read and encrypt this much at a time. Larger gains nothing (a TLS record holds 16 KiB), smaller costs wake-ups.
CHUNK_BYTES = 256 * 1024


class FileBody(Payload):
    """A source, or a slice of it, as aiohttp's payload and botocore's file-like object, good for one sending.

    Args:
        source: the open file; stays the caller's.
        offset: where the slice begins, bytes.
        size: of the slice, bytes; None for all that there is.
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
        offset: int = 0,
        size: int | None = None,
        *,
        digest: bool,
        on_start: Callable[[asyncio.BaseTransport], None] = lambda _: None,
    ) -> None:
        super().__init__(source)
        self._source = source
        self._offset = offset
        self._size = source.state.size if size is None else size
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
        raise FileError(Code.INTERNAL, "the body is read by its own writer alone")

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """For aiohttp, which never calls it on a request's body."""
        raise FileError(Code.INTERNAL, "the body is binary")

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send all of it."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send all of it, once.

        Raises:
            FileError: kept in `error` too, since aiohttp wraps whatever is raised here.
        """
        if self.transport is not None:
            raise FileError(Code.INTERNAL, "a body is sent once")
        assert isinstance(writer, StreamWriter), "aiohttp's own, which knows its transport"
        assert writer.transport is not None
        self.transport = tcp.tcp_transport_of(writer.transport)
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
                    if self.sent + len(chunk) == len(self):  # the answer may end this coroutine before all was hashed
                        await hashing
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
        at = self._offset + self.sent
        try:
            chunk: bytes | bytearray | None = source.read_now(at, size)
            if chunk is None:
                chunk = await self._in_thread(os.pread, source.fd, size, at)
        except OSError as exc:
            raise file_error(source.path, exc) from exc
        if not chunk:
            raise FileError(Code.FILE_CHANGED, f"{one_line(source.path)}: it became shorter while it was sent")
        if self.sent + len(chunk) == len(self):  # withhold the end of a mixture: the store keeps nothing without it
            await self._in_thread(source.check_unchanged)
        return chunk

    async def _in_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        self.reading = True
        result = await asyncio.get_running_loop().run_in_executor(None, call, *args)
        self.reading = False
        return result
