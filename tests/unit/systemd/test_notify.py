"""systemd's side: what it passes is taken or refused by name, and telling it something never makes the daemon wait.

The protocols are spoken for real, over a Unix socket in the test's directory and descriptors that are passed; only the
manager at the other end is ours.
"""

import array
import asyncio
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from itertools import chain
from pathlib import Path

import pytest

from s3daemon.errors import StartError
from s3daemon.systemd.notify import BACKLOG, PATIENCE_S, Inherited, Manager, bind, inherited, stop_signals

#: Where the descriptors passed begin in this process, whose 3 is taken.
FIRST = 500


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

    def stand_still(self) -> None:
        """Fill the socket's queue."""
        with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as other, suppress(BlockingIOError):
            while True:
                other.sendto(b"FILLER=1", socket.MSG_DONTWAIT, str(self.path))

    def manager(self, **environ: str) -> Manager:
        return Manager({"NOTIFY_SOCKET": str(self.path), **environ})


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(tmp_path / "notify")
    yield manager
    manager.texts()
    manager.socket.close()


def test_the_states_of_a_service(systemd: Systemd) -> None:
    manager = systemd.manager()
    manager.ready("serving")
    manager.extend(1.5)
    manager.stopping("two\nlines")
    assert systemd.texts() == [
        "READY=1\nSTATUS=serving",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=two\\nlines",
    ]


def test_a_status_is_sent_when_it_changed(systemd: Systemd) -> None:
    manager = systemd.manager()
    for text in ("a", "a", "b", "b", "a"):
        manager.status(text)
    assert systemd.texts() == ["STATUS=a", "STATUS=b", "STATUS=a"]


def test_a_stored_connection_is_the_same_connection(systemd: Systemd) -> None:
    ours, client = socket.socketpair()
    with ours, client:
        assert systemd.manager().store("0123456789abcdef", ours)
        message = systemd.receive()
        assert message is not None
        assert message[0] == "FDSTORE=1\nFDNAME=0123456789abcdef"
        with socket.socket(fileno=message[1][0]) as copy:
            copy.sendall(b"Success")
        assert client.recv(100) == b"Success"


@pytest.mark.parametrize("name", ["", "a:b", "a\nFDSTORE=1", "é", "x" * 256])
def test_a_name_that_systemd_would_refuse_is_a_bug(systemd: Systemd, name: str) -> None:
    ours, client = socket.socketpair()
    with ours, client, pytest.raises(ValueError, match="systemd takes no"):
        systemd.manager().store(name, ours)


def test_a_manager_that_stands_still_holds_nobody_up(systemd: Systemd) -> None:
    """What must arrive arrives later and in order; a status is sent anew; a connection is reported as not stored."""
    manager = systemd.manager()
    systemd.stand_still()
    ours, client = socket.socketpair()
    with ours, client:
        began = time.monotonic()
        manager.ready("serving")
        for _ in range(100):
            manager.status("busy")
            assert not manager.store("two", ours)
        manager.forget("one")
        manager.stopping("draining")
        # Patience is had once, not for each of them.
        assert PATIENCE_S <= time.monotonic() - began < 20 * PATIENCE_S
        assert set(systemd.texts()) == {"FILLER=1"}
        manager.status("busy")
        assert manager.store("two", ours)
        assert systemd.texts() == [
            "READY=1\nSTATUS=serving",
            "FDSTOREREMOVE=1\nFDNAME=one",
            "STOPPING=1\nSTATUS=draining",
            "STATUS=busy",
            "FDSTORE=1\nFDNAME=two",
        ]


def test_a_burst_is_not_lost_to_a_short_queue(systemd: Systemd) -> None:
    """While systemd takes what comes, more notifications than its socket has room for at once all arrive."""
    count = 2000
    received: list[str] = []

    def take() -> None:
        systemd.socket.setblocking(True)
        while len(received) < count and (message := systemd.receive()):
            received.append(message[0])
            for descriptor in message[1]:
                os.close(descriptor)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    manager = systemd.manager()
    ours, client = socket.socketpair()
    with ours, client:
        stored = [manager.store(f"client{n}", ours) for n in range(count)]
    taker.join(10)
    systemd.socket.setblocking(False)
    assert all(stored)
    assert received == [f"FDSTORE=1\nFDNAME=client{n}" for n in range(count)]


def test_an_abstract_name(tmp_path: Path) -> None:
    name = f"s3daemon-test-{os.getpid()}"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as receiver:
        receiver.bind("\0" + name)
        Manager({"NOTIFY_SOCKET": "@" + name}).status("x")
        assert receiver.recv(100) == b"STATUS=x"


def test_an_address_of_no_known_kind_is_refused() -> None:
    with pytest.raises(StartError, match="vsock:2:1234"):
        Manager({"NOTIFY_SOCKET": "vsock:2:1234"})


