"""Write records and log lines to the journal, or to standard error without one, never from the event loop.

A caller's entry goes into a bounded queue, and one thread passes it to the sink: the journal in its native protocol, or
lines of text on standard error. So a journal that blocks costs entries and a warning of how many, never an upload.
Only `flush` and `close` wait for the journal, for as long as the caller says. Nothing is read back here.

Why systemd-python writes neither the journal nor notifications (`systemd.notify`): its `sendv` and `notify` keep
Python's global lock while they block, so that a thread would not help: a journal, or a PID 1, that does not read stops
the whole process (tried with version 235). The native protocol is a datagram of fields
(systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import socket
import struct
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from s3daemon.errors import one_line, to_redact
from s3daemon.model.record import Field, MessageId, Priority, TransferRecord

#: Takes one entry and may block as long as it likes; raises OSError when it cannot take it.
Sink = Callable[[Sequence[tuple[str, bytes]]], None]
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

#: Entries in the queue. Journald's own restart takes a second or two and the fastest store takes about a thousand
#: transfers a second, so 20 000 outlast it by far. An entry is some 2 kB: a journal that never comes back costs 40 MB.
QUEUE_LIMIT = 20_000
#: Equal warnings written in a second; the others are counted. A last line of defence: 54 000 were written in 102 s
#: once.
WARNINGS_PER_SECOND = 5
#: Longer values are cut: only a traceback comes near, and an entry has to fit one datagram (212 992 bytes by default).
MAX_VALUE_BYTES = 32 * 1024
#: The least seconds between two warnings of lost entries.
WARN_EVERY_S = 1.0


_log = logging.getLogger(__name__)


class Journal:
    """The queue and its thread, which starts at once and ends with `close` or the process.

    Args:
        sink: takes the entries, one at a time, in the thread.
        warn: shows a line on standard error, where the sink cannot take it: how many entries are lost. Must not block.
            The sink gets it too, once it takes entries again.
        clock: monotonic seconds.
        limit: entries that may be queued, beside the one that the sink has.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        limit: int = QUEUE_LIMIT,
    ) -> None:
        self._sink = sink
        self._warn = warn
        self._clock = clock
        self._secrets: tuple[bytes, ...] = ()
        self._queue = queue.SimpleQueue[tuple[Sequence[Field], Callable[[], None] | None] | None]()
        self._limit = limit
        self._counts = threading.Condition()  # guards the two below; notified when nothing is unsent
        self._unsent = 0  # in the queue or in the sink
        self._lost = 0
        self._unreported = 0  # lost too, and reported on standard error only
        self._reported_at = clock() - WARN_EVERY_S
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def hide(self, secrets: Iterable[str]) -> None:
        """Redact these too in every entry from now on, wherever it comes from; those known before stay hidden."""
        words = {word.encode() for word in to_redact(secrets)}
        self._secrets = tuple(sorted(words.union(self._secrets), key=len, reverse=True))

    def write(self, fields: Sequence[Field], done: Callable[[], None] | None = None) -> bool:
        """Queue one entry; never blocks.

        Args:
            fields: at least MESSAGE; names may repeat.
            done: called when the sink has taken or refused the entry: in the journal's thread; or at once when it is
                dropped. Never called for what `close` gives up.

        Returns:
            False when it was dropped: the queue is full or closed.
        """
        with self._counts:
            is_taken = self._unsent <= self._limit and not self._closed
            self._unsent += is_taken
            self._lost += not is_taken
        if is_taken:
            self._queue.put((fields, done))
        elif done:
            done()
        return is_taken

    def record(self, record: TransferRecord, done: Callable[[], None] | None = None) -> bool:
        """Queue a transfer's record, as `write` does."""
        return self.write(record.fields(), done)

    def handler(self) -> logging.Handler:
        """Return a handler that sends log records through the same queue.

        `extra={"journal": {"S3DAEMON_KEY": ..., "MESSAGE_ID": ...}}` adds fields, or another PRIORITY. An exception's
        own line goes into the message, its traceback into `S3DAEMON_TRACEBACK`.
        """
        return _Handler(self)

    def flush(self, timeout: float) -> bool:
        """Wait until the queue is empty and the sink has taken or refused the last entry. Blocks.

        Returns:
            False when that takes longer than `timeout` seconds.
        """
        with self._counts:
            return self._counts.wait_for(lambda: not self._unsent, timeout)

    def close(self, timeout: float) -> None:
        """Refuse new entries, send what is queued, and stop; what is left after `timeout` seconds is reported lost."""
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout)
        with self._counts:
            left = self._unsent
        self._count(lost=left)
        self._report_losses(blocked=left > 0)

    def _run(self) -> None:
        while True:
            try:
                entry = self._queue.get(timeout=WARN_EVERY_S if self._lost or self._unreported else None)
            except queue.Empty:
                self._report_losses()
                continue
            if entry is None:
                return
            fields, done = entry
            lost = 0
            try:
                self._sink([(name, self._encode(value)) for name, value in fields])
            except OSError:
                lost = 1
            try:
                if done:
                    done()
            except Exception:  # a bug of a caller must not cost the entries behind this one
                _log.exception("what follows an entry of the journal has failed")
            self._count(unsent=-1, lost=lost)
            if self._clock() - self._reported_at >= WARN_EVERY_S:
                self._report_losses()

    def _count(self, *, unsent: int = 0, lost: int) -> None:
        with self._counts:
            self._unsent += unsent
            self._lost += lost
            if not self._unsent:
                self._counts.notify_all()

    def _report_losses(self, *, blocked: bool = False) -> None:
        """Report how many entries are lost, if any: to the sink, or on standard error where the sink cannot take it."""
        with self._counts:
            lost, self._lost = self._lost, 0
        if not lost + self._unreported:
            return
        self._reported_at = self._clock()
        if not blocked:
            with contextlib.suppress(OSError):
                self._sink(_loss_entry(lost + self._unreported))
                self._unreported = 0
                return
            self._unreported += lost  # for the journal, once it is back: standard error may have led there too
        if lost:
            self._warn(_loss(lost).decode())

    def _encode(self, value: str | bytes | int) -> bytes:
        """Return the bytes of a value, secrets redacted, no longer than allowed."""
        data = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        return data if len(data) <= MAX_VALUE_BYTES else data[: MAX_VALUE_BYTES - 3] + b"..."


