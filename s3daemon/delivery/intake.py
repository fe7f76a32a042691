"""Accept requests: open and check the file, make the transfer durable, and start its attempt in the meantime.

The upload does not wait for the disk; the reply does. Only while the spool refuses requests does the upload wait too:
it would be in vain, and an older transfer whose removal cannot be saved could replace its object. A request for the
same file and destination as a pending transfer that has no attempt in flight joins it: one upload serves both, and the
pending one's delay ends.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.attempt import open_allowed
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import Code, RequestError, SpoolError
from s3daemon.model.files.source import Source
from s3daemon.model.reply import Reply
from s3daemon.model.request import FileState, Request, Transfer
from s3daemon.spool.spool import Spool


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a client gets for a request that is being accepted.

    Args:
        id: of the transfer that serves it.
        durable: done when the spool has the transfer; raises the SpoolError when it refused.
        outcome: done at the transfer's end, or when it is deferred at once; never if the client does not wait.
        queued: the transfer and its state; once it is over, with its record.
    """

    id: str
    durable: asyncio.Future[None]
    outcome: asyncio.Future[Reply]
    queued: QueuedTransfer


class Intake:
    """Makes transfers of requests.

    Args:
        settings: what is allowed.
        uploader: gets the transfers.
        spool: keeps them.
        last_seq: the order of acceptance goes on from here.
        opener: `Source.open`, or a fake of it.
        wall: seconds since the epoch, for people.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        uploader: Uploader,
        spool: Spool,
        last_seq: int = 0,
        *,
        opener: Callable[..., Source] = Source.open,
        wall: Clock = time.time,
    ) -> None:
        self._settings = settings
        self._uploader = uploader
        self._spool = spool
        self._seqs = itertools.count(last_seq + 1)
        self._opener = opener
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._commits: dict[str, asyncio.Task[None]] = {}  # by transfer, until done

    async def submit(self, request: Request) -> Ticket:
        """Accept a request.

        Raises:
            RequestError: its bucket is not allowed, or (FileError) its file cannot be sent; nothing was accepted.
        """
        settings, bucket = self._settings.current, request.destination.bucket
        if settings.allowed_buckets and bucket not in settings.allowed_buckets:
            raise RequestError(Code.NOT_ALLOWED, f"the bucket {bucket} is not in S3DAEMON_ALLOWED_BUCKETS")
        source = await open_allowed(request.file, settings, self._opener)
        queued = self._uploader.schedule.joinable(request.file, request.destination)
        if queued is None:
            queued, durable = self._accept(request, source)
        else:
            durable = self._join(queued, request.tag, source.state)
            source.close()
        outcome = self._uploader.waiters.wait(queued) if request.wait else self._loop.create_future()
        return Ticket(queued.transfer.id, durable, outcome, queued)

    def resume(self, id_: str) -> Ticket | None:
        """Return the ticket of an earlier process's client; None when its transfer is not pending."""
        queued = self._uploader.schedule.get(id_)
        if queued is None:
            return None
        durable: asyncio.Future[None] = self._loop.create_future()
        durable.set_result(None)
        return Ticket(id_, durable, self._uploader.waiters.wait(queued), queued)

    def deferral(self, ticket: Ticket) -> Reply | None:
        """Return the reply to a client that has waited long enough; None when the transfer is over: it has one soon."""
        queued = self._uploader.schedule.get(ticket.id)
        return self._uploader.waiters.defer(queued, ticket.outcome) if queued else None

    def _accept(self, request: Request, source: Source) -> tuple[QueuedTransfer, asyncio.Future[None]]:
        transfer = Transfer.accept(request, source.state, round(self._wall() * 1e6))
        queued = self._uploader.add(next(self._seqs), transfer, source, held_back=self._spool.is_refusing)
        adding = self._spool.add(transfer, queued.accepted_active_s, attempt_started=queued.attempt_started)
        commit = self._commits[transfer.id] = self._loop.create_task(self._commit(queued, adding))
        commit.add_done_callback(lambda _: self._commits.pop(transfer.id))
        return queued, commit

    async def _commit(self, queued: QueuedTransfer, adding: Awaitable[int]) -> None:
        try:
            await adding
        except SpoolError as exc:
            if await self._uploader.abandon(queued, Reply.failed(exc)):
                raise
            # Otherwise it ended before the disk could refuse it: stored or failed, and its client gets that answer. A
            # failure is recorded then, but not listed: the spool has no row of it.
        self._uploader.admit(queued)

    def _join(self, queued: QueuedTransfer, tag: str, state: FileState) -> asyncio.Future[None]:
        commit = self._commits.get(queued.transfer.id)
        durable = self._loop.create_task(self._commit_join(queued, commit))
        self._uploader.join(queued, tag, state)
        return durable

    async def _commit_join(self, queued: QueuedTransfer, commit: asyncio.Task[None] | None) -> None:
        if commit is not None:
            await asyncio.shield(commit)
        await self._spool.save_join(queued.transfer, file_changed=queued.file_changed)
