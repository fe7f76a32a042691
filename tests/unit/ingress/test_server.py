"""The listener over a Unix socket with a stand-in for the intake: what clients get, and how little they can take."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import s3daemon.ingress.server
from s3daemon.config.settings import Settings
from s3daemon.delivery.intake import Ticket
from s3daemon.errors import FileError, SpoolError
from s3daemon.ingress.server import Server
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Request
from s3daemon.spool.rows import Entry

ID = "00000000000000aa"


class FakeIntake:
    """Accepts what it is told to; its transfers end when the test says so."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refusal: FileError | None = None
        self.ticket = self._ticket()
        self.ticket.durable.set_result(None)

    def _ticket(self) -> Ticket:
        loop = asyncio.get_running_loop()
        job: Any = None  # the wire has no use for it
        return Ticket(ID, loop.create_future(), loop.create_future(), job)

    async def submit(self, request: Request) -> Ticket:
        self.requests.append(request)
        if self.refusal:
            raise self.refusal
        return self.ticket

    def resume(self, id_: str) -> Ticket | None:
        return self.ticket if id_ == ID else None

    def deferral(self, ticket: Ticket) -> Reply:
        return Reply(Outcome.DEFERRED, ticket.id, "Deferred", "kept")

    def end(self, reply: Reply = Reply(Outcome.STORED, ID)) -> None:  # noqa: B008 - frozen
        self.ticket.outcome.set_result(reply)


class FakeManager:
    """Keeps the names of the connections that systemd would keep."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.works = True

    def store(self, name: str, sock: socket.socket) -> bool:
        self.kept.append(name)
        return self.works

    def forget(self, name: str) -> None:
        self.kept.remove(name)


class House:
    """A server on a socket in a directory."""

    def __init__(self, directory: Path, **changes: str) -> None:
        environ = {
            "S3_ENDPOINT_URL": "http://store",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "S3DAEMON_STATE_DIR": "/nowhere",
        }
        settings = Settings.from_environ(environ | changes)
        self.path = str(directory / "door")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(100)
        self.listener.setblocking(False)
        self.intake, self.manager, self.told = FakeIntake(), FakeManager(), list[str]()
        intake: Any = self.intake
        manager: Any = self.manager
        self.server = Server(settings, intake, manager, self.told.append)
        self.accepting = asyncio.create_task(self.server.accept(self.listener))

    async def close(self) -> None:
        self.accepting.cancel()
        await self.server.stop_reading()
        await self.server.leave()
        self.listener.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def say(self, data: bytes, *, eof: bool = False) -> bytes:
        """Send `data`, read to the end."""
        reader, writer = await self.connect()
        writer.write(data)
        if eof:
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a test with a House; limits are short."""
    for name in ("LINE_LIMIT_S", "IDLE_LIMIT_S", "REPLY_LIMIT_S", "STOP_READ_TIMEOUT_S"):
        monkeypatch.setattr(s3daemon.ingress.server, name, 0.3)

    def run(test: Callable[[House], Awaitable[None]], **changes: str) -> None:
        async def main() -> None:
            made = House(tmp_path, **changes)
            try:
                async with asyncio.timeout(20):
                    await test(made)
            finally:
                await made.close()

        asyncio.run(main())

    return run


Run = Callable[..., None]
PLAIN = b"/f a/bucket/k\n"
EXTENDED = b'{"file": "/f", "destination": "a/bucket/k"}\n'


def test_plain(house: Run) -> None:
    """`Success` and the end of the connection; systemd keeps it meanwhile, no longer."""

    async def test(house: House) -> None:
        asking = asyncio.create_task(house.say(PLAIN))
        await house.until(lambda: bool(house.manager.kept))
        assert house.manager.kept[0].startswith(f"plain.{ID}.")
        house.intake.end()
        assert await asking == b"Success"
        await house.until(lambda: house.server.clients == 0)
        assert house.manager.kept == []

    house(test)


