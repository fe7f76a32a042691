"""Opening a file: whatever is not a readable regular file gives an error at once, whatever happens to its path."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import pwd
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from lab.env import not_as_root
from lab.keeping import Clock
from lab.sending import a_file, in_loop
from lab.serving import until

from s3daemon.errors import FileError
from s3daemon.model.files.memory import (
    SLOW_S,
    THREADS_FOR_S,
    Promptness,
    device_of,
    is_held_by_a_block_device,
    is_missing,
    look_up,
    type_of,
)
from s3daemon.model.files.source import SMALL_BYTES, Source, file_error, has_false_size, md5_of, open_file
from s3daemon.model.reply import Reply
from s3daemon.model.request import FileState


def refused(path: Path | str, *roots: Path) -> FileError:
    """The error that opening it raises."""
    error = _refused(os.fspath(path), [str(root) for root in roots])
    assert str(path)[:300] in error.text
    return error


def _refused(path: str, roots: Sequence[str], closed: Sequence[str] = ()) -> FileError:
    """The error; what is in memory gets the same one, or is left to a thread."""
    with pytest.raises(FileError) as caught:
        Source.open(path, roots, closed)
    with pytest.raises(FileError) as at_once:
        _ = Source.open_in_memory(path, roots, closed) or Source.open(path, roots, closed)
    assert str(at_once.value) == str(caught.value)
    return caught.value


@contextlib.contextmanager
def opened(path: Path, *roots: Path) -> Iterator[Source]:
    """A source that is open for the duration of a block."""
    source = Source.open(os.fspath(path), [str(root) for root in roots])
    try:
        yield source
    finally:
        source.close()


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="s3daemon-source-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("size", [0, 1, 3000, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20])
def test_a_regular_file_is_opened(tmp_path: Path, size: int) -> None:
    """With its state; a small one is read whole at once."""
    file = a_file(tmp_path / "file", size)
    with opened(file) as source:
        stat = file.stat()
        state = (source.state.size, source.state.mtime_ns, source.state.inode, source.state.device)
        assert state == (size, stat.st_mtime_ns, stat.st_ino, stat.st_dev)
        assert source.content == (file.read_bytes() if size <= SMALL_BYTES else None)
        assert os.pread(source.fd, size + 1, 0) == file.read_bytes()
        source.check_unchanged()


def test_a_small_file_that_changes(tmp_path: Path) -> None:
    """It is opened like a larger one, of which the attempt finds out that it changed."""
    file, stop, seen = a_file(tmp_path / "file", 100), threading.Event(), Counter[bool]()

    def change() -> None:
        with file.open("ab", buffering=0) as writer:
            while not stop.is_set():
                writer.write(b"x")
                if writer.tell() > SMALL_BYTES // 2:
                    writer.truncate(100)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        until = time.monotonic() + 60
        while seen.total() < 200 or (not seen[True] and time.monotonic() < until):
            with opened(file) as source:
                seen[source.content is None] += 1
                assert source.content is None or len(source.content) == source.state.size
    finally:
        stop.set()
        thread.join()
    assert seen[True]


@pytest.mark.parametrize(
    ("before", "got", "after", "changed", "false"),
    [
        (100, 100, 100, False, False),
        (100, 100, 100, True, False),
        (100, 101, 150, True, False),
        (100, 100, 50, True, False),
        (100, 60, 60, True, False),
        (100, 101, 50, True, False),
        (100, 101, 100, True, False),
        (0, 1, 0, False, True),
        (0, 1, 0, True, True),
        (4096, 10, 4096, False, True),
    ],
    ids=[
        "plain",
        "touched",
        "grown",
        "truncated after",
        "truncated before",
        "grown and truncated",
        "and back",
        "without size",
        "and touched",
        "a page",
    ],
)
def test_a_size_is_false_if_no_change_explains_it(
    before: int, got: int, after: int, changed: bool, false: bool
) -> None:
    """As of a file that a FUSE file system generates: nothing may be stored in place of its content."""
    states = [FileState(size, mtime, 1, 1, 1) for size, mtime in ((before, 1), (after, 2 if changed else 1))]
    assert has_false_size(got, *states) is false


def test_a_file_without_size_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused: an attempt would store nothing in its place, as there is nothing to read. No real file is so."""

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    assert refused(a_file(tmp_path / "empty", 0)).code == "ReadFailed"
    with opened(a_file(tmp_path / "file", 1)) as source:
        assert source.content is None


