"""Find out after which small request a server keeps a connection open.

A small request is one for `/` without key or bucket: any answer, a refusal too, shows that the connection lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from s3daemon.network.connection import UNREADABLE, Connection

#: The methods of small requests, in the order in which they are tried. Not HEAD first: Ceph RGW 16 sends a body after
#: its answer to `HEAD /`, which ends the connection. But a page of megabytes in answer to GET does so as well.
SMALL_REQUESTS = ("GET", "HEAD", "OPTIONS")
#: A server that closes what is idle for less than twice this has each connection opened anew for nearly every upload,
#: kept alive or not; asking more often would only load it. Seconds.
INTERVAL_MIN_S = 1.0
#: A connection that stays open for this long after an answer was kept, seconds.
KEPT_S = 2 * INTERVAL_MIN_S
#: Closes in a row that say that a server keeps no connection after a request, where the answer does not announce it: a
#: relay that is cut, or a restart, closes one connection after its answer by chance.
SILENT_CLOSES = 3
#: They follow their answers after the same time, give or take this; what is cut from outside does not. Seconds.
SAME_DELAY_S = 0.25
_LOOKS = 40


class UnevenClosesError(ConnectionAbortedError):
    """Connections ended at different times after answers, which no habit of the server explains."""


async def find_small_request(
    connection: Connection, send: Callable[[str], Awaitable[object]], pause_s: float = 0.0
) -> str:
    """Find out by which request the server keeps a connection.

    Args:
        connection: which may be open or not.
        send: sends a request with the method given over `connection`.
        pause_s: how long the connection must live after the answer, seconds.

    Returns:
        The first of `SMALL_REQUESTS` whose second one goes over the same connection; empty when there is none.

    Raises:
        UnevenClosesError: all were answered, and the closes have another cause.
        aiohttp.ClientError, OSError: one got no answer at all.
    """
    for method in SMALL_REQUESTS:
        if await _is_kept_after(method, connection, send, pause_s):
            return method
    return ""


async def _is_kept_after(
    method: str, connection: Connection, send: Callable[[str], Awaitable[object]], pause_s: float
) -> bool:
    delays: list[float] = []  # between each answer and the close that followed, which nothing had announced
    while len(delays) < SILENT_CLOSES:
        try:
            await send(method)
            if not connection.persistent:
                return False
            opened = connection.opened
            delay_s = await open_for(connection, pause_s)
            if delay_s is None:
                await send(method)
                if connection.opened == opened and connection.is_open and connection.persistent:
                    return True
                delay_s = pause_s
        except UNREADABLE:  # an answer that is cut short, too long or no HTTP ended the connection
            delay_s = 0.0
        delays.append(delay_s)
    if max(delays) - min(delays) > SAME_DELAY_S:
        raise UnevenClosesError(f"connections ended at different times after {method} /")
    return False


async def open_for(connection: Connection, at_most_s: float) -> float | None:
    """Return how long the connection stays open from now on, seconds; None when it is open after `at_most_s`."""
    for look in range(_LOOKS):
        if not connection.is_open:
            return look * at_most_s / _LOOKS
        await asyncio.sleep(at_most_s / _LOOKS)
    return None if connection.is_open else at_most_s
