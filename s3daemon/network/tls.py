"""TLS with the store: which authorities are trusted, and when the certificates that were shown expire."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from yarl import URL

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings

#: A certificate that no new connection has presented for this long, while others did, is no longer in use, seconds.
CERTIFICATES_KEPT_S = 3600.0


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """Return a context that trusts the authorities of these settings, None without TLS; blocks on the files."""
    secure = URL(settings.endpoint_url).scheme == "https"
    return ssl.create_default_context(cafile=settings.ca_bundle or None) if secure else None


class Trust(NamedTuple):
    """The trusted certificate authorities.

    Args:
        digest: tells one content of them from another; empty without TLS.
        tls: the context that trusts them; None without TLS.
    """

    digest: bytes
    tls: ssl.SSLContext | None

    @classmethod
    def read(cls, settings: Settings) -> Trust:
        """Read their files; blocks."""
        digest = _digest_of_authorities(settings)  # first: what changes meanwhile shows at the next reload
        return cls(digest, tls_context(settings))


class Certificates:
    """The certificates that the store showed, by the moment that they expire.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: dict[int, float] = {}

    @property
    def expiry_s(self) -> int:
        """When the first of those that are in use expires, seconds since the epoch; 0 when none was shown."""
        return min(self._seen, default=0)

    def watch(self, tls: ssl.SSLContext) -> None:
        """Note the certificate of every connection made with `tls` from now on."""
        see = self.see

        class Watched(ssl.SSLObject):
            def do_handshake(self) -> None:
                """Shake hands, and note the certificate."""
                super().do_handshake()
                see(self.getpeercert())

        tls.sslobject_class = Watched

    def see(self, certificate: Mapping[str, object] | None) -> None:
        """Note a certificate, as `ssl.SSLObject.getpeercert` gives it."""
        if not_after := (certificate or {}).get("notAfter"):
            now = self._clock()
            recent = {expiry: at for expiry, at in self._seen.items() if now - at < CERTIFICATES_KEPT_S}
            self._seen = recent | {ssl.cert_time_to_seconds(str(not_after)): now}


def _digest_of_authorities(settings: Settings) -> bytes:
    """Return what tells one content of the trusted certificate authorities from another; empty without TLS.

    A TLS context keeps what it read, whatever becomes of the files, and their paths stay the same.
    """
    if not settings.endpoint_url.startswith("https:"):
        return b""
    digest = hashlib.sha256()
    system = ssl.get_default_verify_paths()
    file, directory = (settings.ca_bundle, None) if settings.ca_bundle else (system.cafile, system.capath)
    with contextlib.suppress(OSError):  # what cannot be read is not trusted either
        digest.update(Path(file).read_bytes() if file else b"")
    with contextlib.suppress(OSError):
        for path in sorted(Path(directory).iterdir()) if directory else ():
            with contextlib.suppress(OSError):
                found = path.stat()
                digest.update(f"{path} {found.st_mtime_ns} {found.st_size} {found.st_ino}\n".encode(errors="replace"))
    return digest.digest()
