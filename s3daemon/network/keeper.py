"""Keeps idle connections ready, so that no upload finds one closed, cold, or leading to an address that is broken.

The keeper opens every connection before the first upload needs it, sends a cheap request over idle ones before the
server's idle timeout ends, opens again what the server closed, moves connections away from disabled addresses and back
when those are enabled again, and, if asked to, primes new connections: a scratch object opens their congestion window.
It never works on more open connections than the pool has in reserve.
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

#: A window of this size fits a connection's share of a burst: 25 of them are the 25 MB that 1 Gbit/s and 200 ms hold.
PRIMED_BYTES = 1_000_000
#: How often the keeper looks at the connections, seconds.
SWEEP_S = 1.0
#: A server that closes what is idle for less than twice this has each connection opened anew for nearly every upload,
#: kept alive or not; asking more often would only load it.
INTERVAL_MIN_S = 1.0
#: The share of the connections that may be opened at once.
OPENED_AT_ONCE = 1 / 2
_FIRST_SERVER_ERROR = 500

Prime = Callable[[Connection], Awaitable[None]]
"""Has a connection carry `PRIMED_BYTES`; AttemptError when that fails."""


class Keeper:
    """Keeps the idle connections of a pool ready.

    Args:
        settings: timeouts, how often to use an idle connection.
        pool: whose connections to keep.
        prime: opens the window of a new connection; None when that is not wanted.
        clock: monotonic seconds; every decision is made by it.
        pause_s: how long to sleep when there is nothing to do, seconds.
    """

    def __init__(
        self,
        settings: Settings,
        pool: ConnectionPool,
        prime: Prime | None = None,
        clock: Clock = time.monotonic,
        *,
        pause_s: float = SWEEP_S,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._prime = prime
        self._clock = clock
        self._pause_s = pause_s
        self._interval_s = settings.keepalive_interval_s
        #: Idle and open at the last sweep, with the number of requests that each had carried by then.
        self._seen_open: dict[Connection, int] = {}
        self._failures = 0
        self._retry_at = 0.0

    async def run(self) -> None:
        """Keep the connections ready until cancelled; an exception other than CancelledError is a bug."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._adapt_interval()
                self._rebalance()
                tasks.update(asyncio.create_task(work) for work in self._next_work(len(tasks)))
                if tasks:
                    done, tasks = await asyncio.wait(tasks, timeout=self._pause_s, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # raises what a bug raised there
                else:
                    await asyncio.sleep(self._pause_s)
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _next_work(self, running: int) -> list[Coroutine[None, None, None]]:
        """Choose what to do next, while `running` other tasks are not done yet."""
        probes = [self._probe(address) for address in self._pool.addresses.to_probe()] if not running else []
        if self._pool.must_resolve:
            probes.append(self._pool.resolve())
        if self._failures:  # the endpoint is unreachable: one connection at a time, ever less often
            is_waiting = running or self._clock() < self._retry_at
            return probes + [self._refresh(connection) for connection in self._due()[: 0 if is_waiting else 1]]
        due = self._due()
        closed = [connection for connection in due if not connection.is_open]
        still_open = [connection for connection in due if connection.is_open]
        at_once = max(1, int(self._pool.limit * OPENED_AT_ONCE))
        work = [self._refresh(connection) for connection in closed[: max(0, at_once - running)]]
        room = max(0, self._pool.reserve - running - len(work))
        work += [self._refresh(connection) for connection in still_open[:room]]
        if not (due or running):
            work += [self._prime_one(connection) for connection in self._unprimed()[: self._pool.reserve]]
        return probes + work

    def _due(self) -> list[Connection]:
        """Return idle connections that are closed or were not used for the interval, those used last first.

        A server that closes after every answer gets no more than one request an interval on each connection; one that
        does so without announcing it, one a sweep. An open connection is used every sweep until its first packets are
        behind it, unless it is primed: Linux does not pace them, and a peer that gets an image's first packets all at
        once opens its window a round trip later.
        """
        now = self._clock()

        def is_due(connection: Connection) -> bool:
            idle_s = now - connection.used_at
            if not connection.is_open and connection.persistent:
                return not connection.answered or idle_s >= SWEEP_S
            is_unready = self._prime is None and connection.is_open and not connection.is_paced
            return idle_s >= (SWEEP_S if is_unready else self._interval_s)

        return [connection for connection in reversed(self._pool.idle()) if is_due(connection)]

    def _unprimed(self) -> list[Connection]:
        """Return idle connections to prime; none while any is in use: no upload waits behind a scratch object."""
        if self._prime is None or self._pool.in_use:
            return []
        return [each for each in self._pool.idle() if each.is_open and each.acked_bytes() < PRIMED_BYTES]

    def _adapt_interval(self) -> None:
        """Adapt to the server's idle timeout: a connection closed after T of idleness makes the interval at most T/2.

        If those closed in one sweep were idle for very different times, it was no timeout: the server was restarted.
        The interval never grows again: too short costs a small request, too long costs an exposure.
        """
        idle = self._pool.idle()
        unused = [each for each in idle if each.answered and self._seen_open.get(each) == each.requests]
        closed = [each for each in unused if not each.is_open and each.persistent]
        self._seen_open = {each: each.requests for each in idle if each.is_open}
        ages = [self._clock() - each.used_at for each in closed]
        if ages and max(ages) - min(ages) <= 2 * SWEEP_S:
            interval_s = max(INTERVAL_MIN_S, min(ages) / 2)
            if interval_s < self._interval_s:
                self._interval_s = interval_s
                _log.info("the store closed a connection that was idle for %.1f s: each is now used every %.1f s",
                          min(ages), interval_s)  # fmt: skip

    def _rebalance(self) -> None:
        """Replace connections to disabled addresses, else one to an address with too many: they open elsewhere."""
        pool = self._pool
        candidates = [connection for connection in pool.idle() if connection.is_open]
        moving = [connection for connection in candidates if not pool.addresses.is_enabled(connection.address)]
        if not moving:  # one at a time: the others stay warm
            moving = [connection for connection in candidates if pool.is_gone(connection.address)][:1]
        if not moving and (overloaded := pool.addresses.overloaded(pool.per_address())):
            moving = [connection for connection in candidates if connection.address == overloaded][:1]
        for connection in moving:
            pool.replace(connection)

    async def _refresh(self, connection: Connection) -> None:
        """Send a cheap request, which opens a connection that is closed."""
        addresses = self._pool.addresses
        if connection not in self._pool.idle():
            return  # an upload has acquired it meanwhile
        with self._pool.maintain(connection):
            try:
                await self._pool.assign_address(connection)
                status = await self._ask(connection)
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                peer = connection.address or self._pool.url.host
                _log.debug("a connection to %s could not be kept open: %s", peer, exc)
                self._back_off()
                addresses.failed(connection.address, f"no connection: {type(exc).__name__}")
                return
            finally:
                for address in connection.pop_failed_addresses():
                    addresses.failed(address, "no connection")
        self._failures = 0
        addresses.answered(connection.address)
        if status >= _FIRST_SERVER_ERROR:
            addresses.failed(connection.address, f"it answers {status}")

    def _back_off(self) -> None:
        """Try less often after a failure; failures at the same time count once."""
        now = self._clock()
        if now >= self._retry_at:
            self._failures += 1
            self._retry_at = now + min(SWEEP_S * 2 ** min(self._failures, 10), self._settings.keepalive_interval_s)

    async def _ask(self, connection: Connection) -> int:
        """Send a request that needs no key and no bucket: any answer, a refusal too, keeps the connection alive.

        Not HEAD: Ceph RGW 16 sends a body after its answer to `HEAD /`, which ends the connection.

        Returns:
            The status of the answer.
        """
        async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.stall_timeout_s):
            return (await connection.request("GET", str(self._pool.url.with_path("/")), {}, None)).status

    async def _probe(self, address: str) -> None:
        """Ask a disabled address whether it answers again, over a connection that is not in the pool."""
        connection = self._pool.new_connection()
        connection.set_addresses([address])
        try:
            answered = await self._ask(connection) < _FIRST_SERVER_ERROR
        except (aiohttp.ClientError, OSError, TimeoutError):
            answered = False
        finally:
            await connection.close()
        self._pool.addresses.probed(address, answered=answered)

    async def _prime_one(self, connection: Connection) -> None:
        if self._prime is None or self._pool.in_use or connection not in self._pool.idle():
            return
        with self._pool.maintain(connection):
            try:
                await self._prime(connection)
            except AttemptError as exc:
                self._back_off()
                if judge(exc) is Verdict.PERMANENT:
                    self._prime = None
                    _log.warning("S3DAEMON_PRIME: %s, %s: no connection is primed until a reload", exc.code, exc)
