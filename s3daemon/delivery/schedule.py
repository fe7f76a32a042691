"""Which transfer goes next. Pure: the time is passed in.

Rules, in this order:

1. One at a time for a destination, in the order accepted there, so that the newest content wins. Only the oldest
   pending transfer of a destination, its *head*, is a candidate; while it waits out a delay those behind it wait too.
   A failed one that is retried takes its place among them again; if a newer one is in flight, it waits for its end;
   if an earlier process has sent a newer one, it waits until that was looked up: its client may have been told that it
   is stored, so the old content must not be sent over it.
2. Live before backlog. A transfer is *live* while this process accepted it and no attempt of it failed, except at one
   of several addresses. The older ones of its destination, which must go first, count as live with it.
3. Among equals the one accepted first; but large ones never take the last connections, so that small ones, half of all
   objects, do not wait behind a row of large ones, nor live ones behind a backlog that is being delivered.

Three limits apply to whatever comes next: the attempts of one transfer in a minute, those at a full bucket, and those
in flight to a bucket that does not answer while another one takes objects.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from s3daemon.delivery.decision import LastError
from s3daemon.model.files.source import SMALL_BYTES, Source
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.network.uploads.progress import Progress
from s3daemon.spool.spool import Entry

#: A last line of defence, whatever the reason: a case that was overlooked once made 2383 attempts of a transfer within
#: 102 s. The back-off makes 9 in the first minute; each of four addresses may be tried at once before that.
ATTEMPTS_PER_MINUTE = 12
MINUTE_S = 60.0
#: Each attempt at a bucket that does not answer holds its slot for a minute, so half of the slots are for others. One
#: for which there is no room is offered again after this long, seconds.
SILENT_AGAIN_S = 5.0
#: Requests that join a transfer give it no more tags than this: journald drops an entry of more than 1024 fields, and
#: says nothing.
MAX_TAGS = 100


@dataclass(slots=True)
class AttemptInFlight:
    """An attempt that has started and has not ended.

    Args:
        task: carries it out.
        progress: how much of the file is acknowledged.
    """

    task: asyncio.Task[None]
    progress: Progress


@dataclass(eq=False, slots=True)
class QueuedTransfer:
    """A transfer that is not over, with its state in this process.

    Args:
        seq: order of acceptance.
        transfer: what to send where; replaced when a request joins it or its file has changed.
        accepted_at: monotonic seconds of acceptance; None if an earlier process accepted it.
        accepted_active_s: active seconds at acceptance (see `ActiveClock`).
        live: accepted, or requested again, by this process; since then no attempt failed, and no outage ended while
            it waited.
        not_before: monotonic seconds before which no attempt starts; 0 when it waits for no time.
        held_back: no attempt starts, as the spool may refuse it.
        attempts: started so far.
        delays: how many attempts were followed by a delay, in this process.
        started_at: monotonic seconds when the last attempts started, as many as the limit of a minute.
        last_error: of the last attempt that failed.
        failed_since: monotonic seconds when the first attempt failed for which the endpoint may be to blame, else inf.
        denied_since: monotonic seconds of the first of the denials that have followed one another, else inf.
        attempt: the one in flight, else None.
        attempt_started: the spool records that an attempt may have started.
        outcome_unknown: an earlier attempt may have stored the object: look for it before sending.
        sent_before: an earlier process may have stored it, and told the client so; this one has not sent it.
        sent_etag: of what the last attempt has sent, as in `Entry`.
        lookups_refused: how many look-ups in a row the store refused, or left unanswered while it answered a neutral
            request.
        is_lookup_unanswered: the last attempt ended in a look-up without an answer.
        failed_addresses: the store's addresses that the next attempt avoids.
        moved: how often its uploads were moved to another connection.
        endpoint: URL of the store of the last attempt; empty before the first one of this process.
        file_changed: the file differed from what was accepted.
        source: the file as opened at acceptance, until the first attempt takes it.
        record: what was recorded, once it is over.
    """

    seq: int
    transfer: Transfer
    accepted_at: float | None
    accepted_active_s: float
    live: bool = True
    not_before: float = 0.0
    held_back: bool = False
    attempts: int = 0
    delays: int = 0
    started_at: tuple[float, ...] = ()
    last_error: LastError = LastError()  # noqa: RUF009 - frozen
    failed_since: float = math.inf
    denied_since: float = math.inf
    attempt: AttemptInFlight | None = None
    attempt_started: bool = False
    outcome_unknown: bool = False
    sent_before: bool = False
    sent_etag: str = ""
    lookups_refused: int = 0
    is_lookup_unanswered: bool = False
    failed_addresses: frozenset[str] = frozenset()
    moved: int = 0
    endpoint: str = ""
    file_changed: bool = False
    source: Source | None = None
    record: TransferRecord | None = None

    @classmethod
    def of(cls, entry: Entry) -> QueuedTransfer:
        """Return the transfer of a row that an earlier process left."""
        return cls(
            entry.seq,
            entry.transfer,
            None,
            entry.accepted_active_s,
            live=False,
            attempts=entry.attempts,
            last_error=LastError(entry.code, entry.text),
            attempt_started=entry.attempt_started,
            outcome_unknown=entry.attempt_started,
            sent_before=entry.attempt_started and not entry.failed,
            sent_etag=entry.sent_etag,
            file_changed=entry.file_changed,
        )

    def entry(self) -> Entry:
        """Return the transfer's row, as the spool has it or should have it."""
        return Entry(
            self.seq,
            self.transfer,
            self.accepted_active_s,
            self.attempts,
            attempt_started=self.attempt_started,
            code=self.last_error.code,
            text=self.last_error.text,
            sent_etag=self.sent_etag,
            file_changed=self.file_changed,
        )

    def __lt__(self, other: QueuedTransfer) -> bool:
        """Compare by the order of acceptance; for heaps."""
        return self.seq < other.seq

    def note_change(self, state: FileState) -> None:
        """Note that the file is not the one that was accepted: its content now is sent, and the record says so."""
        self.file_changed = True
        self.sent_etag = ""
        self.transfer = replace(self.transfer, file_state=state)

    @property
    def place(self) -> tuple[bool, int]:
        """What a destination's transfers are sorted by: what an earlier process sent last, and by age after that."""
        return (False, -self.seq) if self.sent_before else (True, self.seq)

    @property
    def last_attempt_at(self) -> float:
        """Monotonic seconds when the last attempt started; 0 when none has."""
        return self.started_at[-1] if self.started_at else 0.0

    def age_s(self, now: float, wall: float) -> float:
        """Return the seconds since it was accepted.

        By the wall clock only if an earlier process accepted it: no monotonic clock spans two.

        Args:
            now: monotonic seconds.
            wall: seconds since the epoch.
        """
        return self.transfer.age_s(wall) if self.accepted_at is None else now - self.accepted_at

    @property
    def small(self) -> bool:
        """Whether the file is so small that its upload takes no bandwidth worth sharing."""
        return self.transfer.file_state.size <= SMALL_BYTES

    def close_source(self) -> None:
        """Close the file that was opened at acceptance, if no attempt has taken it."""
        if self.source is not None:
            self.source.close()
            self.source = None


