"""Classify an answer of the store, or its absence, as a success or as one of our errors.

Which answers are a success: those of the operation's own form, and nothing else. A status line proves nothing. A
captive portal, a balancer, or an nginx with `error_page 502 =200` answers 200 to a request that no store has seen; if
its page is a file, web servers give that an ETag too, also when the file is empty. S3 answers a PUT with 200, an ETag
and nothing else, and a completion with a document of its own. Any other answer below 400 is `BadAnswer`: the object may
be stored or not, so it is looked up.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from http import HTTPStatus
from typing import Any

import aiohttp
import botocore.exceptions
import botocore.parsers

from s3daemon.config.settings import Settings
from s3daemon.errors import (
    HOST_LIMIT_TEXT,
    AttemptError,
    Code,
    FileError,
    S3daemonError,
    is_host_limit,
    one_line,
)
from s3daemon.model.verdict import CLIENT_STATUSES, is_unlisted
from s3daemon.network.cause import cause_of
from s3daemon.network.connection import ANSWER_MAX_BYTES, AnswerTooLongError

#: The ETag of an object stored in parts, on S3 and compatible stores: MD5 of the parts' MD5s, and how many there were.
_MULTIPART_ETAG = re.compile(r"([0-9a-f]{32}|)-([0-9]{1,5})")
#: The ETag of an object stored by one PUT. One of another form (some encryptions) says nothing about the content.
_MD5 = re.compile(r"[0-9a-f]{32}")
#: One entity tag (RFC 9110, 8.8.3): not two that contradict each other, and not the word for any. Some stores leave the
#: quotes out.
_ETAG = re.compile(r'"[!#-~]+"|[!#-)+-~][!#-~]*')
#: What web servers give their files: nginx and lighttpd the time and the size, Apache also the inode, in hexadecimal
#: (nginx's ngx_http_set_etag, Apache's FileETag).
_FILE_ETAG = re.compile(r"[0-9a-f]{1,16}(-[0-9a-f]{1,16}){1,2}", re.IGNORECASE)
#: How a weak entity tag begins. S3 gives none, but a proxy that changes answers may make each of them weak; what is in
#: the quotes is the same (RFC 9110, 8.8.3). As servers of pages give weak ones too, that must have the form of S3's.
_WEAK = "W/"
#: Encryption by S3 under which an ETag is not the MD5 of what was sent ("Object", Amazon S3 API Reference, on ETag).
_KMS = "aws:kms"
_ROOT = re.compile(rb"\A\s*(?:<\?xml[^>]*\?>)?\s*<(?:\w+:)?(\w+)")
#: The only root element in which botocore sees an error of an answer 200; one with a namespace it takes for a success.
_PLAIN_ERROR = re.compile(rb"\A\s*(?:<\?xml[^>]*\?>)?\s*<Error\s*>")
#: A word, as every code of S3's is: it goes into answers, records and metrics.
_CODE = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)
#: zlib's window size for gzip and zlib streams alike.
_ANY_HEADER = zlib.MAX_WBITS | 32


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """What a success of an operation looks like.

    Args:
        statuses: the HTTP statuses that S3 gives it.
        etag: it must have an ETag header.
        empty: it has no body.
        documents: names of the document's root element, S3's own first; empty where the answer has no document.
    """

    statuses: tuple[int, ...] = (HTTPStatus.OK,)
    etag: bool = False
    empty: bool = False
    documents: tuple[str, ...] = ()


#: By S3's name of the operation. Sources: the "Response Syntax" of each in the Amazon S3 API Reference. Any other
#: operation succeeds by a 200.
FORMS: Mapping[str, AnswerForm] = {
    "PutObject": AnswerForm(etag=True, empty=True),
    "UploadPart": AnswerForm(etag=True, empty=True),
    "CreateMultipartUpload": AnswerForm(
        documents=("InitiateMultipartUploadResult", "InitiateMultipartUpload")
    ),  # rclone's
    "CompleteMultipartUpload": AnswerForm(documents=("CompleteMultipartUploadResult",)),
    "AbortMultipartUpload": AnswerForm((HTTPStatus.NO_CONTENT, HTTPStatus.OK), empty=True),
    "DeleteObject": AnswerForm((HTTPStatus.NO_CONTENT, HTTPStatus.OK), empty=True),
    "ListBuckets": AnswerForm(documents=("ListAllMyBucketsResult",)),
    # A page for one of these would say that the object is another one, or that no part is there.
    "HeadObject": AnswerForm(etag=True, empty=True),
    "ListParts": AnswerForm(documents=("ListPartsResult", "ListPartsResponse")),  # moto's
}


def flaw_of(operation: str, status: int, headers: Mapping[str, str], body: bytes, *, needs_etag: bool = True) -> str:
    """Return why an answer is neither the operation's success nor an error that S3 would give; empty when it is one.

    Args:
        operation: S3's name of it.
        status: of the answer.
        headers: likewise, by names in small letters.
        body: likewise, decoded.
        needs_etag: False for a sink, which gives no ETag, and any success status.
    """
    form, root = FORMS.get(operation, AnswerForm()), _root(body)
    is_refusal = (
        _PLAIN_ERROR.match(body) is not None
        if status == HTTPStatus.OK
        else root == "Error" and status > HTTPStatus.MULTIPLE_CHOICES
    )
    is_of_sink = form.etag and not needs_etag and status < HTTPStatus.MULTIPLE_CHOICES
    if status >= HTTPStatus.BAD_REQUEST or is_refusal or is_of_sink:
        return ""
    if status not in form.statuses:
        elsewhere = _redirect(status, headers.get("location", ""))
        return "; ".join(filter(None, (f"the answer with status {status} did not come from S3", elsewhere)))
    if form.empty and body.strip():
        return f"the answer with status {status} has a body, so it came from a proxy or another server"
    if form.documents and root not in form.documents:
        return f"the answer with status {status} is not S3's {form.documents[0]}"
    return _flaw_of_etag(status, headers.get("etag", "")) if form.etag else ""


def _flaw_of_etag(status: int, etag: str) -> str:
    tag = etag.removeprefix(_WEAK)
    text = tag.strip('" ')
    if not text:
        return f"the answer with status {status} has no ETag, so it did not come from S3"
    flaw = ""
    if _FILE_ETAG.fullmatch(text) or (tag != etag and not (is_md5(text) or parts_of(text))):
        flaw = f"the ETag {etag} of a web server's file"
    elif not _ETAG.fullmatch(tag):
        flaw = f"the ETag {etag}, which is not valid"
    return f"the answer with status {status} has {flaw}: it came from a proxy or another server" if flaw else ""


def _root(body: bytes) -> str:
    found = _ROOT.match(body)
    return found[1].decode() if found else ""


def decoded(body: bytes, encoding: str) -> bytes | None:
    """Return an answer's body without its Content-Encoding; None when that is not possible within the bound."""
    if not body or encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    decoder = zlib.decompressobj(_ANY_HEADER)
    try:
        content = decoder.decompress(body, ANSWER_MAX_BYTES)
    except zlib.error:
        return None
    return content if decoder.eof else None


