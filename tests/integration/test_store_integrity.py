"""What must never be stored: the body of an attempt that was ended, arriving late; a mixture of two contents."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.schemes import PLAIN, Scheme
from lab.scripted import (
    Exchange,
    Scripted,
    keep,
    reset_after,
)
from lab.sending import a_file, failure, in_loop, transfer_of

from s3daemon.errors import FileError
from s3daemon.model.files.source import Source

pytestmark = pytest.mark.usefixtures("unsent_unlimited")

SMALL = 3_000
#: The kernel's buffers hold all of it, though the receiver's take no more than some 300 KiB before it reads.
MIDDLE = 1 << 20
#: More than any buffer holds: the sender waits for the receiver.
LARGE = 12 << 20


class Paused:
    """A script that reads a little, sets `began`, and reads on once `go` is set."""

    def __init__(self, *, half_close: bool = False) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self._half_close = half_close

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.read(1000)
        self.began.set()
        if self._half_close:
            await exchange.handed_over()
            exchange.connection.half_close()
        await self.go.wait()
        await exchange.read()


async def nothing_more_arrives(server: Scripted, paused: Paused) -> None:
    """Let the receiver read on: its connection ends before it has all of the body."""
    paused.go.set()
    await server.until(lambda: server.puts[0].over)
    (put,) = server.seen
    assert not put.whole


@pytest.mark.parametrize("size", [MIDDLE, LARGE])
@in_loop
async def test_a_stalled_attempt_cannot_arrive_later(tmp_path: Path, scheme: Scheme, size: int) -> None:
    """A receiver that reads on after the attempt was ended gets a reset instead of the rest."""
    paused = Paused()
    async with scheme.store(paused) as (server, sender):
        error = await failure(sender.put(a_file(tmp_path / "file", size)))
        assert (error.code, error.ambiguous) == ("Stalled", False)
        await nothing_more_arrives(server, paused)


@pytest.mark.parametrize("size", [MIDDLE, LARGE])
@in_loop
async def test_a_cancelled_attempt_cannot_arrive_later(tmp_path: Path, scheme: Scheme, size: int) -> None:
    """The same for one that was cancelled; and its connection serves the next attempt."""
    paused = Paused()
    async with scheme.store(paused) as (server, sender):
        attempt = asyncio.create_task(sender.put(a_file(tmp_path / "file", size)))
        await paused.began.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await nothing_more_arrives(server, paused)
        server.put = keep
        assert (await sender.put(tmp_path / "file")).connection == "new"


@in_loop
async def test_an_attempt_that_the_server_ended_cannot_arrive_later(tmp_path: Path) -> None:
    """A server that closes its own direction only and reads on does not get what was said not to have arrived."""
    paused = Paused(half_close=True)
    async with PLAIN.store(paused) as (server, sender):
        error = await failure(sender.put(a_file(tmp_path / "file", MIDDLE)))
        assert (error.code, error.ambiguous) == ("ConnectionClosed", False)
        await nothing_more_arrives(server, paused)


class Closing(Source):
    """A source that calls a function just before its first bytes are read."""

    before_reading: Callable[[], None]

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        if not offset:
            self.before_reading()
        return super().read_now(offset, size)


@in_loop
async def test_a_connection_that_is_closed_as_it_is_used(tmp_path: Path, scheme: Scheme) -> None:
    """The error is `StaleConnection`: not ambiguous, and no fault of the store."""
    file = a_file(tmp_path / "file", MIDDLE)
    async with scheme.store() as (server, sender):
        await sender.put(file)
        source = Closing.open(str(file))
        assert isinstance(source, Closing)
        source.before_reading = server.connections[0].reset
        error = await failure(sender.store.put(transfer_of(source), source))
        source.close()
        assert (error.code, error.ambiguous) == ("StaleConnection", False)
        assert (await sender.put(file)).connection == "new"


@in_loop
async def test_a_warm_connection_that_is_reset_late_was_not_idle(tmp_path: Path, scheme: Scheme) -> None:
    """More was acknowledged than a window: the address is blamed, as with a new connection."""
    async with scheme.store() as (server, sender):
        await sender.put(a_file(tmp_path / "small", SMALL))
        server.put = reset_after(20 << 20)
        error = await failure(sender.put(a_file(tmp_path / "file", 40 << 20)))
        assert (error.code, error.ambiguous, error.address) == ("ConnectionClosed", False, "127.0.0.1")


@in_loop
async def test_a_close_that_was_noticed_costs_nothing(tmp_path: Path, scheme: Scheme) -> None:
    """A connection that the server closed while it was idle is replaced before anything is sent over it."""
    file = a_file(tmp_path / "file", SMALL)
    async with scheme.store() as (server, sender):
        await sender.put(file)
        server.connections[0].close()
        await server.until(lambda: not server.open_connections)
        while sender.pool.open_count:
            await asyncio.sleep(0)
        assert (await sender.put(file)).connection == "new"
    assert [seen.connection.number for seen in server.seen] == [0, 1]


def rewrite(file: Path) -> None:
    """Overwrite a part, so that the size stays."""
    with file.open("r+b") as writer:
        writer.seek(LARGE // 2)
        writer.write(b"other")


def shrink(file: Path) -> None:
    """Truncate it to half."""
    with file.open("r+b") as writer:
        writer.truncate(LARGE // 2)


def grow(file: Path) -> None:
    """Append one byte."""
    with file.open("ab") as writer:
        writer.write(b"x")


def replace(file: Path) -> None:
    """Rename another file over it."""
    a_file(file.with_name("twin"), LARGE).replace(file)


@pytest.mark.parametrize("change", [rewrite, shrink, grow, replace])
@in_loop
async def test_a_file_that_changes_is_never_stored_as_a_mixture(
    tmp_path: Path, scheme: Scheme, change: Callable[[Path], None]
) -> None:
    """Whatever happens to the file while it is sent, the store never has the whole body, and the attempt fails."""
    file = a_file(tmp_path / "file", LARGE)

    async def changing(exchange: Exchange) -> None:
        await exchange.read(100_000)
        change(file)
        await keep(exchange)

    async with scheme.store(changing) as (server, sender):
        with pytest.raises(FileError) as caught:
            await sender.put(file)
        await server.until(lambda: server.puts[0].over)
        assert caught.value.code == "FileChanged"
        assert not server.puts[0].whole
        assert not server.objects
        server.put = keep
        await sender.put(file)
        assert list(server.objects.values()) == [file.read_bytes()]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@in_loop
async def test_a_file_that_changes_before_the_answer(tmp_path: Path, size: int) -> None:
    """The old content was stored, whole; but the file is another one now, so the attempt fails."""
    file = a_file(tmp_path / "file", size)
    before = file.read_bytes()

    async def changing(exchange: Exchange) -> None:
        await exchange.read()
        file.write_bytes(b"newer")
        await keep(exchange)

    async with PLAIN.store(changing) as (server, sender):
        with pytest.raises(FileError) as caught:
            await sender.put(file)
    assert caught.value.code == "FileChanged"
    assert list(server.objects.values()) == [before]