def earliest_attempt(started: Sequence[float]) -> float:
    """Return the monotonic time from which a transfer's next attempt may start.

    Args:
        started: when its last `ATTEMPTS_PER_MINUTE` attempts, or all of them, have started.
    """
    return started[0] + MINUTE_S if len(started) >= ATTEMPTS_PER_MINUTE else 0.0


class Schedule:
    """The transfers that are not over, pending or with an attempt in flight.

    Args:
        slots: how many attempts may be in flight at once.

    Attributes:
        on_added: called with each transfer that is added, and again when it has one more tag.
        on_removed: called with each transfer that is removed.
    """

    def __init__(self, slots: int) -> None:
        self.on_added: Callable[[QueuedTransfer], None] = lambda queued: None
        self.on_removed: Callable[[QueuedTransfer], None] = lambda queued: None
        self.resize(slots)
        self._chains: dict[Destination, deque[QueuedTransfer]] = {}
        self._by_id: dict[str, QueuedTransfer] = {}
        self._running: dict[Destination, QueuedTransfer] = {}  # one at a time for each
        # Heaps by rank and size, each with the set of what is in it: a transfer is in a heap once, however often it is
        # offered. An entry that is no longer true is dropped when it becomes the first.
        self._ready: dict[tuple[bool, bool], tuple[list[QueuedTransfer], set[QueuedTransfer]]] = {
            (live, small): ([], set()) for live in (True, False) for small in (True, False)
        }
        self._delayed: list[tuple[float, QueuedTransfer]] = []  # a heap, likewise

    def resize(self, slots: int) -> None:
        """Allow `slots` attempts at once from now on, some of them not to large transfers, half not to the backlog."""
        self._slots = slots
        self._limit_large = max(1, slots - max(1, slots // 10))
        self._limit_backlog = max(1, slots // 2)
        # While the endpoint is away, live transfers leave room for probes: what is never answered holds its slot for a
        # minute, and a recovery would show no sooner.
        self._limit_outage = slots - slots // 4

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def transfers(self) -> list[QueuedTransfer]:
        """All transfers, in the order accepted."""
        return sorted(self._by_id.values(), key=lambda queued: queued.seq)

    @property
    def oldest(self) -> QueuedTransfer | None:
        """The transfer accepted first, except failed ones that were retried since; None when there is none."""
        return next(iter(self._by_id.values()), None)

    @property
    def running(self) -> frozenset[QueuedTransfer]:
        """The transfers with an attempt in flight."""
        return frozenset(self._running.values())

    def has_room(self, bucket: str) -> bool:
        """Return whether at most half of the slots are taken by attempts at `bucket`."""
        return sum(destination.bucket == bucket for destination in self._running) <= max(1, self._slots // 2)

    def only_used(self, buckets: Iterable[str]) -> list[str]:
        """Return those of the buckets that have a transfer, sorted."""
        given = set(buckets)
        return sorted(given & {destination.bucket for destination in self._chains}) if given else []

    def waiting(self) -> Iterator[QueuedTransfer]:
        """Iterate over transfers without an attempt in flight, about as accepted; valid until something changes."""
        return (queued for queued in self._by_id.values() if not self._is_running(queued))

    def __contains__(self, id_: object) -> bool:
        """Return whether the transfer with this id is not over."""
        return id_ in self._by_id

    def get(self, id_: str) -> QueuedTransfer | None:
        """Return the transfer with this id; None when it is over or unknown."""
        return self._by_id.get(id_)

    def joinable(self, file: str, destination: Destination) -> QueuedTransfer | None:
        """Return the newest transfer for `destination`, if it is of the same file, goes last and is not in flight.

        One with `MAX_TAGS` is not returned.
        """
        chain = self._chains.get(destination)
        if not chain or self._is_running(chain[-1]) or chain[-1].transfer.file != file:
            return None
        if any(other.seq > chain[-1].seq for other in chain):
            return None
        return chain[-1] if len(chain[-1].transfer.tags) < MAX_TAGS else None

    def is_head(self, queued: QueuedTransfer) -> bool:
        """Return whether no older transfer for its destination must go first."""
        chain = self._chains.get(queued.transfer.destination)
        return chain is not None and chain[0] is queued

    def older_than(self, queued: QueuedTransfer) -> list[QueuedTransfer]:
        """Return the transfers for the destination of `queued` that were accepted before it."""
        return [other for other in self._chains[queued.transfer.destination] if other.seq < queued.seq]

    def add(self, queued: QueuedTransfer) -> None:
        """Add a transfer in its place among those for its destination, also one that is retried."""
        chain = self._chains.setdefault(queued.transfer.destination, deque())
        insort(chain, queued, key=lambda each: each.place)
        self._by_id[queued.transfer.id] = queued
        self._offer(chain[0])
        self.on_added(queued)

    def admit(self, queued: QueuedTransfer) -> None:
        """Let a transfer start that was held back, if it is not over."""
        if queued.held_back and queued.transfer.id in self:
            queued.held_back = False
            self._offer(self._chains[queued.transfer.destination][0])

    def take(self, now: float, *, live_only: bool = False) -> QueuedTransfer | None:
        """Return the transfer to start next at monotonic time `now`, or None; it counts as running from here on.

        Args:
            now: monotonic seconds.
            live_only: none of the backlog, and not in the last quarter of the slots.
        """
        while self._delayed and self._delayed[0][0] <= now:
            not_before, queued = heapq.heappop(self._delayed)
            if queued.not_before == not_before:
                self.end_delay(queued)
        if live_only and len(self._running) >= self._limit_outage:
            return None
        for live in (True,) if live_only else (True, False):
            heads = {small: head for small in (True, False) if (head := self._peek(live, small))}
            free = [head for small, head in heads.items() if self._may_run(live, small)]
            if free:
                queued = min(free)
                self._running[queued.transfer.destination] = queued
                return queued
        return None

    @property
    def has_ready(self) -> bool:
        """Whether a transfer waits for nothing but its turn."""
        return any(self._peek(live, small) for live, small in self._ready)

    def next_time(self) -> float | None:
        """Return when the next delay ends, monotonic seconds; None when there is none."""
        return self._delayed[0][0] if self._delayed else None

    def release(self, queued: QueuedTransfer, not_before: float) -> None:
        """Make a transfer whose attempt has failed a candidate again from monotonic time `not_before` on."""
        self._stop_running(queued)
        queued.not_before = not_before
        heapq.heappush(self._delayed, (not_before, queued))
        self._offer(self._chains[queued.transfer.destination][0])  # an older one, retried meanwhile

    def end_delay(self, queued: QueuedTransfer) -> None:
        """End its delay. If a request has made it live, that counts for the head of its destination too."""
        queued.not_before = 0.0
        self._offer(self._chains[queued.transfer.destination][0])

    def end_delays(self) -> None:
        """End all delays: the endpoint serves again."""
        self._delayed = []
        for chain in self._chains.values():
            for queued in chain:
                queued.not_before = 0.0
            self._offer(chain[0])

    def end_delays_of(self, bucket: str) -> None:
        """End the delays of the transfers to a bucket: it takes objects again."""
        for destination, chain in self._chains.items():
            if destination.bucket == bucket:
                chain[0].not_before = 0.0
                self._offer(chain[0])

    def demote(self) -> None:
        """Make those that wait backlog, which fresh transfers pass, and end their delays: an outage is over.

        Not those in flight: while the store stays silent to attempts from before, they would take the backlog's share.
        """
        for queued in self.waiting():
            queued.live = False
        self.end_delays()

    def remove(self, queued: QueuedTransfer) -> None:
        """Remove a transfer that is over."""
        self._stop_running(queued)
        del self._by_id[queued.transfer.id]
        queued.not_before = 0.0
        chain = self._chains[queued.transfer.destination]
        chain.remove(queued)
        if chain:
            self._offer(chain[0])
        else:
            del self._chains[queued.transfer.destination]
        self.on_removed(queued)

    def _may_run(self, live: bool, small: bool) -> bool:
        if len(self._running) >= self._slots:
            return False
        running = self._running.values()
        if not small and sum(not queued.small for queued in running) >= self._limit_large:
            return False
        return live or sum(not self._is_live(queued) for queued in running) < self._limit_backlog

    def _is_live(self, queued: QueuedTransfer) -> bool:
        return any(other.live for other in self._chains[queued.transfer.destination])

    def _is_candidate(self, queued: QueuedTransfer) -> bool:
        may_start = queued.not_before == 0.0 and not queued.held_back
        return may_start and self.is_head(queued) and queued.transfer.destination not in self._running

    def _is_running(self, queued: QueuedTransfer) -> bool:
        return self._running.get(queued.transfer.destination) is queued

    def _stop_running(self, queued: QueuedTransfer) -> None:
        if self._is_running(queued):
            del self._running[queued.transfer.destination]

    def _offer(self, queued: QueuedTransfer) -> None:
        if self._is_candidate(queued):
            heap, members = self._ready[self._is_live(queued), queued.small]
            if queued not in members:
                members.add(queued)
                heapq.heappush(heap, queued)

    def _peek(self, live: bool, small: bool) -> QueuedTransfer | None:
        heap, members = self._ready[live, small]
        while heap:
            queued = heap[0]
            if self._is_candidate(queued) and (self._is_live(queued), queued.small) == (live, small):
                return queued
            members.remove(heapq.heappop(heap))
        return None
