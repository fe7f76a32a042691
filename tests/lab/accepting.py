"""Accepting clients one by one, for stand-in servers, and a loop for them in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any


async def next_client(listening: socket.socket) -> socket.socket:
    """Wait for a client of a non-blocking socket and accept it. Cancelled, it leaves the client in the backlog."""
    loop = asyncio.get_running_loop()
    while True:
        with suppress(BlockingIOError):
            return listening.accept()[0]
        readable = asyncio.Event()
        loop.add_reader(listening, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(listening)


async def serve_each(
    listening: socket.socket,
    serve: Callable[[socket.socket], Coroutine[Any, Any, None]],
    tasks: set[asyncio.Task[None]],
) -> None:
    """Serve each client in a task, which is one of `tasks` while it lasts; cancelled, close the socket.

    Not asyncio.start_server: closed while it accepts a connection, it leaves that one open for ever.
    """
    with listening:
        listening.setblocking(False)
        while True:
            client = await next_client(listening)
            client.setblocking(False)
            task = asyncio.create_task(serve(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


@contextmanager
def loop_in_thread(name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a thread of that name; it is stopped and closed at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
