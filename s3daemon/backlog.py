"""The next client of a listening socket, none lost on the way.

`loop.sock_accept` loses one: cancelled in the moment in which it was handed a connection, it drops that, and a client
would be hung up on by every few restarts. Here a client is taken from the backlog only by what goes on to serve it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


async def next_client(listener: socket.socket) -> socket.socket:
    """Wait for a client and take it. Cancelled, it leaves the client in the backlog.

    Args:
        listener: does not block; one wait at a time.

    Raises:
        OSError: out of descriptors, or the client is gone already.
    """
    loop = asyncio.get_running_loop()
    while True:
        with suppress(BlockingIOError):
            return listener.accept()[0]
        readable = asyncio.Event()
        loop.add_reader(listener, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(listener)
