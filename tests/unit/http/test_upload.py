"""`POST /upload`: a form becomes a request or is refused, and every end of a transfer has its status and figures.

Forms are read in either encoding that a hook's curl chooses. Transfers run over a real uploader with a stand-in store,
in an event loop that skips waiting times; the connection is a stand-in too.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_from_bytes, urlencode

import pytest
from fakes import FakeNotifier, House, away, flying_with
from hypothesis import given
from hypothesis import strategies as st

from s3daemon import __version__
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import AttemptError, Code, FileError, RequestError
from s3daemon.http.upload import (
    MAX_FIELD_HEADER,
    MAX_FIELDS,
    MAX_FORM,
    Answer,
    Form,
    Forms,
    given_task,
    message_of,
    parse_form,
    request_of,
    status_of,
    task_of,
)
from s3daemon.ingress.access import AccessControl
from s3daemon.ingress.peer import PeerLookup
from s3daemon.ingress.refusals import Refusals
from s3daemon.ingress.waiting import WaitingClients, form_of
from s3daemon.model.ids import id_of, uuid_of
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import (
    MAX_TAG_CHARS,
    Destination,
    FileState,
    Request,
    Transfer,
)
from s3daemon.spool.rows import Entry

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=XX"
#: Of parameters in parts: newer versions of Python read what older ones cannot.
UNREADABLE = "a header that cannot be read|the field 'file' is missing"


def read(content_type: str, body: bytes) -> Request:
    """Read a whole form."""
    return request_of(parse_form(content_type, body))


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A body as curl -F writes it; the name may go on with further parameters."""
    body = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="' + name.encode() + b'"\r\n\r\n' + value + b"\r\n"
        for name, value in parts
    )
    return body + b"--XX--\r\n"


def test_both_encodings_give_the_same_request() -> None:
    """The three fields; an unknown field is ignored; the client waits."""
    wanted = Request("/data/f é.fits", Destination("raw", "night 1/f+g.fits"), tag="AB_1", extended=True)
    text = "file=/data/f+%C3%A9.fits&uri=s3://raw/night%201/f%2Bg.fits&slug=AB_1&priority=9"
    assert read(URLENCODED, text.encode()) == wanted
    fields = {"file": "/data/f é.fits", "uri": "s3://raw/night 1/f+g.fits", "slug": "AB_1", "priority": "9"}
    body = multipart(*((name, value.encode()) for name, value in fields.items()))
    assert read(MULTIPART, body) == wanted
    assert wanted.wait


def test_a_slug_is_optional() -> None:
    assert read(URLENCODED + "; charset=UTF-8", b"file=/f&uri=s3://b/k").tag == ""


@pytest.mark.parametrize("name", [b"/data/\xff\xfe.fits", b"/data/\xc3\xa9\xe9", "/data/日本".encode()])
def test_names_that_are_not_utf_8(name: bytes) -> None:
    """The file's name arrives as the bytes that it is: plain, percent-encoded, or in a part of its own."""
    for content_type, body in (
        (URLENCODED, b"file=" + name + b"&uri=s3://b/k"),
        (URLENCODED, f"file={quote_from_bytes(name)}&uri=s3://b/k".encode()),
        (MULTIPART, multipart(("file", name), ("uri", b"s3://b/k"))),
    ):
        assert os.fsencode(read(content_type, body).file) == name


def test_a_name_in_a_part_keeps_its_spaces_and_line_ends() -> None:
    """Nothing is stripped but the line end that belongs to the delimiter."""
    assert read(MULTIPART, multipart(("file", b"/ a \r\n b\n "), ("uri", b"s3://b/k"))).file == "/ a \r\n b\n "


def test_uris_are_taken_as_they_are() -> None:
    """A key is anything behind the bucket's slash; nothing in it is an escape, a query or a fragment."""
    body = multipart(("file", b"/f"), ("uri", b"s3://t:raw/a//%41?b#c"))
    assert read(MULTIPART, body).destination == Destination("t:raw", "a//%41?b#c")


