"""`POST /upload`: the wire's requests as a form, with the same checks, the same promise and the same wait.

    file    absolute path of a file on this host
    uri     s3://bucket/key, taken as it is: nothing in it is an escape
    slug    groups transfers in the report, as the wire's tag does; may be left out

Either `application/x-www-form-urlencoded` (curl -d) or `multipart/form-data` (curl -F). Other fields are ignored: an
extra field of a hook must not cost a file. Names that are not UTF-8 travel as the bytes that they are, plain or
percent-encoded.

    200  stored
    400  refused, nothing was accepted: the form, the file, the bucket or the user
    500  failed for good, or (nothing accepted) the spool cannot be written
    504  not stored within the wait limit, or the store is away or held: kept, still being tried

The answer is a JSON object: `code`, the status; `msg`, one line; `task`, the transfer, null when nothing was accepted.
An answer other than 200 has `msg` in an `X-Error` header too. A connection is not kept for the next process: a client
that waits when the service stops gets its 504 with the transfer's id.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.message import Message
from email.parser import BytesParser
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import Code, RequestError, S3daemonError, one_line
from s3daemon.ingress.access import AccessControl
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Destination, Request

#: Room for a file name of PATH_MAX (4096 bytes), a key and a tag, each byte of them percent-encoded.
MAX_FORM = 32 * 1024
#: The HTTP status of each outcome.
_STATUSES = {
    Outcome.STORED: HTTPStatus.OK,
    Outcome.FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Outcome.DEFERRED: HTTPStatus.GATEWAY_TIMEOUT,
}

_FIELDS = ("file", "uri", "slug")
_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class Form:
    """What a client sent.

    Args:
        content_type: of the body, as in the header.
        body: at most `MAX_FORM` bytes.
        sock: the client's connection, by which access is decided.
    """

    content_type: str
    body: bytes
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets.

    Args:
        status: the HTTP status.
        message: one line for people.
        task: the transfer, see `task_of`; None when nothing was accepted.
        taken: to be called once the client has the answer.
    """

    status: HTTPStatus
    message: str
    task: dict[str, Any] | None = None
    taken: Callable[[], None] = lambda: None

    def encode(self) -> bytes:
        """The JSON object."""
        return json.dumps({"code": int(self.status), "msg": self.message, "task": self.task}).encode()

    def headers(self) -> dict[str, str]:
        """The headers of an answer other than 200: the message as one line of ASCII."""
        if self.status == HTTPStatus.OK:
            return {}
        return {"X-Error": one_line(self.message).encode("ascii", "backslashreplace").decode("ascii")}


def _bad_request(text: str) -> RequestError:
    return RequestError(Code.BAD_REQUEST, text)


