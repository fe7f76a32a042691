"""What systemd passes is taken or refused by name; sockets of our own have the full backlog.

Where it matters the descriptors are passed for real: to a process of their own, from 3 on.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

import pytest
from lab.sending import in_loop

from s3daemon.errors import StartError
from s3daemon.systemd.sockets import (
    BACKLOG,
    PassedSockets,
    bind,
    passed_sockets,
    stop_signals,
)


class Passed:
    """Descriptors passed as systemd does, but for their numbers: those from 3 on are in use in this process."""

    def __init__(self, undo: ExitStack) -> None:
        self.undo = undo
        self.names: dict[int, str] = {}

    def add(self, name: str, descriptor: int) -> int:
        """Pass a copy of a descriptor; returns its number."""
        copy = os.dup(descriptor)
        self.undo.callback(_close_if_open, copy)
        self.names[copy] = name
        return copy

    def add_socket(self, name: str, sock: socket.socket) -> int:
        """Pass a copy of a socket, which is closed at the end of the test."""
        return self.add(name, self.undo.enter_context(sock).fileno())

    def take(self) -> PassedSockets:
        """Take what was passed."""
        found = passed_sockets({}, lambda: self.names)
        for sock in every(found):
            self.undo.enter_context(sock)
        return found


def _close_if_open(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def every(found: PassedSockets) -> list[socket.socket]:
    """All sockets that were passed."""
    return [*chain.from_iterable(found.listening.values()), *found.clients.values()]


@pytest.fixture
def passed() -> Iterator[Passed]:
    with ExitStack() as undo:
        yield Passed(undo)


def listener(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A listening socket."""
    sock = socket.socket(family)
    # On a Unix socket the empty name makes the kernel choose an abstract one.
    sock.bind("" if family is socket.AF_UNIX else ("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
    sock.listen(7)
    return sock


def test_listening_sockets_and_clients_are_distinguished_by_name(passed: Passed) -> None:
    """The order does not matter; listening sockets of one name are in one list."""
    ours, client = socket.socketpair()
    passed.undo.enter_context(client)
    http = passed.add_socket("http", listener())
    stored = passed.add_socket("0123456789abcdef", ours)
    wire = passed.add_socket("wire", listener())
    unix = passed.add_socket("unix", listener(socket.AF_UNIX))
    wire6 = passed.add_socket("wire", listener(socket.AF_INET6))
    found = passed.take()
    assert {name: [sock.fileno() for sock in socks] for name, socks in found.listening.items()} == {
        "http": [http],
        "wire": [wire, wire6],
        "unix": [unix],
    }
    assert {name: sock.fileno() for name, sock in found.clients.items()} == {"0123456789abcdef": stored}
    assert not any(sock.getblocking() for sock in every(found))


@pytest.mark.parametrize("name", ["", "s3daemon.socket", "unknown"])
def test_a_single_listening_socket_serves_the_line_protocol_whatever_its_name(passed: Passed, name: str) -> None:
    ours, client = socket.socketpair()
    passed.undo.enter_context(client)
    passed.add_socket("stored", ours)
    passed.add_socket(name, listener())
    found = passed.take()
    assert list(found.listening) == ["wire"]
    assert list(found.clients) == ["stored"]


def test_a_client_that_is_gone_is_left_out(passed: Passed) -> None:
    """A connection may be reset while no process serves it."""
    with listener() as accepting, socket.create_connection(accepting.getsockname()) as client:
        ours, _ = accepting.accept()
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


def test_a_descriptor_that_is_not_a_stream_socket_is_named(passed: Passed, tmp_path: Path) -> None:
    """The error says what the descriptor is, and the descriptor is closed."""
    reading, writing = os.pipe()
    passed.undo.callback(os.close, writing)
    passed.undo.callback(os.close, reading)
    file = passed.undo.enter_context(tmp_path.joinpath("file").open("w"))
    null = os.open("/dev/null", os.O_RDONLY)
    passed.undo.callback(os.close, null)
    wrong = {
        reading: "a pipe",
        file.fileno(): "a regular file",
        null: "not a socket",
        passed.undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno(): "SOCK_DGRAM",
        passed.undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)).fileno(): "SOCK_SEQPACKET",
    }
    for descriptor, what in wrong.items():
        with ExitStack() as undo:
            one = Passed(undo)
            number = one.add("wire", descriptor)
            with pytest.raises(StartError, match=rf"descriptor {number} \('wire'\) .*{what}"):
                one.take()


def test_an_open_descriptor_is_needed() -> None:
    with pytest.raises(StartError, match=r"descriptor 65000 \('wire'\) from systemd is not open"):
        passed_sockets({}, lambda: {65000: "wire"})