def test_extended_serves_the_next(house: Run) -> None:
    """One line for each request, on one connection, until the client closes it."""

    async def test(house: House) -> None:
        house.intake.end()
        reader, writer = await house.connect()
        for _ in range(3):
            writer.write(EXTENDED)
            assert json.loads(await reader.readline()) == {"result": "stored", "id": ID}
        writer.write(EXTENDED * 2)
        assert [json.loads(await reader.readline())["result"] for _ in range(2)] == ["stored"] * 2
        writer.close()
        await house.until(lambda: house.server.clients == 0)

    house(test)


def test_no_wait(house: Run) -> None:
    """`accepted` comes with the commit, not before it."""

    async def test(house: House) -> None:
        house.intake.ticket = house.intake._ticket()
        line = b'{"file": "/f", "destination": "a/b/k", "wait": false}\n'
        asking = asyncio.create_task(house.say(line, eof=True))
        await house.until(lambda: bool(house.intake.requests))
        await asyncio.sleep(0.05)
        assert not asking.done()
        house.intake.ticket.durable.set_result(None)
        assert json.loads(await asking)["result"] == "accepted"

    house(test)


def test_refusals(house: Run) -> None:
    """A bad line, a bad file, a full disk: one line each, in the form of the request."""

    async def test(house: House) -> None:
        assert (await house.say(b"nonsense\n")).startswith(b"BadRequest: ")
        assert json.loads(await house.say(b"{nonsense\n", eof=True))["code"] == "BadRequest"
        house.intake.refusal = FileError("NoSuchFile", "/f: no such file")
        assert await house.say(PLAIN) == b"NoSuchFile: /f: no such file\n"
        house.intake.refusal = None
        house.intake.ticket = house.intake._ticket()
        error = SpoolError("SpoolFull", "no space")
        house.intake.ticket.durable.set_exception(error)
        house.intake.end(Reply.failed(error))
        assert await house.say(PLAIN) == b"SpoolFull: no space\n"

    house(test)


def test_half_close_is_no_hangup(house: Run) -> None:
    """A client that closes its sending side has said all, and is answered."""

    async def test(house: House) -> None:
        house.intake.end()
        assert await house.say(PLAIN, eof=True) == b"Success"
        assert (await house.say(PLAIN[:-1], eof=True)).startswith(b"BadRequest: the request ended without a newline")

    house(test)


def test_deferred(house: Run) -> None:
    """After the wait limit the client hears that its transfer is kept; not before it is durable."""

    async def test(house: House) -> None:
        assert await house.say(PLAIN) == b"Deferred: kept\n"

    house(test, S3DAEMON_WAIT_LIMIT="10ms")


def test_failures_are_told(house: Run) -> None:
    """A failure counts as told when the client closed after it; not when it had gone."""

    async def test(house: House) -> None:
        house.intake.end(Reply(Outcome.FAILED, ID, "NoSuchBucket", "no such bucket"))
        assert await house.say(PLAIN) == b"NoSuchBucket: no such bucket\n"
        await house.until(lambda: house.told == [ID])
        reader, writer = await house.connect()
        writer.write(PLAIN)
        writer.transport.abort()
        await house.until(lambda: len(house.intake.requests) == 2 and house.server.clients == 0)
        assert house.told == [ID]
        assert reader is not None

    house(test)


@pytest.mark.parametrize(
    "data", [b"", b"/f", b"\0\xff" * 100, b"x" * 9000, b"{" * 9000], ids=["silent", "half", "binary", "long", "braces"]
)
def test_bad_clients_cost_a_bounded_time(house: Run, data: bytes) -> None:
    """Whoever says nothing, or nothing that ends, is answered and hung up on."""

    async def test(house: House) -> None:
        answer = await house.say(data)
        assert b"BadRequest" in answer
        await house.until(lambda: house.server.clients == 0)

    house(test)


def test_a_port_probe(house: Run) -> None:
    """Connect and close: nothing happens, and the next is served."""

    async def test(house: House) -> None:
        for _ in range(50):
            _, writer = await house.connect()
            writer.close()
        house.intake.end()
        assert await house.say(PLAIN) == b"Success"
        await house.until(lambda: house.server.clients == 0)

    house(test)


