"""The thread that writes the spool: many changes, one commit; and what is done while the disk refuses.

Jobs are carried out in the order they were put. The thread takes all that wait, makes one commit of them, and answers
them through one call into the event loop. A job that nobody awaits waits up to `lazy_s` for company.

    disk        a job that may be refused (an acceptance)       any other job
    ----        -----------------------------------------       -------------
    fine        committed                                       committed
    in trouble  refused; leaves no trace, now or later          kept, in order, and tried again each `retry_s` and with
    each
                                                                later job; an awaited one is told that it is not durable
                                                                yet

Trouble begins with a commit that fails; the ballast is given up at once, so that removals can go on. It ends when what
was kept has gone through, the WAL is written back, the ballast is there again, and a trial commit works.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from s3daemon.errors import Code, SpoolError, StartError, one_line
from s3daemon.model.record import MessageId, Priority
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.directory import ReservedSpace, disk_trouble
from s3daemon.spool.recovery import RecoverableFile
from s3daemon.spool.rows import Change, Entry, compact

#: Jobs in one commit while in trouble: each may dirty a page or two, and the ballast is 64.
_BATCH = 16
#: What the file raises when it cannot be used now; StartError, should a newer release have replaced it under us.
_DISK = (sqlite3.Error, OSError, StartError)
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """What is carried out together.

    Args:
        changes: in order.
        answer: told when they are durable, or why they are not; None when nobody waits.
        refusable: an acceptance: dropped when the disk refuses.
        taken: the thread has it.
    """

    changes: Sequence[Change]
    answer: asyncio.Future[None] | None = None
    refusable: bool = False
    taken: bool = False


class Writer:
    """The thread, and the only one that writes the file.

    Args:
        directory: the state directory, locked.
        file: its spool.
        create: False for an operator's tool, which makes no ballast: the service's user could not write it.
        lazy_s: seconds that a job without a waiter waits for company.
        retry_s: seconds between two tries to end the trouble.

    Attributes:
        on_gone: told in the thread which ids a job removed besides those that it named.
        on_replaced: called in the event loop after the file was replaced.
        fault: why acceptances are refused now, one line; empty when they are not.
    """

    def __init__(self, directory: Path, file: RecoverableFile, *, create: bool, lazy_s: float, retry_s: float) -> None:
        self.on_gone: Callable[[Iterable[str]], None] = lambda ids: None
        self.on_replaced: Callable[[], None] = lambda: None
        self._directory, self._file = directory, file
        self._lazy_s, self._retry_s = lazy_s, retry_s
        self._checkpoint = partial(file.use, SpoolFile.checkpoint)
        self._probe = partial(file.use, SpoolFile.probe)
        self._ballast = ReservedSpace(directory / "ballast", create=create)
        self._wake = threading.Condition()  # around the four below
        self._queue: list[Job] = []
        self._due, self._closing = math.inf, False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retained: list[Change] = []
        self._answers: list[tuple[asyncio.Future[None], Exception | None]] = []
        self.fault = ""
        self._trouble: SpoolError | None = None
        self._mend_at = math.inf
        self._say(self._try(self._ballast.ensure))
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    def read(self, *, failed: bool) -> list[Entry]:
        """Read all rows or the failed ones, between two commits; SpoolError when they cannot be read now."""
        try:
            return self._file.use(SpoolFile.failures if failed else SpoolFile.entries)
        except _DISK as exc:
            raise disk_trouble(self._directory, exc) from exc

    def put(self, job: Job) -> None:
        """Queue `job`. After `close` nothing is carried out; an answer then says so."""
        with self._wake:
            if job.answer is not None and self._closing:
                job.answer.set_exception(SpoolError(Code.SPOOL_CLOSED, "the daemon is stopping"))
                return
            self._loop = job.answer.get_loop() if job.answer is not None else self._loop
            self._queue.append(job)
            due = -math.inf if job.answer is not None else time.monotonic() + self._lazy_s
            if due < self._due:
                self._due = due
                self._wake.notify()

    def amend(self, job: Job, changes: Sequence[Change]) -> bool:
        """Turn a job that was put, but not taken yet, into other `changes`, which no disk refuses; False: too late."""
        with self._wake:
            if job.taken:
                return False
            job.changes, job.refusable = changes, False
            return True

    def close(self) -> None:
        """Carry out what is queued, write the WAL back, close the file. Blocks; nothing the second time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            jobs, closing = self._take()
            try:
                self._serve(jobs)
            except Exception as exc:  # a bug: those who wait must hear of it, and the thread must live
                _log.exception("the spool's writer met an error that it does not know")
                self._answer(jobs, exc)
            self._flush()
            if closing:
                break
        if self._retained:
            _log.error("%d changes could not be written to the spool: %s", len(self._retained), self.fault)
        self._file.close()

    def _take(self) -> tuple[list[Job], bool]:
        with self._wake:
            while not self._closing:
                wait = min(self._due, self._mend_at) - time.monotonic()
                if wait <= 0:
                    break
                self._wake.wait(min(wait, threading.TIMEOUT_MAX))
            jobs, self._queue, self._due = self._queue, [], math.inf
            for job in jobs:
                job.taken = True
            return jobs, self._closing

    def _serve(self, jobs: list[Job]) -> None:
        error = self._trouble
        if error is not None and (time.monotonic() >= self._mend_at or any(job.refusable for job in jobs)):
            error = self._try_recover()
        if error is None:
            error = self._attempt(jobs)
            if error is not None and self._try(self._checkpoint) is None:
                error = self._attempt(jobs)  # with the room that the WAL took
        if error is not None:
            self._answer((job for job in jobs if job.refusable), error)
            self._commit_in_batches([job for job in jobs if not job.refusable])
        if error is not self._trouble:
            self._say(error)

    def _commit_in_batches(self, jobs: list[Job]) -> SpoolError | None:
        """Carry out what was kept, then `jobs`, in bites for which the ballast makes room; keep the rest."""
        self._ballast.release()
        self._try(self._checkpoint)
        left = [*(Job([change]) for change in self._retained), *jobs]
        error, done = None, 0
        while done < len(left) and (error := self._attempt(left[done : done + _BATCH])) is None:
            done += _BATCH
        self._retained = compact(change for job in left[done:] for change in job.changes)
        self._answer(left[done:], error)
        return error

    def _try_recover(self) -> SpoolError | None:
        """Try to end the trouble; give what is wrong still."""
        return self._commit_in_batches([]) or self._try(self._checkpoint, self._ballast.ensure, self._probe)

    def _try(self, *steps: Callable[[], object]) -> SpoolError | None:
        try:
            for step in steps:
                step()
        except _DISK as exc:
            return disk_trouble(self._directory, exc)
        return None

    def _attempt(self, jobs: Sequence[Job]) -> SpoolError | None:
        """Commit all `jobs` and answer them; or give what is wrong, nothing done and nobody answered."""
        try:
            results = self._file.use(lambda file: file.commit([job.changes for job in jobs]))
        except _DISK as exc:
            return disk_trouble(self._directory, exc)
        for job, result in zip(jobs, results, strict=True):
            self.on_gone(result if isinstance(result, list) else [])
            self._answer([job], None if isinstance(result, list) else result)
        return None

    def _say(self, error: SpoolError | None) -> None:
        """Note that the trouble is `error` now, or over; loudly when that is news."""
        before, self._trouble = self._trouble, error
        self.fault = error.text if error else ""
        self._mend_at = math.inf if error is None else time.monotonic() + self._retry_s
        if error is not None and (before is None or before.code != error.code):
            _log.error("%s", error.text, extra={"journal": {"MESSAGE_ID": MessageId.SPOOL_FULL.value}})
        elif before is not None and error is None:
            kind = {"MESSAGE_ID": MessageId.SPOOL_WRITABLE.value, "PRIORITY": int(Priority.NOTICE)}
            _log.warning("%s can be written again; requests are accepted", self._directory, extra={"journal": kind})

    def _answer(self, jobs: Iterable[Job], error: Exception | None) -> None:
        """Note what the waiters of `jobs` will be told; each raises an error of its own."""
        for job in jobs:
            if job.answer is not None:
                own = SpoolError(error.code, error.text) if isinstance(error, SpoolError) else error
                self._answers.append((job.answer, own))
            elif error is not None and not isinstance(error, SpoolError):
                _log.error("a change cannot be carried out: %s", one_line(repr(error)))

    def _flush(self) -> None:
        """Tell the waiters of this round, and the owner of a replacement."""
        if self._loop is None or not (self._answers or self._file.replaced):
            return
        answers, self._answers = self._answers, []
        replaced, self._file.replaced = self._file.replaced, False

        def tell() -> None:
            for answer, error in answers:
                if answer.done():
                    pass  # its waiter was cancelled
                elif error is None:
                    answer.set_result(None)
                else:
                    answer.set_exception(error)
            if replaced:
                self.on_replaced()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(tell)
