"""A form becomes a request or is refused with a reason, whichever of its two encodings a hook's curl chose.

What became of a transfer becomes the figures that such hooks know.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import RequestError
from s3daemon.http.form import MAX_FORM, Answer, parse_form, task_of
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import MAX_TAG_CHARS, Destination, FileState, Request, Transfer

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=XX"


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A body as curl -F writes it; the name may go on with further parameters."""
    body = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"
        for name, value in parts
    )
    return body + b"--XX--\r\n"


def test_both_encodings_say_the_same() -> None:
    """The three fields; a field of no meaning to us is passed over; the client waits."""
    wanted = Request("/data/f é.fits", Destination("raw", "night 1/f+g.fits"), tag="AB_1", extended=True)
    text = "file=/data/f+%C3%A9.fits&uri=s3://raw/night%201/f%2Bg.fits&slug=AB_1&priority=9"
    assert parse_form(URLENCODED, text.encode()) == wanted
    fields = {"file": "/data/f é.fits", "uri": "s3://raw/night 1/f+g.fits", "slug": "AB_1", "priority": "9"}
    body = multipart(*((name, value.encode()) for name, value in fields.items()))
    assert parse_form(MULTIPART, body) == wanted
    assert wanted.wait


def test_a_slug_may_be_left_out() -> None:
    assert parse_form(URLENCODED + "; charset=UTF-8", b"file=/f&uri=s3://b/k").tag == ""


@pytest.mark.parametrize("name", [b"/data/\xff\xfe.fits", b"/data/\xc3\xa9\xe9", "/data/日本".encode()])
def test_names_that_are_not_utf_8(name: bytes) -> None:
    """The file's name arrives as the bytes that it is: plain, percent-encoded, or in a part of its own."""
    for content_type, body in (
        (URLENCODED, b"file=" + name + b"&uri=s3://b/k"),
        (URLENCODED, f"file={quote_from_bytes(name)}&uri=s3://b/k".encode()),
        (MULTIPART, multipart(("file", name), ("uri", b"s3://b/k"))),
    ):
        assert os.fsencode(parse_form(content_type, body).file) == name


def test_a_name_in_a_part_keeps_its_spaces_and_line_ends() -> None:
    """Nothing is stripped but the line end that belongs to the delimiter."""
    assert parse_form(MULTIPART, multipart(("file", b"/ a \r\n b\n "), ("uri", b"s3://b/k"))).file == "/ a \r\n b\n "


def test_uris_are_taken_as_they_are() -> None:
    """A key is anything behind the bucket's slash; nothing in it is an escape, a query or a fragment."""
    body = multipart(("file", b"/f"), ("uri", b"s3://t:raw/a//%41?b#c"))
    assert parse_form(MULTIPART, body).destination == Destination("t:raw", "a//%41?b#c")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the field 'file' is missing"),
        (b"file=&uri=s3://b/k", "the field 'file' is missing"),
        (b"file=/f", "the field 'uri' is missing"),
        (b"file=/f&uri=s3://b/k&file=/g", "the field 'file' is there twice"),
        (b"file=f&uri=s3://b/k", "'f' is not an absolute path"),
        (b"file=/f%00&uri=s3://b/k", "the file name has a NUL byte"),
        (b"file=/f&uri=b/k", "the uri 'b/k' is not s3://bucket/key"),
        (b"file=/f&uri=S3://b/k", "the uri 'S3://b/k' is not s3://bucket/key"),
        (b"file=/f&uri=s3://b", "the uri 's3://b' is not s3://bucket/key"),
        (b"file=/f&uri=s3://b/", "no key"),
        (b"file=/f&uri=s3:///k", "no bucket"),
        (b"file=/f&uri=s3://b/%FF", "not UTF-8"),
        (b"file=/f&uri=s3://b/k&slug=a%0Ab", f"a tag has at most {MAX_TAG_CHARS} characters"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_form(URLENCODED, body)
    assert why in caught.value.text
    assert caught.value.code == "BadRequest"


def test_a_file_that_is_sent_itself_is_refused() -> None:
    """`-F file=@/data/f` instead of `-F file=/data/f`: the daemon reads files, it does not take them."""
    body = multipart(('file"; filename="f.fits', b"SIMPLE  ="), ("uri", b"s3://b/k"))
    with pytest.raises(RequestError, match="holds a file's content; its path is wanted"):
        parse_form(MULTIPART, body)


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "multipart/mixed; boundary=XX"])
def test_other_types_are_refused(content_type: str) -> None:
    """Those that another site's page may send without asking are among them."""
    with pytest.raises(RequestError, match="a form is application/x-www-form-urlencoded or multipart/form-data"):
        parse_form(content_type, b'{"file": "/f"}')


