"""`POST /upload` over a real uploader with a stand-in store: every end of a transfer has its status and figures.

Time flies in these tests; the connection is a stand-in too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import pytest
from fakes import House, away, fly

from s3daemon.errors import AttemptError
from s3daemon.http.form import Answer, Form
from s3daemon.http.upload import Uploads
from s3daemon.ingress.peer import AccessControl


class Desk:
    """Uploads over a House."""

    def __init__(self, **changes: str) -> None:
        self.house, self.told = House(**changes), list[str]()
        self.sock, self.client = socket.socketpair()
        self.uploads = Uploads(self.house.settings, self.house.intake, self.told.append, clock=self.house.loop.time)

    async def ask(self, **fields: str) -> Answer:
        body = urlencode({"file": "/f", "uri": "s3://bucket/k"} | fields).encode()
        return await self.uploads.handle(Form("application/x-www-form-urlencoded", body, self.sock))

    def close(self) -> None:
        self.sock.close()
        self.client.close()


def run(test: Callable[[Desk], Awaitable[None]], **changes: str) -> None:
    async def main() -> None:
        desk = Desk(**changes)
        try:
            await test(desk)
        finally:
            desk.close()

    fly(main)


def test_stored() -> None:
    """200 once the object is there, with its figures; the slug is the transfer's tag."""

    async def test(desk: Desk) -> None:
        desk.house.files.sizes["/f"] = 5000
        got = await desk.ask(slug="AB_1")
        assert (got.status, got.message, got.headers()) == (200, "stored", {})
        assert got.task
        (record,) = desk.house.journal.records
        assert record.tags == ("AB_1",)
        assert got.task["id"] == record.transfer_id
        assert (got.task["size_bytes"], got.task["attempts"], got.task["slug"]) == (5000, 1, "AB_1")
        assert got.task["duration_seconds"] == record.total_usec / 1e6 == 0.1

    run(test)


def test_refused() -> None:
    """400, and nothing is accepted: a bad form, no such file, a bucket that is not allowed."""

    async def test(desk: Desk) -> None:
        desk.house.files.missing.add("/none")
        for fields, why in (
            ({"uri": "b/k"}, "BadRequest: the uri 'b/k' is not s3://bucket/key"),
            ({"file": "/none"}, "NoSuchFile: /none: no such file"),
            ({"uri": "s3://other/k"}, "NotAllowed: the bucket other is not in S3DAEMON_ALLOWED_BUCKETS"),
        ):
            got = await desk.ask(**fields)
            assert (got.status, got.message, got.headers(), got.task) == (400, why, {"X-Error": why}, None)
        assert not desk.house.spool.rows

    run(test, S3DAEMON_ALLOWED_BUCKETS="bucket")


def test_users_that_may_not() -> None:
    """The same doorkeeper as the wire's decides; 400 with its reason."""

    async def test(desk: Desk) -> None:
        desk.uploads.door = AccessControl(["4711"], look=lambda socks: dict.fromkeys(socks, 12))
        got = await desk.ask()
        assert (got.status, got.message) == (400, "NotAllowed: user 12 is not in S3DAEMON_ALLOWED_USERS")
        assert not desk.house.spool.rows

    run(test)


def test_failed() -> None:
    """500 with the store's word; the failure counts as told once the answer was taken."""

    async def test(desk: Desk) -> None:
        desk.house.store.answer = lambda _: AttemptError("NoSuchBucket", "there is none", status=404)
        got = await desk.ask()
        assert (got.status, got.message) == (500, "NoSuchBucket: there is none")
        assert got.task
        assert (got.task["attempts"], got.task["transfer_rate_mbits"]) == (1, 0.0)
        assert desk.told == []
        got.taken()
        assert desk.told == [got.task["id"]]

    run(test)


def test_the_spool_is_full() -> None:
    """500 without a transfer: nothing was accepted."""

    async def test(desk: Desk) -> None:
        desk.house.spool.full = True
        desk.house.store.seconds = 10.0
        got = await desk.ask()
        assert (got.status, got.message, got.task) == (500, "SpoolFull: no space", None)
        got.taken()
        assert desk.told == []

    run(test)


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "away"])
def test_deferred(slow: bool) -> None:
    """504 when the limit has passed, or soon when the store is known to be away; the transfer goes on."""

    async def test(desk: Desk) -> None:
        desk.house.store.seconds = 100.0 if slow else 0.1
        desk.house.store.answer = (lambda _: None) if slow else away
        got = await desk.ask()
        assert got.status == 504
        assert got.task
        id_ = got.task["id"]
        assert got.message.startswith(f"Deferred: {id_} is kept and being tried; ")
        assert got.task["duration_seconds"] <= 20.0
        assert id_ in desk.house.spool.rows
        desk.house.store.answer = lambda _: None
        await asyncio.sleep(300.0)
        (record,) = desk.house.journal.records
        assert (record.transfer_id, record.outcome) == (id_, "stored")

    run(test, S3DAEMON_WAIT_LIMIT="20s")


def test_the_service_stops() -> None:
    """Whoever waits is told at once, and the truth: 504, kept. But not before it is."""

    async def test(desk: Desk) -> None:
        desk.house.store.seconds = 100.0
        desk.house.spool.commit = asyncio.Event()
        asking = asyncio.create_task(desk.ask())
        await asyncio.sleep(1.0)
        desk.uploads.leave()
        await asyncio.sleep(1.0)
        assert not asking.done()
        desk.house.spool.commit.set()
        got = await asking
        assert got.task
        wanted = f"Deferred: {got.task['id']} is kept and being tried; it is still on its way"
        assert (got.status, got.message) == (504, wanted)
        assert got.task["duration_seconds"] == pytest.approx(2.0)

    run(test)


def test_two_clients_of_one_transfer() -> None:
    """A second form for what still waits joins it: one upload, both answered with it, each with its own slug."""

    async def test(desk: Desk) -> None:
        desk.house.files.sizes["/first"] = 10
        first = asyncio.create_task(desk.ask(file="/first"))
        await asyncio.sleep(0.01)
        second, third = (asyncio.create_task(desk.ask(slug=slug)) for slug in ("a", "b"))
        await first
        tasks = [got.task for got in (await second, await third) if got.task]
        assert [task["slug"] for task in tasks] == ["a", "b"]
        assert len({task["id"] for task in tasks}) == 1
        assert len(desk.house.store.puts) == 2

    run(test)
