"""Why the store cannot be reached: the code and the words for what aiohttp, OpenSSL or the kernel raised.

An upload, whose client and record get them, has the same as a small request, for which the status and the journal do.
"""

from __future__ import annotations

import os
import re
import ssl

import aiohttp

from s3daemon.errors import Code, one_line

#: What to look at when a handshake fails.
IS_IT_TLS = "does that port speak https?"
#: OpenSSL's words for a version, a key or a signature that this host's policy does not permit: that is TLS.
_NOT_PERMITTED = re.compile("unsupported protocol|legacy|too small|too weak")


def cause_of(error: BaseException, *, stale: bool = False) -> tuple[Code, str] | None:
    """Return the code and the text for an error of the way to the store; None for one of another kind.

    Args:
        error: what aiohttp or the kernel raised.
        stale: the connection was an idle one, and nothing, or not all, of what was sent was acknowledged.
    """
    match error:
        case aiohttp.ClientConnectorCertificateError():
            code, text = Code.TLS_REFUSED, flaw_of_certificate(error.certificate_error)
        case aiohttp.ClientConnectorSSLError():
            code, text = Code.TLS_FAILED, f"no TLS with the store, {tls_reason(error.os_error)}"
        case aiohttp.ConnectionTimeoutError():
            code = Code.CONNECT_TIMEOUT
            text = "the store did not accept a connection, or answer the TLS handshake, in time"
        case aiohttp.ClientConnectorError():
            code, text = Code.CONNECTION_FAILED, f"no connection to the store: {_reason(error.os_error)}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            code, cause = Code.STALE_CONNECTION if stale else Code.CONNECTION_CLOSED, error.__cause__
            text = "the store closed the connection"
            if isinstance(cause, ssl.SSLError):
                text = f"TLS with the store ended, {tls_reason(cause)}"
        case TimeoutError():
            code, text = Code.NO_ANSWER, "the store did not answer in time"
        case _:
            return None
    return code, one_line(text)


def unresolved(error: OSError) -> str:
    """Return why the endpoint's name has no address, by what the look-up raised."""
    return f"the endpoint's name does not resolve: {error.strerror or 'no answer in time'}"


def _reason(cause: OSError) -> str:
    """Return why a connection could not be made."""
    if cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    if cause.strerror:
        return cause.strerror
    return tls_reason(cause) if isinstance(cause, ConnectionError) else "it failed"


def tls_reason(cause: OSError) -> str:
    """Return why TLS failed: OpenSSL's reason in words, or that the peer closed, for which asyncio has none."""
    reason = str(getattr(cause, "reason", None) or cause.strerror or "closed within the handshake")
    words = re.sub(r"^\[.*?\] | \(_ssl\.c:\d+\)$", "", reason).replace("_", " ").lower()
    if "certificate required" in words:
        return f"{words}: the store wants one of its clients, and s3daemon has none"
    if _NOT_PERMITTED.search(words):
        return f"{words}: have the store's TLS renewed, or see update-crypto-policies(8)"
    return words if "alert" in words else f"{words}: {IS_IT_TLS}"


def flaw_of_certificate(error: Exception) -> str:
    """Return why the store's certificate is not accepted, by what the TLS library raised, and what to do about it."""
    text = str(getattr(error, "verify_message", error)).rstrip(".")
    if "expired" in text or "not yet valid" in text:
        cure = "have it renewed, unless this host's clock is wrong"
    elif "match" in text:
        cure = "S3_ENDPOINT_URL must have a name that the certificate has"
    elif _NOT_PERMITTED.search(text):
        cure = "have it issued again, with a longer key and a newer signature"
    else:
        cure = "name the PEM file of its authority in AWS_CA_BUNDLE"
    return f"the store's certificate is not accepted, {text}: {cure}"
