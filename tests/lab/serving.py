"""A server under test on a Unix socket, and async tests that run with it."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from lab.sending import in_loop

LIMIT_S = 20.0

Run = Callable[..., None]
"""What the fixture `house` of a module is: it runs a test with what it makes."""


def listen(path: str) -> socket.socket:
    """Listen at a path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)
    listener.setblocking(False)
    return listener


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


class Closing(Protocol):
    """What a test runs with: it serves clients, and closes."""

    @property
    def clients(self) -> int:
        """How many clients are served."""

    async def close(self) -> None:
        """Stop, and close what is open."""


@in_loop
async def run_with(make: Callable[[], Closing], test: Callable[[Any], Awaitable[None]]) -> None:
    """Run a test with what `make` returns in its loop; no client may be left when that is closed."""
    made = make()
    try:
        async with asyncio.timeout(LIMIT_S):
            await test(made)
    finally:
        await made.close()
    assert made.clients == 0


def in_house(**changes: Any) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Decorate an async test: `house` is what the fixture of that name makes, with these changes, and runs it with."""

    def decorate(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(house: Run, **fixtures: Any) -> None:
            house(lambda made: test(house=made, **fixtures), **changes)

        return run

    return decorate


class SocketHouse:
    """A socket in a directory, and clients of it; the server is that of a subclass."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "socket")
        self.listener = listen(self.path)

    until = staticmethod(until)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect a client."""
        return await asyncio.open_unix_connection(self.path)

    async def say(self, data: bytes, *, eof: bool = False) -> bytes:
        """Send `data`, read to the end; `reset` if the server resets the connection."""
        reader, writer = await self.connect()
        writer.write(data)
        if eof:
            writer.write_eof()
        try:
            return await reader.read()
        except ConnectionError:
            return b"reset"
        finally:
            writer.close()
