"""A regular file, opened for sending: checked before it is opened, and again after it was sent.

The checks are made on an `O_PATH` descriptor, and exactly the inode that passed them is opened: no FIFO is waited for,
no device is touched, and no rename or symlink can come between. The file's location is the path that the kernel reports
for the descriptor. For a mount in another mount namespace (reached by /proc/PID/root) that path is one of that
namespace, so such a file lies under no root. The daemon's own files are known by device and inode, which hard links and
bind mounts share.

What the kernel has in memory is opened in the event loop (`memory`); a file system that has to be asked may not answer,
so that is done in a thread. Each call to the system gives Python's lock away and takes it again, which costs more than
the call: there are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from s3daemon.errors import HOST_LIMIT_TEXT, Code, FileError, is_host_limit, one_line
from s3daemon.model.files.calls import call_in_time, file_calls, outlast
from s3daemon.model.files.memory import device_of, is_held_by_a_block_device, is_missing, look_up, type_of
from s3daemon.model.request import FileState

#: Up to this size a file, or a part of one, is small: a few packets, which take no share of the bandwidth and have no
#: rate. It is read whole by the thread that opens it, and hashed in the event loop: one switch to a thread, not three.
SMALL_BYTES = 64 * 1024

_PIECE_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
#: The kernel gives their files the size 0, or that of a page, whatever can be read there, and no blocks.
_KERNEL_FILE_SYSTEMS = ("proc", "sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs")
#: Names that the kernel resolves for the process that opens them. A client's `<(command)` is /dev/fd/63, where this
#: process may have the file of another transfer.
_OF_A_PROCESS = re.compile(r"/+(?:dev/(?:fd/|std(?:in|out|err)$)|proc/(?:self|thread-self)/)")
_REASONS = {
    errno.ENOENT: (Code.NO_SUCH_FILE, "no such file"),
    errno.ENOTDIR: (Code.NO_SUCH_FILE, "no such file: part of the path is not a directory"),
    errno.ELOOP: (Code.NO_SUCH_FILE, "no such file: too many symbolic links"),
    errno.ENAMETOOLONG: (Code.NO_SUCH_FILE, "no such file: the name is too long"),
}

#: Characters of a name where a message has it twice: all of a message has 500.
_NAME_CHARS = 150


def file_error(path: str, exc: OSError) -> FileError:
    """Return the error that `exc` means for the file at `path`. Blocks like `Source.open`."""
    if exc.errno in (errno.EACCES, errno.EPERM):
        return _denied(path)
    if is_host_limit(exc):
        return FileError(Code.HOST_LIMIT, f"{one_line(path)}: {HOST_LIMIT_TEXT}")
    code, text = _REASONS.get(exc.errno or 0, (Code.READ_FAILED, exc.strerror or "read error"))
    return FileError(code, f"{one_line(path)}: {text}")


def _denied(path: str) -> FileError:
    """Return the error of a path that the user of this process may not open: where it ends, and the command to run."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    fault, right, name = "may not read it", "r", path
    for directory in reversed(Path(os.path.realpath(path)).parents):  # what a symbolic link leads through, too
        if not os.access(directory, os.X_OK, effective_ids=True):
            name = str(directory)
            fault, right = f"may not enter {one_line(name, _NAME_CHARS)}", "x"
            break
    text = f"{one_line(path, _NAME_CHARS)}: user {user} {fault}: setfacl -m u:{user}:{right} "
    # A client chose the name, and root may paste the command. A word that is cut is not quoted any more.
    whole = text + shlex.quote(one_line(name))
    return FileError(Code.NOT_READABLE, whole if one_line(whole) == whole else f"{text}PATH")


