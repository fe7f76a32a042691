"""The wire: bytes in, requests out; replies in, bytes out; never another exception than RequestError."""

import json
import os
import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.errors import FileError, RequestError
from s3daemon.ingress.protocol import (
    MAX_LINE,
    QUESTION_LIMIT_S,
    LineReader,
    Question,
    given_in,
    http_answer,
    is_extended,
    is_http,
    parse_request,
    question_in,
)
from s3daemon.ingress.refusals import describe_refusal
from s3daemon.model.exposure import Exposures, Loss
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Destination, Request

PLACE = Destination("bucket", "dir/key")

#: Lines that are understood, shared with the client's tests: what `send` writes must be among what these stand for.
GOOD = [
    (b"/data/f alias/bucket/dir/key", Request("/data/f", PLACE)),
    (b"/data/f\xc3\xa9 a/bucket/dir/key", Request("/data/fé", PLACE)),
    (b'/data/"q" a/bucket/dir/key', Request('/data/"q"', PLACE)),
    (b"/data/f /bucket/dir/key", Request("/data/f", PLACE)),
    (b"/data/f a/bucket/dir/key\r", Request("/data/f", PLACE)),
    (b"/data/f a/bucket/dir/key ", Request("/data/f", PLACE)),
    (b"/data/f a/bucket/dir/key \t\r", Request("/data/f", PLACE)),
    (b"/data/f a/bucket//key", Request("/data/f", Destination("bucket", "/key"))),
    (b'{"file": "/data/f", "destination": "/bucket/dir/key"}', Request("/data/f", PLACE, extended=True)),
    (
        b'{"file": "/data/f ", "destination": "a/bucket/dir/key "}',
        Request("/data/f ", Destination("bucket", "dir/key "), extended=True),
    ),
    (b'{"file": "/data/f", "destination": "a/bucket/dir/key"}', Request("/data/f", PLACE, extended=True)),
    (
        b'{"file": "/a b\\nc", "destination": "a/bucket/dir/key", "wait": false, "tag": "night 1"}',
        Request("/a b\nc", PLACE, wait=False, tag="night 1", extended=True),
    ),
    (
        b'{"file": "/\\udcff", "destination": "a/bucket/dir/key"}',
        Request(os.fsdecode(b"/\xff"), PLACE, extended=True),
    ),
]
BAD = [
    b"",
    b" ",
    b"/f",
    b"/f ",
    b" a/b/c",
    b"/f ",
    b"/f \r",
    b"\r",
    b"/f  a/b/c",
    b"/f a/b/c d",
    b"f a/b/c",
    b"/f a/b/c d\r",
    b"/f a/b/c\rd",
    b"/f a/b/c\r/g",
    b"/f a/b",
    b"/f /b",
    b"/f a/b/",
    b"/f a/b/night/",
    b"/f a/b/night/ ",
    b"/f a/b/../c",
    b"/f a/b/./c",
    b"/f a/../c",
    b'{"file": "/f", "destination": "a/b/night/"}',
    b'{"file": "/f", "destination": "a/b/../c"}',
    b"/\xff a/b/c",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1",
    b"{",
    b"{}",
    b"{" * 8000,
    b'{"a":' + b"[" * 8000,
    b'{"file": 1, "destination": "a/b/c"}',
    b'{"file": "/f", "destination": null}',
    b'{"file": "/f", "destination": "a/b/c", "wait": 1}',
    b'{"file": "/f", "destination": "a/b/c", "tag": []}',
    b'{"file": "/f", "destination": "a/b/c", "wiat": true}',
    b'{"file": "/f", "destination": "a/b/c", "file": "/g"}',
    b'{"file": "/\\ud800", "destination": "a/b/c"}',
    b'{"file": "/f", "destination": "a/b/\\udcff"}',
    b'{"file": "/\\u0000", "destination": "a/b/c"}',
    b'{"file": "/f", "destination": "a/b/c", "tag": ' + b"9" * 5000 + b"}",
    b'{"file": "/\\udcff\\ud800", "tag": "t"}',
    b'{"file": "/f", "destination": "\\ud800/\\ud800/\\udcff", "tag": "\\udcff"}',
]


@pytest.mark.parametrize(("line", "request_"), GOOD)
def test_good_lines(line: bytes, request_: Request) -> None:
    """Both forms, each name exactly."""
    assert parse_request(line) == request_


@pytest.mark.parametrize("line", [b"/\xff a/b/c", b'{"file": "/\xff", "destination": "a/b/c"}'])
def test_bytes_that_are_not_utf_8_need_escapes(line: bytes) -> None:
    """In the extended form too, so naming that form alone would not tell its author what to do."""
    with pytest.raises(RequestError, match="in the extended form, with JSON escapes, as `send` does"):
        parse_request(line)