def test_a_file_under_a_lease(on_disk: Path) -> None:
    """It is waited for until its holder gives the lease up, as Samba does for a client that has the file open.

    In a thread alone: the event loop does not wait.
    """
    file = a_file(on_disk / "file", 3000)
    holder = os.open(file, os.O_RDWR)
    told = signal.signal(signal.SIGIO, lambda *_: fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK))
    try:
        for opener, content in ((Source.open_in_memory, None), (Source.open, file.read_bytes())):
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            source = opener(str(file))
            assert (source and source.content) == content
            if source is not None:
                source.close()
    finally:
        signal.signal(signal.SIGIO, told)
        os.close(holder)


def test_a_small_file_that_changed_while_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attempt reads it as it is then."""
    file, preadv = a_file(tmp_path / "file", 100), os.preadv

    def read_and_append(fd: int, buffers: list[bytearray], offset: int, flags: int = 0) -> int:
        got = preadv(fd, buffers, offset, flags)
        with file.open("ab") as writer:
            writer.write(b"more")
        return got

    monkeypatch.setattr(os, "preadv", read_and_append)
    source = Source.open(str(file))
    with contextlib.closing(source):
        assert (source.state.size, source.content) == (104, None)
        source.check_unchanged()


def test_a_name_may_have_any_bytes(tmp_path: Path) -> None:
    """Also bytes that are not UTF-8, and line breaks."""
    file = a_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \n'\"")), 5)
    with opened(file) as source:
        assert source.content == file.read_bytes()


def test_a_fifo_is_refused(tmp_path: Path) -> None:
    """At once, without waiting for a writer."""
    os.mkfifo(tmp_path / "fifo")
    error = refused(tmp_path / "fifo")
    assert (error.code, "a FIFO, not a regular file" in error.text) == ("NotRegularFile", True)


def test_directories_devices_and_sockets_are_refused(tmp_path: Path) -> None:
    """The error names the kind of file."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(tmp_path / "socket"))
        for path, kind in ((tmp_path, "a directory"), ("/dev/zero", "a device"), (tmp_path / "socket", "a socket")):
            error = refused(path)
            assert (error.code, error.text) == ("NotRegularFile", f"{path}: {kind}, not a regular file")


@pytest.mark.parametrize(("path", "kind"), [("/proc/cpuinfo", "proc"), ("/sys/kernel/uevent_seqnum", "sysfs")])
def test_a_file_that_the_kernel_generates(path: str, kind: str) -> None:
    """It is refused for what it is: its size, 0 or a page, is not that of its content, and it did not change."""
    error = refused(path)
    reason = f"{path}: a file that the kernel generates ({kind}), not a regular file"
    assert (error.code, error.text) == ("NotRegularFile", reason)


def test_an_empty_file_and_one_of_holes_are_regular(tmp_path: Path) -> None:
    """They take up no blocks either."""
    for size in (0, 10_000):
        file = tmp_path / f"{size}"
        file.touch()
        os.truncate(file, size)
        assert file.stat().st_blocks == 0
        with opened(file) as source:
            assert source.content == bytes(size)


def test_missing_files(tmp_path: Path) -> None:
    """Every path that leads to no file is `NoSuchFile`, with the reason."""
    a_file(tmp_path / "file", 1)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, words in (
        ("nothing", "no such file"),
        ("file/below", "part of the path is not a directory"),
        ("loop", "too many symbolic links"),
        ("dangling", "no such file"),
        ("x" * 300, "the name is too long"),
    ):
        error = refused(tmp_path / name)
        assert (error.code, words in error.text) == ("NoSuchFile", True)


def test_an_error_is_one_line(tmp_path: Path) -> None:
    """Also if the file's name has a line break."""
    with pytest.raises(FileError) as caught:
        Source.open(f"{tmp_path}/a\nb\udcff")
    assert caught.value.text == f"{tmp_path}/a\\nb\\udcff: no such file"


