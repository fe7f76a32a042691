"""Decide which HTTP requests are served: those of programs and of our own pages, not of other sites' pages. Pure.

A browser on the host can reach the server, and so can every page that it shows: by a form, a script or an image. A page
cannot choose what the browser says of it:

    Host              the name that was used. A name that is not ours was made to point here (DNS rebinding).
    Origin            the site whose page asks; sent with every form and every request that is not a plain read.
    Sec-Fetch-Site    how that site is related to us; current browsers send it with every request to localhost.

Programs such as curl and Prometheus send a Host that they were given, and neither of the others. A balancer that asks
by HTTP/1.0 may send none; a browser always does, so pages are served without. Nothing here admits another site: there
are no CORS headers, and a preflight is refused like any unknown method.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
from collections.abc import Collection, Mapping

from s3daemon.errors import one_line

#: For every answer: it is not cached, not guessed to be a page, not embedded and not framed.
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Server": "s3daemon",
    "X-Content-Type-Options": "nosniff",
}

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:/@\[\]]+))(?::\d{1,5})?")
_SCRIPT = re.compile(r"<script\b[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def refusal(headers: Mapping[str, str], local: str, names: Collection[str] = (), *, reads: bool = False) -> str:
    """The reason for which a request is refused; empty when it is served.

    Args:
        headers: the request's, a mapping that ignores the case of names.
        local: our own address of the connection; empty for a Unix socket.
        names: further names of this server.
        reads: whether the request only reads; it then may lack a Host.
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    ours = {"localhost", *(name.lower() for name in names)}
    if not (reads and "Host" not in headers) and not _is_ours(host, local, ours):
        return (
            f"the host {one_line(host, 100)!r} is not a name of this server: use localhost, or see S3DAEMON_HTTP_NAMES"
        )
    if origin is not None and origin.lower() != f"http://{host}".lower():
        return f"a page of {one_line(origin, 100)!r} may not send requests"
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return "a page of another site may not send requests; type the address"
    return ""


def _is_ours(host: str, local: str, names: Collection[str]) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in names
    return address.is_loopback or (bool(local) and address == _address(local))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a socket; an IPv4 client of an IPv6 socket sees the IPv4 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def page_policy(html: str) -> str:
    """The Content-Security-Policy of a page: its own inline scripts, named by their hashes, may run and ask us.

    Styles may be inline, attributes included. Nothing is loaded from elsewhere, sent elsewhere or framed.
    """
    digests = [hashlib.sha256(script.encode()).digest() for script in _SCRIPT.findall(html)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