@given(
    content_type=st.sampled_from([URLENCODED, MULTIPART, "multipart/form-data", MULTIPART + '"; x="'])
    | st.text(max_size=50),
    body=st.binary(max_size=300)
    | st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=20)), max_size=4).map(
        lambda parts: multipart(*((name, value) for name, value in parts if name.isascii()))
    ),
)
def test_anything_is_a_request_or_refused(content_type: str, body: bytes) -> None:
    """No input does anything else."""
    with suppress(RequestError):
        assert parse_form(content_type, body).file.startswith("/")


def test_a_form_of_the_longest_names_has_room() -> None:
    """A path of 4096 bytes, a key of 1024 and a tag, all of them percent-encoded."""
    body = "file=/" + "%FF" * 4095 + "&uri=s3://" + "%C3%A9" * 255 + "/" + "%C3%A9" * 512 + "&slug=" + "%41" * 128
    assert len(body) < MAX_FORM
    assert len(os.fsencode(parse_form(URLENCODED, body.encode()).file)) == 4096


STORED = TransferRecord(
    transfer_id="00000000000000aa", outcome="stored", file="/f", bucket="b", key="k", size_bytes=8_000_000,
    start_usec=1, total_usec=3_723_000_450, upload_usec=640_000, attempts=3, tags=("first", "mine"),
)  # fmt: skip


def queued(record: TransferRecord | None = None) -> QueuedTransfer:
    transfer = Transfer("00000000000000aa", "/f", Destination("b", "k"), ("first", "mine"), FileState(500, 1, 1, 1), 1)
    return QueuedTransfer(1, transfer, accepted_at=100.0, accepted_active_s=0.0, attempts=3, record=record)


def test_the_task_of_what_is_stored() -> None:
    """Times from acceptance to the end, the rate of the attempt that stored it, the slug of this client."""
    request = Request("/f", Destination("b", "k"), tag="mine", extended=True)
    assert task_of(request, queued(STORED), 999.0) == {
        "id": "00000000000000aa",
        "uri": "s3://b/k",
        "file": "/f",
        "duration": "1:02:03.000450",
        "duration_seconds": 3723.00045,
        "attempts": 3,
        "size_bytes": 8_000_000,
        "upload_parts": 1,
        "transfer_rate": "100.000 Mbit/s",
        "transfer_rate_mbits": 100.0,
        "slug": "mine",
    }
    assert task_of(request, queued(replace(STORED, parts=7)), 999.0)["upload_parts"] == 7


def test_the_task_of_what_is_not() -> None:
    """One that failed has its time and no rate; one that is on its way, the time until now."""
    request = Request("/f", Destination("b", "k"), extended=True)
    failed = replace(STORED, outcome="failed", error="AccessDenied: no", upload_usec=None)
    assert task_of(request, queued(failed), 999.0)["transfer_rate"] == "0.000 Mbit/s"
    deferred = task_of(request, queued(), 130.5)
    assert (deferred["duration"], deferred["size_bytes"], deferred["attempts"]) == ("0:00:30.500000", 500, 3)


def test_a_message_in_a_header_is_one_line_of_ascii() -> None:
    answer = Answer(HTTPStatus.BAD_REQUEST, "Nö:\r\nX-Evil: 1\udcff")
    assert answer.headers() == {"X-Error": "N\\xf6:\\r\\nX-Evil: 1\\udcff"}
    assert json.loads(answer.encode()) == {"code": 400, "msg": answer.message, "task": None}