def etag_in_parts(etags: Sequence[str]) -> str:
    """Return the ETag of an object made of parts with these ETags; without digest where they are not all MD5 sums."""
    found = [etag.lower() for etag in etags]
    if not all(map(_MD5.fullmatch, found)):
        return f"-{len(found)}"
    return f"{md5(b''.join(map(bytes.fromhex, found)), usedforsecurity=False).hexdigest()}-{len(found)}"


def parts_of(etag: str) -> int | None:
    """Return how many parts an object with this ETag has; None when that cannot be told."""
    found = _MULTIPART_ETAG.fullmatch(etag.lower())
    return int(found[2]) if found else None


def is_md5(etag: str) -> bool:
    """Return whether an ETag has the form of an MD5 sum."""
    return _MD5.fullmatch(etag.lower()) is not None


def etag_of(answer: Mapping[str, Any]) -> str:
    """Return the ETag in a parsed answer, without quotes or the mark of a weak one; empty when it has none."""
    return str(answer.get("ETag", "")).removeprefix(_WEAK).strip('"')


def is_encrypted(answer: Mapping[str, Any]) -> bool:
    """Return whether the object of a parsed answer is encrypted so that its ETag is not made of MD5 sums."""
    return str(answer.get("ServerSideEncryption", "")).startswith(_KMS) or bool(answer.get("SSECustomerAlgorithm"))


