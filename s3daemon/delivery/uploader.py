"""Starts attempts, and carries out the decision after each: store, retry, fail, record.

A transfer's states, and what moves it (`schedule` says which one is next, `decision` what follows from an error):

    from       event                                              to
    ---------  -------------------------------------------------  -----------------------------------------------------
    (request)  it is given to the spool                           pending; an attempt may start before the commit
    pending    the spool refuses it                               none: its attempt is cancelled, its client notified
    pending    its turn, and `health` lets it start               in flight
    in flight  stored, or found stored after an unknown outcome   stored: client notified, recorded, removed from the
                                                                  spool
    in flight  transient error, within the retry limit            pending, after a delay
    in flight  permanent error, or past the retry limit           failed: recorded, listed, client notified
    in flight  its bucket is full                                 pending, and one of the bucket is tried at a time
    in flight  an error of keys, account or TLS, confirmed        pending, and the whole queue is held
    in flight  the service stops                                  pending in the spool; the next process goes on
    any        an operator drops it                               over: recorded as failed, client notified, not listed
    failed     an operator's retry                                pending
    failed     a success of a newer one for its destination, or   no longer listed
               it expires
    pending    likewise, while an operator retries it             over: not sent; recorded as failed, not listed
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from s3daemon.clock import ActiveClock, Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.decision import DROPPED, FailureState, Finding, decide
from s3daemon.delivery.health.buckets import FullBuckets, SilentBuckets
from s3daemon.delivery.health.endpoint import ASK_EVERY_S, Health
from s3daemon.delivery.health.keys import Ask, KeyEvidence
from s3daemon.delivery.health.outages import FAILING_AFTER_S, Outages, StoringWatch
from s3daemon.delivery.records import Records
from s3daemon.delivery.schedule import (
    ATTEMPTS_PER_MINUTE,
    SILENT_AGAIN_S,
    AttemptInFlight,
    QueuedTransfer,
    Schedule,
    earliest_attempt,
)
from s3daemon.delivery.waiters import Waiters, notify
from s3daemon.errors import AttemptError, Code, FileError, SpoolError
from s3daemon.journal import Journal
from s3daemon.model.files.source import Source
from s3daemon.model.record import AttemptEnd
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.model.verdict import ACCESS_DENIED, SILENCES, UNANSWERED, Keys, accuses_keys
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.endpoint import Start
from s3daemon.s3.store import Stored
from s3daemon.spool.spool import Entry, Spool

_log = logging.getLogger(__name__)


class Uploader:
    """Carries the schedule's transfers to their end.

    Args:
        settings: limits.
        spool: gets what becomes of each transfer.
        attempts: makes the attempts.
        journal: gets the records.
        active_clock: the time in which transfers can go on, from what the spool has of it.
        start: runs the attempts; a bug in what follows from one then ends the service, and the next process goes on.
        ask: sends a neutral request, which tells whether the keys are good when an attempt is refused.
        clock: monotonic seconds; the event loop's own clock must run with it.
        wall: seconds since the epoch, for people.
        rng: jitter.

    Attributes:
        clock: to which the times of `QueuedTransfer` refer.
        active_clock: as given.
        health: whether the endpoint is away or the queue held.
        outages: when the present ones began.
        storing: whether attempts fail and nothing is stored; see `failing`.
        schedule: the transfers that are not over.
        waiters: the clients that wait for them.
        records: of transfers that are over and of attempts, for the journal and for observers in the daemon.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        spool: Spool,
        attempts: Attempts,
        journal: Journal,
        active_clock: ActiveClock,
        *,
        start: Start,
        ask: Ask,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._attempts = attempts
        self.active_clock = active_clock
        self.clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._loop = asyncio.get_running_loop()
        self._start = start
        self.health = Health(self._rng, clock)
        self.outages = Outages(self.health, lambda: self.next_probe_s, clock, wall)
        self.storing = StoringWatch(clock)
        self._keys = KeyEvidence(ask, clock)
        self._full_buckets = FullBuckets()
        self._silent_buckets = SilentBuckets()
        self.schedule = Schedule(settings.current.max_connections)
        self.waiters = Waiters(self.health, journal.write)
        self.records = Records(spool, journal, clock, wall)
        self._started_at = clock()
        self._returning: asyncio.Task[None] | None = None
        self._listing: set[asyncio.Task[None]] = set()  # of failures in the spool
        self._noting: list[dict[Destination, int]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    @property
    def next_probe_s(self) -> float | None:
        """Seconds until the next attempt while the endpoint is away or the queue is held; None when neither is."""
        probe_s, due = self.health.next_probe_s, None if self.schedule.has_ready else self.schedule.next_time()
        return probe_s if probe_s is None or due is None else max(probe_s, due - self.clock())

    @property
    def failing(self) -> str:
        """For how long nothing has been stored, and why, in one line; empty when attempts do not fail so."""
        now = self.clock()
        old = (queued for queued in self.schedule.running if now - queued.last_attempt_at >= FAILING_AFTER_S)
        unanswered = {
            queued.transfer.destination: queued.last_attempt_at
            for queued in old
            if queued.attempt and queued.attempt.progress.is_unanswered(queued.transfer.file_state.size, now)
        }
        return self.storing.failing(unanswered)

    @property
    def silent_buckets(self) -> list[str]:
        """The buckets that do not answer, and have transfers, while another one takes objects."""
        return self.schedule.only_used(self._silent_buckets)

    @property
    def full_buckets(self) -> list[str]:
        """The buckets whose quota is used up, and that have transfers."""
        return self.schedule.only_used(self._full_buckets)

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """What uses the store now: the attempts in flight, and neutral requests."""
        return {queued.attempt.task for queued in self.schedule.running if queued.attempt} | self._keys.tasks

    def recover(self, entries: Iterable[Entry]) -> None:
        """Take over what earlier processes accepted, and failed transfers that an operator retries."""
        for entry in entries:
            self.schedule.add(QueuedTransfer.of(entry))
        self.pump()

    def add(self, seq: int, transfer: Transfer, source: Source, *, held_back: bool = False) -> QueuedTransfer:
        """Add a new transfer, and start its first attempt if it may.

        Args:
            seq: order of acceptance.
            transfer: what to send where.
            source: its file, open; closed here unless the attempt starts now, since that may take hours.
            held_back: no attempt starts before `admit`.
        """
        now, active_s = self.clock(), self.active_clock.now()
        queued = QueuedTransfer(seq, transfer, now, active_s, source=source, held_back=held_back)
        self.schedule.add(queued)
        self.pump()
        queued.attempt_started = queued.attempt is not None
        if not queued.attempt_started:
            queued.close_source()
        return queued

    def admit(self, queued: QueuedTransfer) -> None:
        """Let a transfer start that was held back: the spool has it."""
        if queued.held_back:
            self.schedule.admit(queued)
            self.pump()

    def join(self, queued: QueuedTransfer, tag: str, state: FileState) -> None:
        """Have a pending transfer serve another request as well, of the file as it is now: its delay ends."""
        if state != queued.transfer.file_state:
            queued.note_change(state)
        if tag:
            # Once: a hook may request the same file every minute, for days.
            queued.transfer = replace(queued.transfer, tags=tuple(dict.fromkeys((*queued.transfer.tags, tag))))
            self.schedule.on_added(queued)
        queued.live = True
        self.schedule.end_delay(queued)
        self.pump()

    def retry(self, ids: Iterable[str] | None) -> set[str]:
        """End the delays of pending transfers; the next `pump`, or `recover`, starts their attempts.

        Args:
            ids: of these transfers; None for all.

        Returns:
            the ids of those that are not over.
        """
        known = self.schedule.transfers if ids is None else map(self.schedule.get, ids)
        found = [queued for queued in known if queued is not None]
        self._full_buckets.clear()
        for queued in found:
            if queued.attempt is None:
                self.schedule.end_delay(queued)
        return {queued.transfer.id for queued in found}

    @contextlib.contextmanager
    def noting_stored(self) -> Iterator[Mapping[Destination, int]]:
        """Note what is stored within the block: by destination the seq of the last transfer."""
        stored: dict[Destination, int] = {}
        self._noting.append(stored)
        try:
            yield stored
        finally:
            self._noting = [other for other in self._noting if other is not stored]

    def reload(self) -> set[str]:
        """Act on new settings: whatever was known of the endpoint is void, so nothing is held or delayed.

        Returns:
            the ids of failed transfers that deserve another attempt: by what is known, the keys may have been at fault.
        """
        self.schedule.resize(self._settings.current.max_connections)
        self.health.reload()
        self.storing.clear()
        self.outages.note()
        self._full_buckets.clear()
        self._silent_buckets.clear()
        self.schedule.end_delays()
        doubtful = self._keys.reload()
        self.pump()
        return doubtful

    def pump(self) -> None:
        """Start the attempts that may start, and set a timer for when more may or clients are to be deferred."""
        if self._stopping:
            return
        while queued := self._take():
            self._start_attempt(queued)
        if self.health.held:
            self.active_clock.hold()
        else:
            self.active_clock.resume()
        self.waiters.defer_if_away()
        self._set_timer()
        if self.health.unreached and (self._returning is None or self._returning.done()):
            self._returning = self._start("asking whether the endpoint is back", self._await_return())

    def _take(self) -> QueuedTransfer | None:
        """Return the transfer whose attempt should start now; None when no attempt may."""
        if self._may_start():
            return self.schedule.take(self.clock())
        return self.schedule.take(self.clock(), live_only=True) if self.health.admits_new else None

    def _start_attempt(self, queued: QueuedTransfer) -> None:
        """Start an attempt, unless a limit has it wait."""
        now, bucket = self.clock(), queued.transfer.destination.bucket
        earliest = max(earliest_attempt(queued.started_at), self._full_buckets.earliest(bucket))
        if bucket in self._silent_buckets and not self.schedule.has_room(bucket):
            earliest = max(earliest, now + SILENT_AGAIN_S)
        if earliest > now:
            self.schedule.release(queued, earliest)
            return
        queued.started_at = (*queued.started_at, now)[-ATTEMPTS_PER_MINUTE:]
        self._full_buckets.started(bucket, now)
        self.records.forget_stored(queued.transfer.destination)
        progress = Progress()
        task = self._start(f"the attempt of {queued.transfer.id}", self._run(queued, progress))
        queued.attempt = AttemptInFlight(task, progress)

    def _may_start(self) -> bool:
        return self.health.may_start(self._started())

    def _started(self) -> Iterator[float]:
        return (queued.last_attempt_at for queued in self.schedule.running)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_start = self.schedule.next_time() if self._may_start() else self.health.wake_at(self._started())
        times = [at for at in (next_start, self.health.known_away_at) if at is not None]
        if times:
            self._timer = self._loop.call_later(max(0.0, min(times) - self.clock()), self.pump)

    async def _await_return(self) -> None:
        """While no connection is to be had, ask whether one is; then have the next probe at once."""
        while self.health.unreached:
            await asyncio.sleep(ASK_EVERY_S)
            error = await self._keys.ask()
            if error is None or error.status:
                self.health.reached()
                self.schedule.end_delays()  # the outage was the reason of most of them
                self.pump()

    async def _run(self, queued: QueuedTransfer, progress: Progress) -> None:
        keys: Keys | None = None
        is_unanswered = False
        try:
            outcome: Stored | AttemptError | FileError = await self._attempts.make(queued, progress)
        except (AttemptError, FileError) as exc:
            outcome = exc
            if isinstance(exc, AttemptError) and accuses_keys(exc):
                keys = await self._keys.examine(exc, queued.last_attempt_at)
            elif exc.code in UNANSWERED:
                neutral = await self._keys.ask()
                is_unanswered = neutral is not None and not neutral.status
                queued.lookups_refused += queued.is_lookup_unanswered and not is_unanswered
        finally:
            queued.attempt = None
        if isinstance(outcome, Stored):
            self._stored(queued, outcome)
        else:
            self._failed(queued, outcome, keys, is_unanswered=is_unanswered)
        self.outages.note()
        self.pump()

    def _stored(self, queued: QueuedTransfer, stored: Stored) -> None:
        self.records.attempt_ended(
            AttemptEnd(status=200 if stored.address else 0, receiver=stored.address, size_bytes=stored.size)
        )
        was_away, outage = self.health.away, self.health.known_away or self.health.held
        self.health.succeeded(queued.last_attempt_at)
        self.storing.clear()
        self._keys.stored(queued.last_attempt_at)
        bucket = queued.transfer.destination.bucket
        was_limited = self._full_buckets.stored(bucket)
        was_limited |= self._silent_buckets.stored(bucket, self.clock())
        if outage:
            self.schedule.demote()
        elif was_away:
            self.schedule.end_delays()
        self._overtake(queued)
        waiters = self._end(queued)
        if was_limited:
            self.schedule.end_delays_of(bucket)
        notify(waiters, Reply(Outcome.STORED, queued.transfer.id))
        self.records.ended(queued, stored)

    def _overtake(self, queued: QueuedTransfer) -> None:
        """Give up what is older than a stored transfer, at its destination: failed ones, and those retried meanwhile.

        At once, not only when the journal has the record: the old content must not be sent over the new one.
        """
        destination = queued.transfer.destination
        for noted in self._noting:
            noted[destination] = max(noted.get(destination, 0), queued.seq)
        self._spool.clear_failures(destination, queued.seq)
        for older in self.schedule.older_than(queued):
            self._spool.remove(older.transfer.id)
            text = f"a newer one, {queued.transfer.id}, was stored there"
            notify(self._end(older), Reply(Outcome.FAILED, older.transfer.id, Code.OVERTAKEN, text))
            older.last_error = replace(older.last_error, code=Code.OVERTAKEN, text=text)
            self.records.ended(older)

    def _failed(
        self, queued: QueuedTransfer, error: AttemptError | FileError, keys: Keys | None, *, is_unanswered: bool
    ) -> None:
        now = self.clock()
        queued.denied_since = min(queued.denied_since, now) if error.code == ACCESS_DENIED else math.inf
        state = FailureState(
            attempts=queued.attempts,
            delays=queued.delays,
            previous_code=queued.last_error.code,
            failed_addresses=queued.failed_addresses,
            active_s=self.active_clock.now() - queued.accepted_active_s,
            retry_for_s=self._settings.current.retry_for_s,
            uptime_s=now - self._started_at,
            denied_s=max(0.0, now - queued.denied_since),
            keys=keys,
        )
        decision = decide(error, state, self._rng)
        queued.last_error = decision.error
        again = not decision.final
        self.records.attempt_ended(
            AttemptEnd(code=error.code, status=error.status, receiver=error.address, again=again)
        )
        if isinstance(error, AttemptError):
            self._update_health(queued, error, decision.finding, is_unanswered=is_unanswered)
        if decision.final:
            if error.code == ACCESS_DENIED and keys is not Keys.GOOD:
                self._keys.denied(queued.transfer.id)
            self._fail(queued)
            return
        queued.live = queued.live and not decision.delay_s
        queued.delays += decision.delay_s > 0
        queued.failed_addresses = decision.failed_addresses
        queued.attempt_started = queued.outcome_unknown
        self._spool.record_attempt(
            queued.transfer.id,
            queued.attempts,
            attempt_started=queued.outcome_unknown,
            sent_etag=queued.sent_etag,
            code=queued.last_error.code,
            text=queued.last_error.text,
        )
        self.storing.failed(queued.transfer.destination, f"{decision.error.code}: {decision.error.text}")
        self.records.attempt_failed(queued, None if self.health.held else decision.delay_s)
        self.schedule.release(queued, now + decision.delay_s)

    def _update_health(
        self, queued: QueuedTransfer, error: AttemptError, finding: Finding, *, is_unanswered: bool
    ) -> None:
        destination = queued.transfer.destination
        if error.status:
            self._silent_buckets.answered(destination.bucket)
        elif error.code in SILENCES:
            self._silent_buckets.unanswered(destination.bucket, queued.last_attempt_at)
        match finding:
            case Finding.SERVING:
                self.health.succeeded(queued.last_attempt_at)
            case Finding.FULL:
                self.health.succeeded(queued.last_attempt_at)
                self._full_buckets.refused(destination.bucket, self.clock())
            case Finding.FAILING:
                failed_since = queued.failed_since
                queued.failed_since = min(failed_since, self.clock())
                self.health.failed(
                    error,
                    destination,
                    started_at=queued.last_attempt_at,
                    is_unanswered=is_unanswered,
                    failed_since=failed_since,
                )
            case Finding.SUSPICIOUS:
                self.health.suspected(error, destination, queued.last_attempt_at)
            case Finding.REFUSING:
                self.health.refused(error, queued.last_attempt_at)

    def _fail(self, queued: QueuedTransfer) -> None:
        """End a transfer that has failed permanently: recorded and listed; then its clients are notified."""
        waiters = self._end(queued)
        listing = self._start(f"listing the failure of {queued.transfer.id}", self._list_failure(queued, waiters))
        self._listing.add(listing)
        listing.add_done_callback(self._listing.discard)
        self.records.ended(queued)

    async def _list_failure(self, queued: QueuedTransfer, waiters: Iterable[asyncio.Future[Reply]]) -> None:
        id_, error = queued.transfer.id, queued.last_error
        try:
            await self._spool.fail(id_, queued.attempts, error.code, error.text, self.active_clock.now())
        except SpoolError as exc:  # it stays pending there: the next process tries it once more, and it fails again
            _log.error("the failure of %s could not be listed: %s", id_, exc)
        notify(waiters, Reply(Outcome.FAILED, id_, error.code, error.text))

    async def drop(self, queued: QueuedTransfer) -> bool:
        """End a transfer for an operator, as `abandon` does, and record that; the caller removes it from the spool."""
        error = DROPPED
        if not await self.abandon(queued, Reply(Outcome.FAILED, queued.transfer.id, error.code, error.text)):
            return False
        queued.last_error = replace(queued.last_error, code=error.code, text=error.text)
        self.records.ended(queued)
        return True

    async def abandon(self, queued: QueuedTransfer, reply: Reply) -> bool:
        """Cancel the attempt of a transfer, forget it, and notify its clients.

        Returns:
            False when the transfer came to its own end meanwhile.
        """
        if queued.attempt is not None:
            task = queued.attempt.task
            task.cancel()
            await asyncio.wait({task})
        if self.schedule.get(queued.transfer.id) is not queued:
            return False
        waiters = self._end(queued)
        notify(waiters, reply)
        self.pump()
        return True

    def _end(self, queued: QueuedTransfer) -> list[asyncio.Future[Reply]]:
        """Forget a transfer, and return the clients that the caller has to notify."""
        self.schedule.remove(queued)
        if not len(self.schedule):
            self.storing.clear()
        queued.close_source()
        return self.waiters.remove(queued)

    async def drain(self, timeout_s: float) -> None:
        """Start no more attempts, wait up to `timeout_s` seconds for those in flight, and cancel the others."""
        self._stopping = True
        if self._returning is not None:
            self._returning.cancel()
        tasks = self.tasks
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout_s)
            late |= self._keys.tasks  # of attempts that have failed meanwhile
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*self._listing, return_exceptions=True)
