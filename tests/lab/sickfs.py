"""A faulty file system: reads of some files never end, others fail with EIO until a test ends that. FUSE, so root.

It runs as a program of its own (this module), which is killed at the end: what still waits in it then gets an error.
"""

from __future__ import annotations

import ctypes.util
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.env import TREE, UnavailableError, clean_env
from lab.processes import Process, start

SIZE = 1 << 20
#: From here on a read of `broken…` or `hung…` meets its fault.
GOOD_BYTES = 256 << 10


class SickFs:
    """The mounted file system. Made by ``sickfs``.

    By a file's name: ``well…`` has no fault, a read of ``hung…`` never ends, an open of ``mute…`` never does, a read of
    ``broken…`` fails with EIO until ``heal``, an open of ``moved…`` with ESTALE until the kernel looks it up anew. What
    ends in ``small`` has 3000 bytes, of which each read meets the fault.
    """

    def __init__(self, root: Path, flag: Path, process: Process) -> None:
        """Describe it."""
        self._root, self._flag, self._process = root, flag, process

    def file(self, name: str) -> Path:
        """A file of it; all are there."""
        return self._root / name

    def heal(self) -> None:
        """No more EIO."""
        self._flag.touch()

    def end(self) -> None:
        """What waits in it gets an error, at once."""
        self._process.popen.kill()  # asked politely it would wait for the reads that never end
        self._process.popen.wait()
        subprocess.run(["umount", "-l", str(self._root)], check=False, capture_output=True)


def size_of(name: str) -> int:
    """The size of a file of this name."""
    return 3000 if name.endswith("small") else SIZE


def content(name: str) -> bytes:
    """What is in a file of this name."""
    return (name.encode() * (SIZE // len(name) + 1))[: size_of(name)]


@contextmanager
def sickfs(directory: Path) -> Iterator[SickFs]:
    """Mount one in a directory; raises UnavailableError where that is not possible."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not ctypes.util.find_library("fuse"):
        raise UnavailableError("a FUSE file system takes root, /dev/fuse and libfuse")
    root, flag = directory / "sick", directory / "healed"
    root.mkdir()
    environ = clean_env(PYTHONPATH=f"{TREE}:{TREE / 'tests'}")
    with start(sys.executable, "-m", "lab.sickfs", root, flag, name="sickfs", env=environ) as process:
        made = SickFs(root, flag, process)
        try:
            process.wait_line("mounted")
            yield made
        finally:
            made.end()


class Outdated:
    """The files that the kernel remembers and that have been replaced since."""

    def __init__(self) -> None:
        self._failed = dict[str, bool]()  # whether no look-up has followed the open that failed

    def look_up(self, path: str, opened: int | None) -> None:
        """Note that a path, unless it is that of an opened file, was looked up."""
        if opened is None and path in self._failed:
            self._failed[path] = False

    def check(self, path: str) -> None:
        """Raise ESTALE for a file that was replaced, unless it was looked up after that."""
        if path.startswith("/moved") and self._failed.setdefault(path, True):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _mount(root: str, flag: str) -> None:
    import mfusepy

    outdated = Outdated()

    class Faulty(mfusepy.Operations):  # type: ignore[misc, unused-ignore]
        def init(self, path: str) -> None:
            print("mounted", flush=True)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            outdated.look_up(path, fh)
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": size_of(path), "st_mtime": 1e9}

        def open(self, path: str, flags: int) -> int:
            if path.startswith("/mute"):
                time.sleep(1e6)
            outdated.check(path)
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            faulty = offset + size > GOOD_BYTES or size_of(path) < SIZE
            if faulty and path.startswith("/hung"):
                time.sleep(1e6)
            if faulty and path.startswith("/broken") and not Path(flag).exists():
                raise mfusepy.FuseOSError(errno.EIO)
            return content(path[1:])[offset : offset + size]

    mfusepy.FUSE(Faulty(), root, foreground=True)


if __name__ == "__main__":
    _mount(sys.argv[1], sys.argv[2])
