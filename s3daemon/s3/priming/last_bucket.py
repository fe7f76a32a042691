"""The bucket that something was stored in last, kept over restarts in a small file of the state directory.

    {"endpoint": "https://s3.example.org", "bucket": "images"}

It is a hint: a missing file, a damaged one and one of another endpoint mean that none is known yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from pathlib import Path

from s3daemon.clock import Clock
from s3daemon.errors import RequestError
from s3daemon.model.request import Destination

_log = logging.getLogger(__name__)

NAME = "bucket.json"
#: Where uploads go to several buckets in turn, the file is written no more often than this, seconds.
WRITE_EVERY_S = 60.0
_MAX_BYTES = 4096


class LastBucket:
    """The bucket, and the file.

    Args:
        directory: the state directory.
        endpoint: the URL of the store that the bucket belongs to.
        clock: monotonic seconds.

    Attributes:
        name: of the bucket; empty while none is known.
        endpoint: as given.
    """

    def __init__(self, directory: Path, endpoint: str, clock: Clock = time.monotonic) -> None:
        self._path = directory / NAME
        self._clock = clock
        self._written = ""
        self._written_at = -math.inf
        self.name = ""
        self.endpoint = endpoint

    def read(self) -> None:
        """Take the name from the file, unless it is known already. Blocks on the disk."""
        try:
            with self._path.open("rb") as file:
                found = json.loads(file.read(_MAX_BYTES))
            endpoint, name = found["endpoint"], Destination(found["bucket"], "key").bucket
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RequestError) as exc:
            _log.info("%s cannot be used: %s", self._path, exc)
            return
        if endpoint == self.endpoint and not self.name:
            self.name = self._written = name

    def note(self, bucket: str) -> None:
        """Note that something was stored in `bucket`; a thread writes that down."""
        self.name = bucket
        if bucket != self._written and self._clock() - self._written_at >= WRITE_EVERY_S:
            self._written, self._written_at = bucket, self._clock()
            asyncio.get_running_loop().run_in_executor(None, self._write, bucket)

    def _write(self, bucket: str) -> None:
        """Replace the file in one step. What cannot be written is known again after the next upload."""
        new = self._path.with_name(f"{NAME}.new")
        try:
            new.write_text(json.dumps({"endpoint": self.endpoint, "bucket": bucket}) + "\n")
            new.replace(self._path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                new.unlink()
            _log.debug("%s cannot be written: %s", self._path, exc)
