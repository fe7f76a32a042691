"""One attempt to store one transfer: open, look, send, confirm.

An attempt whose outcome is not known leaves two traces. The same transfer looks for its object before it sends again.
And the next transfer to that destination looks once more after it was stored: a late body could have overwritten it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.delivery.schedule import Job
from s3daemon.errors import AttemptError, Code, FileError, SpoolError
from s3daemon.model.request import Destination, FileState
from s3daemon.model.source import Source, open_file
from s3daemon.network.progress import Progress
from s3daemon.s3.store import LookupResult, Store, Stored
from s3daemon.spool.spool import Spool

_log = logging.getLogger(__name__)

#: How long a body of which nothing more is heard may still arrive: what a proxy or a receiver's queue may hold it for.
LATE_ARRIVAL_S = 900.0


async def _noted(change: Awaitable[None]) -> None:
    """A full disk holds up no accepted transfer, new ones alone: the spool writes the change when it can."""
    with contextlib.suppress(SpoolError):
        await change


class Attempts:
    """Carries out attempts.

    Args:
        settings: limits and roots.
        spool: told before an attempt begins.
        store: where to.
        opener: `Source.open`, or a stand-in.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        store: Store,
        opener: Callable[..., Source] = Source.open,
        clock: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self.store = store
        self._spool = spool
        self._opener = opener
        self._clock = clock
        self._doubts: dict[Destination, tuple[str, float]] = {}

    async def make(self, job: Job) -> Stored:
        """Make one.

        Raises:
            AttemptError: it failed; when `ambiguous`, the job and its destination remember.
            FileError: the file cannot be sent now.
        """
        job.attempts += 1
        job.progress = Progress()
        try:
            return await self._make(job)
        except AttemptError as exc:
            if exc.ambiguous:
                self._expect_late_arrival(job)
            raise
        except FileError:
            raise
        except Exception as exc:
            _log.exception("a bug in an attempt of %s", job.transfer.id)
            self._expect_late_arrival(job)
            raise AttemptError(Code.INTERNAL, f"a bug: {type(exc).__name__}", ambiguous=True) from exc

    def _expect_late_arrival(self, job: Job) -> None:
        job.unknown = True
        self._doubts[job.transfer.destination] = (job.transfer.id, self._clock() + LATE_ARRIVAL_S)

    async def _make(self, job: Job) -> Stored:
        try:
            source = job.source or await self._open(job.transfer.file)
        except FileError:
            if job.unknown and isinstance(found := await self.store.find(job.transfer, job.tried), Stored):
                return found  # it was stored, and its owner has tidied up since
            raise
        job.source = None
        try:
            if source.state != job.transfer.seen:
                await self._see(job, source.state)
            elif job.unknown and isinstance(found := await self.store.find(job.transfer, job.tried), Stored):
                return found
            if not job.begun:
                await _noted(self._spool.start_attempt(job.transfer.id))
                job.begun = True
            stored = await self.store.put(job.transfer, source, self._spool.open_uploads, job.tried, job.progress)
        finally:
            source.close()
        await self._confirm(job)
        return stored

    async def _open(self, path: str) -> Source:
        settings = self.settings
        roots, closed = settings.allowed_roots, settings.private_paths()
        return await open_file(path, roots, closed, settings.stall_timeout_s, self._opener)

    async def _see(self, job: Job, state: FileState) -> None:
        """The file is not the one that was accepted: what is there now is what is sent, and the record says so."""
        job.changed = True
        job.transfer = replace(job.transfer, seen=state)
        await _noted(self._spool.update(job.transfer))

    async def _confirm(self, job: Job) -> None:
        id_, until = self._doubts.get(job.transfer.destination, ("", 0.0))
        if id_ in ("", job.transfer.id):
            return
        if self._clock() < until and await self.store.find(job.transfer) is LookupResult.NOT_FOUND:
            raise AttemptError(Code.OVERWRITTEN, "a late arrival of an older transfer replaced the object")
        del self._doubts[job.transfer.destination]
