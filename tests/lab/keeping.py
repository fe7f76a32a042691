"""A connection pool with its keeper at work before a scripted server, a clock that tests turn, and a fake resolver."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec

from lab.scripted import Scripted
from lab.sending import settings_for, without_first
from s3daemon.network.keepalive.keeper import Keeper, Primes
from s3daemon.network.pool import ConnectionPool

P = ParamSpec("P")

CONNECTIONS = 4
INTERVAL_S = 10.0
PAUSE_S = 0.004
"""How long the keeper really sleeps; what it decides goes by the test's clock."""


class Clock:
    """Shows the same time until a test turns it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def kept(
    server: Scripted,
    clock: Clock | None = None,
    url: str = "",
    *,
    reserve: int = 1,
    primer: Primes | None = None,
    **changes: Any,
) -> AsyncIterator[ConnectionPool]:
    """Connections to a server, `CONNECTIONS` with those in reserve, and their keeper at work."""
    given = {"max_connections": CONNECTIONS - reserve, "keepalive_interval_s": INTERVAL_S} | changes
    settings, clock = settings_for(url or server.url, **given), clock or Clock()
    pool = ConnectionPool(settings, clock, reserve=reserve)
    keeper = asyncio.create_task(Keeper(settings, pool, primer, clock, pause_s=PAUSE_S, kept_s=2 * PAUSE_S).run())
    try:
        yield pool
    finally:
        keeper.cancel()
        await asyncio.wait({keeper})
        await pool.close()
        if not keeper.cancelled():
            keeper.result()  # a bug ended it


async def answered(server: Scripted, count: int) -> None:
    """Wait until so many requests were answered, and the answers read."""
    await server.until(lambda: sum(seen.over for seen in server.seen) >= count)
    for _ in range(100):  # both ends live in this loop: what was written is there to be read in its next rounds
        await asyncio.sleep(0)


async def sweeps(count: int) -> None:
    """Let the keeper look so often: what it should not do must have had the time to happen."""
    await asyncio.sleep(5 * count * PAUSE_S)


class ResolvingLoop(asyncio.SelectorEventLoop):
    """A loop in which every name has the addresses given, or none because of a fault, or no answer comes."""

    fault: Exception = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    answers = True
    lookups = 0
    asked = ""  #: the name of the last look-up

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        self.lookups += 1
        self.asked = host
        if not self.answers:
            await self.create_future()
        addresses = (host,) if host.startswith("127.") else self.addresses
        if not addresses:
            raise self.fault
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, socket.IPPROTO_TCP, "", (address, port)) for address in addresses]


def resolving(test: Callable[Concatenate[ResolvingLoop, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Decorate an async test: it runs in such a loop, which is its first argument."""

    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=ResolvingLoop) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, ResolvingLoop)
            runner.run(asyncio.wait_for(test(loop, *args, **kwargs), 60))

    return without_first(run, test)
