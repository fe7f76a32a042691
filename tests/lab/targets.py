"""The parsers that get untrusted bytes, each as a function of bytes that raises only if something is wrong.

A target calls one parser, catches the errors that it is documented to raise, and checks what it promises otherwise.
The fuzzer, the corpus and hypothesis use the list `TARGETS`; a new parser takes a function and a line there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from s3daemon.commands.report.read import from_lines
from s3daemon.commands.report.select import Collection, Selection
from s3daemon.config.settings import VARIABLES, Settings
from s3daemon.errors import RequestError, S3daemonError, SettingsError
from s3daemon.http.upload import Pairs, parse_form, request_of
from s3daemon.http.upload import given_in as given_in_form
from s3daemon.ingress.protocol import MAX_LINE, LineReader, given_in, is_extended, parse_request, question_in
from s3daemon.ingress.refusals import describe_refusal
from s3daemon.model.exposure import Exposures, Loss
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import MAX_DESTINATION_CHARS, Destination, Request

_SECRET = "SECRET-OF-THE-FUZZER"


def wire(data: bytes) -> None:
    """A client's bytes, in pieces: every line a request or a refusal of one line; cut anywhere, the same lines."""
    cut, stream = data[:1], data[1:]
    step = (cut[0] if cut else 0) + 1
    lines = _lines([stream[at : at + step] for at in range(0, len(stream), step)])
    assert lines == _lines([stream])
    for line in lines:
        if line is not None:
            _request(line)


def _lines(pieces: list[bytes]) -> list[bytes | None]:
    """The lines that a reader finds in the pieces; None at the end for a refusal."""
    reader, lines = LineReader(), list[bytes | None]()
    try:
        for piece in [*pieces, None]:
            if piece is None:
                reader.end()
            else:
                reader.feed(piece)
            while (line := reader.next_line()) is not None:
                assert len(line) < MAX_LINE
                assert b"\n" not in line
                lines.append(line)
        assert reader.finished
    except RequestError as exc:
        _refusal(exc)
        lines.append(None)
    return lines


def _request(line: bytes) -> None:
    try:
        question_in(line)
        request = parse_request(line)
    except RequestError as exc:
        _refusal(exc, *given_in(line))
        return
    assert request.file.startswith("/")
    assert os.fsencode(request.file)
    assert request.extended is is_extended(line)
    to = request.destination
    members = {"file": request.file, "destination": f"any/{to}", "wait": request.wait, "tag": request.tag}
    again = parse_request(json.dumps(members).encode())
    assert again == Request(request.file, to, request.wait, request.tag, extended=True)


def _kept(refusal: Refusal) -> list[str]:
    """What the exposures keep of a refusal."""
    losses: list[Loss] = []
    Exposures(on_loss=losses.append).refused(refusal, 1)
    return [text for loss in losses for text in (loss.what, loss.missing.reason, *(name for _, name in loss.names))]


def _refusal(error: S3daemonError, *given: str) -> None:
    """Each form of the reply is one line, and the journal and the spool take it, whatever the client wrote."""
    refusal = describe_refusal(error, *given)
    assert dict(refusal.fields())["MESSAGE"]
    for text in _kept(refusal):
        assert len(text) <= MAX_DESTINATION_CHARS
        assert text.encode().decode() == text
    reply = Reply.failed(error)
    plain, extended = reply.encode(extended=False), reply.encode(extended=True)
    assert plain.splitlines() == [plain[:-1]]
    assert plain.decode().startswith(f"{error.code}: ")
    assert extended.count(b"\n") == 1
    assert json.loads(extended)["result"] == Outcome.FAILED.value


def extended_form(data: bytes) -> None:
    """A JSON object, whatever is in it."""
    _request(b"{" + data.replace(b"\n", b" ")[: MAX_LINE - 2])


def destination(data: bytes) -> None:
    """`alias/bucket/key`, and back."""
    with suppress(RequestError):
        made = Destination.parse(data.decode(errors="surrogateescape"))
        assert Destination.parse(f"a/{made}") == made


_GIVEN = {
    "S3_ENDPOINT_URL": "http://store",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": _SECRET,
    "S3DAEMON_STATE_DIR": "/state",
}
_NAMES = sorted(variable.name for variable in VARIABLES.values())


def values(data: bytes) -> None:
    """One variable's text: a value that its kind admits, or a fault of one line."""
    variable = list(VARIABLES.values())[(data[0] if data else 0) % len(VARIABLES)]
    text = data[1:].decode(errors="surrogateescape")
    faults: tuple[str, ...] = ()
    try:
        assert variable.kind.admits(variable.read(text))
    except SettingsError as exc:
        faults = exc.faults
    for fault in faults:
        assert fault.isprintable()
        assert not (variable.secret and len(text) > len(fault) / 2 and text in fault)


def settings(data: bytes) -> None:
    """An environment of `NAME=text` lines, a leading digit choosing a name of ours."""
    environ = dict(_GIVEN)
    for line in data.decode(errors="surrogateescape").split("\n"):
        name, _, text = line.partition("=")
        number = name[:2]
        environ[_NAMES[int(number) % len(_NAMES)] if number.isascii() and number.isdigit() else name] = text
    shown = ""
    try:
        shown = repr(Settings.from_environ(environ, read=_nothing))
    except SettingsError as exc:
        shown = "; ".join(exc.faults)
    assert shown.isprintable()
    assert shown
    if environ["AWS_SECRET_ACCESS_KEY"] == _SECRET:
        assert _SECRET not in shown


def _nothing(_: object) -> str:
    raise FileNotFoundError(2, "No such file or directory")


def record(data: bytes) -> None:
    """A journal entry as a reader returns it: a record that is the same when it is written again, or none."""
    try:
        fields: Any = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict):
        Collection(Selection()).add(fields)
        if (made := TransferRecord.from_fields(fields)) is not None:
            _written_again(made)


def _written_again(made: TransferRecord) -> None:
    again: dict[str, list[object]] = {}
    for name, value in made.fields():
        again.setdefault(name, []).append(value)
    # A list of one number would be text as byte values.
    given = {name: values if len(values) > 1 else values[0] for name, values in again.items()}
    assert TransferRecord.from_fields(given) == made


def report_lines(data: bytes) -> None:
    """Lines that were piped into a report."""
    collection = Collection(Selection())
    with suppress(S3daemonError):
        for entry in from_lines(data.split(b"\n"), lambda _: None):
            collection.add(entry)
    assert all(one.record.size_bytes is not None for one in collection.transfers())


def form(data: bytes) -> None:
    """The HTTP form: a content type, a line break, a body; a request, or a refusal."""
    kind, _, body = data.partition(b"\n")
    pairs: Pairs = []
    try:
        pairs = parse_form(kind.decode("latin-1"), body)
        request = request_of(pairs)
    except RequestError as exc:
        _refusal(exc, *given_in_form(pairs))
        return
    assert request.file.startswith("/")
    assert os.fsencode(request.file)
    assert request.wait


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "extended": extended_form,
    "destination": destination,
    "values": values,
    "settings": settings,
    "record": record,
    "report": report_lines,
    "form": form,
}
