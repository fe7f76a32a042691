"""Hints in the state directory, by that of the rate: what is read back, and what is not believed."""

import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from s3daemon.network.rate.bandwidth import RATE_FILE, kept_rate

_T = TypeVar("_T")

STORE = "https://s3.example.org"


def within_10_s(work: Callable[[], _T]) -> _T:
    """Call it; a call that blocks ends with an error."""

    def ended(*_: object) -> None:
        raise AssertionError("it blocks")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(10)
    try:
        return work()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_what_is_written_is_read_back_for_the_same_endpoint_only(tmp_path: Path) -> None:
    """Another endpoint begins anew; nothing but the file is left."""
    kept_rate(tmp_path, STORE).write(300_000_000)
    kept_rate(tmp_path, STORE).write(994_000_000)
    assert kept_rate(tmp_path, STORE).read() == 994_000_000
    assert kept_rate(tmp_path, "https://other").read() is None
    assert [path.name for path in tmp_path.iterdir()] == [RATE_FILE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"endpoint": "https://s3.example.org"}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": "1G"}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": 0}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": true}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": 1e400}',
        b"\xff\xfe",
        b"9" * 5000,
        b"[" * 4000,
    ],
)
def test_a_damaged_file_is_ignored_with_a_trace(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is known then, the journal says so without Python's words, and the next write repairs it."""
    (tmp_path / RATE_FILE).write_bytes(content)
    kept = kept_rate(tmp_path, STORE)
    assert kept.read() is None
    text = f"{tmp_path / RATE_FILE} cannot be used, and its content is found anew: it is not a hint of this program"
    assert caplog.messages == [text]
    kept.write(1_000_000)
    assert kept.read() == 1_000_000


def pipe(path: Path) -> None:
    """A FIFO without another end."""
    os.mkfifo(path)


def bound(path: Path) -> None:
    """A Unix socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    "make", [pipe, bound, Path.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("gone")]
)
def test_what_is_not_a_regular_file_is_not_opened(
    tmp_path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A pipe would block the start for ever; neither is one written to."""
    make(tmp_path / RATE_FILE)
    kept = kept_rate(tmp_path, STORE)
    assert within_10_s(kept.read) is None
    assert caplog.messages[0].endswith("its content is found anew: it is not a regular file; remove it")


@pytest.mark.parametrize("make", [pipe, bound, lambda path: path.symlink_to("elsewhere")])
def test_what_lies_in_the_way_of_a_write_is_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Under the file's name and under that of its next version."""
    for name in (RATE_FILE, f"{RATE_FILE}.new"):
        make(tmp_path / name)
    kept = kept_rate(tmp_path, STORE)
    within_10_s(lambda: kept.write(1_000_000))
    assert kept.read() == 1_000_000
    assert [path.name for path in tmp_path.iterdir()] == [RATE_FILE]


def test_no_file_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the first start nothing is logged."""
    assert kept_rate(tmp_path, STORE).read() is None
    assert caplog.text == ""


def test_what_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon goes on; the rate is found anew after a restart."""
    caplog.set_level(logging.INFO)
    kept = kept_rate(tmp_path / "gone", STORE)
    for rate in (1_000_000, 2_000_000):
        kept.write(rate)
    assert caplog.text.count("cannot be written") == 1
