"""`POST /upload`: a request as a form, with the same checks, promise and wait as in the line protocol.

    file    absolute path of a file on this host
    uri     s3://bucket/key, taken as it is: nothing in it is an escape
    slug    groups transfers in the report, as the tag of the line protocol does; may be left out

Either `application/x-www-form-urlencoded` (curl -d) or `multipart/form-data` (curl -F). Other fields are ignored, and a
slug is never a reason to refuse: what a hook adds for information must not cost a file. Names that are not UTF-8 travel
as the bytes that they are, plain or percent-encoded.

    200  stored
    400  refused, nothing was accepted: the form, the file, the bucket or the user
    404  failed permanently: there is no such bucket
    500  failed permanently by the file, an operator or a newer transfer; or the spool cannot be written (not accepted)
    502  failed permanently: the store refused it
    504  not stored within the wait limit, or the store is away or held: kept

The answer is a JSON object and a line feed: `code`, the status; `msg`, one line; `version`; `task`, the transfer. When
nothing was accepted `task` has what was given, and no `id`; null when nothing was given. An answer other than 200 has
`msg` in an `X-Error` header too. A client that waits when the service restarts, or crashes, stays connected, and the
next process answers it; one that waits when the service stops for good gets its 504 with the transfer's id.

Hooks and clients of another service at the same sites read these answers, so the fields of both of its generations are
there, with the same values under two names.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import BytesParser
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from s3daemon import __version__
from s3daemon.clock import Clock
from s3daemon.delivery.intake import Intake
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import Code, RequestError, S3daemonError, one_line, quoted
from s3daemon.ingress.access import AccessControl
from s3daemon.ingress.refusals import Refusals, describe_refusal
from s3daemon.ingress.waiting import WaitingClients, name_for
from s3daemon.model.ids import uuid_of
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import MAX_TAG_CHARS, Destination, Request

#: Ample for the three fields, each byte of them percent-encoded, and for what else a hook may send along.
MAX_FORM = 1024 * 1024
#: A larger form is read in a thread: a hostile one of this size takes 10 ms, one of `MAX_FORM` bytes 3 s.
_QUICK_FORM = 8 * 1024
#: More fields are no hook's.
MAX_FIELDS = 1000
#: Nor is a longer header of a field, bytes, though it has a file's name twice, all of it percent-encoded. The library's
#: time to read one grows as its square: 7 s for one of `MAX_FORM`, and as long for a form full of 8 kB.
MAX_FIELD_HEADER = 2048
_BLANK_LINE = re.compile(b"\n\r?\n")
#: Why a transfer fails permanently though the store did not refuse it; a SpoolError's codes, which begin alike, join
#: them.
_OWN_CODES = frozenset(
    {
        Code.FILE_CHANGED,
        Code.HOST_LIMIT,
        Code.NO_SUCH_FILE,
        Code.NOT_READABLE,
        Code.NOT_REGULAR_FILE,
        Code.READ_FAILED,
        Code.DROPPED,
        Code.INTERNAL,
        Code.INTERRUPTED,
        Code.OVERTAKEN,
    }
)

#: The form of the reply to a waiting client, in the name of its connection with systemd.
REPLY_FORM = "http"
_FIELDS = ("file", "uri", "slug")
_NEEDED = ("file", "uri")
_SCHEME = "s3://"


#: Names and values of fields, in order.
Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Form:
    """What a client sent.

    Args:
        content_type: of the body, as in the header.
        body: at most `MAX_FORM` bytes.
        sock: the client's connection, by which access is decided.
        fault: why the body could not be read; None if it was.
    """

    content_type: str
    body: bytes
    sock: socket.socket
    fault: RequestError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets.

    Args:
        status: the HTTP status.
        message: one line for people.
        task: the transfer, see `task_of`, or what was given of it; None when there is nothing to say of it.
        taken: to be called once the client has the answer.
        sent: to be called before that, once the answer was sent or cannot be.
    """

    status: HTTPStatus
    message: str
    task: dict[str, Any] | None = None
    taken: Callable[[], None] = lambda: None
    sent: Callable[[], None] = lambda: None

    def encode(self) -> bytes:
        """The JSON object, and a line feed: a shell script prints it, and then its own next line."""
        members = {"code": int(self.status), "msg": self.message, "version": __version__, "task": self.task}
        return json.dumps(members).encode() + b"\n"

    def headers(self) -> dict[str, str]:
        """The headers of an answer other than 200: the message as one line of ASCII."""
        if self.status == HTTPStatus.OK:
            return {}
        return {"X-Error": one_line(self.message).encode("ascii", "backslashreplace").decode("ascii")}