def test_files_without_permission_are_refused(public: Path) -> None:
    """A file, or a directory in its path, that the daemon's user may not read is `NotReadable`.

    The text names the user, the first directory that refuses, and the cure.
    """
    secret = a_file(public / "secret", 5)
    secret.chmod(0)
    (public / "closed").mkdir(mode=0)
    with not_as_root():
        assert refused(secret).code == "NotReadable"
        assert refused(public / "closed/file").code == "NotReadable"
        user = pwd.getpwuid(os.geteuid()).pw_name
        assert refused(secret).text == f"{secret}: user {user} may not read it: setfacl -m u:{user}:r {secret}"
        closed = public / "closed"
        assert refused(closed / "a/file").text.endswith(f"may not enter {closed}: setfacl -m u:{user}:x {closed}")


def test_a_directory_that_a_link_leads_through_is_named(public: Path) -> None:
    """Rights to the file alone would not help, and are there already."""
    closed = public / "closed"
    closed.mkdir()
    link, real = public / "link", a_file(closed / "file", 5)
    real.chmod(0o644)
    link.symlink_to(real)
    closed.chmod(0)
    with not_as_root():
        assert f"may not enter {closed}: setfacl -m u:" in refused(link).text


@pytest.mark.parametrize("name", ["x; reboot", "$(reboot)", "a b", "it's"])
def test_a_command_in_a_message_is_safe_to_paste(public: Path, name: str) -> None:
    """A client chose the name, and root may run the command as it is shown."""
    (public / name).mkdir(mode=0)
    with not_as_root():
        *_, word = shlex.split(refused(public / name / "file").text.rpartition(": ")[2])
    assert word == str(public / name)


def test_a_command_never_has_a_part_of_a_name(public: Path) -> None:
    """Where the message is cut, the quotes would no longer hold: the name's own would end them."""
    name = "a" * 120 + "'" + "b" * 200 + "\"$(reboot)\\'"
    reply = Reply.failed(file_error(f"{public}/{name}", PermissionError(errno.EACCES, "no")))
    assert "$(" not in reply.text.rpartition("setfacl")[2]
    assert reply.text.endswith(":r PATH")


def test_a_long_name_leaves_room_for_what_to_do(public: Path) -> None:
    """In the reply, which has 500 characters, of which each byte that cannot be shown takes six."""
    secret = a_file(public / ("n" * 200), 5)
    secret.chmod(0)
    with not_as_root():
        reply = Reply.failed(refused(secret))
    assert reply.text.endswith(f":r {secret}")
    missing = os.fsdecode(b"/" + b"\xff" * 200)
    assert Reply.failed(_refused(missing, [])).text.endswith(": no such file")


def test_files_with_permission_are_opened(public: Path) -> None:
    """Where the permissions allow, another user opens them: the test above does not fail for other reasons."""
    file = a_file(public / "open", 5)
    with not_as_root(), opened(file) as source:
        assert source.content == file.read_bytes()


def test_a_file_must_lie_under_a_root(tmp_path: Path) -> None:
    """The location of the opened file counts, not its path."""
    data, other = tmp_path / "data", tmp_path / "database"
    for directory in (data, other):
        (directory / "sub").mkdir(parents=True)
        a_file(directory / "sub/file", 5)
    (data / "out").symlink_to(other)
    (other / "in").symlink_to(data)
    for name in ("data/sub/file", "database/in/sub/file", "data/out/../data/sub/file"):
        with opened(tmp_path / name, data):
            pass
    for name in ("database/sub/file", "data/out/sub/file", "data/../database/sub/file"):
        assert refused(tmp_path / name, data).code == "NotAllowed"
    with opened(other / "sub/file", tmp_path / "elsewhere", other), opened(other / "sub/file", Path("/")):
        pass


def test_a_root_ends_at_a_slash(tmp_path: Path) -> None:
    """A trailing slash of a root makes no difference, and a longer name is not under it."""
    file = a_file(tmp_path / "file", 5)
    Source.open(str(file), [f"{tmp_path}/"]).close()
    assert refused(file, tmp_path / "fil").code == "NotAllowed"