class Uploads:
    """Answers forms.

    Args:
        settings: wait limit.
        intake: takes the requests.
        access: decides who may ask.
        client_notified: called with the id of a transfer whose failure a client has received.
        clock: monotonic seconds, the same as the uploader's.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        intake: Intake,
        access: AccessControl,
        client_notified: Callable[[str], None],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._access = access
        self._client_notified = client_notified
        self._clock = clock
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """Tell the clients that wait that their transfers are kept: the service stops."""
        if not self._leaving.done():
            self._leaving.set_result(None)

    async def handle(self, form: Form) -> Answer:
        """Answer one form."""
        try:
            request = parse_form(form.content_type, form.body)
            ticket = await self._access.admit(form.sock, request, self._intake.submit)
            reply = await self._wait(ticket)
        except S3daemonError as exc:
            refused = isinstance(exc, RequestError)
            return Answer(HTTPStatus.BAD_REQUEST if refused else _STATUSES[Outcome.FAILED], f"{exc.code}: {exc.text}")
        message = f"{reply.code}: {reply.text}" if reply.code else reply.outcome.value
        answer = Answer(_STATUSES[reply.outcome], message, task_of(request, ticket.queued, self._clock()))
        if not reply.id:
            return replace(answer, task=None)  # the spool refused it
        if reply.outcome is Outcome.FAILED:
            return replace(answer, taken=partial(self._client_notified, reply.id))
        return answer

    async def _wait(self, ticket: Ticket) -> Reply:
        """The end; `deferred`, once it is durable, when the client may wait no longer or the service stops."""
        events: set[asyncio.Future[Any]] = {ticket.outcome, self._leaving}
        limit_s = self._settings.current.wait_limit_s
        try:
            await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            await ticket.durable
            if not ticket.outcome.done() and (reply := self._intake.deferral(ticket)):
                return reply
            return await ticket.outcome
        finally:
            ticket.outcome.cancel()  # unless it is done: this client waits no longer


def parse_form(content_type: str, body: bytes) -> Request:
    """Read the request in a form.

    Args:
        content_type: of the body, as in the header.
        body: at most `MAX_FORM` bytes.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    header = Message()
    header["Content-Type"] = content_type
    match header.get_content_type():
        case "application/x-www-form-urlencoded":
            pairs = _urlencoded(body)
        case "multipart/form-data":
            pairs = _multipart(content_type, body)
        case _:
            raise _bad_request(
                f"a form is application/x-www-form-urlencoded or multipart/form-data, not {content_type!r}"
            )
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise _bad_request(f"the field {name!r} was sent twice")
        if name in _FIELDS:
            fields[name] = value
    for name in _FIELDS[:2]:
        if not fields.get(name):
            raise _bad_request(f"the field {name!r} is missing")
    return Request(fields["file"], _destination(fields["uri"]), tag=fields.get("slug", ""), extended=True)


def _destination(uri: str) -> Destination:
    bucket, slash, key = uri.removeprefix(_SCHEME).partition("/")
    if not (uri.startswith(_SCHEME) and slash):
        raise _bad_request(f"the uri {one_line(uri)!r} is not s3://bucket/key")
    return Destination(bucket, key)


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("utf-8", "surrogateescape")
    return parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="surrogateescape")


def _multipart(content_type: str, body: bytes) -> list[tuple[str, str]]:
    # A form is a MIME message, which the standard library reads.
    head = f"Content-Type: {content_type}\r\n\r\n".encode("utf-8", "surrogateescape")
    message = BytesParser().parsebytes(head + body)
    if not message.is_multipart():
        raise _bad_request("the Content-Type is multipart/form-data, but the body is not")
    pairs = []
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.is_multipart():
            continue
        if name in _FIELDS and part.get_filename() is not None:
            raise _bad_request(
                f"the field {name!r} holds a file's content; its path is wanted: -F {name}=/path, without an @"
            )
        value = part.get_payload(decode=True)
        pairs.append((name, value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else ""))
    return pairs


def task_of(request: Request, queued: QueuedTransfer, now: float) -> dict[str, Any]:
    """The `task` of the answer.

    Args:
        request: the client's.
        queued: the transfer that serves it; has its record when it is over.
        now: monotonic seconds.
    """
    record = queued.record
    usec = record.total_usec if record else max(0, round((now - queued.accepted_at) * 1e6))
    upload_usec = record.upload_usec if record else None
    size = record.size_bytes if record else queued.transfer.file_state.size
    mbits = size * 8 / upload_usec if upload_usec else 0.0  # bits per microsecond
    return {
        "id": queued.transfer.id,
        "uri": f"{_SCHEME}{request.destination}",
        "file": request.file,
        "duration": _clock(usec),
        "duration_seconds": usec / 1e6,
        "attempts": queued.attempts,
        "size_bytes": size,
        "upload_parts": (record and record.parts) or 1,  # without parts it is one PUT
        "transfer_rate": f"{mbits:.3f} Mbit/s",
        "transfer_rate_mbits": round(mbits, 3),
        "slug": request.tag,
    }


def _clock(usec: int) -> str:
    """Hours, minutes and seconds, always with six decimals."""
    seconds, micro = divmod(usec, 1_000_000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micro:06}"
