"""The rate that was found, kept over restarts in a small file of the state directory.

    {"endpoint": "https://s3.example.org", "rate_bps": 994000000}

It is a hint: a missing file, a damaged one and one of another endpoint mean that nothing is known yet.
"""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path

_log = logging.getLogger(__name__)

NAME = "rate.json"
#: Rates outside of these bounds are damage, bit/s: those that S3DAEMON_BWLIMIT takes.
LEAST_BPS, MOST_BPS = 100_000, 10**12
_MAX_BYTES = 4096


class KeptRate:
    """The file.

    Args:
        directory: the state directory.
        endpoint: the URL of the store that the rate belongs to.
    """

    def __init__(self, directory: Path, endpoint: str) -> None:
        self._path = directory / NAME
        self._endpoint = endpoint
        self._failed = False

    def read(self) -> int | None:
        """Return the rate in bit/s; None when none is known for this endpoint."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            endpoint, rate = found["endpoint"], found["rate_bps"]
            if not (isinstance(rate, int) and LEAST_BPS <= rate <= MOST_BPS):
                raise ValueError(f"rate_bps is {rate!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
            _log.warning("%s cannot be used, and the rate is found anew: %s", self._path, exc)
            return None
        return rate if endpoint == self._endpoint else None

    def write(self, rate_bps: int) -> None:
        """Replace the file in one step. What cannot be written is found anew after a restart."""
        new = self._path.with_name(f"{NAME}.new")
        try:
            new.write_text(json.dumps({"endpoint": self._endpoint, "rate_bps": rate_bps}) + "\n")
            new.replace(self._path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                new.unlink()
            if not self._failed:
                _log.info("%s cannot be written, and the rate will be found anew after a restart: %s", self._path, exc)
            self._failed = True
