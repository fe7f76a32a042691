"""What answers mean: a table of what stores, proxies and login pages answer; and what an error says."""

from __future__ import annotations

import errno
import gzip
import hashlib
import math
import os
import re
import ssl
import zlib
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers
import pytest
from aiohttp.client_reqrep import ConnectionKey
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from s3daemon.errors import AttemptError, FileError
from s3daemon.model.verdict import blames_endpoint
from s3daemon.network.connection import ANSWER_MAX_BYTES, AnswerTooLongError
from s3daemon.s3.answers import (
    contradicts,
    decoded,
    etag_in_parts,
    failure_of,
    flaw_of,
    parts_of,
    refusal_of,
)

ETAG = {"etag": '"5d41402abc4b2a76b9719d911017c592"'}
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
COMPLETED = b"<?xml version='1.0'?>\n<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"
NAMESPACED = b"<Error xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Code>InternalError</Code></Error>"


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "HeadObject"])
@pytest.mark.parametrize(
    ("status", "headers", "body", "good"),
    [
        (200, ETAG, b"", True),
        (200, {"etag": "opaque"}, b"", True),
        (200, {"etag": '"s3:a,b=="'}, b"", True),
        (200, {"etag": "*"}, b"", False),
        (200, {"etag": '"abc", "5d41402abc4b2a76b9719d911017c592"'}, b"", False),
        (200, {"etag": "abc, def"}, b"", False),
        (200, {"etag": '"abc'}, b"", False),
        (200, {}, b"", False),
        (200, {"etag": '""'}, b"", False),
        (200, {}, PAGE, False),
        (200, ETAG, b"\r\n", True),
        (200, ETAG, PAGE, False),
        (200, {"etag": '"6b0b679a-30"'}, PAGE, False),
        (200, {"etag": '"6b0b679a-0"'}, b"", False),
        (200, {"etag": '"2d-432a5e4a73a80"'}, b"", False),
        (200, {"etag": '"1a3f-2d-432a5e4a73a80"'}, b"", False),
        (200, {"etag": 'W/"6b0b679a-0"'}, b"", False),
        (200, {"etag": 'W/"0-2jmj7l5rSw0yVb"'}, b"", False),
        (200, {"etag": "W/"}, b"", False),
        (200, {"etag": 'W/"5d41402abc4b2a76b9719d911017c592"'}, b"", True),
        (200, {"etag": 'W/"5d41402abc4b2a76b9719d911017c592-3"'}, b"", True),
        (200, {"etag": 'W/"5d41402abc4b2a76b9719d911017c592'}, b"", False),
        (200, {"etag": '"5d41402abc4b2a76b9719d911017c592-3"'}, b"", True),
        (200, {"etag": '"6b0b679a-30"'}, b'{"status": "maintenance"}', False),
        (201, ETAG, b"", False),
        (202, ETAG, b"", False),
        (204, ETAG, b"", False),
        (206, ETAG, b"", False),
        (302, ETAG, b"", False),
        (302, {}, PAGE, False),
        (307, {}, ERROR, True),
        (200, {}, ERROR, True),
        (201, {}, ERROR, False),
        (200, ETAG, NAMESPACED, False),
        (307, {}, NAMESPACED, True),
        (403, {}, PAGE, True),
        (503, {}, b"", True),
    ],
)
def test_a_body_is_taken_and_an_object_found_by_200_and_an_etag(
    operation: str, status: int, headers: dict[str, str], body: bytes, good: bool
) -> None:
    """An error of S3 is no flaw either: it is read as what it is. A page is one, also with the ETag of a file."""
    assert (flaw_of(operation, status, headers, body) == "") is good


@pytest.mark.parametrize("operation", ["AbortMultipartUpload", "DeleteObject"])
@pytest.mark.parametrize(("status", "body", "good"), [(204, b"", True), (200, b"", True), (200, PAGE, False)])
def test_an_abort_and_a_delete_are_answered_by_nothing(operation: str, status: int, body: bytes, good: bool) -> None:
    """A page in front of a dead store has aborted and deleted nothing."""
    assert (flaw_of(operation, status, {}, body) == "") is good