def test_replacing_the_path_opens_nothing_else(tmp_path: Path) -> None:
    """While the path is replaced over and over, only the allowed file is ever opened, and nothing hangs."""
    data, outside = tmp_path / "data", tmp_path / "outside"
    data.mkdir()
    allowed = a_file(tmp_path / "data/allowed", 5).read_bytes()
    outside.write_bytes(b"secret")
    path, made = data / "file", data / "made"
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.link(data / "allowed", made)
            made.replace(path)
            made.symlink_to(outside)
            made.replace(path)
            os.mkfifo(made)
            made.replace(path)

    os.mkfifo(path)
    thread = threading.Thread(target=swap)
    thread.start()
    expected = {allowed, b"NotAllowed", b"NotRegularFile"}
    outcomes: set[bytes | None] = set()
    began = time.monotonic()
    try:
        for turn in itertools.count():
            if (turn >= 2000 and outcomes == expected) or time.monotonic() - began > 30:
                break
            try:
                with opened(path, data) as source:
                    if source.content is not None:  # a link that was made or removed meanwhile shows in its ctime
                        outcomes.add(source.content)
            except FileError as error:
                outcomes.add(error.code.encode())
    finally:
        stop.set()
        thread.join()
    assert outcomes == expected


def change_size(file: Path) -> None:
    with file.open("ab") as writer:
        writer.write(b"more")


def change_content(file: Path) -> None:
    with file.open("r+b") as writer:
        writer.write(b"new")


