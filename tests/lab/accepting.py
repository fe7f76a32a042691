"""Accepting clients one by one, for stand-in servers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


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