class Source:
    """A regular file, open for reading. Whoever opened it closes it.

    Args:
        path: the path that was opened.
        fd: its descriptor, owned by this object from now on.
        state: the file as it was when opened.
        content: the whole content of a small file; None for a larger one, and where it could not be read.
    """

    def __init__(self, path: str, fd: int, state: FileState, content: bytes | None) -> None:
        self.path = path
        self.fd = fd
        self.state = state
        self.content = content

    @classmethod
    def open(cls, path: str, roots: Sequence[str] = (), closed: Sequence[str] = ()) -> Source:
        """Open and check a file. Blocks as long as its file system does: call it in a thread, as `open_file` does.

        Args:
            path: absolute.
            roots: directories; the opened file must lie under one of them. Empty: it may lie anywhere.
            closed: files and directories that may not be sent, whatever `roots` allow.

        Raises:
            FileError: `NoSuchFile`, `NotRegularFile`, `NotReadable`, `NotAllowed` or `ReadFailed`.
        """
        if _OF_A_PROCESS.match(os.path.normpath(path)):
            text = "the name is another file's in each process: write the content to a file, and give that one's name"
            raise FileError(Code.NOT_REGULAR_FILE, f"{one_line(path)}: {text}")
        try:
            name = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                return cls._open(path, name, roots, closed)
            finally:
                os.close(name)
        except OSError as exc:
            raise file_error(path, exc) from exc

    @classmethod
    def open_in_memory(cls, path: str, roots: Sequence[str] = (), closed: Sequence[str] = ()) -> Source | None:
        """Open and check a file as `open` does, asking no file system; None where one has to be asked, or refuses.

        Raises:
            FileError: `NotRegularFile`, `NotAllowed`.
        """
        if _OF_A_PROCESS.match(os.path.normpath(path)):
            return None
        try:
            name = look_up(path)
            try:
                device = device_of(name)
                if not is_held_by_a_block_device(device):
                    return None
                near = [each for each in closed if _may_lie_on(each, device)]
                return cls._open(path, name, roots, near, os.RWF_NOWAIT)
            finally:
                os.close(name)
        except OSError:
            return None

    @classmethod
    def _open(cls, path: str, name: int, roots: Sequence[str], closed: Sequence[str], flags: int = 0) -> Source:
        """Open the file that `name` is a descriptor of.

        Args:
            path: as for `open`.
            name: an `O_PATH` descriptor.
            roots: as for `open`.
            closed: as for `open`.
            flags: RWF_NOWAIT: no file system is asked.

        Raises:
            FileError: it may not be sent.
            OSError: it cannot be opened, or not without asking a file system.
        """
        found = os.fstat(name)
        if kind := _other_kind(found):
            raise FileError(Code.NOT_REGULAR_FILE, f"{one_line(path)}: {kind}, not a regular file")
        if _is_one_of(found, closed, flags):
            raise FileError(Code.NOT_ALLOWED, f"{one_line(path)}: it is one of the daemon's own files")
        if roots:
            _check_location(path, name, roots, flags)
        # A program that has a lease on the file, as Samba for its clients, is asked to give it up: a thread waits.
        at_once = os.O_NONBLOCK if flags else 0
        fd = os.open(f"/proc/self/fd/{name}", os.O_RDONLY | os.O_CLOEXEC | at_once)
        try:
            state = FileState.of(os.fstat(fd))
            if state.size > SMALL_BYTES:
                return cls(path, fd, state, None)
            content, now = _read_whole(fd, state.size, flags), FileState.of(os.fstat(fd))
            if content is not None and has_false_size(len(content), state, now):
                text = "its size is not that of its content: the file system generates it"
                raise FileError(Code.NOT_REGULAR_FILE, f"{one_line(path)}: {text}")
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, now, content if now == state else None)

    def check_unchanged(self) -> None:
        """Check that the path still names the file that was opened, unchanged. Blocks like `open`.

        Size, times and inode of the *path* are compared: a rename over it leaves the open descriptor as it was. What
        another program writes into a memory mapping shows in no time before the kernel writes it back.

        Raises:
            FileError: `FileChanged`, or `NoSuchFile` when it is gone.
        """
        try:
            # Not pathlib, which interns every part of a name: that was the only growth of memory in 100 000 transfers.
            now = FileState.of(os.stat(self.path))  # noqa: PTH116
        except OSError as exc:
            raise file_error(self.path, exc) from exc
        if now != self.state:
            text = f"{one_line(self.path)}: it changed while it was sent ({now.difference(self.state)})"
            raise FileError(Code.FILE_CHANGED, text)

    def is_unchanged_in_memory(self) -> bool:
        """Whether the kernel's memory shows the file unchanged; asks no file system, which `check_unchanged` does."""
        try:
            name = look_up(self.path)
            try:
                return is_held_by_a_block_device(device_of(name)) and FileState.of(os.fstat(name)) == self.state
            finally:
                os.close(name)
        except OSError:
            return False

    def read_now(self, offset: int, size: int) -> bytes | bytearray | None:
        """Return what the page cache has there; None when a read would block or the file system cannot tell (tmpfs)."""
        buffer = bytearray(size)
        try:
            got = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise
        if not got:
            return None
        if got < size:
            del buffer[got:]
        return buffer

    def read_piece(self, offset: int) -> bytes:
        """Return up to 1 MiB from `offset` on, bytes; nothing at the end. Blocks like `open`.

        Raises:
            FileError: it cannot be read.
        """
        try:
            return os.pread(self.fd, _PIECE_BYTES, offset)
        except OSError as exc:
            raise file_error(self.path, exc) from exc

    def close(self) -> None:
        """Close the descriptor; a second call does nothing. An error, which a lost file system gives, says nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # Linux has closed it all the same
                os.close(fd)


def _other_kind(found: os.stat_result) -> str:
    """Return the kind of a file that is not a regular one with a size of its own; else ""."""
    if not stat.S_ISREG(found.st_mode):
        return next((kind for test, kind in _KINDS if test(found.st_mode)), "something else")
    if found.st_blocks == 0 and (kind := type_of(found.st_dev)) in _KERNEL_FILE_SYSTEMS:
        return f"a file that the kernel generates ({kind})"
    return ""


def _read_whole(fd: int, size: int, flags: int) -> bytes | None:
    """Read a file of `size` bytes, and one more if there is one; return None if it cannot be read.

    Its request is accepted all the same, as where it changes meanwhile: an attempt finds that out, as of a larger file,
    and the next one may not.

    Raises:
        OSError: it may not be read, or has no size; with RWF_NOWAIT, not all of it can be without asking a file system.
    """
    content = bytearray(size + 1)
    try:
        got = os.preadv(fd, [content], 0, flags)
    except OSError as exc:
        if flags or not size or exc.errno in (errno.EACCES, errno.EPERM):
            raise  # of no size the attempt would read nothing, and store that
        return None
    if flags and got < size:
        raise BlockingIOError(errno.EAGAIN, "not in memory")
    return bytes(content[:got])


def has_false_size(got: int, before: FileState, after: FileState) -> bool:
    """Return whether a file with such states, before and after so many bytes were read, has no size of its own.

    A program may make a file longer and shorter meanwhile, but hardly begin it anew twice.
    """
    return got != before.size and (after == before or before.size == after.size == 0)


async def open_file(
    path: str,
    roots: Sequence[str],
    closed: Sequence[str],
    timeout_s: float,
    opener: Callable[[str, Sequence[str], Sequence[str]], Source] = Source.open,
    *,
    at_once: Callable[[str, Sequence[str], Sequence[str]], Source | None] = Source.open_in_memory,
) -> Source:
    """Open and check a file; in a thread if a file system has to be asked, which delays no other transfer then.

    Args:
        path: as for `Source.open`.
        roots: likewise.
        closed: likewise.
        timeout_s: how long the file system may take, seconds.
        opener: `Source.open`, or a fake.
        at_once: `Source.open_in_memory`, or a fake.

    Raises:
        FileError: it cannot be sent, its file system does not answer, or this host has had no descriptor for long.
    """
    calls = file_calls()
    await calls.turns.take()
    if (source := calls.promptness.call(lambda: at_once(path, roots, closed))) is not None:
        return source
    return await outlast(lambda: _open_once(partial(opener, path, roots, closed), path, timeout_s))


async def _open_once(opener: Callable[[], Source], path: str, timeout_s: float) -> Source:
    opening = file_calls().run(opener)
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(opening)
    except TimeoutError as exc:
        opening.add_done_callback(_close_late)
        text = f"{one_line(path)}: its file system did not answer for {timeout_s:g} s"
        raise FileError(Code.READ_FAILED, text) from exc
    except asyncio.CancelledError:
        opening.add_done_callback(_close_late)
        raise


async def check_unchanged(source: Source, timeout_s: float) -> None:
    """Check that an open file is unchanged; in a thread if its file system has to be asked.

    Args:
        source: the file.
        timeout_s: how long the file system may take, seconds.

    Raises:
        FileError: as `Source.check_unchanged`, or its file system does not answer.
    """
    if not source.is_unchanged_in_memory():
        await call_in_time(source.check_unchanged, timeout_s, source.path)


async def md5_of(source: Source, timeout_s: float) -> str:
    """Return the hex MD5 of an open file, which is read and hashed in a thread.

    Args:
        source: the file.
        timeout_s: how long the file system may take for each piece, seconds.

    Raises:
        FileError: it cannot be read, or its file system does not answer.
    """
    digest, offset = hashlib.md5(usedforsecurity=False), 0

    def hash_piece() -> int:
        piece = source.read_piece(offset)
        digest.update(piece)
        return len(piece)

    while length := await call_in_time(hash_piece, timeout_s, source.path):
        offset += length
    return digest.hexdigest()


def _close_late(opening: asyncio.Future[Source]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _check_location(path: str, name: int, roots: Sequence[str], flags: int) -> None:
    """Check that a file lies under one of these directories.

    Raises:
        FileError: it does not.
        OSError: it cannot be told; with RWF_NOWAIT also, not without asking a file system.
    """
    real = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - as above
    if not _is_under(real, roots):
        if flags:
            raise BlockingIOError(errno.EAGAIN, "a root may be a link")
        # Resolved each time: a link's target may have changed, or a file system is mounted late.
        roots = [os.path.realpath(root) for root in roots]
    if not (_is_under(real, roots) and _is_mounted_here(name)):
        raise FileError(
            Code.NOT_ALLOWED,
            f"{one_line(path, _NAME_CHARS)}: {one_line(real, _NAME_CHARS)} is not under S3DAEMON_ALLOWED_ROOTS",
        )


def _is_under(real: str, directories: Sequence[str]) -> bool:
    return any(f"{real}/".startswith(directory.rstrip("/") + "/") for directory in directories)


def _may_lie_on(path: str, device: int) -> bool:
    """Whether a device may hold what is at a path, or in a directory there; no file system is asked.

    What is mounted below a directory on another device does not count: the daemon keeps nothing there.

    Raises:
        BlockingIOError: that cannot be told.
    """
    try:
        name = look_up(path)
    except (FileNotFoundError, PermissionError):
        return False  # as in `_inodes_in`
    except BlockingIOError:
        if is_missing(path):
            return False
        raise
    try:
        return device_of(name) == device
    finally:
        os.close(name)


def _is_one_of(found: os.stat_result, closed: Sequence[str], flags: int) -> bool:
    """Whether a file is one of `closed`, or lies in a directory of these, by a hard link or a bind mount too.

    Raises:
        OSError: that cannot be told; with RWF_NOWAIT also, not without asking another file system.
    """
    return any(found.st_ino in _inodes_in(path, found.st_dev, flags) for path in closed)


def _inodes_in(path: str, device: int, flags: int) -> Iterator[int]:
    """Find the inodes of the files in a directory that lie on a device; a path that is a file's finds that."""
    try:
        here = os.stat(path)  # noqa: PTH116 - as above
        if not stat.S_ISDIR(here.st_mode):
            if here.st_dev == device:
                yield here.st_ino
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):  # /run/credentials has a file system for each service
                    if flags and not _may_lie_on(entry.path, device):
                        raise BlockingIOError(errno.EAGAIN, "another file system is mounted there")
                    yield from _inodes_in(entry.path, device, flags)
                elif here.st_dev == device:
                    yield entry.inode()
    except (FileNotFoundError, PermissionError):
        pass  # what this user may not look into it cannot have put there, nor read


def _is_mounted_here(name: int) -> bool:
    mount = re.search(rb"^mnt_id:\s*(\d+)$", Path(f"/proc/self/fdinfo/{name}").read_bytes(), re.MULTILINE)
    mounts = Path("/proc/self/mountinfo").read_bytes()
    return mount is not None and f"\n{int(mount[1])} ".encode() in b"\n" + mounts
