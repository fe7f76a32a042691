"""Keeps idle connections ready, so that no upload finds one closed, cold, or leading to an address that is broken.

The keeper opens every connection before the first upload needs it, sends a cheap request over idle ones before the
server's idle timeout ends, opens again what the server closed, moves connections away from disabled addresses and back
when those are enabled again, and, if asked to, has new connections primed: what they carry then opens their windows.
It never works on more open connections than the pool has in reserve.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Coroutine, Sequence
from typing import Protocol

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import Code, is_host_limit
from s3daemon.network.address import SmallRequestOutcome
from s3daemon.network.cause import unresolved
from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.asking import SmallRequests
from s3daemon.network.keepalive.idle_limit import SWEEP_S, Closes, IdleLimit
from s3daemon.network.keepalive.small_request import KEPT_S
from s3daemon.network.pool import ConnectionPool

_log = logging.getLogger(__name__)

#: A window of this size fits a connection's share of a burst: 25 of them make up the 25 MB in flight at 1 Gbit/s and
#: 200 ms.
PRIMED_BYTES = 1_000_000
#: An unreachable store is tried again at least this often, seconds: it has its connections back soon after it listens.
RETRY_MAX_S = 5.0
#: The share of the connections that may be opened at once.
OPENED_AT_ONCE = 1 / 2


class Primes(Protocol):
    """Opens the windows of new connections."""

    @property
    def at_once(self) -> int:
        """How many connections may be primed at the same time now; 0: none."""

    async def prime(self, connection: Connection) -> None:
        """Have an open connection, which the caller has taken, carry `PRIMED_BYTES`, or `at_once` be 0 for a while."""


def select_due(due: Sequence[Connection], running: int, *, openings: int, reserve: int) -> list[Connection]:
    """Return which connections to use now of those that are due: closed ones, which this opens, then open ones.

    Args:
        due: the most urgent first.
        running: how many others are being used by the keeper.
        openings: how many may be opened at once.
        reserve: how many open ones may be used at once, so that each upload finds one.
    """
    closed = [connection for connection in due if not connection.is_open][: max(0, openings - running)]
    room = max(0, reserve - running - len(closed))
    return closed + [connection for connection in due if connection.is_open][:room]


class Keeper:
    """Keeps the idle connections of a pool ready.

    Args:
        settings: timeouts, how often to use an idle connection.
        pool: whose connections to keep.
        primer: opens the windows of new connections; None when that is not wanted.
        clock: monotonic seconds; every decision is made by it.
        pause_s: how long to sleep when there is nothing to do, seconds.
        kept_s: how long a connection must live after an answer to count as kept, seconds.
    """

    def __init__(
        self,
        settings: Settings,
        pool: ConnectionPool,
        primer: Primes | None,
        clock: Clock = time.monotonic,
        *,
        pause_s: float = SWEEP_S,
        kept_s: float = KEPT_S,
    ) -> None:
        self._pool = pool
        self._primer = primer
        self._clock = clock
        self._pause_s = pause_s
        self._idle_limit = IdleLimit(settings.keepalive_interval_s, clock)
        self._closes = Closes()
        self._small_requests = SmallRequests(settings, pool, clock, kept_s)
        self._failures = 0
        self._retry_at = 0.0

    async def run(self) -> None:
        """Keep the connections ready until cancelled; an exception other than CancelledError is a bug."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._learn_from_closes()
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
        to_probe = [] if running else self._pool.addresses.to_probe()
        work = [self._small_requests.probe(address) for address in to_probe]
        if self._pool.names.must_resolve:
            work.append(self._pool.names.resolve())
        due = self._due()
        must_find = self._small_requests.must_find
        if self._failures:  # the endpoint is unreachable: one connection at a time, ever less often
            if running or self._clock() < self._retry_at:
                return work
            return work + ([self._find_small_request()] if must_find else [*map(self._refresh, due[:1])])
        if must_find:
            work.append(self._find_small_request())
        refreshed = select_due(due, running, openings=self._openings, reserve=self._pool.reserve)
        work += map(self._refresh, refreshed)
        if not (due or running):
            work += map(self._prime_one, self._unprimed())
        return work

    @property
    def _openings(self) -> int:
        """How many connections may be opened at once now."""
        # A failure puts off opening even while other connections answer: those that are open do so also where this host
        # has no descriptor left for another one.
        may_open = not self._small_requests.is_in_doubt and self._clock() >= self._retry_at
        return max(1, int(self._pool.limit * OPENED_AT_ONCE)) if may_open else 0

    def _due(self) -> list[Connection]:
        """Return idle connections that have rested for long enough, those used last first.

        connection                                   may rest for
        -------------------------------------------  ----------------------------------------------------
        closed, and never answered                   no time: it is opened
        closed                                       `SWEEP_S`: then it is opened
        open; a known idle limit is tried with it    ever
        open; a new idle limit is suspected, and     `SWEEP_S`: it outlives a limit, but no restart
        it is the one used last
        open; Linux does not pace it yet, and it is  `SWEEP_S`: a peer that gets an image's first packets all
        not to be primed                             at once opens its window a round trip later
        open                                         the interval
        any, of a server that keeps none             ever: it would be opened for nothing
        """
        if not self._pool.small_request:
            return []
        now, idle = self._clock(), self._pool.idle()
        still_open = [each for each in idle if each.is_open]
        on_trial = still_open[0] if still_open and self._idle_limit.is_trial_due else None
        outliving = still_open[-1] if still_open and self._idle_limit.is_suspected else None

        def may_rest_s(connection: Connection) -> float:
            if not connection.is_open:
                return SWEEP_S if connection.answered else 0.0
            if connection is on_trial:
                return math.inf
            is_unready = not (self._prime_at_once or connection.is_paced)
            return SWEEP_S if is_unready or connection is outliving else self._idle_limit.interval_s

        return [connection for connection in reversed(idle) if now - connection.used_at >= may_rest_s(connection)]

    @property
    def _prime_at_once(self) -> int:
        return 0 if self._primer is None else self._primer.at_once

    def _unprimed(self) -> list[Connection]:
        """Return connections to prime now; none while any is in use: no upload has to share the bandwidth."""
        if not self._prime_at_once or self._pool.in_use:
            return []
        unprimed = [each for each in self._pool.idle() if each.is_open and each.acked_bytes() < PRIMED_BYTES]
        return unprimed[: min(self._prime_at_once, self._pool.reserve)]

    def _learn_from_closes(self) -> None:
        """Adapt to the idle limit, and doubt the small request, by the connections that the server closed."""
        seen = self._closes.look(self._pool.idle(), self._clock())
        self._small_requests.is_in_doubt |= seen.ends_after_answers
        if self._idle_limit.observe(seen.closed_after_s, seen.longest_open_s):
            limit_s = self._idle_limit.limit_s
            known = limit_s is not None
            what = f"closes connections that are idle for {limit_s:.1f} s" if known else "keeps idle connections"
            _log.info("the store %s: each is now used every %.1f s", what, self._idle_limit.interval_s)

    def _rebalance(self) -> None:
        """Replace idle connections that lead to the wrong place, or have narrow windows: they open elsewhere, or wide.

        Of the first of these kinds that there are: all to disabled addresses; one to an address that is gone, or that
        has too many, since the others stay warm; between exposures, all whose windows losses made narrow. With cubic
        such a window would grow back within minutes of sending; that of a new connection opens within an exposure, and
        now the rate is known.
        """
        pool, open_ = self._pool, [connection for connection in self._pool.idle() if connection.is_open]
        overloaded = pool.addresses.overloaded(pool.per_address())
        kinds = (
            [connection for connection in open_ if not pool.addresses.is_enabled(connection.address)],
            [connection for connection in open_ if pool.names.is_gone(connection.address)][:1],
            [connection for connection in open_ if overloaded and connection.address == overloaded][:1],
            [connection for connection in open_ if connection.narrowed and not pool.in_use],
        )
        for connection in next(filter(None, kinds), []):
            pool.replace(connection)

    async def _refresh(self, connection: Connection) -> None:
        """Send a small request, which opens a connection that is closed."""
        if connection not in self._pool.idle():
            return  # an upload has acquired it meanwhile
        began = self._clock()
        with self._pool.maintain(connection):
            try:
                await self._pool.assign_address(connection)
            except OSError as exc:
                if not is_host_limit(exc):
                    self._pool.addresses.unresolved(f"{Code.NAME_NOT_RESOLVED}, {unresolved(exc)}")
                self._back_off()
                return
            else:
                outcome, reason = await self._small_requests.ask(connection)
        self._report(connection, outcome, reason, began)

    async def _find_small_request(self) -> None:
        if await self._small_requests.find():
            self._failures = 0
            self._closes.forget_asked()
        else:
            self._back_off()

    def _report(self, connection: Connection, outcome: SmallRequestOutcome, reason: str, began: float) -> None:
        addresses = self._pool.addresses
        _log.debug("a small request to %s: %s", connection.address or self._pool.url.raw_host, reason)
        # Of the last address that was tried it is known why; where all failed, the others most likely did for the same.
        unconnected = reason if outcome is SmallRequestOutcome.NOT_CONNECTED else "no connection"
        for address in connection.pop_failed_addresses():
            addresses.asked(address, SmallRequestOutcome.NOT_CONNECTED, unconnected)
        addresses.asked(connection.address, outcome, reason, began)
        if outcome.is_answer:
            self._failures = 0
            self._retry_at = min(self._retry_at, self._clock() + SWEEP_S)
            self._closes.asked_over(connection)
        else:
            self._back_off()

    def _back_off(self) -> None:
        """Try less often after a failure; failures at the same time count once."""
        now = self._clock()
        if now >= self._retry_at:
            self._failures += 1
            self._retry_at = now + min(SWEEP_S * 2 ** min(self._failures, 10), RETRY_MAX_S)
            self._pool.names.resolve_soon()

    async def _prime_one(self, connection: Connection) -> None:
        if self._primer is None or self._pool.in_use or connection not in self._pool.idle():
            return
        with self._pool.maintain(connection):
            await self._primer.prime(connection)
