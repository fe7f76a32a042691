"""The body of a request: all of the file, once, or an error before its last byte."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_writer import StreamWriter
from lab.sending import a_file, in_loop

from s3daemon.errors import FileError
from s3daemon.model.files.source import SMALL_BYTES, Source
from s3daemon.model.files.turns import Turns
from s3daemon.s3.body import CHUNK_BYTES, FileBody

SIZE = 3 * CHUNK_BYTES + 1000


class FakeProtocol:
    """What a writer needs of its connection."""

    def __init__(self) -> None:
        self.transport = asyncio.Transport()


class FakeWriter(StreamWriter):
    """Collects what is written, and calls a function after the first piece."""

    def __init__(self, after_first: Callable[[], None] = lambda: None) -> None:
        protocol: Any = FakeProtocol()
        super().__init__(protocol, asyncio.get_running_loop())
        self.got = bytearray()
        self._then = after_first

    async def write(self, chunk: Any, **_: Any) -> None:
        then, self._then = self._then, lambda: None
        self.got += chunk
        then()


class Uncached(Source):
    """A source whose content is never in the page cache."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        return None


class Dribbling(Source):
    """A source that returns less than was requested."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        return os.pread(self.fd, min(size, 70_001), offset)


class Broken(Source):
    """A source whose disk fails after the first chunk."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        if offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_now(offset, size)


class LazyExecutor(ThreadPoolExecutor):
    """Threads that hash slowly."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def lazily() -> Any:
            if getattr(call, "__name__", "") == "_hash":
                time.sleep(0.05)
            return call(*args, **kwargs)

        return super().submit(lazily)


@pytest.fixture(params=[Source, Uncached, Dribbling], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Source]:
    """The ways in which a file system may return the content."""
    kind: type[Source] = request.param
    return kind


def body_of(source: Source, offset: int = 0, size: int | None = None, *, digest: bool = True, **given: Any) -> FileBody:
    """A body, of the whole file without a size, which waits for nobody's turn unless `given` has other turns."""
    length = source.state.size if size is None else size
    return FileBody(source, offset, length, digest=digest, **{"turns": Turns(1, 1), **given})


async def sent(source: Source, *, digest: bool = True, after_first: Callable[[], None] = lambda: None) -> FakeWriter:
    """Write all of the source, and close it."""
    body = body_of(source, digest=digest)
    writer = FakeWriter(after_first)
    try:
        await body.write_with_length(writer, None)
    finally:
        source.close()
    assert body.finished
    assert body.md5 == (hashlib.md5(writer.got).hexdigest() if digest else "")
    return writer


@pytest.mark.parametrize("size", [0, 1, SMALL_BYTES, SMALL_BYTES + 1, CHUNK_BYTES, CHUNK_BYTES + 1, SIZE])
@in_loop
async def test_all_of_a_file_is_sent(tmp_path: Path, kind: type[Source], size: int) -> None:
    """Whole, whatever is in the page cache, and its MD5 is known."""
    file = a_file(tmp_path / "file", size)
    writer = await sent(kind.open(str(file)))
    assert writer.got == file.read_bytes()


@pytest.mark.parametrize(("offset", "size"), [(0, CHUNK_BYTES + 7), (CHUNK_BYTES - 3, 2 * CHUNK_BYTES), (SIZE - 5, 5)])
@in_loop
async def test_a_slice_is_sent(tmp_path: Path, kind: type[Source], offset: int, size: int) -> None:
    """From its offset to its end; the MD5 is the slice's."""
    file = a_file(tmp_path / "file", SIZE)
    source, writer = kind.open(str(file)), FakeWriter()
    body = body_of(source, offset, size)
    assert (len(body), body.seek(0, os.SEEK_END)) == (size, size)
    await body.write_with_length(writer, None)
    assert writer.got == file.read_bytes()[offset : offset + size]
    assert (body.finished, body.md5) == (True, hashlib.md5(writer.got).hexdigest())
    source.close()


@in_loop
async def test_without_verification_nothing_is_hashed(tmp_path: Path) -> None:
    """The MD5 is empty then."""
    await sent(Source.open(str(a_file(tmp_path / "file", SIZE))), digest=False)


