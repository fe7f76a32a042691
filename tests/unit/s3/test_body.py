"""The body: all of the file, once, or an error before its last byte."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_writer import StreamWriter
from lab.sending import a_file, in_loop

from s3daemon.errors import FileError
from s3daemon.model.source import SMALL_BYTES, Source
from s3daemon.s3.body import CHUNK_BYTES, FileBody

SIZE = 3 * CHUNK_BYTES + 1000


class FakeProtocol:
    """What a writer asks of its connection."""

    def __init__(self) -> None:
        self.transport = asyncio.Transport()


class FakeWriter(StreamWriter):
    """Collects what is written, and does something after the first piece of it."""

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
    """A source of whose content nothing is ever in the page cache."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        return None


class Dribbling(Source):
    """A source that gives less than was asked for."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        return os.pread(self.fd, min(size, 70_001), offset)


class Broken(Source):
    """A source whose disk fails after the first chunk."""

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        if offset:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().read_now(offset, size)


class LazyExecutor(ThreadPoolExecutor):
    """Threads that take their time over hashing."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def lazily() -> Any:
            if getattr(call, "__name__", "") == "update":
                time.sleep(0.05)
            return call(*args, **kwargs)

        return super().submit(lazily)


@pytest.fixture(params=[Source, Uncached, Dribbling], ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Iterator[type[Source]]:
    """The ways in which a file system may give the content away."""
    return request.param  # type: ignore[no-any-return]


async def sent(source: Source, *, digest: bool = True, after_first: Callable[[], None] = lambda: None) -> FakeWriter:
    """Write it all, and close the source."""
    body = FileBody(source, digest=digest)
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
async def test_all_of_it_is_sent(tmp_path: Path, kind: type[Source], size: int) -> None:
    """The content arrives whole, whatever comes from the page cache, and its MD5 is known."""
    file = a_file(tmp_path / "file", size)
    writer = await sent(kind.open(str(file)))
    assert writer.got == file.read_bytes()


@pytest.mark.parametrize(("offset", "size"), [(0, CHUNK_BYTES + 7), (CHUNK_BYTES - 3, 2 * CHUNK_BYTES), (SIZE - 5, 5)])
@in_loop
async def test_a_slice_of_it(tmp_path: Path, kind: type[Source], offset: int, size: int) -> None:
    """A part of a file is sent from where it begins to where it ends, and its MD5 is its own."""
    file = a_file(tmp_path / "file", SIZE)
    source, writer = kind.open(str(file)), FakeWriter()
    body = FileBody(source, offset, size, digest=True)
    assert (len(body), body.seek(0, os.SEEK_END)) == (size, size)
    await body.write_with_length(writer, None)
    assert writer.got == file.read_bytes()[offset : offset + size]
    assert (body.finished, body.md5) == (True, hashlib.md5(writer.got).hexdigest())
    source.close()


@in_loop
async def test_no_digest(tmp_path: Path) -> None:
    """Where verification is off nothing is hashed."""
    await sent(Source.open(str(a_file(tmp_path / "file", SIZE))), digest=False)


@in_loop
async def test_a_file_system_without_nowait() -> None:
    """tmpfs refuses RWF_NOWAIT, or did; what lies there is sent all the same."""
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm to write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        file = a_file(Path(directory, "file"), SIZE)
        writer = await sent(Source.open(str(file)))
        assert writer.got == file.read_bytes()


@in_loop
async def test_it_is_sent_once(tmp_path: Path) -> None:
    """aiohttp takes it for consumed from the start; whoever sends it again gets an error."""
    source = Source.open(str(a_file(tmp_path / "file", 10)))
    body = FileBody(source, digest=True)
    assert body.consumed
    await body.write(FakeWriter())
    again = FakeWriter()
    with pytest.raises(FileError, match="a body is sent once"):
        await body.write_with_length(again, None)
    assert not again.got
    source.close()


@in_loop
async def test_the_start_is_told_before_the_first_byte(tmp_path: Path) -> None:
    """Whoever watches the connection is told in time, and once."""
    source = Source.open(str(a_file(tmp_path / "file", 10)))
    writer = FakeWriter()
    told: list[tuple[object, int]] = []
    body = FileBody(source, digest=True, on_start=lambda transport: told.append((transport, len(writer.got))))
    assert not body.finished
    await body.write_with_length(writer, None)
    assert told == [(writer.transport, 0)]
    source.close()


@in_loop
async def test_what_botocore_asks(tmp_path: Path) -> None:
    """It has a length and a position; it is there even when empty; nobody reads it behind our back."""
    for size in (0, 10):
        source = Source.open(str(a_file(tmp_path / "file", size)))
        body = FileBody(source, digest=True)
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
async def test_of_a_file_that_changes_the_end_is_withheld(
    tmp_path: Path, kind: type[Source], change: Callable[[Path], None]
) -> None:
    """A store never gets all bytes of a mixture, and the error says what happened."""
    file = a_file(tmp_path / "file", SIZE)
    source = kind.open(str(file))
    body, writer = FileBody(source, digest=True), FakeWriter(lambda: change(file))
    with pytest.raises(FileError) as caught:
        await body.write_with_length(writer, None)
    assert caught.value.code == ("NoSuchFile" if change is remove else "FileChanged")
    assert body.error is caught.value
    assert len(writer.got) < SIZE
    assert (body.finished, body.md5) == (False, "")
    source.close()


@in_loop
async def test_a_small_file_is_sent_as_it_was_opened(tmp_path: Path) -> None:
    """Of a small file there is no mixture: all of it was read before anything was sent."""
    file = a_file(tmp_path / "file", 100)
    before = file.read_bytes()
    source = Source.open(str(file))
    file.write_bytes(b"other")
    assert (await sent(source)).got == before


@in_loop
async def test_a_disk_that_fails(tmp_path: Path) -> None:
    """A read error is the file's, not the store's, and kept where aiohttp's wrapping does not hide it."""
    source = Broken.open(str(a_file(tmp_path / "file", SIZE)))
    body = FileBody(source, digest=True)
    with pytest.raises(FileError) as caught:
        await body.write_with_length(FakeWriter(), None)
    assert (caught.value.code, body.error) == ("ReadFailed", caught.value)
    source.close()


@in_loop
async def test_it_tells_when_the_file_system_is_slow(tmp_path: Path) -> None:
    """While a thread waits for the file system, that shows: the store is not to blame."""
    source = Uncached.open(str(a_file(tmp_path / "file", SIZE)))
    body = FileBody(source, digest=False)
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
async def test_nothing_is_left_to_do_after_the_last_write(tmp_path: Path) -> None:
    """aiohttp cancels the writer as soon as the answer is there: by then the MD5 must be whole."""
    file = a_file(tmp_path / "file", SIZE)
    source = Source.open(str(file))
    body = FileBody(source, digest=True)
    digests: list[str] = []

    class Last(FakeWriter):
        async def write(self, chunk: Any, **more: Any) -> None:
            await super().write(chunk, **more)
            if len(self.got) == SIZE:
                asyncio.get_running_loop().call_soon(lambda: digests.append(body.md5))

    asyncio.get_running_loop().set_default_executor(LazyExecutor())
    await body.write_with_length(Last(), None)
    await asyncio.sleep(0)  # for the call that came soon
    assert digests == [hashlib.md5(file.read_bytes()).hexdigest()]
    source.close()
