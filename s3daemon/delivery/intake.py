"""Accepting requests: a file is opened and checked, the transfer made durable, and begun meanwhile.

The upload does not wait for the disk, the reply does. A request for the same file and destination as a pending transfer
that has no attempt in flight joins it: one upload serves both, and its back-off is over.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from s3daemon.clock import Clock
from s3daemon.delivery.attempt import open_file
from s3daemon.delivery.schedule import Job
from s3daemon.delivery.uploader import Uploader
from s3daemon.delivery.waiters import tell
from s3daemon.errors import Code, RequestError, SpoolError
from s3daemon.model.reply import Reply
from s3daemon.model.request import Request, Transfer
from s3daemon.model.source import Source
from s3daemon.spool.spool import Spool


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a client gets for a request that is being accepted.

    Args:
        id: of the transfer that serves it.
        durable: done when the spool has it; holds the SpoolError when it refused.
        outcome: done at the transfer's end, or when it is deferred at once.
        job: what is known of the transfer beside; once it is over, its record.
    """

    id: str
    durable: asyncio.Future[None]
    outcome: asyncio.Future[Reply]
    job: Job


class Intake:
    """Where requests become transfers.

    Args:
        uploader: gets the transfers.
        spool: keeps them.
        last_seq: the order of acceptance goes on from here.
        opener: `Source.open`, or a stand-in.
        wall: seconds since the epoch, for people.
    """

    def __init__(
        self,
        uploader: Uploader,
        spool: Spool,
        last_seq: int = 0,
        *,
        opener: Callable[..., Source] = Source.open,
        wall: Clock = time.time,
    ) -> None:
        self._uploader = uploader
        self._spool = spool
        self._seq = itertools.count(last_seq + 1)
        self._opener = opener
        self._wall = wall
        self._loop = asyncio.get_running_loop()

    async def submit(self, request: Request) -> Ticket:
        """Accept a request.

        Raises:
            RequestError: its bucket is not allowed, or (FileError) its file cannot be sent; nothing was accepted.
        """
        settings, bucket = self._uploader.settings, request.destination.bucket
        if settings.allowed_buckets and bucket not in settings.allowed_buckets:
            raise RequestError(Code.NOT_ALLOWED, f"the bucket {bucket} is not in S3DAEMON_ALLOWED_BUCKETS")
        source = await open_file(request.file, settings, self._opener)
        job = self._uploader.schedule.joinable(request.file, request.destination)
        if job is not None:
            durable = self._join(job, request, source)
        else:
            job, durable = self._accept(request, source)
        return Ticket(job.transfer.id, durable, self._uploader.waiters.wait(job), job)

    def resume(self, id_: str) -> Ticket | None:
        """The ticket for a client of an earlier process, None when its transfer is not pending."""
        job = self._uploader.schedule.get(id_)
        if job is None:
            return None
        durable: asyncio.Future[None] = self._loop.create_future()
        durable.set_result(None)
        return Ticket(id_, durable, self._uploader.waiters.wait(job), job)

    def deferral(self, ticket: Ticket) -> Reply | None:
        """The reply to a client that has waited long enough; None when the end has come and is about to be told."""
        job = self._uploader.schedule.get(ticket.id)
        return self._uploader.waiters.defer(job, ticket.outcome) if job else None

    def _accept(self, request: Request, source: Source) -> tuple[Job, asyncio.Future[None]]:
        uploader = self._uploader
        transfer = Transfer.accept(request, source.state, round(self._wall() * 1e6))
        job = Job(next(self._seq), transfer, uploader.clock(), uploader.service.now(), source=source)
        uploader.schedule.add(job)
        uploader.pump()
        if job.task is None:
            source.close()  # it may wait for hours; the attempt opens it anew
            job.source = None
        job.begun = job.task is not None
        adding = self._spool.add(transfer, job.accepted_service, attempt_started=job.begun)
        job.durable = self._loop.create_task(self._commit(job, adding))
        return job, job.durable

    async def _commit(self, job: Job, adding: Awaitable[int]) -> None:
        try:
            await adding
        except SpoolError as exc:
            if not await self._uploader.abandon(job):
                return  # it was stored before the disk could refuse
            tell(job, Reply.failed(exc))
            raise

    def _join(self, job: Job, request: Request, source: Source) -> asyncio.Future[None]:
        tags = (*job.transfer.tags, request.tag) if request.tag else job.transfer.tags
        job.transfer = replace(job.transfer, tags=tags)
        job.live = True
        durable = self._loop.create_task(self._commit_join(job))
        source.close()
        self._uploader.schedule.end_delay(job)
        self._uploader.pump()
        return durable

    async def _commit_join(self, job: Job) -> None:
        if job.durable is not None:
            await asyncio.shield(job.durable)
        await self._spool.update(job.transfer)
