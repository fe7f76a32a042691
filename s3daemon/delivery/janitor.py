"""Aborts multipart uploads that no transfer needs, so that no store keeps the parts of abandoned objects.

An upload is an orphan when its transfer is no longer pending, however and in whichever process that ended, or when its
transfer has abandoned it. An upload that a crash leaves in the spool is aborted by the next process. Only what cannot
be aborted at all is left to people, by a warning that names it.

It does not ask `health` whether the endpoint is up: attempts find that out, and there may be none any more. A single
request, ever less often while none succeeds, is no burden.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from s3daemon.clock import Clock
from s3daemon.delivery.attempt import LATE_ARRIVAL_S
from s3daemon.errors import AttemptError
from s3daemon.model.verdict import Verdict, judge
from s3daemon.s3.store import Store
from s3daemon.spool.open_uploads import OpenUpload, OpenUploads

_log = logging.getLogger(__name__)

#: The interval of sweeps in seconds, and its maximum after failures.
SWEEP_S, SWEEP_MAX_S = 1.0, 60.0
#: Codes that say that there is nothing left to abort.
_GONE = frozenset({"NoSuchUpload", "NoSuchBucket", "NoSuchKey"})


class Janitor:
    """Aborts orphans.

    Args:
        open_uploads: the uploads that a store may hold.
        is_pending: returns whether the transfer with an id is pending.
        store: gives the store in use; a reload may replace it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        open_uploads: OpenUploads,
        is_pending: Callable[[str], bool],
        store: Callable[[], Store],
        clock: Clock = time.monotonic,
    ) -> None:
        self._open_uploads = open_uploads
        self._is_pending = is_pending
        self._store = store
        self._clock = clock
        self._orphan_since: dict[OpenUpload, float] = {}
        self._aborting = asyncio.Lock()  # whoever closes a store waits for the abort there

    async def run(self) -> None:
        """Sweep until cancelled."""
        delay = SWEEP_S
        while True:
            await asyncio.sleep(delay)
            delay = SWEEP_S if await self.sweep() else min(2 * delay, SWEEP_MAX_S)

    async def sweep(self) -> bool:
        """Abort the orphans at the store in use, up to the first that has to be tried again; it is the last next time.

        It ends early when a reload replaces the store, which is then about to be closed.

        Returns:
            False when there was such a one.
        """
        store, now = self._store(), self._clock()
        orphans = [one for one in self._open_uploads if one.upload.endpoint == store.url and self._is_orphan(one)]
        since = {orphan: at for orphan, at in self._orphan_since.items() if orphan in orphans}
        self._orphan_since = since | {orphan: now for orphan in orphans if orphan not in since}
        for orphan in list(self._orphan_since):
            # The store may still be completing it, and an abort would take the parts from under its object.
            ripe = not orphan.completing or self._clock() - self._orphan_since[orphan] >= LATE_ARRIVAL_S
            if not ripe:
                continue
            async with self._aborting:
                if self._store() is not store:
                    return True
                if not await self._abort(store, orphan):
                    self._orphan_since[orphan] = self._orphan_since.pop(orphan)
                    return False
        return True

    def _is_orphan(self, one: OpenUpload) -> bool:
        return one.abandoned or not self._is_pending(one.upload.transfer_id)

    async def abort_all(self, store: Store) -> None:
        """Abort all uploads at a store that is no longer in use, unless its endpoint is in use again.

        When this returns, the store may be closed: a sweep does not use it any more. So one that it may still be
        completing cannot be waited for. It is left there: the new endpoint may be another name of the same store, where
        its object counts as stored.
        """
        async with self._aborting:
            for one in self._open_uploads:
                if not one.upload.endpoint == store.url != self._store().url:
                    continue
                if one.completing:
                    self._give_up(one, "the endpoint has changed, and the old one may still be completing it")
                elif not await self._abort(store, one):
                    self._give_up(one, "the endpoint has changed, and the old one did not abort it")

    def forget_other_endpoints(self) -> None:
        """Give up, at the start, the uploads that an earlier process left at another endpoint."""
        for one in self._open_uploads:
            if one.upload.endpoint != self._store().url:
                self._give_up(one, "the endpoint has changed")

    async def _abort(self, store: Store, one: OpenUpload) -> bool:
        """Abort an upload; return False when that has to be tried again."""
        one.abandoned = True  # should its transfer be retried at this moment, it starts a new one
        upload = one.upload
        try:
            await store.abort(upload)
        except AttemptError as exc:
            if exc.code not in _GONE:
                if judge(exc) is not Verdict.PERMANENT:
                    _log.debug("the upload %s cannot be aborted yet: %s", upload.id, exc.text)
                    return False
                self._give_up(one, f"{exc.code}: {exc.text}")
                return True
        self._open_uploads.over(one)
        return True

    def _give_up(self, one: OpenUpload, why: str) -> None:
        upload = one.upload
        _log.warning(
            "the multipart upload %s of %s at %s cannot be aborted: %s; its parts use space there until it is aborted",
            upload.id,
            upload.destination,
            upload.endpoint,
            why,
        )
        self._open_uploads.over(one)
