"""An S3 server in memory that fails as a test says: fast, in a thread of this process, its state open to the test.

It keeps objects with their metadata, put whole or in parts, answers PUT, HEAD and GET, verifies no signature, and
records every object that it stored. A seeded generator decides how each PUT, and each completion of an upload in parts,
fails; methods make it unreachable or stop it from reading.
"""

import asyncio
import hashlib
import random
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from urllib.parse import unquote

from lab.accepting import loop_in_thread, serve_each
from lab.assembly import BUCKETS, Answer, Assembly
from lab.env import free_ports
from lab.s3 import S3Server

_DENIED = b"<Error><Code>AccessDenied</Code><Message>not here</Message></Error>"
_UNKNOWN = b"<Error><Code>InvalidAccessKeyId</Code><Message>who?</Message></Error>"


class Fault(Enum):
    """How a PUT can fail. *Kept* means that the object is stored although the client cannot know."""

    REFUSED_503 = auto()
    """Read, dropped, answered 503."""
    FAILED_500_KEPT = auto()
    """Read, kept, answered 500."""
    RESET = auto()
    """Reset after the head."""
    CUT = auto()
    """Reset within the body, which is dropped."""
    DENIED = auto()
    """Read, dropped, answered 403 AccessDenied: a permanent error."""
    KEY_UNKNOWN = auto()
    """Read, dropped, answered 403 InvalidAccessKeyId, as every signed request that concerns no bucket then is."""
    HUNG_UP = auto()
    """Read, dropped, closed without an answer."""
    HUNG_UP_KEPT = auto()
    """Read, kept, closed without an answer."""


#: How faults are answered; without one here the answer is the store's own.
_FAULT_ANSWERS: Mapping[Fault | None, Answer] = {
    Fault.DENIED: (403, {}, _DENIED),
    Fault.KEY_UNKNOWN: (403, {}, _UNKNOWN),
    Fault.REFUSED_503: (503, {}, b""),
    Fault.FAILED_500_KEPT: (500, {}, b""),
}


@dataclass(frozen=True)
class Object:
    """A stored object."""

    body: bytes
    id: str
    """The transfer that stored it, from the metadata."""
    metadata: Mapping[str, str]
    etag: str
    """The MD5 of the body, if it was stored by one PUT."""


@dataclass(frozen=True)
class Put:
    """One object that was stored."""

    name: str
    """bucket/key"""
    id: str
    etag: str


