"""The thread that writes the spool: many changes, one commit; and what is done while the disk fails.

Write requests are carried out in the order they were put. The thread takes all that are queued, makes one commit of
them, and reports the result to the waiters through one call into the event loop. A request without a waiter is lazy: it
stays up to `lazy_s` in the queue, so that others join its commit.

    disk        a request that may be refused (an acceptance)   any other request
    ----        ---------------------------------------------   -----------------
    works       committed                                       committed
    fails       refused; leaves no trace, now or later          retained, in order, and tried again every `retry_s` and
                                                                with each later request; a waiter gets the error that it
                                                                is not durable yet

The fault begins with a commit that fails; the reserved space is released at once, so that removals can go on. It ends
when all retained changes are committed, the WAL is written back, the space is reserved again, and a trial commit works.
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
from s3daemon.spool.directory import ReservedSpace, disk_error
from s3daemon.spool.recovery import RecoverableFile, T
from s3daemon.spool.rows import Change, compact
from s3daemon.units import plural, span

#: Requests in one commit during a fault: each may dirty a page or two, and the reserved space has 64.
_BATCH = 16
#: A disk that takes longer than this over what it is given is shown as a fault, seconds; a busy one takes two.
STUCK_S = 10.0
#: What the file raises when it cannot be used now; StartError, should a newer release have replaced it meanwhile.
_DISK_ERRORS = (sqlite3.Error, OSError, StartError)
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class WriteRequest:
    """Changes that are carried out together.

    Args:
        changes: in order.
        durable: done when they are durable, or holds the error; None when nothing waits for it.
        refusable: an acceptance: dropped when the disk fails.
        taken: the thread has it.
    """

    changes: Sequence[Change]
    durable: asyncio.Future[None] | None = None
    refusable: bool = False
    taken: bool = False


class Writer:
    """The thread that writes the file; nothing else does.

    Args:
        directory: the state directory, locked.
        file: its spool.
        create: False for an operator's tool, which reserves no space: the service's user could not write that file.
        lazy_s: seconds that a request without a waiter stays in the queue, so that others join its commit.
        retry_s: seconds between two attempts to end a fault.
        on_replaced: called in the event loop after the file was replaced.
        stuck_s: how long the disk may take until that is a fault, seconds.

    Attributes:
        on_removed: called in the thread with the ids that a request removed without naming them.
    """

    def __init__(
        self,
        directory: Path,
        file: RecoverableFile,
        *,
        create: bool,
        lazy_s: float,
        retry_s: float,
        on_replaced: Callable[[], None],
        stuck_s: float = STUCK_S,
    ) -> None:
        self._directory = directory
        self._file = file
        self._lazy_s = lazy_s
        self._retry_s = retry_s
        self.on_removed: Callable[[Iterable[str]], None] = lambda ids: None
        self._on_replaced = on_replaced
        self._checkpoint = partial(file.use, SpoolFile.checkpoint)
        self._probe = partial(file.use, SpoolFile.probe)
        self._reserved = ReservedSpace(directory / "ballast", create=create)

        self._wake = threading.Condition()  # guards the four below
        self._queue: list[WriteRequest] = []
        self._due = math.inf
        self._closing = False
        self._loop: asyncio.AbstractEventLoop | None = None

        self._retained: list[Change] = []
        self._results: list[tuple[asyncio.Future[None], SpoolError | None]] = []
        self._error: SpoolError | None = None
        self._retry_at = math.inf
        self._stuck_s = stuck_s
        self._busy_since = math.inf  # the thread waits for the disk
        self._is_known_stuck = False
        self._set_fault(self._try(self._reserved.ensure))
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._thread.start()

    @property
    def fault(self) -> str:
        """Why nothing is accepted now, one line; empty when requests are."""
        busy_s = time.monotonic() - self._busy_since
        if busy_s >= self._stuck_s:
            return f"nothing is accepted: the disk of {self._directory} has not answered for {span(busy_s)}"
        return self._error.text if self._error else ""

    def _note_if_stuck(self) -> None:
        """Log once that the disk does not answer, which the thread that waits for it cannot."""
        if time.monotonic() - self._busy_since >= self._stuck_s and not self._is_known_stuck:
            self._is_known_stuck = True
            _log.warning("%s; clients wait", self.fault)

    def _note_answer(self) -> None:
        """Log that the disk has answered if it took long; the thread is not busy any more."""
        busy_s, self._busy_since = time.monotonic() - self._busy_since, math.inf
        if busy_s >= self._stuck_s:
            self._is_known_stuck = False
            text, priority = "the disk of %s has answered after %s", {"PRIORITY": int(Priority.NOTICE)}
            _log.warning(text, self._directory, span(busy_s), extra={"journal": priority})

    @property
    def is_refusing(self) -> bool:
        """Whether the last commit failed, so that the next acceptance is likely to be refused."""
        return self._error is not None

    def read(self, work: Callable[[SpoolFile], T]) -> T:
        """Return what `work` reads from the file, between two commits.

        Raises:
            SpoolError: they cannot be read now.
        """
        try:
            return self._file.use(work)
        except _DISK_ERRORS as exc:
            raise disk_error(self._directory, exc) from exc

    async def apply(self, *changes: Change) -> None:
        """Carry out changes: durable when this returns.

        Raises:
            SpoolError: they are not durable yet.
        """
        durable = asyncio.get_running_loop().create_future()
        self.put(WriteRequest(changes, durable))
        await durable

    def apply_lazily(self, change: Change) -> None:
        """Carry out a change soon."""
        self.put(WriteRequest([change]))

    def put(self, request: WriteRequest) -> None:
        """Queue a request. After `close` nothing is carried out, and `durable` holds that error."""
        self._note_if_stuck()
        with self._wake:
            if request.durable is not None and self._closing:
                request.durable.set_exception(SpoolError(Code.SPOOL_CLOSED, "the daemon is stopping"))
                return
            self._loop = request.durable.get_loop() if request.durable is not None else self._loop
            self._queue.append(request)
            due = -math.inf if request.durable is not None else time.monotonic() + self._lazy_s
            if due < self._due:
                self._due = due
                self._wake.notify()

    def amend(self, request: WriteRequest, changes: Sequence[Change]) -> bool:
        """Replace the changes of a queued request by others, which are not refused when the disk fails.

        Returns:
            False when the thread has taken the request already.
        """
        with self._wake:
            if request.taken:
                return False
            request.changes = changes
            request.refusable = False
            return True

    def close(self) -> None:
        """Carry out what is queued, write the WAL back, close the file. Blocks; does nothing the second time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            requests, closing = self._take()
            self._busy_since = time.monotonic()
            try:
                self._serve(requests)
            except Exception as exc:  # a bug: the waiters must be notified, and the thread must live
                _log.exception("an unexpected error in the spool's writer")
                self._add_results(requests, _bug(exc))
            self._note_answer()
            self._report_results()
            if closing:
                break
        if self._retained:
            _log.error("%s could not be written to the spool: %s", plural(len(self._retained), "change"), self.fault)
        self._file.close()

    def _take(self) -> tuple[list[WriteRequest], bool]:
        """Wait for requests; return all that are queued, and whether they are the last."""
        with self._wake:
            while not self._closing:
                wait = min(self._due, self._retry_at) - time.monotonic()
                if wait <= 0:
                    break
                self._wake.wait(min(wait, threading.TIMEOUT_MAX))
            requests = self._queue
            self._queue = []
            self._due = math.inf
            for request in requests:
                request.taken = True
            return requests, self._closing

    def _serve(self, requests: list[WriteRequest]) -> None:
        error = self._error
        if error is not None and (time.monotonic() >= self._retry_at or any(one.refusable for one in requests)):
            error = self._try_recover()
        if error is None:
            error = self._commit(requests)
            if error is not None and self._try(self._checkpoint) is None:
                error = self._commit(requests)  # in the space that the WAL took
        if error is not None:
            self._add_results((one for one in requests if one.refusable), error)
            self._commit_in_batches([one for one in requests if not one.refusable])
        if error is not self._error:
            self._set_fault(error)

    def _commit_in_batches(self, requests: list[WriteRequest]) -> SpoolError | None:
        """Commit what was retained, then `requests`, in batches that fit into the reserved space; retain the rest.

        Returns:
            what stopped it.
        """
        self._reserved.release()
        self._try(self._checkpoint)
        left = [*(WriteRequest([change]) for change in self._retained), *requests]
        error, done = None, 0
        while done < len(left) and (error := self._commit(left[done : done + _BATCH])) is None:
            done += _BATCH
        self._retained = compact(change for request in left[done:] for change in request.changes)
        self._add_results(left[done:], error)
        return error

    def _try_recover(self) -> SpoolError | None:
        """Try to end the fault; return what is still wrong."""
        return self._commit_in_batches([]) or self._try(self._checkpoint, self._reserved.ensure, self._probe)

    def _try(self, *steps: Callable[[], object]) -> SpoolError | None:
        """Carry out steps on the disk; return the error of the first that fails."""
        try:
            for step in steps:
                step()
        except _DISK_ERRORS as exc:
            return disk_error(self._directory, exc)
        return None

    def _commit(self, requests: Sequence[WriteRequest]) -> SpoolError | None:
        """Commit all `requests` and add their results; or return what is wrong, with nothing done and no result."""
        try:
            results = self._file.use(lambda file: file.commit([request.changes for request in requests]))
        except _DISK_ERRORS as exc:
            return disk_error(self._directory, exc)
        for request, result in zip(requests, results, strict=True):
            if isinstance(result, list):
                self.on_removed(result)
            self._add_results([request], None if isinstance(result, list) else _bug(result))
        return None

    def _set_fault(self, error: SpoolError | None) -> None:
        """Note that the fault is `error` now, or over; log it when that is new."""
        before, self._error = self._error, error
        self._retry_at = math.inf if error is None else time.monotonic() + self._retry_s
        if error is not None and (before is None or before.code != error.code):
            _log.error("%s", error.text, extra={"journal": {"MESSAGE_ID": MessageId.SPOOL_FULL.value}})
        elif before is not None and error is None:
            kind = {"MESSAGE_ID": MessageId.SPOOL_WRITABLE.value, "PRIORITY": int(Priority.NOTICE)}
            _log.warning("%s can be written again; requests are accepted", self._directory, extra={"journal": kind})

    def _add_results(self, requests: Iterable[WriteRequest], error: SpoolError | None) -> None:
        """Note the result for the waiters of `requests`; each waiter raises an error of its own."""
        for request in requests:
            if request.durable is not None:
                self._results.append((request.durable, error and SpoolError(error.code, error.text)))
            if error is not None and error.code == Code.INTERNAL:
                _log.error("%s", error.text)

    def _report_results(self) -> None:
        """Pass the results of this round, and that the file was replaced, to the event loop."""
        if self._loop is None:
            return  # nothing has waited yet; a replacement is reported after the first that does
        results, self._results = self._results, []
        replaced = self._file.take_replaced()
        if not (results or replaced):
            return

        def report() -> None:
            for durable, error in results:
                if durable.done():
                    pass  # its waiter was cancelled
                elif error is None:
                    durable.set_result(None)
                else:
                    durable.set_exception(error)
            if replaced:
                self._on_replaced()

        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
            self._loop.call_soon_threadsafe(report)


def _bug(exc: Exception) -> SpoolError:
    return SpoolError(Code.INTERNAL, f"a change cannot be carried out: {one_line(repr(exc))}")
