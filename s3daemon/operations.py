"""What operators ask over the control socket: the queue, the status, to try again, to give up."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from .connections import Lanes
from .errors import RequestError, SpoolError
from .listing import row, span
from .schedule import Job
from .server import Server
from .spool import Entry, Spool
from .tcp import Clock
from .uploader import Uploader

Answer = Mapping[str, object]


def entry_of(job: Job) -> Entry:
    """A pending transfer as the spool would give it."""
    return Entry(
        job.seq, job.transfer, job.accepted_service, job.attempts, begun=job.begun, code=job.code, text=job.text
    )


def _ids(arguments: Mapping[str, object]) -> set[str]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise RequestError("BadRequest", '"ids" must be a list of transfer ids')
    return set(ids)


class Operations:
    """The commands of the control socket.

    Args:
        uploader, spool, server: asked and told.
        lanes: gives the connections in use now.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        uploader: Uploader,
        spool: Spool,
        server: Server,
        lanes: Callable[[], Lanes],
        *,
        wall: Clock = time.time,
    ) -> None:
        self._uploader = uploader
        self._spool = spool
        self._server = server
        self._lanes = lanes
        self._wall = wall
        self.failed = 0  #: transfers that failed for good, as last counted
        self.draining = ""  #: says so while the service stops
        self.refused = ""  #: why the last reload was refused, until one is accepted

    async def count_failed(self) -> None:
        """Bring `failed` up to date, if the disk lets us."""
        with contextlib.suppress(SpoolError):
            self.failed = len(await asyncio.to_thread(self._spool.entries, failed=True))

    async def queue(self, arguments: Mapping[str, object]) -> Answer:
        """Every transfer that is not over, and the failed ones; with `failed` only these."""
        failed = await asyncio.to_thread(self._spool.entries, failed=True)
        jobs = [] if arguments.get("failed") is True else self._uploader.schedule.jobs
        return {"transfers": self._rows(jobs, failed)}

    def _rows(self, jobs: Sequence[Job], failed: Sequence[Entry]) -> Iterator[dict[str, object]]:
        now_usec, now = round(self._wall() * 1e6), self._uploader.clock()
        for job in jobs:
            state, next_in_s = self._state(job, now)
            yield row(entry_of(job), state, now_usec=now_usec, next_in_s=next_in_s).as_dict()
        for entry in failed:
            yield row(entry, "failed", now_usec=now_usec).as_dict()

    def _state(self, job: Job, now: float) -> tuple[str, float | None]:
        if job.task is not None:
            return "in flight", None
        if not self._uploader.schedule.is_head(job):
            return "behind", None
        if self._uploader.health.held:
            return "held", None
        return "pending", max(0.0, job.not_before - now) if job.not_before else 0.0

    async def retry(self, arguments: Mapping[str, object]) -> Answer:
        """Try again: a delay ends, what failed is pending again."""
        ids = None if arguments.get("all") is True else _ids(arguments)
        schedule = self._uploader.schedule
        pending = [job for id_ in ids if (job := schedule.get(id_))] if ids is not None else schedule.jobs
        known = {job.transfer.id for job in pending}
        for job in pending:
            if job.task is None:
                schedule.end_delay(job)
        failed = await asyncio.to_thread(self._spool.entries, failed=True)
        wanted = [entry for entry in failed if ids is None or entry.transfer.id in ids]
        now = self._uploader.service.now()
        done = await self._spool.retry([entry.transfer.id for entry in wanted], now)
        again = [replace(entry, accepted_service=now) for entry in wanted if entry.transfer.id in done]
        self._uploader.recover(again)
        return {"ids": sorted(known | done)}

    async def drop(self, arguments: Mapping[str, object]) -> Answer:
        """Give up: an attempt in flight is ended and its clients are told."""
        ids = _ids(arguments)
        dropped = await self._spool.drop(ids)
        for id_ in ids:
            job = self._uploader.schedule.get(id_)
            if job is not None and not await self._uploader.drop(job):
                dropped.discard(id_)  # it was stored before it could be dropped
        return {"ids": sorted(dropped)}

    async def status(self, _: Mapping[str, object]) -> Answer:
        """Figures, and the line that `systemctl status` shows."""
        uploader, lanes = self._uploader, self._lanes()
        return {
            "status": self.line(),
            "in_flight": len(uploader.schedule.running),
            "pending": len(uploader.schedule) - len(uploader.schedule.running),
            "failed": self.failed,
            "held": uploader.health.held,
            "away": uploader.health.away,
            "spool": self._spool.fault,
            "refused": self.refused,
            "clients": self._server.clients,
            "connections": {"open": lanes.open_count, "opened": lanes.opened, "limit": lanes.limit},
        }

    def line(self) -> str:
        """One line worth reading."""
        uploader, lanes = self._uploader, self._lanes()
        running = len(uploader.schedule.running)
        waiting = len(uploader.schedule) - running
        parts = [f"{running} in flight", f"{waiting} pending"]
        if (oldest := uploader.schedule.oldest) is not None:
            parts[-1] += f", the oldest {span(max(0.0, self._wall() - oldest.transfer.accepted_usec / 1e6))}"
        if failed := self.failed:
            parts.append(f"{failed} failed (s3daemon queue)")
        parts.append(f"{lanes.open_count} of {lanes.limit} connections open")
        if self.refused:
            parts.insert(0, f"reload REFUSED, {self.refused}")
        if uploader.health.held:
            parts.insert(0, f"HELD, {uploader.health.held}")
        elif uploader.health.away:
            parts.insert(0, "endpoint AWAY")
        if self._spool.fault:
            parts.insert(0, f"refusing requests, {self._spool.fault}")
        if self.draining:
            parts.insert(0, self.draining)
        return "; ".join(parts)
