"""The listener over Unix sockets: slots, which can be resized, and a stop in which no accepted client is lost."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from lab.serving import Run, in_house, listen, run_with, until

import s3daemon.ingress.listener
from s3daemon.ingress.listener import Client, Listener, name_of


class House:
    """A listener that accepts from two sockets; each client sends a word and gets it back when the test says so."""

    def __init__(self, directory: Path, max_clients: int) -> None:
        self.listener = Listener(self.serve, max_clients)
        self.reply = asyncio.Event()
        self.read: list[bytes] = []
        self.paths = [str(directory / name) for name in ("one", "two")]
        self.sockets = [listen(path) for path in self.paths]
        self.accepting = [asyncio.create_task(self.listener.accept(sock)) for sock in self.sockets]
        self.callers: list[socket.socket] = []

    async def serve(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        word = await loop.sock_recv(client.sock, 100)
        client.request_read()
        self.read.append(word)
        await self.reply.wait()
        await loop.sock_sendall(client.sock, word)

    def call(self, word: bytes = b"", at: int = 0) -> socket.socket:
        """Connect, and send a word if there is one."""
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(self.paths[at])
        caller.setblocking(False)
        caller.sendall(word)
        self.callers.append(caller)
        return caller

    async def answer(self, caller: socket.socket) -> bytes:
        return await asyncio.get_running_loop().sock_recv(caller, 100)

    until = staticmethod(until)

    @property
    def clients(self) -> int:
        return self.listener.clients

    async def close(self) -> None:
        for task in self.accepting:
            task.cancel()
        self.reply.set()
        await self.listener.stop_reading()
        await self.listener.drain()
        for sock in (*self.callers, *self.sockets):
            sock.close()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 0.3)

    return lambda test, max_clients=10: run_with(lambda: House(tmp_path, max_clients), test)


@in_house(max_clients=2)
async def test_clients_without_a_slot_wait_in_the_backlog(house: House) -> None:
    callers = [house.call(b"x", at=n % 2) for n in range(6)]
    await house.until(lambda: len(house.read) == 2)
    await asyncio.sleep(0.02)
    assert house.clients == 2
    house.reply.set()
    assert [await house.answer(caller) for caller in callers] == [b"x"] * 6


@in_house(max_clients=100)
async def test_the_first_of_a_burst_are_served_before_the_last_are_accepted(house: House) -> None:
    """Else the first body of a burst would leave as late as the last."""
    house.reply.set()
    for _ in range(40):
        house.call(b"x")
    served_at: list[int] = []
    async with asyncio.timeout(10):
        while len(house.read) < 40:
            await asyncio.sleep(0)
            if house.read:
                served_at.append(house.clients)
    assert served_at[0] < 20


@in_house(max_clients=1)
async def test_an_idle_socket_uses_no_slot(house: House) -> None:
    """With one slot, the clients of either socket are served."""
    house.reply.set()
    await asyncio.sleep(0.01)  # both wait for a client
    for at in (0, 1, 1, 0):
        assert await house.answer(house.call(b"x", at)) == b"x"


@in_house(max_clients=1)
async def test_slots_can_be_added(house: House) -> None:
    """Clients that wait for a slot get the new ones at once."""
    for n in range(8):
        house.call(b"x", at=n % 2)
    await house.until(lambda: house.clients == 1)
    house.listener.resize(5)
    await house.until(lambda: house.clients == 5)
    await asyncio.sleep(0.02)
    assert house.clients == 5


@in_house(max_clients=4)
async def test_slots_can_be_removed(house: House) -> None:
    """No client is disconnected; new ones wait until fewer than the new number are served."""
    first = [house.call(b"a") for _ in range(4)]
    await house.until(lambda: len(house.read) == 4)
    house.listener.resize(2)
    later = [house.call(b"b") for _ in range(3)]
    await asyncio.sleep(0.02)
    assert house.read == [b"a"] * 4
    house.reply.set()
    assert [await house.answer(caller) for caller in first + later] == [b"a"] * 4 + [b"b"] * 3
    house.reply.clear()
    for _ in range(5):
        house.call(b"c")
    await house.until(lambda: house.read.count(b"c") == 2)
    await asyncio.sleep(0.02)
    assert house.clients == 2


@in_house(max_clients=5)
async def test_clients_may_stay_while_half_of_the_slots_are_free(house: House) -> None:
    """And no longer once a stop has begun."""
    for word, may_keep in ((b"a", True), (b"b", True), (b"c", False)):
        house.call(word)
        await house.until(partial(lambda word: word in house.read, word))
        assert house.listener.may_keep is may_keep
    house.listener.resize(6)
    assert house.listener.may_keep
    house.reply.set()
    await house.listener.stop_reading()
    assert not house.listener.may_keep


@in_house()
async def test_a_stop_waits_for_the_first_request(house: House) -> None:
    """A client that sends it within the limit is served; a silent one is disconnected after it."""
    late, silent = house.call(), house.call()
    await house.until(lambda: house.clients == 2)
    house.reply.set()
    stopping = asyncio.create_task(house.listener.stop_reading())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    late.sendall(b"late")
    assert await house.answer(late) == b"late"
    await stopping
    assert await house.answer(silent) == b""


@in_house()
async def test_a_stop_does_not_wait_for_clients_that_were_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 60)
    caller = house.call(b"x")
    await house.until(lambda: len(house.read) == 1)
    await asyncio.wait_for(house.listener.stop_reading(), 10)
    house.reply.set()
    assert await house.answer(caller) == b"x"


@pytest.mark.parametrize("moments", range(6))
@in_house()
async def test_a_client_accepted_just_before_a_stop_is_served(
    house: House, monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    """Or it stays in the backlog; whatever the moment, it is not dropped."""
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 0)
    house.reply.set()
    await asyncio.sleep(0.01)
    caller = house.call(b"x")
    for _ in range(moments):
        await asyncio.sleep(0)
    for task in house.accepting:
        task.cancel()
    await house.listener.stop_reading()
    await house.listener.drain()
    if house.read:
        assert await house.answer(caller) == b"x"
    else:
        with house.sockets[0].accept()[0] as waiting:
            assert waiting.recv(100) == b"x"


@in_house(max_clients=1)
async def test_a_resumed_client_takes_no_slot(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stop does not wait for a request of it."""
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 60)
    ours, theirs = socket.socketpair()
    house.callers.append(theirs)
    theirs.setblocking(False)
    house.listener.resume(ours, house.serve)
    house.call(b"new")
    await house.until(lambda: house.read == [b"new"])
    assert house.clients == 2
    await asyncio.wait_for(house.listener.stop_reading(), 10)
    theirs.sendall(b"old")
    house.reply.set()
    assert await house.answer(theirs) == b"old"