def _bad_request(text: str) -> RequestError:
    return RequestError(Code.BAD_REQUEST, text)


class Forms:
    """Answers forms.

    Args:
        intake: takes the requests.
        access: decides who may ask.
        waiting: has clients wait for their transfers.
        client_notified: called with the id of a transfer whose failure a client has received.
        refusals: takes every request that is refused.
        clock: monotonic seconds, the same as the uploader's.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        intake: Intake,
        access: AccessControl,
        waiting: WaitingClients,
        client_notified: Callable[[str], None],
        *,
        refusals: Refusals,
        clock: Clock,
        wall: Clock = time.time,
    ) -> None:
        self._intake = intake
        self._access = access
        self._refusals = refusals
        self._waiting = waiting
        self._client_notified = client_notified
        self._clock = clock
        self._wall = wall

    async def handle(self, form: Form) -> Answer | None:
        """Return the answer to one form; None when its client is left to the next process."""
        pairs: Pairs = []
        allowed = False
        try:
            pairs = await _read(form)
            await self._access.check(form.sock)
            allowed = True
            request = request_of(pairs)
            ticket = await self._intake.submit(request)
            name = name_for(REPLY_FORM, ticket)
            reply = await self._waiting.wait(ticket, form.sock, name)
        except S3daemonError as exc:
            await self._refusals.add(describe_refusal(exc, *given_in(pairs)), form.sock, allowed=allowed)
            if isinstance(exc, RequestError):
                return Answer(HTTPStatus.BAD_REQUEST, message_of(exc), given_task(pairs))
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{exc.code}: {exc.text}", given_task(pairs))
        if reply is None:
            return None
        return self._answer(reply, self._task(request, ticket.queued), name)

    async def resume(self, name: str, sock: socket.socket) -> Answer | None:
        """Return the answer to a client of an earlier process; None when it is left to the next one.

        Args:
            name: under which its connection was stored.
            sock: the connection.
        """
        reply, ticket = await self._waiting.resume(name, sock)
        if reply is None:
            return None
        queued, failure = None, self._waiting.failure(name)
        if ticket is not None:
            queued = ticket.queued
        elif failure is not None:
            queued = QueuedTransfer.of(failure)
        if queued is None:
            return self._answer(reply, None, name)
        transfer = queued.transfer  # its first tag: which of them this client gave is not known
        request = Request(transfer.file, transfer.destination, tag=next(iter(transfer.tags), ""), extended=True)
        return self._answer(reply, self._task(request, queued), name)

    def _task(self, request: Request, queued: QueuedTransfer) -> dict[str, Any]:
        return task_of(request, queued, queued.age_s(self._clock(), self._wall()))

    def _answer(self, reply: Reply, task: dict[str, Any] | None, name: str) -> Answer:
        message = f"{reply.code}: {reply.text}" if reply.code else "upload succeeded"
        answer = Answer(status_of(reply), message, task, sent=partial(self._waiting.forget, name))
        if reply.outcome is Outcome.FAILED and reply.id:
            return replace(answer, taken=partial(self._client_notified, reply.id))
        return answer


def status_of(reply: Reply) -> HTTPStatus:
    """The HTTP status of the end of a transfer, or of its deferral."""
    if reply.outcome is not Outcome.FAILED:
        return HTTPStatus.OK if reply.outcome is Outcome.STORED else HTTPStatus.GATEWAY_TIMEOUT
    if reply.code == "NoSuchBucket":
        return HTTPStatus.NOT_FOUND
    own = reply.code in _OWN_CODES or reply.code.startswith("Spool")
    return HTTPStatus.INTERNAL_SERVER_ERROR if own else HTTPStatus.BAD_GATEWAY


def message_of(error: RequestError) -> str:
    """The message of a refusal; hooks know it by its first two words."""
    return (
        f"bad request: {error.text}" if error.code == Code.BAD_REQUEST else f"bad request: {error.code}: {error.text}"
    )


async def _read(form: Form) -> Pairs:
    if form.fault is not None:
        raise form.fault
    if len(form.body) > _QUICK_FORM:
        return await asyncio.to_thread(parse_form, form.content_type, form.body)
    return parse_form(form.content_type, form.body)


def parse_form(content_type: str, body: bytes) -> Pairs:
    """Read a form.

    Args:
        content_type: of the body, as in the header.
        body: at most `MAX_FORM` bytes.

    Returns:
        The names and values of the fields that are known, in order.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    header = Message()
    header["Content-Type"] = content_type
    try:
        match header.get_content_type():
            case "application/x-www-form-urlencoded":
                pairs = _urlencoded(body)
            case "multipart/form-data":
                pairs = _multipart(str(header.get_boundary("")), body)
            case _:
                raise _bad_request(
                    f"a form is application/x-www-form-urlencoded or multipart/form-data, not {quoted(content_type)}"
                )
    except (TypeError, ValueError) as exc:  # from parts of a parameter some of which have no number, or a huge one
        raise _bad_request("the form has a header that cannot be read") from exc
    return [(name, value) for name, value in pairs if name in _FIELDS]


