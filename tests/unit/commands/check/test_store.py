"""What check says of a store: each step from its name to an object there, with real ones and with scripted ones."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.certs import Authority
from lab.rgw import Gateway
from lab.s3 import S3Server
from looked import Looked

from s3daemon.commands.check.network import reach
from s3daemon.commands.check.store import StoreChecks
from s3daemon.config.settings import Settings


def settings_of(server: S3Server, **more: str) -> Settings:
    """The daemon's, for that server."""
    return Settings.from_environ({**server.settings(), "S3DAEMON_STATE_DIR": "/nowhere", **more})


def checked(tmp_path: Path, settings: Settings, target: str = "", wall: Callable[[], float] = time.time) -> Looked:
    """Run the checks."""
    looked = Looked(tmp_path)
    looked.report.hide(settings.secrets())
    asyncio.run(StoreChecks(settings, looked.report, wall).run(target))
    return looked


def objects(server: S3Server, bucket: str) -> list[str]:
    """The keys in it."""
    client = server.client()
    try:
        return [item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", ())]
    finally:
        client.close()


def test_gateway(rgw: Gateway, tmp_path: Path) -> None:
    """All is well: the object is put where the daemon would, seen there, and gone afterwards."""
    bucket = rgw.new_bucket()
    looked = checked(tmp_path, settings_of(rgw), f"{bucket}/some/prefix")
    assert looked.levels() == {"ok", "note"}
    assert looked.one("note").startswith(
        f"note bucket putting a small object, and deleting it again: {bucket}/some/prefix/s3daemon-check-"
    )
    assert "verified by its ETag" in looked.one("stored in")
    assert looked.one("tls").startswith("ok tls TLSv1.")
    assert objects(rgw, bucket) == []


def test_plain_http(moto: S3Server, tmp_path: Path) -> None:
    """Works, and is said; without a bucket nothing is put."""
    looked = checked(tmp_path, settings_of(moto))
    assert looked.one("tls").startswith("note")
    assert not looked.report.failed
    assert not [line for line in looked.lines if " bucket " in line]


@pytest.mark.parametrize(
    ("name", "code"),
    [("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"), ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch")],
)
def test_wrong_keys(rgw: Gateway, tmp_path: Path, name: str, code: str) -> None:
    """Which of the two is wrong is said, and the secret one is not shown."""
    looked = checked(tmp_path, settings_of(rgw, **{name: "somethingelse"}))
    assert looked.one("credentials").startswith(f"FAIL credentials {code}, ")
    assert f"mend {name}" in looked.one("credentials")
    if name == "AWS_SECRET_ACCESS_KEY":
        assert "somethingelse" not in looked.out.getvalue()


def test_untrusted(rgw: Gateway, tmp_path: Path) -> None:
    """An authority that nobody named; no key is sent there."""
    looked = checked(tmp_path, dataclasses.replace(settings_of(rgw), ca_bundle=""))
    assert "AWS_CA_BUNDLE" in looked.one("FAIL tls")
    assert looked.one("credentials").startswith("note credentials not checked")


def test_no_such_bucket(rgw: Gateway, tmp_path: Path) -> None:
    """Keys may be good and the bucket's name not."""
    assert checked(tmp_path, settings_of(rgw), "nobody-made-this").one("FAIL").startswith("FAIL bucket NoSuchBucket, ")


def test_bucket_of_another(rgw: Gateway, tmp_path: Path) -> None:
    """It is not ours to write."""
    looked = checked(tmp_path, settings_of(rgw.new_account()), rgw.new_bucket())
    assert looked.one("FAIL").startswith("FAIL bucket AccessDenied, ")


def test_may_put_and_nothing_else(rgw: Gateway, tmp_path: Path) -> None:
    """A policy as strict as that serves the daemon, at a price; what cannot be deleted is named."""
    bucket, other = rgw.new_bucket(), rgw.new_account()
    whose = {
        "Principal": {"AWS": [f"arn:aws:iam:::user/{other.access_key}"]},
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    statements = [
        {"Effect": "Allow", "Action": ["s3:PutObject"], **whose},
        # Else the gateway lets it read what it put.
        {"Effect": "Deny", "Action": ["s3:GetObject"], **whose},
    ]
    client = rgw.client()
    try:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    finally:
        client.close()
    looked = checked(tmp_path, settings_of(other), bucket)
    assert not looked.report.failed
    assert "sent again" in looked.one("a HEAD does not show")
    (key,) = objects(rgw, bucket)
    assert looked.one("stays there").startswith(f"warn bucket AccessDenied: {bucket}/{key} stays there")


@pytest.mark.parametrize(
    ("target", "allowed", "said"),
    [
        ("elsewhere/x", "here,there", "FAIL bucket elsewhere is not in S3DAEMON_ALLOWED_BUCKETS"),
        ("/x", "", "FAIL bucket no bucket"),
        ("b/\n", "", "FAIL bucket the key "),
    ],
)
def test_target_refused(moto: S3Server, tmp_path: Path, target: str, allowed: str, said: str) -> None:
    """What the daemon would refuse is not put."""
    looked = checked(tmp_path, settings_of(moto, S3DAEMON_ALLOWED_BUCKETS=allowed), target)
    assert looked.one("FAIL").startswith(said)


@pytest.mark.parametrize(
    ("off_s", "said"),
    [
        (0, "ok clock with the store's"),
        (60, "warn clock 60 s ahead of the store's"),
        (-60, "warn clock 60 s behind the store's"),
        (7200, "FAIL clock 7200 s ahead of the store's: RequestTimeTooSkewed"),
    ],
)
def test_clock(moto: S3Server, tmp_path: Path, off_s: float, said: str) -> None:
    """Signatures hold for a quarter of an hour."""
    looked = checked(tmp_path, settings_of(moto), wall=lambda: time.time() + off_s)
    # The header has whole seconds, and reading it takes time.
    line = looked.one(" clock ").replace("59 s", "60 s").replace("61 s", "60 s").replace("7201 s", "7200 s")
    assert line.startswith(said)


def refusal(status: int, code: str) -> bytes:
    """An answer of S3's."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>"
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def serving(answer: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on loopback that gives every request the same answer; its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"


def settings_for(url: str, **more: str) -> Settings:
    """For a server that does not look at keys."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "S3DAEMON_STATE_DIR": "/nowhere"}
    return Settings.from_environ({"S3_ENDPOINT_URL": url, **keys, **more})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (refusal(403, "AccessDenied"), "ok credentials the store knows them; they may not list"),
        (refusal(405, "MethodNotAllowed"), "note credentials MethodNotAllowed: the store does not tell"),
        (refusal(503, "SlowDown"), "FAIL credentials SlowDown, the store answered 503; the daemon would go on trying"),
        (refusal(403, "QuotaExceeded"), "FAIL credentials QuotaExceeded, "),
        (b"220 mail.example.org ESMTP\r\n", "FAIL credentials "),
    ],
)
def test_answers(tmp_path: Path, answer: bytes, said: str) -> None:
    """What each answer says of the keys."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(answer) as url:
            await StoreChecks(settings_for(url), looked.report).run("")

    asyncio.run(run())
    assert looked.one("credentials").startswith(said)


@pytest.mark.parametrize(
    ("answer", "said"),
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
def test_connections_are_kept_or_not(tmp_path: Path, answer: bytes, said: str) -> None:
    """Whether there can be warm connections at all; a warning says what to do."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(answer) as url:
            await StoreChecks(settings_for(url), looked.report).run("")

    asyncio.run(run())
    assert looked.one(" keep-alive ").startswith(said)


def test_certificate_of_another(certs: Authority, tmp_path: Path) -> None:
    """A certificate that is good for another name is not good here."""
    issued = certs.issue("elsewhere", "DNS:elsewhere.example.org")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.cert, issued.key)
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(b"", tls) as url:
            await reach(settings_for(url, AWS_CA_BUNDLE=str(certs.ca)), looked.report, time.time)

    asyncio.run(run())
    assert "S3_ENDPOINT_URL must have a name that the certificate has" in looked.one("FAIL tls")


