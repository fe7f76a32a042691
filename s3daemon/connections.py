"""All lanes, and the keeper that holds them open.

`take` lends a lane, an open one first and among those the one used last: its congestion window is the widest. The
keeper opens every lane before the first request needs it, touches idle ones with a cheap request before the server's
patience ends, and opens again what the server closed, so that no upload is the one to find out. It works on a few
lanes at a time: an upload that comes meanwhile still finds one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
from yarl import URL

from .lane import Lane
from .pacing import Pacer
from .settings import Settings
from .tcp import Clock

_log = logging.getLogger(__name__)

#: How often the keeper looks for lanes to open or to touch, seconds.
SWEEP_S = 1.0
#: The endpoint's name is resolved again after this long, seconds.
RESOLVE_EVERY_S = 30.0
#: The share of all lanes that the keeper works on at once.
KEPT_AT_ONCE = 1 / 4


class Lanes:
    """The warm connections to one endpoint.

    Args:
        settings: endpoint, timeouts, number of connections.
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._url = URL(settings.endpoint_url)
        tls = ssl.create_default_context(cafile=settings.ca_bundle or None) if self._url.scheme == "https" else None
        self.pacer = Pacer(settings.bwlimit_bps)
        self._all = [Lane(settings, tls, self.pacer, clock) for _ in range(settings.max_connections)]
        self._idle = list(self._all)  # from the one used longest ago to the one used last
        self._touched: set[Lane] = set()  # idle, but being touched; they keep their place
        self._waiting: list[asyncio.Future[None]] = []
        self._addresses: list[str] = []
        self._resolved_at = -RESOLVE_EVERY_S
        self._turn = 0

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
        return sum(lane.opened for lane in self._all)

    @property
    def peers(self) -> Counter[str]:
        """How many stand open to each address."""
        return Counter(sorted(peer for lane in self._all if (peer := lane.peer)))

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[Lane]:
        """Lend a lane, waiting until one is idle.

        Raises:
            OSError: the endpoint's name does not resolve.
        """
        while not (free := [lane for lane in self._idle if lane not in self._touched]):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake_one()  # the lane that we were woken for must not be forgotten
                raise
            finally:
                self._waiting.remove(waiter)
        lane = next((lane for lane in reversed(free) if lane.is_open), free[-1])
        self._idle.remove(lane)
        try:
            await self._aim(lane)
            yield lane
        finally:
            self._idle.append(lane)
            self._wake_one()

    def _wake_one(self) -> None:
        waiter = next((waiter for waiter in self._waiting if not waiter.done()), None)
        if waiter is not None:
            waiter.set_result(None)

    async def _aim(self, lane: Lane) -> None:
        """Give a lane that must connect its address, each of the endpoint's in turn, and the others to fall back on."""
        if lane.is_open:
            return
        if not self._addresses or self._clock() - self._resolved_at >= RESOLVE_EVERY_S:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(self._settings.connect_timeout_s):
                found = await loop.getaddrinfo(self._url.host, self._url.port, type=socket.SOCK_STREAM)
            self._addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
            self._resolved_at = self._clock()
        first = self._turn % len(self._addresses)
        lane.pin(self._addresses[first:] + self._addresses[:first])
        self._turn += 1

    async def keep(self) -> None:
        """Open all lanes, then touch the idle ones and replace the closed ones, until cancelled."""
        at_once = max(1, int(len(self._all) * KEPT_AT_ONCE))
        failures = 0
        while True:
            due = self._due()[: 1 if failures else at_once]
            answered = all(await asyncio.gather(*(self._touch(lane) for lane in due)))
            failures = 0 if answered else failures + 1
            if failures:  # the endpoint is away: one lane at a time, ever less often
                await asyncio.sleep(min(SWEEP_S * 2 ** min(failures, 10), self._settings.keepalive_interval_s))
            elif len(due) < at_once:
                await asyncio.sleep(SWEEP_S)

    def _due(self) -> list[Lane]:
        """Idle lanes that are closed or were not used for the interval, those used last first.

        A server that closes after every answer gets no more than one touch an interval on each lane.
        """
        before = self._clock() - self._settings.keepalive_interval_s
        lanes = reversed(self._idle)
        return [lane for lane in lanes if lane.used_at <= before or (not lane.is_open and lane.persistent)]

    async def _touch(self, lane: Lane) -> bool:
        """Send one cheap request, which opens a closed lane; whether it was answered.

        Unsigned, so that it needs no key and no bucket: any answer, a refusal too, keeps the connection alive. Not
        HEAD: Ceph RGW 16 sends a body after its answer to `HEAD /`, which ends the connection.
        """
        if lane not in self._idle or lane in self._touched:
            return True  # somebody was faster
        self._touched.add(lane)
        try:
            await self._aim(lane)
            async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.stall_timeout_s):
                await lane.request("GET", str(self._url.with_path("/")), {}, None)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            _log.debug("a connection to %s could not be kept: %s", self._url.host, exc)
            return False
        finally:
            self._touched.remove(lane)
            self._wake_one()
        return True

    async def close(self) -> None:
        """Close every connection."""
        for lane in self._all:
            await lane.close()
