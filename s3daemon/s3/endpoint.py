"""One store as the settings describe it: its connections, its keys, the client that signs. A reload replaces it.

The connections are taken over from one to the next where the settings allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine

from s3daemon.config.settings import Settings
from s3daemon.network.keeper import Keeper
from s3daemon.network.pool import ConnectionPool
from s3daemon.s3.client import Signer
from s3daemon.s3.prime import Primer
from s3daemon.s3.store import Store

#: Runs a background task under its name.
Start = Callable[[str, Coroutine[object, object, None]], asyncio.Task[None]]

#: A change of any other setting leaves the connections as they are.
_OF_POOL = (
    "endpoint_url",
    "receivers",
    "ca_bundle",
    "max_connections",
    "connect_timeout_s",
    "stall_timeout_s",
    "congestion",
)


class Endpoint:
    """What depends on the settings of the store.

    Args:
        settings: which store, which keys.
        start: starts the keeper of the connections, and says if it dies.
        before: the endpoint that this one replaces; its connections are taken over where the settings allow.
    """

    def __init__(self, settings: Settings, start: Start, before: Endpoint | None = None) -> None:
        self._settings = settings
        self._start = start
        self._keeping: asyncio.Task[None] | None = None
        self._inherits = before is not None and all(
            getattr(settings, name) == getattr(before._settings, name) for name in _OF_POOL
        )
        self.pool: ConnectionPool = before.pool if before is not None and self._inherits else ConnectionPool(settings)
        self.pool.pacer.set_limit(settings.bwlimit_bps)
        self.signer = Signer(settings)
        self.store = Store(settings, self.pool, self.signer)

    async def open(self) -> None:
        """Make the client, and begin to open the connections.

        Raises:
            SettingsError: there are no keys.
        """
        await self.signer.open()
        prime = Primer(self._settings, self.store.sending).widen if self._settings.prime else None
        self._keeping = self._start("the keeper of connections", Keeper(self._settings, self.pool, prime).run())

    async def close(self, after: Endpoint | None = None) -> None:
        """Close the client, and the connections unless the endpoint `after` this one goes on with them."""
        if self._keeping is not None:
            self._keeping.cancel()
        await self.signer.close()
        if after is None or after.pool is not self.pool:
            await self.pool.close()

    async def retire(
        self, after: Endpoint, in_flight: set[asyncio.Task[None]], leave: Callable[[Store], Awaitable[None]]
    ) -> None:
        """Close once the attempts that began with this endpoint are over, and `leave` has tidied up at its store."""
        if in_flight:
            await asyncio.wait(in_flight)
        await leave(self.store)
        await self.close(after)
