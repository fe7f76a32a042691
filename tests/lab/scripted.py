"""A scripted store: an HTTP/1.1 server that treats each request by a script, and records all requests.

It lives in the test's own event loop, on loopback, plain or with TLS. A script is an async function that gets an
`Exchange` and uses its methods: read the body or part of it, answer, close, reset, stop. What a peer does (a reset, a
close) ends the script and shows in the exchange; a script that raises anything else fails the test.

    async with scripted(put=hang_up_after(100)) as server:
        ...
    assert [seen.method for seen in server.seen] == ["PUT"]
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeAlias

from lab.assembly import BUCKETS, Assembly
from lab.loopback import handed_over, socket_of
from s3daemon.network.tcp import tcp_transport_of

PATIENCE_S = 30.0
"""How long `until` waits for what should happen at once; long enough for a busy machine."""

_PIECE_BYTES = 64 * 1024


class Exchange:
    """One request as it arrived, and the methods that treat it."""

    def __init__(
        self, server: Scripted, connection: Connection, method: str, target: str, headers: dict[str, str]
    ) -> None:
        self.server = server
        self.connection = connection
        self.method = method
        self.target = target
        """As on the wire, still quoted."""
        self.headers = headers
        """Names in lower case."""
        self.body = bytearray()
        """The part of the body that was read so far."""
        self.over = False
        """The script has ended, by itself or with its connection."""
        self.kept = False
        """It was answered, and the connection stays open."""

    @property
    def length(self) -> int:
        """The length of the body according to its header, bytes."""
        return int(self.headers.get("content-length", "0"))

    @property
    def whole(self) -> bool:
        """All of the body was read."""
        return len(self.body) == self.length

    async def read(self, limit: int | None = None) -> None:
        """Read until `limit` bytes of the body are read, or all; ConnectionError if the peer closes before that."""
        wanted = self.length if limit is None else min(limit, self.length)
        while len(self.body) < wanted:
            piece = await self.connection.reader.read(min(_PIECE_BYTES, wanted - len(self.body)))
            if not piece:
                raise ConnectionAbortedError("the peer ended within the body")
            self.body += piece
            self.server.note()

    async def write(self, raw: bytes) -> None:
        """Write any bytes."""
        self.connection.writer.write(raw)
        await self.connection.writer.drain()

    async def answer(
        self,
        status: int = 200,
        body: bytes = b"",
        *,
        version: str = "HTTP/1.1",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer; the connection stays open unless the headers or the version say otherwise."""
        named = {"Content-Length": str(len(body))} | dict(headers or {})
        lines = [f"{version} {status} Scripted", *(f"{name}: {value}" for name, value in named.items()), "", ""]
        await self.write("\r\n".join(lines).encode() + (b"" if self.method == "HEAD" else body))
        self.kept = version == "HTTP/1.1" and named.get("Connection", "").lower() != "close"

    async def refuse(
        self, status: int, code: str, message: str = "", *, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer with an error in S3's form."""
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        await self.answer(status, text.encode(), headers={"Content-Type": "application/xml"} | dict(headers or {}))

    async def handed_over(self) -> None:
        """Wait until the sender's kernel has all of the body; the sender must live in this process."""
        sock = socket_of(self.connection.writer.get_extra_info("peername"))
        while handed_over(sock) < self.length:
            await asyncio.sleep(0.01)

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def silence(self) -> None:
        """Neither read nor write any more, until the server is closed."""
        self.server.note()
        await asyncio.get_running_loop().create_future()


Script: TypeAlias = Callable[[Exchange], Awaitable[None]]


class Connection:
    """One connection that the server accepted."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.reader = reader
        self.writer = writer
        self.open = True
        assert isinstance(writer.transport, asyncio.Transport)
        self._transport = tcp_transport_of(writer.transport)

    def close(self) -> None:
        """Close: a FIN after all that was written; a reset if something was not read."""
        self.writer.close()

    def half_close(self) -> None:
        """Send a FIN and continue to read."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Close it with a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:  # neither once it is over
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def abort(self) -> None:
        """Close it at once, whatever is still to be written."""
        self._transport.abort()


class Scripted:
    """The server. Made by `scripted`; `put` and `other` may be replaced at any time.

    Args:
        put: treats PUTs.
        other: treats everything else.
    """

    def __init__(self, put: Script, other: Script) -> None:
        self.put = put
        self.other = other
        self.url = ""
        self.seen: list[Exchange] = []
        self.connections: list[Connection] = []
        self.objects: dict[str, bytes] = {}
        """What `keep` stored, by target."""
        self.metadata: dict[str, dict[str, str]] = {}
        """The x-amz-meta-... headers of each."""
        self.etags: dict[str, str] = {}
        """The ETags of objects made of parts, in their quotes."""
        self.assembly = Assembly(self._assembled)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: list[asyncio.Future[None]] = []

    def _assembled(self, name: str, content: bytes, metadata: dict[str, str], etag: str) -> None:
        self.objects[name], self.metadata[name], self.etags[name] = content, metadata, f'"{etag}"'

    @property
    def puts(self) -> list[Exchange]:
        """The PUTs among the requests."""
        return [seen for seen in self.seen if seen.method == "PUT"]

    @property
    def open_connections(self) -> list[Connection]:
        """The connections that neither side has closed."""
        return [connection for connection in self.connections if connection.open]

    def note(self) -> None:
        """Have `until` check its condition again."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is checked whenever something happened here."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.remove(waiter)

    def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection."""
        connection = Connection(len(self.connections), reader, writer)
        self.connections.append(connection)
        self._tasks.add(asyncio.create_task(self._serve(connection)))
        self.note()

    async def _serve(self, connection: Connection) -> None:
        try:
            # What the peer may do at any time is no fault of a script.
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
                while await self._serve_one(connection):
                    pass
                connection.close()
                await connection.writer.wait_closed()
        finally:
            connection.open = False
            connection.abort()
            self.note()
            with contextlib.suppress(OSError):
                await connection.writer.wait_closed()

    async def _serve_one(self, connection: Connection) -> bool:
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        exchange = Exchange(self, connection, method, target, headers)
        self.seen.append(exchange)
        self.note()
        try:
            await (self.put if method == "PUT" else self.other)(exchange)
        finally:
            exchange.over = True
            self.note()
        return exchange.kept and exchange.whole

    async def close(self) -> None:
        """Close every connection; raises what a script raised."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def keep(exchange: Exchange) -> None:
    """Act as a store: keep what is put, whole or in parts, answer HEADs, answer anything else with 200."""
    server, target = exchange.server, exchange.target
    await exchange.read()
    name, _, query = target.partition("?")
    answer = server.assembly.answer(exchange.method, name, query, exchange.headers, bytes(exchange.body))
    if answer is not None:
        await exchange.answer(answer[0], answer[2], headers=answer[1])
        return
    if exchange.method == "PUT":
        server.objects[target] = bytes(exchange.body)
        server.etags.pop(target, None)
        given = exchange.headers.items()
        server.metadata[target] = {name: value for name, value in given if name.startswith("x-amz-meta-")}
    elif exchange.method == "HEAD" and target not in server.objects:
        await exchange.answer(404)
        return
    if exchange.method == "GET" and name == "/":
        await exchange.answer(200, BUCKETS)
        return
    content = server.objects.get(target, b"")
    headers = {"ETag": server.etags.get(target) or etag_of(content)}
    if exchange.method == "HEAD":
        headers |= {"Content-Length": str(len(content)), **server.metadata[target]}
    await exchange.answer(headers=headers)


def etag_of(content: bytes) -> str:
    """The ETag that S3 gives an object stored by one PUT."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def hang_up_after(limit: int | None = None) -> Script:
    """Read so much of the body (all, without a limit) and close the connection without an answer."""

    async def script(exchange: Exchange) -> None:
        await exchange.read(limit)

    return script


def reset_after(limit: int | None = None) -> Script:
    """Read so much of the body and reset the connection."""

    async def script(exchange: Exchange) -> None:
        await exchange.read(limit)
        exchange.connection.reset()

    return script


def silent_after(limit: int | None = None) -> Script:
    """Read so much of the body and do nothing more."""

    async def script(exchange: Exchange) -> None:
        await exchange.read(limit)
        await exchange.silence()

    return script


async def http_1_0(exchange: Exchange) -> None:
    """Answer as HTTP/1.0 does, and close."""
    await exchange.read()
    await exchange.answer(version="HTTP/1.0")


async def close_silently(exchange: Exchange) -> None:
    """Answer, and close unannounced."""
    await exchange.answer()
    exchange.kept = False


def answering(status: int = 200, body: bytes = b"", **headers: str) -> Script:
    """Read the body and answer; underscores in the names of headers become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(status, body, headers=named)

    return script


def refusing(status: int, code: str, message: str = "", **headers: str) -> Script:
    """Read the body and refuse it as S3 does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.refuse(status, code, message, headers=named)

    return script


@contextlib.asynccontextmanager
async def scripted(
    put: Script = keep, other: Script = keep, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[Scripted]:
    """Run a server on a port that the kernel chooses.

    Its receive buffers are small, so that of a body of a few MiB only a part is acknowledged unless a script reads.
    """
    server = Scripted(put, other)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE_BYTES)
    listener.bind((address, 0))
    running = await asyncio.start_server(server.take, sock=listener, ssl=tls, limit=_PIECE_BYTES)
    host = "localhost" if tls is not None else address
    server.url = f"{'http' if tls is None else 'https'}://{host}:{listener.getsockname()[1]}"
    try:
        yield server
    finally:
        running.close()
        await server.close()
