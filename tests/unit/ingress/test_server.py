"""The server over a Unix socket with a stand-in for the intake: what clients get, and how little they can use."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_host import settings_for
from fakes import FakeNotifier
from lab.serving import Run, SocketHouse, in_house, run_with

import s3daemon.ingress.listener
import s3daemon.ingress.server
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.errors import FileError, SpoolError
from s3daemon.ingress.access import AccessControl
from s3daemon.ingress.peer import PeerLookup
from s3daemon.ingress.questions import Questions
from s3daemon.ingress.refusals import Refusals
from s3daemon.ingress.server import Server
from s3daemon.ingress.waiting import WaitingClients
from s3daemon.model.exposure import Exposures
from s3daemon.model.record import Refusal
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Request

ID = "00000000000000aa"


class FakeIntake(Intake):
    """Accepts requests; its transfers end when the test says so."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.refusal: FileError | None = None
        self.ticket = self.new_ticket()
        self.ticket.durable.set_result(None)

    def new_ticket(self) -> Ticket:
        loop = asyncio.get_running_loop()
        queued: Any = None  # the server does not use it
        return Ticket(ID, loop.create_future(), loop.create_future(), queued)

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


class House(SocketHouse):
    """A server on a socket in a directory."""

    def __init__(self, directory: Path, **changes: str) -> None:
        self.settings = SettingsHolder(settings_for("http://store", **changes))
        super().__init__(directory)
        self.intake, self.notifier, self.notified = FakeIntake(), FakeNotifier(), list[str]()
        self.access = AccessControl((), PeerLookup())
        self.refusals = Refusals(PeerLookup(lambda socks: {}))
        self.refused: list[Refusal] = []
        self.refusals.observers.append(lambda refusal, _: self.refused.append(refusal))
        failure = Reply(Outcome.FAILED, "00000000000000bb", "NoSuchBucket", "gone")
        self.waiting = WaitingClients(self.settings, self.intake, self.notifier, {failure.id: failure}, {})
        self.exposures = Exposures()
        self.questions = Questions(self.exposures, lambda id_: None, lambda queued: "")
        self.server = Server(
            self.settings.current.max_clients,
            self.intake,
            self.access,
            self.waiting,
            self.notified.append,
            refusals=self.refusals,
            questions=self.questions,
        )
        self.accepting = asyncio.create_task(self.server.listener.accept(self.listener))

    async def close(self) -> None:
        self.accepting.cancel()
        await self.server.listener.stop_reading()
        await self.leave()
        self.listener.close()

    async def leave(self, *, for_good: bool = False) -> None:
        self.waiting.leave(for_good=for_good)
        await self.server.listener.drain()

    @property
    def clients(self) -> int:
        return self.server.listener.clients


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test with a House; limits are short."""
    for name in ("LINE_LIMIT_S", "IDLE_LIMIT_S", "REPLY_LIMIT_S"):
        monkeypatch.setattr(s3daemon.ingress.server, name, 0.3)
    for name in ("STOP_READ_TIMEOUT_S", "CLOSE_LIMIT_S"):
        monkeypatch.setattr(s3daemon.ingress.listener, name, 0.3)

    return lambda test, **changes: run_with(lambda: House(tmp_path, **changes), test)


PLAIN = b"/f a/bucket/k\n"
EXTENDED = b'{"file": "/f", "destination": "a/bucket/k"}\n'


@in_house()
async def test_a_plain_request_is_answered_with_success(house: House) -> None:
    """`Success` and the end of the connection, which systemd keeps only while the client waits."""
    asking = asyncio.create_task(house.say(PLAIN))
    await house.until(lambda: bool(house.notifier.kept))
    assert house.notifier.kept[0].startswith(f"plain.{ID}.")
    house.intake.end()
    assert await asking == b"Success"
    await house.until(lambda: house.clients == 0)
    assert house.notifier.kept == []


@in_house()
async def test_a_client_that_speaks_http_gets_an_http_answer(house: House) -> None:
    """400 at once, and the end of the connection, also after headers and a body that are not read as requests."""
    answer = await house.say(b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n/f a\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(
        b"; the socket for HTTP is none: enable s3daemon-http.socket, for an instance s3daemon-http@PORT.socket\n"
    )
    assert not house.intake.requests
    assert house.refusals.counts == {"BadRequest": 1}  # a hook's file is not delivered
    assert (await house.say(b"GET /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert house.refusals.counts.total() == 1  # a scraper with the wrong port


@in_house()
async def test_an_extended_connection_serves_several_requests(house: House) -> None:
    """One line for each request, on one connection, until the client closes it."""
    house.intake.end()
    reader, writer = await house.connect()
    for _ in range(3):
        writer.write(EXTENDED)
        assert json.loads(await reader.readline()) == {"result": "stored", "id": ID}
    writer.write(EXTENDED * 2)
    assert [json.loads(await reader.readline())["result"] for _ in range(2)] == ["stored"] * 2
    writer.close()
    await house.until(lambda: house.clients == 0)


@in_house()
async def test_an_idle_connection_is_closed_without_a_word(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two requests that is no refusal; within one it is."""
    monkeypatch.setattr(s3daemon.ingress.server, "LINE_LIMIT_S", 60.0)
    house.intake.end()
    for begun, refused in ((b"", 0), (b"{", 1)):
        reader, writer = await house.connect()
        writer.write(EXTENDED + begun)
        await reader.readline()
        assert bool(await reader.read()) is bool(refused)
        assert house.refusals.counts.total() == refused
        writer.close()


