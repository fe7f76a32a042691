"""Records and log lines to the journal, or to standard error where there is none; never from the event loop.

A caller's entry goes into a bounded queue and one thread sends it, so a journal that stands still costs entries and a
note of how many, never an upload. The journal is spoken to in its native protocol, a datagram of fields
(systemd.io/JOURNAL_NATIVE_PROTOCOL): systemd-python's `sendv` keeps Python's global lock while it blocks, so that a
thread would not help: a journal that stands still stops the whole process in it (tried with version 235).

What this module does not do: it reads nothing back, and only `close` ever waits for the journal, for as long as told.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from .errors import one_line
from .kinds import Priority
from .record import Field, TransferRecord

#: Takes one entry and may block as long as it likes; raises OSError when it cannot take it.
Sink = Callable[[Sequence[tuple[str, bytes]]], None]
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
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
                entry = self._queue.get(timeout=NOTE_EVERY_S if self._lost else None)
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
        if not lost:
            return
        self._noted_at = self._clock()
        text = f"{lost} journal entries are lost: the journal did not take them, or not in time"
        if not stuck:
            with contextlib.suppress(OSError):
                self._sink([("MESSAGE", text.encode()), ("PRIORITY", b"%d" % Priority.WARNING)])
                return
        self._note(text)

    def _shown(self, value: str | bytes | int) -> bytes:
        data = value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")
        for secret in self._secrets:
            data = data.replace(secret, b"***")
        return data if len(data) <= MAX_VALUE_BYTES else data[: MAX_VALUE_BYTES - 3] + b"..."


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
    """The journal when the descriptor `stderr` leads there, by JOURNAL_STREAM (systemd.exec(5)); else text on it."""
    status = os.fstat(stderr)
    in_journal = environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return journal_sink(path) if in_journal and path.is_socket() else text_sink(stderr)


def journal_sink(path: Path = JOURNAL_SOCKET) -> Sink:
    """A sink that sends to the journal's native socket; by its name each time, so that it may be replaced."""

    def send(fields: Sequence[tuple[str, bytes]]) -> None:
        entry = [_native(name, value) for name, value in (*fields, ("SYSLOG_IDENTIFIER", b"s3daemon"))]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"".join(entry), str(path))

    return send


def _native(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def text_sink(stderr: int = 2, clock: Callable[[], float] = time.time) -> Sink:
    """A sink that writes `TIME LEVEL MESSAGE` by the wall clock, one line an entry, a traceback indented below it."""

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


def note_on(stderr: int = 2) -> Callable[[str], None]:
    """Shows lines on standard error if it takes them at once; else they are lost with whoever does not read there."""

    def note(text: str) -> None:
        try:
            if select.select([], [stderr], [], 0)[1]:
                os.write(stderr, f"s3daemon: {text}\n".encode(errors="backslashreplace"))
        except OSError:
            pass  # Nobody is there to be told.

    return note