@in_loop
async def test_a_file_system_without_nowait() -> None:
    """tmpfs refuses RWF_NOWAIT, or did; its files are sent all the same."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm to write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = a_file(Path(directory, "file"), SIZE)
        writer = await sent(Source.open(str(file)))
        assert writer.got == file.read_bytes()


@in_loop
async def test_a_body_is_sent_once(tmp_path: Path) -> None:
    """It counts as consumed from the start, so that aiohttp does not send it again; a second sending is an error."""
    source = Source.open(str(a_file(tmp_path / "file", 10)))
    body = body_of(source)
    assert body.consumed
    await body.write(FakeWriter())
    again = FakeWriter()
    with pytest.raises(FileError, match="a body is sent once"):
        await body.write_with_length(again, None)
    assert not again.got
    source.close()


@in_loop
async def test_on_start_is_called_before_the_first_byte(tmp_path: Path) -> None:
    """Once, with the transport, so that the connection can be watched in time."""
    source = Source.open(str(a_file(tmp_path / "file", 10)))
    writer = FakeWriter()
    calls: list[tuple[object, int]] = []
    body = body_of(source, on_start=lambda transport: calls.append((transport, len(writer.got))))
    assert not body.finished
    await body.write_with_length(writer, None)
    assert calls == [(writer.transport, 0)]
    source.close()


@in_loop
async def test_what_botocore_and_aiohttp_need(tmp_path: Path) -> None:
    """A body has a length and a position, is true even when empty, and cannot be read in other ways."""
    for size in (0, 10):
        source = Source.open(str(a_file(tmp_path / "file", size)))
        body = body_of(source)
        assert (len(body), bool(body), body.tell(), body.size) == (size, True, 0, size)
        assert (body.seek(0, os.SEEK_END), body.tell(), body.seek(0)) == (size, size, 0)
        for read in (body.read, body.decode):
            with pytest.raises(FileError):
                read()
        source.close()


def shrink(file: Path) -> None:
    os.truncate(file, CHUNK_BYTES + 10)


def grow(file: Path) -> None:
    with file.open("ab") as writer:
        writer.write(b"more")


def rewrite(file: Path) -> None:
    with file.open("r+b") as writer:
        writer.seek(SIZE // 2)
        writer.write(b"other")


def replace(file: Path) -> None:
    a_file(file.with_name("twin"), SIZE).replace(file)


def remove(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize("change", [shrink, grow, rewrite, replace, remove, Path.touch])
@in_loop
async def test_the_end_of_a_file_that_changes_is_withheld(
    tmp_path: Path, kind: type[Source], change: Callable[[Path], None]
) -> None:
    """The store never gets all bytes of a mixture of two contents, and the error says what happened."""
    file = a_file(tmp_path / "file", SIZE)
    source = kind.open(str(file))
    body, writer = body_of(source), FakeWriter(lambda: change(file))
    with pytest.raises(FileError) as caught:
        await body.write_with_length(writer, None)
    assert caught.value.code == ("NoSuchFile" if change is remove else "FileChanged")
    assert body.error is caught.value
    assert len(writer.got) < SIZE
    assert (body.finished, body.md5) == (False, "")
    source.close()


@in_loop
async def test_a_small_file_is_sent_as_it_was_opened(tmp_path: Path) -> None:
    """It cannot be a mixture: all of it was read before anything was sent."""
    file = a_file(tmp_path / "file", 100)
    before = file.read_bytes()
    source = Source.open(str(file))
    file.write_bytes(b"other")
    assert (await sent(source)).got == before


@in_loop
async def test_a_read_error(tmp_path: Path) -> None:
    """It is the file's error, not the store's, and is kept in `error`, since aiohttp wraps what is raised."""
    source = Broken.open(str(a_file(tmp_path / "file", SIZE)))
    body = body_of(source)
    with pytest.raises(FileError) as caught:
        await body.write_with_length(FakeWriter(), None)
    assert (caught.value.code, body.error) == ("ReadFailed", caught.value)
    source.close()


@in_loop
async def test_reading_shows_while_the_file_system_is_slow(tmp_path: Path) -> None:
    """So that a stall is not taken for the store's fault."""
    source = Uncached.open(str(a_file(tmp_path / "file", SIZE)))
    body = body_of(source, digest=False)
    shown: list[bool] = []

    class Noting(FakeWriter):
        async def write(self, chunk: Any, **_: Any) -> None:
            shown.append(body.reading)

    reader = asyncio.create_task(body.write_with_length(Noting(), None))
    while not body.reading:
        await asyncio.sleep(0)
    await reader
    assert shown
    assert not any(shown)
    source.close()


@in_loop
async def test_the_md5_is_complete_at_the_last_write(tmp_path: Path) -> None:
    """aiohttp cancels the writer as soon as the answer arrives."""
    file = a_file(tmp_path / "file", SIZE)
    source = Source.open(str(file))
    body = body_of(source)
    digests: list[str] = []

    class Last(FakeWriter):
        async def write(self, chunk: Any, **more: Any) -> None:
            await super().write(chunk, **more)
            if len(self.got) == SIZE:
                asyncio.get_running_loop().call_soon(lambda: digests.append(body.md5))

    asyncio.get_running_loop().set_default_executor(LazyExecutor())
    await body.write_with_length(Last(), None)
    await asyncio.sleep(0)  # for the scheduled call
    assert digests == [hashlib.md5(file.read_bytes()).hexdigest()]
    source.close()


@in_loop
async def test_large_bodies_take_turns_and_small_ones_do_not_wait(tmp_path: Path) -> None:
    """One chunk a round of the loop; each comes as often as the other, and a small body goes at once."""
    turns, order = Turns(1, 1), list[str]()

    class Noting(FakeWriter):
        async def write(self, chunk: Any, **_: Any) -> None:
            order.append(name_of[self])

    files = {name: a_file(tmp_path / name, size) for name, size in (("a", SIZE), ("b", SIZE), ("small", 10))}
    sources = [Source.open(str(file)) for file in files.values()]
    writers = [Noting() for _ in sources]
    name_of = dict(zip(writers, files, strict=True))
    bodies = [body_of(source, digest=False, turns=turns) for source in sources]
    sending = [
        asyncio.create_task(body.write_with_length(writer, None)) for body, writer in zip(bodies, writers, strict=True)
    ]
    await asyncio.sleep(0)
    assert order == ["a", "small"]
    await asyncio.gather(*sending)
    assert order[:6] == ["a", "small", "a", "b", "a", "b"]
    assert sorted(order) == [*["a"] * 4, *["b"] * 4, "small"]
    for source in sources:
        source.close()