def _loss_entry(count: int) -> list[tuple[str, bytes]]:
    return [
        ("MESSAGE", _loss(count)),
        ("PRIORITY", b"%d" % Priority.WARNING),
        ("MESSAGE_ID", MessageId.LOST.encode()),
        ("S3DAEMON_LOST", b"%d" % count),
    ]


def _loss(count: int) -> bytes:
    what = "1 journal entry is" if count == 1 else f"{count} journal entries are"
    return f"{what} lost: the journal did not take them in time".encode()


class LogLimit:
    """Says which of equal entries are written: so many in a period, which begins with one; it counts the others. Pure.

    Args:
        entries: of one kind that are written in a period.
        period_s: its length, seconds.
    """

    def __init__(self, entries: int = WARNINGS_PER_SECOND, period_s: float = 1.0) -> None:
        self._entries = entries
        self._period_s = period_s
        self._periods: dict[Hashable, tuple[float, int]] = {}  # when the last one began, and how many came in it

    def admit(self, kind: Hashable, now: float) -> int | None:
        """Return how many were skipped since the last one of `kind` that was written; None: skip this one too.

        Args:
            kind: what makes two entries equal.
            now: monotonic seconds.
        """
        if kind not in self._periods:
            self._periods = {
                each: (begin, count)
                for each, (begin, count) in self._periods.items()
                if now - begin < self._period_s or count > self._entries
            }
        begin, count = self._periods.get(kind, (now, 0))
        skipped = 0
        if now - begin >= self._period_s:
            skipped = self.end_period(kind)
            begin, count = now, 0
        self._periods[kind] = begin, count + 1
        return skipped if count < self._entries else None

    def end_period(self, kind: Hashable) -> int:
        """Let the next entry of `kind` begin a period; return how many were skipped in this one."""
        _, count = self._periods.pop(kind, (0.0, 0))
        return max(0, count - self._entries)


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


def choose_sink(environ: Mapping[str, str], stderr: int = 2, path: Path = JOURNAL_SOCKET) -> Sink:
    """Return the journal if the descriptor `stderr` leads to it, see JOURNAL_STREAM in systemd.exec(5); else text.

    To a service that starts while journald is down, systemd gives /dev/null in place of the journal. Text would be lost
    there until the next restart; the journal takes entries once it is back.
    """
    status = os.fstat(stderr)
    if "INVOCATION_ID" in environ and status.st_rdev == Path(os.devnull).stat().st_rdev:
        return journal_sink(path)
    in_journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return journal_sink(path) if in_journal and path.is_socket() else text_sink(stderr)


def journal_sink(path: Path = JOURNAL_SOCKET) -> Sink:
    """Return a sink that sends to the journal's native socket; by its name each time, so that it may be replaced.

    Our end is opened here, once: where clients have taken all descriptors, no record is lost.
    """
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(fields: Sequence[tuple[str, bytes]]) -> None:
        entry = [_native(name, value) for name, value in (*fields, ("SYSLOG_IDENTIFIER", b"s3daemon"))]
        sender.sendto(b"".join(entry), str(path))

    weakref.finalize(send, sender.close)
    return send


def _native(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def text_sink(stderr: int = 2, clock: Callable[[], float] = time.time) -> Sink:
    """Return a sink that writes a line `TIME LEVEL MESSAGE` for each entry, a traceback indented below it.

    Args:
        stderr: the descriptor.
        clock: wall clock, seconds since the epoch.
    """

    def send(fields: Sequence[tuple[str, bytes]]) -> None:
        texts = {name: value.decode(errors="backslashreplace") for name, value in fields}
        when = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level = Priority(int(texts.get("PRIORITY", Priority.INFO))).name.lower()
        lines = [f"{when} {level} {one_line(texts.get('MESSAGE', ''), 4096)}"]
        lines += ["    " + line for line in texts.get("S3DAEMON_TRACEBACK", "").splitlines()]
        left = "".join(line + "\n" for line in lines).encode(errors="backslashreplace")
        while left:
            left = left[os.write(stderr, left) :]

    return send


def warn_on(stderr: int = 2) -> Callable[[str], None]:
    """Return a function that writes lines to standard error; a line that it does not take at once is lost."""

    def warn(text: str) -> None:
        try:
            if select.select([], [stderr], [], 0)[1]:
                os.write(stderr, f"s3daemon: {text}\n".encode(errors="backslashreplace"))
        except OSError:
            pass  # There is nowhere left to report it.

    return warn
