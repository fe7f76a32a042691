"""What the journal gets of clients that are deferred: one entry each, and of a flood one entry that counts the rest.

The hooks of a camera that lost its store defer 46 transfers a minute, and each is worth an entry; a thousand clients
that ask again and again are worth one number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from s3daemon.model.record import Deferral, Field, MessageId, Priority

#: From the first entry on, this long is a round; at its end those are counted that were too many.
ROUND_S = 60.0
#: Entries of a round: an exposure's hooks at a host, twice over.
ROUND_LIMIT = 100


class Deferrals:
    """Writes them down. Belongs to the running event loop.

    Args:
        write: takes an entry; `Journal.write`.
    """

    def __init__(self, write: Callable[[Sequence[Field]], object]) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._count = 0
        self._round: asyncio.TimerHandle | None = None

    def note(self, deferral: Deferral) -> None:
        """One transfer's clients were told."""
        if self._round is None:
            self._round = self._loop.call_later(ROUND_S, self.sum_up)
        self._count += 1
        if self._count <= ROUND_LIMIT:
            self._write(deferral.fields())

    def sum_up(self) -> None:
        """End the round: tell how many more there were, if there were."""
        if self._round is not None:
            self._round.cancel()
        more, self._count, self._round = self._count - ROUND_LIMIT, 0, None
        if more > 0:
            self._write(
                [
                    ("MESSAGE", f"{more} more transfers were deferred, their clients told, within {ROUND_S:.0f} s"),
                    ("MESSAGE_ID", MessageId.DEFERRED.value),
                    ("PRIORITY", int(Priority.NOTICE)),
                    ("S3DAEMON_DEFERRED", more),
                ]
            )