def test_a_uri_may_begin_in_capitals() -> None:
    """The scheme of a URI may (RFC 3986, 3.1); the rest is taken as it is."""
    assert read(URLENCODED, b"file=/f&uri=S3://Raw/K").destination == Destination("Raw", "K")


def test_a_field_that_comes_again_counts_once() -> None:
    body = b"file=/f&uri=s3://b/k&file=/f&uri=s3://b/k&slug=&slug=a&slug=b"
    assert read(URLENCODED, body) == Request("/f", Destination("b", "k"), tag="a", extended=True)


@pytest.mark.parametrize(
    ("slug", "tag"),
    [
        (b"AB_1", "AB_1"),
        (b"", ""),
        (b"a\nb\t\x1b", r"a\nb\t\x1b"),
        (b"\xff", r"\udcff"),
        ("Größe 日".encode(), "Größe 日"),
        (b"x" * MAX_TAG_CHARS, "x" * MAX_TAG_CHARS),
        (b"x" * 9000 + b"42", "x" * 83 + "..." + "x" * 40 + "42"),
        (b"\n" * MAX_TAG_CHARS, "\\n" * 41 + "\\..." + "\\n" * 21),
    ],
)
def test_a_slug_is_never_a_reason_to_refuse(slug: bytes, tag: str) -> None:
    """What cannot be a tag is escaped, then shortened. It may even come as a file's content."""
    for name in ("slug", 'slug"; filename="x'):
        body = multipart(("file", b"/f"), ("uri", b"s3://b/k"), (name, slug))
        assert read(MULTIPART, body).tag == tag


@pytest.mark.parametrize(
    ("body", "task"),
    [
        (b"", None),
        (b"other=1&slug=", None),
        (b"file=/f&uri=bad", {"file": "/f", "uri": "bad"}),
        (b"file=&uri=bad", {"uri": "bad"}),
        (b"file=/f&file=/g&slug=a%0A", {"file": "/f", "slug": r"a\n"}),
    ],
)
def test_what_was_given_is_the_task_of_a_refusal(body: bytes, task: dict[str, str] | None) -> None:
    assert given_task(parse_form(URLENCODED, body)) == task


@pytest.mark.parametrize(
    ("outcome", "code", "status"),
    [
        (Outcome.STORED, "", 200),
        (Outcome.DEFERRED, "Deferred", 504),
        (Outcome.FAILED, "NoSuchBucket", 404),
        (Outcome.FAILED, "AccessDenied", 502),
        (Outcome.FAILED, "EntityTooLarge", 502),
        (Outcome.FAILED, "413", 502),
        (Outcome.FAILED, "ConnectionFailed", 502),
        (Outcome.FAILED, "TLSRefused", 502),
        (Outcome.FAILED, "NoSuchFile", 500),
        (Outcome.FAILED, "FileChanged", 500),
        (Outcome.FAILED, "SpoolFull", 500),
        (Outcome.FAILED, "Dropped", 500),
        (Outcome.FAILED, "Interrupted", 500),
        (Outcome.FAILED, "Internal", 500),
    ],
)
def test_the_status_of_each_end(outcome: Outcome, code: str, status: int) -> None:
    """The store's refusals are told from what lies here."""
    assert status_of(Reply(outcome, "", code, "")) == status


