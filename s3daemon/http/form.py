"""The form of `POST /upload` without I/O: a body in, a `Request` out; what became of it in, a JSON object out.

    file    absolute path of a file on this host
    uri     s3://bucket/key, taken as it is: nothing in it is an escape
    slug    groups transfers in the report, as the wire's tag does; may be left out

Either `application/x-www-form-urlencoded` (curl -d) or `multipart/form-data` (curl -F). Other fields are passed over: a
hook's extra word must not cost a file. Names that are not UTF-8 travel as the bytes that they are, plain or
percent-encoded.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import Code, RequestError, one_line
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Destination, Request

#: Room for a file name of PATH_MAX (4096 bytes), a key and a tag, each byte of them percent-encoded.
MAX_FORM = 32 * 1024
#: What became of a request, in HTTP's terms. Nothing else is ever answered to a form that came through the door.
STATUSES = {
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
        content_type: of the body, as the header has it.
        body: at most `MAX_FORM` bytes.
        sock: its connection, for who it is.
    """

    content_type: str
    body: bytes
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client gets.

    Args:
        status: HTTP's word for it.
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
        """Those beside the usual ones: the message as one line of ASCII, unless all is well."""
        if self.status == HTTPStatus.OK:
            return {}
        return {"X-Error": one_line(self.message).encode("ascii", "backslashreplace").decode("ascii")}


def _bad(text: str) -> RequestError:
    return RequestError(Code.BAD_REQUEST, text)


def parse_form(content_type: str, body: bytes) -> Request:
    """Read a form.

    Args:
        content_type: of the body, as the header has it.
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
            raise _bad(f"a form is application/x-www-form-urlencoded or multipart/form-data, not {content_type!r}")
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:
            raise _bad(f"the field {name!r} is there twice")
        if name in _FIELDS:
            fields[name] = value
    for name in _FIELDS[:2]:
        if not fields.get(name):
            raise _bad(f"the field {name!r} is missing")
    return Request(fields["file"], _destination(fields["uri"]), tag=fields.get("slug", ""), extended=True)


def _destination(uri: str) -> Destination:
    bucket, slash, key = uri.removeprefix(_SCHEME).partition("/")
    if not (uri.startswith(_SCHEME) and slash):
        raise _bad(f"the uri {one_line(uri)!r} is not s3://bucket/key")
    return Destination(bucket, key)


def _urlencoded(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("utf-8", "surrogateescape")
    return parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="surrogateescape")


def _multipart(content_type: str, body: bytes) -> list[tuple[str, str]]:
    # In MIME's terms a form is a message like any other, and the standard library reads those.
    head = f"Content-Type: {content_type}\r\n\r\n".encode("utf-8", "surrogateescape")
    message = BytesParser().parsebytes(head + body)
    if not message.is_multipart():
        raise _bad("the form is multipart/form-data by its header, not by its content")
    pairs = []
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        if not isinstance(name, str) or part.is_multipart():
            continue
        if name in _FIELDS and part.get_filename() is not None:
            raise _bad(f"the field {name!r} holds a file's content; its path is wanted: -F {name}=/path, without an @")
        value = part.get_payload(decode=True)
        pairs.append((name, value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else ""))
    return pairs


def task_of(request: Request, queued: QueuedTransfer, now: float) -> dict[str, Any]:
    """What the answer says of the transfer.

    Args:
        request: the client's.
        queued: the transfer that serves it; with its record when it is over.
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
        "upload_parts": (record and record.parts) or 1,  # None is one PUT
        "transfer_rate": f"{mbits:.3f} Mbit/s",
        "transfer_rate_mbits": round(mbits, 3),
        "slug": request.tag,
    }


def _clock(usec: int) -> str:
    """Hours, minutes and seconds, always with six decimals."""
    seconds, micro = divmod(usec, 1_000_000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micro:06}"