def test_nothing_is_left_for_children(systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    Manager(environ)
    assert environ == {"HOME": "/"}


def test_without_systemd_everything_is_a_no_op(tmp_path: Path) -> None:
    ours, client = socket.socketpair()
    with ours, client:
        for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}):
            manager = Manager(environ)
            manager.ready("serving")
            manager.status("x")
            manager.forget("x")
            assert not manager.store("x", ours)
            asyncio.run(manager.watchdog(lambda: True))


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
def test_the_watchdog_is_pinged_at_half_its_time_while_alive(systemd: Systemd, pid: str) -> None:
    manager = systemd.manager(WATCHDOG_USEC="30000000", WATCHDOG_PID=pid)
    clock, alive = Clock(4), iter([True, False, True, True])
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(manager.watchdog(lambda: next(alive), clock.sleep))
    assert clock.slept == [15.0] * 4
    assert systemd.texts() == ["WATCHDOG=1"] * 3


def test_a_watchdog_of_another_process_is_not_ours(systemd: Systemd) -> None:
    asyncio.run(systemd.manager(WATCHDOG_USEC="30000000", WATCHDOG_PID="1").watchdog(lambda: True))
    assert systemd.texts() == []


def close_if_open(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


class Passed:
    """Descriptors passed as systemd does, from FIRST on."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.names: list[str] = []

    def add(self, name: str, descriptor: int) -> None:
        at = fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST + len(self.names))
        assert at == FIRST + len(self.names)
        self.undo.callback(close_if_open, at)
        self.names.append(name)

    def add_socket(self, name: str, sock: socket.socket) -> None:
        self.add(name, self.undo.enter_context(sock).fileno())

    def environ(self) -> dict[str, str]:
        return {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(self.names)),
            "LISTEN_FDNAMES": ":".join(self.names),
        }

    def take(self) -> Inherited:
        found = inherited(self.environ(), first=FIRST)
        for sock in every(found):
            self.undo.enter_context(sock)
        return found


def every(found: Inherited) -> list[socket.socket]:
    return [*chain.from_iterable(found.doors.values()), *found.clients.values()]


@pytest.fixture
def passed() -> Iterator[Passed]:
    with ExitStack() as undo:
        yield Passed(undo)


def listener(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    # On a Unix socket the empty name makes the kernel choose an abstract one.
    sock.bind("" if family is socket.AF_UNIX else ("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
    sock.listen(7)
    return sock


def test_doors_and_clients_are_told_apart_by_name(passed: Passed) -> None:
    """In whichever order they come; doors of one name are one list."""
    ours, client = socket.socketpair()
    passed.undo.enter_context(client)
    passed.add_socket("http", listener())
    passed.add_socket("0123456789abcdef", ours)
    passed.add_socket("wire", listener())
    passed.add_socket("unix", listener(socket.AF_UNIX))
    passed.add_socket("wire", listener(socket.AF_INET6))
    found = passed.take()
    assert {name: [sock.fileno() for sock in socks] for name, socks in found.doors.items()} == {
        "http": [FIRST],
        "wire": [FIRST + 2, FIRST + 4],
        "unix": [FIRST + 3],
    }
    assert {name: sock.fileno() for name, sock in found.clients.items()} == {"0123456789abcdef": FIRST + 1}
    for sock in every(found):
        assert not sock.getblocking()
        assert not sock.get_inheritable()


@pytest.mark.parametrize("name", ["", "s3daemon.socket", "unknown"])
def test_the_only_listening_socket_is_the_wire_whatever_its_name(passed: Passed, name: str) -> None:
    ours, client = socket.socketpair()
    passed.undo.enter_context(client)
    passed.add_socket("stored", ours)
    passed.add_socket(name, listener())
    found = passed.take()
    assert list(found.doors) == ["wire"]
    assert list(found.clients) == ["stored"]


def test_a_client_that_is_gone_is_left_out(passed: Passed) -> None:
    """A connection that was reset while nobody served it."""
    with listener() as door, socket.create_connection(door.getsockname()) as client:
        ours, _ = door.accept()
        passed.add_socket("gone", ours)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert passed.take().clients == {}


def test_several_listening_sockets_need_names(passed: Passed) -> None:
    passed.add_socket("wire", listener())
    passed.add_socket("s3daemon-http.socket", listener())
    with pytest.raises(StartError, match=r"s3daemon-http.socket.*FileDescriptorName= .* wire, http, unix"):
        passed.take()


@pytest.mark.parametrize("name", ["wire", "connection"])
def test_a_unit_with_accept_is_refused(passed: Passed, name: str) -> None:
    ours, client = socket.socketpair()
    passed.undo.enter_context(client)
    passed.add_socket(name, ours)
    with pytest.raises(StartError, match="Accept=yes"):
        passed.take()


def test_what_is_no_stream_socket_is_named(passed: Passed, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    passed.undo.callback(os.close, writing)
    passed.undo.callback(os.close, reading)
    file = passed.undo.enter_context(tmp_path.joinpath("file").open("w"))
    wrong = {
        reading: "a pipe",
        file.fileno(): "a regular file",
        os.open("/dev/null", os.O_RDONLY): "no socket",
        passed.undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno(): "SOCK_DGRAM",
        passed.undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).fileno(): "SOCK_SEQPACKET",
    }
    for descriptor, what in wrong.items():
        with ExitStack() as undo:
            one = Passed(undo)
            one.add("wire", descriptor)
            with pytest.raises(StartError, match=rf"descriptor {FIRST} \('wire'\) .*{what}"):
                one.take()
    os.close(list(wrong)[2])


@pytest.mark.parametrize(
    "wrong", [{"LISTEN_FDS": "x"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDS": "2"}, {"LISTEN_FDNAMES": "wire:http"}], ids=repr
)
def test_variables_that_contradict_are_refused(wrong: dict[str, str]) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "wire"} | wrong
    with pytest.raises(StartError, match="LISTEN_FDS is"):
        inherited(environ, first=FIRST)
    assert environ == {}


def test_what_was_meant_for_another_process_is_not_taken() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "wire", "HOME": "/"}
    assert inherited(environ) == inherited({}) == Inherited({}, {})
    assert environ == {"HOME": "/"}


TAKE = textwrap.dedent("""
    import json, os
    from s3daemon.systemd.notify import inherited
    found = inherited(os.environ)
    print(json.dumps({
        "doors": {name: [sock.fileno() for sock in socks] for name, socks in found.doors.items()},
        "clients": {name: sock.fileno() for name, sock in found.clients.items()},
        "left": [name for name in os.environ if name.startswith("LISTEN_")],
    }), flush=True)
""")


def take_in_child(sockets: Sequence[tuple[str, socket.socket]]) -> dict[str, object]:
    """What a process finds that is started the way systemd starts one: descriptors from 3 on."""
    place = "".join(f"os.dup2({sock.fileno()}, {3 + at});" for at, (_, sock) in enumerate(sockets))
    names = ":".join(name for name, _ in sockets)
    start = f"import os; {place} os.environ.update(LISTEN_PID=str(os.getpid())); exec({TAKE!r})"
    environ = {**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}
    child = subprocess.run(
        [sys.executable, "-c", start],
        env=environ,
        pass_fds=[sock.fileno() for _, sock in sockets],
        capture_output=True,
        check=True,
        timeout=30,
    )
    found: dict[str, object] = json.loads(child.stdout)
    return found


def test_descriptors_begin_at_three() -> None:
    with ExitStack() as undo:
        # Out of the way of 3 and 4, so that putting one there closes no other.
        spare = [undo.enter_context(socket.socket()) for _ in range(8)]
        ours, client = (undo.enter_context(sock) for sock in socket.socketpair())
        door = undo.enter_context(listener())
        assert client.fileno() > spare[0].fileno()
        found = take_in_child([("0123456789abcdef", ours), ("wire", door)])
    assert found == {"doors": {"wire": [4]}, "clients": {"0123456789abcdef": 3}, "left": []}


ACTIVATE = shutil.which("systemd-socket-activate")


@pytest.mark.skipif(ACTIVATE is None, reason="needs systemd-socket-activate")
@pytest.mark.parametrize(
    ("named", "doors"),
    [([], {"wire": [3]}), (["--fdname=wire"], {"wire": [3]}), (["--fdname=unix"], {"unix": [3]})],
    ids=["unnamed", "wire", "unix"],
)
def test_under_systemds_own_activator(tmp_path: Path, named: list[str], doors: object) -> None:
    path = tmp_path / "door"
    assert ACTIVATE
    command = [ACTIVATE, "-l", str(path), *named, "-E", "PYTHONPATH", sys.executable, "-c", TAKE]
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as activator:
        assert activator.stdout
        assert activator.stderr
        assert b"Listening on" in activator.stderr.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            found = json.loads(activator.stdout.readline())
    assert found == {"doors": doors, "clients": {}, "left": []}


def test_a_door_of_our_own_has_the_full_backlog_and_does_not_block() -> None:
    with ExitStack() as undo:
        doors = [undo.enter_context(sock) for sock in bind("127.0.0.1", 0)]
        assert len(doors) == 1
        assert not doors[0].getblocking()
        info = doors[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        # tcp_info of a listening socket has its backlog as tcpi_sacked.
        limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert int.from_bytes(info[28:32], sys.byteorder) == min(BACKLOG, limit)


def test_a_taken_port_is_told() -> None:
    with listener() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as caught:
            bind("127.0.0.1", port)
    assert caught.value.code == "CannotListen"


@pytest.mark.parametrize("host", ["x" * 70, "192.0.2.1"], ids=["no name", "another host's"])
def test_a_host_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(StartError, match=f"cannot listen on {host}:0"):
        bind(host, 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_a_second_changes_nothing(number: signal.Signals) -> None:
    async def run() -> None:
        stop = stop_signals(asyncio.get_running_loop())
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(stop.wait(), 10)
        os.kill(os.getpid(), number)
        await asyncio.sleep(0)

    asyncio.run(run())
