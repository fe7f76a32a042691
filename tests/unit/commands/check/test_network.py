"""Check connects to each address of the store and agrees on TLS there, and says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from fake_host import Looked, refusal, serving, settings_for
from lab.certs import Authority
from lab.keeping import ResolvingLoop, resolving
from lab.sending import in_loop

from s3daemon.commands.check.network import reach
from s3daemon.commands.check.store import StoreChecks
from s3daemon.config.settings import Settings


@in_loop
async def test_certificate_of_another(certs: Authority, looked: Looked) -> None:
    """A certificate that is valid for another name is not accepted."""
    async with serving(b"", certs.issue("elsewhere", "DNS:elsewhere.example.org").context()) as url:
        await reach(settings_for(url, AWS_CA_BUNDLE=str(certs.ca)), looked.findings, time.time)
    assert "S3_ENDPOINT_URL must have a name that the certificate has" in looked.one("FAIL connect")


@pytest.mark.parametrize(("days", "level"), [(0, "ok"), (20, "warn")])
@in_loop
async def test_certificate_ends(certs: Authority, tls: ssl.SSLContext, days: int, level: str, looked: Looked) -> None:
    """One that ends within two weeks is a warning; the test's are valid for thirty days."""
    async with serving(b"", tls) as url:
        settings = settings_for(url, AWS_CA_BUNDLE=str(certs.ca))
        await reach(settings, looked.findings, lambda: time.time() + days * 86400)
    assert looked.one(" connect ").startswith(f"{level} connect 127.0.0.1 port ")
    assert "TLSv1.3, certificate of localhost, 127.0.0.1, valid for " in looked.one(" connect ")


#: What TLS servers of nginx and of Go say to a request without TLS.
WANTS_TLS = [
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 49\r\n\r\nThe plain HTTP request was sent to HTTPS port    ",
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n",
]


def looked_at(tmp_path: Path, settings: Settings) -> list[str]:
    """The failures of all checks, and what is said of the credentials."""
    looked = Looked(tmp_path)
    asyncio.run(StoreChecks(settings, looked.findings).run("bucket"))
    return [line for line in looked.lines if "FAIL" in line or "credentials" in line or "bucket" in line]


class Port:
    """A port on loopback, served by a thread: what it answers to what, and then closes.

    Args:
        answer: to the first bytes of a connection; a TLS record is ended without an answer.
        tls: in whose place a TLS handshake is answered.
    """

    def __init__(self, answer: bytes, tls: ssl.SSLContext | None = None) -> None:
        self._answer, self._tls = answer, tls
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._serve_one(self._sock.accept()[0])

    def _serve_one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(5)
            if sock.recv(1, socket.MSG_PEEK) != TLS_RECORD:
                sock.recv(10_000)
                sock.sendall(self._answer)
            elif self._tls is not None:
                with self._tls.wrap_socket(sock, server_side=True) as wrapped:
                    wrapped.recv(1)
            else:
                sock.recv(10_000)  # so that the close is no reset

    def __enter__(self) -> int:
        return self.port

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


TLS_RECORD = b"\x16"


@pytest.fixture
def tls(certs: Authority) -> ssl.SSLContext:
    """A server's, with a certificate of the tests' authority."""
    return certs.issue("here").context()


NOT_CHECKED = "note credentials not checked: the store cannot be reached"


@pytest.mark.parametrize("answer", [b"", b"\x15\x03\x01\x00\x02\x02\x46", *WANTS_TLS])
def test_http_at_a_port_that_speaks_tls(tmp_path: Path, tls: ssl.SSLContext, answer: bytes) -> None:
    """The port is to blame, not the keys, whatever such a port answers to a request without TLS."""
    with Port(answer, tls) as port:
        failed, credentials = looked_at(tmp_path, settings_for(f"http://127.0.0.1:{port}"))
    what = "that port speaks TLS: use https:// in S3_ENDPOINT_URL"
    assert failed == f"FAIL connect 127.0.0.1 port {port}: {what}"
    assert credentials == NOT_CHECKED


def test_https_at_a_port_that_does_not_speak_tls(tmp_path: Path) -> None:
    """It is said what that port speaks, and no firewall is suspected."""
    with Port(refusal(403, "AccessDenied")) as port:
        failed, credentials = looked_at(tmp_path, settings_for(f"https://127.0.0.1:{port}"))
    what = "that port does not speak TLS: use http:// in S3_ENDPOINT_URL, or the port that does"
    assert failed == f"FAIL connect 127.0.0.1 port {port}: {what}"
    assert credentials == NOT_CHECKED


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", *WANTS_TLS])
def test_https_at_a_port_that_ends_the_handshake(tmp_path: Path, answer: bytes) -> None:
    """One that speaks no HTTP either, or wants TLS of another kind."""
    with Port(answer) as port:
        failed, credentials = looked_at(tmp_path, settings_for(f"https://127.0.0.1:{port}"))
    what = "no TLS, closed within the handshake: does that port speak https?"
    assert failed == f"FAIL connect 127.0.0.1 port {port}: {what}"
    assert credentials == NOT_CHECKED


