"""Check the path to the store: its name, and a connection and TLS with each of its addresses.

Every address is tried, because the daemon has connections to all of them: one of four receivers may be down, or have a
certificate that has not been renewed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.commands.check.findings import Findings
from s3daemon.config.settings import Settings
from s3daemon.network.cause import IS_IT_TLS, flaw_of_certificate, tls_reason
from s3daemon.network.tcp import TcpInfo
from s3daemon.units import plural

#: Certificates are renewed a month before their end where that is automatic; two weeks are left for people.
CERTIFICATE_DAYS = 14

_DAY_S = 86400
_AT_ONCE_S = 1.0
#: Of an answer that refuses a request, enough to see why: nginx's and Go's "sent to HTTPS port".
_ANSWER_BYTES = 1000
_BAD_REQUEST = b" 400"
#: Enough of a certificate's names to know it by.
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of connecting to one address.

    Args:
        address: the address.
        rtt_s: one round trip, seconds; None without a connection.
        error: why requests cannot be sent there, or empty.
        tls: the version of TLS and the certificate's names; empty for plain HTTP.
        valid_days: how long its certificate is valid, from now.
        silent: it answered neither a plain request nor the beginning of a TLS handshake; not known with TLS.
    """

    address: str
    rtt_s: float | None = None
    error: str = ""
    tls: str = ""
    valid_days: float = 0.0
    silent: bool = False


