"""The certificates that the store shows: the first that expires is known."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

from lab.certs import Authority
from lab.keeping import Clock
from lab.sending import in_loop

from s3daemon.network.tls import CERTIFICATES_KEPT_S, Certificates


def test_the_first_certificate_to_expire_counts(clock: Clock) -> None:
    """Of those shown lately: one that was replaced is forgotten. Without one nothing is known."""
    certificates = Certificates(clock)
    assert certificates.expiry_s == 0
    tls = ssl.create_default_context()
    certificates.watch(tls)
    for passed_s, not_after, expected in (
        (0, "Jan  5 09:34:43 2018 GMT", 1515144883),
        (1, "Jan  5 09:34:43 2028 GMT", 1515144883),
        (CERTIFICATES_KEPT_S, "Jan  5 09:34:43 2027 GMT", 1799141683),
    ):
        clock.now += passed_s
        certificates.see({"notAfter": not_after})
        assert certificates.expiry_s == expected
    certificates.see(None)
    assert certificates.expiry_s == 1799141683


@in_loop
async def test_the_certificate_of_a_connection_is_noted(tmp_path: Path) -> None:
    """One of thirty days, over the connections that asyncio makes with the pool's TLS context."""
    authority = Authority(tmp_path)
    made = authority.issue("store")
    server_tls = made.context()
    client_tls = ssl.create_default_context(cafile=str(authority.ca))
    certificates = Certificates(Clock())
    certificates.watch(client_tls)
    async with await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=server_tls) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_tls)
        writer.close()
    assert 29 * 86400 < certificates.expiry_s - time.time() < 31 * 86400
