"""Where entries go: the journal in its native protocol, or lines of text on standard error.

The native protocol is a datagram of fields (systemd.io/JOURNAL_NATIVE_PROTOCOL). systemd-python's `sendv` keeps
Python's global lock while it blocks, so that a thread would not help: a journal that stands still stops the whole
process in it (tried with version 235).
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from s3daemon.errors import one_line
from s3daemon.model.record import Priority

#: Takes one entry and may block as long as it likes; raises OSError when it cannot take it.
Sink = Callable[[Sequence[tuple[str, bytes]]], None]
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")


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
