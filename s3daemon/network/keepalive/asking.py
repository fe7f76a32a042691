"""Sends the keeper's small requests, and knows which kind keeps connections open, and at which addresses.

what is known of the store                        what follows
------------------------------------------------  -----------------------------------------------------------------
it keeps connections (as is assumed at first)     nothing has to be found out
a close cast doubt on the small request           it is found out at once; until then the pool opens no connection
an address keeps no connection                    all are asked again every `ASK_AGAIN_S`; connections go to others
no address keeps any                              likewise; the pool opens none but for uploads
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

import aiohttp

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import HOST_LIMIT_TEXT, Code, is_host_limit, one_line
from s3daemon.model.verdict import FIRST_SERVER_STATUS, UNCONNECTED
from s3daemon.network.address import SmallRequestOutcome
from s3daemon.network.cause import cause_of
from s3daemon.network.connection import UNREADABLE, Connection
from s3daemon.network.keepalive.small_request import SMALL_REQUESTS, find_small_request
from s3daemon.network.pool import ConnectionPool

_log = logging.getLogger(__name__)

#: A store that keeps no connection is asked again this often whether it does now, over one connection, seconds.
ASK_AGAIN_S = 60.0
_FAILURES = (aiohttp.ClientError, OSError)


class SmallRequests:
    """The small requests to the store of a pool.

    Args:
        settings: timeouts.
        pool: gets the kind of small request that keeps connections, and knows the addresses.
        clock: monotonic seconds.
        kept_s: how long a connection must live after an answer to count as kept, seconds.

    Attributes:
        is_in_doubt: a connection ended after the answer to a small request.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool, clock: Clock, kept_s: float) -> None:
        self.is_in_doubt = False
        self._settings = settings
        self._pool = pool
        self._clock = clock
        self._kept_s = kept_s
        self._is_finding = False
        self._ask_again_at = math.inf if pool.small_request else 0.0

    @property
    def must_find(self) -> bool:
        """Whether to find out now which kind of small request keeps connections."""
        return not self._is_finding and (self.is_in_doubt or self._clock() >= self._ask_again_at)

    async def ask(self, connection: Connection) -> tuple[SmallRequestOutcome, str]:
        """Send a small request, opening a closed connection; return what became of it, and that in one line."""
        try:
            status = await self._send(connection, self._pool.small_request or SMALL_REQUESTS[0])
        except _FAILURES as exc:
            return _outcome_of(exc)
        return _outcome_of_status(status)

    async def probe(self, address: str) -> None:
        """Ask a disabled address whether it answers again, over a connection that is not in the pool."""
        connection = self._pool.new_connection()
        connection.set_addresses([address])
        try:
            outcome, reason = await self.ask(connection)
        finally:
            await connection.close()
        self._pool.addresses.probed(address, outcome, reason)

    async def find(self) -> bool:
        """Find out which addresses keep a connection, and after which kind; return whether any address told."""
        self._is_finding = True
        addresses = self._pool.addresses.enabled
        found = dict(zip(addresses, await asyncio.gather(*map(self._find_at, addresses)), strict=True))
        self._is_finding = False
        known = {address: method for address, method in found.items() if method is not None}
        if known:
            self._conclude(known)
        return bool(known)

    async def _find_at(self, address: str) -> str | None:
        """Return the kind that keeps a connection to one address; empty: none does; None: there is no answer."""
        status = 0

        async def send(method: str) -> None:
            nonlocal status
            status = await self._send(connection, method)

        connection, began = self._pool.new_connection(), self._clock()
        connection.set_addresses([address])
        found: str | None = None
        try:
            found = await find_small_request(connection, send, self._kept_s)
            outcome, reason = _outcome_of_status(status)
        except _FAILURES as exc:
            outcome, reason = _outcome_of(exc)
        finally:
            await connection.close()
        self._pool.addresses.asked(address, outcome, reason, began)
        return found

    def _conclude(self, known: Mapping[str, str]) -> None:
        """Use what was found: by address, the kind that keeps a connection; empty where none does."""
        self.is_in_doubt = False
        self._ask_again_at = math.inf if all(known.values()) else self._clock() + ASK_AGAIN_S
        is_partial = bool(self._pool.small_request) and any(known.values())
        for address, method in known.items():
            if self._pool.addresses.set_keeping(address, keeps=bool(method)) and is_partial:
                what = (
                    "keeps connections open now" if method else "closes each connection: others are kept open instead"
                )
                _log.info("address %s of the store %s", address, what)
        self._use(max(known.values(), key=("", *SMALL_REQUESTS).index))

    def _use(self, method: str) -> None:
        before, self._pool.small_request = self._pool.small_request, method
        if method == before:
            return
        if not method:
            primed = ", and S3DAEMON_PRIME has no effect" if self._settings.prime else ""
            text = "the store closes each connection after its answer: none is kept open%s; each upload opens its own"
            _log.warning(f"{text}. Enable keep-alive there", primed)
        elif not before:
            _log.info("the store keeps connections open now")
        else:
            _log.info("the store closes connections after %s /: %s / keeps them open", before, method)

    async def _send(self, connection: Connection, method: str) -> int:
        """Send a request that needs no key and no bucket; return the status of its answer."""
        async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.stall_timeout_s):
            return (await connection.request(method, str(self._pool.url.with_path("/")), {}, None)).status


def _outcome_of_status(status: int) -> tuple[SmallRequestOutcome, str]:
    is_error = status >= FIRST_SERVER_STATUS
    return SmallRequestOutcome.ANSWERED_BADLY if is_error else SmallRequestOutcome.ANSWERED, f"it answers {status}"


def _outcome_of(error: BaseException) -> tuple[SmallRequestOutcome, str]:
    """Return what became of a small request that ended in an error, and that in one line."""
    if is_host_limit(error):
        return SmallRequestOutcome.NOT_SENT, HOST_LIMIT_TEXT
    if isinstance(error, UNREADABLE):
        return SmallRequestOutcome.ANSWERED_BADLY, "its answer cannot be read"
    code, text = cause_of(error) or (Code.CONNECTION_FAILED, one_line(str(error)))
    outcome = SmallRequestOutcome.NOT_CONNECTED if code in UNCONNECTED else SmallRequestOutcome.NOT_ANSWERED
    return outcome, f"{code}, {text}"
