"""The spool: accepted transfers on disk, durable before they are called accepted, in a file that nothing else touches.

    call                                    row before          row after
    ----                                    ----------          ---------
    add                                     (none)              pending
    save_join, start_attempt, record_attempt
                                            pending             pending
    fail                                    pending             failed
    mark_notified                           failed              failed
    retry                                   failed              pending
    clear_failures                          failed              (none), when a newer one was stored there
    remove                                  pending             (none)
    drop                                    pending, failed     (none)
    expire                                  failed              (none), when it was kept long enough
    restore                                 (none)              as in memory

Multipart uploads have rows of their own, which outlive these: `open_uploads`.

`database` has the schema, `directory` the files and what recovery does with each leftover, `writer` what is done while
the disk fails. Changes take effect in the order of the calls: when an awaited change is durable, so is every change
that was asked for before it. When the file turns out to be damaged, or removed, while it is open, it is replaced by
what could be read of it; then `on_replaced` is called, which leads to `restore` with what the daemon has in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from s3daemon.errors import Code, SpoolError, one_line
from s3daemon.model.exposure import Loss
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import Destination, Transfer
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.directory import Lock, prepare
from s3daemon.spool.exposures import SaveLoss
from s3daemon.spool.open_uploads import OpenUploads
from s3daemon.spool.recovery import Contents, RecoverableFile, cannot_open
from s3daemon.spool.rows import (
    Change,
    ClearFailures,
    Delete,
    Entry,
    Expire,
    Hint,
    Insert,
    SaveClock,
    SaveHint,
    Update,
    Value,
    file_columns,
    tag_columns,
)
from s3daemon.spool.writer import Writer, WriteRequest

__all__ = ["Entry", "Spool"]

#: Long enough to gather a burst's removals into one commit, short enough that a crash repeats few look-ups.
LAZY_S = 0.05
#: A disk that has space again is noticed within this time.
RETRY_S = 1.0


class Spool:
    """The spool of one daemon. Its methods belong to one event loop; none blocks it on the disk, except `entries`,
    `failed_entries` and `count_failed`.

    Each awaited change raises SpoolError when it is not durable: `add` is then refused, the others only take longer
    (`retry` and `drop` return the error, so that their callers go on). The rest are lazy: they never raise, and are
    durable soon. A change of a transfer that the spool does not hold is ignored.
    """

    def __init__(self, lock: Lock, contents: Contents, writer: Writer) -> None:
        """Use `open` instead."""
        self.active_base_s = contents.active_base_s  #: active seconds to start the `ActiveClock` from
        self.last_seq = contents.last_seq  #: the highest ever used, when it was opened
        self.kept = contents.kept  #: the last exposures, when it was opened
        self.hint = contents.hint  #: what was known about the store, when it was opened
        self._lock: Lock | None = lock
        self._contents: Contents | None = contents  # until the first change
        self._seqs = itertools.count(contents.last_seq + 1)
        self._seq_of = {entry.transfer.id: entry.seq for entry in contents.entries}
        self._adding: dict[str, WriteRequest] = {}
        self._writer = writer
        writer.on_removed = self._forget
        self.open_uploads = OpenUploads(self._writer, contents.uploads)  #: the multipart uploads

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        create: bool = True,
        lazy_s: float = LAZY_S,
        retry_s: float = RETRY_S,
        on_replaced: Callable[[], None] = lambda: None,
        on_damaged: Callable[[], None] = lambda: None,
    ) -> Spool:
        """Lock the state directory and open the spool in it.

        Args:
            directory: of the state; created, and closed to other users, if need be.
            create: False for operators' tools, which must leave no file behind that the service's user cannot open.
            lazy_s: how long a lazy change stays in the queue, so that others join its commit.
            retry_s: between two attempts while the disk fails.
            on_replaced: called in the event loop when a damaged file was replaced; never before a change was awaited.
            on_damaged: called when this call finds the file damaged, and begins to replace it: that may take minutes.

        Raises:
            StartError: `SpoolLocked`, `SpoolDenied`, `SpoolNewer`, `SpoolBroken`, `BadStateDirectory`; without `create`
                also `NoSpool` and `SpoolCorrupt`.
        """
        if create:
            prepare(directory)
        lock = Lock(directory, create=create)
        file = RecoverableFile(directory / "spool.db", create=create)
        file.on_damaged = on_damaged
        try:
            contents = file.use(Contents.read)
        except BaseException as exc:
            file.close()
            lock.release()
            if not isinstance(exc, sqlite3.Error | OSError):
                raise
            raise cannot_open(directory / "spool.db", exc) from exc
        file.on_damaged = lambda: None  # from now on nobody waits for it
        file.take_replaced()  # nothing in memory comes from the old file
        writer = Writer(directory, file, create=create, lazy_s=lazy_s, retry_s=retry_s, on_replaced=on_replaced)
        return cls(lock, contents, writer)

    @property
    def fault(self) -> str:
        """Why nothing is accepted now, one line; empty when requests are."""
        return self._writer.fault

    @property
    def is_refusing(self) -> bool:
        """Whether the last change could not be written, so that the next `add` is likely to be refused."""
        return self._writer.is_refusing

    def entries(self) -> list[Entry]:
        """Read all rows in order of seq.

        Blocks on the disk, except right after `open`. Changes that are not committed yet are not included.

        Raises:
            SpoolError: they cannot be read now.
        """
        return list(self._contents.entries) if self._contents else self._writer.read(SpoolFile.entries)

    def failed_entries(self) -> list[Entry]:
        """Read the failed rows, as `entries` reads all."""
        if self._contents is None:
            return self._writer.read(SpoolFile.failures)
        return [entry for entry in self._contents.entries if entry.failed]

    def count_failed(self, last: int) -> tuple[int, list[Entry]]:
        """Return how many rows failed, and the `last` of these in order of seq; blocks and raises as `entries` does."""
        return self._writer.read(lambda file: file.count_failures(last))

    async def add(self, transfer: Transfer, active_now_s: float, *, attempt_started: bool) -> int:
        """Accept `transfer`: durable when this returns.

        Args:
            transfer: with an id that the spool does not hold.
            active_now_s: active seconds.
            attempt_started: its first attempt may start before this returns.

        Returns:
            its seq; the order is that of the calls, not of the returns.

        Raises:
            SpoolError: `SpoolFull`, `SpoolReadOnly`, `SpoolBroken`: it is not accepted and leaves no trace.
        """
        if transfer.id in self._seq_of:
            raise ValueError(f"{transfer.id} is in the spool already")
        seq = self._seq_of[transfer.id] = next(self._seqs)
        entry = Entry(seq, transfer, active_now_s, attempt_started=attempt_started)
        durable = asyncio.get_running_loop().create_future()
        request = self._adding[transfer.id] = WriteRequest([Insert(entry)], durable, refusable=True)
        self._contents = None
        self._writer.put(request)
        try:
            await durable
        except Exception:
            self._seq_of.pop(transfer.id, None)
            raise
        finally:
            del self._adding[transfer.id]
        return seq

    async def save_join(self, transfer: Transfer, *, file_changed: bool = False) -> None:
        """Save the tags of `transfer`, which a request has joined, and the state of a file that changed before that."""
        changed: dict[str, Value] = {**file_columns(transfer), "sent_etag": "", "file_changed": True}
        await self._change(transfer.id, {**tag_columns(transfer), **(changed if file_changed else {})})

    async def start_attempt(self, transfer: Transfer, *, file_changed: bool = False) -> None:
        """Save that an attempt may have started that sends the file as it is now, and whose outcome is unknown.

        The ETag of what an earlier attempt sent goes in the same change: a crash must not leave it with other content.

        Args:
            transfer: with the state of its file.
            file_changed: as in `Entry`.
        """
        started: dict[str, Value] = {"attempt_started": True, "sent_etag": "", "file_changed": file_changed}
        await self._change(transfer.id, {**file_columns(transfer), **started})

    def record_attempt(
        self, transfer_id: str, attempts: int, *, attempt_started: bool, code: str, text: str, sent_etag: str = ""
    ) -> None:
        """Save that an attempt failed and another will follow.

        Args:
            transfer_id: of the transfer.
            attempts: that have ended.
            attempt_started: the outcome is unknown: the object may be in the store all the same.
            code: the error's.
            text: the error's.
            sent_etag: as in `Entry`.
        """
        error: dict[str, Value] = {"code": one_line(code), "text": one_line(text)}
        state: dict[str, Value] = {"attempt_started": attempt_started, "sent_etag": sent_etag}
        self._change_lazily(transfer_id, {"attempts": attempts, **state, **error})

    def clear_failures(self, destination: Destination, before: int) -> None:
        """Remove what failed to reach `destination`: the transfer with seq `before` was stored there.

        Failures of newer ones stay: their content is not there.
        """
        self._apply_lazily(ClearFailures(destination, before))

    def remove(self, transfer_id: str, stored: TransferRecord | None = None) -> None:
        """Remove a transfer that is over, since its object is `stored` and counted, or a newer one at its destination.

        An `add` that has not reached the disk yet never will: it returns as if it had, when the changes asked for
        before it are durable, such as the removal of older transfers to that destination.
        """
        seq = self._seq_of.pop(transfer_id, 0)
        adding = self._adding.get(transfer_id)
        change = Delete(seq, stored)
        if adding is None or not self._writer.amend(adding, [change]):
            self._apply_lazily(change)

    def save_loss(self, loss: Loss) -> None:
        """Keep that a file of an exposure is missing."""
        self._apply_lazily(SaveLoss(loss))

    async def fail(self, transfer_id: str, attempts: int, code: str, text: str, active_now_s: float) -> None:
        """Save that the transfer failed permanently."""
        error: dict[str, Value] = {"attempts": attempts, "code": one_line(code), "text": one_line(text)}
        outcome: dict[str, Value] = {"failed": True, "failed_active_s": active_now_s, "client_notified": False}
        await self._change(transfer_id, {**error, **outcome})

    def mark_notified(self, transfer_id: str) -> None:
        """Save that a client has received the failure."""
        self._change_lazily(transfer_id, {"client_notified": True})

    async def retry(self, ids: Iterable[str], active_now_s: float) -> tuple[set[str], SpoolError | None]:
        """Make failed transfers pending again, with the whole retry limit before them.

        Returns:
            the ids that the spool held, and why the change is not durable yet: it will be when the disk allows it.

        Raises:
            SpoolError: `SpoolClosed`, nothing is done.
        """
        await self._settle()
        not_failed: dict[str, Value] = {"failed": False, "failed_active_s": 0.0, "client_notified": False}
        held = self._held(ids)
        changes = [Update(seq, {**not_failed, "accepted_active_s": active_now_s}) for seq in held.values()]
        return set(held), await self._apply_in_the_end(*changes)

    async def drop(self, ids: Iterable[str], losses: Iterable[Loss] = ()) -> tuple[set[str], SpoolError | None]:
        """Remove transfers, pending or failed, and in the same commit record what exposures then lack.

        Returns:
            as `retry`.

        Raises:
            SpoolError: likewise.
        """
        await self._settle()
        held = self._held(ids)
        self._forget(held)
        return set(held), await self._apply_in_the_end(*map(Delete, held.values()), *map(SaveLoss, losses))

    def save_clock(self, active_now_s: float) -> None:
        """Save the active seconds."""
        self._apply_lazily(SaveClock(active_now_s))

    def save_hint(self, hint: Hint) -> None:
        """Save what was found about the store."""
        self._apply_lazily(SaveHint(hint))

    def expire(self, active_now_s: float, keep_s: float) -> None:
        """Remove what failed more than `keep_s` active seconds ago."""
        self._apply_lazily(Expire(active_now_s - keep_s))

    async def restore(self, entries: Sequence[Entry]) -> None:
        """Add what the file lost of `entries` and of the uploads; those that have a seq in the spool keep it."""
        own = [replace(entry, seq=self._seq_of.setdefault(entry.transfer.id, entry.seq)) for entry in entries]
        await self._apply(*(Insert(entry, if_missing=True) for entry in own), *self.open_uploads.changes())

    async def close(self) -> None:
        """Write what is queued, close the file, release the directory. Does nothing the second time."""
        await asyncio.to_thread(self._writer.close)
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    def _held(self, ids: Iterable[str]) -> dict[str, int]:
        return {id_: seq for id_ in ids if (seq := self._seq_of.get(id_)) is not None}

    async def _change(self, id_: str, columns: Mapping[str, Value]) -> None:
        await self._apply(*(Update(seq, columns) for seq in self._held([id_]).values()))

    def _change_lazily(self, id_: str, columns: Mapping[str, Value]) -> None:
        if (seq := self._seq_of.get(id_)) is not None:
            self._apply_lazily(Update(seq, columns))

    async def _settle(self) -> None:
        """Wait until what is queued is carried out, so that the ids of expired transfers are forgotten."""
        with contextlib.suppress(SpoolError):
            await self._apply()

    async def _apply(self, *changes: Change) -> None:
        self._contents = None
        await self._writer.apply(*changes)

    async def _apply_in_the_end(self, *changes: Change) -> SpoolError | None:
        """Carry out changes that cannot be taken back; return the error when the writer has retained them."""
        try:
            await self._apply(*changes)
        except SpoolError as exc:
            if exc.code == Code.SPOOL_CLOSED:
                raise
            return exc
        return None

    def _apply_lazily(self, change: Change) -> None:
        self._contents = None
        self._writer.apply_lazily(change)

    def _forget(self, ids: Iterable[str]) -> None:
        """Forget the seqs of removed rows. Called in the writer's thread; taking a key out of a dict is atomic."""
        for id_ in ids:
            self._seq_of.pop(id_, None)
