"""The journal's own protocol, lines of text, which of the two is chosen, and notes that nobody waits for;
on real descriptors and a real datagram socket.
"""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from s3daemon.journal import Journal
from s3daemon.sinks import choose_sink, journal_sink, note_on, text_sink

#: Ample for a thread to do what it has to; reached only by a test that fails.
PATIENCE_S = 10.0


@contextmanager
def journald(path: Path) -> Iterator[socket.socket]:
    """A socket that receives as journald does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(PATIENCE_S)
        receiver.bind(str(path))
        yield receiver


def test_the_native_protocol(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with journald(path) as receiver:
        journal_sink(path)([("MESSAGE", b"one"), ("TAG", b"a"), ("TAG", b"b"), ("FILE", b"two\nlines=\xff")])
        data = receiver.recv(65536)
    text = b"two\nlines=\xff"
    assert data == (
        b"MESSAGE=one\nTAG=a\nTAG=b\nFILE\n" + struct.pack("<Q", len(text)) + text + b"\nSYSLOG_IDENTIFIER=s3daemon\n"
    )


def test_other_threads_run_while_the_journal_stands_still(tmp_path: Path) -> None:
    """The socket's queue is full, so the thread waits in the kernel; a lock kept there would stop this test."""
    path = tmp_path / "journal"
    with journald(path) as receiver:
        filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with filler, suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", str(path))
        done = threading.Event()
        journal = Journal(journal_sink(path), note=print)
        try:
            journal.write([("MESSAGE", "x")], done.set)
            assert not done.wait(0.1)
            while receiver.recv(65536) == b"x":
                pass
            assert done.wait(PATIENCE_S)
        finally:
            journal.close(PATIENCE_S)


def test_a_journal_that_is_not_there_refuses(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        journal_sink(tmp_path / "none")([("MESSAGE", b"x")])


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def test_text_is_one_line_an_entry() -> None:
    with pipe() as (out, err):
        send = text_sink(err, clock=lambda: 1_764_000_000.0421)
        send([("MESSAGE", b"two\nlines \xff"), ("PRIORITY", b"4")])
        send([("MESSAGE", b"bug"), ("PRIORITY", b"3"), ("S3DAEMON_TRACEBACK", b"Traceback:\n  File x\n")])
        send([("MESSAGE", b"plain")])
        assert os.read(out, 65536).decode().splitlines() == [
            r"2025-11-24T16:00:00.042Z warning two\nlines \xff",
            "2025-11-24T16:00:00.042Z error bug",
            "    Traceback:",
            "      File x",
            "2025-11-24T16:00:00.042Z info plain",
        ]


def test_the_journal_is_chosen_only_where_standard_error_leads_to_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with pipe() as (out, err), journald(path) as receiver:
        status = os.fstat(err)
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        choose_sink(stream, err, path)([("MESSAGE", b"to the journal")])
        assert b"to the journal" in receiver.recv(65536)
        elsewhere: list[tuple[dict[str, str], Path]] = [
            ({}, path),
            ({"JOURNAL_STREAM": "1:1"}, path),
            ({"JOURNAL_STREAM": "nonsense"}, path),
            (stream, tmp_path / "none"),
        ]
        for environ, where in elsewhere:
            choose_sink(environ, err, where)([("MESSAGE", b"as text")])
            assert os.read(out, 65536).endswith(b"info as text\n")


def test_a_note_is_never_waited_for() -> None:
    with pipe() as (out, err):
        note_on(err)("3 are lost")
        assert os.read(out, 65536) == b"s3daemon: 3 are lost\n"
        os.set_blocking(err, False)
        with suppress(BlockingIOError):
            while True:
                os.write(err, b"x" * 4096)
        os.set_blocking(err, True)
        note_on(err)("nobody reads")
    note_on(err)("standard error is closed")