async def reach(settings: Settings, findings: Findings, wall: Clock) -> list[Reached]:
    """Look the endpoint's name up, unless its addresses are set, connect to each address, and agree on TLS there.

    Returns:
        What came of each address; nothing when the name does not resolve.
    """
    url, limit_s = URL(settings.endpoint_url), settings.connect_timeout_s
    look_up = partial(asyncio.get_running_loop().getaddrinfo, port=url.port, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(limit_s):
            found = [item for host in settings.receivers or (url.raw_host,) for item in await look_up(host)]
    except OSError as exc:
        why = f"no answer within {limit_s:g} s" if isinstance(exc, TimeoutError) else exc.strerror
        findings.fail("endpoint", f"{url.raw_host} does not resolve, {why}: fix S3_ENDPOINT_URL or the host's resolver")
        return []
    addresses = {str(item[4][0]): item for item in found}
    same, by = list(addresses) == [url.raw_host], " by S3DAEMON_RECEIVERS" if settings.receivers else ""
    findings.ok("endpoint", settings.endpoint_url + ("" if same else f" is {', '.join(addresses)}{by}"))
    if url.scheme != "https":
        findings.note("tls", "S3_ENDPOINT_URL is http: files can be read and changed on their way")
    reached = await asyncio.gather(*(_connect(item, url, settings, wall) for item in addresses.values()))
    for one in reached:
        _report(one, url, settings, findings, failed=all(other.error for other in reached))
    return reached


def _report(one: Reached, url: URL, settings: Settings, findings: Findings, *, failed: bool) -> None:
    """Print what came of an address; that no request can be sent there is a failure when all have `failed`."""
    at = f"{one.address} port {url.port}"
    if one.error:
        text = f"{at}: {one.error}"
        if failed and one.rtt_s is None:
            findings.fail("connect", f"{text}; is the store up, and does every firewall on the path admit this host?")
        elif failed:
            findings.fail("connect", text)
        else:
            cure = "S3DAEMON_RECEIVERS" if settings.receivers else "the name's entry"
            findings.warn("connect", f"{text}: attempts that go there fail; fix the address or {cure}")
        return
    text = f"{at}, RTT {(one.rtt_s or 0) * 1e3:.3g} ms"
    if not one.tls:
        findings.ok("connect", text)
    elif one.valid_days >= CERTIFICATE_DAYS:
        findings.ok("connect", f"{text}, {one.tls}, valid for {plural(round(one.valid_days), 'day')}")
    else:
        findings.warn(
            "connect", f"{text}, {one.tls}, valid for {plural(round(one.valid_days), 'day')} only: have it renewed"
        )


async def _connect(item: tuple[Any, ...], url: URL, settings: Settings, wall: Clock) -> Reached:
    family, kind, proto, _, sockaddr = item
    address, limit_s = str(sockaddr[0]), settings.connect_timeout_s
    try:
        with socket.socket(family, kind, proto) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(limit_s):
                await asyncio.get_running_loop().sock_connect(sock, sockaddr)
            rtt_s = TcpInfo.of(sock).rtt_usec / 1e6
    except TimeoutError:
        return Reached(address, error=f"no connection within {limit_s:g} s")
    except OSError as exc:
        # asyncio's own text only repeats the address.
        return Reached(address, error=os.strerror(exc.errno) if exc.errno else str(exc))
    reached = Reached(address, rtt_s)
    if url.scheme == "https":
        return await _agree_on_tls(reached, url, settings, wall)
    return await _agree_on_http(reached, url, limit_s)


async def _agree_on_http(reached: Reached, url: URL, limit_s: float) -> Reached:
    http = asyncio.create_task(_speaks_http(reached.address, url, limit_s))
    # A store that answers at once is spared a handshake, which it logs; beside the other, as both may wait in vain.
    await asyncio.wait([http], timeout=_AT_ONCE_S)
    tls = not http.done() or not http.result()
    tls = tls and await _speaks_tls(reached.address, url, limit_s)
    if await http:
        return reached
    if tls:
        return replace(reached, error="that port speaks TLS: use https:// in S3_ENDPOINT_URL")
    return replace(reached, silent=True)


async def _agree_on_tls(reached: Reached, url: URL, settings: Settings, wall: Clock) -> Reached:
    try:
        context = ssl.create_default_context(cafile=settings.ca_bundle or None)
        async with asyncio.timeout(settings.connect_timeout_s):
            _, writer = await asyncio.open_connection(
                reached.address, url.port, ssl=context, server_hostname=url.raw_host
            )
        cert, version = writer.get_extra_info("peercert"), writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
    except ssl.SSLCertVerificationError as exc:
        return replace(reached, error=flaw_of_certificate(exc))
    except OSError as exc:
        if await _speaks_http(reached.address, url, settings.connect_timeout_s):
            text = "that port does not speak TLS: use http:// in S3_ENDPOINT_URL, or the port that does"
            return replace(reached, error=text)
        hung = f"it accepts connections and does not answer: is the store up, and {IS_IT_TLS}"
        why = hung if isinstance(exc, TimeoutError) else tls_reason(exc)
        return replace(reached, error=f"no TLS, {why}")
    days = (ssl.cert_time_to_seconds(cert["notAfter"]) - wall()) / _DAY_S
    return replace(reached, tls=f"{version}, certificate of {_names(cert)}", valid_days=days)


async def _speaks_http(address: str, url: URL, limit_s: float) -> bool:
    """Return whether a port answers a request without TLS. One that only asks for TLS in its answer does not."""
    answer = b""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(address, url.port)
            try:
                writer.write(f"GET / HTTP/1.1\r\nHost: {url.raw_authority}\r\nConnection: close\r\n\r\n".encode())
                while len(answer) < _ANSWER_BYTES and (piece := await reader.read(_ANSWER_BYTES)):
                    answer += piece
                    if answer.startswith(b"HTTP/") and _BAD_REQUEST not in answer[: len("HTTP/1.1 400")]:
                        break
            finally:
                writer.transport.abort()
    return answer.startswith(b"HTTP/") and not (_BAD_REQUEST in answer and b"HTTPS" in answer)


async def _speaks_tls(address: str, url: URL, limit_s: float) -> bool:
    """Return whether a port agrees on TLS, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError):
        async with asyncio.timeout(limit_s):
            _, writer = await asyncio.open_connection(address, url.port, ssl=context, server_hostname=url.raw_host)
        writer.transport.abort()
        return True
    return False


def _names(cert: Mapping[str, Any]) -> str:
    names: Sequence[str] = [str(name) for kind, name in cert.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