def test_the_message_of_a_refusal_begins_with_two_words_that_hooks_know() -> None:
    assert message_of(RequestError("BadRequest", "no key")) == "bad request: no key"
    assert message_of(FileError("NoSuchFile", "/f: no such file")) == "bad request: NoSuchFile: /f: no such file"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the field 'file' is missing"),
        (b"file=&uri=s3://b/k", "the field 'file' is missing"),
        (b"file=/f", "the field 'uri' is missing"),
        (b"file=/f&uri=s3://b/k&file=/g", "the field 'file' was sent twice, with different values"),
        (b"file=/f&uri=s3://b/k&uri=s3://b/K", "the field 'uri' was sent twice, with different values"),
        (b"file=f&uri=s3://b/k", "'f' is not an absolute path"),
        (b"file=/f%00&uri=s3://b/k", "the file name has a NUL byte"),
        (b"file=/f&uri=b/k", "the uri 'b/k' is not s3://bucket/key"),
        (b"file=/f&uri=s4://b/k", "the uri 's4://b/k' is not s3://bucket/key"),
        (b"file=/f&uri=s3://b", "the uri 's3://b' is not s3://bucket/key"),
        (b"file=/f&uri=s3://b/", "the uri 's3://b/' is not s3://bucket/key"),
        (b"file=/f&uri=s3:///k", "the uri 's3:///k' is not s3://bucket/key"),
        (b"file=/f&uri=s3://b/night/", "ends in a slash: give the whole key"),
        (b"file=/f&uri=s3://b/../c/k", "has a part that is . or .."),
        (b"file=/f&uri=s3://b/k/%2E%2E/l", "has a part that is . or .."),
        (b"file=/f&uri=s3://../b/k", "has a part that is . or .."),
        (b"file=/f&uri=s3://b/%FF", "not UTF-8"),
    ],
)
def test_a_bad_form_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(URLENCODED, body)
    assert why in caught.value.text
    assert caught.value.code == "BadRequest"


@pytest.mark.parametrize(
    ("content_type", "body", "why"),
    [
        (URLENCODED, b"a=&" * MAX_FIELDS, "more than 1000 fields"),
        (MULTIPART, multipart(*[("a", b"")] * (MAX_FIELDS + 1)), "more than 1000 fields"),
        (MULTIPART, multipart(("a", b""), ('"; a="' * MAX_FIELD_HEADER, b"")), "a header of more than 2048 bytes"),
        (MULTIPART, multipart(('"; name*=b; name*0="', b"/f")), UNREADABLE),
        (MULTIPART + "; x*" + "9" * 5000 + "=y", b"--XX\n", UNREADABLE),
        (MULTIPART + "; x*=a; x*0=b", b"--XX\n", UNREADABLE),
    ],
    ids=["urlencoded", "multipart", "header", "parts", "type number", "type parts"],
)
def test_a_form_that_no_hook_sends_is_refused(content_type: str, body: bytes, why: str) -> None:
    with pytest.raises(RequestError, match=why):
        read(content_type, body)


def test_the_delimiter_at_the_end_may_be_left_out() -> None:
    body = multipart(("file", b"/f"), ("uri", b"s3://b/k")).removesuffix(b"--XX--\r\n")
    assert read(MULTIPART, body) == read(MULTIPART, body + b"--XX--") == read(MULTIPART, body.replace(b"\r\n", b"\n"))


def test_fields_within_a_field_are_its_value() -> None:
    """However deep they are: to read each level would take time with the square of their number."""
    inner = b'Content-Disposition: form-data; name="file"\r\n\r\n/other'
    deep = b"".join(b"--%d\r\nContent-Type: multipart/mixed; boundary=%d\r\n\r\n" % (n, n + 1) for n in range(500))
    body = multipart(
        ("file", b"/f"), ("uri", b"s3://b/k"), ('"\r\nContent-Type: multipart/mixed; boundary="0', deep + inner)
    )
    assert read(MULTIPART, body).file == "/f"


def test_a_files_content_is_refused() -> None:
    """`-F file=@/data/f` instead of `-F file=/data/f`: the daemon reads files, it does not take them."""
    body = multipart(('file"; filename="f.fits', b"SIMPLE  ="), ("uri", b"s3://b/k"))
    with pytest.raises(RequestError, match="holds a file's content; send its path"):
        read(MULTIPART, body)


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain", "multipart/mixed; boundary=XX"])
def test_other_content_types_are_refused(content_type: str) -> None:
    """Those that another site's page may send without asking are among them."""
    with pytest.raises(RequestError, match="a form is application/x-www-form-urlencoded or multipart/form-data"):
        read(content_type, b'{"file": "/f"}')


