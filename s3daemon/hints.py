"""What was found about a store, kept over restarts in a small file of the state directory.

    {"endpoint": "https://s3.example.org", "rate_bps": 994000000}

It is a hint: a missing file, a damaged one and one of another endpoint mean that nothing is known yet.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAX_BYTES = 4096
#: What the content of a damaged file, and the values in it, can raise.
_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
#: Opening a pipe would wait for its other end.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class HintFile(Generic[_T]):
    """One file with one value.

    Args:
        path: of the file.
        endpoint: the URL of the store that the value belongs to.
        name: of the value in the file.
        check: returns a value that was read, or raises ValueError, TypeError or AttributeError if it cannot be one.
    """

    def __init__(self, path: Path, endpoint: str, name: str, check: Callable[[Any], _T]) -> None:
        self._path = path
        self._endpoint = endpoint
        self._name = name
        self._check = check
        self._failed = False

    def read(self) -> _T | None:
        """Return the value; None when none is known for this endpoint. Blocks on the disk."""
        try:
            found = json.loads(_content(self._path))
            endpoint, value = found["endpoint"], self._check(found[self._name])
        except FileNotFoundError:
            return None
        except OSError as exc:
            why = exc.strerror or "it cannot be read"
        except _DAMAGE:
            why = "it is not a hint of this program"
        else:
            return value if endpoint == self._endpoint else None
        _log.warning("%s cannot be used, and its content is found anew: %s", self._path, why)
        return None

    def write(self, value: _T) -> None:
        """Replace the file in one step. What cannot be written is found anew after a restart. Blocks on the disk."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.unlink(missing_ok=True)
            with new.open("x") as file:  # a new one: a pipe of that name would block
                file.write(json.dumps({"endpoint": self._endpoint, self._name: value}) + "\n")
            new.replace(self._path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                new.unlink()
            if not self._failed:
                _log.info("%s cannot be written; its content is found anew after a restart: %s", self._path, exc)
            self._failed = True


def _content(path: Path) -> bytes:
    """Return the start of a file, all of a hint.

    Raises:
        OSError: there is none, it cannot be read, or it is something else than a regular file.
    """
    if not stat.S_ISREG(path.lstat().st_mode):  # before it is opened, which some devices notice
        raise OSError(errno.EINVAL, "it is not a regular file; remove it")
    fd = os.open(path, _FLAGS)
    try:
        return os.read(fd, _MAX_BYTES)
    finally:
        os.close(fd)