@pytest.mark.parametrize("wrong", [{"LISTEN_FDS": "x"}, {"LISTEN_FDS": "0"}, {"LISTEN_FDNAMES": "wire:http"}], ids=repr)
def test_variables_that_contradict_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str]
) -> None:
    """And none of them is left for child processes."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "wire"} | wrong
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartError, match="LISTEN_FDS is") as caught:
        passed_sockets(os.environ)
    assert caught.value.code == "BadDescriptor"
    assert [name for name in os.environ if name.startswith("LISTEN_")] == []


def test_what_was_meant_for_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "wire"}.items():
        monkeypatch.setenv(name, value)
    assert passed_sockets(os.environ) == PassedSockets({}, {})
    assert [name for name in os.environ if name.startswith("LISTEN_")] == []
    assert passed_sockets(os.environ) == PassedSockets({}, {})


TAKE = textwrap.dedent("""
    import json, os
    from s3daemon.systemd.sockets import passed_sockets
    found = passed_sockets(os.environ)
    everything = [*sum(found.listening.values(), []), *found.clients.values()]
    print(json.dumps({
        "listening": {name: [sock.fileno() for sock in socks] for name, socks in found.listening.items()},
        "clients": {name: sock.fileno() for name, sock in found.clients.items()},
        "left": [name for name in os.environ if name.startswith("LISTEN_")],
        "inheritable": [sock.fileno() for sock in everything if sock.get_inheritable()],
    }), flush=True)
""")


def take_in_child(sockets: Sequence[tuple[str, socket.socket]]) -> dict[str, object]:
    """Returns what a process finds that is started the way systemd starts one: with descriptors from 3 on."""
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
    """No child process inherits them or the variables."""
    with ExitStack() as undo:
        # These keep 3 and 4 in use, so that putting a socket there closes no other.
        reserve = [undo.enter_context(socket.socket()) for _ in range(8)]
        ours, client = (undo.enter_context(sock) for sock in socket.socketpair())
        accepting = undo.enter_context(listener())
        assert client.fileno() > reserve[0].fileno()
        found = take_in_child([("0123456789abcdef", ours), ("wire", accepting)])
    assert found == {"listening": {"wire": [4]}, "clients": {"0123456789abcdef": 3}, "left": [], "inheritable": []}


ACTIVATE = shutil.which("systemd-socket-activate")


@pytest.mark.skipif(ACTIVATE is None, reason="needs systemd-socket-activate")
@pytest.mark.parametrize(
    ("named", "listening"),
    [([], {"wire": [3]}), (["--fdname=wire"], {"wire": [3]}), (["--fdname=unix"], {"unix": [3]})],
    ids=["unnamed", "wire", "unix"],
)
def test_under_systemd_socket_activate(tmp_path: Path, named: list[str], listening: object) -> None:
    path = tmp_path / "socket"
    assert ACTIVATE
    command = [ACTIVATE, "-l", str(path), *named, "-E", "PYTHONPATH", sys.executable, "-c", TAKE]
    path_list = os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path_list}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as activator:
        assert activator.stdout
        assert activator.stderr
        assert b"Listening on" in activator.stderr.readline()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            found = json.loads(activator.stdout.readline())
    assert found == {"listening": listening, "clients": {}, "left": [], "inheritable": []}


def test_a_socket_of_our_own_has_the_full_backlog_and_does_not_block() -> None:
    with ExitStack() as undo:
        bound = [undo.enter_context(sock) for sock in bind("127.0.0.1", 0)]
        assert len(bound) == 1
        assert not bound[0].getblocking()
        info = bound[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        # tcp_info of a listening socket has its backlog as tcpi_sacked.
        limit = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert int.from_bytes(info[28:32], sys.byteorder) == min(BACKLOG, limit)


def test_a_port_in_use_is_an_error() -> None:
    with listener() as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use") as caught:
            bind("127.0.0.1", port)
    assert caught.value.code == "CannotListen"
    assert caught.value.text.endswith("in use: S3DAEMON_HOST and S3DAEMON_PORT name another address")


@pytest.mark.parametrize("host", ["x" * 70, "192.0.2.1"], ids=["not a name", "another host's"])
def test_an_address_that_is_not_ours_is_an_error(host: str) -> None:
    with pytest.raises(StartError, match=f"cannot listen on {host}:0"):
        bind(host, 0)


@in_loop
async def test_a_hang_up_is_ignored_with_advice(caplog: pytest.LogCaptureFixture) -> None:
    """Not the end of the daemon, and no reload: only systemd can read the environment file."""
    stop = stop_signals(asyncio.get_running_loop())
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.05)
    assert not stop.is_set()
    assert caplog.messages == ["SIGHUP is ignored: to put edited settings in force, run systemctl reload s3daemon"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_signal_sets_the_event_and_a_second_changes_nothing(number: signal.Signals) -> None:
    stop = stop_signals(asyncio.get_running_loop())
    assert not stop.is_set()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 10)
    os.kill(os.getpid(), number)
    await asyncio.sleep(0)
