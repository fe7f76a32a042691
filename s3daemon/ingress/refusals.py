"""Refused requests: counted, reported to the exposures, and logged, a few a second for each code.

No client repeats a request, so a file that is refused is not delivered. This log and these counts are all that an
operator sees of it.
"""

from __future__ import annotations

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from s3daemon.clock import Clock
from s3daemon.errors import S3daemonError, one_line
from s3daemon.ingress.peer import PeerLookup
from s3daemon.journal import LogLimit
from s3daemon.model.record import Field, Refusal
from s3daemon.model.request import MAX_DESTINATION_CHARS, MAX_TAG_CHARS

#: Longer names of files are cut off, characters; any valid path is shorter.
_FILE_CHARS = 4096
#: Lone surrogates that stand for no byte of a file name, see `os.fsdecode`: nothing can encode them.
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def describe_refusal(error: S3daemonError, file: str = "", destination: str = "", tag: str = "") -> Refusal:
    """Return a refusal, without the client's user.

    Args:
        error: why the request is refused.
        file: as given; empty when it could not be read.
        destination: bucket/key, likewise.
        tag: likewise.
    """
    return Refusal(
        code=str(error.code),
        text=one_line(error.text),
        file=_NO_BYTE.sub(lambda found: one_line(found[0]), file[:_FILE_CHARS]),
        destination=one_line(destination, MAX_DESTINATION_CHARS),
        tag=one_line(tag, MAX_TAG_CHARS),
    )


class Refusals:
    """Takes every refusal of this process, over any socket.

    Args:
        peers: looks up the client's user.
        write: takes a journal entry; `Journal.write`.
        clock: monotonic seconds.
        wall: seconds since the epoch.

    Attributes:
        counts: refusals by code.
        observers: called with each refusal of an allowed user, and its time, microseconds since the epoch. Others must
            not put names of theirs in the place of what is known of exposures.
    """

    def __init__(
        self,
        peers: PeerLookup,
        write: Callable[[Sequence[Field]], object] = lambda fields: None,
        *,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.observers: list[Callable[[Refusal, int], None]] = []
        self._peers = peers
        self._write = write
        self._clock = clock
        self._wall = wall
        self._limit = LogLimit()

    async def add(self, refusal: Refusal, sock: socket.socket, *, allowed: bool = True) -> None:
        """Count a refusal, pass it on and log it. The client's user is looked up only if an entry is written.

        Args:
            refusal: without the user.
            sock: the client's connection, still open.
            allowed: `AccessControl` allows the client's user.
        """
        self.counts[refusal.code] += 1
        for observe in self.observers if allowed else ():
            observe(refusal, round(self._wall() * 1e6))
        skipped = self._limit.admit(refusal.code, self._clock())
        if skipped is not None:
            try:
                uid = await self._peers.uid_of(sock)
            except OSError:  # there is no descriptor to look
                uid = None
            self._write(replace(refusal, uid=uid, skipped=skipped).fields())
