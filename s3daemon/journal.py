"""Records and log lines to the journal, or to standard error where there is none; never from the event loop.

A caller's entry goes into a bounded queue and one thread sends it, so a journal that stands still costs entries and a
note of how many, never an upload.

What this module does not do: it reads nothing back, and only `close` ever waits for the journal, for as long as told.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

from s3daemon.errors import one_line
from s3daemon.model.record import Field, Priority, TransferRecord
from s3daemon.sinks import Sink

#: Entries that wait. Journald's own restart takes a second or two and the fastest store takes about a thousand
#: transfers a second, so 20 000 outlast it by far. An entry is some 2 kB: a journal that never comes back costs 40 MB.
QUEUE_LIMIT = 20_000
#: Longer values are cut: only a traceback comes near, and an entry has to fit one datagram (212 992 bytes by default).
MAX_VALUE_BYTES = 32 * 1024
#: Redacting shorter words would garble half the text, and no real key is shorter.
MIN_SECRET_CHARS = 8
#: The fewest seconds from one note of lost entries to the next.
NOTE_EVERY_S = 1.0


class Journal:
    """The queue and its thread, which starts here and ends with `close` or the process.

    Args:
        sink: takes the entries, one at a time, in the thread.
        note: shows a line on standard error, where the sink cannot take it: how many entries are lost. Must not block.
            The sink is told too, once it takes entries again.
        secrets: no entry shows them, wherever they come from: the last line of defence.
        clock: monotonic seconds.
        limit: entries that may wait.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        note: Callable[[str], None],
        secrets: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        limit: int = QUEUE_LIMIT,
    ) -> None:
        self._sink = sink
        self._note = note
        self._clock = clock
        self._secrets: tuple[bytes, ...] = ()
        self.hide(secrets)
        self._queue: queue.Queue[tuple[Sequence[Field], Callable[[], None] | None] | None] = queue.Queue(limit)
        self._lost = 0
        self._untold = 0  # lost too, and told on standard error alone
        self._lost_lock = threading.Lock()
        self._noted_at = clock() - NOTE_EVERY_S
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def hide(self, secrets: Iterable[str]) -> None:
        """Redact these too from now on; those known before stay hidden."""
        words = {word.encode() for word in secrets if len(word) >= MIN_SECRET_CHARS}
        self._secrets = tuple(sorted(words.union(self._secrets), key=len, reverse=True))

    def write(self, fields: Sequence[Field], done: Callable[[], None] | None = None) -> bool:
        """Queue one entry; never blocks.

        Args:
            fields: at least MESSAGE; names may repeat.
            done: called when the entry is out of our hands, taken or refused: in the journal's thread, or at once when
                it is dropped. Never called for what `close` has to leave.

        Returns:
            False when it was dropped: the queue is full or closed.
        """
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait((fields, done))
        except queue.Full:
            self._lose(1)
            if done:
                done()
            return False
        return True

    def record(self, record: TransferRecord, done: Callable[[], None] | None = None) -> bool:
        """Queue a transfer's record, as `write` does."""
        return self.write(record.fields(), done)

    def handler(self) -> logging.Handler:
        """A handler that sends log records through the same queue.

        `extra={"journal": {"S3DAEMON_KEY": ..., "MESSAGE_ID": ...}}` adds fields, or another PRIORITY. An exception's
        own line goes into the message, its traceback into `S3DAEMON_TRACEBACK`.
        """
        return _Handler(self)

    def close(self, timeout: float) -> None:
        """Take no more, send what waits, and stop; what is left after `timeout` seconds is noted and given up."""
        self._closed = True
        until = time.monotonic() + timeout
        try:
            self._queue.put(None, timeout=timeout)
            self._thread.join(max(0.0, until - time.monotonic()))
            # The end mark counts for the entry that the sink stands still in.
            left = self._queue.qsize() if self._thread.is_alive() else 0
        except queue.Full:
            left = self._queue.qsize() + 1
        self._lose(left)
        self._tell(stuck=left > 0)

    def _run(self) -> None:
        while True:
            try:
                entry = self._queue.get(timeout=NOTE_EVERY_S if self._lost or self._untold else None)
            except queue.Empty:
                self._tell()
                continue
            if entry is None:
                return
            fields, done = entry
            try:
                self._sink([(name, self._shown(value)) for name, value in fields])
            except OSError:
                self._lose(1)
            if done:
                done()
            if self._clock() - self._noted_at >= NOTE_EVERY_S:
                self._tell()

    def _lose(self, count: int) -> None:
        with self._lost_lock:
            self._lost += count

    def _tell(self, *, stuck: bool = False) -> None:
        with self._lost_lock:
            lost, self._lost = self._lost, 0
        if not lost + self._untold:
            return
        self._noted_at = self._clock()
        if not stuck:
            with contextlib.suppress(OSError):
                self._sink([("MESSAGE", _loss(lost + self._untold)), ("PRIORITY", b"%d" % Priority.WARNING)])
                self._untold = 0
                return
            self._untold += lost  # for the journal, once it is back: standard error may have led there too
        if lost:
            self._note(_loss(lost).decode())

    def _shown(self, value: str | bytes | int) -> bytes:
        data = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        return data if len(data) <= MAX_VALUE_BYTES else data[: MAX_VALUE_BYTES - 3] + b"..."


def _loss(count: int) -> bytes:
    return b"%d journal entries are lost: the journal did not take them, or not in time" % count


class _Handler(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, str | bytes | int] = {
            "PRIORITY": _PRIORITIES.get(min(record.levelno // 10, 5), Priority.DEBUG),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": record.lineno,
            "CODE_FUNC": record.funcName or "",
        }
        extra = getattr(record, "journal", None)
        if isinstance(extra, Mapping):
            fields |= extra
        message = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            message += ": " + one_line("".join(traceback.format_exception_only(record.exc_info[1])).strip())
            fields["S3DAEMON_TRACEBACK"] = "".join(traceback.format_exception(*record.exc_info))
        self._journal.write([("MESSAGE", message), *fields.items()])


_PRIORITIES = {5: Priority.CRITICAL, 4: Priority.ERROR, 3: Priority.WARNING, 2: Priority.INFO}
