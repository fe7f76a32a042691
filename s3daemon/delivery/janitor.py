"""Aborts the multipart uploads that nobody goes on with, so that no store keeps parts of what it will never get.

An upload is an orphan when its transfer is not pending any more, whichever way it ended and in whichever process, or
when its transfer began anew without it. A row that survives a crash is tried by the next process. Only what cannot be
done at all is left to people, by a warning that names it.

It does not ask `health` whether the endpoint is up: that is told by attempts, and there may be none any more. A single
request, ever less often while none succeeds, hammers nobody.
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

#: How often it looks, seconds; and at most, after failures.
SWEEP_S, SWEEP_MAX_S = 1.0, 60.0
#: There is nothing left to abort.
_GONE = frozenset({"NoSuchUpload", "NoSuchBucket", "NoSuchKey"})


class Janitor:
    """Aborts orphans.

    Args:
        ledger: the uploads.
        is_pending: whether a transfer, by its id, is pending.
        store: gives the store in use now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        ledger: OpenUploads,
        is_pending: Callable[[str], bool],
        store: Callable[[], Store],
        clock: Clock = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._is_pending = is_pending
        self._store = store
        self._clock = clock
        self._since: dict[OpenUpload, float] = {}

    async def run(self) -> None:
        """Look for orphans until cancelled."""
        delay = SWEEP_S
        while True:
            await asyncio.sleep(delay)
            delay = SWEEP_S if await self.sweep() else min(2 * delay, SWEEP_MAX_S)

    async def sweep(self) -> bool:
        """Abort the orphans at the store in use, up to the first that has to be tried again: False then."""
        store = self._store()
        there = [begun for begun in self._ledger if begun.upload.endpoint == store.url]
        orphans = [begun for begun in there if begun.abandoned or not self._is_pending(begun.upload.transfer_id)]
        self._since = {begun: self._since.get(begun, self._clock()) for begun in orphans}
        for begun in orphans:
            # A completion may still be at work there, and an abort would take the parts from under its object.
            ripe = not begun.completing or self._clock() - self._since[begun] >= LATE_ARRIVAL_S
            if ripe and not await self._abort(store, begun):
                return False
        return True

    async def leave(self, store: Store) -> None:
        """Nobody goes on at `store`: abort what is there, unless its endpoint is in use again."""
        for begun in self._ledger:
            if begun.upload.endpoint == store.url != self._store().url and not await self._abort(store, begun):
                self._give_up(begun, "the endpoint is another one now, and there was no answer from this one")

    def disown(self) -> None:
        """At a start: what an earlier process left at another endpoint is out of our reach."""
        for begun in self._ledger:
            if begun.upload.endpoint != self._store().url:
                self._give_up(begun, "the endpoint is another one now")

    async def _abort(self, store: Store, begun: OpenUpload) -> bool:
        begun.abandoned = True  # should its transfer be retried at this moment, it begins anew
        upload = begun.upload
        try:
            await store.abort(upload)
        except AttemptError as exc:
            if exc.code not in _GONE:
                if judge(exc) is not Verdict.PERMANENT:
                    _log.debug("the upload %s cannot be aborted yet: %s", upload.id, exc.text)
                    return False
                self._give_up(begun, f"{exc.code}: {exc.text}")
                return True
        self._ledger.over(begun)
        return True

    def _give_up(self, begun: OpenUpload, why: str) -> None:
        upload = begun.upload
        _log.warning(
            "the multipart upload %s of %s at %s cannot be aborted: %s; its parts take room there until it is",
            *(upload.id, upload.destination, upload.endpoint, why),
        )
        self._ledger.over(begun)
