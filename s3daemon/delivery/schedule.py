"""Who goes next: the transfers of this process in their order. Pure: told the time, never asks.

Rules, in this order:

1. One at a time for a destination, in the order accepted there, so that the newest content wins. Only the oldest
   pending transfer of a destination, its *head*, is a candidate; while it waits out a delay those behind it wait too.
2. Live before backlog. A transfer is *live* while this process accepted it and no attempt of it failed. A live one
   lends its rank to the older ones of its destination, which stand in its way.
3. Among equals the one accepted first; but large ones never take the last connections, so that small ones, half of all
   objects, do not stand behind a wall of large ones, nor live ones behind a draining backlog.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from s3daemon.model.record import TransferRecord
from s3daemon.model.reply import Reply
from s3daemon.model.request import Destination, Transfer
from s3daemon.model.source import SMALL_BYTES, Source
from s3daemon.network.progress import Progress


@dataclass(eq=False, slots=True)
class Job:
    """A transfer in this process.

    Args:
        seq: order of acceptance.
        transfer: what to do.
        accepted_at: monotonic seconds of acceptance; of this process's start for what an earlier one accepted.
        accepted_service: service time at acceptance, seconds (see `retry.ServiceClock`).
        live: accepted, or asked for again, by this process; since then no attempt failed and no outage ended.
        attempts: made so far.
        begun: the spool says that an attempt may have begun.
        unknown: an earlier attempt may have stored the object: look before sending.
        changed: the file differed from what was accepted.
        recovered: accepted by an earlier process.
        code, text, receiver: of the last error.
        tried: receivers where attempts failed, one after the other without a delay between.
        not_before: monotonic seconds before which no attempt is made; 0 when it waits for nothing.
        waiters: who wants to know the end.
        source: the file as opened at acceptance, until the first attempt takes it.
        started_at: monotonic seconds when the last attempt began.
        durable: done when the spool has the transfer; None for what came from there.
        task: the attempt in flight.
        progress: of the attempt begun last; None before the first.
        record: what became of it, once it is over.
    """

    seq: int
    transfer: Transfer
    accepted_at: float
    accepted_service: float
    live: bool = True
    attempts: int = 0
    begun: bool = False
    unknown: bool = False
    changed: bool = False
    recovered: bool = False
    code: str = ""
    text: str = ""
    receiver: str = ""
    tried: set[str] = field(default_factory=set)
    not_before: float = 0.0
    waiters: list[asyncio.Future[Reply]] = field(default_factory=list)
    source: Source | None = None
    started_at: float = 0.0
    durable: asyncio.Future[None] | None = None
    task: asyncio.Task[None] | None = None
    progress: Progress | None = None
    record: TransferRecord | None = None

    def __lt__(self, other: Job) -> bool:
        """In the order accepted; for heaps."""
        return self.seq < other.seq

    @property
    def small(self) -> bool:
        """Takes no bandwidth worth sharing."""
        return self.transfer.seen.size <= SMALL_BYTES


class Schedule:
    """Pending and running transfers.

    Args:
        slots: how many may run at once.

    Attributes:
        on_added, on_removed: told of each transfer that comes, and goes.
    """

    def __init__(self, slots: int) -> None:
        self.on_added: Callable[[Job], None] = lambda job: None
        self.on_removed: Callable[[Job], None] = lambda job: None
        self.resize(slots)
        self._chains: dict[Destination, deque[Job]] = {}
        self._by_id: dict[str, Job] = {}
        self._running: set[Job] = set()
        # Heaps by rank and size. An entry that no longer tells the truth is dropped when it comes up.
        self._ready: dict[tuple[bool, bool], list[Job]] = {
            (live, small): [] for live in (True, False) for small in (True, False)
        }
        self._delayed: list[tuple[float, Job]] = []  # likewise

    def resize(self, slots: int) -> None:
        """Let `slots` run at once from now on; some are kept from large transfers, half of them from the backlog."""
        self._slots = slots
        self._limit_large = max(1, slots - max(1, slots // 10))
        self._limit_backlog = max(1, slots // 2)

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def jobs(self) -> list[Job]:
        """All, in the order accepted."""
        return sorted(self._by_id.values(), key=lambda job: job.seq)

    @property
    def oldest(self) -> Job | None:
        """The one accepted first, None when there is none."""
        return next(iter(self._by_id.values()), None)

    @property
    def running(self) -> frozenset[Job]:
        """Those with an attempt in flight."""
        return frozenset(self._running)

    def waiting(self) -> Iterator[Job]:
        """Those without an attempt in flight, about in the order accepted; valid until something changes."""
        return (job for job in self._by_id.values() if job not in self._running)

    def __contains__(self, id_: object) -> bool:
        """Whether a transfer, by its id, is here."""
        return id_ in self._by_id

    def get(self, id_: str) -> Job | None:
        """The job of a transfer."""
        return self._by_id.get(id_)

    def joinable(self, file: str, destination: Destination) -> Job | None:
        """The newest transfer for `destination`, if it is of the same file and no attempt is in flight."""
        chain = self._chains.get(destination)
        if not chain or chain[-1] in self._running or chain[-1].transfer.file != file:
            return None
        return chain[-1]

    def is_head(self, job: Job) -> bool:
        """No older transfer for its destination stands before it."""
        chain = self._chains.get(job.transfer.destination)
        return chain is not None and chain[0] is job

    def add(self, job: Job) -> None:
        """Take a transfer in, behind the older ones for its destination."""
        chain = self._chains.setdefault(job.transfer.destination, deque())
        chain.append(job)
        self._by_id[job.transfer.id] = job
        self._offer(chain[0])
        self.on_added(job)

    def take(self, now: float) -> Job | None:
        """The next one to run at monotonic time `now`, None when there is none; it counts as running from here on."""
        while self._delayed and self._delayed[0][0] <= now:
            not_before, job = heapq.heappop(self._delayed)
            if job.not_before == not_before:
                self.end_delay(job)
        for live in (True, False):
            heads = {small: head for small in (True, False) if (head := self._peek(live, small))}
            free = [head for small, head in heads.items() if self._may_run(live, small)]
            if free:
                job = min(free)
                self._running.add(job)
                return job
        return None

    def next_time(self) -> float | None:
        """When the next delay ends, monotonic seconds; None when there is none."""
        return self._delayed[0][0] if self._delayed else None

    def release(self, job: Job, not_before: float) -> None:
        """Its attempt ended, the transfer did not: a candidate again at monotonic time `not_before`."""
        self._running.discard(job)
        job.not_before = not_before
        heapq.heappush(self._delayed, (not_before, job))

    def end_delay(self, job: Job) -> None:
        """Let it wait no longer. A request may have made it live before, which raises its head too."""
        job.not_before = 0.0
        self._offer(self._chains[job.transfer.destination][0])

    def end_delays(self) -> None:
        """Let none wait: the endpoint is back."""
        self._delayed = []
        for chain in self._chains.values():
            for job in chain:
                job.not_before = 0.0
            self._offer(chain[0])

    def demote(self) -> None:
        """What an outage kept waiting is backlog, tried or not: fresh transfers pass it. Ends delays too."""
        for job in self._by_id.values():
            job.live = False
        self.end_delays()

    def remove(self, job: Job) -> None:
        """It is over."""
        self._running.discard(job)
        del self._by_id[job.transfer.id]
        job.not_before = 0.0
        chain = self._chains[job.transfer.destination]
        chain.remove(job)
        if chain:
            self._offer(chain[0])
        else:
            del self._chains[job.transfer.destination]
        self.on_removed(job)

    def _may_run(self, live: bool, small: bool) -> bool:
        if len(self._running) >= self._slots:
            return False
        if not small and sum(not job.small for job in self._running) >= self._limit_large:
            return False
        return live or sum(not self._is_live(job) for job in self._running) < self._limit_backlog

    def _is_live(self, job: Job) -> bool:
        return any(other.live for other in self._chains[job.transfer.destination])

    def _is_candidate(self, job: Job) -> bool:
        return self.is_head(job) and job not in self._running and job.not_before == 0.0

    def _offer(self, job: Job) -> None:
        if self._is_candidate(job):
            heapq.heappush(self._ready[self._is_live(job), job.small], job)

    def _peek(self, live: bool, small: bool) -> Job | None:
        heap = self._ready[live, small]
        while heap:
            job = heap[0]
            if self._is_candidate(job) and (self._is_live(job), job.small) == (live, small):
                return job
            heapq.heappop(heap)
        return None
