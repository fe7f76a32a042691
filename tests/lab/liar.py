"""A store that misbehaves as a plan says, on one address or more, and keeps the history that it is judged by.

It lives in the caller's event loop. Each destination has scripts: what to do with its next PUT, look-up, part,
creation, completion or list of parts; a `constant` behaviour applies to all requests of an operation. Without either,
the store is an honest S3 server that checks no signature. Behaviours are plain values, so that a plan can be written to
a file.

A store cannot do everything: it keeps only what it took, and it has no ETag of what it does not keep. Nothing on the
wire would tell from the truth an answer that claims the right ETag for an object that is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import socket
import struct
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import md5
from urllib.parse import unquote

from lab.accepting import serve_each
from lab.assembly import Assembly
from lab.env import free_ports

#: What an endless answer has at most: far more than any client may take.
ENDLESS_BYTES = 300 << 20
HTML = b"<html><body>Please log in to the guest network.</body></html>"
_PIECE_BYTES = 1 << 16


class Keep(StrEnum):
    """What is kept of a body, or done of an operation."""

    NOTHING = "nothing"
    FLIPPED = "flipped"
    WHOLE = "whole"


class Tag(StrEnum):
    """The ETag of an answer."""

    NONE = "none"
    TRUE = "true"
    WRONG = "wrong"
    EMPTY = "empty"
    PARTS = "another number of parts"


class Body(StrEnum):
    """The body of an answer; any other text is the code of an S3 error."""

    OWN = ""
    NONE = "none"
    HTML = "html"
    GARBAGE = "garbage"
    LARGE = "4 MB of html"


class End(StrEnum):
    """How an exchange ends."""

    ANSWER = "answer"
    ANSWER_AND_CLOSE = "answer and close"
    CLOSE = "close"
    RESET = "reset"
    HALF = "half an answer"
    SILENCE = "silence"
    ENDLESS = "endless answer"


@dataclass(frozen=True)
class Behaviour:
    """What the store does with one request.

    Args:
        take: the share of the body that is read first; less than 1 goes with nothing kept.
        keep: what is kept of it.
        status: of the answer.
        tag: its ETag.
        body: its body, see `Body`.
        gzip: the body is compressed.
        end: how the exchange ends.
        twice: it is carried out twice, as by a proxy that sends a request again; the second answer counts.
        header_bytes: length of a header that says nothing.
        waits_s: seconds before it is carried out, and once more before it is answered.
    """

    take: float = 1.0
    keep: str = Keep.WHOLE
    status: int = 200
    tag: str = Tag.TRUE
    body: str = Body.OWN
    gzip: bool = False
    end: str = End.ANSWER
    twice: bool = False
    header_bytes: int = 0
    waits_s: float = 0.0

    def possible(self) -> Behaviour:
        """The same, as far as a store can."""
        keep = self.keep if self.take == 1.0 else Keep.NOTHING
        tag = Tag.NONE if keep == Keep.NOTHING and self.tag == Tag.TRUE else self.tag
        if keep != Keep.WHOLE and tag == Tag.PARTS:  # of one PUT, it is an ETag that need not be an MD5 sum
            tag = Tag.WRONG
        return replace(self, keep=str(keep), tag=str(tag))


@dataclass(frozen=True)
class Kept:
    """An object in the store."""

    md5: str
    size: int
    metadata: Mapping[str, str]
    etag: str


@dataclass
class Destination:
    """What a store does to one destination's requests, and what it has of it."""

    scripts: dict[str, deque[Behaviour]] = field(default_factory=dict)
    constant: dict[str, Behaviour] = field(default_factory=dict)
    kept: Kept | None = None


class Death(StrEnum):
    """How an address is dead."""

    REFUSED = "refused"
    RESET = "reset"
    SILENT = "silent"


@dataclass
class Request:
    """A request as it arrived, and its connection."""

    method: str
    name: str
    query: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", "0"))

    @property
    def operation(self) -> str:
        """What it asks for, as in a plan."""
        if "/" not in self.name:
            return "neutral" if "authorization" in self.headers else "small"
        in_upload = "uploadId=" in self.query
        table = {
            "PUT": ("put", "part"),
            "POST": ("create", "complete"),
            "GET": ("get", "list"),
            "HEAD": ("head", "head"),
        }
        return table.get(self.method, ("other", "abort"))[in_upload]


