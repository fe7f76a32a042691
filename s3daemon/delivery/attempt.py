"""One attempt to store one transfer: open, look, send, confirm.

An attempt whose outcome is not known leaves two traces. The same transfer looks for its object before it sends again.
And the next transfer to that destination looks once more after it was stored: a late body could have overwritten it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.delivery.schedule import Job
from s3daemon.errors import AttemptError, Code, FileError, S3daemonError, SpoolError, one_line
from s3daemon.model.request import Destination, FileState
from s3daemon.model.source import Source
from s3daemon.network.progress import Progress
from s3daemon.s3.store import LookupResult, Store, Stored
from s3daemon.spool.spool import Spool

_log = logging.getLogger(__name__)

#: How long a body of which nothing more is heard may still arrive: what a proxy or a receiver's queue may hold it for.
LATE_ARRIVAL_S = 900.0
#: Where systemd puts a service's credentials (systemd.exec(5)). The daemon can read its own; its clients shall not.
CREDENTIALS = "/run/credentials"


async def open_file(path: str, settings: Settings, opener: Callable[..., Source] = Source.open) -> Source:
    """Open and check a file in a thread, so that a file system that does not answer holds nobody else.

    Raises:
        FileError: it cannot be sent, or its file system does not answer.
    """
    own = [CREDENTIALS, settings.state_dir, *filter(None, [settings.shared_credentials_file])]
    opening = asyncio.get_running_loop().run_in_executor(None, opener, path, settings.allowed_roots, own)
    try:
        return await asyncio.wait_for(asyncio.shield(opening), settings.stall_timeout_s)
    except TimeoutError as exc:
        opening.add_done_callback(_close_late)
        limit = settings.stall_timeout_s
        raise FileError(Code.READ_FAILED, f"{one_line(path)}: its file system did not answer for {limit:g} s") from exc


async def _noted(change: Awaitable[None]) -> None:
    """A full disk holds up no accepted transfer, new ones alone: the spool writes the change when it can."""
    with contextlib.suppress(SpoolError):
        await change


def _close_late(opening: asyncio.Future[Source]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


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
        except S3daemonError:
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
            source = job.source or await open_file(job.transfer.file, self.settings, self._opener)
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
