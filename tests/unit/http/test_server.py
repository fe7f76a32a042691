"""The HTTP server over a Unix socket, with stand-ins for handlers: what clients get, and how little they can use."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path

import pytest
from aiohttp import web
from fake_host import settings_for
from lab.serving import Run, SocketHouse, in_house, run_with

import s3daemon.http.server
import s3daemon.ingress.listener
from s3daemon.config.settings import SettingsHolder
from s3daemon.http.server import Action, HttpServer
from s3daemon.http.upload import MAX_FORM, Answer, Form, message_of

GET = b"GET /page HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
HEAD = b"POST /act HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: "
KEPT_GET, KEPT_POST = (text.replace(b"Connection: close\r\n", b"") for text in (GET, HEAD + b"4\r\n\r\nbody"))
POST = HEAD + b"4\r\n\r\nbody"


class House(SocketHouse):
    """A server on a socket in a directory."""

    def __init__(self, directory: Path, **changes: str) -> None:
        super().__init__(directory)
        self.now = 1000.0
        self.acted, self.taken = list[bytes](), 0
        self.faults = list[str]()
        self.go_on = asyncio.Event()
        self.go_on.set()
        settings = SettingsHolder(settings_for("http://store", **changes))
        pages = {"/page": self.page, "/html": self.html, "/bug": self.bug, "/large": self.large}
        self.actions: dict[str, Action] = {"/act": self.act}
        self.server = HttpServer(settings, settings.current.max_clients, pages, self.actions, clock=lambda: self.now)
        self.accepting = asyncio.create_task(self.server.listener.accept(self.listener))

    async def page(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="a page")

    async def html(self, _: web.BaseRequest) -> web.Response:
        return web.Response(text="<script>1</script>", content_type="text/html")

    async def bug(self, _: web.BaseRequest) -> web.Response:
        raise ValueError("something secret")

    async def large(self, _: web.BaseRequest) -> web.Response:
        return web.Response(body=bytes(10_000_000))

    async def act(self, form: Form) -> Answer:
        if form.fault is not None:
            self.faults.append(form.fault.text)
            return Answer(HTTPStatus.BAD_REQUEST, message_of(form.fault))
        self.acted.append(form.body)
        await self.go_on.wait()
        return Answer(HTTPStatus.OK, "done", taken=self.took)

    def took(self) -> None:
        self.taken += 1

    async def close(self) -> None:
        self.accepting.cancel()
        self.go_on.set()
        await self.server.listener.stop_reading()
        await self.server.listener.drain()
        self.listener.close()

    @property
    def clients(self) -> int:
        return self.server.listener.clients


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test with a House; limits are short."""
    for name in ("READ_LIMIT_S", "REPLY_LIMIT_S", "IDLE_LIMIT_S"):
        monkeypatch.setattr(s3daemon.http.server, name, 0.3)
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 0.3)

    return lambda test, **changes: run_with(lambda: House(tmp_path, **changes), test)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else 0


@in_house()
async def test_every_answer_says_who_may_read_it(house: House) -> None:
    """It is not to be cached or read by other sites. A client that asks for it is disconnected after its answer."""
    answer = await house.say(GET)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\na page")
    head = answer.partition(b"\r\n\r\n")[0].lower()
    for line in (b"connection: close", b"cache-control: no-store", b"x-content-type-options: nosniff"):
        assert line in head
    assert b"access-control" not in head
    assert b"python" not in head
    head = await house.say(GET.replace(b"GET", b"HEAD"))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")


@in_house()
async def test_html_has_its_own_content_security_policy(house: House) -> None:
    answer = await house.say(GET.replace(b"/page", b"/html"))
    assert b"Content-Security-Policy: default-src 'none'; script-src 'sha256-" in answer


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b"GET /none", 404), (b"GET /", 404), (b"GET /page/", 404), (b"GET //page", 404), (b"GET /page?x=1", 200),
        (b"GET http://localhost/page", 200), (b"POST /page", 405), (b"PUT /page", 405), (b"OPTIONS /act", 405),
        (b"GET /act", 405), (b"DELETE /none", 404), (b"CONNECT localhost:80", 404),
    ],
)  # fmt: skip
@in_house()
async def test_paths_and_methods(house: House, line: bytes, wanted: int) -> None:
    answer = await house.say(GET.replace(b"GET /page", line))
    assert status(answer) == wanted
    assert (b"\r\nAllow: " in answer) == (wanted == 405)
    assert not house.acted


