"""A proxy in front of a real store: it treats each PUT by a script, and forwards everything else unchanged.

It runs in a thread of its own, plain or with TLS. A PUT is treated by a `scripted.Script`, as by the scripted server;
`passing` forwards it unchanged, and most others do something before, after or instead of that. The signature is still
valid at the store: host, target and headers are forwarded as they arrived.

    with proxy(seaweed) as between:
        between.scripts.append(reset_after(1000))
        ...
    assert between.whole["/bucket/key"] == 1
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

import aiohttp
from yarl import URL

from lab.accepting import loop_in_thread, serve_each
from lab.certs import Authority
from lab.env import free_ports
from lab.s3 import S3Server
from lab.scripted import Exchange, Script, Scripted

_RECEIVE_BYTES = 64 * 1024
"""Receive buffer: small, so that only a part of a body of a MiB is acknowledged unless a script reads."""
_LINE_BYTES = 64 * 1024
_SIGNATURE = re.compile(r"Signature=([0-9a-f]{64})")
#: The headers of the store's answer that are forwarded; others belong to its connection.
_ANSWER_HEADERS = ("ETag", "Content-Type", "Content-Length", "Retry-After", "Last-Modified")


class Proxy:
    """The proxy. Made by ``proxy``; its methods may be called from any thread.

    Attributes:
        scripts: those of the next PUTs, in their order; after that `choose` decides.
        choose: returns the script of a PUT; by default all pass.
        completing: returns the script of a completion of an upload in parts; by default all pass.
        neutral: the script of signed requests that concern no bucket; by default they pass.
        whole: numbers of PUTs of which the store got the whole body and answered that it is stored, by target.
        signatures: all signatures that were seen.
        alert: the bytes that every client gets instead of a handshake; None: a handshake.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        port: int,
        store: S3Server,
        tls: ssl.SSLContext | None,
        addresses: Sequence[str],
    ) -> None:
        """Prepare it; it listens from ``open`` on."""
        self._addresses = addresses
        self.store = store
        self.scripts: deque[Script] = deque()
        self.choose: Callable[[Exchange], Script] = lambda _: passing
        self.completing: Callable[[Exchange], Script] = lambda _: passing
        self.neutral: Script = passing
        self.whole: Counter[str] = Counter()
        self.signatures: set[str] = set()
        self.alert: bytes | None = None
        self.tls = tls
        self._loop = loop
        self._port = port
        self._scripted = Scripted(self._put, self._other)
        self._scripted.proxy = self  # type: ignore[attr-defined]  # `_proxy_of` gets no more than this
        self._listening: dict[str, asyncio.Task[None]] = {}
        self._accepted: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Start to listen."""
        self._do(self._open())

    def refuse(self, *addresses: str) -> None:
        """Stop to listen, and close all connections; of these addresses, or of all."""
        self._do(self._refuse(addresses or self._addresses))

    def close_idle(self) -> None:
        """Close every connection without a request in progress, as a server with a short keep-alive timeout does."""
        self._do(self._close_idle())

    def _do(self, action: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _open(self) -> None:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=64)
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        for address in set(self._addresses) - set(self._listening):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            listener.bind((address, self._port))
            listener.listen(1024)
            serving = serve_each(listener, self._serve_client, self._accepted)
            self._listening[address] = self._loop.create_task(serving)

    async def _serve_client(self, client: socket.socket) -> None:
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        if self.alert is not None:
            with client, contextlib.suppress(OSError):
                await self._loop.sock_recv(client, _LINE_BYTES)
                await self._loop.sock_sendall(client, self.alert)
            return
        try:
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, client, ssl=self.tls)
        except (OSError, ssl.SSLError):
            client.close()  # some tests are about handshakes that fail
            return
        kept = [connection for connection in self._scripted.connections if connection.open]
        self._scripted.connections[:] = kept  # forget those that are closed
        self._scripted.take(reader, asyncio.StreamWriter(transport, protocol, reader, self._loop))

    async def _refuse(self, addresses: Sequence[str]) -> None:
        for address in set(addresses) & set(self._listening):
            listening = self._listening.pop(address)
            listening.cancel()
            await asyncio.wait({listening})
        for connection in self._scripted.open_connections:
            if connection.writer.get_extra_info("sockname", ("",))[0] in (*addresses, ""):
                connection.reset()

    async def _close_idle(self) -> None:
        busy = {exchange.connection for exchange in self._scripted.seen}
        for connection in self._scripted.open_connections:
            if connection not in busy:
                connection.close()

    async def close(self) -> None:
        """Stop for good; raises what a script raised."""
        await self._refuse(self._addresses)
        for task in self._accepted:
            task.cancel()
        await asyncio.gather(*self._accepted, return_exceptions=True)
        try:
            await self._scripted.close()
        finally:
            if self._session is not None:
                await self._session.close()

    async def _put(self, exchange: Exchange) -> None:
        await self._treat(exchange, self.scripts.popleft() if self.scripts else self.choose(exchange))

    async def _other(self, exchange: Exchange) -> None:
        is_neutral = "authorization" in exchange.headers and exchange.target.partition("?")[0] == "/"
        is_completion = exchange.method == "POST" and "uploadId=" in exchange.target
        script = self.completing(exchange) if is_completion else passing
        await self._treat(exchange, self.neutral if is_neutral else script)

    async def _treat(self, exchange: Exchange, script: Script) -> None:
        self.signatures.update(_SIGNATURE.findall(exchange.headers.get("authorization", "")))
        try:
            await script(exchange)
        finally:
            self._scripted.seen.remove(exchange)  # and its body with it: a soak test passes gigabytes

    async def forward(self, exchange: Exchange, body: bytes | None = None) -> tuple[int, Mapping[str, str], bytes]:
        """Send what was read of a request to the store, or another body instead; return status, headers and body."""
        assert self._session is not None
        whole = exchange.method == "PUT" and exchange.whole and body is None
        data = bytes(exchange.body) if body is None else body
        headers = {name: value for name, value in exchange.headers.items() if name != "content-length"}
        async with self._session.request(
            exchange.method,
            URL(self.store.url + exchange.target, encoded=True),
            headers=headers,
            data=data if exchange.method in ("PUT", "POST") else None,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
            allow_redirects=False,
        ) as answer:
            content = await answer.read()
            if whole and answer.status == 200:
                self.whole[exchange.target] += 1
            return answer.status, answer.headers, content


def _proxy_of(exchange: Exchange) -> Proxy:
    found: Any = exchange.server
    made: Proxy = found.proxy
    return made


async def carried(exchange: Exchange, body: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
    """Read the whole request and have the store carry it out; return its answer, for a script to use."""
    await exchange.read()
    status, given, content = await _proxy_of(exchange).forward(exchange, body)
    named = {name: given[name] for name in _ANSWER_HEADERS if name in given}
    named |= {name: value for name, value in given.items() if name.lower().startswith("x-amz-")}
    if exchange.method != "HEAD":
        named["Content-Length"] = str(len(content))
    return status, named, content


async def passing(exchange: Exchange) -> None:
    """Forward the request, and the answer."""
    status, headers, content = await carried(exchange)
    await exchange.answer(status, content, headers=headers)


def kept_then(script: Script) -> Script:
    """Have the store keep the object, and then run the script on the whole request."""

    async def after(exchange: Exchange) -> None:
        await carried(exchange)
        await script(exchange)

    return after


@contextlib.contextmanager
def proxy(
    store: S3Server, authority: Authority | None = None, *, addresses: Sequence[str] = ("127.0.0.1",)
) -> Iterator[tuple[Proxy, S3Server]]:
    """Run a proxy in front of a store; yield it, and the store as it is reached through it.

    Args:
        store: reached over plain HTTP: that side is not part of any test.
        authority: issues the certificate for the daemon's side; without one that is plain HTTP too.
        addresses: where it listens; with several the endpoint's name is ``store.invalid``, for a daemon that is given
            them as its receivers.
    """
    (port,) = free_ports(1)
    tls = authority.issue(f"proxy{port}").context() if authority else None
    scheme, host, ca = ("https", "localhost", authority.ca) if authority else ("http", "127.0.0.1", None)
    host = host if len(addresses) == 1 else "store.invalid"
    with loop_in_thread("proxy") as loop:
        made = Proxy(loop, port, store, tls, addresses)
        try:
            made.open()
            yield made, S3Server(f"{scheme}://{host}:{port}", store.access_key, store.secret_key, ca)
        finally:
            asyncio.run_coroutine_threadsafe(made.close(), loop).result(10)
