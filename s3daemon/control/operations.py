"""What each command of the control socket does; and the daemon's condition, for everyone who shows it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.control.exposures import SHOWN, status_of
from s3daemon.control.rows import Row, row_of
from s3daemon.control.status import (
    LISTED,
    Condition,
    Connections,
    RateLimit,
    Status,
    Summary,
    receivers_of,
    uploads_of,
)
from s3daemon.delivery.decision import DROPPED
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.delivery.uploader import Uploader
from s3daemon.errors import Code, RequestError, SpoolError
from s3daemon.model.exposure import LATE_S, LOST_S, Exposures, loss_of
from s3daemon.network.pool import ConnectionPool
from s3daemon.spool.spool import Entry, Spool
from s3daemon.units import plural, span

CommandAnswer = Mapping[str, object]


def _ids(arguments: Mapping[str, object]) -> set[str]:
    ids = arguments.get("ids")
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise RequestError(Code.BAD_REQUEST, '"ids" must be a list of transfer ids')
    return set(ids)


def _unsaved(error: SpoolError | None) -> dict[str, str]:
    return {} if error is None else {"unsaved": error.text}


class Operations:
    """The commands of the control socket, and the daemon's condition.

    Args:
        settings: names the store.
        uploader: has the pending transfers and the endpoint's health.
        spool: has the failed transfers.
        pool: gives the connections in use now; a reload may replace them.
        exposures: the last ones.
        clients: returns how many clients of the line protocol are being served.
        wall: seconds since the epoch.

    Attributes:
        draining: says so while the service stops, else ""; the service sets it.
        reload_fault: why the last reload was refused, or ""; the service sets it.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        uploader: Uploader,
        spool: Spool,
        pool: Callable[[], ConnectionPool],
        *,
        exposures: Exposures,
        clients: Callable[[], int],
        wall: Clock = time.time,
    ) -> None:
        self.draining = ""
        self.reload_fault = ""
        self._settings = settings
        self._uploader = uploader
        self._spool = spool
        self._pool = pool
        self._exposures = exposures
        self._clients = clients
        self._wall = wall
        self._started_usec = round(wall() * 1e6)
        self._changing = asyncio.Lock()  # a retry or drop at a time: each reads the spool, and acts on that later
        self._changes: set[asyncio.Task[CommandAnswer]] = set()
        self._failed = 0  # as last counted
        self._failures: list[Entry] = []  # the last of them

    async def count_failed(self) -> None:
        """Count the transfers that failed permanently, if the disk allows it; called every 2 s."""
        with contextlib.suppress(SpoolError):
            self._failed, self._failures = await asyncio.to_thread(self._spool.count_failed, LISTED)

    def sample(self) -> None:
        """Note how far each upload is; called every 2 s, it gives their recent rates."""
        now = self._uploader.clock()
        for queued in self._uploader.schedule.running:
            if queued.attempt is not None:
                queued.attempt.progress.sample(now)

    async def queue(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Answer with every transfer that is not over and the failed ones; with `failed` only with these."""
        failed = await self._read_failed()
        pending = [] if arguments.get("failed") is True else self._uploader.schedule.transfers
        return {"transfers": (row.as_dict() for row in self._rows(pending, failed))}

    def _rows(self, pending: Sequence[QueuedTransfer], failed: Sequence[Entry]) -> Iterator[Row]:
        for queued in pending:
            state, next_in_s = self._state(queued)
            yield row_of(queued.entry(), state, age_s=self._age_s(queued), next_in_s=next_in_s)
        for entry in failed:
            yield row_of(entry, "failed", age_s=entry.transfer.age_s(self._wall()))

    def _age_s(self, queued: QueuedTransfer) -> float:
        return queued.age_s(self._uploader.clock(), self._wall())

    def _state(self, queued: QueuedTransfer) -> tuple[str, float | None]:
        if queued.attempt is not None:
            return "in flight", None
        if not self._uploader.schedule.is_head(queued):
            return "behind", None
        health = self._uploader.health
        if health.held:
            return "held", None
        probe_s = 0.0 if queued.live and health.admits_new else health.next_probe_s or 0.0
        return "pending", max(probe_s, queued.not_before - self._uploader.clock())

    async def retry(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Try again: a delay ends, what failed is pending again."""
        return await self._to_the_end(self._retry(None if arguments.get("all") is True else _ids(arguments)))

    async def drop(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Give up: an attempt in flight is cancelled and its clients are notified."""
        return await self._to_the_end(self._drop(_ids(arguments)))

    async def settle(self) -> None:
        """Wait until every retry and drop that has begun is done; for the end, when no client asks any more."""
        await asyncio.gather(*self._changes, return_exceptions=True)

    async def _to_the_end(self, change: Coroutine[Any, Any, CommandAnswer]) -> CommandAnswer:
        """Carry a change out though a stop ends the client's connection: the spool may have a part of it already."""
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _retry(self, ids: set[str] | None) -> CommandAnswer:
        async with self._changing:
            known = self._uploader.retry(ids)
            with self._uploader.noting_stored() as stored:
                wanted = [entry for entry in await self._read_failed() if ids is None or entry.transfer.id in ids]
                now = self._uploader.active_clock.now()
                done, error = await self._spool.retry([entry.transfer.id for entry in wanted], now)
            again = [replace(entry, accepted_active_s=now) for entry in wanted if entry.transfer.id in done]
            # It, or a newer one, was stored while the spool was busy with these: they would be sent over it.
            overtaken = {entry.transfer.id for entry in again if stored.get(entry.transfer.destination, 0) >= entry.seq}
            for id_ in overtaken:
                self._spool.remove(id_)
            self._uploader.recover(entry for entry in again if entry.transfer.id not in overtaken)
        held = {"held": self._uploader.health.held} if self._uploader.health.held else {}
        return {"ids": sorted(known | done - overtaken), **held, **_unsaved(error)}

    async def _drop(self, ids: set[str]) -> CommandAnswer:
        async with self._changing:
            pending = [queued.transfer for id_ in ids if (queued := self._uploader.schedule.get(id_))]
            dropped, error = await self._spool.drop(
                ids, [loss_of(transfer, f"{DROPPED.code}: {DROPPED.text}") for transfer in pending]
            )
            for id_ in ids:
                queued = self._uploader.schedule.get(id_)
                if queued is not None and not await self._uploader.drop(queued):
                    dropped.discard(id_)  # it was stored before it could be dropped
        return {"ids": sorted(dropped), **_unsaved(error)}

    async def _read_failed(self) -> list[Entry]:
        """Read the failed transfers, without those retried already whose rows the disk does not allow to change yet.

        Raises:
            SpoolError: they cannot be read now.
        """
        failed = await asyncio.to_thread(self._spool.failed_entries)
        return [entry for entry in failed if entry.transfer.id not in self._uploader.schedule]

    async def status(self, _: Mapping[str, object]) -> CommandAnswer:
        """Answer with the status."""
        return self.snapshot().as_dict()

    def snapshot(self) -> Status:
        """Describe the daemon as it is now, from its condition down to each upload."""
        condition, uploader, pool = self.condition(), self._uploader, self._pool()
        uploads = uploads_of(uploader.schedule.running, uploader.clock())
        now_usec = round(self._wall() * 1e6)
        return Status(
            **{each.name: getattr(condition, each.name) for each in fields(Summary)},
            state=condition.state,
            line=condition.line,
            version=__version__,
            host=socket.gethostname(),
            endpoint=self._settings.current.endpoint_url,
            now_usec=now_usec,
            started_usec=self._started_usec,
            limit=RateLimit(pool.bandwidth.limit.rate_bps, pool.bandwidth.limit.origin.value),
            receivers=receivers_of(pool.open_per_address(), uploads, pool.addresses.limited),
            uploads=uploads,
            waiting=tuple(self._rows(list(islice(uploader.schedule.waiting(), LISTED)), [])),
            failures=tuple(self._rows([], self._failures)),
            exposures=tuple(status_of(exposure, now_usec) for exposure in list(self._exposures)[-SHOWN:]),
            late_s=LATE_S,
            lost_s=LOST_S,
        )

    def condition(self) -> Condition:
        """Say what is wrong now and how much there is to do."""
        uploader, pool = self._uploader, self._pool()
        in_flight, oldest = len(uploader.schedule.running), uploader.schedule.oldest
        return Condition(
            in_flight=in_flight,
            pending=len(uploader.schedule) - in_flight,
            oldest_s=self._age_s(oldest) if oldest else None,
            failed=self._failed,
            clients=self._clients(),
            connections=Connections(pool.open_count, pool.opened, pool.limit),
            disabled=tuple(pool.addresses.unexpectedly_disabled),
            unreachable=pool.addresses.unreachable,
            none_kept=not pool.small_request,
            held=uploader.health.held,
            away=uploader.health.away,
            away_reason=uploader.health.away_reason,
            since_usec=uploader.outages.since_usec,
            outage_s=uploader.outages.for_s,
            next_probe_s=uploader.next_probe_s,
            failing=uploader.failing,
            silent_buckets=uploader.silent_buckets,
            full_buckets=uploader.full_buckets,
            spool_fault=self._spool.fault,
            reload_fault=self.reload_fault,
            stopping=self.draining,
        )

    def line(self) -> str:
        """Return the line that `systemctl status` shows."""
        return self.condition().line

    def late_line(self) -> str:
        """Say how many accepted transfers are not over after `LOST_S`, and of the oldest what keeps it; "" for none.

        Each counts, whatever its state: waiting for its first attempt, or for the end of a delay after one.
        """
        late = [queued for queued in self._uploader.schedule.transfers if self._age_s(queued) > LOST_S]
        if not late:
            return ""
        oldest = max(late, key=self._age_s)
        transfer, error = oldest.transfer, oldest.last_error
        age = span(self._age_s(oldest))
        tag = f" ({transfer.tags[0]})" if transfer.tags else ""
        state, _ = self._state(oldest)
        why = f", last error {error.code}: {error.text}" if error.code else ""
        count = f"{plural(len(late), 'transfer')} not stored after {LOST_S:g} s"
        return f"{count}, the oldest after {age}: {transfer.destination}{tag}, {state}{why}; see s3daemon queue"
