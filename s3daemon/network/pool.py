"""All connections to the store; each is used by one request at a time, and the best idle one is handed out first.

A few more exist than uploads can use at once, so that those which the keeper uses or opens are not missed. An upload
that sends much gets the connection with the widest congestion window, one that sends little the narrowest, which is as
good for it; connections that are open and lead to an enabled address come before all others. Among these, one over
which the last request failed comes last: behind one address there may be several gateways, of which a balancer has
given it the one that is broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from enum import Enum

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.model.record import MessageId, Priority
from s3daemon.network.addresses import Addresses
from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.small_request import SMALL_REQUESTS
from s3daemon.network.lookup import NameLookup
from s3daemon.network.rate.bandwidth import Bandwidth
from s3daemon.network.rate.pacing import Pacer
from s3daemon.network.tls import Certificates, tls_context
from s3daemon.units import span

_log = logging.getLogger(__name__)

#: One connection is in reserve for this many that uploads can use. The keeper works on no more than the reserve.
CONNECTIONS_PER_RESERVE = 6
#: An upload tries out an address that is on trial while so many others are in progress: if it gets no answer there, but
#: they do, it is moved within seconds.
TRIAL_BESIDE = 2


class Load(Enum):
    """What a request sends, which decides over which connection it goes."""

    NO_BODY = "nothing, so that without an answer it is not moved to another connection"
    SMALL_BODY = "a file so small that it is over before the window of its connection matters"
    LARGE_BODY = "a larger file, or a part of one"


class ConnectionPool:
    """The connections to one endpoint.

    Args:
        settings: endpoint, timeouts, number of connections.
        clock: monotonic seconds.
        reserve: how many there are beyond what uploads can use; by default one for each `CONNECTIONS_PER_RESERVE`.
        tls: of these settings, where it is made already.
        opened: the connections that the pool made in whose place this one comes.

    Attributes:
        pacer: shares the bandwidth among them.
        bandwidth: the limit in force; none before `Bandwidth.use`.
        addresses: where they may lead.
        names: looks up which these are.
        certificates: those that the store showed.
        url: of the endpoint.
        small_request: the method of the request for `/` that keeps a connection open, as the keeper found out; empty
            when none does.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock = time.monotonic,
        *,
        reserve: int | None = None,
        tls: ssl.SSLContext | None = None,
        opened: int = 0,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self.url = URL(settings.endpoint_url)
        self._tls = tls or tls_context(settings)
        self.certificates = Certificates(clock)
        if self._tls is not None:
            self.certificates.watch(self._tls)
        self.pacer = Pacer(settings.bwlimit_bps or 0)
        self.bandwidth = Bandwidth(self.pacer, clock)
        self.addresses = Addresses(clock, _log_disabled, _log_enabled)
        self.names = NameLookup(settings, self.addresses, clock)
        self._warnings: set[str] = set()
        self.reserve = -(-settings.max_connections // CONNECTIONS_PER_RESERVE) if reserve is None else reserve
        self.small_request = SMALL_REQUESTS[0]
        self._all = [self.new_connection() for _ in range(settings.max_connections + self.reserve)]
        self._free = list(self._all)  # from the one used longest ago to the one used last
        self._in_maintenance: set[Connection] = set()  # free, but the keeper is using them; they keep their place
        self._waiting: list[asyncio.Future[None]] = []
        self._opened_before = opened
        self._closing: set[asyncio.Task[None]] = set()

    def new_connection(self) -> Connection:
        """Make a connection that is not open and not in the pool."""
        return Connection(self._settings, self._tls, self.pacer, self._clock, self._warn)

    def _warn(self, text: str) -> None:
        if text not in self._warnings:  # once, not for every socket
            self._warnings.add(text)
            _log.warning("%s", text)

    @property
    def limit(self) -> int:
        """The number of connections, open or not."""
        return len(self._all)

    @property
    def usable(self) -> int:
        """The number of connections that uploads can use at once."""
        return self.limit - self.reserve

    @property
    def open_count(self) -> int:
        """The number of connections that are open."""
        return sum(connection.is_open for connection in self._all)

    @property
    def opened(self) -> int:
        """How many connections were made, by the pools before this one too."""
        return self._opened_before + sum(connection.opened for connection in self._all)

    @property
    def rtt_s(self) -> float:
        """The least smoothed round-trip time of the open connections, seconds; 0 while none is known."""
        return min((each.rtt_usec for each in self._all if each.is_open and each.rtt_usec), default=0) / 1e6

    @property
    def in_use(self) -> int:
        """The number of connections that were acquired and not yet released."""
        return len(self._all) - len(self._free)

    def idle(self) -> list[Connection]:
        """Return the connections that can be acquired, from the one used longest ago to the one used last."""
        return [connection for connection in self._free if connection not in self._in_maintenance]

    @property
    def available_for_parts(self) -> int:
        """How many the further parts of large files may take: those idle beyond half of the usable ones.

        0 while an upload waits for a connection.
        """
        idle = len(self.idle()) - self.reserve
        return 0 if self._waiting else max(0, idle - (self.usable - self.usable // 2))

    def has_spare(self, window: int = 0) -> bool:
        """Return whether an open connection to an enabled address is idle that can have `window` bytes in flight."""
        open_ = [each for each in self.idle() if each.is_open and each.window >= window]
        return any(self.addresses.is_enabled(each.address) for each in open_)

    def per_address(self) -> Counter[str]:
        """Count the connections that lead to each address, or are about to."""
        idle = set(self.idle())
        return Counter(connection.address for connection in self._all if connection.is_open or connection not in idle)

    def open_per_address(self) -> Counter[str]:
        """Count the open connections to each address, of the enabled ones also where there is none."""
        found = Counter(dict.fromkeys(self.addresses.enabled, 0))
        found.update(connection.address for connection in self._all if connection.is_open)
        return found

    def index(self, connection: Connection) -> int:
        """Return its place among all, from 0; the connection that replaces it gets the same."""
        return self._all.index(connection)

    @contextlib.asynccontextmanager
    async def acquire(self, load: Load = Load.NO_BODY, avoid: Collection[str] = ()) -> AsyncIterator[Connection]:
        """Hand out a connection for the time of the context, after waiting until one is idle.

        Args:
            load: what will be sent over it.
            avoid: addresses not to use if another one is enabled.

        Raises:
            OSError: the endpoint's name does not resolve.
        """
        while not (idle := self.idle()):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake_one()  # the connection for which this one was woken must not be forgotten
                raise
            finally:
                self._waiting.remove(waiter)
        connection = self._best(idle, load, avoid)
        self._free.remove(connection)
        try:
            await self.assign_address(connection, avoid)
            yield connection
        finally:
            self._free.append(connection)
            if connection.is_open and not self.addresses.keeps(connection.address):
                self.replace(connection)  # the store is about to close it: what would be sent over it next is lost
            self._wake_one()

    def _best(self, idle: list[Connection], load: Load, avoid: Collection[str]) -> Connection:
        preferred = [each for each in idle if each.is_open and self._is_preferred(each, avoid)]
        if preferred:
            tries_out = load is Load.SMALL_BODY and self.in_use >= TRIAL_BESIDE

            def rank(each: Connection) -> tuple[bool, bool, int]:
                is_trial = tries_out and self.addresses.awaits_upload(each.address)
                return not each.has_failed, is_trial, each.window if load is Load.LARGE_BODY else -each.window

            return max(reversed(preferred), key=rank)
        closed = next((each for each in reversed(idle) if not each.is_open), None)
        if closed is None and self.addresses.has_alternative(avoid):
            closed = self.replace(idle[-1])
        return closed or idle[-1]

    def _is_preferred(self, connection: Connection, avoid: Collection[str]) -> bool:
        if connection.address in avoid and self.addresses.has_alternative(avoid):
            return False
        return self.addresses.is_enabled(connection.address)

    def _wake_one(self) -> None:
        waiter = next((waiter for waiter in self._waiting if not waiter.done()), None)
        if waiter is not None:
            waiter.set_result(None)

    @contextlib.contextmanager
    def maintain(self, connection: Connection) -> Iterator[None]:
        """Keep an idle connection from being acquired; it keeps its place in the order of use."""
        self._in_maintenance.add(connection)
        try:
            yield
        finally:
            self._in_maintenance.remove(connection)
            self._wake_one()

    def replace(self, connection: Connection) -> Connection:
        """Close an idle connection and return the new one, not yet open, that takes its place."""
        new = self.new_connection()
        for connections in (self._all, self._free):
            connections[connections.index(connection)] = new
        self._opened_before += connection.opened
        closing = asyncio.create_task(connection.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        return new

    def fell_silent(self, address: str) -> None:
        """Replace idle connections to an address where an upload has stalled, but those that were answered meanwhile.

        A firewall or NAT that has lost its state drops all connections alike without a word; new ones pass.
        """
        since = self._clock() - self._settings.stall_timeout_s
        for connection in self.idle():
            if connection.is_open and connection.address == address and connection.used_at < since:
                self.replace(connection)

    async def assign_address(self, connection: Connection, avoid: Collection[str] = ()) -> None:
        """Give a connection that is not open the address to connect to, and the others to fall back on.

        Raises:
            OSError: the endpoint's name does not resolve.
        """
        if not connection.is_open:
            await self.names.resolve()
            connection.set_addresses(self.addresses.in_order(self.per_address(), avoid))

    async def close(self) -> None:
        """Close every connection."""
        self.bandwidth.close()
        await asyncio.gather(*self._closing, *(connection.close() for connection in self._all))


def _log_disabled(address: str, reason: str, next_probe_s: float, has_answered: bool) -> None:
    fields = {
        "MESSAGE_ID": MessageId.ADDRESS_DISABLED.value,
        "S3DAEMON_RECEIVER": address,
        "S3DAEMON_DELAY_USEC": round(next_probe_s * 1e6),
    }
    level = logging.WARNING if has_answered else logging.INFO  # one that never answered is no news at each start
    text = "address %s of the store is temporarily disabled: %s; next asked in %s"
    _log.log(level, text, address, reason, span(next_probe_s), extra={"journal": fields})


def _log_enabled(address: str, disabled_s: float) -> None:
    fields = {"MESSAGE_ID": MessageId.ADDRESS_ENABLED.value, "S3DAEMON_RECEIVER": address}
    text = "address %s of the store is enabled again; it was disabled for %s"
    _log.info(text, address, span(disabled_s), extra={"journal": fields | {"PRIORITY": int(Priority.NOTICE)}})
