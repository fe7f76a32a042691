"""Record what becomes of transfers and attempts: in the journal, and with those in the daemon who observe it.

When the journal has the record of a stored transfer, or has dropped it, the spool forgets the transfer. Not before: the
next process would otherwise know nothing of it after a crash, and no record would ever be written. But at the latest
when a newer one is sent to its destination: that process would otherwise send the old content over the new one, whose
client may have removed its file by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from s3daemon.clock import Clock
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.journal import Journal, LogLimit
from s3daemon.model.record import AttemptEnd, AttemptFailure, TransferRecord
from s3daemon.model.request import Destination, Transfer
from s3daemon.s3.store import Stored
from s3daemon.spool.spool import Spool


class Records:
    """Writes the records. Belongs to the running event loop.

    Args:
        spool: forgets what is stored and recorded.
        journal: gets the records.
        clock: monotonic seconds.
        wall: seconds since the epoch, for people.

    Attributes:
        observers: called with every record that the journal gets.
        attempt_observers: called with the end of every attempt that was not cancelled.
    """

    def __init__(self, spool: Spool, journal: Journal, clock: Clock, wall: Clock) -> None:
        self.observers: list[Callable[[TransferRecord], None]] = []
        self.attempt_observers: list[Callable[[AttemptEnd], None]] = []
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._warnings = LogLimit()
        #: What was stored last, by destination; the journal has no record yet.
        self._unrecorded: dict[Destination, TransferRecord] = {}

    def attempt_ended(self, end: AttemptEnd) -> None:
        """Tell the observers of an attempt that has ended."""
        for observe in self.attempt_observers:
            observe(end)

    def attempt_failed(self, queued: QueuedTransfer, delay_s: float | None) -> None:
        """Write an entry about an attempt that failed, unless there were too many like it in this second.

        Args:
            queued: its transfer, with the error.
            delay_s: seconds until the next attempt; None when no time is set for it.
        """
        error = queued.last_error
        skipped = self._warnings.admit((error.code, error.address), self._clock())
        if skipped is not None:
            self._journal.write(failure_of(queued, delay_s, skipped).fields())

    def ended(self, queued: QueuedTransfer, stored: Stored | None = None) -> None:
        """Write the record of a transfer that is over.

        Args:
            queued: the transfer, with its last error when it failed; its `record` is set.
            stored: what is known of the object; None when the transfer failed.
        """
        queued.record = record_of(queued, stored, now=self._clock(), wall=self._wall())
        for observe in self.observers:
            observe(queued.record)

        def written() -> None:  # in the journal's thread, or here
            with contextlib.suppress(RuntimeError):  # the loop is closed: the next process finds the object stored
                self._loop.call_soon_threadsafe(self._remove, queued.transfer)

        if stored:
            self._unrecorded[queued.transfer.destination] = queued.record
        self._journal.record(queued.record, written if stored else None)

    def forget_stored(self, destination: Destination) -> None:
        """Have the spool forget what was stored at `destination`, though the journal may have no record of it yet."""
        if (record := self._unrecorded.pop(destination, None)) is not None:
            self._spool.remove(record.transfer_id, record)

    def _remove(self, transfer: Transfer) -> None:
        """Have the spool forget a stored transfer, now that the journal has its record or has dropped it."""
        record = self._unrecorded.get(transfer.destination)
        if record is not None and record.transfer_id == transfer.id:
            self.forget_stored(transfer.destination)


def record_of(queued: QueuedTransfer, stored: Stored | None, *, now: float, wall: float) -> TransferRecord:
    """Return the record of a transfer that is over.

    Args:
        queued: with its last error when it failed.
        stored: what is known of the object; None when the transfer failed.
        now: monotonic seconds.
        wall: seconds since the epoch, as for `QueuedTransfer.age_s`.
    """
    transfer, error = queued.transfer, queued.last_error
    total = queued.age_s(now, wall)
    return TransferRecord(
        transfer_id=transfer.id,
        outcome="stored" if stored else "failed",
        file=transfer.file,
        bucket=transfer.destination.bucket,
        key=transfer.destination.key,
        size_bytes=stored.size if stored else transfer.file_state.size,
        start_usec=transfer.accepted_usec,
        queue_usec=_usec(total - (now - queued.last_attempt_at)) if queued.started_at else _usec(total),
        upload_usec=stored.upload_usec if stored else None,
        total_usec=_usec(total),
        attempts=queued.attempts,
        tags=transfer.tags,
        endpoint=queued.endpoint,
        etag=stored.etag if stored else "",
        error="" if stored else f"{error.code}: {error.text}",
        rtt_usec=stored.rtt_usec if stored else None,
        retransmits=stored.retransmits if stored else None,
        connection=stored.connection if stored else "",
        receiver=stored.address if stored else error.address,
        changed=queued.file_changed,
        moved=queued.moved or None,
        parts=stored.parts if stored and stored.parts > 1 else None,
    )


def failure_of(queued: QueuedTransfer, delay_s: float | None, skipped: int) -> AttemptFailure:
    """Return the journal entry about an attempt that failed and will be followed by another.

    Args:
        queued: with the error.
        delay_s: seconds until the next attempt; None when no time is set for it.
        skipped: how many such entries were not written since the last one.
    """
    return AttemptFailure(
        transfer_id=queued.transfer.id,
        bucket=queued.transfer.destination.bucket,
        key=queued.transfer.destination.key,
        attempt=queued.attempts,
        code=queued.last_error.code,
        text=queued.last_error.text,
        receiver=queued.last_error.address,
        delay_usec=None if delay_s is None else _usec(delay_s),
        skipped=skipped,
    )


def _usec(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
