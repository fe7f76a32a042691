"""What went wrong, as our own errors: an answer that is an error, a library's exception, a stall."""

from __future__ import annotations

import os

import aiohttp
import botocore.exceptions
import botocore.parsers

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code, FileError, S3daemonError, one_line
from s3daemon.model.verdict import is_unlisted

#: Statuses that a proxy may give for a request which the store behind it has carried out.
_AMBIGUOUS_STATUSES = (500, 502, 504)
#: What an operator can do about it.
_HINTS = {
    "NoSuchBucket": "create the bucket, or fix the destination",
    "AccessDenied": "these keys may not write there",
    "InvalidAccessKeyId": "fix AWS_ACCESS_KEY_ID and reload",
    "SignatureDoesNotMatch": "fix AWS_SECRET_ACCESS_KEY and reload",
    "ExpiredToken": "renew the keys and reload",
    "QuotaExceeded": "the bucket's quota is used up: have it raised; its transfers wait until then",
    "RequestTimeTooSkewed": "set the clocks",
    **dict.fromkeys(("507", "InsufficientStorage", "XMinioStorageFull"), "the store's disks are full"),
}
#: What sending can raise: aiohttp's and the kernel's errors, botocore's where it cannot parse, and our own.
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
    """Return the error for an answer that is not a success.

    Only code and message are kept: S3's answer to a wrong signature quotes the request's headers.
    """
    described = error.response.get("Error", {})
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(described.get("Code") or status)
    message = one_line(str(described.get("Message") or ""), 200)
    hint = _HINTS.get(code) or ("this code is not known here, so it is retried" if is_unlisted(code, status) else "")
    headers = meta.get("HTTPHeaders", {})
    return AttemptError(
        code,
        ": ".join(filter(None, (f"the store answered {status}", message, hint))),
        status=status,
        ambiguous=status in _AMBIGUOUS_STATUSES,
        retry_after=_seconds(str(headers.get("retry-after", ""))),
    )


def _seconds(text: str) -> float:
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isascii() and text.isdigit() else 0.0


def failure_of(error: BaseException, *, ambiguous: bool, stale: bool) -> AttemptError | S3daemonError:
    """Return the error for a request without an answer, or with one that cannot be parsed.

    Args:
        error: what aiohttp, the kernel or botocore raised.
        ambiguous: the whole body may have arrived.
        stale: the connection was an idle one, and too little was acknowledged for anything to have been stored.
    """
    match error:
        case S3daemonError():
            return error
        case aiohttp.ClientConnectorCertificateError():
            code = Code.TLS_REFUSED
            text = f"the store's certificate is not trusted: {error.certificate_error}; see AWS_CA_BUNDLE"
        case aiohttp.ClientConnectorSSLError():
            code, text = Code.TLS_FAILED, f"no TLS with the store: {error.os_error}"
        case aiohttp.ConnectionTimeoutError():
            code, text = Code.CONNECT_TIMEOUT, "the store did not accept a connection in time"
        case aiohttp.ClientConnectorError():
            code, text = Code.CONNECTION_FAILED, f"no connection to the store: {_reason(error.os_error)}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | ConnectionError():
            code = Code.STALE_CONNECTION if stale and not ambiguous else Code.CONNECTION_CLOSED
            text = "the store closed the connection"
        case TimeoutError():
            code, text = Code.NO_ANSWER, "the store did not answer in time"
        case botocore.exceptions.NoCredentialsError():
            code, text = Code.NO_CREDENTIALS, "there are no keys to sign with"
        case botocore.exceptions.BotoCoreError() | UnicodeEncodeError():  # it sends nothing: we do
            code, text = Code.BAD_REQUEST, f"S3 has no such request: {type(error).__name__}: {error}"
        case _:
            code = Code.BAD_ANSWER
            text = one_line(f"the store's answer cannot be read: {type(error).__name__}: {error}", 200)
    return AttemptError(code, one_line(text), ambiguous=ambiguous)


def _reason(cause: OSError) -> str:
    """Return why a connection could not be made."""
    if cause.errno and cause.errno > 0:
        return os.strerror(cause.errno)
    return cause.strerror or ("closed within the handshake" if isinstance(cause, ConnectionError) else "it failed")


def stall_of(
    settings: Settings, size: int, acked: int, *, arrived: bool, reading: bool, ambiguous: bool
) -> AttemptError | FileError:
    """Return the error for a request that made no progress for too long.

    Args:
        settings: the limits that it exceeded.
        size: bytes of the body.
        acked: bytes that the peer acknowledged.
        arrived: the peer acknowledged all of the body, and did not answer.
        reading: the file system did not return what was to be sent next.
        ambiguous: the whole body may have arrived.
    """
    if arrived:
        text = f"all was sent and no answer came for {settings.answer_timeout_s:g} s"
        return AttemptError(Code.NO_ANSWER, text, ambiguous=True)
    if reading:
        return FileError(Code.READ_FAILED, f"the file system did not answer for {settings.stall_timeout_s:g} s")
    text = f"the store took no byte for {settings.stall_timeout_s:g} s, after {acked} of {size}"
    return AttemptError(Code.STALLED, text, ambiguous=ambiguous)
