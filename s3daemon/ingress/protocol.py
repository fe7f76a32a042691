"""The line protocol without I/O: bytes in, a `Request` out; a `Reply` in, bytes out.

    request  = line LF                 at most 8192 bytes, UTF-8; without LF it is incomplete and refused
    plain    = file SP destination     neither contains a space
    extended = a JSON object           {"file": ..., "destination": ..., "wait": true|false, "tag": ...}
    question = a JSON object           {"wait_for": tag, "expect": number, "timeout": seconds}, see `questions`
    destination = alias "/" bucket "/" key

Blanks and a CR at the end of a plain line are ignored, and so is the alias, which may be empty: the original s3daemon
took both. A plain request is the only one of its connection: with more data behind it, it is refused.

The reply to a plain request is `Success`, exactly these bytes, or one line `CODE: text`; then the daemon closes. The
reply to an extended one is a JSON object and LF, and the connection serves the next request. A file name always starts
with a slash and an object with a brace, so the two forms cannot be confused. Names that are not UTF-8 travel
in the extended form as JSON escapes of lone surrogates (what `json.dumps(os.fsdecode(name))` writes).

This module never opens the file, and never looks whether the destination exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from s3daemon.errors import Code, RequestError, quoted
from s3daemon.model.request import Destination, Request

#: Room for a file name of PATH_MAX (4096 bytes) and a key; it bounds the memory that a client can use.
MAX_LINE = 8192

#: A question that does not say how long its answer may take gets it after this time at the latest, seconds.
QUESTION_TIMEOUT_S = 30.0
#: The longest that a question waits, seconds: so long at most does a client that has vanished occupy a slot.
QUESTION_LIMIT_S = 3600.0
#: A member of an object and its text: also of one that was cut, or is not JSON for another reason.
_MEMBER = re.compile(r'"(file|destination|tag)"\s*:\s*"((?:[^"\\]|\\.)*)')
#: The beginning of each TLS handshake: the type of its record, and the version's first byte.
_TLS = b"\x16\x03"
_HTTP = re.compile(rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|CONNECT|TRACE) \S+ HTTP/1\.[01]\r?")
#: The methods of a form: perhaps of a hook, whose file is not delivered.
_FORM = (b"POST ", b"PUT ", b"PATCH ")


class LineReader:
    """Splits a client's bytes into lines.

    `feed` and `end` take input; `next_line` consumes one line and returns it without its LF, or returns None, meaning
    that more input is needed, or raises `RequestError` when there will be no line.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take what the client sent."""
        self._buffer += data

    def end(self) -> None:
        """Note that the client will send no more."""
        self._ended = True

    def check_nothing_follows(self) -> None:
        """Make sure that nothing came with a plain request: the connection ends with it, so more would be lost.

        Raises:
            RequestError: `BadRequest`; what follows is discarded.
        """
        more = bytes(self._buffer).decode(errors="backslashreplace").strip()
        self._buffer.clear()
        if more:
            text = "follows a plain request, but a connection takes only one; nothing was done"
            raise RequestError(Code.BAD_REQUEST, f"{quoted(more, 100)} {text}")

    @property
    def finished(self) -> bool:
        """Whether no more lines will come, and no incomplete one is left."""
        return self._ended and not self._buffer

    @property
    def rest(self) -> bytes:
        """The bytes that are left, at most about `MAX_LINE`."""
        return bytes(self._buffer[: 2 * MAX_LINE])

    def next_line(self) -> bytes | None:
        """The next whole line, or None.

        Raises:
            RequestError: `BadRequest` when the line is longer than `MAX_LINE`, the input ended within it, or it is TLS.
        """
        if self._buffer.startswith(_TLS):
            self._buffer.clear()
            raise RequestError(Code.BAD_REQUEST, "TLS is not spoken here: connect without it, from this host")
        at = self._buffer.find(b"\n", 0, MAX_LINE)
        if at >= 0:
            line = bytes(self._buffer[:at])
            del self._buffer[: at + 1]
            return line
        if len(self._buffer) >= MAX_LINE:
            raise RequestError(Code.BAD_REQUEST, f"the request is longer than {MAX_LINE} bytes")
        if self._ended and self._buffer:
            raise RequestError(Code.BAD_REQUEST, "the request ended without a newline; it was not carried out")
        return None


def is_extended(line: bytes) -> bool:
    """Whether a line, or its beginning, is in the extended form and so gets an answer in that form."""
    return line.startswith(b"{")


def is_http(line: bytes) -> bool:
    """Whether a line is HTTP's first: a client took this port for the one of the HTTP server."""
    return _HTTP.fullmatch(line) is not None


def http_fault(line: bytes) -> RequestError | None:
    """Why a form over HTTP is refused here; None if `line` begins another request, as of a browser or a scraper."""
    return RequestError(Code.BAD_REQUEST, "a form over HTTP, to the line protocol") if line.startswith(_FORM) else None


