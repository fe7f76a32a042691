"""The clients of a listening socket, none lost on the way, and no more of them than there are slots.

`loop.sock_accept` loses one: cancelled in the moment in which it was handed a connection, it drops that, and a client
would be hung up on by every few restarts. Here a client is taken from the backlog only by what goes on to serve it.
Nor is there `loop.create_server`: that would call `listen` on systemd's socket and so shrink its backlog for good.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

_log = logging.getLogger(__name__)

#: After accept failed for want of descriptors, seconds until it is tried again.
ACCEPT_PAUSE_S = 0.1


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


async def serve_clients(
    listener: socket.socket, slots: asyncio.Semaphore, serve: Callable[[socket.socket], asyncio.Task[None]]
) -> None:
    """Serve the clients of `listener` until cancelled; the socket stays as it is, and so do those who wait there.

    Args:
        listener: does not block.
        slots: each client has one, until the task that `serve` made for it is done.
        serve: goes on with a client.
    """
    while True:
        await slots.acquire()
        try:
            sock = await next_client(listener)
        except OSError as exc:  # out of descriptors, or the client is gone already
            slots.release()
            _log.warning("cannot accept a client: %s", exc.strerror)
            await asyncio.sleep(ACCEPT_PAUSE_S)
        except BaseException:
            slots.release()
            raise
        else:
            serve(sock).add_done_callback(lambda _: slots.release())


def name_of(listener: socket.socket) -> str:
    """Its address, for people."""
    address = listener.getsockname()
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