@in_house()
async def test_a_form_to_another_path_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """A hook's file is not delivered. Its answer says where forms go; one entry a minute has the path."""
    for _ in range(2):
        answer = await house.say(POST.replace(b"/act", b"/acts"))
        assert (status(answer), answer.count(b"there is no POST /acts; forms go to /act")) == (404, 2)
    assert status(await house.say(GET.replace(b"/page", b"/favicon.ico"))) == 404
    reason = "there is no POST /acts; forms go to /act"
    assert [one.getMessage() for one in caplog.records] == [f"refused POST /acts over HTTP: {reason}"]


@pytest.mark.parametrize(
    "header",
    [b"Host: evil.example", b"Host: localhost\r\nOrigin: null", b"Host: localhost\r\nSec-Fetch-Site: cross-site"],
)
@in_house()
async def test_other_sites_are_refused(house: House, caplog: pytest.LogCaptureFixture, header: bytes) -> None:
    """403 before anything else is checked, for reads and for forms; it is logged once a minute, with a count."""
    for request in (GET, POST, POST, GET.replace(b"/page", b"/none")):
        assert status(await house.say(request.replace(b"Host: localhost", header))) == 403
    assert not house.acted
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("refused GET /page over HTTP: ")
    house.now += 60
    await house.say(POST.replace(b"Host: localhost", header))
    assert len(caplog.records) == 2
    assert caplog.records[1].getMessage().endswith(" (3 more like this not logged)")


@in_house(S3DAEMON_HTTP_NAMES="node7")
async def test_further_names_of_the_server_are_accepted(house: House) -> None:
    assert status(await house.say(GET.replace(b"localhost", b"node7:99"))) == 200


