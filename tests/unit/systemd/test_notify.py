"""Notifications arrive, never make the daemon wait for long, and do nothing without systemd.

The protocol is spoken for real, over a Unix socket in the test's directory; only the receiver is a stand-in. What
clients get at a stop is tested under a real systemd, in tests/system/test_systemd.py.
"""

import array
import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from lab.env import no_free_descriptor

from s3daemon.errors import StartError
from s3daemon.systemd.notify import (
    QUEUE_WAIT_S,
    Notifier,
    has_stop_job,
    is_stopped_for_good,
    own_unit,
)


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    def receive(self) -> tuple[str, list[int]] | None:
        """The next datagram and the descriptors with it, which are the caller's to close; None when there is none."""
        try:
            data, rights, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(64))
        except BlockingIOError:
            return None
        descriptors = array.array("i")
        for _, _, packed in rights:
            descriptors.frombytes(packed)
        return data.decode(), list(descriptors)

    def texts(self) -> list[str]:
        """What came since, without its descriptors."""
        found = []
        while message := self.receive():
            for descriptor in message[1]:
                os.close(descriptor)
            found.append(message[0])
        return found

    def fill_queue(self) -> None:
        """Fill the socket's queue."""
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other, suppress(BlockingIOError):
            while True:
                other.sendto(b"FILLER=1", socket.MSG_DONTWAIT, str(self.path))

    def notifier(self, **environ: str) -> Notifier:
        return Notifier({"NOTIFY_SOCKET": str(self.path), **environ})


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    receiver = Systemd(tmp_path / "notify")
    yield receiver
    receiver.texts()
    receiver.socket.close()


def test_the_states_of_a_service(systemd: Systemd) -> None:
    notifier = systemd.notifier()
    notifier.ready("serving")
    notifier.extend(1.5)
    notifier.stopping("two\nlines")
    assert systemd.texts() == [
        "READY=1\nSTATUS=serving",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=two\\nlines",
    ]


def test_a_status_is_sent_when_it_changed(systemd: Systemd) -> None:
    notifier = systemd.notifier()
    for text in ("a", "a", "b", "b", "a"):
        notifier.status(text)
    assert systemd.texts() == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_a_stored_connection_is_the_same_connection(systemd: Systemd) -> None:
    ours, client = socket.socketpair()
    with ours, client:
        assert systemd.notifier().store("0123456789abcdef", ours)
        message = systemd.receive()
        assert message is not None
        assert message[0] == "FDSTORE=1\nFDNAME=0123456789abcdef"
        with socket.socket(fileno=message[1][0]) as copy:
            copy.sendall(b"Success")
        assert client.recv(100) == b"Success"


@pytest.mark.parametrize("name", ["", "a:b", "a\nFDSTORE=1", "é", "x" * 256])
def test_a_name_that_systemd_would_refuse_raises(systemd: Systemd, name: str) -> None:
    ours, client = socket.socketpair()
    with ours, client, pytest.raises(ValueError, match="systemd takes no"):
        systemd.notifier().store(name, ours)


def test_a_systemd_that_does_not_read_is_waited_for_once(systemd: Systemd) -> None:
    """What must arrive arrives later and in order; a status is sent anew; a connection is reported as not stored."""
    count = 1000
    notifier = systemd.notifier()
    systemd.fill_queue()
    ours, client = socket.socketpair()
    with ours, client:
        began = time.monotonic()
        notifier.ready("serving")
        for _ in range(count):
            notifier.status("busy")
            assert not notifier.store("two", ours)
        notifier.forget("one")
        notifier.stopping("draining")
        # If each of them waited, this would take four times the limit: enough for the slowest machine.
        assert QUEUE_WAIT_S <= time.monotonic() - began < count * QUEUE_WAIT_S / 2
        assert set(systemd.texts()) == {"FILLER=1"}
        notifier.status("busy")
        assert notifier.store("two", ours)
        assert systemd.texts() == [
            "READY=1\nSTATUS=serving",
            "FDSTOREREMOVE=1\nFDNAME=one",
            "STOPPING=1\nSTATUS=draining",
            "STATUS=busy",
            "FDSTORE=1\nFDNAME=two",
        ]


def test_a_burst_that_exceeds_the_queue_arrives_while_systemd_reads(systemd: Systemd) -> None:
    """A full queue is waited for; here for as long as a busy machine may need to let the reader run."""
    count = 2000
    received: list[str] = []

    def read() -> None:
        systemd.socket.setblocking(True)
        while len(received) < count and (message := systemd.receive()):
            received.append(message[0])
            for descriptor in message[1]:
                os.close(descriptor)

    notifier = Notifier({"NOTIFY_SOCKET": str(systemd.path)}, queue_wait_s=60.0)
    reader = threading.Thread(target=read, daemon=True)
    ours, client = socket.socketpair()
    with ours, client:
        reader.start()
        stored = [notifier.store(f"client{n}", ours) for n in range(count)]
    reader.join(60)
    systemd.socket.setblocking(False)
    assert all(stored)
    assert received == [f"FDSTORE=1\nFDNAME=client{n}" for n in range(count)]