@given(
    content_type=st.sampled_from([URLENCODED, MULTIPART, "multipart/form-data", MULTIPART + '"; x="'])
    | st.text(max_size=50),
    body=st.binary(max_size=300)
    | st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=20)), max_size=4).map(
        lambda parts: multipart(*((name, value) for name, value in parts if name.isascii()))
    ),
)
def test_any_input_is_a_request_or_is_refused(content_type: str, body: bytes) -> None:
    """No input raises another error."""
    with suppress(RequestError):
        assert read(content_type, body).file.startswith("/")


def test_the_longest_names_fit() -> None:
    """A path of 4096 bytes, a key of 1024 and a tag, all of them percent-encoded."""
    body = "file=/" + "%FF" * 4095 + "&uri=s3://" + "%C3%A9" * 255 + "/" + "%C3%A9" * 512 + "&slug=" + "%41" * 128
    assert len(body) < MAX_FORM
    assert len(os.fsencode(read(URLENCODED, body.encode()).file)) == 4096
    other = 'image"; filename="' + "%FF" * 255 + "\"; filename*=\"utf-8''" + "%FF" * 255
    assert read(MULTIPART, multipart((other, b""), ("file", b"/f"), ("uri", b"s3://b/k"))).file == "/f"


STORED = TransferRecord(
    transfer_id="00000000000000aa", outcome="stored", file="/f", bucket="b", key="k", size_bytes=8_000_000,
    start_usec=1, total_usec=3_723_000_450, upload_usec=640_000, attempts=3, tags=("first", "mine"),
)  # fmt: skip


def queued(record: TransferRecord | None = None) -> QueuedTransfer:
    transfer = Transfer("00000000000000aa", "/f", Destination("b", "k"), ("first", "mine"), FileState(500, 1, 1, 1), 1)
    return QueuedTransfer(1, transfer, accepted_at=100.0, accepted_active_s=0.0, attempts=3, record=record)


def test_the_task_of_a_stored_transfer() -> None:
    """Times from acceptance to the end, the rate of the attempt that stored it, the slug of this client."""
    request = Request("/f", Destination("b", "k"), tag="mine", extended=True)
    assert task_of(request, queued(STORED), 999.0) == {
        "id": "00000000-0000-8000-8000-0000000000aa",
        "uri": "s3://b/k",
        "file": "/f",
        "duration": "1:02:03.000450",
        "duration_seconds": 3723.00045,
        "attempts": 3,
        "size_bytes": 8_000_000,
        "transfer_rate": "100.000 Mbit/s",
        "transfer_rate_mbits": 100.0,
        "upload_total": "1:02:03.000450",
        "upload_total_seconds": 3723.00045,
        "upload_transfer_seconds": 0.64,
        "upload_attempts": 3,
        "upload_size_bytes": 8_000_000,
        "upload_rate": "100.000 Mbit/s",
        "upload_rate_bytes": 12_500_000,
        "upload_parts": 1,
        "slug": "mine",
    }
    assert task_of(request, queued(replace(STORED, parts=7)), 999.0)["upload_parts"] == 7


def test_the_task_of_a_failed_or_deferred_transfer() -> None:
    """A failed one has its time and no rate; a deferred one, the time until now."""
    request = Request("/f", Destination("b", "k"), extended=True)
    failed = replace(STORED, outcome="failed", error="AccessDenied: no", upload_usec=None)
    assert task_of(request, queued(failed), 999.0)["transfer_rate"] == "0.000 Mbit/s"
    deferred = task_of(request, queued(), 30.5)
    assert (deferred["duration"], deferred["size_bytes"], deferred["attempts"]) == ("0:00:30.500000", 500, 3)
    assert "slug" not in deferred