OTHER = "0" * 32


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, True),
        ({"ServerSideEncryption": ""}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms"}, False),
        ({"ServerSideEncryption": "aws:kms:dsse"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
    ],
)
def test_an_encrypted_object_has_an_etag_that_proves_nothing(answer: dict[str, str], expected: bool) -> None:
    """Though it looks like an MD5 sum, also where the object is made of parts."""
    assert contradicts(answer | {"ETag": f'"{OTHER}"'}, "5d41402abc4b2a76b9719d911017c592") is expected
    assert contradicts(answer | {"ETag": f'"{OTHER}-2"'}, "5d41402abc4b2a76b9719d911017c592-2") is expected


@pytest.mark.parametrize(("status", "good"), [(200, True), (201, True), (204, True), (302, False)])
def test_a_sink_succeeds_by_its_status(status: int, good: bool) -> None:
    """If the settings say that it gives no ETag."""
    assert (flaw_of("PutObject", status, {}, b"", needs_etag=False) == "") is good


@pytest.mark.parametrize(
    ("operation", "status", "body", "good"),
    [
        ("CompleteMultipartUpload", 200, COMPLETED, True),
        ("CompleteMultipartUpload", 200, b"\n  " + COMPLETED, True),
        ("CompleteMultipartUpload", 200, ERROR, True),
        ("CompleteMultipartUpload", 200, NAMESPACED, False),
        ("CompleteMultipartUpload", 200, b"", False),
        ("CompleteMultipartUpload", 200, PAGE, False),
        ("CompleteMultipartUpload", 200, b"<html><body/></html>", False),
        ("CompleteMultipartUpload", 201, COMPLETED, False),
        ("CreateMultipartUpload", 200, b"<x:InitiateMultipartUploadResult/>", True),
        ("CreateMultipartUpload", 200, b"<InitiateMultipartUpload><Bucket>b</Bucket>", True),
        ("CreateMultipartUpload", 200, PAGE, False),
        ("AbortMultipartUpload", 204, b"", True),
        ("ListParts", 200, b"<ListPartsResult><IsTruncated>false</IsTruncated></ListPartsResult>", True),
        ("ListParts", 200, b"<ListPartsResponse/>", True),
        ("ListParts", 200, b"", False),
        ("ListParts", 200, b"<html><body/></html>", False),
        ("ListParts", 206, b"", False),
        ("ListBuckets", 200, PAGE, False),
        ("ListBuckets", 200, b"", False),
        ("ListBuckets", 200, b"<ListAllMyBucketsResult/>", True),
        ("ListBuckets", 403, ERROR, True),
    ],
)
def test_other_operations_succeed_by_their_own_answer(operation: str, status: int, body: bytes, good: bool) -> None:
    """A completion by its document: the status alone proves nothing."""
    assert (flaw_of(operation, status, {}, body) == "") is good


@pytest.mark.parametrize(
    ("body", "encoding", "content"),
    [
        (b"plain", "", b"plain"),
        (b"plain", "identity", b"plain"),
        (gzip.compress(b"text"), "gzip", b"text"),
        (zlib.compress(b"text"), "Deflate", b"text"),
        (b"", "gzip", b""),
        (b"text", "gzip", None),
        (gzip.compress(b"text")[:-3], "gzip", None),
        (b"text", "br", None),
        (gzip.compress(bytes(ANSWER_MAX_BYTES + 1)), "gzip", None),
    ],
)
def test_compressed_answers_are_decoded_within_a_bound(body: bytes, encoding: str, content: bytes | None) -> None:
    """What cannot be decoded is None."""
    assert decoded(body, encoding) == content


def test_the_etag_of_parts() -> None:
    """The MD5 of their MD5s, and their number; only that when one of them has another form."""
    one, two = (hashlib.md5(text).hexdigest() for text in (b"1", b"2"))
    both = hashlib.md5(bytes.fromhex(one + two)).hexdigest()
    assert etag_in_parts([one, two.upper()]) == f"{both}-2"
    assert etag_in_parts([one, "opaque", two]) == "-3"
    assert (parts_of(f"{both}-2"), parts_of(both), parts_of("x-2")) == (2, None, None)


KEY = ConnectionKey("store", 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
REQUEST_INFO = aiohttp.RequestInfo(URL("http://store/"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://store/"))
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
    assert "x...x" in error.text
    assert error.text.endswith("x; create the bucket, or fix the destination")
    assert len(error.text) < 300
    error = refusal(404, Code="NoSuchBucket", Message="No such bucket.")
    assert error.text == "the store answered 404: No such bucket; create the bucket, or fix the destination"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"<Error><Code>NoSuchBucket</Code></Error>", "NoSuchBucket"),
        (b"<Error xmlns='urn:s3'><Code>NoSuchBucket</Code></Error>", "NoSuchBucket"),
        (b"<s3:Error xmlns:s3='urn:s3'><s3:Code>NoSuchBucket</s3:Code></s3:Error>", "NoSuchBucket"),
        (b"<Error xmlns='urn:s3'><Message>no code</Message></Error>", "404"),
        (b"<Error><Code>two words\n\x7f</Code></Error>", "404"),
        (b"<Error><Code><b>NoSuchBucket</b></Code></Error>", "404"),
        (b"<Error><Code>A</Code><Code>B</Code></Error>", "404"),
        (b"<Error><Code>" + b"A" * 65 + b"</Code></Error>", "404"),
        (b"<page xmlns='urn:page'><p>not found</p></page>", "404"),
        (b"", "404"),
    ],
)
def test_a_code_is_a_word_of_the_error(body: bytes, code: str) -> None:
    """As botocore parses the answer: a namespace hides no code. Without one the status is the code."""
    answer = {"status_code": 404, "headers": {}, "body": body}
    parsed = botocore.parsers.create_parser("rest-xml").parse(answer, None)
    error = refusal_of(botocore.exceptions.ClientError(parsed, "PutObject"), arrived=True)
    assert (error.code, error.status) == (code, 404)


@pytest.mark.parametrize(
    ("operation", "status", "code", "blames"),
    [
        ("HeadObject", 404, "NoSuchKey", False),
        ("HeadObject", 403, "AccessDenied", False),
        ("HeadObject", 405, "MethodNotAllowed", False),
        ("HeadObject", 503, "503", True),
        ("HeadObject", 410, "410", True),
        ("PutObject", 404, "404", True),
    ],
)
def test_an_answer_to_head_has_no_code(operation: str, status: int, code: str, blames: bool) -> None:
    """That an object is not there, or may not be looked up, says nothing bad of the address that answers so."""
    answer = {"status_code": status, "headers": {}, "body": b""}
    parsed = botocore.parsers.create_parser("rest-xml").parse(answer, None)
    error = refusal_of(botocore.exceptions.ClientError(parsed, operation), arrived=True)
    assert (error.code, blames_endpoint(error)) == (code, blames)
    assert ("a proxy or another server answered" in error.text) == (blames and status != 503)


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        (
            {"location": "https://store/bucket/key?X-Amz-Signature=0"},
            "; it redirects to https://store/bucket/key, which is not followed: "
            "set S3_ENDPOINT_URL to where S3 is served",
        ),
        ({}, ""),
    ],
)
def test_a_redirect_names_its_target(headers: dict[str, str], hint: str) -> None:
    """As of a proxy that sends all of HTTP to HTTPS."""
    assert refusal(301, headers).text == f"the store answered 301{hint}"


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        (
            "s3.eu-west-1.example.org",
            "it redirects to s3.eu-west-1.example.org, which is not followed: set S3_ENDPOINT_",
        ),
        ("", "the bucket is at another endpoint: set S3_ENDPOINT_URL to that one"),
    ],
)
def test_a_bucket_that_is_elsewhere_is_refused_with_what_to_do(target: str, hint: str) -> None:
    """S3 names the endpoint in the error, and in no header."""
    body = f"<Error><Code>PermanentRedirect</Code><Message>no</Message><Endpoint>{target}</Endpoint></Error>"
    parsed = botocore.parsers.create_parser("rest-xml").parse(
        {"status_code": 301, "headers": {}, "body": body.encode()}, None
    )
    error = refusal_of(botocore.exceptions.ClientError(parsed, "PutObject"), arrived=True)
    assert error.code == "PermanentRedirect"
    assert error.text.startswith(f"the store answered 301: no; {hint}")


