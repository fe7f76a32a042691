"""Lanes with their keeper at work in front of a scripted server, a clock to turn, and names that resolve as told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from lab.scripted import Scripted
from lab.sending import settings_for
from s3daemon.network.keeper import SWEEP_S, Keeper, Prime
from s3daemon.network.pool import ConnectionPool

LANES = 4
INTERVAL_S = 10.0


class Clock:
    """Stands still until it is turned."""

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
    spare: int = 1,
    prime: Prime | None = None,
    **changes: Any,
) -> AsyncIterator[ConnectionPool]:
    """Lanes to a server, `LANES` with the spare ones, with their keeper at work."""
    given = {"max_connections": LANES - spare, "keepalive_interval_s": INTERVAL_S} | changes
    settings, clock = settings_for(url or server.url, **given), clock or Clock()
    lanes = ConnectionPool(settings, clock, spare=spare)
    keeper = asyncio.create_task(Keeper(settings, lanes, prime, clock).run())
    try:
        yield lanes
    finally:
        keeper.cancel()
        await asyncio.wait({keeper})
        await lanes.close()
        if not keeper.cancelled():
            keeper.result()  # a bug ended it


async def answered(server: Scripted, count: int) -> None:
    """So many requests were answered, and the answers read."""
    await server.until(lambda: sum(seen.over for seen in server.seen) >= count)
    for _ in range(100):  # both ends live in this loop: what was written is there to be read in its next rounds
        await asyncio.sleep(0)


async def sweeps(count: int) -> None:
    """Let the keeper look around so often: what it should not do must have had the time to happen."""
    await asyncio.sleep(count * SWEEP_S + 0.2)


class Named(asyncio.SelectorEventLoop):
    """A loop in which every name has the addresses given."""

    addresses: tuple[str, ...] = ()
    asked = 0

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, socket.IPPROTO_TCP, "", (address, port)) for address in self.addresses]
