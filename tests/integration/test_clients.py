"""Clients that misbehave use their own slot for a bounded time, and do not affect other clients."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.env import TREE
from lab.flaky import FlakyS3

FILES, AT_ONCE, ROUNDS = 100, 10, 5


Stop = Callable[[], bool]


def silent(sock: socket.socket, stop: Stop) -> None:
    """Connects and sends nothing."""


def dribbling(sock: socket.socket, stop: Stop) -> None:
    """Ten bytes a second."""
    while not stop():
        sock.sendall(b"/")
        time.sleep(0.1)


def endless(sock: socket.socket, stop: Stop) -> None:
    """10 MB without a newline."""
    for _ in range(100):
        sock.sendall(b"x" * 100_000)


def binary(sock: socket.socket, stop: Stop) -> None:
    """Every byte except LF, and then LF."""
    sock.sendall(bytes(n for n in range(256) if n != ord("\n")) + b"\n")


def deaf(sock: socket.socket, stop: Stop) -> None:
    """Sends requests without end, in the form that keeps the connection, and never reads an answer.

    Each character of the name takes 12 bytes in the answer: the buffers are full in a second or two.
    """
    line = json.dumps({"file": "/nowhere/" + "\U0001f600" * 600, "destination": "alias/bucket/key"}).encode() + b"\n"
    while not stop():
        sock.sendall(line)


def half_closed(sock: socket.socket, stop: Stop) -> None:
    """Closes its sending side within its request."""
    sock.sendall(b"/file alias/bu")
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket, stop: Stop) -> None:
    """Resets the connection in the middle of a line."""
    sock.sendall(b"/file alias/bu")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


BEHAVIOURS = (silent, silent, silent, dribbling, dribbling, endless, binary, deaf, deaf, half_closed, reset)


@contextmanager
def bad_clients(served: Daemon) -> Iterator[None]:
    """Clients of every behaviour, several of most, and connections that close at once."""
    over = threading.Event()

    def behave(behaviour: Callable[[socket.socket, Stop], None]) -> None:
        with served.connect() as sock, suppress(OSError):
            behaviour(sock, over.is_set)
            over.wait()

    def probe() -> None:
        while not over.wait(0.05):
            served.connect().close()

    with ThreadPoolExecutor(2 * len(BEHAVIOURS) + 1) as pool, ExitStack() as stack:
        stack.callback(over.set)
        running = [pool.submit(behave, behaviour) for behaviour in 2 * BEHAVIOURS] + [pool.submit(probe)]
        yield
        over.set()
        for one in running:
            one.result()


@pytest.mark.timed
def test_bad_clients_do_not_slow_down_the_others(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """A hundred files take the same time beside clients of every bad behaviour, whose slots are freed."""
    s3.latency_s = 0.02  # as a near store's; otherwise the time would be that of this test's own threads
    with daemon(tmp_path / "state", s3.server) as served, ThreadPoolExecutor(AT_ONCE) as pool:

        def timed_round(name: str) -> float:
            began = time.monotonic()
            replies = pool.map(lambda n: served.plain(file, f"alias/bucket/{name}-{n}"), range(FILES))
            assert set(replies) == {b"Success"}
            return time.monotonic() - began

        served.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
        timed_round("warming")
        before = served.descriptors()
        alone, beside = [], []
        for number in range(ROUNDS):
            alone.append(timed_round(f"alone{number}"))
            with bad_clients(served):
                served.wait_status(lambda now: now["clients"] >= 5, "busy with bad clients")
                beside.append(timed_round(f"beside{number}"))
        ratio = min(beside) / min(alone)  # the best of each: a busy machine only adds time
        print(f"\n{FILES} files: {min(alone):.2f} s alone, {ratio:.2f} times that beside bad clients")
        assert ratio < 4  # one client that blocks the loop for a moment would make it ten and more

        served.wait_status(lambda now: now["clients"] == 0, "without clients")
        until = time.monotonic() + 30
        while served.descriptors() > before:
            assert time.monotonic() < until, "descriptors are lost"
            time.sleep(0.1)  # connections to the store are opened and closed meanwhile
    assert len([put for put in s3.puts if not put.name.startswith("bucket/warming")]) == 2 * ROUNDS * FILES


@pytest.mark.timed
def test_no_client_uses_a_slot_for_long(s3: FlakyS3, tmp_path: Path) -> None:
    """The daemon disconnects each within little more than the time that a line may take, here a fifth of the usual."""
    path = f"{TREE}:{TREE / 'tests'}"
    with (
        daemon(tmp_path / "state", s3.server, module="lab.hurrying", PYTHONPATH=path) as served,
        ThreadPoolExecutor(len(BEHAVIOURS)) as pool,
    ):

        def behave(behaviour: Callable[[socket.socket, Stop], None]) -> float:
            until = time.monotonic() + 45
            began = time.monotonic()
            with suppress(OSError), served.connect() as sock:
                behaviour(sock, lambda: time.monotonic() > until)
                while sock.recv(4096):
                    pass
            return time.monotonic() - began

        for behaviour, seconds in zip(BEHAVIOURS, pool.map(behave, BEHAVIOURS), strict=True):
            assert seconds < 30, f"one that is {behaviour.__name__} kept its slot for {seconds:.0f} s"
        served.wait_status(lambda now: now["clients"] == 0, "without clients")


def test_a_client_may_disconnect_after_its_request(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Its request is carried out; a client that only closes its sending side gets the answer too."""
    with daemon(tmp_path / "state", s3.server) as served:
        for number in range(20):
            with served.connect() as sock:
                sock.sendall(f"{file} alias/bucket/gone{number}\n".encode())
        with served.connect() as sock:
            sock.sendall(f"{file} alias/bucket/half\n".encode())
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b"Success"
        served.wait_status(lambda now: now["clients"] == now["pending"] == now["in_flight"] == 0, "done")
    assert set(s3.objects) == {"bucket/half", *(f"bucket/gone{number}" for number in range(20))}


def test_more_clients_than_slots_wait_and_are_served(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """A client without a slot waits in the socket's backlog until one is free."""
    with (
        daemon(tmp_path / "state", s3.server, max_clients="5") as served,
        ThreadPoolExecutor(30) as pool,
        ExitStack() as held,
    ):
        for _ in range(5):
            held.enter_context(served.connect())
        served.wait_status(lambda now: now["clients"] == 5, "full")
        waiting = [pool.submit(served.plain, file, f"alias/bucket/{number}") for number in range(30)]
        for _ in range(20):
            assert served.ask("status")["clients"] == 5
        assert not s3.puts
        held.close()
        assert {one.result() for one in waiting} == {b"Success"}
