"""Failures: each has its code, is ambiguous if the body may have arrived, and quotes nothing of the request."""

from __future__ import annotations

import errno
import os
import ssl
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers
import pytest
from aiohttp.client_reqrep import ConnectionKey

from s3daemon.errors import AttemptError, FileError
from s3daemon.s3.failures import failure_of, refusal_of

KEY = ConnectionKey("store", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def refusal(status: int, headers: dict[str, str] | None = None, *, arrived: bool = True, **error: Any) -> AttemptError:
    """The error for an answer that is not a success."""
    response = {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}}
    return refusal_of(botocore.exceptions.ClientError(response, "PutObject"), arrived=arrived)


def failure(error: BaseException, *, ambiguous: bool = False, stale: bool = False) -> AttemptError:
    """The error for a request without an answer."""
    found = failure_of(error, ambiguous=ambiguous, stale=stale)
    assert isinstance(found, AttemptError)
    return found


def test_a_refusal_has_the_stores_code_and_one_line() -> None:
    """S3's code and message, with what to do; shortened, without control characters."""
    error = refusal(404, Code="NoSuchBucket", Message="no\nsuch\x07" + "x" * 1000)
    assert (error.code, error.status, error.ambiguous, error.retry_after) == ("NoSuchBucket", 404, False, 0.0)
    assert error.text.startswith(r"the store answered 404: no\nsuch\x07xxx")
    assert error.text.endswith("...: create the bucket, or fix the destination")
    assert len(error.text) < 300


def test_a_refusal_without_a_code_is_named_by_its_status() -> None:
    """What did not come from an S3 server still has a code."""
    error = refusal(413)
    assert (error.code, error.status, error.text) == ("413", 413, "the store answered 413")


@pytest.mark.parametrize(
    ("status", "ambiguous"),
    [(400, False), (403, False), (408, False), (429, False), (500, True), (502, True), (503, True), (504, True)],
)
def test_which_statuses_are_ambiguous(status: int, ambiguous: bool) -> None:
    """Those that a proxy may answer though the store has carried the request out, if all of that arrived."""
    assert refusal(status, Code="Any").ambiguous is ambiguous
    assert not refusal(status, Code="Any", arrived=False).ambiguous


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("86400", 3600.0),
        ("9" * 400, 3600.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("²", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    """Whole seconds count, up to an hour; anything else counts as no header."""
    assert refusal(503, {"retry-after": header}, Code="SlowDown").retry_after == seconds


def test_a_refusal_quotes_nothing_of_the_request() -> None:
    """Of S3's answer to a wrong signature only code and message are kept: it quotes the request's headers."""
    quoted: dict[str, Any] = {"CanonicalRequest": "x-amz-security-token:sesame", "StringToSign": "sesame"}
    error = refusal(403, Code="SignatureDoesNotMatch", Message="no match", **quoted)
    assert "sesame" not in repr(error) + error.text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (aiohttp.ClientConnectorError(KEY, REFUSED), "ConnectionFailed", "Connection refused"),
        (aiohttp.ConnectionTimeoutError("slow"), "ConnectTimeout", "did not accept a connection in time"),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "WRONG_VERSION")), "TLSFailed", "WRONG_VERSION"),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.CertificateError("expired")), "TLSRefused", "expired"),
        (aiohttp.ServerDisconnectedError(), "ConnectionClosed", "closed the connection"),
        (aiohttp.ClientOSError(errno.EPIPE, "Broken pipe"), "ConnectionClosed", "closed the connection"),
        (ConnectionResetError(), "ConnectionClosed", "closed the connection"),
        (TimeoutError(), "NoAnswer", "did not answer in time"),
        (aiohttp.ClientPayloadError("cut off"), "BadAnswer", "ClientPayloadError: cut off"),
        (botocore.parsers.ResponseParserError("no XML"), "BadAnswer", "ResponseParserError: no XML"),
        (ValueError("what\r\never" + "x" * 1000), "BadAnswer", r"what\r\never"),
    ],
)
def test_each_failure_has_its_code(error: BaseException, code: str, words: str) -> None:
    """And says what happened, in one short line."""
    found = failure(error)
    assert (found.code, found.status, found.ambiguous) == (code, 0, False)
    assert words in found.text
    assert len(found.text) <= 500
    assert found.text.isprintable()


@pytest.mark.parametrize(
    "error",
    [aiohttp.ServerDisconnectedError(), ConnectionResetError(), TimeoutError(), aiohttp.ClientPayloadError("cut off")],
)
def test_a_failure_after_all_was_acknowledged_is_ambiguous(error: BaseException) -> None:
    """Whatever the failure is."""
    assert failure(error, ambiguous=True).ambiguous


@pytest.mark.parametrize(
    ("ambiguous", "stale", "code"),
    [
        (False, True, "StaleConnection"),
        (False, False, "ConnectionClosed"),
        (True, True, "ConnectionClosed"),
    ],
)
def test_a_stale_connection_is_never_ambiguous(ambiguous: bool, stale: bool, code: str) -> None:
    """An idle connection that was closed as it was used; if the object may be stored, it is an ordinary failure."""
    assert failure(aiohttp.ServerDisconnectedError(), ambiguous=ambiguous, stale=stale).code == code


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("error", [FileError("FileChanged", "it changed"), AttemptError("Stalled", "still")])
def test_our_own_errors_are_unchanged(error: Any, stale: bool) -> None:
    """An error of our own that was raised within the request is returned as it is."""
    assert failure_of(error, ambiguous=True, stale=stale) is error