def request_of(pairs: Pairs) -> Request:
    """The request in the fields of a form. A field that comes again counts once.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    values = {name: {value for known, value in pairs if known == name} for name in _NEEDED}
    for name, found in values.items():
        if len(found) > 1:
            raise _bad_request(f"the field {name!r} was sent twice, with different values")
        if not any(found):
            raise _bad_request(f"the field {name!r} is missing")
    (file,), (uri,) = values.values()
    return Request(file, _destination(uri), tag=_tag(pairs), extended=True)


def given_task(pairs: Pairs) -> dict[str, Any] | None:
    """The `task` of a request that was not accepted: what was given of it; None when there is nothing."""
    found = {name: value for name, value in reversed(pairs) if value and name in _NEEDED}
    if tag := _tag(pairs):
        found["slug"] = tag
    return found or None


def given_in(pairs: Pairs) -> tuple[str, str, str]:
    """Return file, bucket/key and tag of a request that is refused, as far as they were given."""
    given = given_task(pairs) or {}
    uri = given.get("uri", "")
    return given.get("file", ""), uri[len(_SCHEME) :] if uri[: len(_SCHEME)].lower() == _SCHEME else uri, _tag(pairs)


def _tag(pairs: Pairs) -> str:
    """The first slug. Informational only, so one that cannot be a tag is escaped and shortened."""
    return next((tag_of(value) for name, value in pairs if name == "slug" and value), "")


def tag_of(slug: str) -> str:
    """Return the tag that a slug becomes: escaped and shortened where it cannot be one."""
    return one_line(slug, MAX_TAG_CHARS)


def _destination(uri: str) -> Destination:
    scheme, rest = uri[: len(_SCHEME)], uri[len(_SCHEME) :]
    bucket, _, key = rest.partition("/")
    if not (scheme.lower() == _SCHEME and bucket and key):
        raise _bad_request(f"the uri {quoted(uri)} is not s3://bucket/key")
    return Destination(bucket, key)


def _urlencoded(body: bytes) -> Pairs:
    text = body.decode("utf-8", "surrogateescape")
    if text.count("&") >= MAX_FIELDS:
        raise _bad_request(f"the form has more than {MAX_FIELDS} fields")
    return fields_in(text)


def fields_in(text: str) -> Pairs:
    """Read the fields of a form, or of a query, in one line."""
    return parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="surrogateescape")


def _multipart(boundary: str, body: bytes) -> Pairs:
    """Read the fields; each stands between two delimiters, and one within another is part of its value."""
    name = re.escape(boundary.encode("utf-8", "surrogateescape"))
    delimiter = b"(?:^|\r?\n)--" + name + b"(--)?[ \t]*\r?(?=\n|\\Z)"
    whole = body.removesuffix(b"\n").removesuffix(b"\r")  # some clients leave out the delimiter at the end
    _, *found = re.split(delimiter, whole, maxsplit=MAX_FIELDS + 1)
    if not boundary or not found:
        raise _bad_request("the Content-Type is multipart/form-data, but the body is not")
    pairs: Pairs = []
    for count, (last, text) in enumerate(zip(found[::2], found[1::2], strict=True)):
        if last:
            break
        if count == MAX_FIELDS:
            raise _bad_request(f"the form has more than {MAX_FIELDS} fields")
        pairs += _field(text)
    return pairs


def _field(text: bytes) -> Iterator[tuple[str, str]]:
    """Read what follows a delimiter: a line break, a MIME header, a blank line and a value."""
    blank = _BLANK_LINE.search(text, 0, MAX_FIELD_HEADER)
    if blank is None and len(text) > MAX_FIELD_HEADER:
        raise _bad_request(f"a field of the form has a header of more than {MAX_FIELD_HEADER} bytes")
    header, value = (text[: blank.start()], text[blank.end() :]) if blank else (text, b"")
    part = BytesParser().parsebytes(header.strip(), headersonly=True)
    name = part.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        return
    if name in _NEEDED and part.get_filename() is not None:
        raise _bad_request(f"the field {name!r} holds a file's content; send its path: -F {name}=/path, without an @")
    part.set_payload(value.decode("ascii", "surrogateescape"))
    decoded = part.get_payload(decode=True)
    yield name, decoded.decode("utf-8", "surrogateescape") if isinstance(decoded, bytes) else ""


def task_of(request: Request, queued: QueuedTransfer, age_s: float) -> dict[str, Any]:
    """The `task` of the answer.

    Args:
        request: the client's.
        queued: the transfer that serves it; has its record when it is over.
        age_s: seconds since its acceptance.
    """
    record = queued.record
    usec = record.total_usec if record else round(age_s * 1e6)
    upload_usec = (record and record.upload_usec) or 0
    size = record.size_bytes if record else queued.transfer.file_state.size
    mbits = size * 8 / upload_usec if upload_usec else 0.0  # bits per microsecond
    rate = f"{mbits:.3f} Mbit/s"
    return {
        "id": uuid_of(queued.transfer.id),
        "uri": f"{_SCHEME}{request.destination}",
        "file": request.file,
        "duration": _clock(usec),
        "duration_seconds": usec / 1e6,
        "attempts": queued.attempts,
        "size_bytes": size,
        "transfer_rate": rate,
        "transfer_rate_mbits": round(mbits, 3),
        "upload_total": _clock(usec),
        "upload_total_seconds": usec / 1e6,
        "upload_transfer_seconds": upload_usec / 1e6,
        "upload_attempts": queued.attempts,
        "upload_size_bytes": size,
        "upload_rate": rate,
        "upload_rate_bytes": round(mbits * 1e6 / 8),
        "upload_parts": (record and record.parts) or 1,  # without parts it is one PUT
        **({"slug": request.tag} if request.tag else {}),
    }


def _clock(usec: int) -> str:
    """Hours, minutes and seconds, always with six decimals."""
    seconds, micro = divmod(usec, 1_000_000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micro:06}"