def test_more_clients_than_slots_wait(house: Run) -> None:
    """They stay in the backlog until one is done."""

    async def test(house: House) -> None:
        asking = [asyncio.create_task(house.say(PLAIN)) for _ in range(10)]
        await house.until(lambda: house.server.clients == 3)
        await asyncio.sleep(0.05)
        assert house.server.clients == 3
        house.intake.end()
        assert await asyncio.gather(*asking) == [b"Success"] * 10

    house(test, S3DAEMON_MAX_CLIENTS="3")


def test_no_client_is_lost_when_accepting_ends(house: Run) -> None:
    """Whatever the moment: who is not served yet stays in the backlog, where the next process finds it."""

    async def test(house: House) -> None:
        house.intake.end()
        for moments in range(10):
            await asyncio.sleep(0)  # it waits for a client
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(house.path)
                client.sendall(PLAIN)
                for _ in range(moments):
                    await asyncio.sleep(0)
                house.accepting.cancel()
                await asyncio.wait([house.accepting])
                house.accepting = asyncio.create_task(house.server.accept(house.listener))
                client.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(client, 100) == b"Success", moments

    house(test)


@pytest.mark.parametrize("ask", [PLAIN, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize(
    ("works", "for_good"), [(True, False), (True, True), (False, False)], ids=["kept", "for good", "not kept"]
)
def test_leaving(house: Run, works: bool, for_good: bool, ask: bytes) -> None:
    """At the end a waiting client is left to the next process if systemd has it for one, else it hears: all is kept."""

    async def test(house: House) -> None:
        house.manager.works = works
        asking = asyncio.create_task(house.say(ask))
        await house.until(lambda: bool(house.manager.kept))
        await house.server.leave(for_good=for_good)
        left = works and not for_good
        assert (b"eferred" in await asking) != left
        assert len(house.manager.kept) == (left or not works)

    house(test)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (f"plain.{ID}.x", b"Success"),
        (f"extended.{ID}.x", b'{"result": "stored", "id": "00000000000000aa"}\n'),
        ("plain.00000000000000bb.x", b"NoSuchBucket: gone\n"),
        ("plain.00000000000000cc.x", b"Interrupted: "),
    ],
)
def test_resuming(house: Run, name: str, answer: bytes) -> None:
    """A client of an earlier process is answered by this one, in its form: its end, its failure, or the truth."""

    async def test(house: House) -> None:
        ours, theirs = socket.socketpair()
        house.manager.kept.append(name)
        failure = Entry(1, None, 0.0, code="NoSuchBucket", text="gone", failed=True)  # type: ignore[arg-type]
        house.server.resume({name: ours}, {"00000000000000bb": failure})
        house.intake.end()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        got = await loop.sock_recv(theirs, 1000)
        assert got.startswith(answer)
        theirs.close()
        await house.until(lambda: house.server.clients == 0)
        assert house.manager.kept == []

    house(test)


def test_stored_is_reported_no_earlier_than_durable(house: Run) -> None:
    """The reply waits for the disk although the object is stored."""

    async def test(house: House) -> None:
        loop = asyncio.get_running_loop()
        job: Any = None  # not used here
        ticket = house.intake.ticket = Ticket(ID, loop.create_future(), loop.create_future(), job)
        reply = asyncio.create_task(house.say(PLAIN))
        await house.until(lambda: bool(house.intake.requests))
        house.intake.end()
        await asyncio.wait({reply}, timeout=0.2)
        assert not reply.done()
        ticket.durable.set_result(None)
        assert await reply == b"Success"

    house(test)


def test_what_was_said_before_a_stop_is_heard(house: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is too busy to read for as long as it waits hangs up on nobody whose request is there."""
    monkeypatch.setattr(s3daemon.ingress.server, "STOP_POLLS", 0)

    async def test(house: House) -> None:
        reader, writer = await house.connect()
        _, silent = await house.connect()
        await house.until(lambda: len(house.server._reading) == 2)
        writer.write(b"/f a/b/k\n")
        await house.server.stop_reading()
        house.intake.end()
        assert await reader.read() == b"Success"
        writer.close()
        silent.close()

    house(test)