@in_house()
async def test_a_bug_ends_its_client_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Client) -> None:
        raise ValueError("a bug")

    ours, theirs = socket.socketpair()
    house.callers.append(theirs)
    theirs.setblocking(False)
    house.listener.resume(ours, broken)
    assert await house.answer(theirs) == b""
    house.reply.set()
    assert await house.answer(house.call(b"x")) == b"x"
    assert "a bug while serving a client" in caplog.text


@in_house()
async def test_accepting_goes_on_after_an_error(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For example when the process is out of descriptors; it is logged once a minute."""
    monkeypatch.setattr(s3daemon.ingress.listener, "ACCEPT_PAUSE_S", 0.01)

    class Failing(socket.socket):
        failures = 3

        def accept(self) -> tuple[socket.socket, object]:
            if self.failures:
                self.failures -= 1
                raise OSError(24, "Too many open files")
            return super().accept()

    sock = Failing(socket.AF_UNIX)
    house.paths.append(house.paths[0] + "-failing")
    sock.bind(house.paths[-1])
    sock.listen(10)
    sock.setblocking(False)
    house.sockets.append(sock)
    house.reply.set()
    task = asyncio.create_task(house.listener.accept(sock))
    assert await house.answer(house.call(b"x", at=2)) == b"x"
    assert caplog.text.count("cannot accept a client, which has to wait: Too many open files") == 1
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def test_addresses_are_shown_as_text(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        assert name_of(tcp) == f"127.0.0.1:{tcp.getsockname()[1]}"
        assert name_of(unix) == str(tmp_path / "socket")
