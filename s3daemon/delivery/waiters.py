"""The clients that wait for a transfer's end: the reply that each gets, and when they are deferred."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from s3daemon.delivery.health.endpoint import Health
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import Code
from s3daemon.journal import LogLimit
from s3daemon.model.record import Deferral, Field, MessageId, Priority
from s3daemon.model.reply import Outcome, Reply
from s3daemon.units import plural

#: The number of deferred clients that have an entry of their own in a period; one more entry counts the others. The
#: hooks of a camera that lost its store defer 46 transfers a minute, and each is worth an entry; a thousand clients
#: that ask again and again are worth one number.
PERIOD_LIMIT = 100
#: The period, from its first entry on, seconds.
PERIOD_S = 60.0
_ITS_TURN = "it waits for its turn"


class Waiters:
    """The clients that wait, by transfer. Belongs to the running event loop.

    Args:
        health: says when waiting is of no use.
        write: takes a journal entry about clients that were deferred; `Journal.write`.

    Attributes:
        deferrals: how often clients were deferred: one for all clients of a transfer that are deferred at once in an
            outage, one for each client that has waited its limit.
    """

    def __init__(self, health: Health, write: Callable[[Sequence[Field]], object]) -> None:
        self.deferrals = 0
        self._health = health
        self._write = write
        self._limit = LogLimit(PERIOD_LIMIT, PERIOD_S)
        self._period: asyncio.TimerHandle | None = None
        self._waiting: dict[QueuedTransfer, list[asyncio.Future[Reply]]] = {}

    def wait(self, queued: QueuedTransfer) -> asyncio.Future[Reply]:
        """Return a future of the transfer's end, or of a deferral once the endpoint is known to be away or is held."""
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(queued, []).append(waiter)
        self.defer_if_away()
        return waiter

    def defer_if_away(self) -> None:
        """Defer clients at once in an outage: hooks must not wait the whole limit, twice for each image.

        Not those of transfers that may start all the same, since they have not failed yet.
        """
        if self._health.held or self._health.known_away:
            may_start = self._health.admits_new
            for queued in [queued for queued in self._waiting if not (may_start and queued.live)]:
                waiters = self._waiting.pop(queued)
                if not all(waiter.done() for waiter in waiters):  # of clients that are gone there is nothing to log
                    notify(waiters, self._deferral(queued))

    def defer(self, queued: QueuedTransfer, waiter: asyncio.Future[Reply]) -> Reply:
        """Return the reply to a client that has waited long enough, and waits no longer."""
        waiters = self._waiting.get(queued, [])
        if waiter in waiters:
            waiters.remove(waiter)
        if not waiters:
            self._waiting.pop(queued, None)
        return self._deferral(queued)

    def remove(self, queued: QueuedTransfer) -> list[asyncio.Future[Reply]]:
        """Return the clients of a transfer that is over, to be notified by the caller, and forget them."""
        return self._waiting.pop(queued, [])

    def why(self, queued: QueuedTransfer) -> str:
        """Return why a transfer is not stored yet, for its clients."""
        error = queued.last_error
        if self._health.held:
            return f"the queue is held: {self._health.held}"
        if self._health.known_away:
            return f"the endpoint is away: {error.code}, {error.text}" if error.code else "the endpoint is away"
        if error.code:
            return f"the last error: {error.code}, {error.text}"
        if _is_sent(queued):
            return "all of it is sent, and the store has not answered yet"
        # Otherwise it is behind an older one for its destination, or all connections are in use.
        return "it is still on its way" if queued.attempts else _ITS_TURN

    def _deferral(self, queued: QueuedTransfer) -> Reply:
        """Return the reply that a transfer is kept, and why it is not stored yet; and log it."""
        self.deferrals += 1
        why = self.why(queued)
        tried = "" if self._health.held or why == _ITS_TURN else " and being tried"
        id_, to = queued.transfer.id, queued.transfer.destination
        self._log(Deferral(transfer_id=id_, bucket=to.bucket, key=to.key, attempts=queued.attempts, why=why))
        return Reply(Outcome.DEFERRED, id_, Code.DEFERRED, f"{id_} is kept{tried}; {why}")

    def _log(self, deferral: Deferral) -> None:
        loop = asyncio.get_running_loop()
        if self._period is None:
            self._period = loop.call_later(PERIOD_S, self._end_period)
        if self._limit.admit(MessageId.DEFERRED, loop.time()) is not None:
            self._write(deferral.fields())

    def _end_period(self) -> None:
        """Log how many more there were in this period, if there were more."""
        self._period = None
        if more := self._limit.end_period(MessageId.DEFERRED):
            text = f"{plural(more, 'more transfer')} deferred, each client notified, within {PERIOD_S:.0f} s"
            self._write(
                [
                    ("MESSAGE", text),
                    ("MESSAGE_ID", MessageId.DEFERRED.value),
                    ("PRIORITY", int(Priority.NOTICE)),
                    ("S3DAEMON_DEFERRED", more),
                ]
            )


def _is_sent(queued: QueuedTransfer) -> bool:
    size = queued.transfer.file_state.size
    return queued.attempt is not None and 0 < size <= queued.attempt.progress.acked_bytes


def notify(waiters: Iterable[asyncio.Future[Reply]], reply: Reply) -> None:
    """Give clients their reply, except those that are gone."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(reply)