@pytest.mark.parametrize("line", BAD, ids=lambda line: repr(line[:40]))
def test_bad_lines(line: bytes) -> None:
    """Refused with one printable line."""
    with pytest.raises(RequestError) as caught:
        parse_request(line)
    assert caught.value.code == "BadRequest"
    assert caught.value.text.isprintable()


@pytest.mark.parametrize("timeout", ["1e400", "9" * 400, "Infinity", "3601"])
def test_no_question_waits_longer_than_the_limit(timeout: str) -> None:
    """However large the number that a client gives."""
    question = question_in(f'{{"wait_for": "t", "timeout": {timeout}}}'.encode())
    assert question == Question("t", timeout_s=QUESTION_LIMIT_S)


@pytest.mark.parametrize("timeout", ["-1", "-1e400", "NaN", "true", '"1"', "null", "[]"])
def test_a_timeout_is_a_number_of_seconds(timeout: str) -> None:
    with pytest.raises(RequestError, match="is a number of seconds"):
        question_in(f'{{"wait_for": "t", "timeout": {timeout}}}'.encode())


@pytest.mark.parametrize("expect", ["0", "-1", "1.0", "true", '"1"', "[]"])
def test_the_number_of_files_is_one_or_more(expect: str) -> None:
    with pytest.raises(RequestError, match="is the number of files, 1 or more"):
        question_in(f'{{"wait_for": "t", "expect": {expect}}}'.encode())


@pytest.mark.parametrize(("expect", "number"), [("1", 1), ("46", 46), ("null", None)])
def test_the_number_of_files_may_be_left_out(expect: str, number: int | None) -> None:
    assert question_in(f'{{"wait_for": "t", "expect": {expect}}}'.encode()) == Question("t", number)


@pytest.mark.parametrize("line", BAD, ids=lambda line: repr(line[:40]))
def test_the_journal_and_the_spool_take_what_is_kept_of_bad_lines(line: bytes) -> None:
    """Whatever code points a client gives: bytes of file names as they are, all else as text."""
    refusal = describe_refusal(RequestError("BadRequest", "no"), *given_in(line))
    assert dict(refusal.fields())["MESSAGE"]
    losses: list[Loss] = []
    Exposures(on_loss=losses.append).refused(refusal, 1)
    with closing(sqlite3.connect(":memory:")) as db:
        for loss in losses:
            db.execute("SELECT ?, ?, ?", (loss.what, loss.missing.reason, loss.names[0][1]))


def test_tls_is_refused_in_one_line() -> None:
    """At once, for a handshake need not have a line feed; none of its bytes is shown or kept."""
    reader = LineReader()
    reader.feed(b"\x16\x03\x01\x02\x00\x01\x00\n\xfc")
    with pytest.raises(RequestError, match="TLS is not spoken here"):
        reader.next_line()
    assert reader.rest == b""


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"/f\tg", r"'/f\tg'"),
        (b"f\x00 a/b/c", r"'f\x00'"),
        (b"f\\n a/b/c", r"'f\n'"),
        (b'{"a\\t": 1}', r"'a\t'"),
        (b"/f a/b\tc", r"'a/b\tc'"),
    ],
)
def test_what_a_client_gave_is_shown_without_escapes_of_escapes(line: bytes, shown: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(line)
    assert shown in caught.value.text


@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode(errors="replace"))))
def test_any_line_is_a_request_or_an_error(line: bytes) -> None:
    """Whatever comes, it is a request or a RequestError."""
    try:
        request = parse_request(line)
    except RequestError:
        return
    assert request.file.startswith("/")


@given(st.binary(max_size=200).filter(lambda name: b"\0" not in name), st.text(max_size=50))
def test_any_file_name_travels(name: bytes, tag: str) -> None:
    """Any name that a file can have survives the extended form."""
    file = os.fsdecode(b"/" + name)
    members = {"file": file, "destination": "a/bucket/dir/key", "tag": tag if tag.isprintable() else ""}
    assert parse_request(json.dumps(members).encode()).file == file


def read(*pieces: bytes, end: bool = True) -> list[bytes]:
    reader, lines = LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (line := reader.next_line()) is not None:
            lines.append(line)
    if end:
        reader.end()
        while (line := reader.next_line()) is not None:
            lines.append(line)
        assert reader.finished
    return lines


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a\n"], [b"a"]),
        ([b"a", b"b", b"\n"], [b"ab"]),
        ([b"a\nb\nc\n"], [b"a", b"b", b"c"]),
        ([b"\n\n"], [b"", b""]),
        ([b"x" * (MAX_LINE - 1) + b"\n"], [b"x" * (MAX_LINE - 1)]),
    ],
)
def test_lines(pieces: list[bytes], lines: list[bytes]) -> None:
    """However the bytes are cut, the lines are the same."""
    assert read(*pieces) == lines


