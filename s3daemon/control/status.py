"""The status: what `s3daemon status --json` and `/status.json` show, as one frozen type.

Keys in JSON are the names of fields here, except where a field says otherwise; programs read them, so they stay.
`Operations.snapshot` fills it in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from s3daemon.control.codec import JsonObject, Key
from s3daemon.control.exposures import ExposureStatus
from s3daemon.control.rows import Row
from s3daemon.units import span

if TYPE_CHECKING:  # commands read the status without delivery and network
    from s3daemon.delivery.schedule import QueuedTransfer
    from s3daemon.network.addresses import Limited
    from s3daemon.network.uploads.progress import Progress

#: Transfers that the status lists of those that wait, and of those that failed; `s3daemon queue` has them all.
LISTED = 20


@dataclass(frozen=True, slots=True)
class AttemptStatus(JsonObject):
    """One attempt in flight.

    Args:
        id, bucket, key, file, tags: the transfer's.
        attempt: its number, from 1.
        seconds: since it began.
        size_bytes: of the file.
        acked_bytes: of the file, acknowledged by the receiver (TCP_INFO).
        rate_bytes_per_s: since the attempt began.
        recent_bytes_per_s: over its last 4 to 6 s; before that as above.
        receivers: addresses that it is being sent to.
    """

    id: str
    bucket: str
    key: str
    file: str
    tags: tuple[str, ...]
    attempt: int
    seconds: float
    size_bytes: int
    acked_bytes: int
    rate_bytes_per_s: int
    recent_bytes_per_s: int
    receivers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Receiver(JsonObject):
    """One address to which connections are open, or that is temporarily disabled.

    Args:
        address: its IP address.
        connections: open ones.
        uploads: attempts in flight to it.
        disabled: it failed, so nothing is sent there for a while.
        on_trial: it gets one connection until an upload over it is stored.
        reason: of either, one line, or "".
        limited_s: how long it has been disabled or on trial, seconds; None when it is neither.
        next_probe_s: until it is asked again, seconds; None when it is not disabled.
    """

    address: str
    connections: int
    uploads: int
    disabled: bool
    on_trial: bool = False
    reason: str = ""
    limited_s: float | None = None
    next_probe_s: float | None = None


@dataclass(frozen=True, slots=True)
class Connections(JsonObject):
    """Connections to the store.

    Args:
        open: now.
        opened: since the start.
        limit: how many there may be.
    """

    open: int
    opened: int
    limit: int


@dataclass(frozen=True, slots=True)
class RateLimit(JsonObject):
    """What all uploads together may send.

    Args:
        rate_bps: bit/s; 0 for no limit.
        origin: `set` by hand, `found` by this process, `kept` from an earlier one, or `none`.
    """

    rate_bps: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(JsonObject):
    """How much there is to do and what keeps it, at one moment; part of `Condition` and of `Status`.

    Args:
        in_flight: transfers with an attempt under way.
        pending: accepted transfers that wait for an attempt.
        oldest_s: age of the oldest transfer that is not over, in seconds; None when there is none.
        failed: transfers that failed permanently and are listed.
        held: why the queue is held, or "".
        away: the store does not answer, or cannot serve.
        away_reason: the failure that showed it, one line with its code, or "".
        since_usec: since when it is held, away or unreachable, microseconds since the epoch; None when it is not, and
            in the first 30 s in which it is unreachable.
        next_probe_s: seconds until an attempt tries whether that is over; None when it is neither.
        unreachable: why no address of the store answers, or "".
        failing: for how long nothing has been stored while attempts fail or get no answer, and the last error, or "".
        spool_fault: why requests are refused, or ""; `spool` in JSON.
        reload_fault: why the last reload was refused, or ""; `refused` in JSON.
        clients: of the line protocol that are being served.
        connections: to the store.
    """

    in_flight: int
    pending: int
    oldest_s: float | None
    failed: int
    held: str = ""
    away: bool = False
    away_reason: str = ""
    since_usec: int | None = None
    next_probe_s: float | None = None
    unreachable: str = ""
    failing: str = ""
    spool_fault: Annotated[str, Key("spool")] = ""
    reload_fault: Annotated[str, Key("refused")] = ""
    clients: int
    connections: Connections


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition(Summary):
    """What is wrong and how much there is to do, at one moment.

    Args:
        outage_s: for how long it has been held, away or unreachable, seconds; else None.
        disabled: receivers that are temporarily disabled.
        silent_buckets, full_buckets: those that do not answer while others do, and those whose quota is used up.
        none_kept: the store closes each connection after its answer.
        stopping: says so while the service stops, else "".
    """

    outage_s: float | None = None
    disabled: Sequence[str] = ()
    silent_buckets: Sequence[str] = ()
    full_buckets: Sequence[str] = ()
    none_kept: bool = False
    stopping: str = ""

    @property
    def state(self) -> str:
        """The worst of what is true now: `stopping`, `refusing` requests, `held`, `away`, `failing`; else `ok`."""
        causes = (
            ("stopping", self.stopping),
            ("refusing", self.spool_fault),
            ("held", self.held),
            ("away", self.away),
            ("failing", self.failing),
        )
        return next((word for word, cause in causes if cause), "ok")

    @property
    def healthy(self) -> bool:
        """Whether every request is accepted, and what is accepted is delivered at once."""
        return self.state == "ok"

    @property
    def _outage(self) -> str:
        """For how long, not since when: the reader's time zone may be another than the daemon's."""
        past = "" if self.outage_s is None else f", for {span(self.outage_s)}"
        return past if self.next_probe_s is None else f"{past}, next attempt in {span(math.ceil(self.next_probe_s))}"

    @property
    def _obstacle(self) -> str:
        """What keeps transfers from being stored, the first that is true; empty for nothing."""
        obstacles = (
            ("HELD", self.held and self.held + self._outage),
            ("AWAY", self.away_reason and self.away_reason + self._outage),
            ("UNREACHABLE", self.unreachable and self.unreachable + self._outage),
            ("FAILING", self.failing),
        )
        return next((f"{word}, {text}" for word, text in obstacles if text), "")

    @property
    def line(self) -> str:
        """The line that `systemctl status` shows: what is wrong, the worst first, then the counts."""
        parts = [self.stopping] if self.stopping else []
        if self.spool_fault:
            parts.append(f"refusing requests, {self.spool_fault}")
        if self._obstacle:
            parts.append(self._obstacle)
        if self.reload_fault:
            parts.append(f"reload REFUSED, {self.reload_fault}")
        parts += [f"{self.in_flight} in flight", f"{self.pending} pending"]
        if self.oldest_s is not None:
            parts.append(f"the oldest is {span(self.oldest_s)} old")
        if self.failed:
            parts.append(f"{self.failed} failed (s3daemon queue)")
        parts.append(f"{self.connections.open} of {self.connections.limit} connections open")
        if self.none_kept and not self.unreachable:
            parts.append("the store closes each connection after its answer")
        if self.disabled and not (self.away or self.unreachable):  # then none answers, whichever of them is disabled
            parts.append(f"receivers temporarily disabled: {', '.join(self.disabled)}")
        if self.silent_buckets and not self.away:
            parts.append(f"buckets without an answer: {', '.join(self.silent_buckets)}")
        if self.full_buckets:
            parts.append(f"full buckets: {', '.join(self.full_buckets)}")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Summary):
    """The daemon's whole answer to `status`.

    Args:
        state, line: as of `Condition`; `line` is `status` in JSON.
        version, host, endpoint: which daemon this is, and the store that it sends to.
        now_usec, started_usec: wall clock now and at the daemon's start, microseconds since the epoch.
        limit: of the bandwidth.
        receivers: the store's addresses.
        uploads: one for each attempt in flight, the oldest first.
        waiting, failures: the first transfers that wait, and the last that failed; at most `LISTED` each.
        exposures: the last ones.
        late_s, lost_s: seconds after which an exposure is late, and lost.
    """

    state: str
    line: Annotated[str, Key("status")]
    version: str
    host: str
    endpoint: str
    now_usec: int
    started_usec: int
    limit: RateLimit
    receivers: tuple[Receiver, ...]
    uploads: tuple[AttemptStatus, ...]
    waiting: tuple[Row, ...]
    failures: tuple[Row, ...]
    exposures: tuple[ExposureStatus, ...]
    late_s: float
    lost_s: float


def uploads_of(running: Iterable[QueuedTransfer], now: float) -> tuple[AttemptStatus, ...]:
    """Describe the attempts in flight at monotonic time `now`, the oldest first."""
    in_order = sorted(running, key=lambda queued: (queued.last_attempt_at, queued.seq))
    return tuple(_upload(queued, queued.attempt.progress, now) for queued in in_order if queued.attempt)


def _upload(queued: QueuedTransfer, progress: Progress, now: float) -> AttemptStatus:
    transfer = queued.transfer
    acked, recent = progress.acked_bytes, progress.recent_rate(now)
    seconds = max(0.0, now - queued.last_attempt_at)
    rate = acked / seconds if seconds else 0.0
    return AttemptStatus(
        id=transfer.id,
        bucket=transfer.destination.bucket,
        key=transfer.destination.key,
        file=transfer.file,
        tags=tuple(transfer.tags),
        attempt=max(1, queued.attempts),
        seconds=round(seconds, 3),
        size_bytes=transfer.file_state.size,
        acked_bytes=acked,
        rate_bytes_per_s=round(rate),
        recent_bytes_per_s=round(rate if recent is None else recent),
        receivers=tuple(progress.addresses),
    )


def receivers_of(
    connections: Mapping[str, int], uploads: Iterable[AttemptStatus], limited: Mapping[str, Limited]
) -> tuple[Receiver, ...]:
    """Describe the store's addresses, in the order of their names.

    Args:
        connections: open ones by address.
        uploads: those in flight.
        limited: addresses that do not get their share.
    """
    busy = Counter(address for upload in uploads for address in upload.receivers)

    def describe(address: str) -> Receiver:
        counts = connections.get(address, 0), busy[address]
        how = limited.get(address)
        if how is None:
            return Receiver(address, *counts, disabled=False)
        on_trial, probe_s = how.next_probe_s is None, how.next_probe_s
        next_probe_s = None if probe_s is None else round(probe_s, 3)
        return Receiver(address, *counts, not on_trial, on_trial, how.reason, round(how.for_s, 3), next_probe_s)

    return tuple(map(describe, sorted({*connections, *busy, *limited})))