@in_house(S3DAEMON_MAX_CLIENTS="2")
async def test_half_of_the_slots_are_for_clients_that_have_a_request(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the other half a connection ends with the reply, unless the next request is there already."""
    monkeypatch.setattr(s3daemon.ingress.server, "IDLE_LIMIT_S", 60.0)
    house.intake.end()
    first, idle = await house.connect()
    idle.write(EXTENDED)
    assert json.loads(await first.readline())["result"] == "stored"
    for _ in range(2):
        reader, writer = await house.connect()
        writer.write(EXTENDED * 2)
        async with asyncio.timeout(10):
            assert (await reader.read()).count(b'"stored"') == 2
        writer.close()
    idle.write(EXTENDED)
    assert json.loads(await first.readline())["result"] == "stored"
    idle.close()


@in_house()
async def test_a_stop_waits_for_no_further_request(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection of a client that is answered meanwhile ends with its reply."""
    monkeypatch.setattr(s3daemon.ingress.server, "IDLE_LIMIT_S", 60.0)
    reader, writer = await house.connect()
    writer.write(EXTENDED)
    await house.until(lambda: bool(house.intake.requests))
    house.accepting.cancel()
    await house.server.listener.stop_reading()
    house.intake.end()
    assert json.loads(await reader.readline())["result"] == "stored"
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


@in_house()
async def test_accepted_is_said_once_the_transfer_is_durable(house: House) -> None:
    """With `"wait": false` the reply comes with the commit, not before it."""
    house.intake.ticket = house.intake.new_ticket()
    line = b'{"file": "/f", "destination": "a/b/k", "wait": false}\n'
    asking = asyncio.create_task(house.say(line, eof=True))
    await house.until(lambda: bool(house.intake.requests))
    await asyncio.sleep(0.05)
    assert not asking.done()
    house.intake.ticket.durable.set_result(None)
    assert json.loads(await asking)["result"] == "accepted"


@in_house()
async def test_a_refusal_is_one_line_in_the_form_of_the_request(house: House) -> None:
    """A bad line, a bad file, a full disk."""
    assert (await house.say(b"nonsense\n")).startswith(b"BadRequest: ")
    assert json.loads(await house.say(b"{nonsense\n", eof=True))["code"] == "BadRequest"
    house.intake.refusal = FileError("NoSuchFile", "/f: no such file")
    assert await house.say(PLAIN) == b"NoSuchFile: /f: no such file\n"
    house.intake.refusal = None
    house.intake.ticket = house.intake.new_ticket()
    error = SpoolError("SpoolFull", "no space")
    house.intake.ticket.durable.set_exception(error)
    house.intake.end(Reply.failed(error))
    assert await house.say(PLAIN) == b"SpoolFull: no space\n"
    assert house.refusals.counts == {"BadRequest": 2, "NoSuchFile": 1, "SpoolFull": 1}


@pytest.mark.parametrize(
    ("line", "known"),
    [
        (b"/data/f a/raw/night/" + b"k" * 1100 + b"\n", ("/data/f", "raw/night/" + "k" * 1100, "")),
        (b"/data/f a/raw/night/" + b"k" * 9000, ("/data/f", None, "")),
        (b"data/f a/raw/night/k\n", ("data/f", "raw/night/k", "")),
        (b'{"file": "/data/f", "destination": "a/raw/..", "tag": "E 1"}\n', ("/data/f", "raw/..", "E 1")),
        (b'{"file": "/d/\\udcff", "destination": "a/raw/k", "tag": "E1", "x": 1}\n', ("/d/\udcff", "raw/k", "E1")),
        (b'{"tag": "E1", "file": "/data/f", "destination": "a/raw/' + b"k" * 9000, ("/data/f", None, "E1")),
        (b'{"tag": "E1", "file": "/data/f", "dest\n', ("/data/f", "", "E1")),
        (b"\n", ("", "", "")),
    ],
)
@in_house()
async def test_a_refusal_has_what_can_be_read_of_its_request(
    house: House, line: bytes, known: tuple[str, str | None, str]
) -> None:
    """A long key, a bad name, a line that never ends: file, destination and tag, so that its exposure is known."""
    await house.say(line, eof=True)
    (refused,) = house.refused
    destination = refused.destination if known[1] is not None else None
    assert (refused.code, refused.file, destination, refused.tag) == ("BadRequest", *known)


@pytest.mark.parametrize("more", [PLAIN, EXTENDED, b"x"], ids=["plain", "extended", "half"])
@in_house()
async def test_a_plain_request_with_something_behind_it_is_not_carried_out(house: House, more: bytes) -> None:
    """It is refused as a whole: the connection ends with its reply, so the rest would be lost in silence."""
    assert (await house.say(PLAIN + more)).startswith(b"BadRequest: ")
    assert house.intake.requests == []


@in_house()
async def test_a_client_may_close_its_sending_side(house: House) -> None:
    """It has sent everything, and is answered."""
    house.intake.end()
    assert await house.say(PLAIN, eof=True) == b"Success"
    assert (await house.say(PLAIN[:-1], eof=True)).startswith(b"BadRequest: the request ended without a newline")


@in_house(S3DAEMON_WAIT_LIMIT="10ms")
async def test_deferred_after_the_wait_limit(house: House) -> None:
    """The client learns that its transfer is kept."""
    assert await house.say(PLAIN) == b"Deferred: kept\n"


@in_house()
async def test_a_client_counts_as_notified_of_a_failure_when_it_closed_after_it(house: House) -> None:
    """Not when it was gone before."""
    house.intake.end(Reply(Outcome.FAILED, ID, "NoSuchBucket", "no such bucket"))
    assert await house.say(PLAIN) == b"NoSuchBucket: no such bucket\n"
    await house.until(lambda: house.notified == [ID])
    reader, writer = await house.connect()
    writer.write(PLAIN)
    writer.transport.abort()
    await house.until(lambda: len(house.intake.requests) == 2 and house.clients == 0)
    assert house.notified == [ID]
    assert reader is not None


@pytest.mark.parametrize(
    "data", [b"", b"/f", b"\0\xff" * 100, b"x" * 9000, b"{" * 9000], ids=["silent", "half", "binary", "long", "braces"]
)
@in_house()
async def test_bad_clients_cost_a_bounded_time(house: House, data: bytes) -> None:
    """A client that sends no complete line is answered and disconnected."""
    answer = await house.say(data)
    assert b"BadRequest" in answer
    await house.until(lambda: house.clients == 0)


@in_house()
async def test_connections_that_close_at_once_cost_nothing(house: House) -> None:
    """The next client is served."""
    for _ in range(50):
        _, writer = await house.connect()
        writer.close()
    house.intake.end()
    assert await house.say(PLAIN) == b"Success"
    await house.until(lambda: house.clients == 0)


@in_house(S3DAEMON_MAX_CLIENTS="3")
async def test_more_clients_than_slots_wait(house: House) -> None:
    """They stay in the backlog until one is done."""
    asking = [asyncio.create_task(house.say(PLAIN)) for _ in range(10)]
    await house.until(lambda: house.clients == 3)
    await asyncio.sleep(0.05)
    assert house.clients == 3
    house.intake.end()
    assert await asyncio.gather(*asking) == [b"Success"] * 10


@in_house()
async def test_a_user_who_is_not_allowed_is_refused(house: House) -> None:
    """And accepted once a reload allows it."""
    house.intake.end()
    house.access.allow({os.geteuid() + 1})
    assert (await house.say(PLAIN)).startswith(b"NotAllowed: user ")
    assert house.intake.requests == []
    house.access.allow({os.geteuid()})
    assert await house.say(PLAIN) == b"Success"


@pytest.mark.parametrize(
    "line", [PLAIN, b'{"tag": "e"}\n', b'{"wait_for": ""}\n', b'{"tag": "e"', b"/f a/b/" + b"k" * 9000]
)
@in_house()
async def test_no_observer_sees_a_request_of_a_user_who_is_not_allowed(house: House, line: bytes) -> None:
    """Well or badly formed; it is counted. So such a user cannot fill or empty the last exposures."""
    house.access.allow({os.geteuid() + 1})
    assert await house.say(line, eof=True)
    assert (house.refusals.counts.total(), house.refused) == (1, [])


@in_house()
async def test_a_reload_changes_the_wait_limit(house: House) -> None:
    """For the next request on the same connection."""
    reader, writer = await house.connect()
    house.settings.current = replace(house.settings.current, wait_limit_s=0.01)
    writer.write(EXTENDED)
    assert json.loads(await reader.readline())["result"] == "deferred"
    writer.close()


@in_house()
async def test_no_client_is_lost_when_accepting_ends(house: House) -> None:
    """Whatever the moment: a client that is not served yet stays in the backlog, where the next process finds it."""
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
            house.accepting = asyncio.create_task(house.server.listener.accept(house.listener))
            client.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(client, 100) == b"Success", moments


@pytest.mark.parametrize("ask", [PLAIN, EXTENDED], ids=["plain", "extended"])
@pytest.mark.parametrize(
    ("works", "for_good"), [(True, False), (True, True), (False, False)], ids=["stored", "for good", "not stored"]
)
@in_house()
async def test_clients_that_wait_are_left_to_the_next_process(
    house: House, works: bool, for_good: bool, ask: bytes
) -> None:
    """If there will be one and systemd has the connection; else they are told that their transfers are kept."""
    house.notifier.works = works
    asking = asyncio.create_task(house.say(ask))
    await house.until(lambda: bool(house.intake.requests))
    await house.leave(for_good=for_good)
    left = works and not for_good
    await asyncio.wait({asking}, timeout=0.2 if left else None)
    assert asking.done() != left
    assert len(house.notifier.kept) == left
    if left:
        asking.cancel()
    else:
        assert b"eferred" in await asking


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (f"plain.{ID}.x", b"Success"),
        (f"extended.{ID}.x", b'{"result": "stored", "id": "00000000000000aa"}\n'),
        ("plain.00000000000000bb.x", b"NoSuchBucket: gone\n"),
        ("plain.00000000000000cc.x", b"Interrupted: "),
    ],
)
@in_house()
async def test_clients_of_an_earlier_process_are_answered(house: House, name: str, answer: bytes) -> None:
    """In their form: with the end of the transfer, its failure, or that no more is known of it."""
    ours, theirs = socket.socketpair()
    house.notifier.store(name, ours)
    house.server.resume(name, ours)
    house.intake.end()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    got = await loop.sock_recv(theirs, 1000)
    assert got.startswith(answer)
    assert await loop.sock_recv(theirs, 1000) == b"", "after the idle limit"
    assert not house.refusals.counts
    theirs.close()
    await house.until(lambda: house.clients == 0)
    assert house.notifier.kept == []


