"""A store that counts what it stores, and reads some connections slowly: an S3 server in a thread of its own.

It keeps no content. What is read of a body whose connection ends before all of it was read is not stored, as with any
store. How a request is treated, `treat` decides: by the connection that it comes over, by its size, by its number.

    with counting() as store:
        store.treat = lambda request: Treatment(rate=100e3) if request.connection.number % 5 == 0 else GOOD
        ...
    assert set(store.stored.values()) == {1}
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from lab.accepting import loop_in_thread, serve_each
from lab.assembly import refusal
from lab.env import free_ports
from lab.s3 import S3Server

_CHUNK_BYTES = 1 << 18
_STEP_S = 0.02


@dataclass(frozen=True)
class Treatment:
    """How a request is treated.

    Args:
        rate: at which its body is read, bytes/s; None: as it comes.
        after: so many bytes are read as they come before that.
        before_s: how long it waits with the whole body before it stores it, seconds.
        after_s: how long it waits then before it answers, seconds.
    """

    rate: float | None = None
    after: int = 0
    before_s: float = 0.0
    after_s: float = 0.0


GOOD = Treatment()


@dataclass(eq=False)
class Peer:
    """A connection that was accepted: its number, and the store's address that it goes to."""

    number: int
    address: str


@dataclass
class Request:
    """A PUT whose body is about to be read."""

    connection: Peer
    target: str
    size: int
    number: int


@dataclass
class Store:
    """The store. Made by ``counting``.

    Attributes:
        stored: how often each object was stored, by its path; parts count by their number behind a `#`.
        reset: PUTs whose connection ended before all of it was read.
        addresses: how many bodies each address stored.
    """

    servers: Sequence[S3Server] = ()
    treat: Callable[[Request], Treatment] = lambda _: GOOD
    stored: Counter[str] = field(default_factory=Counter)
    reset: list[Request] = field(default_factory=list)
    addresses: Counter[str] = field(default_factory=Counter)
    _metadata: dict[str, list[str]] = field(default_factory=dict)
    _etags: dict[str, dict[int, str]] = field(default_factory=dict)
    _connections: int = 0
    _puts: int = 0

    async def listen(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        links = set[asyncio.Task[None]]()
        try:
            await serve_each(listener, self._serve, links)
        finally:
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)

    async def _serve(self, client: socket.socket) -> None:
        peer = Peer(self._connections, client.getsockname()[0])
        self._connections += 1
        loop, data = asyncio.get_running_loop(), bytearray()
        with client, suppress(OSError):
            while True:
                while b"\r\n\r\n" not in data:
                    if not (piece := await loop.sock_recv(client, _CHUNK_BYTES)):
                        return
                    data += piece
                head, _, rest = bytes(data).partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                method, target, _ = lines[0].split(" ")
                headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines[1:])}
                size = int(headers.get("content-length", "0"))
                request = Request(peer, target, size, self._puts)
                self._puts += method == "PUT"
                treatment = self.treat(request) if method == "PUT" else GOOD
                try:
                    etag, data = await self._read(client, rest, size, treatment)
                except ConnectionError:
                    if method == "PUT":
                        self.reset.append(request)
                    return
                await asyncio.sleep(treatment.before_s)
                status, named, body = self._answer(method, request, headers, etag)
                await asyncio.sleep(treatment.after_s)
                named = {"Content-Length": str(len(body))} | named
                answer = [f"HTTP/1.1 {status} Counted", *(f"{name}: {text}" for name, text in named.items()), "", ""]
                await loop.sock_sendall(client, "\r\n".join(answer).encode() + (body if method != "HEAD" else b""))

    async def _read(self, client: socket.socket, rest: bytes, size: int, how: Treatment) -> tuple[str, bytearray]:
        """Read a body; its ETag, and what came behind it."""
        loop, digest, got = asyncio.get_running_loop(), hashlib.md5(rest[:size], usedforsecurity=False), len(rest)
        buffer, began = memoryview(bytearray(_CHUNK_BYTES)), 0.0
        while got < size:
            limit = min(_CHUNK_BYTES, size - got)
            if how.rate is not None and got >= how.after:
                began = began or time.monotonic()
                await asyncio.sleep(_STEP_S)
                limit = int(how.rate * (time.monotonic() - began)) - (got - how.after)
            elif how.rate is not None:
                limit = min(limit, how.after - got)
            if limit <= 0:
                continue
            count = await loop.sock_recv_into(client, buffer[: min(limit, size - got, _CHUNK_BYTES)])
            if not count:
                raise ConnectionAbortedError
            digest.update(buffer[:count])
            got += count
            await asyncio.sleep(0)  # the loop goes on reading where there is something: others get their turn
        return f'"{digest.hexdigest()}"', bytearray(rest[size:])

    def _answer(
        self, method: str, request: Request, headers: dict[str, str], etag: str
    ) -> tuple[int, dict[str, str], bytes]:
        name, _, query = request.target.partition("?")
        given = {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
        if method == "POST" and "uploads" in given:
            id_ = f"upload{len(self._etags)}"
            self._etags[id_] = {}
            body = f"<InitiateMultipartUploadResult><UploadId>{id_}</UploadId></InitiateMultipartUploadResult>"
            return 200, {}, body.encode()
        if method == "POST" and "uploadId" in given:
            parts = self._etags[given["uploadId"]]
            joined = b"".join(bytes.fromhex(etag.strip('"')) for _, etag in sorted(parts.items()))
            whole = f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
            self.stored[name] += 1
            body = f"<CompleteMultipartUploadResult><ETag>{whole}</ETag></CompleteMultipartUploadResult>"
            return 200, {}, body.encode()
        if method == "PUT":
            self.addresses[request.connection.address] += 1
            if "partNumber" in given:
                self._etags[given["uploadId"]][int(given["partNumber"])] = etag
                self.stored[f"{name}#{given['partNumber']}"] += 1
            else:
                self.stored[name] += 1
                meta = [f"{key}: {text}" for key, text in headers.items() if re.match("x-amz-meta-", key)]
                self._metadata[name] = [f"ETag: {etag}", f"Content-Length: {request.size}", *meta]
            return 200, {"ETag": etag}, b""
        if method == "HEAD":
            if name not in self._metadata:
                return 404, {}, b""
            return 200, {key: text for key, _, text in (line.partition(": ") for line in self._metadata[name])}, b""
        return refusal(403, "AccessDenied")


@contextmanager
def counting(addresses: Sequence[str] = ("127.0.0.1",)) -> Iterator[tuple[Store, S3Server]]:
    """Run the store on these addresses, at one port; yield it, and how it is reached at the first of them."""
    (port,) = free_ports(1)
    made = Store()
    with loop_in_thread("counting store") as loop:
        listeners = [socket.create_server((address, port), backlog=1024) for address in addresses]
        serving = [asyncio.run_coroutine_threadsafe(made.listen(listener), loop) for listener in listeners]
        try:
            yield made, S3Server(f"http://{addresses[0]}:{port}", "testkey", "testsecret")
        finally:
            for task in serving:
                task.cancel()
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result(5)