def change_content_and_restore_its_time(file: Path) -> None:
    before = file.stat()
    change_content(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_rename(file: Path) -> None:
    twin = a_file(file.with_name("twin"), file.stat().st_size)
    twin.replace(file)


CHANGES = {
    change_size: "size",
    change_content: "modification time",
    change_content_and_restore_its_time: "change time",
    replace_by_rename: "inode number",
    Path.touch: "modification time",
}


@pytest.mark.parametrize(("change", "named"), CHANGES.items())
def test_a_change_is_noticed(tmp_path: Path, change: object, named: str) -> None:
    """Another size, another time or another inode under the same path is another file; the error names which."""
    file = a_file(tmp_path / "file", 100_000)
    with opened(file) as source:
        assert callable(change)
        change(file)
        with pytest.raises(FileError) as caught:
            source.check_unchanged()
    assert caught.value.code == "FileChanged"
    assert str(caught.value).startswith(f"{file}: it changed while it was sent ({named}")  # and others, as it happens


def test_a_removal_is_noticed(tmp_path: Path) -> None:
    """Though the open descriptor can still read the file."""
    file = a_file(tmp_path / "file", 10)
    with opened(file) as source:
        file.unlink()
        with pytest.raises(FileError) as caught:
            source.check_unchanged()
    assert caught.value.code == "NoSuchFile"


def test_reading_from_the_page_cache(tmp_path: Path) -> None:
    """What was just read is there, where the file system can tell; at the end of the file there is nothing."""
    file = a_file(tmp_path / "file", 100_000)
    file.read_bytes()
    with opened(file) as source:
        first = source.read_now(0, 60_000)
        assert first in (None, file.read_bytes()[:60_000])
        if first is not None:
            assert source.read_now(60_000, 60_000) == file.read_bytes()[60_000:]
        assert source.read_now(100_000, 10) is None


class DyingDisk(Source):
    """A file whose content cannot be read any more, until `died` is set."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.path, source.fd, source.state, source.content)
        self.died = threading.Event()

    def read_piece(self, offset: int) -> bytes:
        """Return nothing new: a part of the file is in the page cache, and the rest never comes."""
        if offset:
            self.died.wait()
        return super().read_piece(offset)


@in_loop
async def test_the_md5_of_a_file(tmp_path: Path) -> None:
    """It is read in pieces, each of which the file system must give in time."""
    source = Source.open(str(a_file(tmp_path / "file", (2 << 20) + 1)))
    pieces = source.read_piece(0), source.read_piece(1 << 20), source.read_piece(2 << 20)
    assert await md5_of(source, 5.0) == hashlib.md5(b"".join(pieces)).hexdigest()
    dying = DyingDisk(source)
    try:
        with pytest.raises(FileError, match=r"the file system did not answer for 0\.05 s$") as caught:
            async with asyncio.timeout(5):
                await md5_of(dying, 0.05)
    finally:
        dying.died.set()
        source.close()
    assert caught.value.code == "ReadFailed"
    with pytest.raises(FileError, match="Bad file descriptor") as caught:
        await md5_of(source, 5.0)
    assert caught.value.code == "ReadFailed"


def test_a_refused_file_leaves_no_descriptor(tmp_path: Path) -> None:
    """Nor does a second close close another descriptor."""
    file = a_file(tmp_path / "file", 5)
    before = sorted(os.listdir("/proc/self/fd"))
    for path, roots in ((tmp_path, ()), (tmp_path / "none", ()), (file, (tmp_path / "none",))):
        refused(path, *roots)
    source = Source.open(str(file))
    source.close()
    other = os.open(file, os.O_RDONLY)
    source.close()
    os.close(other)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_an_error_of_the_close_is_none_of_the_attempt(tmp_path: Path) -> None:
    """As of a file system whose server is gone; and a second close closes no other descriptor."""
    source = Source.open(str(a_file(tmp_path / "file", 5)))
    os.close(number := source.fd)  # so that the next one fails
    source.close()
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, number)
    source.close()
    os.close(number)
    if other != number:
        os.close(other)


@in_loop
async def test_a_file_is_opened_in_a_thread_too(tmp_path: Path) -> None:
    """With the roots and the closed paths that are given; its errors come through."""
    file = a_file(tmp_path / "file", 5)
    for at_once in (Source.open_in_memory, not_in_memory):
        source = await open_file(str(file), [str(tmp_path)], [], 10.0, at_once=at_once)
        assert source.content == file.read_bytes()
        source.close()
        for roots, closed in (([str(tmp_path / "other")], []), ([], [str(tmp_path)])):
            with pytest.raises(FileError) as caught:
                await open_file(str(file), roots, closed, 10.0, at_once=at_once)
            assert caught.value.code == "NotAllowed"


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A directory that a block device holds."""
    if not is_held_by_a_block_device(tmp_path.stat().st_dev):
        pytest.skip("no block device holds the temporary files")
    return tmp_path


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, SMALL_BYTES, SMALL_BYTES + 1, 1 << 20])
def test_what_was_just_written_is_in_memory(on_disk: Path, size: int) -> None:
    """It is opened as a thread would, and found unchanged until it is changed; no descriptor is left open."""
    file, before = a_file(on_disk / "file", size), sorted(os.listdir("/proc/self/fd"))
    (on_disk / "link").symlink_to("file")
    (on_disk / "state").mkdir()
    a_file(on_disk / "state/spool.db", 5)
    assert not (on_disk / "missing").exists()  # and the kernel remembers
    (on_disk / "link").stat()  # the time of the first use is written to the disk
    for path in (file, on_disk / "link"):
        source = Source.open_in_memory(str(path), [str(on_disk)], [str(on_disk / "state"), str(on_disk / "missing")])
        assert source is not None
        with opened(file) as other:
            assert (source.state, source.content) == (other.state, other.content)
        assert source.is_unchanged_in_memory()
        source.close()
    with file.open("ab") as appended:
        appended.write(b"x")
    assert source is not None
    assert not source.is_unchanged_in_memory()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_no_file_system_is_asked_for_what_is_not_in_memory(on_disk: Path) -> None:
    """Neither for the content of a small file, nor for its name below a link of a root, nor where none has a disk."""
    file = a_file(on_disk / "file", 3000)
    with file.open("rb") as written:
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert Source.open_in_memory(str(file)) is None
    with opened(file) as source:
        assert source.content == file.read_bytes()
    (on_disk / "root").symlink_to(on_disk)
    assert Source.open_in_memory(str(file), [str(on_disk / "root")]) is None
    with opened(file, on_disk / "root"):
        pass
    assert Source.open_in_memory(str(file), [str(on_disk)]) is not None
    assert Source.open_in_memory("/proc/self/status") is None
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as elsewhere:
        assert Source.open_in_memory(elsewhere.name) is None