@pytest.mark.parametrize("status", [400, 409, 413, 418, 451, 499])
def test_a_4xx_without_a_code_is_not_the_stores(status: int) -> None:
    text = refusal(status).text
    assert text.startswith(f"the store answered {status}; without an S3 error: a proxy or another server answered")
    assert ("client_max_body_size" in text) == (status == 413)


def test_an_unreadable_200_is_not_attributed_to_the_store() -> None:
    error = refusal(500, {":status": "200"}, Code="500", Message="Internal Server Error")
    assert (error.code, error.status, error.ambiguous) == ("BadAnswer", 500, True)
    assert error.text == "the answer 200 has neither S3's result nor an error of S3's in it"
    assert refusal(500, {":status": "200"}, Code="InternalError").code == "InternalError"


def test_a_refusal_without_a_code_is_named_by_its_status() -> None:
    """What did not come from an S3 server still has a code."""
    error = refusal(502)
    assert (error.code, error.status, error.text) == ("502", 502, "the store answered 502")


@pytest.mark.parametrize(
    ("status", "ambiguous"),
    [
        (307, True),
        (400, False),
        (403, False),
        (408, False),
        (429, False),
        (500, True),
        (502, True),
        (503, True),
        (504, True),
    ],
)
def test_which_statuses_are_ambiguous(status: int, ambiguous: bool) -> None:
    """Those that a proxy may answer though the store has carried the request out, if all of that arrived."""
    assert refusal(status, Code="Any").ambiguous is ambiguous
    assert not refusal(status, Code="Any", arrived=False).ambiguous
    assert refusal(status).ambiguous, "without a code it was not the store that answered"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("86400", 86400.0),
        ("9" * 400, math.inf),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("²", 0.0),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    """Whole seconds count; anything else counts as no header."""
    assert refusal(503, {"retry-after": header}, Code="SlowDown").retry_after == seconds


