"""All lanes, lent to one user at a time, the best one first.

There are some more than uploads can use at once, so that those which the keeper touches or opens are not missed. Who
sends much gets the one with the widest congestion window, who sends little the narrowest, which is as good there; lanes
that stand open and lead to a receiver that serves go before all others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.model.record import MessageId
from s3daemon.network.addresses import Addresses
from s3daemon.network.connection import Connection
from s3daemon.network.pacing import Pacer

_log = logging.getLogger(__name__)

#: The endpoint's name is resolved again after this long, seconds.
RESOLVE_EVERY_S = 30.0
#: One more connection for so many. The keeper has these to work with and leaves as many as uploads can use.
CONNECTIONS_PER_RESERVE = 6


class ConnectionPool:
    """The connections to one endpoint.

    Args:
        settings: endpoint, timeouts, number of connections.
        clock: monotonic seconds.
        spare: how many there are beyond what uploads can use; by default some.

    Attributes:
        pacer: shares the bandwidth among them.
        receivers: the addresses that they lead to.
        url: of the endpoint.
    """

    def __init__(self, settings: Settings, clock: Clock = time.monotonic, *, spare: int | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self.url = URL(settings.endpoint_url)
        secure = self.url.scheme == "https"
        self._tls = ssl.create_default_context(cafile=settings.ca_bundle or None) if secure else None
        self.pacer = Pacer(settings.bwlimit_bps)
        self.receivers = Addresses(clock, _tell_aside, _tell_back)
        self.receivers.replace(settings.receivers)
        self._resolved_at = -RESOLVE_EVERY_S
        self._resolving = asyncio.Lock()
        self._warned: set[str] = set()
        self.spare = -(-settings.max_connections // CONNECTIONS_PER_RESERVE) if spare is None else spare
        self._all = [self.new_lane() for _ in range(settings.max_connections + self.spare)]
        self._idle = list(self._all)  # from the one used longest ago to the one used last
        self._busy: set[Connection] = set()  # idle, but the keeper has them; they keep their place
        self._waiting: list[asyncio.Future[None]] = []
        self._opened_before = 0
        self._ending: set[asyncio.Task[None]] = set()

    def new_lane(self) -> Connection:
        """Make one that is not open and not among those that are lent."""
        return Connection(self._settings, self._tls, self.pacer, self._clock, self._warn)

    def _warn(self, text: str) -> None:
        if text not in self._warned:  # once, not for every socket
            self._warned.add(text)
            _log.warning("%s", text)

    @property
    def limit(self) -> int:
        """How many there may be."""
        return len(self._all)

    @property
    def open_count(self) -> int:
        """How many stand open."""
        return sum(lane.is_open for lane in self._all)

    @property
    def opened(self) -> int:
        """How many connections were made since the start."""
        return self._opened_before + sum(lane.opened for lane in self._all)

    @property
    def aside(self) -> list[str]:
        """The receivers that are left aside."""
        return self.receivers.aside

    @property
    def lent(self) -> int:
        """How many are lent."""
        return len(self._all) - len(self._idle)

    def idle(self) -> list[Connection]:
        """Those that nobody uses, from the one used longest ago to the one used last."""
        return [lane for lane in self._idle if lane not in self._busy]

    def leading_to(self) -> Counter[str]:
        """How many lead to each receiver, or are about to."""
        idle = set(self.idle())
        return Counter(lane.receiver for lane in self._all if lane.is_open or lane not in idle)

    @property
    def usable(self) -> int:
        """How many uploads can use at once."""
        return self.limit - self.spare

    @property
    def for_parts(self) -> int:
        """How many the further parts of large files may take: those idle beyond half of the usable, others first."""
        idle = len(self.idle()) - self.spare
        return 0 if self._waiting else max(0, idle - (self.usable - self.usable // 2))

    def number(self, lane: Connection) -> int:
        """Its place among all, from 0; who replaces it has the same."""
        return self._all.index(lane)

    @property
    def peers(self) -> Counter[str]:
        """How many stand open to each address."""
        return Counter(sorted(lane.receiver for lane in self._all if lane.is_open))

    @contextlib.asynccontextmanager
    async def take(self, *, large: bool = False, avoid: Collection[str] = ()) -> AsyncIterator[Connection]:
        """Lend a lane, waiting until one is idle.

        Args:
            large: much will be sent over it.
            avoid: receivers to pass over if another one serves.

        Raises:
            OSError: the endpoint's name does not resolve.
        """
        while not (free := self.idle()):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake_one()  # the lane that we were woken for must not be forgotten
                raise
            finally:
                self._waiting.remove(waiter)
        lane = self._best(free, large=large, avoid=avoid)
        self._idle.remove(lane)
        try:
            await self.aim(lane, avoid)
            yield lane
        finally:
            self._idle.append(lane)
            self._wake_one()

    def _best(self, free: list[Connection], *, large: bool, avoid: Collection[str]) -> Connection:
        good = [lane for lane in free if lane.is_open and self._leads_well(lane, avoid)]
        if good:
            return max(reversed(good), key=lambda lane: lane.window if large else -lane.window)
        closed = next((lane for lane in reversed(free) if not lane.is_open), None)
        if closed is None and self.receivers.elsewhere(avoid):
            closed = self.replace(free[-1])
        return closed or free[-1]

    def _leads_well(self, lane: Connection, avoid: Collection[str]) -> bool:
        return self.receivers.serves(lane.receiver) and not (lane.receiver in avoid and self.receivers.elsewhere(avoid))

    def _wake_one(self) -> None:
        waiter = next((waiter for waiter in self._waiting if not waiter.done()), None)
        if waiter is not None:
            waiter.set_result(None)

    @contextlib.contextmanager
    def hold(self, lane: Connection) -> Iterator[None]:
        """Keep an idle lane from being lent; it keeps its place among the idle ones."""
        self._busy.add(lane)
        try:
            yield
        finally:
            self._busy.remove(lane)
            self._wake_one()

    def replace(self, lane: Connection) -> Connection:
        """End an idle lane; a new one that is not open takes its place."""
        new = self.new_lane()
        for lanes in (self._all, self._idle):
            lanes[lanes.index(lane)] = new
        self._opened_before += lane.opened
        ending = asyncio.create_task(lane.close())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        return new

    async def aim(self, lane: Connection, avoid: Collection[str] = ()) -> None:
        """Give a lane that must connect its address, and the others to fall back on.

        Raises:
            OSError: the endpoint's name does not resolve.
        """
        if not lane.is_open:
            await self._resolve()
            lane.pin(self.receivers.order(self.leading_to(), avoid))

    async def _resolve(self) -> None:
        if self._settings.receivers:
            return
        async with self._resolving:
            if self.receivers and self._clock() - self._resolved_at < RESOLVE_EVERY_S:
                return
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    found = await loop.getaddrinfo(self.url.host, self.url.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                if not self.receivers:
                    raise
                _log.warning("%s does not resolve any more, %s; the addresses before stay", self.url.host, exc)
            else:
                self.receivers.replace(dict.fromkeys(str(item[4][0]) for item in found))
            self._resolved_at = self._clock()

    async def close(self) -> None:
        """Close every connection."""
        await asyncio.gather(*self._ending, *(lane.close() for lane in self._all))


def _tell_aside(address: str, why: str, served: bool) -> None:
    kind = {"journal": {"MESSAGE_ID": MessageId.RECEIVER_DISABLED.value}}
    level = logging.WARNING if served else logging.INFO  # an address that never answered is no news each start
    _log.log(level, "receiver %s is left aside: %s", address, why, extra=kind)


def _tell_back(address: str) -> None:
    _log.info("receiver %s serves again", address)
