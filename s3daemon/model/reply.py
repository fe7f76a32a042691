"""The reply to a request, whichever listener the request came through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from s3daemon.errors import S3daemonError, one_line


class Outcome(Enum):
    """The result of a request, as its reply names it."""

    STORED = "stored"
    ACCEPTED = "accepted"
    FAILED = "failed"
    DEFERRED = "deferred"


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request.

    Args:
        outcome: the result.
        id: the transfer's id; empty when nothing was accepted.
        code: the error's code when `failed` or `deferred`, else empty.
        text: one line for people when `failed` or `deferred`, else empty.
        counts: how many transfers have which end, of the answer to a question about a tag.
    """

    outcome: Outcome
    id: str = ""
    code: str = ""
    text: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: S3daemonError) -> Reply:
        """Return the reply that reports `error`: nothing was accepted."""
        return cls(Outcome.FAILED, "", error.code, one_line(error.text))

    def encode(self, *, extended: bool) -> bytes:
        """Return the bytes to send: one JSON object where the request was extended, else the plain form."""
        if extended:
            members = {"result": self.outcome.value, "id": self.id, "code": self.code, "text": self.text}
            return json.dumps({k: v for k, v in members.items() if v} | dict(self.counts)).encode() + b"\n"
        if self.outcome in (Outcome.STORED, Outcome.ACCEPTED):
            return b"Success"
        return f"{self.code}: {self.text}\n".encode(errors="backslashreplace")