@in_loop
async def test_a_port_that_waits_within_the_handshake(looked: Looked) -> None:
    """It waits for the end of a header that never comes; a request without TLS is answered."""
    async with serving(refusal(400, "X")) as url:
        settings = settings_for(url.replace("http:", "https:"), S3DAEMON_CONNECT_TIMEOUT="200ms")
        await StoreChecks(settings, looked.findings).run("")
    assert "that port does not speak TLS" in looked.one("FAIL connect")


@in_loop
async def test_a_port_that_says_nothing_within_the_handshake(looked: Looked) -> None:
    """Nothing tells a store that hangs from a port that is none."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        await reach(settings_for(url, S3DAEMON_CONNECT_TIMEOUT="100ms"), looked.findings, time.time)
    assert "no TLS, it accepts connections and does not answer: is the store up, and " in looked.one("FAIL connect")


def test_an_untrusted_certificate_has_advice_of_its_own(tmp_path: Path, tls: ssl.SSLContext) -> None:
    """The store is up, and no firewall is between."""
    with Port(b"", tls) as port:
        failed, _ = looked_at(tmp_path, settings_for(f"https://127.0.0.1:{port}"))
    assert "the store's certificate is not accepted, " in failed
    assert failed.endswith(": name the PEM file of its authority in AWS_CA_BUNDLE")


def resolved(looked: Looked, *addresses: str, **variables: str) -> Looked:
    """Run the checks with a store at 127.0.0.1 whose name has these addresses."""

    async def run() -> None:
        async with serving(refusal(403, "AccessDenied")) as url:
            settings = settings_for(url.replace("127.0.0.1", "receivers.test"), **variables)
            checks = StoreChecks(settings, looked.findings)
            await checks.run("")
        assert 0 < (checks.rtt_s or 0) < 1, "of the addresses that can be reached"

    with asyncio.Runner(loop_factory=lambda: ResolvingLoop(*addresses)) as runner:
        runner.run(run())
    return looked


def test_receiver_down(tmp_path: Path) -> None:
    """Of two addresses the first refuses: it is named, and what follows is asked of the other."""
    looked = resolved(Looked(tmp_path), "127.0.0.9", "127.0.0.1")
    assert looked.one("endpoint").endswith(" is 127.0.0.9, 127.0.0.1")
    assert f": {os.strerror(111)}: attempts that go there fail" in looked.one("warn connect 127.0.0.9 port ")
    assert looked.one("ok connect").startswith("ok connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("note")
    assert looked.one(" keep-alive ").startswith("ok")


def test_receivers_that_are_set(tmp_path: Path) -> None:
    """They are tried, and no address of the name; one that is down is that setting's."""
    looked = resolved(Looked(tmp_path), "127.0.0.9", S3DAEMON_RECEIVERS="127.0.0.8,127.0.0.1")
    assert looked.one("endpoint").endswith(" is 127.0.0.8, 127.0.0.1 by S3DAEMON_RECEIVERS")
    assert looked.one("warn connect 127.0.0.8 ").endswith("fix the address or S3DAEMON_RECEIVERS")
    assert looked.one("ok connect").startswith("ok connect 127.0.0.1 port ")


@in_loop
async def test_an_object_is_put_at_each_receiver(looked: Looked) -> None:
    """One may refuse what another takes."""
    async with serving(refusal(403, "AccessDenied")) as url:
        port = int(url.rpartition(":")[2])
        async with serving(refusal(503, "SlowDown"), address="127.0.0.2", port=port):
            settings = settings_for(f"http://receivers.test:{port}", S3DAEMON_RECEIVERS="127.0.0.1,127.0.0.2")
            await StoreChecks(settings, looked.findings).run("bucket")
    assert "AccessDenied, " in looked.one("FAIL bucket 127.0.0.1: ")
    assert "SlowDown, " in looked.one("FAIL bucket 127.0.0.2: ")


def test_no_listener(tmp_path: Path) -> None:
    """Refused by the only address: nothing more is tried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and not listening
        settings = settings_for(f"http://127.0.0.1:{unused.getsockname()[1]}")
        looked = Looked(tmp_path)
        asyncio.run(StoreChecks(settings, looked.findings).run("bucket"))
    assert looked.one("FAIL").startswith("FAIL connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("note credentials not checked")


@pytest.mark.parametrize(("fault", "why"), [
    (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
    (TimeoutError(), "no answer within 5 s"),
])  # fmt: skip
@resolving
async def test_no_address(loop: ResolvingLoop, fault: Exception, why: str, looked: Looked) -> None:
    """Each way in which a name has no address is one line."""
    loop.fault = fault
    for host in ("store.test", "xn--fa-hia.test", "xn--99zzzzzz9.test"):  # the last one cannot be decoded
        assert await reach(settings_for(f"https://{host}"), looked.findings, time.time) == []
        assert looked.lines[-1].startswith(f"FAIL endpoint {host} does not resolve, {why}: fix ")
        assert loop.asked == host
