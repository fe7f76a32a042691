"""What went wrong, in our own words: S3's refusals and the network's failures as `AttemptError`."""

from __future__ import annotations

import os

import aiohttp
import botocore.exceptions
import botocore.parsers

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code, FileError, S3daemonError, one_line

#: Statuses that a proxy may give for a request which the store behind it has carried out.
_UNSURE = (500, 502, 504)
#: What an operator can do about it.
_HINTS = {
    "NoSuchBucket": "create the bucket, or mend the destination",
    "AccessDenied": "these keys may not write there",
    "InvalidAccessKeyId": "mend AWS_ACCESS_KEY_ID and reload",
    "SignatureDoesNotMatch": "mend AWS_SECRET_ACCESS_KEY and reload",
    "ExpiredToken": "renew the keys and reload",
    "QuotaExceeded": "the store's quota is used up: have it raised, then reload",
    "RequestTimeTooSkewed": "set the clocks",
}
#: What sending can raise, from aiohttp, the kernel, botocore's reading of garbage, and ourselves.
SENDING_ERRORS = (
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    FileError,
    botocore.exceptions.BotoCoreError,
    botocore.parsers.ResponseParserError,
    ValueError,
)
#: A proxy's Retry-After may also be a date; only seconds are read.
_MAX_RETRY_AFTER_S = 3600.0


def refusal_of(error: botocore.exceptions.ClientError) -> AttemptError:
    """The store answered, and it was no success.

    Only code and message are kept: S3's answer to a wrong signature quotes the request's headers.
    """
    described = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(described.get("Code") or status)
    message = one_line(str(described.get("Message") or ""), 200)
    hint = _HINTS.get(code, "")
    headers = meta.get("HTTPHeaders", {})
    return AttemptError(
        code,
        ": ".join(filter(None, (f"the store answered {status}", message, hint))),
        status=status,
        ambiguous=status in _UNSURE,
        retry_after=_seconds(str(headers.get("retry-after", ""))),
    )


def _seconds(text: str) -> float:
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def failure_of(  # noqa: PLR0911 - a table: one line for each kind of failure
    error: BaseException, *, ambiguous: bool, stale: bool
) -> AttemptError | S3daemonError:
    """There was no answer, or none that can be read.

    Args:
        error: what aiohttp, the kernel or botocore raised.
        ambiguous: the whole body may have arrived.
        stale: the connection was an idle one, and too little was acknowledged for anything to have been stored.
    """
    match error:
        case S3daemonError():
            return error
        case aiohttp.ClientConnectorCertificateError():
            text = f"the store's certificate is not trusted: {error.certificate_error}; see AWS_CA_BUNDLE"
            return AttemptError(Code.TLS_REFUSED, one_line(text))
        case aiohttp.ClientConnectorSSLError():
            return AttemptError(Code.TLS_FAILED, one_line(f"no TLS with the store: {error.os_error}"))
        case aiohttp.ConnectionTimeoutError():
            return AttemptError(Code.CONNECT_TIMEOUT, "the store did not take a connection in time")
        case aiohttp.ClientConnectorError():
            cause = error.os_error
            unsaid = "closed within the handshake" if isinstance(cause, ConnectionError) else "it failed"
            why = os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror or unsaid
            return AttemptError(Code.CONNECTION_FAILED, one_line(f"no connection to the store: {why}"))
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            code = Code.STALE_CONNECTION if stale and not ambiguous else Code.CONNECTION_CLOSED
            return AttemptError(code, "the store closed the connection", ambiguous=ambiguous)
        case TimeoutError():
            return AttemptError(Code.NO_ANSWER, "the store did not answer in time", ambiguous=ambiguous)
        case _:
            text = one_line(f"the store's answer cannot be read: {type(error).__name__}: {error}", 200)
            return AttemptError(Code.BAD_ANSWER, text, ambiguous=ambiguous)


def stall_of(
    settings: Settings, size: int, acked: int, *, arrived: bool, reading: bool, ambiguous: bool
) -> AttemptError | FileError:
    """An attempt was ended because it no longer moved.

    Args:
        settings: the limits that it passed.
        size: bytes of the body.
        acked: bytes that the peer acknowledged.
        arrived: that was all, and no answer came.
        reading: what was waited for was the file system.
        ambiguous: the whole body may have arrived.
    """
    if arrived:
        text = f"all was sent and no answer came for {settings.answer_timeout_s:g} s"
        return AttemptError(Code.NO_ANSWER, text, ambiguous=True)
    if reading:
        return FileError(Code.READ_FAILED, f"the file system did not answer for {settings.stall_timeout_s:g} s")
    text = f"the store took no byte for {settings.stall_timeout_s:g} s, after {acked} of {size}"
    return AttemptError(Code.STALLED, text, ambiguous=ambiguous)
