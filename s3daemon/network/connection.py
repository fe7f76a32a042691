"""One connection to the store, with its own HTTP session.

It is an aiohttp session over a connector that holds a single connection, never expires it, and connects to the address
that was chosen for it. aiohttp's own pool hides its idle connections and hands them out first in, first out, so whether
they are warm could be neither seen nor influenced there; over 200 ms a handshake costs three round trips, and a fresh
congestion window many more.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.network import tcp
from s3daemon.network.rate.pacing import Pacer

#: More of an answer is not read, nor decoded: the longest that S3 gives to what is asked here, a list of 1 000 parts,
#: has about 500 kB; a server that goes on for ever would fill the memory, at gigabytes within seconds.
ANSWER_MAX_BYTES = 1 << 20
#: A header of an answer may be as long; aiohttp's own limit of 8 kB makes good answers unreadable.
_HEADER_MAX_BYTES = 1 << 16
#: What an answer raises that arrived and cannot be read: a header too long, a body cut short or too long.
UNREADABLE = (aiohttp.ClientResponseError, aiohttp.ClientPayloadError)


class AnswerTooLongError(aiohttp.ClientPayloadError):
    """An answer of more than `ANSWER_MAX_BYTES`."""


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """A whole answer.

    Args:
        url: of the request.
        status: the HTTP status.
        raw_headers: as they came.
        body: all of it.
    """

    url: URL
    status: int
    raw_headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    async def read(self) -> bytes:
        """Return the body; what aiobotocore calls."""
        return self.body


class _FixedResolver(AbstractResolver):
    """Resolves any name to the addresses that it was given, in their order."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in self.addresses
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


class _Connector(aiohttp.TCPConnector):
    """Closes an idle connection over which something has come: it would be taken for the answer to the next request."""

    async def connect(self, *args: Any, **named: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **named)
        if connection.protocol is None or not connection.protocol.should_close:
            return connection
        connection.close()
        return await super().connect(*args, **named)


