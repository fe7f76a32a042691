"""What operators ask over the control socket: the queue, the status, to try again, to give up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.control.exposures import LATE_S, LOST_S, Exposures
from s3daemon.control.listing import row
from s3daemon.control.overview import LISTED, receivers_of, uploads_of
from s3daemon.delivery.schedule import Job
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import Code, RequestError, SpoolError
from s3daemon.ingress.server import Server
from s3daemon.network.pool import ConnectionPool
from s3daemon.spool.spool import Entry, Spool
from s3daemon.units import span

Answer = Mapping[str, object]


def entry_of(job: Job) -> Entry:
    """A pending transfer as the spool would give it."""
    return Entry(
        job.seq, job.transfer, job.accepted_service, job.attempts, begun=job.begun, code=job.code, text=job.text
    )


def _ids(arguments: Mapping[str, object]) -> set[str]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise RequestError(Code.BAD_REQUEST, '"ids" must be a list of transfer ids')
    return set(ids)


class Operations:
    """The commands of the control socket.

    Args:
        uploader, spool, server: asked and told.
        pool: gives the connections in use now.
        exposures: the last ones.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        uploader: Uploader,
        spool: Spool,
        server: Server,
        pool: Callable[[], ConnectionPool],
        exposures: Exposures,
        *,
        wall: Clock = time.time,
    ) -> None:
        self._uploader = uploader
        self._spool = spool
        self._server = server
        self._pool = pool
        self._exposures = exposures
        self._wall = wall
        self._started_usec = round(wall() * 1e6)
        self._failures: list[Entry] = []  # the last ones
        self.failed = 0  #: transfers that failed for good, as last counted
        self.draining = ""  #: says so while the service stops
        self.refused = ""  #: why the last reload was refused, until one is accepted

    async def count_failed(self) -> None:
        """Bring `failed` up to date, if the disk lets us."""
        with contextlib.suppress(SpoolError):
            failed = await asyncio.to_thread(self._spool.entries, failed=True)
            self.failed, self._failures = len(failed), failed[-LISTED:]

    def sample(self) -> None:
        """Remember how far each upload is; called each 2 s, it makes their recent rates."""
        now = self._uploader.clock()
        for job in self._uploader.schedule.running:
            if job.progress is not None:
                job.progress.sample(now)

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
        """How things are: in a word, in the line that `systemctl status` shows, and at length (see `overview`)."""
        uploader, pool, now_usec = self._uploader, self._pool(), round(self._wall() * 1e6)
        uploads = uploads_of(uploader.schedule.running, uploader.clock())
        oldest = uploader.schedule.oldest
        return {
            "state": self.state,
            "status": self.line(),
            "version": __version__,
            "host": socket.gethostname(),
            "endpoint": uploader.settings.endpoint_url,
            "now_usec": now_usec,
            "started_usec": self._started_usec,
            "in_flight": len(uploads),
            "pending": len(uploader.schedule) - len(uploads),
            "oldest_s": max(0.0, (now_usec - oldest.transfer.accepted_usec) / 1e6) if oldest else None,
            "failed": self.failed,
            "held": uploader.health.held,
            "away": uploader.health.away,
            "spool": self._spool.fault,
            "refused": self.refused,
            "clients": self._server.clients,
            "connections": {"open": pool.open_count, "opened": pool.opened, "limit": pool.limit},
            "receivers": receivers_of(pool.open_per_address(), uploads, pool.addresses.disabled),
            "uploads": uploads,
            "waiting": list(self._rows(list(islice(uploader.schedule.waiting(), LISTED)), [])),
            "failures": list(self._rows([], self._failures)),
            "exposures": [exposure.as_dict(now_usec) for exposure in self._exposures],
            "late_s": LATE_S,
            "lost_s": LOST_S,
        }

    @property
    def healthy(self) -> bool:
        """What is accepted is delivered at once, and everything is accepted."""
        health = self._uploader.health
        return not (health.held or health.away or self._spool.fault or self.draining)

    def figures(self) -> dict[str, float]:
        """The values of `metrics.LIVE` but for the doors' clients."""
        uploader, pool = self._uploader, self._pool()
        running = len(uploader.schedule.running)
        oldest = uploader.schedule.oldest
        return {
            "s3daemon_in_flight": running,
            "s3daemon_pending": len(uploader.schedule) - running,
            "s3daemon_oldest_pending_age_seconds": max(0.0, self._wall() - oldest.transfer.accepted_usec / 1e6)
            if oldest
            else 0.0,
            "s3daemon_failed_listed": self.failed,
            "s3daemon_held": bool(uploader.health.held),
            "s3daemon_away": uploader.health.away,
            "s3daemon_spool_refusing": bool(self._spool.fault),
            "s3daemon_clients": self._server.clients,
            "s3daemon_connections_open": pool.open_count,
            "s3daemon_connections_warm": sum(connection.is_open for connection in pool.idle()),
            "s3daemon_connections_limit": pool.limit,
            "s3daemon_connections_opened": pool.opened,
            "s3daemon_receivers_aside": len(pool.addresses.disabled),
        }

    @property
    def state(self) -> str:
        """The worst of what is so now: `stopping`, `refusing` requests, `held`, `away`; else `ok`."""
        health = self._uploader.health
        worst = {
            "stopping": self.draining, "refusing": self._spool.fault, "held": health.held, "away": health.away
        }  # fmt: skip
        return next((word for word, so in worst.items() if so), "ok")

    def line(self) -> str:
        """One line worth reading."""
        uploader, pool = self._uploader, self._pool()
        running = len(uploader.schedule.running)
        waiting = len(uploader.schedule) - running
        parts = [f"{running} in flight", f"{waiting} pending"]
        if (oldest := uploader.schedule.oldest) is not None:
            parts[-1] += f", the oldest {span(max(0.0, self._wall() - oldest.transfer.accepted_usec / 1e6))}"
        if failed := self.failed:
            parts.append(f"{failed} failed (s3daemon queue)")
        parts.append(f"{pool.open_count} of {pool.limit} connections open")
        if pool.addresses.disabled:
            parts.append(f"addresses temporarily disabled: {', '.join(pool.addresses.disabled)}")
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