def http_answer(addresses: Sequence[str]) -> bytes:
    """The answer to a client that speaks HTTP: 400, and where HTTP is served.

    Args:
        addresses: of the sockets for HTTP; none while their unit is not enabled.
    """
    where = ", ".join(addresses) or "none: enable s3daemon-http.socket, for an instance s3daemon-http@PORT.socket"
    text = f"bad request: this is the port of the line protocol; the socket for HTTP is {where}\n".encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + text


def parse_request(line: bytes) -> Request:
    """Read one line, without its LF.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        raise RequestError(
            Code.BAD_REQUEST,
            "the request is not UTF-8; give such a file name in the extended form, with JSON escapes, as `send` does",
        ) from exc
    return _parse_extended(text) if is_extended(line) else _parse_plain(text)


@dataclass(frozen=True, slots=True)
class Question:
    """Whether all that was accepted under a tag is stored.

    Args:
        tag: the tag.
        expect: how many files there should be; None when that is not said.
        timeout_s: how long the answer may take, seconds; at most `QUESTION_LIMIT_S`.
    """

    tag: str
    expect: int | None = None
    timeout_s: float = QUESTION_TIMEOUT_S

    @classmethod
    def of(cls, tag: object, expect: object, timeout_s: object) -> Question:
        """Check values from outside.

        Raises:
            RequestError: `BadRequest`, with what is wrong.
        """
        if not isinstance(tag, str) or not tag:
            raise RequestError(Code.BAD_REQUEST, "a question needs a tag")
        if expect is not None and (not isinstance(expect, int) or isinstance(expect, bool) or expect < 1):
            raise RequestError(Code.BAD_REQUEST, '"expect" is the number of files, 1 or more')
        if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not timeout_s >= 0:
            raise RequestError(Code.BAD_REQUEST, '"timeout" is a number of seconds')
        return cls(tag, expect, float(min(timeout_s, QUESTION_LIMIT_S)))  # an int may be too large for a float


def question_in(line: bytes) -> Question | None:
    """Read a line that asks for the end of transfers; None when it asks for something else.

    Raises:
        RequestError: `BadRequest`, with what is wrong.
    """
    if b'"wait_for"' not in line or not is_extended(line):
        return None
    try:
        members = json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    if "wait_for" not in members:
        return None
    if unknown := sorted(members.keys() - {"wait_for", "expect", "timeout"}):
        raise RequestError(Code.BAD_REQUEST, f"a question has no member {quoted(unknown[0], 100)}")
    return Question.of(members["wait_for"], members.get("expect"), members.get("timeout", QUESTION_TIMEOUT_S))


def given_in(line: bytes) -> tuple[str, str, str]:
    """Return file, bucket/key and tag of a request that is refused, as far as they can be read; empty otherwise."""
    text = line.decode("utf-8", "surrogateescape")
    if is_extended(line):
        found = dict(_MEMBER.findall(text))
        file, destination, tag = (_unescape(found.get(name, "")) for name in ("file", "destination", "tag"))
    else:
        file, _, destination = text.strip().partition(" ")
        tag = ""
    return file, destination.strip().partition("/")[2], tag


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _parse_plain(text: str) -> Request:
    words = text.rstrip(" \t\r").split(" ")
    if len(words) != 2 or not all(words):  # noqa: PLR2004 - the grammar: file SP destination
        raise RequestError(
            Code.BAD_REQUEST, f"expected FILE alias/bucket/key, separated by one space, not {quoted(text, 100)}"
        )
    return Request(words[0], Destination.parse(words[1]))


def _parse_extended(text: str) -> Request:
    try:
        members = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        raise RequestError(Code.BAD_REQUEST, "the request starts with a brace but is not a JSON object") from exc
    unknown = sorted(members.keys() - {"file", "destination", "wait", "tag"})
    if unknown:
        raise RequestError(Code.BAD_REQUEST, f"this daemon does not know the member {quoted(unknown[0], 100)}")
    file, destination = _text(members, "file"), _text(members, "destination")
    wait = members.get("wait", True)
    if not isinstance(wait, bool):
        raise RequestError(Code.BAD_REQUEST, '"wait" must be true or false')
    tag = _text(members, "tag") if "tag" in members else ""
    return Request(file, Destination.parse(destination), wait, tag, extended=True)


def _object(members: Sequence[tuple[str, object]]) -> dict[str, object]:
    found = dict(members)
    if len(found) < len(members):  # which of them is meant, the client alone knows
        raise RequestError(Code.BAD_REQUEST, "the request has a member twice")
    return found


def _text(members: dict[str, object], name: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise RequestError(Code.BAD_REQUEST, f'"{name}" must be given, as a string')
    return value