class LyingStore:
    """The store. Made by `lying_store`.

    Args:
        addresses: where it listens, on one port.

    Attributes:
        destinations: by bucket/key.
        constant: behaviours that apply to all requests of an operation, whatever the destination.
        attempts: when PUTs and creations came, monotonic seconds, by the transfer's id.
        history: what it has kept, in order: monotonic seconds, bucket/key, the transfer's id, MD5 sum.
    """

    def __init__(self, addresses: Iterable[str], port: int) -> None:
        self.destinations: defaultdict[str, Destination] = defaultdict(Destination)
        self.constant: dict[str, Behaviour] = {}
        self.attempts: defaultdict[str, list[float]] = defaultdict(list)
        self.history: list[tuple[float, str, str, str]] = []
        self.port = port
        self.assembly = Assembly(self._assembled)
        self._addresses = list(addresses)
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._dead: dict[str, str] = {}
        self._serving: set[asyncio.Task[None]] = set()
        self._writers: dict[asyncio.StreamWriter, str] = {}

    def be_honest(self) -> None:
        """Misbehave no more."""
        self.constant.clear()
        for destination in self.destinations.values():
            destination.scripts.clear()
            destination.constant.clear()

    async def revive(self, addresses: Iterable[str] | None = None) -> None:
        """Serve on these addresses, or all. A host that is back knows nothing of connections that it swallowed."""
        for address in self._addresses if addresses is None else addresses:
            if self._dead.pop(address, None) == Death.SILENT:
                self._reset(address)
            if address not in self._listening:
                listener = socket.create_server((address, self.port), backlog=1024)
                serve = functools.partial(self._serve, address=address)
                self._listening[address] = asyncio.create_task(serve_each(listener, serve, self._serving))

    async def kill(self, addresses: Iterable[str] | None = None, how: str = Death.REFUSED) -> None:
        """Serve no more on these addresses, or all; end their connections."""
        for address in self._addresses if addresses is None else addresses:
            self._dead[address] = how
            if how == Death.REFUSED and address in self._listening:
                task = self._listening.pop(address)
                task.cancel()
                await asyncio.wait({task})
            self._reset(address)

    def _reset(self, address: str) -> None:
        for writer, at in list(self._writers.items()):
            if at == address:
                _reset(writer)

    async def close(self) -> None:
        """End everything."""
        await self.kill()
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _serve(self, client: socket.socket, address: str) -> None:
        reader, writer = await asyncio.open_connection(sock=client, limit=_PIECE_BYTES)
        self._writers[writer] = address
        try:
            death = self._dead.get(address)
            # What the peer may do at any time is no fault.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if death == Death.SILENT:
                    await reader.read(-1)
                if death is not None:
                    _reset(writer)
                while death is None and not writer.is_closing() and await self._serve_one(reader, writer):
                    pass
        finally:
            del self._writers[writer]
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        method, target, _ = head.split(" ")
        headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines)}
        path, _, query = target.partition("?")
        request = Request(method, unquote(path)[1:], query, headers, reader, writer)
        operation = request.operation
        if operation in ("put", "create"):
            self.attempts[headers.get("x-amz-meta-s3daemon-id", "")].append(time.monotonic())
        return await self._treat(request, self._choose(request.name, operation))

    def _choose(self, name: str, operation: str) -> Behaviour:
        if operation in self.constant:
            return self.constant[operation]
        if operation in ("neutral", "small"):
            return Behaviour()
        destination = self.destinations[name]
        script = destination.scripts.get(operation)
        return script.popleft() if script else destination.constant.get(operation, Behaviour())

    async def _treat(self, request: Request, plan: Behaviour) -> bool:
        """Act on one request; return whether another may follow."""
        wanted = request.length if plan.take == 1.0 else int(request.length * plan.take)
        body = bytearray()
        while len(body) < wanted:
            piece = await request.reader.read(min(_PIECE_BYTES, wanted - len(body)))
            if not piece:
                return False
            body += piece
        await asyncio.sleep(plan.waits_s)
        status, headers, content = self._carry_out(request, bytes(body), plan)
        await asyncio.sleep(plan.waits_s)
        kept = await self._end(request, plan, status, headers, content)
        return kept and wanted == request.length

    def _carry_out(self, request: Request, body: bytes, plan: Behaviour) -> tuple[int, dict[str, str], bytes]:
        """Do what the plan keeps of an operation; return the answer that belongs to the plan."""
        status, headers, content = plan.status, dict[str, str](), b""
        if plan.keep != Keep.NOTHING:
            before = self.destinations[request.name].kept
            for _ in range(2 if plan.twice else 1):
                honest = self._honest(request, body, plan)
            headers, content = honest[1], honest[2]
            after = self.destinations[request.name].kept
            if plan.keep == Keep.FLIPPED and request.operation == "complete" and after and after is not before:
                etag = f"{'0' * 32}-2"
                self.destinations[request.name].kept = replace(after, md5="flipped", etag=etag)
                content = content.replace(after.etag.encode(), etag.encode())
            if request.operation == "head" and plan.tag != Tag.TRUE:
                headers = {}  # the object of one transfer with the ETag of another one: no store has that
            status = honest[0] if plan.status == 200 else plan.status
        return status, self._tagged(headers, plan), self._body(content, plan)

    def _honest(self, request: Request, body: bytes, plan: Behaviour) -> tuple[int, dict[str, str], bytes]:
        if plan.keep == Keep.FLIPPED and body and request.operation in ("put", "part"):
            body = bytes([body[0] ^ 1]) + body[1:]
        made = self.assembly.answer(request.method, request.name, request.query, request.headers, body)
        if made is not None:
            return made
        if request.operation == "put":
            etag = md5(body, usedforsecurity=False).hexdigest()
            marks = {name: text for name, text in request.headers.items() if name.startswith("x-amz-meta-")}
            self._keep(request.name, Kept(etag, len(body), marks, etag))
            return 200, {"ETag": f'"{etag}"'}, b""
        if request.operation == "head":
            kept = self.destinations[request.name].kept
            if kept is None:
                return 404, {}, b""
            return 200, {"ETag": f'"{kept.etag}"', "Content-Length": str(kept.size), **kept.metadata}, b""
        if request.operation == "neutral":
            return 200, {}, b"<?xml version='1.0'?><ListAllMyBucketsResult></ListAllMyBucketsResult>"
        return 200, {}, b""

    def _tagged(self, headers: dict[str, str], plan: Behaviour) -> dict[str, str]:
        wrong = {Tag.EMPTY: '""', Tag.WRONG: f'"{"0123456789abcdef" * 2}"', Tag.PARTS: f'"{"0" * 32}-77"'}
        if plan.tag == Tag.TRUE:
            return headers
        without = {name: text for name, text in headers.items() if name != "ETag"}
        return without if plan.tag == Tag.NONE else without | {"ETag": wrong[Tag(plan.tag)]}

    def _body(self, own: bytes, plan: Behaviour) -> bytes:
        if plan.body == Body.OWN:
            if plan.tag == Tag.PARTS:
                return own.replace(b"-2&quot;", b"-77&quot;").replace(b"-1&quot;", b"-77&quot;")
            return own
        known = {Body.NONE: b"", Body.HTML: HTML, Body.GARBAGE: b"\x00\xff garbage", Body.LARGE: HTML * 66_000}
        if plan.body in known:
            return known[Body(plan.body)]
        text = f"<?xml version='1.0'?><Error><Code>{plan.body}</Code><Message>no</Message></Error>"
        return text.encode()

    async def _end(
        self, request: Request, plan: Behaviour, status: int, headers: dict[str, str], content: bytes
    ) -> bool:
        if plan.end not in (End.ANSWER, End.ANSWER_AND_CLOSE):
            await _break(request, plan.end, status)
            return False
        if plan.gzip and content:
            content, headers = gzip.compress(content), headers | {"Content-Encoding": "gzip"}
        if plan.header_bytes:
            headers = headers | {"X-Nothing": "x" * plan.header_bytes}
        if plan.end == End.ANSWER_AND_CLOSE:
            headers = headers | {"Connection": "close"}
        if status == 204:
            content = b""
        named = {"Content-Length": str(len(content))} | headers
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {text}" for name, text in named.items()), "", ""]
        await _write(request.writer, "\r\n".join(lines).encode() + (b"" if request.method == "HEAD" else content))
        return plan.end == End.ANSWER

    def _assembled(self, name: str, content: bytes, metadata: dict[str, str], etag: str) -> None:
        whole = md5(content, usedforsecurity=False).hexdigest()
        self._keep(name, Kept(whole, len(content), metadata, etag))

    def _keep(self, name: str, kept: Kept) -> None:
        self.destinations[name].kept = kept
        self.history.append((time.monotonic(), name, kept.metadata.get("x-amz-meta-s3daemon-id", ""), kept.md5))


async def _break(request: Request, end: str, status: int) -> None:
    """End an answer otherwise than whole."""
    writer = request.writer
    if end == End.RESET:
        _reset(writer)
    elif end == End.SILENCE:
        await request.reader.read(-1)
    elif end == End.HALF:
        await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: ")
    elif end == End.ENDLESS:
        await _write(writer, f"HTTP/1.1 {status} Whatever\r\nContent-Type: text/html\r\n\r\n".encode())
        for _ in range(ENDLESS_BYTES // _PIECE_BYTES):
            await _write(writer, HTML[:1] * _PIECE_BYTES)


async def _write(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(raw)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def port_for(addresses: Iterable[str]) -> int:
    """Return a port that is free on all of these addresses of 127/8."""
    while True:
        (port,) = free_ports(1)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for address in addresses:
                stack.enter_context(socket.create_server((address, port)))
            return port


@contextlib.asynccontextmanager
async def lying_store(addresses: Iterable[str], port: int) -> AsyncIterator[LyingStore]:
    """Run a store, honest and alive at first."""
    made = LyingStore(addresses, port)
    try:
        await made.revive()
        yield made
    finally:
        await made.close()
