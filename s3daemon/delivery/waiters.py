"""Who waits for a transfer's end, and when they are better told not to wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from s3daemon.delivery.deferrals import Deferrals
from s3daemon.delivery.health import Health
from s3daemon.delivery.schedule import Job
from s3daemon.errors import Code
from s3daemon.model.record import Deferral, Field
from s3daemon.model.reply import Outcome, Reply


class Waiters:
    """The jobs that somebody waits for.

    Args:
        health: tells when waiting is in vain.
        write: takes an entry about those who are; `Journal.write`.
    """

    def __init__(self, health: Health, write: Callable[[Sequence[Field]], object]) -> None:
        self._health = health
        self._deferrals = Deferrals(write)
        self._jobs: set[Job] = set()

    def wait(self, job: Job) -> asyncio.Future[Reply]:
        """A future of what becomes of `job`: its end, or `deferred` once the endpoint is known to be away or held."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        job.waiters.append(waiter)
        self._jobs.add(job)
        self.defer_if_away()
        return waiter

    def defer_if_away(self) -> None:
        """Hooks must not stand out the wait limit twice per image through an outage: tell them at once."""
        if self._health.held or self._health.known_away:
            for job in self._jobs:
                tell(job, self._deferral(job))
            self._jobs.clear()

    def defer(self, job: Job, waiter: asyncio.Future[Reply]) -> Reply:
        """The reply to one who has waited long enough, and waits no longer."""
        if waiter in job.waiters:
            job.waiters.remove(waiter)
        if not job.waiters:
            self._jobs.discard(job)
        return self._deferral(job)

    def _deferral(self, job: Job) -> Reply:
        """The reply that a transfer is kept and still being tried, and why it is not stored yet."""
        if self._health.held:
            why = f"the queue is held: {self._health.held}"
        elif self._health.known_away:
            why = f"the endpoint is away: {job.code}, {job.text}" if job.code else "the endpoint is away"
        elif job.code:
            why = f"the last error: {job.code}, {job.text}"
        else:
            why = "it is still on its way"
        id_, to = job.transfer.id, job.transfer.destination
        deferral = Deferral(transfer_id=id_, bucket=to.bucket, key=to.key, attempts=job.attempts, why=why)
        self._deferrals.note(deferral)
        return Reply(Outcome.DEFERRED, id_, Code.DEFERRED, f"{id_} is kept and being tried; {why}")

    def forget(self, job: Job) -> None:
        """It is over; `tell` is the caller's."""
        self._jobs.discard(job)


def tell(job: Job, reply: Reply) -> None:
    """Give all who wait for `job` their reply."""
    waiters, job.waiters = job.waiters, []
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(reply)