class Connection:
    """One connection to the store, open or not yet; it opens again by itself when a request finds it closed.

    Args:
        settings: timeouts and congestion control.
        tls: shared by all connections; None for plain HTTP.
        pacer: shares the bandwidth among all connections.
        clock: monotonic seconds.
        warn: called with what the kernel refuses, in one line.

    Attributes:
        opened: how often it connected.
        requests: how many it was given.
        used_at: monotonic seconds of its last answer, or of its making.
        answered: the present connection, or the last one, has carried an answer.
        narrowed: losses made its window narrow, while too much was sent over all connections.
        has_failed: the last request over the present connection failed as it may not over another one.
        persistent: the server kept the connection after its last answer, as far as that said.
        window: bytes that could be in flight after its last answer.
        rtt_usec: the smoothed round-trip time then, microseconds; 0 before the first answer.
        address: where it leads, or is about to; empty before the first.
    """

    def __init__(
        self,
        settings: Settings,
        tls: ssl.SSLContext | None,
        pacer: Pacer,
        clock: Clock,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.pacer = pacer
        self.opened = 0
        self.requests = 0
        self.used_at = clock()
        self.answered = False
        self.narrowed = False
        self.has_failed = False
        self.persistent = True
        self.window = 0
        self.rtt_usec = 0
        self.address = ""
        self._failed_addresses: list[str] = []
        self._clock = clock
        self._settings = settings
        self._warn = warn
        self._sock: socket.socket | None = None
        self._resolver = _FixedResolver()
        connector = _Connector(
            limit=1,
            keepalive_timeout=None,
            resolver=self._resolver,
            use_dns_cache=False,
            happy_eyeballs_delay=None,  # one address after the other, so that the socket made last is the one in use
            ssl=tls if tls is not None else True,
            socket_factory=self._make_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # aiohttp's own is "gzip, deflate". Of what comes compressed all the same, `auto_decompress` leaves the
            # decoding to the caller, who knows how much to take.
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            max_field_size=_HEADER_MAX_BYTES,
        )

    def _make_socket(self, info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        sock = tcp.StoreSocket(family, kind, proto)  # without a descriptor no address is to blame
        if address[0] != self.address:
            self._failed_addresses.append(self.address)
        self.address = address[0]
        sock.setblocking(False)
        # An upload's stall watch acts sooner; this is for what is not watched.
        tcp.prepare(sock, user_timeout_s=2 * self._settings.stall_timeout_s + 10)
        if refused := tcp.choose_congestion(sock, self._settings.congestion):
            self._warn(refused)
        self.pacer.prepare(sock)
        self._sock = sock
        self.opened += 1
        self.answered = self.narrowed = self.has_failed = False
        return sock

    @property
    def is_open(self) -> bool:
        """Whether the connection is open; False from the moment that the server's close was read."""
        return self._sock is not None and self._sock.fileno() >= 0

    @property
    def is_paced(self) -> bool:
        """Whether what it carries next goes out at the pacer's rate, or there is no limit."""
        if not self.pacer.limit_bps:
            return True
        return self._sock is not None and self.is_open and tcp.TcpInfo.of(self._sock).packets >= tcp.UNPACED_PACKETS

    def set_addresses(self, addresses: list[str]) -> None:
        """Choose where it connects next: to the first of `addresses` that accepts."""
        self._resolver.addresses = addresses
        self.address = addresses[0]

    def pop_failed_addresses(self) -> list[str]:
        """Return the addresses that did not accept the connection since the last call."""
        found, self._failed_addresses = self._failed_addresses, []
        return found

    def acked_bytes(self) -> int:
        """Return the bytes that the peer acknowledged on the present connection; 0 when it is not open."""
        if self._sock is None or not self.is_open:
            return 0
        return tcp.TcpInfo.of(self._sock).acked

    async def request(self, method: str, url: str, headers: Mapping[str, str], data: Any) -> StoreAnswer:
        """Send one request, opening the connection if need be, and read the answer whole.

        Redirects come back as they are: following one would carry the file to another host.

        Raises:
            aiohttp.ClientError, OSError: what went wrong on the way; one of `UNREADABLE` when an answer
                came that is no HTTP or longer than `ANSWER_MAX_BYTES`, which ends the connection.
        """
        self.requests += 1
        try:
            response = await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False
            )
            body = await self._read(response)
        except UNREADABLE:
            self._note_answer(persistent=False)
            raise
        wants_close = response.headers.get("Connection", "").lower() == "close"
        self._note_answer(persistent=not wants_close and response.version == aiohttp.HttpVersion11)
        if not self.persistent:
            await self.settle()
        return StoreAnswer(response.url, response.status, response.raw_headers, body)

    def _note_answer(self, *, persistent: bool) -> None:
        self.used_at = self._clock()
        self.answered = True
        self.persistent = persistent
        if self._sock is not None and self.is_open:
            info = tcp.TcpInfo.of(self._sock)
            self.window, self.rtt_usec = info.window, info.rtt_usec

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body, transport = bytearray(), response.connection.transport if response.connection is not None else None
        try:
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > ANSWER_MAX_BYTES:
                    self.abort(tcp.tcp_transport_of(transport) if transport is not None else None)
                    text = f"its status is {response.status}, and its body is longer than {ANSWER_MAX_BYTES >> 20} MiB"
                    raise AnswerTooLongError(text)
            await response.read()  # nothing is left; it waits until the connection can be used again
        except BaseException:
            response.close()
            await self.settle()
            raise
        return bytes(body)

    def abort(self, transport: asyncio.BaseTransport | None) -> None:
        """End the connection so that nothing of what was written and is not yet acknowledged can still arrive.

        Args:
            transport: that of the request to end; None when it never got as far as writing.
        """
        if self._sock is not None and self.is_open:
            with contextlib.suppress(OSError):
                tcp.reset_on_close(self._sock)
        sock = transport.get_extra_info("socket") if transport is not None else None
        if isinstance(transport, asyncio.WriteTransport) and sock is not None and sock.fileno() >= 0:
            transport.abort()  # Python 3.11 fails where it has sent the rest after a close, and is over

    async def settle(self) -> None:
        """Let a close or abort take effect: asyncio closes the socket in its next round, aiohttp hears of it later."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Close the connection for good."""
        await self._session.close()
