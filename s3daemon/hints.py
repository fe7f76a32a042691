"""What was found about a store, kept over restarts in a small file of the state directory.

    {"endpoint": "https://s3.example.org", "rate_bps": 994000000}

It is a hint: a missing file, a damaged one and one of another endpoint mean that nothing is known yet.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_MAX_BYTES = 4096
#: What reading a damaged file, and the values in it, can raise.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


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
            with self._path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            endpoint, value = found["endpoint"], self._check(found[self._name])
        except FileNotFoundError:
            return None
        except _DAMAGE as exc:
            _log.warning("%s cannot be used, and its content is found anew: %s", self._path, exc)
            return None
        return value if endpoint == self._endpoint else None

    def write(self, value: _T) -> None:
        """Replace the file in one step. What cannot be written is found anew after a restart. Blocks on the disk."""
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(json.dumps({"endpoint": self._endpoint, self._name: value}) + "\n")
            new.replace(self._path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                new.unlink()
            if not self._failed:
                _log.info("%s cannot be written; its content is found anew after a restart: %s", self._path, exc)
            self._failed = True
