"""Check connects to each address of the store and agrees on TLS there, and says what came of it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from fake_host import Looked, refusal, serving, settings_for
from lab.certs import Authority

from s3daemon.commands.check.network import reach
from s3daemon.commands.check.store import StoreChecks


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


def test_certificate_of_another(certs: Authority, tmp_path: Path) -> None:
    """A certificate that is valid for another name is not accepted."""
    issued = certs.issue("elsewhere", "DNS:elsewhere.example.org")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.cert, issued.key)
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(b"", tls) as url:
            await reach(settings_for(url, AWS_CA_BUNDLE=str(certs.ca)), looked.findings, time.time)

    asyncio.run(run())
    assert "S3_ENDPOINT_URL must have a name that the certificate has" in looked.one("FAIL connect")


@pytest.mark.parametrize(("days", "level"), [(0, "ok"), (20, "warn")])
def test_certificate_ends(certs: Authority, tmp_path: Path, days: int, level: str) -> None:
    """One that ends within two weeks is a warning; the test's are valid for thirty days."""
    issued = certs.issue("here")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(issued.cert, issued.key)
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(b"", tls) as url:
            settings = settings_for(url, AWS_CA_BUNDLE=str(certs.ca))
            await reach(settings, looked.findings, lambda: time.time() + days * 86400)

    asyncio.run(run())
    assert looked.one(" connect ").startswith(f"{level} connect 127.0.0.1 port ")
    assert "TLSv1.3, certificate of localhost, 127.0.0.1, valid for " in looked.one(" connect ")


def test_no_tls(tmp_path: Path) -> None:
    """A port that does not speak TLS is a failure."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(refusal(400, "X")) as url:
            # It waits for the end of a header that never comes.
            settings = settings_for(url.replace("http:", "https:"), S3DAEMON_CONNECT_TIMEOUT="200ms")
            await StoreChecks(settings, looked.findings).run("")

    asyncio.run(run())
    assert "does that port speak it?" in looked.one("FAIL connect")


def test_receiver_down(tmp_path: Path) -> None:
    """Of two addresses the first refuses: it is named, and what follows is asked of the other."""
    looked = Looked(tmp_path)

    async def run() -> None:
        async with serving(refusal(403, "AccessDenied")) as url:
            port = int(url.rpartition(":")[2])
            await StoreChecks(settings_for(f"http://receivers.test:{port}"), looked.findings).run("")

    with asyncio.Runner(loop_factory=lambda: Resolving("127.0.0.9", "127.0.0.1")) as runner:
        runner.run(run())
    assert looked.one("endpoint").endswith(" is 127.0.0.9, 127.0.0.1")
    assert f": {os.strerror(111)}: an attempt that goes there fails" in looked.one("warn connect 127.0.0.9 port ")
    assert looked.one("ok connect").startswith("ok connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("ok")
    assert looked.one(" clock ") == "note clock not compared: the store's answer has no date"


def test_no_listener(tmp_path: Path) -> None:
    """Refused by the only address: nothing more is tried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and not listening
        settings = settings_for(f"http://127.0.0.1:{unused.getsockname()[1]}")
        looked = Looked(tmp_path)
        asyncio.run(StoreChecks(settings, looked.findings).run("bucket"))
    assert looked.one("FAIL").startswith("FAIL connect 127.0.0.1 port ")
    assert looked.one("credentials").startswith("note credentials not checked")


@pytest.mark.parametrize(
    "fault", [socket.gaierror(-2, "Name or service not known"), TimeoutError(), UnicodeError("label too long")]
)
def test_no_address(tmp_path: Path, fault: Exception) -> None:
    """Each way in which a name has no address is one line."""
    looked = Looked(tmp_path)
    with asyncio.Runner(loop_factory=lambda: Resolving(fault=fault)) as runner:
        assert runner.run(reach(settings_for("https://store.test"), looked.findings, time.time)) == []
    (line,) = looked.lines
    assert line.startswith("FAIL endpoint store.test does not resolve, ")
