"""A scratch object over a new connection, so that its window is wide before the first exposure needs it.

TCP begins each connection with some ten packets in flight and over 200 ms takes two seconds to reach a gigabit's share.
Each connection has an object of its own, which is overwritten the next time; nothing ever reads or deletes it.
"""

from __future__ import annotations

from s3daemon.config.settings import Settings
from s3daemon.model.request import FileState
from s3daemon.model.source import Source
from s3daemon.network.connection import Connection
from s3daemon.network.keeper import PRIMED_BYTES
from s3daemon.s3.sender import Sender


class Primer:
    """Widens connections.

    Args:
        settings: where the objects go.
        sending: carries them.
    """

    def __init__(self, settings: Settings, sending: Sender) -> None:
        self._bucket, _, self._prefix = settings.prime.partition("/")
        self._sending = sending

    async def widen(self, connection: Connection) -> None:
        """Send a scratch object over `connection`, which is the caller's.

        Raises:
            AttemptError: the store did not take it.
        """
        source = Source("", -1, FileState(PRIMED_BYTES, 0, 0, 0), bytes(PRIMED_BYTES))
        key = f"{self._prefix}{self._sending.pool.index(connection)}"
        await self._sending.deliver("put_object", "prime", source, over=connection, Bucket=self._bucket, Key=key)
