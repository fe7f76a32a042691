"""Which answers are a success: a table of what stores, proxies and login pages answer."""

from __future__ import annotations

import gzip
import hashlib
import zlib

import pytest

from s3daemon.s3.answers import MAX_DECODED_BYTES, decoded, etag_in_parts, flaw_of, parts_of

ETAG = {"etag": '"5d41402abc4b2a76b9719d911017c592"'}
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
COMPLETED = b"<?xml version='1.0'?>\n<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
ERROR = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
@pytest.mark.parametrize(
    ("status", "headers", "body", "good"),
    [
        (200, ETAG, b"", True),
        (200, {"etag": "opaque"}, b"", True),
        (200, {}, b"", False),
        (200, {"etag": '""'}, b"", False),
        (200, {}, PAGE, False),
        (201, ETAG, b"", False),
        (202, ETAG, b"", False),
        (204, ETAG, b"", False),
        (206, ETAG, b"", False),
        (302, ETAG, b"", False),
        (302, {}, PAGE, False),
        (307, {}, ERROR, True),
        (200, {}, ERROR, True),
        (201, {}, ERROR, False),
        (403, {}, PAGE, True),
        (503, {}, b"", True),
    ],
)
def test_a_body_is_taken_by_200_and_an_etag(
    operation: str, status: int, headers: dict[str, str], body: bytes, good: bool
) -> None:
    """An error of S3 is no flaw either: it is read as what it is."""
    assert (flaw_of(operation, status, headers, body) == "") is good


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
        ("CompleteMultipartUpload", 200, b"", False),
        ("CompleteMultipartUpload", 200, PAGE, False),
        ("CompleteMultipartUpload", 200, b"<html><body/></html>", False),
        ("CompleteMultipartUpload", 201, COMPLETED, False),
        ("CreateMultipartUpload", 200, b"<x:InitiateMultipartUploadResult/>", True),
        ("CreateMultipartUpload", 200, PAGE, False),
        ("AbortMultipartUpload", 204, b"", True),
        ("HeadObject", 200, b"", True),
        ("HeadObject", 204, b"", False),
        ("ListParts", 206, b"", False),
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
        (gzip.compress(bytes(MAX_DECODED_BYTES + 1)), "gzip", None),
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
