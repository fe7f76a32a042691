"""Accepted transfers on disk: durable before they are called accepted, in a file that nothing else touches.

    call                    row before          row after
    ----                    ----------          ---------
    add                     (none)              pending
    rejoin, begin, note     pending             pending
    fail                    pending             failed
    told                    failed              failed
    retry                   failed              pending
    stored                  pending             (none), and so are the failed rows of its destination
    drop                    pending, failed     (none)
    expire                  failed              (none), when it was kept long enough
    restore                 (none)              what memory says

Multipart uploads have rows of their own, which outlive these: `ledger`.

spooldb draws the schema, spooldir the files and what recovery does to each leftover, spoolwriter what is done while the
disk refuses. Changes take effect in the order they were asked for: whatever was asked for before an awaited change is
durable when that one is. When the file turns out to be damaged while it is open, it is replaced by what could be read
of it, `on_replaced` is called, and its owner gives what it has in memory to `restore`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from s3daemon.errors import SpoolError, one_line
from s3daemon.model.request import Destination, Transfer
from s3daemon.spool.directory import Lock, prepare
from s3daemon.spool.open_uploads import OpenUploads
from s3daemon.spool.recovery import RecoverableFile, cannot_open
from s3daemon.spool.rows import (
    Change,
    ClearFailures,
    Delete,
    Entry,
    Expire,
    Insert,
    SaveClock,
    Update,
    Value,
    seen_columns,
)
from s3daemon.spool.upload_rows import UploadRows
from s3daemon.spool.writer import Job, Writer

__all__ = ["Entry", "Spool"]

#: Long enough to gather a burst's removals into one commit, short enough that a crash repeats few look-ups.
LAZY_S = 0.05
#: A disk that has room again is noticed within it.
RETRY_S = 1.0


class Spool:
    """The spool of one daemon. Its methods belong to one event loop; none blocks it on the disk, but for `entries`.

    Each awaited change raises SpoolError when it is not durable: `add` is refused then, the others are only late. The
    rest are lazy: they never raise, and are durable soon. What is said of a transfer that the spool does not hold is
    ignored.
    """

    def __init__(self, lock: Lock, writer: Writer, found: tuple[list[Entry], float, int, list[UploadRows]]) -> None:
        """For `open`."""
        entries, service_base, last_seq, uploads = found
        self.service_base = service_base  #: seconds of service to start the `ActiveClock` from
        self.last_seq = last_seq  #: the highest ever used, when it was opened
        self.ledger = OpenUploads(writer.put, uploads)  #: the multipart uploads
        self.on_replaced: Callable[[], None] | None = None  #: called in the event loop; should lead to `restore`
        self._lock: Lock | None = lock
        self._writer = writer
        self._found: list[Entry] | None = entries  # what opening read, until the first change
        self._seqs = itertools.count(last_seq + 1)
        self._seq_of = {entry.transfer.id: entry.seq for entry in entries}
        self._adding: dict[str, Job] = {}
        writer.on_gone = self._forget
        writer.on_replaced = self._was_replaced

    @classmethod
    def open(cls, directory: Path, *, create: bool = True, lazy_s: float = LAZY_S, retry_s: float = RETRY_S) -> Spool:
        """Take the state directory and open what is in it.

        Args:
            directory: of the state; made, and closed to others, if need be.
            create: False for operators' tools, which must leave no file behind that the service's user cannot open.
            lazy_s: how long a change that nobody awaits waits for company.
            retry_s: between two tries while the disk refuses.

        Raises:
            StartError: `SpoolLocked`, `SpoolDenied`, `SpoolNewer`, `SpoolBroken`, `BadStateDirectory`; without `create`
                also `NoSpool` and `SpoolCorrupt`.
        """
        if create:
            prepare(directory)
        lock = Lock(directory, create=create)
        file = RecoverableFile(directory / "spool.db", create=create)
        try:
            found = file.use(lambda db: (db.entries(), db.service_base, db.last_seq, db.uploads()))
        except BaseException as exc:
            file.close()
            lock.release()
            if not isinstance(exc, sqlite3.Error | OSError):
                raise
            raise cannot_open(directory, exc) from exc
        file.replaced = False  # nobody knew the old one
        writer = Writer(directory, file, create=create, lazy_s=lazy_s, retry_s=retry_s)
        return cls(lock, writer, found)

    @property
    def fault(self) -> str:
        """Why acceptances are refused now, one line; empty when they are not."""
        return self._writer.fault

    def entries(self, *, failed: bool | None = None) -> list[Entry]:
        """Read the rows in order of seq: all, the failed ones or the pending ones.

        Blocks on the disk, except right after `open`. Changes that are still on their way are not in it.

        Raises:
            SpoolError: they cannot be read now.
        """
        found = self._writer.read(failed=failed is True) if self._found is None else self._found
        return [entry for entry in found if failed is None or entry.failed == failed]

    async def add(self, transfer: Transfer, service_now: float, *, begun: bool) -> int:
        """Accept `transfer`: durable when this returns.

        Args:
            transfer: with an id that the spool does not hold.
            service_now: seconds of service.
            begun: its first attempt may begin before this returns.

        Returns:
            its seq; the order is that of the calls, not of the returns.

        Raises:
            SpoolError: `SpoolFull`, `SpoolReadOnly`, `SpoolBroken`: it is not accepted and leaves no trace.
        """
        if transfer.id in self._seq_of:
            raise ValueError(f"{transfer.id} is in the spool already")
        seq = self._seq_of[transfer.id] = next(self._seqs)
        entry = Entry(seq, transfer, service_now, begun=begun)
        answer = asyncio.get_running_loop().create_future()
        job = self._adding[transfer.id] = Job([Insert(entry)], answer, refusable=True)
        self._put(job)
        try:
            await answer
        except Exception:
            self._seq_of.pop(transfer.id, None)
            raise
        finally:
            del self._adding[transfer.id]
        return seq

    async def rejoin(self, transfer: Transfer) -> None:
        """A request joined: note the new `tags` and `seen`."""
        await self._change([transfer.id], seen_columns(transfer))

    async def begin(self, transfer_id: str) -> None:
        """Note that an attempt may have begun whose outcome is unknown."""
        await self._change([transfer_id], {"begun": True})

    def note(self, transfer_id: str, attempts: int, *, begun: bool, code: str, text: str) -> None:
        """An attempt failed and another will follow."""
        if (seq := self._seq_of.get(transfer_id)) is not None:
            error: dict[str, Value] = {"code": one_line(code), "text": one_line(text)}
            self._lazily(Update(seq, {"attempts": attempts, "begun": begun, **error}))

    def stored(self, transfer_id: str, destination: Destination) -> None:
        """The object is stored: forget the transfer, and the failures that it overtakes.

        An `add` that has not reached the disk yet never will: it returns as if it had, when what was asked for before
        it, such as the removal of older transfers to that destination, is durable.
        """
        seq = self._seq_of.pop(transfer_id, None)
        changes: list[Change] = (
            [ClearFailures(destination)] if seq is None else [Delete(seq), ClearFailures(destination)]
        )
        adding = self._adding.get(transfer_id)
        if adding is None or not self._writer.amend(adding, [ClearFailures(destination)]):
            self._lazily(*changes)

    async def fail(
        self, transfer_id: str, attempts: int, code: str, text: str, service_now: float, *, told: bool
    ) -> None:
        """The transfer failed for good."""
        outcome: dict[str, Value] = {"attempts": attempts, "code": one_line(code), "text": one_line(text)}
        await self._change([transfer_id], {**outcome, "failed": True, "failed_service": service_now, "told": told})

    def told(self, transfer_id: str) -> None:
        """A client was told of the failure."""
        if (seq := self._seq_of.get(transfer_id)) is not None:
            self._lazily(Update(seq, {"told": True}))

    async def retry(self, ids: Iterable[str], service_now: float) -> set[str]:
        """Make failed transfers pending again, their time to be tried anew; give the ids that there were."""
        await self._settle()
        again = {"failed": False, "failed_service": 0.0, "told": False, "accepted_service": service_now}
        return await self._change(ids, again)

    async def drop(self, ids: Iterable[str]) -> set[str]:
        """Remove transfers, pending or failed; give the ids that there were."""
        await self._settle()
        there = {id_: seq for id_ in ids if (seq := self._seq_of.pop(id_, None)) is not None}
        await self._durably([Delete(seq) for seq in there.values()])
        return set(there)

    def tick(self, service_now: float) -> None:
        """Note the seconds of service."""
        self._lazily(SaveClock(service_now))

    def expire(self, service_now: float, keep: float) -> None:
        """Forget what failed more than `keep` seconds of service ago."""
        self._lazily(Expire(service_now - keep))

    async def restore(self, entries: Sequence[Entry]) -> None:
        """Add what the file lost of `entries`, and uploads; a seq that the spool gave counts, whatever theirs."""
        own = [replace(entry, seq=self._seq_of.setdefault(entry.transfer.id, entry.seq)) for entry in entries]
        await self._durably([*(Insert(entry, if_missing=True) for entry in own), *self.ledger.changes()])

    async def close(self) -> None:
        """Write what is on its way, close the file, let others have the directory. Nothing the second time."""
        await asyncio.to_thread(self._writer.close)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    async def _change(self, ids: Iterable[str], columns: Mapping[str, Value]) -> set[str]:
        there = {id_: seq for id_ in ids if (seq := self._seq_of.get(id_)) is not None}
        await self._durably([Update(seq, columns) for seq in there.values()])
        return set(there)

    async def _settle(self) -> None:
        """Let what is on its way be carried out: what expires now is not there any more."""
        with contextlib.suppress(SpoolError):
            await self._durably([])

    async def _durably(self, changes: Sequence[Change]) -> None:
        answer = asyncio.get_running_loop().create_future()
        self._put(Job(changes, answer))
        await answer

    def _lazily(self, *changes: Change) -> None:
        self._put(Job(changes))

    def _put(self, job: Job) -> None:
        self._found = None
        self._writer.put(job)

    def _was_replaced(self) -> None:
        if self.on_replaced is not None:
            self.on_replaced()

    def _forget(self, ids: Iterable[str]) -> None:
        """Called from the writer's thread; taking a key out of a dict is atomic."""
        for id_ in ids:
            self._seq_of.pop(id_, None)
