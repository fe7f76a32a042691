"""Look up a path in the kernel's memory: no file system is asked, so nothing waits for one.

A file that has just been written is in memory whole. Opening it in a thread takes a tenth of the CPU time of a small
file, most of it for Python's lock: each call to the system gives it away.

openat2(2) with RESOLVE_CACHED (Linux 5.12) fails where a file system would have to be asked; statx(2) with
AT_STATX_DONT_SYNC does not ask one. Python has neither call. On an older kernel nothing counts as in memory.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from s3daemon.clock import Clock

_T = TypeVar("_T")

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
#: Of linux/fcntl.h and linux/openat2.h; the number of the call is the same on every architecture of ours.
_SYS_OPENAT2, _AT_FDCWD, _AT_EMPTY_PATH, _AT_STATX_DONT_SYNC = 437, -100, 0x1000, 0x4000
_RESOLVE_CACHED = 0x20
_HOW = struct.pack("QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
#: Of struct statx: its length, and where the device's number is.
_STATX_BYTES, _DEVICE = 256, struct.Struct("@II")
_DEVICE_AT = 136

#: Opening a file in memory takes 0.1 ms, 7 ms at worst on a host with twice as much to do as it has processors. After
#: one that took so long, seconds, threads open files for a while, seconds.
SLOW_S, THREADS_FOR_S = 0.02, 60.0


class Promptness:
    """Makes calls in the event loop, unless one of them has waited lately.

    That no file system is asked is not all: a virus scanner may have the kernel wait for its answer to each opening
    (FAN_OPEN_PERM of fanotify_mark(2)), and the lock of a file system's journal may be taken.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._threads_until = 0.0

    def call(self, call: Callable[[], _T]) -> _T | None:
        """Return what `call` returns; None, without calling it, where a thread has to be used for now."""
        began = self._clock()
        if began < self._threads_until:
            return None
        try:
            return call()
        finally:
            now = self._clock()
            if now - began > SLOW_S:
                self._threads_until = now + THREADS_FOR_S


def look_up(path: str) -> int:
    """Return an `O_PATH` descriptor of what a path names.

    Raises:
        BlockingIOError: a file system would have to be asked.
        OSError: it is not there, or may not be looked up; or the kernel knows no such call.
    """
    name = os.fsencode(path)
    if b"\0" in name:
        raise FileNotFoundError(path)
    found = int(_LIBC.syscall(_SYS_OPENAT2, _AT_FDCWD, name, _HOW, len(_HOW)))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return found


def is_missing(path: str) -> bool:
    """Whether nothing is at a path that `look_up` did not find in memory; False where that is not known.

    The kernel forgets at once which names a tmpfs does not have, and is asked again.
    """
    try:
        above = look_up(os.path.dirname(path))  # noqa: PTH120 - as in `source`
        try:
            return type_of(device_of(above)) == "tmpfs" and not os.path.lexists(path)
        finally:
            os.close(above)
    except OSError:
        return False


def device_of(descriptor: int) -> int:
    """Return the number of the device that an `O_PATH` descriptor's file is on.

    Raises:
        OSError: it cannot be told.
    """
    result = ctypes.create_string_buffer(_STATX_BYTES)
    if _LIBC.statx(descriptor, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, 0, result):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return os.makedev(*_DEVICE.unpack_from(result, _DEVICE_AT))


@lru_cache
def is_held_by_a_block_device(device: int) -> bool:
    """Whether the kernel alone answers for a device's files: no server, program (FUSE) or other host is asked."""
    return os.major(device) != 0 and type_of(device) not in ("", "fuseblk", "gfs2", "ocfs2")


def type_of(device: int) -> str:
    """The type of a file system, "" where this process does not see it mounted."""
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    # By bytes: the kernel quotes only blanks, tabs and line feeds, and to `str` more than these part words and lines.
    mounts = (line.split(b" ") for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1])
    return next((os.fsdecode(words[words.index(b"-") + 1]) for words in mounts if words[2] == number), "")