def contradicts(answer: Mapping[str, Any], expected: str) -> bool:
    """Return whether a parsed answer shows that the object is not what was sent; False where it cannot show that.

    Args:
        answer: the store's.
        expected: as `differs` takes it.
    """
    return not is_encrypted(answer) and differs(etag_of(answer), expected)


def differs(etag: str, expected: str) -> bool:
    """Return whether an object's ETag shows that it is not what was sent; False where it cannot show that.

    Args:
        etag: as the store gave it, without quotes.
        expected: of what was sent: an MD5 sum, or what `etag_in_parts` returns; empty when it is not known.
    """
    if is_md5(etag) and is_md5(expected):
        return etag.lower() != expected
    found, ours = _MULTIPART_ETAG.fullmatch(etag.lower()), _MULTIPART_ETAG.fullmatch(expected)
    if not (found and ours):
        return False
    return int(found[2]) != int(ours[2]) or bool(found[1] and ours[1] and found[1] != ours[1])


_REDIRECTS = range(300, 400)
#: What an operator can do where the store's ETag is not that of what was sent.
VERIFY_ADVICE = "S3DAEMON_VERIFY=off if its ETags are not MD5"
_NOT_S3 = "without an S3 error: a proxy or another server answered"
#: What the status of an answer to HEAD means: it has no body, and so no code though it is S3's.
_HEAD_CODES: Mapping[int, str] = {
    HTTPStatus.FORBIDDEN: "AccessDenied",
    HTTPStatus.NOT_FOUND: "NoSuchKey",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowed",
}
#: What an operator can do about an error, by its code.
_HINTS = {
    "NoSuchBucket": "create the bucket, or fix the destination",
    "AccessDenied": "these keys may not write there, or the bucket's policy demands more",
    "InvalidAccessKeyId": "fix the access key and reload",
    "SignatureDoesNotMatch": "fix the secret key and reload",
    "AuthorizationHeaderMalformed": "set AWS_DEFAULT_REGION to the store's region and reload",
    "ExpiredToken": "renew the keys and reload",
    "PermanentRedirect": "the bucket is at another endpoint: set S3_ENDPOINT_URL to that one, or fix the destination",
    "RequestTimeTooSkewed": "set the clock of this host, or of the store",
    "407": "a proxy asks for a password: let this host through without one; until then the transfer is retried",
    "413": f"{_NOT_S3}: its limit is less than the file, or a part of S3DAEMON_PART_SIZE; nginx: client_max_body_size",
    **dict.fromkeys(("507", "InsufficientStorage", "XMinioStorageFull"), "the store's disks are full"),
    **dict.fromkeys(
        ("QuotaExceeded", "XMinioAdminBucketQuotaExceeded"),
        "the bucket's quota is used up: have it raised; its transfers wait until then",
    ),
}
#: The status as it came: botocore makes a 500 of an error in an answer 200. No header of HTTP/1.1 has this name.
STATUS_HEADER = ":status"
#: What sending can raise: aiohttp's and the kernel's errors, botocore's where it cannot parse, and our own.
SENDING_ERRORS = (
    aiohttp.ClientError,
    OSError,
    FileError,
    botocore.exceptions.BotoCoreError,
    botocore.parsers.ResponseParserError,
    ValueError,
)


def refusal_of(error: botocore.exceptions.ClientError, *, arrived: bool) -> AttemptError:
    """Return the error for an answer that is not a success.

    Only code and message are kept: S3's answer to a wrong signature quotes the request's headers.

    Args:
        error: what botocore raised.
        arrived: the whole request may have arrived.
    """
    described = error.response.get("Error", {})
    if not described.get("Code"):  # where the root element has a namespace, botocore leaves its content at the top
        described = error.response
    meta = error.response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 0))
    code = str(described.get("Code") or "")
    if not _CODE.fullmatch(code):
        code = str(status)
    if code == str(status) and error.operation_name == "HeadObject":
        code = _HEAD_CODES.get(status, code)
    message = one_line(str(described.get("Message") or ""), 200).rstrip(".")  # a hint may follow
    hint = _HINTS.get(code) or (_NOT_S3 if code == str(status) and status in CLIENT_STATUSES else "")
    if not hint and is_unlisted(code, status):
        hint = "this code is not known here, so it is retried"
    headers = meta.get("HTTPHeaders", {})
    came = str(headers.get(STATUS_HEADER, status))
    if came != str(status) == code:  # botocore makes a 500 of an answer 200 in which it finds neither result nor error
        text = f"the answer {came} has neither S3's result nor an error of S3's in it"
        return AttemptError(Code.BAD_ANSWER, text, status=status, ambiguous=arrived)
    hint = _redirect(status, str(headers.get("location") or described.get("Endpoint") or "")) or hint
    said = ": ".join(filter(None, (f"the store answered {came}", message)))
    return AttemptError(
        code,
        "; ".join(filter(None, (said, hint))),
        status=status,
        ambiguous=arrived and (status not in CLIENT_STATUSES or code == str(status)),
        retry_after=_seconds(str(headers.get("retry-after", ""))),
    )


