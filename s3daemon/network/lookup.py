"""Looks up the addresses that the endpoint's name has, again and again: a store may move."""

from __future__ import annotations

import asyncio
import logging
import socket

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.network.addresses import Addresses

_log = logging.getLogger(__name__)

#: The endpoint's name is resolved again after this long, seconds.
RESOLVE_EVERY_S = 30.0
#: And after this long while the store cannot be reached: it may have moved.
RESOLVE_AGAIN_S = 5.0
#: An address that no look-up gave for this long is gone, seconds: its connections move. Of a name with many addresses
#: each answer may have only some, and no connection is closed for that.
GONE_AFTER_S = 300.0


class NameLookup:
    """Resolves the name of one endpoint, unless the settings give its addresses.

    Args:
        settings: endpoint, addresses, timeout.
        addresses: get what is found.
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, addresses: Addresses, clock: Clock) -> None:
        self._settings = settings
        self._addresses = addresses
        self._clock = clock
        self._resolved_at = -RESOLVE_EVERY_S
        self._resolving = asyncio.Lock()
        self._unresolvable = False
        self._found_at: dict[str, float] = {}  # when a look-up last gave each address that is not gone
        addresses.replace(settings.receivers)

    @property
    def must_resolve(self) -> bool:
        """Whether the addresses were looked up too long ago; False before the first look-up and during one."""
        is_due = self._clock() - self._resolved_at >= RESOLVE_EVERY_S
        return bool(self._addresses) and is_due and not (self._settings.receivers or self._resolving.locked())

    def resolve_anew(self) -> None:
        """Have the name looked up at the next sweep; what it does not give then is gone at once."""
        self._resolved_at = -RESOLVE_EVERY_S
        self._found_at.clear()

    def resolve_soon(self) -> None:
        """Have the name looked up within `RESOLVE_AGAIN_S`: the store cannot be reached at the addresses known."""
        self._resolved_at = min(self._resolved_at, self._clock() - RESOLVE_EVERY_S + RESOLVE_AGAIN_S)

    def is_gone(self, address: str) -> bool:
        """Whether the endpoint's name no longer has an address."""
        return bool(self._found_at) and address not in self._found_at

    async def resolve(self) -> None:
        """Look the addresses up, unless that was done lately; if there are none, the last known stay in use.

        Raises:
            OSError: the endpoint's name does not resolve, and never did.
        """
        if self._settings.receivers:
            return
        async with self._resolving:
            if self._addresses and self._clock() - self._resolved_at < RESOLVE_EVERY_S:
                return
            url = URL(self._settings.endpoint_url)
            loop, host = asyncio.get_running_loop(), url.raw_host  # as given: `host` would decode `xn--` labels
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    found = await loop.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
            except OSError as exc:
                if not self._addresses:
                    raise
                level = logging.DEBUG if self._unresolvable else logging.WARNING  # once, not at each look-up
                self._unresolvable = True
                why = exc.strerror or "no answer in time"
                _log.log(level, "%s no longer resolves, %s; its last known addresses stay in use", host, why)
            else:
                self._unresolvable = False
                now = self._clock()
                addresses = dict.fromkeys((str(item[4][0]) for item in found), now)
                self._addresses.replace(addresses)
                recent = {address: at for address, at in self._found_at.items() if now - at < GONE_AFTER_S}
                self._found_at = recent | addresses
            self._resolved_at = self._clock()