def test_a_message_in_a_header_is_one_line_of_ascii() -> None:
    answer = Answer(HTTPStatus.BAD_REQUEST, "Nö:\r\nX-Evil: 1\udcff")
    assert answer.headers() == {"X-Error": "N\\xf6:\\r\\nX-Evil: 1\\udcff"}
    assert json.loads(answer.encode()) == {"code": 400, "msg": answer.message, "version": __version__, "task": None}
    assert answer.encode().endswith(b"}\n")


class Desk:
    """Forms over a House, a new one if none is given."""

    def __init__(self, house: House | None = None) -> None:
        self.house, self.notified = house or House(), list[str]()
        self.sock, self.client = socket.socketpair()
        self.access = AccessControl((), PeerLookup(lambda socks: dict.fromkeys(socks, 12)))
        self.refusals = Refusals(PeerLookup(lambda socks: {}))
        self.refused: list[Refusal] = []
        self.refusals.observers.append(lambda refusal, _: self.refused.append(refusal))
        self.notifier = FakeNotifier(works=False)
        self.begin_process({})

    def begin_process(self, failures: Mapping[str, Entry]) -> None:
        """Serve as a new process does, which has read these failures."""
        notifier: Any = self.notifier
        ended = {id_: Reply(Outcome.FAILED, id_, entry.code, entry.text) for id_, entry in failures.items()}
        self.waiting = WaitingClients(SettingsHolder(self.house.settings), self.house.intake, notifier, ended, failures)
        self.uploads = Forms(
            self.house.intake,
            self.access,
            self.waiting,
            self.notified.append,
            refusals=self.refusals,
            clock=self.house.loop.time,
            wall=self.house.wall,
        )

    async def ask(self, **fields: str) -> Answer:
        body = urlencode({"file": "/f", "uri": "s3://bucket/k"} | fields).encode()
        answer = await self.uploads.handle(Form("application/x-www-form-urlencoded", body, self.sock))
        assert answer is not None
        return answer

    def close(self) -> None:
        self.sock.close()
        self.client.close()


@flying_with(Desk)
async def test_a_stored_object_is_200(desk: Desk) -> None:
    """200 once the object is there, with its figures; the slug is the transfer's tag."""
    desk.house.files.sizes["/f"] = 5000
    got = await desk.ask(slug="AB_1")
    assert (got.status, got.message, got.headers()) == (200, "upload succeeded", {})
    assert got.task
    (record,) = desk.house.journal.records
    assert record.tags == ("AB_1",)
    assert got.task["id"] == uuid_of(record.transfer_id)
    assert (got.task["size_bytes"], got.task["attempts"], got.task["slug"]) == (5000, 1, "AB_1")
    assert got.task["duration_seconds"] == record.total_usec / 1e6 == 0.1


@flying_with(lambda: Desk(House(S3DAEMON_ALLOWED_BUCKETS="bucket")))
async def test_a_refused_request_is_400(desk: Desk) -> None:
    """400, and nothing is accepted: a bad form, no such file, a bucket that is not allowed."""
    desk.house.files.missing.add("/none")
    for fields, why in (
        ({"uri": "b/k", "slug": "AB"}, "bad request: the uri 'b/k' is not s3://bucket/key"),
        ({"file": "/none"}, "bad request: NoSuchFile: /none: no such file"),
        ({"uri": "s3://other/k"}, "bad request: NotAllowed: the bucket other is not in S3DAEMON_ALLOWED_BUCKETS"),
    ):
        got = await desk.ask(**fields)
        task = {"file": "/f", "uri": "s3://bucket/k"} | fields
        assert (got.status, got.message, got.headers(), got.task) == (400, why, {"X-Error": why}, task)
    assert not desk.house.spool.rows
    seen = [(one.code, one.file, one.destination, one.tag) for one in desk.refused]
    assert seen == [
        ("BadRequest", "/f", "b/k", "AB"), ("NoSuchFile", "/none", "bucket/k", ""),
        ("NotAllowed", "/f", "other/k", ""),
    ]  # fmt: skip


