"""One store as the settings describe it: its connections, its keys and the client. A reload replaces them together.

The new endpoint takes over the old one's connections where the settings allow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from s3daemon.config.settings import VARIABLES, Settings
from s3daemon.network.keepalive.keeper import Keeper
from s3daemon.network.pool import ConnectionPool
from s3daemon.network.tls import Trust
from s3daemon.s3.priming.primer import Primer
from s3daemon.s3.sender import Sender
from s3daemon.s3.signing.client import Signer
from s3daemon.s3.store import Store
from s3daemon.spool.rows import Hint

_log = logging.getLogger(__name__)

#: What S3DAEMON_VERIFY=no-etag means, for operators.
NO_ETAG_RISK = "an object counts as stored by the status of an answer alone, whoever gave it; for sinks only"

#: Runs a background task under its name. If the task dies, that is logged, and the service ends.
Start = Callable[[str, Coroutine[object, object, None]], asyncio.Task[None]]

#: A change of one of these settings requires new connections; the others leave the connections as they are.
_CONNECTION_SETTINGS = (
    "endpoint_url",
    "receivers",
    "ca_bundle",
    "max_connections",
    "connect_timeout_s",
    "stall_timeout_s",
    "congestion",
)


class Endpoint:
    """Everything that depends on the settings of the store.

    Args:
        settings: the store and the keys.
        start: starts the keeper of the connections as a background task, and reports it if it dies.
        before: the endpoint that this one replaces; its connections are taken over where the settings allow.
        hint: what was found about a store earlier; not used with `before`, which knows better.
        trust: of these settings, where it is read already; else it is read here, which blocks.

    Attributes:
        pool: the connections.
        store: the store that they lead to.
    """

    def __init__(
        self,
        settings: Settings,
        start: Start,
        before: Endpoint | None = None,
        *,
        hint: Hint | None = None,
        trust: Trust | None = None,
    ) -> None:
        self._settings = settings
        self._start = start
        self._keeping: asyncio.Task[None] | None = None
        trust = trust or Trust.read(settings)
        self._authorities = trust.digest
        if before is not None and self._can_take_over(before):
            self.pool: ConnectionPool = before.pool
            self.pool.names.resolve_anew()
        else:
            self.pool = ConnectionPool(settings, tls=trust.tls, opened=before.pool.opened if before else 0)
        known = hint if before is None else before.hint
        self._known = known if known and known.endpoint == settings.endpoint_url else Hint(settings.endpoint_url)
        self._signer = Signer(settings)
        self.store = Store(Sender(settings, self.pool, self._signer), last_bucket=self._known.bucket)

    @property
    def hint(self) -> Hint:
        """What was found about the store, by this endpoint, once opened, or before it."""
        return Hint(self.store.url, self.pool.bandwidth.found_bps, self.store.last_bucket)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets of the keys in use, once opened; no log may show them."""
        return tuple(filter(None, self._signer.keys[1:]))

    def reread_since(self, before: Endpoint) -> list[str]:
        """Return the variables whose files have another content than `before` read; of an opened endpoint.

        Authorities are read with an https:// endpoint only.
        """
        ours, theirs = self._settings, before._settings
        read = {
            "ca_bundle": (self._authorities, before._authorities),
            "shared_credentials_file": (self._signer.keys, before._signer.keys),
        }
        return [
            VARIABLES[name].name
            for name, (now, then) in read.items()
            if getattr(ours, name) and getattr(ours, name) == getattr(theirs, name) and now and then and now != then
        ]

    async def open(self) -> None:
        """Create the client, and begin to open the connections.

        Raises:
            SettingsError: there are no keys.
        """
        await self.store.sender.open()
        self.pool.bandwidth.use(self._settings.bwlimit_bps, self._known.rate_bps)
        if self._settings.verify == "no-etag":
            _log.warning("S3DAEMON_VERIFY=no-etag: %s", NO_ETAG_RISK)
        primer = Primer(self.store) if self._settings.prime else None
        self._keeping = self._start("the keeper of connections", Keeper(self._settings, self.pool, primer).run())

    async def close(self, after: Endpoint | None = None) -> None:
        """Close the client, and the connections unless the endpoint `after` this one has taken them over."""
        self._stop_keeper()
        await self.store.sender.close()
        if after is None or after.pool is not self.pool:
            await self.pool.close()

    async def retire(
        self, after: Endpoint, in_flight: set[asyncio.Task[Any]], leave: Callable[[Store], Awaitable[None]]
    ) -> None:
        """Close once what uses this endpoint has ended.

        Args:
            after: the endpoint that replaces this one; its keeper is at work already.
            in_flight: the tasks that may use it.
            leave: called with the store before it is closed, to abort there what will not be resumed; nothing but
                `in_flight` may use the store once it has returned.
        """
        self._stop_keeper()
        if in_flight:
            await asyncio.wait(in_flight)
        await leave(self.store)
        await self.close(after)

    def _can_take_over(self, before: Endpoint) -> bool:
        """Return whether the connections of `before` are as these settings, and what they trust, would have them."""
        if any(getattr(self._settings, name) != getattr(before._settings, name) for name in _CONNECTION_SETTINGS):
            return False
        if self._authorities != before._authorities:
            _log.info("the certificate authorities have changed: all connections are opened anew")
        return self._authorities == before._authorities

    def _stop_keeper(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