class FlakyS3:
    """The server. Made by ``flaky``; its methods may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, seed: int) -> None:
        """Prepare it; it listens from ``open`` on."""
        self.server = S3Server(f"http://127.0.0.1:{port}", "testkey", "testsecret")
        self.objects: dict[str, Object] = {}
        """By bucket/key."""
        self.puts: list[Put] = []
        """Every object that was stored, in order."""
        self.assembly = Assembly(self._keep)
        self.faults: dict[Fault, float] = {}
        """The share of PUTs that fail in each way."""
        self.latency_s = 0.0
        """How long each answer to a PUT takes, after the object is stored."""
        self.held_bodies = threading.Semaphore(0)
        """Released once for every PUT whose body is not read, because of ``hold_bodies``."""
        self._loop = loop
        self._port = port
        self._rng = random.Random(seed)
        self._listening: asyncio.Task[None] | None = None
        self._accepted: set[asyncio.Task[None]] = set()
        self._connections: set[asyncio.StreamWriter] = set()
        self._reading = asyncio.Event()
        self._reading.set()

    def open(self) -> None:
        """Start to listen."""
        self._do(self._open())

    def refuse(self) -> None:
        """Stop to listen, and reset all connections."""
        self._do(self._refuse())

    def hold_bodies(self) -> None:
        """Stop to read bodies of PUTs."""
        self._loop.call_soon_threadsafe(self._reading.clear)

    def release(self) -> None:
        """Read bodies again."""
        self._loop.call_soon_threadsafe(self._reading.set)

    def _do(self, action: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _open(self) -> None:
        if self._listening is None:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
            self._listening = self._loop.create_task(serve_each(listener, self._serve_client, self._accepted))

    async def _serve_client(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        await self._serve(reader, writer)

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
            self._listening = None
        for writer in list(self._connections):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._listening is None:  # it was accepted just before that
            _reset(writer)
            return
        self._connections.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one request; return whether another may follow."""
        request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        method, target, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        name = unquote(path)[1:]
        if method == "PUT" or (method == "POST" and "uploadId=" in query):
            return await self._put(reader, writer, method, name, query, headers)
        answer = self.assembly.answer(method, name, query, headers, b"")
        if answer is not None:
            _answer_with(writer, *answer)
            await writer.drain()
            return True
        if not name and "authorization" in headers and Fault.KEY_UNKNOWN in self.faults:
            _answer_with(writer, *_FAULT_ANSWERS[Fault.KEY_UNKNOWN])
            await writer.drain()
            return True
        if not name and method == "GET":
            _answer_with(writer, 200, {}, BUCKETS)
            await writer.drain()
            return True
        found = self.objects.get(name)
        if "/" not in name or found is None:
            _answer_with(writer, 404 if "/" in name else 200, {})
        else:
            body = found.body if method == "GET" else b""
            _answer_with(writer, 200, {"ETag": f'"{found.etag}"', **found.metadata}, body, len(found.body))
        await writer.drain()
        return True

    def _keep(self, name: str, body: bytes, metadata: Mapping[str, str], etag: str) -> None:
        stored = Object(body, metadata.get("x-amz-meta-s3daemon-id", ""), metadata, etag)
        self.objects[name] = stored
        self.puts.append(Put(name, stored.id, etag))

    def _store(self, method: str, name: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        answer = self.assembly.answer(method, name, query, headers, body)
        if answer is not None:
            return answer
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        given = headers.items()
        self._keep(name, body, {name: value for name, value in given if name.startswith("x-amz-meta-")}, etag)
        return 200, {"ETag": f'"{etag}"'}, b""

    async def _put(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        name: str,
        query: str,
        headers: Mapping[str, str],
    ) -> bool:
        size = int(headers["content-length"])
        fault = self._draw_fault()
        if fault is Fault.RESET:
            return _reset(writer)
        if not self._reading.is_set():
            self.held_bodies.release()
            await self._reading.wait()
        if headers.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is Fault.CUT:
            await reader.readexactly(self._rng.randrange(size) if size else 0)
            return _reset(writer)
        body, answer = await reader.readexactly(size), (200, dict[str, str](), b"")
        if fault in (None, Fault.FAILED_500_KEPT, Fault.HUNG_UP_KEPT):
            answer = self._store(method, name, query, headers, body)
        if self.latency_s:
            await asyncio.sleep(self.latency_s)
        if fault in (Fault.HUNG_UP, Fault.HUNG_UP_KEPT):
            return False
        _answer_with(writer, *_FAULT_ANSWERS.get(fault, answer))
        await writer.drain()
        return True

    def _draw_fault(self) -> Fault | None:
        drawn = self._rng.random()
        for fault, share in self.faults.items():
            drawn -= share
            if drawn < 0:
                return fault
        return None


def _answer_with(
    writer: asyncio.StreamWriter, status: int, headers: Mapping[str, str], body: bytes = b"", length: int = 0
) -> None:
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, f"Content-Length: {length or len(body)}", "\r\n"]).encode() + body)


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Close a connection with a reset; return False, since no other request may follow."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


@contextmanager
def flaky(seed: int = 1) -> Iterator[FlakyS3]:
    """Run a server, listening and without faults, for the duration of a ``with`` block."""
    with loop_in_thread("flaky S3") as loop:
        made = FlakyS3(loop, free_ports(1)[0], seed)
        try:
            made.open()
            yield made
        finally:
            made.refuse()
            made.release()
            asyncio.run_coroutine_threadsafe(_ended(), loop).result(10)


async def _ended() -> None:
    """Wait until the tasks of all connections have ended, the last accepted included."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)
    await asyncio.sleep(0)  # the last transports close
