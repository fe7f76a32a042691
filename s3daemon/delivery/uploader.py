"""From the spool to the store to the record: who runs, what each attempt came to, and how it all stops.

A transfer's states, and what moves it (`schedule` says who goes first, `retry` what an error means):

    from       event                                              to
    ---------  -------------------------------------------------  -----------------------------------------------
    (request)  it is handed over to the spool                     pending; an attempt may begin before the commit
    pending    the spool refuses it                               nothing: its attempt is ended, its client told
    pending    its turn, and the endpoint neither away nor held   in flight
    in flight  stored, or found stored after an unknown outcome   stored: told, recorded, removed from the spool
    in flight  transient error, within the retry limit            pending, after a delay
    in flight  permanent error, or the limit is passed            failed: recorded, listed, told
    in flight  an error of the configuration                      pending, and the whole queue is held
    in flight  the service stops                                  pending in the spool; the next process goes on
    any        an operator drops it                               over: recorded as failed, told, not listed
    failed     an operator's retry                                pending
    failed     a success for its destination, or its time is up   no longer listed
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable

from s3daemon.clock import ActiveClock, Clock
from s3daemon.config.settings import Settings
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.health import Health
from s3daemon.delivery.outcome import record_of, warning_of
from s3daemon.delivery.schedule import Job, Schedule
from s3daemon.delivery.waiters import Waiters, tell
from s3daemon.errors import AttemptError, Code, S3daemonError, SpoolError
from s3daemon.journal import Journal
from s3daemon.model.record import MessageId, TransferRecord
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.verdict import FILE_GRACE_S, Verdict, backoff, blames_endpoint, judge
from s3daemon.s3.store import Stored
from s3daemon.spool.spool import Entry, Spool

_log = logging.getLogger(__name__)

#: Faults of the file that say nothing about the next moment.
_PASSING = (Code.FILE_CHANGED, Code.READ_FAILED)


class Uploader:
    """Carries the schedule's transfers to their end.

    Args:
        settings: limits.
        spool: told what becomes of each.
        attempts: makes them.
        journal: gets the records.
        service: service time, from the spool's persisted base.
        clock: monotonic seconds; the event loop's own clock must run with it.
        wall: seconds since the epoch, for people.
        rng: jitter.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        attempts: Attempts,
        journal: Journal,
        service: ActiveClock,
        *,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.schedule = Schedule(settings.max_connections)
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self.health = Health(self._rng, clock)
        self.service = service
        self.clock = clock
        self._spool = spool
        self._attempts = attempts
        self._journal = journal
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._started_at = clock()
        self.waiters = Waiters(self.health, journal.write)
        self.observers: list[Callable[[TransferRecord], None]] = []  #: shown every record that the journal gets
        self._endings: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False

    def recover(self, entries: Iterable[Entry]) -> None:
        """Take up what earlier processes accepted, before anything new."""
        for entry in entries:
            job = Job(entry.seq, entry.transfer, self.clock(), entry.accepted_active_s, live=False, recovered=True)
            job.attempts, job.code, job.text = entry.attempts, entry.code, entry.text
            job.begun = job.unknown = entry.attempt_started
            self.schedule.add(job)
        self.pump()

    def pump(self) -> None:
        """Start what may start, and see to it that this is called again when more may."""
        if self._stopping:
            return
        while self.health.may_start(len(self.schedule.running)) and (job := self.schedule.take(self.clock())):
            job.started_at = self.clock()
            job.task = self._loop.create_task(self._run(job))
        (self.service.hold if self.health.held else self.service.resume)()
        self.waiters.defer_if_away()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        free = self.health.may_start(len(self.schedule.running))
        at = self.schedule.next_time() if free else self.health.wake_at()
        self._timer = self._loop.call_later(max(0.0, at - self.clock()), self.pump) if at is not None else None

    async def _run(self, job: Job) -> None:
        try:
            outcome: Stored | S3daemonError = await self._attempts.make(job)
        except S3daemonError as exc:
            outcome = exc
        finally:
            job.task = None
        if isinstance(outcome, Stored):
            self._stored(job, outcome)
        else:
            self._failed(job, outcome)
        self.pump()

    def _stored(self, job: Job, stored: Stored) -> None:
        glitch, outage = self.health.away, self.health.known_away or self.health.held
        self.health.succeeded(job.started_at)
        if outage:
            self.schedule.demote()
        elif glitch:
            self.schedule.end_delays()
        self._end(job)
        tell(job, Reply(Outcome.STORED, job.transfer.id))
        self._record(job, stored)

    def _failed(self, job: Job, error: S3daemonError) -> None:
        now = self.clock()
        stale_again = job.code == error.code == Code.STALE_CONNECTION
        job.code, job.text, job.receiver = error.code, error.text, getattr(error, "receiver", "")
        verdict = judge(error) if isinstance(error, AttemptError) else self._judge_file(error, now)
        self._note_health(job, error, verdict)
        if verdict is not Verdict.PERMANENT and self.service.now() - job.accepted_service > self.settings.retry_for_s:
            verdict = Verdict.PERMANENT
            job.text = f"given up after {job.attempts} attempts; the last error: {error.text}"
        if verdict is Verdict.PERMANENT:
            self.give_up(job)
            return
        delay = 0.0
        if isinstance(error, AttemptError) and error.elsewhere:  # each receiver once, then patience
            job.tried.add(error.receiver)
        elif error.code != Code.STALE_CONNECTION or stale_again:  # one that was closed says nothing against another
            job.live = False
            job.tried.clear()
            delay = backoff(job.attempts, self._rng, getattr(error, "retry_after", 0.0))
        job.begun = job.unknown
        self._spool.record_attempt(
            job.transfer.id, job.attempts, attempt_started=job.unknown, code=job.code, text=job.text
        )
        self._journal.write(warning_of(job, None if self.health.held else delay).fields())
        self.schedule.release(job, now + delay)

    def _judge_file(self, error: S3daemonError, now: float) -> Verdict:
        """A file's fault passes, or may: within the grace after a start."""
        passes = error.code in _PASSING or now - self._started_at < FILE_GRACE_S
        return Verdict.TRANSIENT if passes else Verdict.PERMANENT

    def _note_health(self, job: Job, error: S3daemonError, verdict: Verdict) -> None:
        if not isinstance(error, AttemptError) or error.code == Code.STALE_CONNECTION or error.elsewhere:
            return
        was_held = self.health.held
        if verdict is Verdict.HOLD or blames_endpoint(error):
            self.health.failed(error, job.transfer.id, job.started_at)
        elif error.status:
            self.health.succeeded(job.started_at)  # the store is there, and took the keys
        if self.health.held and not was_held:
            kind = {"journal": {"MESSAGE_ID": MessageId.HELD.value}}
            _log.critical("the queue is held: %s; nothing is lost, mend it and reload", self.health.held, extra=kind)

    def give_up(self, job: Job) -> None:
        """Failed for good, with the job's last error: recorded, listed, and told once it is listed."""
        self._end(job)
        reply = Reply(Outcome.FAILED, job.transfer.id, job.code, job.text)
        ending = self._loop.create_task(self._list_failure(job, reply))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        self._record(job, None)

    async def _list_failure(self, job: Job, reply: Reply) -> None:
        try:
            await self._spool.fail(job.transfer.id, job.attempts, job.code, job.text, self.service.now())
        except SpoolError as exc:  # it stays pending there: the next process tries once more, and finds the same
            _log.error("the failure of %s could not be listed: %s", job.transfer.id, exc)
        tell(job, reply)

    async def drop(self, job: Job) -> bool:
        """End a transfer at an operator's wish, as `abandon` does; the spool's row is the caller's."""
        if not await self.abandon(job):
            return False
        job.code, job.text = Code.DROPPED, "dropped by an operator"
        tell(job, Reply(Outcome.FAILED, job.transfer.id, job.code, job.text))
        self._record(job, None)
        return True

    async def abandon(self, job: Job) -> bool:
        """Forget a transfer, its attempt ended first; False when it came to its own end meanwhile."""
        if (task := job.task) is not None:
            task.cancel()
            await asyncio.wait({task})
        if self.schedule.get(job.transfer.id) is not job:
            return False
        self._end(job)
        self.pump()
        return True

    def _end(self, job: Job) -> None:
        self.schedule.remove(job)
        self.waiters.forget(job)
        if job.source is not None:
            job.source.close()
            job.source = None

    def _record(self, job: Job, stored: Stored | None) -> None:
        job.record = record = record_of(job, stored, self.settings.endpoint_url, self.clock(), self._wall())
        for see in self.observers:
            see(record)

        def taken() -> None:  # in the journal's thread; only now may the spool forget
            self._loop.call_soon_threadsafe(self._spool.stored, job.transfer.id, job.transfer.destination)

        self._journal.record(record, taken if stored else None)

    async def drain(self, timeout_s: float) -> None:
        """Start nothing more, wait for what is in flight, and end what is left after `timeout_s` seconds."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = {job.task for job in self.schedule.running if job.task is not None}
        late = (await asyncio.wait(tasks, timeout=timeout_s))[1] if tasks else tasks
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(*self._endings, return_exceptions=True)