@pytest.mark.parametrize("data", [b"a", b"a\nb", b"x" * (MAX_LINE - 1)])
def test_a_line_that_ends_without_lf_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError, match="ended without a newline"):
        read(data)


@pytest.mark.parametrize("data", [b"x" * MAX_LINE, b"x" * MAX_LINE + b"\n", b"x" * 100_000])
def test_a_line_that_is_too_long_is_refused_at_once(data: bytes) -> None:
    """Its end is not waited for, so that no client can fill the memory."""
    with pytest.raises(RequestError, match=f"longer than {MAX_LINE} bytes"):
        read(data, end=False)


def test_an_unfinished_line_is_waited_for() -> None:
    """None means: more input is needed."""
    reader = LineReader()
    assert reader.next_line() is None
    reader.feed(b"/f")
    assert reader.next_line() is None
    assert not reader.finished


@pytest.mark.parametrize("more", [b"/g a/b/d\n", b"x", b'{"file": "/g"}\n', b"\r\n\r\nx"])
def test_a_plain_request_with_something_behind_it_is_refused(more: bytes) -> None:
    """Not half done: the connection ends after a plain request, so what follows would be lost."""
    reader = LineReader()
    reader.feed(b"/f a/b/c\n" + more)
    assert reader.next_line() == b"/f a/b/c"
    with pytest.raises(RequestError, match="follows a plain request") as caught:
        reader.check_nothing_follows()
    assert caught.value.text.isprintable()
    assert not is_extended(reader.rest)


@pytest.mark.parametrize("more", [b"", b"\n", b"\r\n \n"])
def test_blank_lines_behind_a_plain_request_are_ignored(more: bytes) -> None:
    reader = LineReader()
    reader.feed(b"/f a/b/c\n" + more)
    assert reader.next_line() == b"/f a/b/c"
    reader.check_nothing_follows()


@pytest.mark.parametrize(
    ("reply", "plain", "extended"),
    [
        (Reply(Outcome.STORED, "1f"), b"Success", {"result": "stored", "id": "1f"}),
        (Reply(Outcome.ACCEPTED, "1f"), b"Success", {"result": "accepted", "id": "1f"}),
        (
            Reply.failed(FileError("NoSuchFile", "/a\nb: no such file")),
            b"NoSuchFile: /a\\nb: no such file\n",
            {"result": "failed", "code": "NoSuchFile", "text": "/a\\nb: no such file"},
        ),
        (
            Reply(Outcome.DEFERRED, "1f", "Deferred", "1f is kept"),
            b"Deferred: 1f is kept\n",
            {"result": "deferred", "id": "1f", "code": "Deferred", "text": "1f is kept"},
        ),
    ],
)
def test_replies(reply: Reply, plain: bytes, extended: dict[str, str]) -> None:
    """`Success` is these seven bytes; every other reply is one line."""
    assert reply.encode(extended=False) == plain
    line = reply.encode(extended=True)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == extended


@given(st.text(max_size=1000))
def test_replies_stay_one_line(text: str) -> None:
    """Whatever a file is called."""
    reply = Reply.failed(FileError("NoSuchFile", text))
    for extended in (True, False):
        encoded = reply.encode(extended=extended)
        assert encoded.index(b"\n") == len(encoded) - 1
        assert len(encoded) < 4096


@pytest.mark.parametrize(
    ("line", "http"),
    [
        (b"GET / HTTP/1.1\r", True),
        (b"GET /metrics HTTP/1.0", True),
        (b"POST /upload HTTP/1.1\r", True),
        (b"OPTIONS * HTTP/1.1\r", True),
        (b"GET /", False),
        (b"/GET a/b/HTTP/1.1", False),
        (b"GET  HTTP/1.1", False),
        (b"GET / HTTP/2.0", False),
        (b"FETCH / HTTP/1.1", False),
        (b" GET / HTTP/1.1", False),
        (b"GET / HTTP/1.1 ", False),
        (b"", False),
    ],
)
def test_the_first_line_of_http_is_recognised(line: bytes, http: bool) -> None:
    """No request of ours looks like it."""
    assert is_http(line) == http
    if http:
        with pytest.raises(RequestError):
            parse_request(line)


def test_a_client_that_speaks_http_gets_the_address_of_the_http_socket() -> None:
    head, _, text = http_answer(["127.0.0.1:15556", "/run/http"]).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(text)}\r\n".encode() in head
    assert text.endswith(b" the socket for HTTP is 127.0.0.1:15556, /run/http\n")
    assert b"enable s3daemon-http.socket" in http_answer([])