def test_a_systemd_that_opened_another_socket_gets_the_next_notification(systemd: Systemd) -> None:
    """As after an upgrade of systemd: the socket to the former one is given up."""
    notifier = systemd.notifier()
    notifier.status("before")
    systemd.socket.close()
    notifier.status("lost")
    systemd.path.unlink()
    systemd.socket = Systemd(systemd.path).socket
    notifier.forget("two")
    assert systemd.texts() == ["FDSTOREREMOVE=1\nFDNAME=two"]


def test_one_socket_serves_all_notifications(systemd: Systemd) -> None:
    """So a daemon whose clients use up its descriptors still pings its watchdog."""
    notifier = systemd.notifier()
    notifier.status("first")
    with no_free_descriptor(1):  # with 0, poll() of one fails too
        notifier.status("second")
    assert systemd.texts() == ["STATUS=first", "STATUS=second"]


def test_without_a_free_descriptor_nothing_fails(systemd: Systemd) -> None:
    """What must arrive does when there is one again, and a connection is reported as not stored."""
    notifier = systemd.notifier()
    ours, client = socket.socketpair()
    with ours, client:
        with no_free_descriptor(1):  # with 0, poll() of one fails too
            assert not notifier.store("one", ours)
            notifier.forget("two")
        notifier.status("again")
    assert systemd.texts() == ["FDSTOREREMOVE=1\nFDNAME=two", "STATUS=again"]


def test_an_abstract_name(tmp_path: Path) -> None:
    name = f"s3daemon-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).status("x")
        assert receiver.recv(100) == b"STATUS=x"


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(StartError, match="vsock:2:1234"):
        Notifier({"NOTIFY_SOCKET": "vsock:2:1234"})


def test_nothing_is_left_for_children(systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Notifier(environ)
    assert environ == {"HOME": "/"}


def test_without_systemd_the_methods_do_nothing(tmp_path: Path) -> None:
    ours, client = socket.socketpair()
    with ours, client:
        for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
            notifier = Notifier(environ)
            notifier.ready("serving")
            notifier.status("x")
            notifier.forget("x")
            assert not notifier.store("x", ours)
            asyncio.run(notifier.watchdog())


class Clock:
    """Sleeps at once and ends the watchdog after some turns."""

    def __init__(self, turns: int) -> None:
        self.slept: list[float] = []
        self._turns = turns

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self._turns:
            raise asyncio.CancelledError


@pytest.mark.parametrize("pid", ["", str(os.getpid())])
def test_the_watchdog_is_pinged_at_half_its_time(systemd: Systemd, pid: str) -> None:
    notifier = systemd.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID=pid)
    clock = Clock(3)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(notifier.watchdog(clock.sleep))
    assert clock.slept == [15.0] * 3
    assert systemd.texts() == ["WATCHDOG=1"] * 3


def test_a_watchdog_of_another_process_is_not_ours(systemd: Systemd) -> None:
    asyncio.run(systemd.notifier(WATCHDOG_USEC="30000000", WATCHDOG_PID="1").watchdog())
    assert systemd.texts() == []


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/s3daemon.service\n", "s3daemon.service"),
        ("0::/system.slice/system-s3daemon.slice/s3daemon@15556.service\n", "s3daemon@15556.service"),
        ("12:pids:/a.slice\n1:name=systemd:/system.slice/s3daemon.service\n0::/\n", "s3daemon.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(cgroups: str, unit: str) -> None:
    assert own_unit(cgroups) == unit


@pytest.mark.parametrize(
    ("jobs", "stop"),
    [
        ("812 s3daemon.service stop running\n", True),
        ("811 s3daemon.socket stop waiting\n812 s3daemon.service stop running\n", True),
        ("812 s3daemon.service restart running\n", False),
        ("812 s3daemon.service start waiting\n", False),
        ("811 s3daemon@15556.service stop running\n", False),
        ("", False),
    ],
)
def test_a_stop_is_distinguished_from_a_restart(jobs: str, stop: bool) -> None:
    assert has_stop_job(jobs, "s3daemon.service") is stop


@pytest.mark.parametrize("path", ["/nonexistent", "the system's"])
def test_a_stop_is_not_for_good_where_systemd_does_not_say_so(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    if path == "/nonexistent":
        monkeypatch.setenv("PATH", path)
    assert is_stopped_for_good() is False
