"""Find out after which small request a server keeps a connection open.

A small request is one for `/` without key or bucket: any answer, a refusal too, shows that the connection lives.
"""

from __future__ import annotations

import asyncio
import contextlib
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
_LOOKS = 40


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
        aiohttp.ClientError, OSError: one got no answer at all.
    """
    for method in SMALL_REQUESTS:
        if await _is_kept_after(method, connection, send, pause_s):
            return method
    return ""


async def _is_kept_after(
    method: str, connection: Connection, send: Callable[[str], Awaitable[object]], pause_s: float
) -> bool:
    for _ in range(SILENT_CLOSES):
        with contextlib.suppress(*UNREADABLE):  # an answer cut short, too long or no HTTP ends the connection
            await send(method)
            if not connection.persistent:
                return False
            opened = connection.opened
            if await stays_open(connection, pause_s):
                await send(method)
                if connection.opened == opened and connection.is_open and connection.persistent:
                    return True
    return False


async def stays_open(connection: Connection, for_s: float) -> bool:
    """Wait for a close; return whether the connection is still open after `for_s` seconds."""
    for _ in range(_LOOKS):
        if connection.is_open:
            await asyncio.sleep(for_s / _LOOKS)
    return connection.is_open