def test_after_a_call_that_waited_threads_are_used_for_a_while() -> None:
    """Also after one that raised; and then it is tried again."""
    clock = Clock()
    promptness = Promptness(clock)

    def call(seconds: float, error: bool = False) -> str:
        clock.now += seconds
        if error:
            raise FileError("NotAllowed", "not allowed")
        return "opened"

    assert promptness.call(lambda: call(SLOW_S / 2)) == "opened"
    assert promptness.call(lambda: call(2 * SLOW_S)) == "opened"
    assert promptness.call(lambda: call(0)) is None
    clock.now += THREADS_FOR_S
    with pytest.raises(FileError):
        promptness.call(lambda: call(2 * SLOW_S, error=True))
    assert promptness.call(lambda: call(0)) is None
    clock.now += THREADS_FOR_S
    assert promptness.call(lambda: call(0)) == "opened"


def test_the_kernels_memory_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    """The device is what `os.stat` says, of whatever file system; a missing path is missing."""
    for path in (str(tmp_path), "/proc", "/dev/null", "/dev/shm"):
        name = look_up(path)
        assert device_of(name) == os.stat(path).st_dev
        assert os.fstat(name).st_ino == os.stat(path).st_ino
        os.close(name)
    missing = str(tmp_path / "missing")
    assert not os.path.lexists(missing)  # and the kernel remembers, but for a tmpfs, as /tmp may be
    with pytest.raises(FileNotFoundError):
        look_up(f"{tmp_path}\0")
    if type_of(os.stat(tmp_path).st_dev) == "tmpfs":
        assert is_missing(missing)
    else:
        with pytest.raises(FileNotFoundError):
            look_up(missing)
    assert is_missing("/dev/shm/s3daemon-missing")
    assert not is_missing("/dev/shm")


def not_in_memory(*_: object) -> None:
    """What `open_in_memory` returns of a file on a file system that has to be asked."""


class SlowOpener:
    """Opens a file when the file system answers."""

    def __init__(self) -> None:
        self.answers, self.opened = threading.Event(), list[Source]()

    def __call__(self, path: str, roots: Sequence[str], closed: Sequence[str]) -> Source:
        self.answers.wait()
        self.opened.append(Source.open(path))
        return self.opened[0]

    async def open_and_be_closed(self) -> None:
        """Let the file system answer, and wait until what was opened then is closed."""
        self.answers.set()
        await until(lambda: bool(self.opened) and self.opened[0].fd < 0)


@in_loop
async def test_a_file_system_that_does_not_answer_in_time(tmp_path: Path) -> None:
    """The error comes at the limit; what is opened later is closed, so that no descriptor is lost."""
    slowly = SlowOpener()
    file = a_file(tmp_path / "file", 5)
    with pytest.raises(FileError) as caught:
        await open_file(str(file), [], [], 0.05, slowly, at_once=not_in_memory)
    assert (caught.value.code, "did not answer for 0.05 s" in caught.value.text) == ("ReadFailed", True)
    await slowly.open_and_be_closed()


@in_loop
async def test_what_opens_after_its_attempt_was_cancelled_is_closed(tmp_path: Path) -> None:
    slowly = SlowOpener()
    opening = asyncio.create_task(
        open_file(str(a_file(tmp_path / "file", 5)), [], [], 60.0, slowly, at_once=not_in_memory)
    )
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await slowly.open_and_be_closed()