@flying_with(Desk)
async def test_a_user_who_is_not_allowed_is_refused(desk: Desk) -> None:
    """400 with the reason of the access control."""
    desk.access.allow({4711})
    got = await desk.ask()
    assert (got.status, got.message) == (400, "bad request: NotAllowed: user 12 is not in S3DAEMON_ALLOWED_USERS")
    assert not desk.house.spool.rows
    assert (desk.refusals.counts, desk.refused) == ({"NotAllowed": 1}, [])


@flying_with(Desk)
async def test_a_transfer_that_the_store_refused_has_its_code(desk: Desk) -> None:
    """404 where there is no such bucket; the client counts as notified once it has taken the answer."""
    desk.house.store.answer = lambda _: AttemptError("NoSuchBucket", "there is none", status=404)
    got = await desk.ask()
    assert (got.status, got.message) == (404, "NoSuchBucket: there is none")
    assert got.task
    assert (got.task["attempts"], got.task["transfer_rate_mbits"]) == (1, 0.0)
    assert desk.notified == []
    got.taken()
    assert [uuid_of(id_) for id_ in desk.notified] == [got.task["id"]]


@flying_with(Desk)
async def test_a_full_spool_is_500(desk: Desk) -> None:
    """500 without a transfer: nothing was accepted."""
    desk.house.spool.full = True
    desk.house.store.seconds = 10.0
    got = await desk.ask()
    assert (got.status, got.message, got.task) == (
        500,
        "SpoolFull: no space",
        {"file": "/f", "uri": "s3://bucket/k"},
    )
    got.taken()
    assert desk.notified == []


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "away"])
@flying_with(lambda: Desk(House(S3DAEMON_WAIT_LIMIT="20s")))
async def test_a_deferred_transfer_is_504(desk: Desk, slow: bool) -> None:
    """504 when the limit has passed, or soon when the store is known to be away; the transfer goes on."""
    desk.house.store.seconds = 100.0 if slow else 0.1
    desk.house.store.answer = (lambda _: None) if slow else away
    got = await desk.ask()
    assert got.status == 504
    assert got.task
    id_ = id_of(got.task["id"])
    assert got.message.startswith(f"Deferred: {id_} is kept and being tried; ")
    assert got.task["duration_seconds"] <= 20.0
    assert id_ in desk.house.spool.rows
    desk.house.store.answer = lambda _: None
    await asyncio.sleep(300.0)
    (record,) = desk.house.journal.records
    assert (record.transfer_id, record.outcome) == (id_, "stored")


@pytest.mark.parametrize(("works", "for_good"), [(False, False), (True, True)])
@flying_with(Desk)
async def test_clients_that_wait_get_504_when_no_process_follows(desk: Desk, works: bool, for_good: bool) -> None:
    """At once, but not before their transfers are durable."""
    desk.notifier.works = works
    desk.house.store.seconds = 100.0
    desk.house.spool.commit = asyncio.Event()
    asking = asyncio.create_task(desk.ask())
    await asyncio.sleep(1.0)
    desk.waiting.leave(for_good=for_good)
    await asyncio.sleep(1.0)
    assert not asking.done()
    desk.house.spool.commit.set()
    got = await asking
    assert got.task
    wanted = f"Deferred: {id_of(got.task['id'])} is kept and being tried; it is still on its way"
    assert (got.status, got.message) == (504, wanted)
    assert got.task["duration_seconds"] == pytest.approx(2.0)


