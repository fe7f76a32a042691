"""Plain HTTP and TLS as one parameter: a scripted server and a sender to it, both in the test's loop."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from lab.certs import Authority, Certificate
from lab.scripted import Script, Scripted, keep, scripted
from lab.sending import OpenStore, sending, settings_for


@dataclass(frozen=True)
class Scheme:
    """What server and settings need for it."""

    tls: ssl.SSLContext | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def store(
        self, put: Script = keep, other: Script = keep, **changes: Any
    ) -> AsyncIterator[tuple[Scripted, OpenStore]]:
        """A scripted server, and a sender to it with changes to its settings. The sender ends first."""
        async with scripted(put, other, tls=self.tls) as server:
            settings = settings_for(server.url, **self.settings, **changes)
            async with sending(settings) as sender:
                yield server, sender


PLAIN = Scheme()


def tls_with(certificate: Certificate, ca: object) -> Scheme:
    """TLS by a server with this certificate, to a client that trusts this authority (without one, the system's)."""
    return Scheme(certificate.context(), {"ca_bundle": str(ca or "")})


def scheme_of(request: pytest.FixtureRequest) -> Scheme:
    """The scheme that a parametrized fixture asks for: `plain` or `tls`."""
    if request.param == "plain":
        return PLAIN
    certs: Authority = request.getfixturevalue("certs")
    return tls_with(certs.issue("scripted"), certs.ca)