@in_house()
async def test_stored_is_reported_no_earlier_than_durable(house: House) -> None:
    """The reply waits for the disk although the object is stored."""
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


@in_house()
async def test_a_request_that_arrived_before_a_stop_is_answered(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the process was too busy to read it; silent clients are disconnected."""
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 0)
    reader, writer = await house.connect()
    _, silent = await house.connect()
    await house.until(lambda: house.clients == 2)
    writer.write(b"/f a/b/k\n")
    await house.server.listener.stop_reading()
    house.intake.end()
    assert await reader.read() == b"Success"
    writer.close()
    silent.close()


@in_house()
async def test_the_next_process_serves_what_came_behind_a_waiting_request(house: House) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(EXTENDED + EXTENDED)
    name = f"extended.{ID}.x"
    house.notifier.store(name, ours)
    house.server.resume(name, ours)
    house.intake.end()
    await house.until(lambda: len(house.intake.requests) == 2)
    theirs.close()


@in_house()
async def test_of_two_requests_sent_at_once_only_the_first_is_taken(house: House) -> None:
    """A process that is killed while it waits takes no other request with it."""
    reader, writer = await house.connect()
    writer.write(EXTENDED + EXTENDED[:-1])
    await house.until(lambda: bool(house.notifier.kept))
    assert house.notifier.next_bytes() == EXTENDED[:-1], "what the next process reads"
    house.intake.end()
    assert json.loads(await reader.readline())["result"] == "stored"
    writer.write(b"\n")
    assert json.loads(await reader.readline())["result"] == "stored"
    writer.close()


@pytest.mark.parametrize(("ask", "kept"), [(PLAIN, 1), (EXTENDED, 0)], ids=["plain", "extended"])
@in_house()
async def test_systemd_has_a_connection_until_its_last_reply_is_sent(
    house: House, monkeypatch: pytest.MonkeyPatch, ask: bytes, kept: int
) -> None:
    """A kill in that moment costs no answer. An extended request shall rather have none than two: others may follow."""
    seen: list[int] = []
    loop = asyncio.get_running_loop()
    sendall = loop.sock_sendall

    async def recording(sock: socket.socket, data: bytes) -> None:
        seen.append(len(house.notifier.kept))
        await sendall(sock, data)

    monkeypatch.setattr(loop, "sock_sendall", recording)
    house.intake.end()
    reader, writer = await house.connect()
    writer.write(ask)
    assert await reader.readline() or await reader.read()
    writer.close()
    await house.until(lambda: not house.notifier.kept)
    assert seen == [kept]


@in_house()
async def test_a_plain_client_that_has_its_reply_gets_no_second_one(house: House) -> None:
    """The process before was killed when it had sent it; the connection ends with it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.sendall(b"Success")
    name = f"plain.{ID}.x"
    house.notifier.store(name, ours)
    house.server.resume(name, ours)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(theirs, 1000) == b"Success"
    assert await loop.sock_recv(theirs, 1000) == b""
    theirs.close()
    assert house.notifier.kept == []
