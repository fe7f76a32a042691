"""Widens the congestion windows of new connections before the first exposure needs them.

TCP begins each connection with ten packets in flight, and over 200 ms takes two seconds to reach its share of a
gigabit. So each new connection carries a megabyte, paced as an upload is, in one of two ways:

    S3DAEMON_PRIME=bucket/prefix    a scratch object for each connection, which is overwritten the next time
    S3DAEMON_PRIME=auto             an upload to the bucket last used that the store must refuse, since its Content-MD5
                                    is not that of its body: nothing is stored, as far as the store checks (`kind`)

No answer to such an upload disables an address: addresses are judged by uploads that should be stored.
"""

from __future__ import annotations

import base64
import logging
import secrets
import time
from http import HTTPStatus
from typing import Any

from s3daemon.clock import Clock
from s3daemon.config.settings import PRIME_AUTO
from s3daemon.errors import AttemptError
from s3daemon.model.files.source import Source
from s3daemon.model.request import FileState
from s3daemon.model.verdict import Verdict, judge
from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.keeper import PRIMED_BYTES
from s3daemon.network.keepalive.small_request import KEPT_S, stays_open
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.priming.kind import StoreKind, kind_of
from s3daemon.s3.store import Store

_log = logging.getLogger(__name__)

#: The beginning of the key of an upload that must be refused; random characters follow, so no other object has the key.
KEY_PREFIX = "s3daemon-prime-"
#: A sum that is not the MD5 of what is sent, nor of any known content.
_WRONG_MD5 = base64.b64encode(bytes(16)).decode()
#: The time until the next upload after one that was no evidence, such as one that a server error ended, seconds: at
#: first and at most; it doubles each time.
PAUSE_FIRST_S, PAUSE_MAX_S = 30.0, 3600.0


class Primer:
    """Primes connections as `S3DAEMON_PRIME` says; the keeper says when.

    Args:
        store: gets the uploads; its settings say which of the two ways.
        clock: monotonic seconds.
        kept_s: how long a connection must live after the first refusal, seconds.
    """

    def __init__(self, store: Store, clock: Clock = time.monotonic, *, kept_s: float = KEPT_S) -> None:
        self._store = store
        self._sender = store.sender
        self._settings = store.sender.settings
        self._clock = clock
        self._kept_s = kept_s
        self._is_auto = self._settings.prime == PRIME_AUTO
        self._is_known = False  # an upload has shown that the store is of the kind REFUSES
        self._is_off = False
        self._pauses = 0
        self._retry_at = 0.0

    @property
    def at_once(self) -> int:
        """How many connections may be primed at the same time now; 0: none."""
        if self._is_off or self._clock() < self._retry_at or not self._bucket:
            return 0
        return self._sender.pool.reserve if self._is_known or not self._is_auto else 1

    async def prime(self, connection: Connection) -> None:
        """Prime an open connection, which the caller has taken. A failure is not raised: it pauses or ends priming."""
        if self._is_auto:
            await self._send_refusable(connection)
        else:
            await self._send_scratch(connection)

    @property
    def _bucket(self) -> str:
        if not self._is_auto:
            return self._settings.prime.partition("/")[0]
        name, allowed = self._store.last_bucket, self._settings.allowed_buckets
        return name if not allowed or name in allowed else ""

    async def _send_scratch(self, connection: Connection) -> None:
        prefix = self._settings.prime.partition("/")[2]
        key = f"{prefix}{self._sender.pool.index(connection)}"
        try:
            await self._send(connection, Progress(), Bucket=self._bucket, Key=key)
        except AttemptError as exc:
            if judge(exc) is Verdict.PERMANENT:
                self._stop(f"{exc.code}, {exc}")
            else:
                self._pause(exc)
        else:
            self._pauses = 0

    async def _send_refusable(self, connection: Connection) -> None:
        bucket, key, progress = self._bucket, KEY_PREFIX + secrets.token_hex(16), Progress()
        error: AttemptError | None = None
        try:
            await self._send(connection, progress, Bucket=bucket, Key=key, ContentMD5=_WRONG_MD5)
        except AttemptError as exc:
            error = exc
        was_read = progress.acked_bytes >= PRIMED_BYTES
        if not self._is_known:
            await stays_open(connection, self._kept_s)  # a close after the answer may come unannounced
        is_kept = connection.is_open and connection.persistent
        kind = kind_of(error, was_read=was_read, is_kept=is_kept, is_known=self._is_known)
        may_be_stored = error is not None and error.ambiguous and not self._is_known
        if (kind is StoreKind.STORES or may_be_stored) and await self._remove(connection, bucket, key):
            kind = StoreKind.STORES
        self._conclude(kind, error)

    def _conclude(self, kind: StoreKind | None, error: AttemptError | None) -> None:
        if kind is None:
            self._pause(error)
        elif kind is StoreKind.REFUSES:
            self._pauses = 0
            if not self._is_known:
                _log.info("S3DAEMON_PRIME=auto: new connections are primed, as the store %s", kind.value)
            self._is_known = True
        else:
            why = f": {error.code}, {error}" if error and kind is not StoreKind.STORES else ""
            self._stop(f"the store {kind.value}{why}")

    async def _send(self, connection: Connection, progress: Progress, **params: Any) -> None:
        source = Source("", -1, FileState(PRIMED_BYTES, 0, 0, 0), bytes(PRIMED_BYTES))
        await self._sender.send_file("put_object", "prime", source, connection=connection, progress=progress, **params)

    async def _remove(self, connection: Connection, bucket: str, key: str) -> bool:
        """Delete the object of an upload that should have been refused, and may have been stored.

        In a bucket with versions the version itself is deleted: otherwise S3 would only hide it by a delete marker.

        Returns:
            False when the store says that there is no such object, else True.
        """
        named: dict[str, Any] = {"Bucket": bucket, "Key": key}
        try:
            found = await self._sender.call("head_object", connection=connection, **named)
        except AttemptError as exc:
            if exc.status == HTTPStatus.NOT_FOUND:
                return False
        else:
            if version := found.get("VersionId"):
                named["VersionId"] = version
        try:
            await self._sender.call("delete_object", connection=connection, **named)
        except AttemptError as exc:
            text = "S3DAEMON_PRIME=auto: %s/%s was, or may be, stored, and could not be deleted: %s, %s"
            _log.warning(text, bucket, key, exc.code, exc)
        else:
            _log.warning("S3DAEMON_PRIME=auto: %s/%s, which the store should have refused, is deleted", bucket, key)
        return True

    def _stop(self, why: str) -> None:
        if not self._is_off:  # several may find out at the same time
            _log.warning("S3DAEMON_PRIME: %s: no connection is primed until a reload", why)
        self._is_off = True

    def _pause(self, error: AttemptError | None) -> None:
        """Put off the next upload; failures at the same time count once."""
        now = self._clock()
        if now >= self._retry_at:
            self._retry_at = now + min(PAUSE_FIRST_S * 2.0**self._pauses, PAUSE_MAX_S)
            self._pauses = min(self._pauses + 1, 16)
        if error is not None:
            _log.debug("a connection was not primed: %s, %s", error.code, error)