def _redirect(status: int, location: str) -> str:
    """Return where an answer redirects to and what to do, without a query, which may be signed; empty if nowhere."""
    place = one_line(location.partition("?")[0], 100)
    if status not in _REDIRECTS or not place:
        return ""
    return f"it redirects to {place}, which is not followed: set S3_ENDPOINT_URL to where S3 is served"


def _seconds(text: str) -> float:
    """Return the seconds that a Retry-After gives; 0 for a proxy's, which may be a date."""
    return float(text) if text.isascii() and text.isdigit() else 0.0


def failure_of(error: BaseException, *, ambiguous: bool, stale: bool, limit_s: float = 0.0) -> S3daemonError:
    """Return the error for a request without an answer, or with one that cannot be parsed.

    Args:
        error: what aiohttp, the kernel or botocore raised.
        ambiguous: the whole body may have arrived.
        stale: the connection was an idle one, and nothing, or not all, of what was sent was acknowledged.
        limit_s: how long the answer was waited for where it did not come in time, seconds.
    """
    if isinstance(error, S3daemonError):
        return error
    if is_host_limit(error):
        code, text = Code.HOST_LIMIT, HOST_LIMIT_TEXT
    else:
        code, text = _cause_of(error, stale=stale)
    return AttemptError(code, one_line(text), ambiguous=ambiguous, silent_s=limit_s if code == Code.NO_ANSWER else 0.0)


def _cause_of(error: BaseException, *, stale: bool) -> tuple[Code, str]:
    """Return the code and the text for an error that the way to the store, or the store, caused."""
    match error:
        case botocore.exceptions.NoCredentialsError():
            return Code.NO_CREDENTIALS, "there are no keys to sign with"
        case botocore.exceptions.BotoCoreError() | UnicodeEncodeError():  # it sends nothing: we do
            return Code.BAD_REQUEST, f"S3 has no such destination, fix it: {' '.join(str(error).split())}"
        case _:
            unreadable = Code.BAD_ANSWER, f"the store's answer cannot be read: {_flaw_in_form(error)}"
            return cause_of(error, stale=stale) or unreadable


def _flaw_in_form(error: BaseException) -> str:
    """Return why an answer cannot be read, without a library's names for it."""
    match error:
        case AnswerTooLongError():
            return str(error)
        case aiohttp.ClientPayloadError():
            return "its body ended early, or is not well formed"
        case aiohttp.ClientResponseError():
            return "it is not HTTP, or its header is too long"
        case botocore.parsers.ResponseParserError():
            return "it is not S3's XML"
        case _:
            return one_line(f"{type(error).__name__}: {error}", 200)


def stall_of(settings: Settings, size: int, acked: int, *, arrived: bool, reading: bool) -> AttemptError | FileError:
    """Return the error for a request that made no progress for too long. The caller says whether it is ambiguous.

    Args:
        settings: the limits that it exceeded.
        size: bytes of the body.
        acked: bytes that the peer acknowledged.
        arrived: the peer acknowledged all of the body, and did not answer.
        reading: the file system did not return what was to be sent next.
    """
    if arrived:
        text = f"the whole body was sent, and no answer came within {settings.answer_timeout_s:g} s"
        return AttemptError(Code.NO_ANSWER, text, silent_s=settings.answer_timeout_s)
    if reading:
        return FileError(Code.READ_FAILED, f"the file system did not answer for {settings.stall_timeout_s:g} s")
    text = f"the store took no byte for {settings.stall_timeout_s:g} s, after {acked} of {size}"
    return AttemptError(Code.STALLED, text, silent_s=settings.stall_timeout_s)
