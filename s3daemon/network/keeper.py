"""The keeper of the lanes: no upload is the one to find a connection closed, cold, or at a receiver that is broken.

It opens every lane before the first request needs it, touches idle ones with a cheap request before the server's
patience ends, opens again what the server closed, moves lanes away from receivers that are left aside and back when
they serve again, and, if asked to, widens new connections by a scratch object. It never has more lanes in its hands
than are to spare, but for those that are not open anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine

import aiohttp

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError
from s3daemon.model.verdict import Verdict, judge
from s3daemon.network.connection import Connection
from s3daemon.network.pool import ConnectionPool

_log = logging.getLogger(__name__)

#: A window of so much fits a connection's share of a burst: 25 of them are the 25 MB that 1 Gbit/s and 200 ms hold.
PRIMED_BYTES = 1_000_000
#: How often the keeper looks around, seconds.
SWEEP_S = 1.0
#: A server that closes after less than twice this has each connection opened anew for nearly every upload, touched or
#: not; asking oftener would only load it.
INTERVAL_MIN_S = 1.0
#: The share of the lanes that may be opened at once.
OPENED_AT_ONCE = 1 / 2
_FIRST_SERVER_ERROR = 500

Prime = Callable[[Connection], Awaitable[None]]
"""Has a lane carry `PRIMED_BYTES`; AttemptError when that fails."""


class Keeper:
    """Looks after the lanes.

    Args:
        settings: timeouts, how often to touch.
        lanes: to look after.
        prime: widens a new connection; None when that is not wanted.
        clock: monotonic seconds.
    """

    def __init__(
        self, settings: Settings, lanes: ConnectionPool, prime: Prime | None = None, clock: Clock = time.monotonic
    ) -> None:
        self._settings = settings
        self._lanes = lanes
        self._prime = prime
        self._clock = clock
        self._interval_s = settings.keepalive_interval_s
        #: Idle and open at the last sweep, with what they had been asked by then.
        self._stood: dict[Connection, int] = {}
        self._failures = 0
        self._quiet_until = 0.0

    async def run(self) -> None:
        """Look after them until cancelled."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._learn()
                self._move()
                tasks.update(asyncio.create_task(work) for work in self._work(len(tasks)))
                if tasks:
                    done, tasks = await asyncio.wait(tasks, timeout=SWEEP_S, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # a bug ends the keeper, and with it the service
                if not tasks:
                    await asyncio.sleep(0 if not self._failures and (self._due() or self._narrow()) else SWEEP_S)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _work(self, under_way: int) -> list[Coroutine[None, None, None]]:
        """What to do next, while `under_way` other things are being done."""
        probes = [self._probe(address) for address in self._lanes.receivers.due()] if not under_way else []
        if self._failures:  # the endpoint is away: one lane at a time, ever less often
            calm = under_way or asyncio.get_running_loop().time() < self._quiet_until
            return probes + [self._touch(lane) for lane in self._due()[: 0 if calm else 1]]
        due = self._due()
        closed = [lane for lane in due if not lane.is_open]
        opened = [lane for lane in due if lane.is_open]
        at_once = max(1, int(self._lanes.limit * OPENED_AT_ONCE))
        work = [self._touch(lane) for lane in closed[: max(0, at_once - under_way)]]
        room = max(0, self._lanes.spare - under_way - len(work))
        work += [self._touch(lane) for lane in opened[:room]]
        if not (due or under_way):
            work += [self._widen(lane) for lane in self._narrow()[: self._lanes.spare]]
        return probes + work

    def _due(self) -> list[Connection]:
        """Idle lanes that are closed or were not used for the interval, those used last first.

        A server that closes after every answer gets no more than one touch an interval on each lane. One that is open
        is used every sweep until its first packets are behind it, unless it is primed: Linux does not pace them, and a
        receiver that gets an image's first ones in one lump opens its window a round trip later.
        """
        now = self._clock()

        def is_due(lane: Connection) -> bool:
            if not lane.is_open and lane.persistent:
                return True
            unready = self._prime is None and lane.is_open and not lane.is_paced
            return now - lane.used_at >= (SWEEP_S if unready else self._interval_s)

        return [lane for lane in reversed(self._lanes.idle()) if is_due(lane)]

    def _narrow(self) -> list[Connection]:
        """Idle lanes to widen; none while anything is lent: an upload is never behind a scratch object."""
        if self._prime is None or self._lanes.lent:
            return []
        return [lane for lane in self._lanes.idle() if lane.is_open and lane.carried() < PRIMED_BYTES]

    def _learn(self) -> None:
        """Adapt to the server's patience: an idle close seen at age T makes the interval at most T/2.

        What closes in one sweep at very different ages was not out of patience: the server was restarted. The interval
        never grows again: too often costs a small request, too seldom an exposure.
        """
        idle = self._lanes.idle()
        unused = [lane for lane in idle if lane.answered and self._stood.get(lane) == lane.requests]
        closed = [lane for lane in unused if not lane.is_open and lane.persistent]
        self._stood = {lane: lane.requests for lane in idle if lane.is_open}
        ages = [self._clock() - lane.used_at for lane in closed]
        if ages and max(ages) - min(ages) <= 2 * SWEEP_S:
            interval_s = max(INTERVAL_MIN_S, min(ages) / 2)
            if interval_s < self._interval_s:
                self._interval_s = interval_s
                _log.info("the store closed a connection that was idle for %.1f s: each is now used every %.1f s",
                          min(ages), interval_s)  # fmt: skip

    def _move(self) -> None:
        """End lanes that lead to a receiver left aside, and one at a time where the load is uneven; all open anew."""
        lanes = self._lanes
        idle = [lane for lane in lanes.idle() if lane.is_open]
        moving = [lane for lane in idle if not lanes.receivers.serves(lane.receiver)]
        if not moving and (most := lanes.receivers.surplus(lanes.leading_to())):
            moving = [lane for lane in idle if lane.receiver == most][:1]
        for lane in moving:
            lanes.replace(lane)

    async def _touch(self, lane: Connection) -> None:
        """Send a cheap request, which opens a closed lane."""
        if lane not in self._lanes.idle():
            return  # somebody was faster
        with self._lanes.hold(lane):
            try:
                await self._lanes.aim(lane)
                status = await self._ask(lane)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                _log.debug("a connection to %s could not be kept: %s", lane.receiver or self._lanes.url.host, exc)
                self._pause()
                self._lanes.receivers.failed(lane.receiver, f"no connection: {type(exc).__name__}")
                return
            finally:
                for address in lane.passed_over():
                    self._lanes.receivers.failed(address, "no connection")
        self._failures = 0
        self._lanes.receivers.answered(lane.receiver)
        if status >= _FIRST_SERVER_ERROR:
            self._lanes.receivers.failed(lane.receiver, f"it answers {status}")

    def _pause(self) -> None:
        """Something failed: what fails together counts once."""
        now = asyncio.get_running_loop().time()
        if now >= self._quiet_until:
            self._failures += 1
            self._quiet_until = now + min(SWEEP_S * 2 ** min(self._failures, 10), self._settings.keepalive_interval_s)

    async def _ask(self, lane: Connection) -> int:
        """Carry a request that needs no key and no bucket: any answer, a refusal too, keeps the connection alive.

        Not HEAD: Ceph RGW 16 sends a body after its answer to `HEAD /`, which ends the connection.

        Returns:
            the status of the answer.
        """
        async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.stall_timeout_s):
            return (await lane.request("GET", str(self._lanes.url.with_path("/")), {}, None)).status

    async def _probe(self, address: str) -> None:
        """Ask a receiver that is left aside whether it serves again, over a connection of its own."""
        lane = self._lanes.new_lane()
        lane.pin([address])
        try:
            answered = await self._ask(lane) < _FIRST_SERVER_ERROR
        except (aiohttp.ClientError, OSError, TimeoutError):
            answered = False
        finally:
            await lane.close()
        self._lanes.receivers.probed(address, answered=answered)

    async def _widen(self, lane: Connection) -> None:
        if self._prime is None or self._lanes.lent or lane not in self._lanes.idle():
            return
        with self._lanes.hold(lane):
            try:
                await self._prime(lane)
            except AttemptError as exc:
                self._pause()
                if judge(exc) is Verdict.PERMANENT:
                    self._prime = None
                    _log.warning("S3DAEMON_PRIME: %s, %s: no connection is primed until a reload", exc.code, exc)
