"""The daemon's own way to a store, put together for a test: settings, pool, store, and files to send."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import pytest

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError
from s3daemon.model.files.source import Source
from s3daemon.model.request import Destination, Transfer
from s3daemon.network.pool import ConnectionPool
from s3daemon.s3.sender import Sender
from s3daemon.s3.signing.client import Signer
from s3daemon.s3.store import Store, Stored

LONGEST_S = 240.0
"""No test in a loop takes this long; one that hangs fails with the stack of where it hung."""
_OLD_NS = 1_600_000_000 * 10**9

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in a loop of its own; what nobody awaited or nobody caught in there fails it."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        stray: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: stray.append(context))
            await asyncio.wait_for(test(*args, **kwargs), LONGEST_S)
            gc.collect()
            await asyncio.sleep(0)

        asyncio.run(main())
        assert not stray, stray

    return run


def without_first(run: Callable[..., None], test: Callable[..., Any]) -> Callable[..., None]:
    """Let pytest take `run` for that test without its first argument, which is not a fixture."""
    functools.update_wrapper(run, test)
    _, *fixtures = inspect.signature(test).parameters.values()
    run.__signature__ = inspect.Signature(fixtures)  # type: ignore[attr-defined]  # inspect looks there first
    return run


def settings_for(url: str, **changes: Any) -> Settings:
    """Settings for a server of the test's own: one connection, and limits as short as they may be."""
    given: dict[str, Any] = {
        "endpoint_url": url,
        "access_key": "testkey",
        "secret_key": "testsecret",
        "state_dir": "/nonexistent",
        "max_connections": 1,
        "stall_timeout_s": 1.0,
        "answer_timeout_s": 1.0,
    }
    return Settings(**given | changes)


@dataclass(frozen=True)
class OpenStore:
    """A store, open for a test, and the connections to it."""

    pool: ConnectionPool
    store: Store

    async def put(self, file: Path, key: str = "key", bucket: str = "bucket") -> Stored:
        """Open the file and send it, as one attempt of a new transfer."""
        source = Source.open(os.fspath(file))
        try:
            return await self.store.put(transfer_of(source, key, bucket), source)
        finally:
            source.close()


def transfer_of(source: Source, key: str = "key", bucket: str = "bucket") -> Transfer:
    """A new transfer of an open file."""
    return Transfer(secrets.token_hex(8), source.path, Destination(bucket, key), (), source.state, 0)


@contextlib.asynccontextmanager
async def sending(settings: Settings, clock: Clock = time.monotonic) -> AsyncIterator[OpenStore]:
    """A store for these settings, closed at the end."""
    pool = ConnectionPool(settings, clock, reserve=0)
    sender = Sender(settings, pool, Signer(settings))
    await sender.open()
    try:
        yield OpenStore(pool, Store(sender))
    finally:
        await sender.close()
        await pool.close()


def a_file(path: Path, size: int) -> Path:
    """Make a file that was last changed long ago, so that any change shows in its time.

    Of each 64 KiB 4 are random and the others not there: a large file takes a fiftieth of the time that all would take.
    """
    rng = random.Random(size)
    with path.open("wb") as file:
        for at in range(0, size, 64 << 10):
            file.seek(at)
            file.write(rng.randbytes(min(4 << 10, size - at)))
        file.truncate(size)
    os.utime(path, ns=(_OLD_NS, _OLD_NS))
    return path


async def failure(attempt: Awaitable[object]) -> AttemptError:
    """What an attempt raises."""
    with pytest.raises(AttemptError) as caught:
        await attempt
    return caught.value
