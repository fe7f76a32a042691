"""One connection to the store, opened, used, watched and ended on its own.

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
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.network import tcp
from s3daemon.network.pacing import Pacer


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
        persistent: the server kept the connection after its last answer.
        window: bytes that could be in flight after its last answer.
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
        self.persistent = True
        self.window = 0
        self.address = ""
        self._failed_addresses: list[str] = []
        self._clock = clock
        self._settings = settings
        self._warn = warn
        self._sock: socket.socket | None = None
        self._resolver = _FixedResolver()
        connector = aiohttp.TCPConnector(
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
            auto_decompress=False,
        )

    def _make_socket(self, info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        if address[0] != self.address:
            self._failed_addresses.append(self.address)
        self.address = address[0]
        sock = socket.socket(family, kind, proto)
        sock.setblocking(False)
        # An upload's stall watch acts sooner; this is for what is not watched.
        tcp.prepare(sock, user_timeout_s=2 * self._settings.stall_timeout_s + 10)
        if refused := tcp.choose_congestion(sock, self._settings.congestion):
            self._warn(refused)
        self.pacer.prepare(sock)
        self._sock = sock
        self.opened += 1
        self.answered = False
        return sock

    @property
    def is_open(self) -> bool:
        """Whether it is connected; False from the moment that the server's close was read."""
        return self._sock is not None and self._sock.fileno() >= 0

    @property
    def is_paced(self) -> bool:
        """Whether what it carries next goes out at the pacer's rate, or there is no limit."""
        if not self.pacer.is_limited:
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

    async def request(self, method: str, url: str, headers: Mapping[str, str], data: Any) -> aiohttp.ClientResponse:
        """Send one request, opening the connection if need be, and read the answer whole.

        Redirects come back as they are: following one would carry the file to another host.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: what went wrong on the way.
        """
        self.requests += 1
        response = await self._session.request(
            method, URL(url, encoded=True), headers=headers, data=data, allow_redirects=False
        )
        await response.read()
        self.used_at = self._clock()
        self.answered = True
        if self._sock is not None and self.is_open:
            self.window = tcp.TcpInfo.of(self._sock).window
        wants_close = response.headers.get("Connection", "").lower() == "close"
        self.persistent = not wants_close and response.version == aiohttp.HttpVersion11
        return response

    def abort(self, transport: asyncio.BaseTransport | None) -> None:
        """End the connection so that nothing of what was written and is not yet acknowledged can still arrive.

        Args:
            transport: that of the request to end; None when it never got as far as writing.
        """
        if self._sock is not None and self.is_open:
            with contextlib.suppress(OSError):
                tcp.reset_on_close(self._sock)
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    async def close(self) -> None:
        """Close the connection for good."""
        await self._session.close()
