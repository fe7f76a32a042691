"""An attempt against servers that misbehave: one PUT whatever happens, and the right error."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import threading
import traceback
from collections import Counter
from pathlib import Path

import pytest
from lab.certs import Authority
from lab.faults import continue_only, garbage, half_an_answer
from lab.keeping import ResolvingLoop, resolving
from lab.schemes import PLAIN, Scheme, tls_with
from lab.scripted import (
    Exchange,
    Script,
    answering,
    hang_up_after,
    keep,
    refusing,
    reset_after,
    scripted,
    silent_after,
)
from lab.sending import a_file, failure, in_loop, sending, settings_for

from s3daemon.errors import S3daemonError

pytestmark = pytest.mark.usefixtures("unsent_unlimited")

SMALL = 3_000
MIDDLE = 1 << 20
#: More than any buffer holds: the sender waits for the receiver.
LARGE = 12 << 20


async def too_early(exchange: Exchange) -> None:
    """Answer 200 before the body was read, and close the connection."""
    await exchange.read(1000)
    await exchange.answer(headers={"ETag": '"x"'})
    exchange.kept = False


async def too_early_with_all_in_buffers(exchange: Exchange) -> None:
    """The same when all of the body was handed to the kernel, though it was not read yet."""
    await exchange.read(1000)
    await exchange.handed_over()
    await exchange.answer()
    exchange.kept = False


async def refuse_early(exchange: Exchange) -> None:
    """Refuse before the body was read, and read no more."""
    await exchange.read(1000)
    await exchange.refuse(400, "EntityTooLarge")
    await exchange.silence()


def refuse_unread(listener: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Answer each connection's first request before its body was read, and close: a reset follows the answer.

    It ends when the listener is shut down. In a thread: in the test's loop it would never answer within a write.
    """
    while True:
        try:
            accepted = listener.accept()[0]
        except OSError:
            return
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the answer may not leave before the reset
        with contextlib.suppress(OSError), accepted if tls is None else tls.wrap_socket(accepted, True) as sock:
            if sock.recv(64 * 1024):
                sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