@in_house()
async def test_a_form_is_answered(house: House) -> None:
    """The handler gets the whole body, sent in one piece or in chunks; it learns that the client took its answer."""
    assert (await house.say(POST)).endswith(b"\r\n\r\n" + Answer(HTTPStatus.OK, "done").encode())
    chunked = HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n")
    assert status(await house.say(chunked + b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n")) == 200
    assert house.acted == [b"body", b"body"]
    await house.until(lambda: house.taken == 2)


@pytest.mark.parametrize("method", [b"PUT", b"PATCH"])
@in_house()
async def test_a_form_may_come_by_put_or_patch(house: House, method: bytes) -> None:
    """As by POST."""
    assert status(await house.say(POST.replace(b"POST", method))) == 200
    assert house.acted == [b"body"]


@in_house()
async def test_a_connection_is_kept_for_further_requests(house: House) -> None:
    """Forms and pages in turn, also several sent at once; each failed form counts as reported with its answer."""
    reader, writer = await house.connect()
    for number in range(3):
        for request, end in ((KEPT_POST, b'"task": null}\n'), (KEPT_GET, b"a page")):
            writer.write(request)
            answer = await reader.readuntil(end)
            assert status(answer) == 200
            assert b"connection: close" not in answer.lower()
        await house.until(partial(lambda n: house.taken == n + 1, number))
    writer.write(KEPT_GET * 3)
    for _ in range(3):
        assert status(await reader.readuntil(b"a page")) == 200
    assert house.clients == 1
    writer.close()


@in_house()
async def test_an_idle_connection_is_closed_after_a_while(house: House) -> None:
    answer = await house.say(KEPT_GET)
    assert answer.endswith(b"a page")


@in_house()
async def test_a_slow_second_request_is_refused(house: House) -> None:
    """It has as long as a first one; its connection ends."""
    reader, writer = await house.connect()
    writer.write(KEPT_GET)
    await reader.readuntil(b"a page")
    writer.write(KEPT_POST[:-1])
    with suppress(ConnectionError):
        assert status(await reader.read()) == 400
    await house.until(lambda: house.clients == 0)
    assert (house.acted, len(house.faults)) == ([], 1)
    writer.close()


@in_house()
async def test_a_further_request_that_comes_byte_by_byte_is_disconnected(house: House) -> None:
    """Its time begins with the first byte, and no other one renews it."""
    reader, writer = await house.connect()
    writer.write(KEPT_GET)
    await reader.readuntil(b"a page")
    ending = asyncio.create_task(reader.read())
    for byte in KEPT_GET[:20]:
        writer.write(bytes([byte]))
        await asyncio.wait([ending], timeout=0.1)
    assert ending.done()
    with suppress(ConnectionError):
        assert await ending == b""
    writer.close()


@in_house(S3DAEMON_MAX_CLIENTS="3")
async def test_no_connection_is_kept_while_slots_are_short(house: House) -> None:
    """Two of three in use: the next answer ends its connection, so that no client waits for an idle one."""
    _, idle = await house.connect()
    await house.until(lambda: house.clients == 1)
    answer = await house.say(KEPT_GET)
    assert b"\r\nConnection: close\r\n" in answer
    idle.close()


@in_house()
async def test_a_stop_closes_idle_connections_and_lets_others_end(house: House) -> None:
    """At once for one that waits for a request; after the answer for one whose second request has been read."""
    idle, writer = await house.connect()
    busy, other = await house.connect()
    for reader, asking in ((idle, writer), (busy, other)):
        asking.write(KEPT_GET)
        await reader.readuntil(b"a page")
    house.go_on.clear()
    other.write(KEPT_POST)
    await house.until(lambda: bool(house.acted))
    house.accepting.cancel()
    await house.server.listener.stop_reading()
    assert await idle.read() == b""
    house.go_on.set()
    answer = await busy.read()
    assert status(answer) == 200
    assert b"\r\nConnection: close\r\n" in answer
    await house.server.listener.drain()
    writer.close()
    other.close()


@in_house()
async def test_a_client_that_asks_whether_it_may_send_a_body_may_at_once(house: House) -> None:
    """curl waits a second for this before it sends a large form. HTTP/1.0 has no such answer."""
    reader, writer = await house.connect()
    writer.write(HEAD + b"4\r\nExpect: 100-continue\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"body")
    assert status(await reader.read()) == 200
    assert house.acted == [b"body"]
    writer.close()
    old = HEAD.replace(b"1.1", b"1.0") + b"4\r\nExpect: 100-continue\r\n\r\nbody"
    assert status(await house.say(old)) == 200


@pytest.mark.parametrize(("encoding", "wanted"), [(b"gzip", 400), (b"br", 400), (b"Identity", 200), (b"", 200)])
@in_house()
async def test_a_form_that_is_compressed_is_refused(house: House, encoding: bytes, wanted: int) -> None:
    answer = await house.say(HEAD + b"4\r\nContent-Encoding: " + encoding + b"\r\n\r\nbody")
    assert status(answer) == wanted
    refused = [f"the form is encoded (Content-Encoding: {encoding.decode()}); send it as it is"]
    assert house.faults == (refused if wanted == 400 else [])
    assert status(await house.say(GET[:-2] + b"Content-Encoding: gzip\r\n\r\n")) == 200


@in_house()
async def test_a_page_is_served_without_a_host(house: House) -> None:
    """A balancer's HTTP/1.0 has none; the connection ends. A form needs one."""
    answer = await house.say(b"GET /page HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    assert answer.endswith(b"a page")
    assert status(await house.say(POST.replace(b"Host: localhost\r\n", b"").replace(b"1.1", b"1.0"))) == 403


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
@in_house()
async def test_large_forms_are_refused(house: House, declared: bool) -> None:
    """400 with a reason, for a client that sends a file instead of its name; by the handler, which logs it."""
    size = MAX_FORM + 1
    request = HEAD + b"%d\r\n\r\n" % size + bytes(size)
    if not declared:
        head = HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n")
        request = head + b"%x\r\n" % size + bytes(size) + b"\r\n0\r\n\r\n"
    answer = await house.say(request)
    assert status(answer) == 400
    assert b"send a file's path, not its content" in answer
    assert [text.partition(" bytes")[0] for text in house.faults] == [f"a form has at most {MAX_FORM}"]
    assert not house.acted


@pytest.mark.parametrize("ends", [False, True], ids=["waits", "sends no more"])
@in_house()
async def test_a_form_that_does_not_come_whole_is_refused(house: House, ends: bool) -> None:
    """In time, with a reason, by the handler: a hook hears why its file is not stored, and the operator sees it."""
    answer = await house.say(HEAD + b"5\r\n\r\nbody", eof=ends)
    assert status(answer) == 400
    reason = "the request ended early" if ends else "no complete request came within 0.3 s"
    assert house.faults == [reason]
    assert f"\r\nX-Error: bad request: {reason}\r\n".encode() in answer
    assert not house.acted


@pytest.mark.parametrize("together", [False, True])
@in_house()
async def test_a_client_that_leaves_within_a_form_gives_its_slot_back_at_once(house: House, together: bool) -> None:
    """No limit has to end the connection, whether or not the end comes with the last bytes."""
    _, writer = await house.connect()
    writer.write(HEAD + b"5\r\n\r\nbody")
    if not together:
        await house.until(lambda: house.clients == 1)
    writer.close()
    async with asyncio.timeout(s3daemon.http.server.READ_LIMIT_S / 2):
        await house.until(lambda: house.faults == ["the request ended early"])
        await house.until(lambda: house.clients == 0)


@in_house()
async def test_a_page_with_a_body_that_does_not_come_whole_is_refused(house: House) -> None:
    answer = await house.say(GET[:-2] + b"Content-Length: 5\r\n\r\nbody")
    assert (status(answer), house.faults) == (400, [])


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GET", GET[:-2], HEAD + b"5\r\n\r\nbody", b"\0\xff" * 100, b"nonsense\r\n\r\n", b"/f a/bucket/k\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, b"GET /" + b"x" * 20_000, GET[:-2] + b"X: y\r\n" * 5000,
        HEAD.replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\n\r\n") + b"zz\r\n",
        HEAD + b"4\r\nContent-Length: 5\r\n\r\nbody",
    ],
    ids=["silent", "method", "half", "half a body", "binary", "nonsense", "the wire's", "long header", "long line",
         "many headers", "bad chunk", "two lengths"],
)  # fmt: skip
@in_house()
async def test_bad_clients_cost_a_bounded_time(house: House, caplog: pytest.LogCaptureFixture, data: bytes) -> None:
    """A silent, slow or malformed client is disconnected, with an answer like any other's.

    Unless it was silent or has come to a handler it is logged, once a minute.
    """
    await house.say(data)
    answer = await house.say(data)
    if answer not in (b"", b"reset"):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert status(answer) == 400
        assert b"\r\nServer: s3daemon" in head
        assert b"\r\nX-Error: " + json.loads(body)["msg"].encode() in head
    await house.until(lambda: house.clients == 0)
    assert status(await house.say(GET)) == 200
    reason = "it is not HTTP, or its header is too long" if status(answer) else "its header did not come whole"
    wanted = [f"refused a request over HTTP: {reason}"] if data and not house.faults else []
    assert [one.getMessage() for one in caplog.records] == wanted


@in_house()
async def test_a_line_break_behind_a_body_begins_no_request(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """Some clients send one that the length does not count."""
    reader, writer = await house.connect()
    writer.write(KEPT_POST + b"\r\n")
    assert status(await reader.readuntil(b"}\n")) == 200
    writer.write(b"\r\n")
    writer.close()
    await house.until(lambda: house.clients == 0)
    reader, writer = await house.connect()
    writer.write(HEAD.replace(b"Host: localhost", b"Host: evil") + b"100\r\n\r\n")
    assert status(await reader.readuntil(b"}\n")) == 403
    writer.write(bytes(50))  # it is not read
    writer.close()
    await house.until(lambda: house.clients == 0)
    assert [one.getMessage()[:22] for one in caplog.records] == ["refused POST /act over"]


@in_house()
async def test_a_client_that_does_not_take_its_answer_is_disconnected(house: House) -> None:
    """Ten megabytes are more than a socket's buffer holds."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(house.path)
        client.sendall(GET.replace(b"/page", b"/large"))
        await house.until(lambda: house.clients == 1)
        await house.until(lambda: house.clients == 0)


@in_house()
async def test_a_request_is_carried_out_though_its_client_disconnects(house: House) -> None:
    """It keeps its slot meanwhile; its answer counts as not taken."""
    house.go_on.clear()
    _, writer = await house.connect()
    writer.write(POST)
    await house.until(lambda: bool(house.acted))
    writer.close()
    await asyncio.sleep(0.05)
    assert house.clients == 1
    house.go_on.set()
    await house.until(lambda: house.clients == 0)
    assert house.taken == 0


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("request_", [KEPT_GET, KEPT_POST], ids=["GET", "POST"])
@in_house()
async def test_a_client_that_sends_no_more_gets_its_answer(house: House, request_: bytes, waits: bool) -> None:
    """Then the connection ends. Nothing tells it from one that is gone, so the answer does not count as taken."""
    house.go_on.clear()
    reader, writer = await house.connect()
    writer.write(request_)
    if waits:
        await asyncio.sleep(0.02)
    writer.write_eof()
    await asyncio.sleep(0.02)
    house.go_on.set()
    assert status(await reader.read()) == 200
    assert house.taken == 0
    writer.close()
    await house.until(lambda: house.clients == 0)


@pytest.mark.parametrize("data", [b"", GET[:-2], KEPT_GET], ids=["before a request", "within it", "after its answer"])
@in_house()
async def test_a_client_that_closes_gives_its_slot_back_at_once(house: House, data: bytes) -> None:
    """Between requests as within one: no limit has to end the connection."""
    reader, writer = await house.connect()
    writer.write(data)
    if data is KEPT_GET:
        await reader.readuntil(b"a page")
    await house.until(lambda: house.clients == 1)
    writer.close()
    async with asyncio.timeout(s3daemon.http.server.IDLE_LIMIT_S / 2):
        await house.until(lambda: house.clients == 0)


@in_house()
async def test_connections_that_close_at_once_cost_nothing(house: House) -> None:
    for _ in range(50):
        _, writer = await house.connect()
        writer.close()
    assert status(await house.say(GET)) == 200


@in_house(S3DAEMON_MAX_CLIENTS="3")
async def test_more_clients_than_slots_wait(house: House) -> None:
    """They stay in the backlog until one is done."""
    house.go_on.clear()
    asking = [asyncio.create_task(house.say(POST)) for _ in range(10)]
    await house.until(lambda: len(house.acted) == 3)
    await asyncio.sleep(0.05)
    assert house.clients == len(house.acted) == 3
    house.go_on.set()
    assert {status(await one) for one in asking} == {200}


@in_house()
async def test_a_bug_is_logged_and_answered_with_500(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the traceback, the client has not."""
    answer = await house.say(GET.replace(b"/page", b"/bug"))
    assert status(answer) == 500
    assert b"Internal: a bug in the daemon: ValueError" in answer
    assert b"secret" not in answer
    assert "a bug while answering /bug" in caplog.text
    assert "something secret" in caplog.text


@in_house()
async def test_a_stop_lets_requests_be_finished(house: House) -> None:
    """A silent client is disconnected, one that sent half may send the rest, one that waits gets its answer."""
    house.go_on.clear()
    waiting = asyncio.create_task(house.say(POST))
    silent = asyncio.create_task(house.say(b""))
    reader, writer = await house.connect()
    writer.write(GET[:10])
    await house.until(lambda: house.clients == 3)
    house.accepting.cancel()
    stopping = asyncio.create_task(house.server.listener.stop_reading())
    await asyncio.sleep(0.05)
    writer.write(GET[10:])
    assert status(await reader.read()) == 200
    writer.close()
    await stopping
    assert await silent in (b"", b"reset")
    assert not waiting.done()
    leaving = asyncio.create_task(house.server.listener.drain())
    house.go_on.set()
    await leaving
    assert status(await waiting) == 200


@in_house()
async def test_a_stop_disconnects_no_client_whose_request_was_read(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the stop comes in the moment in which its request is handled."""
    monkeypatch.setattr(s3daemon.ingress.listener, "STOP_READ_TIMEOUT_S", 0)
    before = house.act

    async def act(form: Form) -> Answer:
        await house.server.listener.stop_reading()
        await asyncio.sleep(0.05)  # else the answer is out before anything can be hung up on
        return await before(form)

    house.actions["/act"] = act
    assert status(await house.say(POST)) == 200


@in_house()
async def test_a_client_that_is_left_to_the_next_process_gets_nothing_from_this_one(house: House) -> None:
    """Its connection stays open, since systemd has it too, and the next process writes the whole answer."""
    kept: list[socket.socket] = []

    async def leave(form: Form) -> None:
        kept.append(form.sock.dup())

    house.actions["/act"] = leave
    reader, writer = await house.connect()
    writer.write(b"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    await house.until(lambda: bool(kept) and house.clients == 0)
    assert not reader.at_eof()

    async def answer() -> Answer:
        return Answer(HTTPStatus.BAD_GATEWAY, "AccessDenied: no", taken=house.took)

    house.server.resume(kept[0], answer)
    got = await reader.read()
    writer.close()
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
    assert b"\r\nX-Error: AccessDenied: no\r\n" in head
    assert f"\r\nContent-Length: {len(body)}\r\n".encode() in head + b"\r\n"
    assert b"Connection: close" in head
    assert json.loads(body)["code"] == 502
    await house.until(lambda: house.taken == 1)
