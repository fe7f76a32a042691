"""What each command of the control socket does, and the figures that HTTP serves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any, NamedTuple

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.control.exposures import SHOWN, status_of
from s3daemon.control.rows import Row, row_of
from s3daemon.control.status import (
    LISTED,
    AttemptStatus,
    Condition,
    Connections,
    RateLimit,
    Receiver,
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
from s3daemon.network.rate.bandwidth import Origin
from s3daemon.spool.spool import Entry, Spool
from s3daemon.units import plural, span

CommandAnswer = Mapping[str, object]


class Figure(NamedTuple):
    """A metric of the present state.

    Args:
        name: without the `_total` that Prometheus appends to that of a counter.
        text: its meaning.
        value: now, or its values by that of `label`.
        label: its label; empty for none.
        counter: it only grows; else it is a gauge.
    """

    name: str
    text: str
    value: float | Mapping[str, float]
    label: str = ""
    counter: bool = False


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
        refused: requests that were refused, by the error's code.
        clients: returns how many clients of the line protocol are being served.
        http_clients: likewise of HTTP.
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
        refused: Mapping[str, int],
        clients: Callable[[], int],
        http_clients: Callable[[], int],
        wall: Clock = time.time,
    ) -> None:
        self.draining = ""
        self.reload_fault = ""
        self._settings = settings
        self._uploader = uploader
        self._spool = spool
        self._pool = pool
        self._exposures = exposures
        self._refused = refused
        self._clients = clients
        self._http_clients = http_clients
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
        if self._uploader.health.held:
            return "held", None
        return "pending", max(0.0, queued.not_before - self._uploader.clock())

    async def retry(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Try again: a delay ends, what failed is pending again."""
        return await self._to_the_end(self._retry(None if arguments.get("all") is True else _ids(arguments)))

    async def drop(self, arguments: Mapping[str, object]) -> CommandAnswer:
        """Give up: an attempt in flight is cancelled and its clients are notified."""
        return await self._to_the_end(self._drop(_ids(arguments)))

    async def settle(self) -> None:
        """Wait until what was begun of these two is done; for the end, when no client asks any more."""
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
        failed = await asyncio.to_thread(self._spool.entries, failed=True)
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
            receivers=self._receivers(uploads),
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

    def figures(self) -> Sequence[Figure]:
        """Return the metrics of the present state."""
        condition, pool = self.condition(), self._pool()
        limit = pool.bandwidth.limit
        uploads = uploads_of(self._uploader.schedule.running, self._uploader.clock())
        receivers = self._receivers(uploads)
        rates: dict[str, float] = dict.fromkeys((one.address for one in receivers), 0.0)
        for upload in uploads:
            for address in upload.receivers:
                rates[address] += upload.recent_bytes_per_s / len(upload.receivers)
        return (
            Figure("s3daemon_in_flight", "Transfers with an attempt in flight.", condition.in_flight),
            Figure("s3daemon_pending", "Accepted transfers that wait for an attempt.", condition.pending),
            Figure("s3daemon_oldest_pending_age_seconds",
                "Time since the oldest unfinished transfer was accepted; 0 if there is none.",
                condition.oldest_s or 0.0),
            Figure("s3daemon_failed_listed",
                "Transfers that failed permanently and are listed by s3daemon queue.", condition.failed),
            Figure("s3daemon_held",
                "1 while the queue is held for an error of the configuration.", bool(condition.held)),
            Figure("s3daemon_away", "1 while the store does not answer, or cannot serve.", condition.away),
            Figure("s3daemon_unreachable",
                "1 while no address of the store answers, also while nothing is sent.", bool(condition.unreachable)),
            Figure("s3daemon_spool_refusing",
                "1 while requests are refused because the spool cannot be written.", bool(condition.spool_fault)),
            Figure("s3daemon_clients", "Clients of the line protocol that are being served.", condition.clients),
            Figure("s3daemon_http_clients",
                "Clients of HTTP that are being served, this one included.", self._http_clients()),
            Figure("s3daemon_connections_open", "Open connections to the store.", condition.connections.open),
            Figure("s3daemon_connections_warm", "Open and idle connections to the store, for the next uploads.",
                sum(connection.is_open for connection in pool.idle())),
            Figure("s3daemon_connections_limit",
                "The most connections to the store that are opened.", condition.connections.limit),
            Figure("s3daemon_connections_opened",
                "Connections made to the store since the settings of connections last changed.",
                condition.connections.opened, counter=True),
            Figure("s3daemon_bandwidth_limit_bytes_per_second",
                "The bandwidth limit of all uploads together; 0 for no limit.", limit.rate_bps / 8),
            Figure("s3daemon_bandwidth_limit_found",
                "1 if the daemon found the bandwidth limit, now or before a restart; 0 if it was set.",
                limit.origin in (Origin.FOUND, Origin.KEPT)),
            Figure("s3daemon_receivers_disabled",
                "Addresses of the store that are temporarily disabled.", len(condition.disabled)),
            Figure("s3daemon_deferrals", "Transfers whose waiting clients were notified that the transfer is kept.",
                self._uploader.waiters.deferrals, counter=True),
            Figure("s3daemon_reload_refused",
                "1 after a refused reload, until a reload is accepted.", bool(condition.reload_fault)),
            Figure("s3daemon_tls_certificate_expiry_timestamp_seconds",
                "When the first certificate of the store in use expires, unix epoch; 0 without TLS.",
                pool.certificates.expiry_s),
            Figure("s3daemon_refused",
                "Requests that were refused, by the error's code.", self._refused, "code", counter=True),
            Figure("s3daemon_receiver_connections", "Open connections to an address of the store.",
                {one.address: one.connections for one in receivers}, "receiver"),
            Figure("s3daemon_receiver_uploads", "Attempts in flight to an address of the store.",
                {one.address: one.uploads for one in receivers}, "receiver"),
            Figure("s3daemon_receiver_disabled", "1 while an address is temporarily disabled.",
                {one.address: one.disabled for one in receivers}, "receiver"),
            Figure("s3daemon_receiver_bytes_per_second",
                "Bytes a second that an address of the store acknowledges now.", rates, "receiver"),
        )  # fmt: skip

    def _receivers(self, uploads: Iterable[AttemptStatus]) -> tuple[Receiver, ...]:
        pool = self._pool()
        return receivers_of(pool.open_per_address(), uploads, pool.addresses.limited)
