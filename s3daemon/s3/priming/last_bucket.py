"""The bucket in which an object was stored last, kept over restarts in a small file of the state directory.

{"endpoint": "https://s3.example.org", "bucket": "images"}
"""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

from s3daemon.clock import Clock
from s3daemon.errors import RequestError
from s3daemon.hints import HintFile
from s3daemon.model.request import Destination

NAME = "bucket.json"
#: Where uploads go to several buckets in turn, the file is written no more often than this, seconds.
WRITE_EVERY_S = 60.0


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
        self._file = HintFile(directory / NAME, endpoint, "bucket", _bucket)
        self._clock = clock
        self._written = ""
        self._written_at = -math.inf
        self.name = ""
        self.endpoint = endpoint

    def read(self) -> None:
        """Take the name from the file, unless it is known already. Blocks on the disk."""
        found = self._file.read()
        if found and not self.name:
            self.name = self._written = found

    def note(self, bucket: str) -> None:
        """Note that something was stored in `bucket`; a thread writes that down."""
        self.name = bucket
        if bucket != self._written and self._clock() - self._written_at >= WRITE_EVERY_S:
            self._written, self._written_at = bucket, self._clock()
            asyncio.get_running_loop().run_in_executor(None, self._file.write, bucket)


def _bucket(found: Any) -> str:
    try:
        return Destination(found, "key").bucket
    except RequestError as exc:
        raise ValueError(exc.text) from exc
