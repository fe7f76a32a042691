"""Check asks the store about its connections and the keys, and puts no object that the daemon would refuse."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fake_host import Looked, refusal, serving, settings_for
from lab.scripted import Exchange, answering, keep, scripted
from lab.sending import in_loop

from s3daemon.commands.check.store import StoreChecks
from s3daemon.model.files.source import SMALL_BYTES

PAGE = b'HTTP/1.1 200 OK\r\nETag: "abc"\r\nContent-Length: 13\r\n\r\n<html></html>'


def web_page(status: int) -> bytes:
    """Make an answer of a web server that is not S3."""
    body = "<html>not here</html>"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def checked(tmp_path: Path, answer: bytes, target: str = "", **variables: str) -> Looked:
    """Run the checks with a store that gives every request that answer."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(answer) as url:
            await StoreChecks(settings_for(url, **variables), looked.findings).run(target)

    asyncio.run(run())
    return looked


@pytest.mark.parametrize(
    ("target", "allowed", "found"),
    [
        ("elsewhere/x", "here,there", "FAIL bucket elsewhere is not in S3DAEMON_ALLOWED_BUCKETS"),
        ("b/\n", "", "FAIL bucket the key "),
    ],
)
def test_target_refused(tmp_path: Path, target: str, allowed: str, found: str) -> None:
    """What the daemon would refuse is not put."""
    looked = checked(tmp_path, refusal(403, "AccessDenied"), target, S3DAEMON_ALLOWED_BUCKETS=allowed)
    assert looked.one("FAIL").startswith(found)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (refusal(403, "AccessDenied"), "note credentials the keys may not list buckets, which is not needed"),
        (PAGE, "FAIL credentials BadAnswer, the answer with status 200 is not S3's ListAllMyBucketsResult"),
        (refusal(403, "SignatureDoesNotMatch"), "FAIL credentials SignatureDoesNotMatch, "),
        (refusal(405, "MethodNotAllowed"), "note credentials MethodNotAllowed: the store does not list buckets"),
        (refusal(501, "NotImplemented"), "note credentials NotImplemented: the store does not list buckets"),
        (web_page(404), "FAIL credentials 404, the store answered 404; without an S3 error: a proxy or"),
        (web_page(405), "FAIL credentials 405, the store answered 405; without an S3 error: a proxy or"),
        (web_page(501), "FAIL credentials 501, the store answered 501"),
        (refusal(503, "SlowDown"), "FAIL credentials SlowDown, the store answered 503; the daemon would go on trying"),
        (refusal(403, "QuotaExceeded"), "FAIL credentials QuotaExceeded, "),
        (refusal(403, "RequestTimeTooSkewed"), "FAIL credentials RequestTimeTooSkewed, the store answered 403; set"),
        (b"220 mail.example.org ESMTP\r\n", "FAIL credentials "),
    ],
)
def test_answers(tmp_path: Path, answer: bytes, found: str) -> None:
    """What each answer says of the keys."""
    looked = checked(tmp_path, answer, S3DAEMON_CONNECT_TIMEOUT="300ms")
    assert looked.one("credentials").startswith(found)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (refusal(403, "AccessDenied"), "ok keep-alive the store keeps a connection open after GET /"),
        (
            refusal(403, "AccessDenied").replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
            "warn keep-alive the store closes each connection after its answer",
        ),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "warn keep-alive the store closes each connection"),
    ],
    ids=["kept", "close", "http-1.0"],
)
def test_connections_are_kept_or_not(tmp_path: Path, answer: bytes, found: str) -> None:
    """Whether there can be warm connections at all; a warning says what to do."""
    assert checked(tmp_path, answer).one(" keep-alive ").startswith(found)


def test_a_page_instead_of_a_store(tmp_path: Path) -> None:
    """Nothing is known to be stored; what may be there is named all the same."""
    looked = checked(tmp_path, PAGE, "bucket")
    assert looked.one("FAIL bucket").startswith("FAIL bucket BadAnswer, ")
    assert " may be there; delete it with another client" in looked.one("could not be deleted, BadAnswer")


def test_another_server_answers_for_the_root_only(looked: Looked) -> None:
    """The daemon stores there, so the check does not fail for that; without an object nothing is known."""

    async def page(exchange: Exchange) -> None:
        """Answer as a proxy that has a page of its own at /, and passes all else on."""
        await (answering(200, b"<html></html>") if exchange.target.partition("?")[0] == "/" else keep)(exchange)

    async def run(target: str) -> None:
        async with scripted(other=page) as store:
            await StoreChecks(settings_for(store.url), looked.findings).run(target)

    asyncio.run(run("bucket"))
    assert looked.one("credentials").startswith("warn credentials BadAnswer, ")
    assert looked.one("ok bucket").startswith("ok bucket stored in ")
    assert not looked.findings.failed
    asyncio.run(run(""))
    assert looked.findings.failed


@pytest.mark.parametrize(
    ("verify", "how"), [("auto", "verified by its ETag"), ("off", "of the right length; no MD5 was compared")]
)
@in_loop
async def test_it_is_said_how_the_object_was_verified(looked: Looked, verify: str, how: str) -> None:
    async with scripted(other=keep) as store:
        await StoreChecks(settings_for(store.url, S3DAEMON_VERIFY=verify), looked.findings).run("bucket")
    assert looked.one("ok bucket stored").endswith(f" s, {how}")


@in_loop
async def test_the_object_fills_packets_of_any_size(looked: Looked) -> None:
    """A path that drops large ones lets all else pass, so that everything would seem to work."""
    async with scripted(other=keep) as store:
        await StoreChecks(settings_for(store.url), looked.findings).run("bucket")
        (content,) = store.objects.values()
    assert 3 * 9000 < len(content) <= SMALL_BYTES


def test_nothing_more_is_asked_of_a_store_that_says_nothing(tmp_path: Path) -> None:
    """An operator should not wait for the end of S3DAEMON_ANSWER_TIMEOUT, which is a minute."""
    looked = checked(tmp_path, b"", "bucket/x", S3DAEMON_CONNECT_TIMEOUT="100ms", S3DAEMON_STALL_TIMEOUT="1s")
    assert looked.one("keep-alive").startswith("note keep-alive not checked: an unsigned request got no answer")
    assert looked.one("FAIL").startswith("FAIL credentials NoAnswer, ")
    assert looked.one("FAIL").endswith("; no request was answered, so no object is put")
    assert not any(" bucket " in line for line in looked.lines)


def test_all_is_denied(tmp_path: Path) -> None:
    """Some stores refuse wrong keys so: while they have stored nothing, the daemon holds its queue."""
    looked = checked(tmp_path, refusal(403, "AccessDenied"), "bucket")
    assert looked.one("FAIL bucket").endswith("; the daemon would hold its queue")
