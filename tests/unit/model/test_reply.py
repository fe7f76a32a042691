"""Replies: one line in the plain form, one JSON object in the extended form."""

import json

import pytest

from s3daemon.errors import FileError
from s3daemon.model.reply import Outcome, Reply


@pytest.mark.parametrize("outcome", [Outcome.STORED, Outcome.ACCEPTED])
def test_the_plain_form_of_a_success(outcome: Outcome) -> None:
    """Exactly these bytes, which existing clients compare."""
    assert Reply(outcome, "0123456789abcdef").encode(extended=False) == b"Success"


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.DEFERRED])
def test_the_plain_form_of_a_failure(outcome: Outcome) -> None:
    """Code and text in one line; what is not UTF-8 is escaped."""
    reply = Reply(outcome, "id", "NoSuchFile", "/a\udcff: no such file")
    assert reply.encode(extended=False) == b"NoSuchFile: /a\\udcff: no such file\n"


def test_the_extended_form() -> None:
    """One JSON object and a line break; empty members are left out."""
    reply = Reply(Outcome.DEFERRED, "id", "Deferred", "kept")
    encoded = reply.encode(extended=True)
    assert json.loads(encoded) == {"result": "deferred", "id": "id", "code": "Deferred", "text": "kept"}
    assert (encoded[-1:], encoded.count(b"\n")) == (b"\n", 1)
    assert json.loads(Reply(Outcome.STORED, "id").encode(extended=True)) == {"result": "stored", "id": "id"}


def test_a_reply_that_reports_an_error_is_one_line() -> None:
    """Whatever is in the error's text."""
    reply = Reply.failed(FileError("ReadFailed", "two\nlines"))
    assert (reply.outcome, reply.id, reply.code, reply.text) == (Outcome.FAILED, "", "ReadFailed", r"two\nlines")