async def answer_without_end(exchange: Exchange) -> None:
    """Refuse with a text that never ends."""
    await exchange.read()
    await exchange.write(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/xml\r\n\r\n<Error>")
    while True:
        await exchange.write(bytes(100_000))
        await asyncio.sleep(0)  # after a reset that a write meets, asyncio's TLS takes more without a pause for ever


async def broken_xml(exchange: Exchange) -> None:
    """Refuse with a text that is not XML."""
    await exchange.read()
    await exchange.answer(400, b"<html>Bad", headers={"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("script", "code", "status", "ambiguous"),
    [
        pytest.param(hang_up_after(), "ConnectionClosed", 0, True, id="takes-all-and-hangs-up"),
        pytest.param(reset_after(), "ConnectionClosed", 0, True, id="takes-all-and-resets"),
        pytest.param(silent_after(), "NoAnswer", 0, True, id="takes-all-and-is-silent"),
        pytest.param(continue_only, "NoAnswer", 0, True, id="says-continue-only"),
        pytest.param(garbage, "BadAnswer", 0, True, id="answers-garbage"),
        pytest.param(half_an_answer, "BadAnswer", 0, True, id="hangs-up-within-the-answer"),
        pytest.param(answer_without_end, "BadAnswer", 0, True, id="answers-without-end"),
        pytest.param(hang_up_after(0), "ConnectionClosed", 0, False, id="hangs-up-at-once"),
        pytest.param(hang_up_after(100_000), "ConnectionClosed", 0, False, id="hangs-up-within-the-body"),
        pytest.param(reset_after(100_000), "ConnectionClosed", 0, False, id="resets-within-the-body"),
        pytest.param(silent_after(100_000), "Stalled", 0, False, id="stops-reading"),
        pytest.param(too_early, "BadAnswer", 0, False, id="says-200-too-early"),
        pytest.param(refuse_early, "EntityTooLarge", 400, False, id="refuses-early"),
        pytest.param(refusing(403, "AccessDenied"), "AccessDenied", 403, False, id="refuses"),
        pytest.param(refusing(503, "SlowDown"), "SlowDown", 503, True, id="asks-for-patience"),
        pytest.param(refusing(500, "InternalError"), "InternalError", 500, True, id="has-a-fault"),
        pytest.param(answering(200, b"<html/>"), "BadAnswer", 200, True, id="a-login-page"),
        pytest.param(answering(204, ETag='"x"'), "BadAnswer", 204, True, id="says-204"),
        pytest.param(answering(503), "503", 503, True, id="a-proxy-has-no-store"),
        pytest.param(answering(504), "504", 504, True, id="a-proxy-gives-up"),
        pytest.param(broken_xml, "400", 400, True, id="refuses-without-xml"),
    ],
)
@in_loop
async def test_one_put_and_the_right_error(
    tmp_path: Path, scheme: Scheme, script: Script, code: str, status: int, ambiguous: bool
) -> None:
    """Whatever a server does, it sees one request; the error is ambiguous exactly if all of the body arrived."""
    file = a_file(tmp_path / "file", LARGE)
    async with scheme.store(script) as (server, sender):
        error = await failure(sender.put(file))
        assert (error.code, error.status, error.ambiguous) == (code, status, ambiguous)
        await sender.pool.close()
        assert [seen.method for seen in server.seen] == ["PUT"]


@pytest.mark.parametrize("size", [MIDDLE, 8 << 20, 40 << 20], ids=lambda size: f"{size >> 20}MiB")
@in_loop
async def test_an_answer_is_read_though_a_reset_follows_it(tmp_path: Path, scheme: Scheme, size: int) -> None:
    """Each time: the body is being written when the reset comes, and a failed write must not end the connection yet."""
    file = a_file(tmp_path / "file", size)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse_unread, args=(listener, scheme.tls))
        thread.start()
        url = f"{'https' if scheme.tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with sending(settings_for(url, **scheme.settings)) as sender:
                assert Counter([(await failure(sender.put(file))).code for _ in range(60)]) == {"403": 60}
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@in_loop
async def test_a_success_before_the_whole_body_is_an_error(tmp_path: Path, scheme: Scheme) -> None:
    """What was handed to the kernel is not stored yet: a 200 counts once the peer has acknowledged all of the body."""
    async with scheme.store(too_early_with_all_in_buffers) as (server, sender):
        error = await failure(sender.put(a_file(tmp_path / "file", MIDDLE)))
        assert (error.code, error.ambiguous) == ("BadAnswer", False)
        assert not server.puts[0].whole


@pytest.mark.parametrize("status", [200, 503])
@in_loop
async def test_a_body_that_was_answered_too_early_does_not_arrive_later(
    tmp_path: Path, scheme: Scheme, status: int
) -> None:
    """What the kernel still holds of it when the attempt ends is dropped, and the next attempt does not follow it."""
    over = asyncio.Event()

    async def answer_first(exchange: Exchange) -> None:
        if len(exchange.server.puts) > 1:
            await keep(exchange)
            return
        await exchange.read(1000)
        await exchange.handed_over()
        await exchange.answer(status)
        await over.wait()
        await exchange.read()

    async with scheme.store(answer_first) as (server, sender):
        file = a_file(tmp_path / "file", MIDDLE)
        await failure(sender.put(file))
        await sender.put(file)
        over.set()
        await server.until(lambda: server.puts[0].over)
        assert [seen.whole for seen in server.puts] == [False, True]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_loop
async def test_redirects_are_not_followed(tmp_path: Path, status: int) -> None:
    """A redirect without S3's document is not a store's: the host that it names gets no connection, the redirecting
    one no second request. The error names it: it tells which proxy answered.
    """
    file = a_file(tmp_path / "file", SMALL)
    async with scripted() as other, PLAIN.store() as (server, sender):
        server.put = answering(status, Location=f"{other.url}/bucket/key?signature", x_amz_bucket_region="elsewhere")
        error = await failure(sender.put(file))
        assert (error.code, error.status, error.ambiguous) == ("BadAnswer", status, True)
        assert f"; it redirects to {other.url}/bucket/key, which is not followed: " in error.text
        assert [seen.method for seen in server.seen] == ["PUT"]
        assert not other.connections


@in_loop
async def test_a_store_that_stops_reading_is_noticed_in_time(tmp_path: Path) -> None:
    """The attempt ends within a second after the limit, and not before it."""
    now = asyncio.get_running_loop().time
    stopped: list[float] = []

    async def stop(exchange: Exchange) -> None:
        await exchange.read(100_000)
        stopped.append(now())
        await exchange.silence()

    async with PLAIN.store(stop, stall_timeout_s=2.0) as (_, sender):
        error = await failure(sender.put(a_file(tmp_path / "file", LARGE)))
        assert 2.0 <= now() - stopped[0] <= 3.0
    assert error.code == "Stalled"
    assert "took no byte for 2 s" in error.text


@in_loop
async def test_slow_is_not_stalled(tmp_path: Path) -> None:
    """A store that reads something now and then is waited for, longer than any limit."""
    file = a_file(tmp_path / "file", LARGE)

    async def slowly(exchange: Exchange) -> None:
        for part in range(1, 9):
            await exchange.read(part * LARGE // 8)
            await asyncio.sleep(0.3)
        await exchange.answer(headers={"ETag": '"x"'})

    async with PLAIN.store(slowly) as (server, sender):
        await sender.put(file)
        assert server.puts[0].whole


@in_loop
async def test_a_slow_answer_is_waited_for(tmp_path: Path) -> None:
    """Once the body has arrived the limit of the answer counts, not that of a stall."""

    async def late(exchange: Exchange) -> None:
        await exchange.read()
        await asyncio.sleep(2.0)
        await exchange.answer(headers={"ETag": '"x"'})

    async with PLAIN.store(late, answer_timeout_s=30.0) as (_, sender):
        await sender.put(a_file(tmp_path / "file", SMALL))


@in_loop
async def test_retry_after_is_in_the_error(tmp_path: Path) -> None:
    """So that the next attempt can wait for as long as the store asked."""
    async with PLAIN.store(refusing(503, "SlowDown", Retry_After="7")) as (_, sender):
        assert (await failure(sender.put(a_file(tmp_path / "file", SMALL)))).retry_after == 7.0


@in_loop
async def test_a_refused_connection(tmp_path: Path) -> None:
    """The error says so, and nothing can have arrived."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with sending(settings_for(f"http://127.0.0.1:{unused.getsockname()[1]}")) as sender:
            error = await failure(sender.put(a_file(tmp_path / "file", 0)))
    assert (error.code, error.ambiguous) == ("ConnectionFailed", False)


@in_loop
async def test_a_handshake_that_never_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts the connection and never speaks TLS ends the attempt at the limit for connecting."""
    async with scripted(keep) as server:
        url = server.url.replace("http:", "https:")
        monkeypatch.setattr(server, "take", lambda *_: None)
        async with sending(settings_for(url, connect_timeout_s=0.2)) as sender:
            error = await failure(sender.put(a_file(tmp_path / "file", SMALL)))
    assert (error.code, error.ambiguous) == ("ConnectTimeout", False)


@in_loop
async def test_a_server_without_tls(tmp_path: Path) -> None:
    """A server that answers the handshake with something else gets no request."""

    async def shout(exchange: Exchange) -> None:
        raise AssertionError("it got a request")

    async with scripted(shout) as server, sending(settings_for(server.url.replace("http:", "https:"))) as sender:
        attempt = asyncio.create_task(sender.put(a_file(tmp_path / "file", SMALL)))
        await server.until(lambda: server.connections)
        server.connections[0].writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        error = await failure(attempt)
    assert (error.code, error.ambiguous) == ("TLSFailed", False)


@in_loop
async def test_a_certificate_that_is_not_trusted(tmp_path: Path, certs: Authority) -> None:
    """Nothing is sent if the authority is unknown, or the name is another one."""
    stranger = ("stranger", (), None, "name the PEM file of its authority in AWS_CA_BUNDLE")
    other_name = ("other-name", ("DNS:elsewhere",), certs.ca, "must have a name that the certificate has")
    for name, subjects, trusted, cure in (stranger, other_name):
        async with tls_with(certs.issue(name, *subjects), trusted).store() as (server, sender):
            error = await failure(sender.put(a_file(tmp_path / "file", SMALL)))
            assert (error.code, error.ambiguous) == ("TLSRefused", False)
            assert cure in error.text
        assert not server.seen


@pytest.mark.parametrize("answers", [True, False])
@resolving
async def test_a_name_that_does_not_resolve(loop: ResolvingLoop, tmp_path: Path, answers: bool) -> None:
    """A name server that does not know it, or does not answer, fails the attempt, and the next one likewise."""
    loop.answers = answers
    async with sending(settings_for("http://store.example", connect_timeout_s=0.1)) as sender:
        for _ in range(2):
            error = await failure(sender.put(a_file(tmp_path / "file", SMALL)))
            assert (error.code, error.ambiguous) == ("NameNotResolved", False)
            assert error.text.startswith("the endpoint's name does not resolve")


SECRETS = ("s3cretsesame", "t0kensesame")


async def quoting(exchange: Exchange) -> None:
    """Refuse a signature as S3 does: quote all that was signed."""
    await exchange.read()
    quoted = "\n".join(f"{name}:{value}" for name, value in exchange.headers.items())
    text = f"<Code>SignatureDoesNotMatch</Code><Message>no</Message><CanonicalRequest>{quoted}</CanonicalRequest>"
    answer = f"<Error>{text}</Error>".encode()
    await exchange.answer(403, answer, headers={"Content-Type": "application/xml"})


@pytest.mark.parametrize("script", [quoting, garbage, hang_up_after(), half_an_answer])
@in_loop
async def test_secrets_are_in_no_error(tmp_path: Path, script: Script) -> None:
    """Neither the error nor its traceback shows a secret, though the server may quote the request."""
    async with PLAIN.store(script, secret_key=SECRETS[0], session_token=SECRETS[1]) as (server, sender):
        error: S3daemonError = await failure(sender.put(a_file(tmp_path / "file", SMALL)))
        assert server.puts[0].headers["x-amz-security-token"] == SECRETS[1]
    shown = "".join(traceback.format_exception(error)) + repr(error) + error.text + error.code
    assert not any(secret in shown for secret in SECRETS)


@in_loop
async def test_a_connection_is_usable_after_any_error(tmp_path: Path) -> None:
    """After any failure the next attempt over the same connection succeeds."""
    file = a_file(tmp_path / "file", MIDDLE)
    scripts = itertools.cycle([hang_up_after(1000), garbage, too_early, refusing(503, "SlowDown"), refuse_early])
    async with PLAIN.store() as (server, sender):
        for _ in range(5):
            server.put = next(scripts)
            await failure(sender.put(file))
            server.put = keep
            await sender.put(file)