@flying_with(Desk)
async def test_a_client_that_waits_is_left_to_the_next_process_which_answers_it(desk: Desk) -> None:
    """Systemd has the connection under the transfer's id; the answer has the transfer as if nothing had happened."""
    desk.notifier.works = True
    desk.house.store.seconds = 100.0
    body = urlencode({"file": "/f", "uri": "s3://bucket/k", "slug": "AB_1"}).encode()
    form = Form("application/x-www-form-urlencoded", body, desk.sock)
    asking = asyncio.create_task(desk.uploads.handle(form))
    await asyncio.sleep(1.0)
    desk.waiting.leave(for_good=False)
    assert await asking is None
    (name,) = desk.notifier.kept
    assert form_of(name) == "http"
    desk.begin_process({})
    desk.house.uploader.waiters.defer_if_away()
    resuming = asyncio.create_task(desk.uploads.resume(name, desk.sock))
    await asyncio.sleep(200.0)
    got = await resuming
    assert got
    assert got.task
    assert (got.task["uri"], got.task["slug"]) == ("s3://bucket/k", "AB_1")
    assert (got.status, got.task["duration_seconds"]) == (504, 31.0), "it may wait as long as others"
    assert desk.notifier.kept, "until the answer is sent: another process would have to send it"
    got.sent()
    assert not desk.notifier.kept


@flying_with(Desk)
async def test_a_client_of_an_earlier_process_gets_the_failure(desk: Desk) -> None:
    """Or that no more is known of its transfer."""
    desk.house.store.answer = lambda _: AttemptError("NoSuchBucket", "none", status=404)
    task = (await desk.ask()).task
    assert task is not None
    id_ = id_of(str(task["id"]))
    failures = {entry.transfer.id: entry for entry in desk.house.spool.failed_entries()}
    desk.begin_process(failures)
    await asyncio.sleep(4.9)
    got = await desk.uploads.resume(f"http.{id_}.x", desk.sock)
    assert got
    assert got.task
    assert (got.status, got.message, id_of(got.task["id"])) == (404, "NoSuchBucket: none", id_)
    assert got.task["duration_seconds"] == 5.0
    got.taken()
    assert desk.notified == [id_]
    got = await desk.uploads.resume("http.00000000000000ff.x", desk.sock)
    assert got
    assert (got.status, got.task) == (500, None)
    assert "it is unknown whether" in got.message


@flying_with(Desk)
async def test_two_clients_share_one_transfer(desk: Desk) -> None:
    """A second form for a transfer that still waits joins it: one upload, two answers, each with its own slug."""
    desk.house.files.sizes["/first"] = 10
    first = asyncio.create_task(desk.ask(file="/first"))
    await asyncio.sleep(0.01)
    second, third = (asyncio.create_task(desk.ask(slug=slug)) for slug in ("a", "b"))
    await first
    tasks = [got.task for got in (await second, await third) if got.task]
    assert [task["slug"] for task in tasks] == ["a", "b"]
    assert len({task["id"] for task in tasks}) == 1
    assert len(desk.house.store.puts) == 2


@flying_with(Desk)
async def test_a_large_form_is_read(desk: Desk) -> None:
    """A hook may send much along: up to a mebibyte, and other clients are served meanwhile."""
    desk.house.files.sizes["/f"] = 5
    got = await desk.ask(other="x" * (MAX_FORM - 100))
    assert got.status == 200


@flying_with(Desk)
async def test_a_form_that_could_not_be_read_is_a_refused_request(desk: Desk) -> None:
    """It counts, and it is an entry of the journal, as any other: the hook's file is not delivered."""
    fault = RequestError(Code.BAD_REQUEST, "a form has at most 9 bytes")
    got = await desk.uploads.handle(Form(URLENCODED, b"", desk.sock, fault))
    assert got == Answer(HTTPStatus.BAD_REQUEST, "bad request: a form has at most 9 bytes")
    assert desk.refusals.counts == {"BadRequest": 1}
