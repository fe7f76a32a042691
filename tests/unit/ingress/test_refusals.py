"""Refusals: each counted and reported, a few a second of each code logged with all that is known of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from s3daemon.errors import RequestError
from s3daemon.ingress.peer import PeerLookup
from s3daemon.ingress.refusals import Refusals, describe_refusal
from s3daemon.journal import WARNINGS_PER_SECOND
from s3daemon.model.record import MessageId, Priority, Refusal

UNREADABLE = RequestError("NotReadable", "/data/f: permission denied")


class Desk:
    """Refusals at a time of the test's, with what they led to."""

    def __init__(self, uid: int | None = 1000) -> None:
        self.now = 5.0
        self.uid, self.looks = uid, 0
        self.entries: list[dict[str, Any]] = []
        self.seen: list[tuple[Refusal, int]] = []
        self.refusals = Refusals(
            PeerLookup(self.look),
            lambda fields: self.entries.append(dict(fields)),
            clock=lambda: self.now,
            wall=lambda: 1e9 + self.now,
        )
        self.refusals.observers.append(lambda refusal, at_usec: self.seen.append((refusal, at_usec)))

    def look(self, socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
        self.looks += 1
        return {} if self.uid is None else dict.fromkeys(socks, self.uid)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def test_a_refusal_is_a_warning_with_all_that_is_known(sock: socket.socket) -> None:
    desk = Desk()
    refusal = describe_refusal(UNREADABLE, "/data/f", "raw/night/f", "exposure-1")
    asyncio.run(desk.refusals.add(refusal, sock))
    (entry,) = desk.entries
    assert entry == {
        "MESSAGE": "refused /data/f to raw/night/f (exposure-1), asked by user 1000, "
        "NotReadable: /data/f: permission denied",
        "MESSAGE_ID": MessageId.REFUSED, "PRIORITY": Priority.WARNING,
        "S3DAEMON_CODE": "NotReadable", "S3DAEMON_ERROR": "NotReadable: /data/f: permission denied",
        "S3DAEMON_FILE": b"/data/f", "S3DAEMON_BUCKET": "raw", "S3DAEMON_KEY": "night/f", "S3DAEMON_TAG": "exposure-1",
        "S3DAEMON_PEER_UID": 1000,
    }  # fmt: skip
    assert desk.seen == [(refusal, 1_000_000_005_000_000)]
    assert desk.refusals.counts == {"NotReadable": 1}


def test_what_is_not_known_is_left_out(sock: socket.socket) -> None:
    """Nothing could be read of the request, and its client is gone."""
    desk = Desk(uid=None)
    asyncio.run(desk.refusals.add(describe_refusal(RequestError("BadRequest", "too\nlong")), sock))
    (entry,) = desk.entries
    assert entry["MESSAGE"] == r"refused a request, asked by an unknown user, BadRequest: too\nlong"
    assert not [name for name in entry if name.startswith("S3DAEMON_") and name[9:] not in ("CODE", "ERROR")]


def test_all_are_counted_and_few_are_logged(sock: socket.socket) -> None:
    """Of each code alone; the next entry says how many were not. No user is looked up for what is not logged."""
    desk = Desk()

    async def flood() -> None:
        for _ in range(100):
            await desk.refusals.add(describe_refusal(UNREADABLE, "/f"), sock)
        await desk.refusals.add(describe_refusal(RequestError("BadRequest", "b"), "/f"), sock)
        desk.now += 1.0
        await desk.refusals.add(describe_refusal(UNREADABLE, "/f"), sock)

    asyncio.run(flood())
    assert desk.refusals.counts == {"NotReadable": 101, "BadRequest": 1}
    assert len(desk.seen) == 102
    assert len(desk.entries) == desk.looks == WARNINGS_PER_SECOND + 2
    assert f"({100 - WARNINGS_PER_SECOND} more like this not logged)" in desk.entries[-1]["MESSAGE"]


def test_hostile_words_are_shown_and_bounded(sock: socket.socket) -> None:
    """Control characters, bytes that are not UTF-8, a megabyte: one entry, and its message one line."""
    desk = Desk()
    long = "x" * 1_000_000
    asyncio.run(
        desk.refusals.add(describe_refusal(UNREADABLE, "/\udcff\n" + long, "raw/\x1b" + long, "t\n" + long), sock)
    )
    (entry,) = desk.entries
    assert entry["MESSAGE"].isprintable()
    assert sum(len(str(value)) for value in entry.values()) < 20_000
    assert entry["S3DAEMON_FILE"].startswith(b"/\xff\n")