@pytest.mark.parametrize(("days", "level"), [(0, "ok"), (20, "warn")])
def test_certificate_ends(certs: Authority, tmp_path: Path, days: int, level: str) -> None:
    """One that ends within two weeks is told in time; ours hold for thirty days."""
    issued = certs.issue("here")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.cert, issued.key)
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(b"", tls) as url:
            settings = settings_for(url, AWS_CA_BUNDLE=str(certs.ca))
            await reach(settings, looked.report, lambda: time.time() + days * 86400)

    asyncio.run(run())
    assert looked.one(" tls ").startswith(f"{level} tls TLSv1.3, certificate of localhost, 127.0.0.1, valid for ")


def test_no_tls(tmp_path: Path) -> None:
    """A port that speaks something else."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(refusal(400, "X")) as url:
            # It waits for the end of a header that never comes.
            settings = settings_for(url.replace("http:", "https:"), S3DAEMON_CONNECT_TIMEOUT="200ms")
            await StoreChecks(settings, looked.report).run("")

    asyncio.run(run())
    assert "does that port speak it?" in looked.one("FAIL tls")


class Resolving(asyncio.SelectorEventLoop):
    """An event loop for which every name has these addresses, or that fault."""

    def __init__(self, *addresses: str, fault: Exception | None = None) -> None:
        super().__init__()
        self._addresses = addresses
        self._fault = fault

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:  # type: ignore[override]
        if self._fault is not None:
            raise self._fault
        if host == "127.0.0.1":
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in self._addresses]


def test_receiver_down(tmp_path: Path) -> None:
    """Of two addresses the first refuses: which one is said, and the rest is asked of the other."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(refusal(403, "AccessDenied")) as url:
            port = int(url.rpartition(":")[2])
            await StoreChecks(settings_for(f"http://receivers.test:{port}"), looked.report).run("")

    with asyncio.Runner(loop_factory=lambda: Resolving("127.0.0.9", "127.0.0.1")) as runner:
        runner.run(run())
    assert looked.one("endpoint").endswith(" is 127.0.0.9, 127.0.0.1")
    assert f": {os.strerror(111)}: an attempt that goes there fails" in looked.one("warn connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("ok")
    assert looked.one(" clock ") == "note clock not compared: the store's answer has no date"


def test_nobody_there(tmp_path: Path) -> None:
    """Refused by the only address: nothing more is tried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and not listening
        looked = checked(tmp_path, settings_for(f"http://127.0.0.1:{unused.getsockname()[1]}"), "bucket")
    assert looked.one("FAIL").startswith("FAIL connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("note credentials not checked")


@pytest.mark.parametrize(
    "fault", [socket.gaierror(-2, "Name or service not known"), TimeoutError(), UnicodeError("label too long")]
)
def test_no_address(tmp_path: Path, fault: Exception) -> None:
    """Each way in which a name has no address is one line."""
    looked = Looked(tmp_path)
    with asyncio.Runner(loop_factory=lambda: Resolving(fault=fault)) as runner:
        assert runner.run(reach(settings_for("https://store.test"), looked.report, time.time)) == []
    (line,) = looked.lines
    assert line.startswith("FAIL endpoint store.test does not resolve, ")


def test_keys_that_cannot_be_read(moto: S3Server, tmp_path: Path) -> None:
    """A shared credentials file without the profile is told; the rest was looked at."""
    shared = tmp_path / "credentials"
    shared.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    named = {"S3_ENDPOINT_URL": moto.url, "AWS_SHARED_CREDENTIALS_FILE": str(shared), "S3DAEMON_STATE_DIR": "/nowhere"}
    assert not checked(tmp_path, Settings.from_environ(named), "").report.failed
    looked = checked(tmp_path, Settings.from_environ({**named, "AWS_PROFILE": "night"}))
    assert looked.one("FAIL credentials AWS_SHARED_CREDENTIALS_FILE")
    assert looked.one(" clock ").startswith("ok")
