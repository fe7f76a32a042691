"""`s3daemon check`, the way to the store: its name, each of its addresses, and TLS with each.

They are looked at one by one, as a daemon has connections to all of them: of four receivers one may be down, or have a
certificate that nobody renewed.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.commands.check.findings import Report
from s3daemon.config.settings import Settings
from s3daemon.network.tcp import TcpInfo

#: Certificates are renewed a month before their end where that is automatic; two weeks are left for people.
CERTIFICATE_DAYS = 14

_DAY_S = 86400
#: Enough of a certificate's names to know it by.
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Reached:
    """What came of connecting to one address.

    Args:
        address: the address.
        rtt_s: one round trip, seconds.
        error: why there is no connection, or empty.
        tls: what TLS was agreed on; empty for plain HTTP.
        tls_error: why there is no TLS, or empty.
        valid_days: how long its certificate holds, from now.
    """

    address: str
    rtt_s: float = 0.0
    error: str = ""
    tls: str = ""
    tls_error: str = ""
    valid_days: float = 0.0

    @property
    def usable(self) -> bool:
        """Requests can be sent there."""
        return not self.error and not self.tls_error


async def reach(settings: Settings, report: Report, wall: Clock) -> list[Reached]:
    """Look the endpoint's name up, connect to each address, and agree on TLS there.

    Args:
        settings: valid ones.
        report: takes the findings.
        wall: seconds since the epoch.

    Returns:
        What came of each address; nothing when the name does not resolve.
    """
    url, limit_s = URL(settings.endpoint_url), settings.connect_timeout_s
    try:
        async with asyncio.timeout(limit_s):
            found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        why = f"no answer within {limit_s:g} s" if isinstance(exc, TimeoutError) else getattr(exc, "strerror", str(exc))
        report.fail("endpoint", f"{url.host} does not resolve, {why}: mend S3_ENDPOINT_URL or the host's resolver")
        return []
    addresses = {str(item[4][0]): item for item in found}
    same = list(addresses) == [url.host]
    report.ok("endpoint", settings.endpoint_url + ("" if same else f" is {', '.join(addresses)}"))
    reached = await asyncio.gather(*(_probe(item, url, settings, wall) for item in addresses.values()))
    _tell_connect(reached, url, report)
    if url.scheme == "https":
        _tell_tls([one for one in reached if not one.error], report)
    else:
        report.note("tls", "none, by S3_ENDPOINT_URL: files can be read and changed on their way")
    return reached


async def _probe(item: tuple[Any, ...], url: URL, settings: Settings, wall: Clock) -> Reached:
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
    if url.scheme == "https":
        return await _greet(Reached(address, rtt_s), url, settings, wall)
    return Reached(address, rtt_s)


async def _greet(reached: Reached, url: URL, settings: Settings, wall: Clock) -> Reached:
    """Agree on TLS."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_bundle or None)
        async with asyncio.timeout(settings.connect_timeout_s):
            _, writer = await asyncio.open_connection(reached.address, url.port, ssl=context, server_hostname=url.host)
        cert, version = writer.get_extra_info("peercert"), writer.get_extra_info("ssl_object").version()
        writer.transport.abort()
    except ssl.SSLCertVerificationError as exc:
        return replace(reached, tls_error=_distrust(exc))
    except TimeoutError:
        return replace(reached, tls_error="no answer to TLS: does that port speak it?")
    except OSError as exc:
        why = getattr(exc, "reason", "") or exc.strerror or str(exc)
        return replace(reached, tls_error=f"no TLS ({why}): does that port speak it?")
    days = (ssl.cert_time_to_seconds(cert["notAfter"]) - wall()) / _DAY_S
    return replace(reached, tls=f"{version}, certificate of {_subject(cert)}", valid_days=days)


def _tell_connect(reached: Sequence[Reached], url: URL, report: Report) -> None:
    good, bad = [one for one in reached if not one.error], [one for one in reached if one.error]
    texts = [f"{one.address} port {url.port}, RTT {one.rtt_s * 1e3:.3g} ms" for one in good]
    texts += [f"{one.address} port {url.port}: {one.error}" for one in bad]
    if not bad:
        report.ok("connect", "; ".join(texts))
    elif good:
        report.warn("connect", f"{'; '.join(texts)}: an attempt that goes there fails; mend it or the name's entry")
    else:
        text = "is the store up, and does every firewall between let this host through?"
        report.fail("connect", f"{'; '.join(texts)}: {text}")


def _tell_tls(reached: Sequence[Reached], report: Report) -> None:
    # Receivers that are alike need one line.
    for text in dict.fromkeys(one.tls_error for one in reached if one.tls_error):
        at = ", ".join(one.address for one in reached if one.tls_error == text)
        report.fail("tls", f"{at}: {text}")
    for one in {one.tls: one for one in reached if one.tls}.values():
        left = f"for {one.valid_days:.0f} days"
        if one.valid_days >= CERTIFICATE_DAYS:
            report.ok("tls", f"{one.tls}, valid {left}")
        else:
            report.warn("tls", f"{one.tls}, valid {left} only: have it renewed")


def _subject(cert: Mapping[str, Any]) -> str:
    names = [str(value) for kind, value in cert.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


def _distrust(error: ssl.SSLCertVerificationError) -> str:
    text = str(error.verify_message).rstrip(".")
    if "expired" in text or "not yet valid" in text:
        return f"{text}: have it renewed, unless it is this host's clock"
    if "match" in text:
        return f"{text}: S3_ENDPOINT_URL must have a name that the certificate has"
    return f"the certificate is not trusted, {text}: name the PEM file of its authority in AWS_CA_BUNDLE"