def test_a_refusal_quotes_nothing_of_the_request() -> None:
    """Of S3's answer to a wrong signature only code and message are kept: it quotes the request's headers."""
    quoted: dict[str, Any] = {"CanonicalRequest": "x-amz-security-token:sesame", "StringToSign": "sesame"}
    error = refusal(403, Code="SignatureDoesNotMatch", Message="no match", **quoted)
    assert "sesame" not in repr(error) + error.text


def caused(error: Exception, by: Exception) -> Exception:
    """An error that another one caused."""
    error.__cause__ = by
    return error


def distrust(why: str) -> ssl.SSLCertVerificationError:
    """What the TLS library raises for a certificate."""
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {why} (_ssl.c:992)")
    error.verify_message = why
    return error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (aiohttp.ClientConnectorError(KEY, REFUSED), "ConnectionFailed", "Connection refused"),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EMFILE, "")), "HostLimit", "no descriptor or no memory left"),
        (aiohttp.ClientOSError(errno.ENOBUFS, ""), "HostLimit", "no descriptor or no memory left"),
        (OSError(errno.ENFILE, ""), "HostLimit", "no descriptor or no memory left"),
        (
            caused(aiohttp.ClientConnectionError(), OSError(errno.ENOMEM, "")),
            "HostLimit",
            "no descriptor or no memory left",
        ),
        (aiohttp.ConnectionTimeoutError("slow"), "ConnectTimeout", "answer the TLS handshake, in time"),
        (
            aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "WRONG_VERSION")),
            "TLSFailed",
            "no TLS with the store, wrong version: does that port speak https?",
        ),
        (
            aiohttp.ClientConnectorError(KEY, ConnectionResetError()),
            "ConnectionFailed",
            "no connection to the store: closed within the handshake: does that port speak https?",
        ),
        *(
            (aiohttp.ClientConnectorCertificateError(KEY, distrust(why)), "TLSRefused", f" accepted, {why}: {cure}")
            for why, cure in {
                "certificate has expired": "have it renewed, unless this host's clock is wrong",
                "certificate is not yet valid": "have it renewed, unless this host's clock is wrong",
                "Hostname mismatch, certificate is not valid for 's3'": "S3_ENDPOINT_URL must have a name that",
                "unable to get local issuer certificate": "name the PEM file of its authority in AWS_CA_BUNDLE",
                "EE certificate key too weak": "have it issued again, with a longer key and a newer signature",
                "CA signature digest algorithm too weak": "have it issued again, with a longer key and a newer",
            }.items()
        ),
        (aiohttp.ServerDisconnectedError(), "ConnectionClosed", "closed the connection"),
        (aiohttp.ClientOSError(errno.EPIPE, "Broken pipe"), "ConnectionClosed", "closed the connection"),
        (ConnectionResetError(), "ConnectionClosed", "closed the connection"),
        (TimeoutError(), "NoAnswer", "did not answer in time"),
        (
            aiohttp.ClientPayloadError("Response payload is not completed: <ContentLengthError: 400, message='x'>"),
            "BadAnswer",
            "the store's answer cannot be read: its body ended early, or is not well formed",
        ),
        (AnswerTooLongError("its body is longer than 1 MiB"), "BadAnswer", "read: its body is longer than 1 MiB"),
        (
            aiohttp.ClientResponseError(REQUEST_INFO, (), status=400, message="Expected HTTP/:\n\n  b'SSH-2.0'\n"),
            "BadAnswer",
            "the store's answer cannot be read: it is not HTTP, or its header is too long",
        ),
        (
            botocore.exceptions.ParamValidationError(report="Invalid ARN: a:b"),
            "BadRequest",
            "S3 has no such destination, fix it: Parameter validation failed: Invalid ARN: a:b",
        ),
        (botocore.parsers.ResponseParserError("no XML"), "BadAnswer", "cannot be read: it is not S3's XML"),
        (ValueError("what\r\never" + "x" * 1000), "BadAnswer", r"what\r\never"),
    ],
)
def test_each_failure_has_its_code(error: BaseException, code: str, words: str) -> None:
    """And says what happened, in one short line."""
    found = failure(error)
    assert (found.code, found.status, found.ambiguous) == (code, 0, False)
    assert words in found.text
    assert not re.search(r"[a-z]Error\b|<|\(_ssl", found.text.replace("ValueError", ""))
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
    ("reason", "text"),
    [
        (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "tlsv13 alert certificate required: the store wants one of its clients, and s3daemon has none",
        ),
        ("TLSV1_ALERT_INTERNAL_ERROR", "tlsv1 alert internal error"),
        ("WRONG_VERSION_NUMBER", "wrong version number: does that port speak https?"),
        (
            "[SSL] legacy sigalg disallowed or unsupported (_ssl.c:992)",
            "legacy sigalg disallowed or unsupported: have the store's TLS renewed, or see update-crypto-policies(8)",
        ),
        (
            "UNSAFE_LEGACY_RENEGOTIATION_DISABLED",
            "unsafe legacy renegotiation disabled: have the store's TLS renewed, or see update-crypto-policies(8)",
        ),
        ("DH_KEY_TOO_SMALL", "dh key too small: have the store's TLS renewed, or see update-crypto-policies(8)"),
    ],
)
def test_what_ended_tls_is_said(reason: str, text: str) -> None:
    """An alert that comes with the answer, as TLS 1.3's for a certificate that is missing, ends a connection in use."""
    cause = ssl.SSLError(1, reason)
    cause.reason = reason
    error = aiohttp.ClientOSError(1, "any")
    error.__cause__ = cause
    found = failure(error)
    assert (found.code, found.text) == ("ConnectionClosed", f"TLS with the store ended, {text}")


@pytest.mark.parametrize(
    ("ambiguous", "stale", "code"),
    [
        (False, True, "StaleConnection"),
        (False, False, "ConnectionClosed"),
        (True, True, "StaleConnection"),
        (True, False, "ConnectionClosed"),
    ],
)
def test_an_idle_connection_that_was_closed_has_a_code_of_its_own(ambiguous: bool, stale: bool, code: str) -> None:
    """It is tried again at once; a small body may have arrived all the same, and is looked up then."""
    found = failure(aiohttp.ServerDisconnectedError(), ambiguous=ambiguous, stale=stale)
    assert (found.code, found.ambiguous) == (code, ambiguous)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("error", [FileError("FileChanged", "it changed"), AttemptError("Stalled", "still")])
def test_our_own_errors_are_unchanged(error: Any, stale: bool) -> None:
    """An error of our own that was raised within the request is returned as it is."""
    assert failure_of(error, ambiguous=True, stale=stale) is error