@pytest.mark.parametrize(
    "own", ["state/spool.db", "state/spool.db-wal", "credentials", "link", "services/s3daemon/key"]
)
def test_the_daemons_own_files_are_refused_by_any_hard_link(tmp_path: Path, own: str) -> None:
    """Their path is another one then, their device and inode are not."""
    for name in ("state", "services/s3daemon", "public"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("state/spool.db", "state/spool.db-wal", "credentials", "services/s3daemon/key", "public/other"):
        a_file(tmp_path / name, 5)
    (tmp_path / "link").symlink_to("credentials")
    closed = [str(tmp_path / name) for name in ("missing", "services", "state", "link")]
    os.link((tmp_path / own).resolve(), tmp_path / "public/innocent")
    error = _refused(str(tmp_path / "public/innocent"), [str(tmp_path / "public")], closed)
    assert (error.code, "it is one of the daemon's own files" in error.text) == ("NotAllowed", True)
    Source.open(str(tmp_path / "public/other"), [str(tmp_path / "public")], closed).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount takes root")
@pytest.mark.parametrize(("mounted", "path"), [("state", "public/spool.db"), ("state/spool.db", "public")])
def test_the_daemons_own_files_are_refused_by_a_bind_mount(tmp_path: Path, mounted: str, path: str) -> None:
    """Of the directory or of the file."""
    (tmp_path / "state").mkdir()
    a_file(tmp_path / "state/spool.db", 5)
    if mounted == "state":
        (tmp_path / "public").mkdir()
    else:
        (tmp_path / "public").touch()
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$5" "$6"'
    code = "import sys; from s3daemon.model.files.source import Source; Source.open(sys.argv[1], (), sys.argv[2:])"
    words = [tmp_path / mounted, tmp_path / "public", sys.executable, code, tmp_path / path, tmp_path / "state"]
    command = ["unshare", "--mount", "bash", "-c", script, "mount", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert "it is one of the daemon's own files" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount takes root")
@pytest.mark.parametrize("name", ["a\r\rb", "a\u2028\u2028b", "a\u3000-\u3000b", "a b", "a\nb", "a\\b"])
def test_any_name_of_a_mount_is_read(tmp_path: Path, name: str) -> None:
    """Only the kernel's own blanks and line feeds part what it tells of its mounts."""
    (tmp_path / name).mkdir()
    code = (
        "import os, sys; from s3daemon.model.files.memory import type_of; "
        "print(*(type_of(os.stat(path).st_dev) for path in sys.argv[1:]))"
    )
    assert with_a_tmpfs(tmp_path / name, code, tmp_path / name).split() == ["tmpfs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount takes root")
def test_a_file_system_mounted_among_the_daemons_own_files_is_not_asked(on_disk: Path) -> None:
    """It may not answer: the file is opened in a thread."""
    (on_disk / "state/other").mkdir(parents=True)
    code = (
        "import sys; from s3daemon.model.files.source import Source; "
        "print(Source.open_in_memory(*sys.argv[1:2], (), sys.argv[2:]), Source.open(*sys.argv[1:2]).content)"
    )
    file = a_file(on_disk / "file", 0)
    assert with_a_tmpfs(on_disk / "state/other", code, file, on_disk / "state") == "None b''\n"


def with_a_tmpfs(directory: Path, code: str, *words: Path) -> str:
    """Run Python with a tmpfs mounted at a directory; returns what it prints."""
    script = 'mount -t tmpfs tmpfs "$1" && shift && exec "$@"'
    command = ["unshare", "--mount", "bash", "-c", script, "mount", directory, sys.executable, "-c", code, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("mounting is not allowed here")
    assert not done.stderr
    return done.stdout


def test_what_cannot_be_looked_up_is_not_taken_for_a_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor to list the daemon's own files, none is sent."""
    (tmp_path / "state").mkdir()

    def no_descriptor(path: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "scandir", no_descriptor)
    with pytest.raises(FileError, match="no descriptor") as caught:
        Source.open(str(a_file(tmp_path / "file", 5)), [], [str(tmp_path / "state")])
    assert caught.value.code == "HostLimit"


@pytest.mark.parametrize(
    "name", ["/dev/fd/{}", "//dev//./fd/{}", "/data/../dev/fd/{}", "/proc/self/fd/{}", "/proc/thread-self/fd/{}"]
)
def test_a_descriptor_of_this_process_is_not_the_clients(public: Path, name: str) -> None:
    """A client's `<(command)` is /dev/fd/63, where this process may have the file of another transfer."""
    other = os.open(a_file(public / "other", 5), os.O_RDONLY)
    try:
        assert refused(name.format(other)).code == "NotRegularFile"
    finally:
        os.close(other)


def test_standard_input_is_not_the_clients() -> None:
    assert "another file's in each process" in refused("/dev/stdin").text
