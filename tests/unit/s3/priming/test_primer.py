"""Priming before scripted stores of each kind: what is sent, what is left there, and whether it is done again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from lab.keeping import Clock
from lab.scripted import (
    Exchange,
    Script,
    Scripted,
    answering,
    hang_up_after,
    keep,
    refusing,
    reset_after,
    scripted,
    silent_after,
)
from lab.sending import OpenStore, in_loop, sending, settings_for

from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.keeper import PRIMED_BYTES
from s3daemon.s3.priming.primer import KEY_PREFIX, PAUSE_FIRST_S, Primer

KEPT_S = 0.1
RESERVE = 3
ADDRESSES = ("127.0.0.1", "127.0.0.2")
"""The store listens at the first."""
bad_digest = refusing(400, "BadDigest")


@dataclass
class Primed:
    """A primer at work before a scripted store."""

    server: Scripted
    store: OpenStore
    clock: Clock
    primer: Primer = field(init=False)

    @property
    def connection(self) -> Connection:
        return self.store.pool.idle()[0]

    async def prime(self) -> None:
        """Prime an open connection, as the keeper does."""
        pool = self.store.pool
        with pool.maintain(connection := self.connection):
            await pool.assign_address(connection)
            if not connection.is_open:
                await connection.request("GET", str(pool.url), {}, None)
            await self.primer.prime(connection)

    @property
    def requests(self) -> list[str]:
        """Methods of the requests but for the keeper's."""
        return [seen.method for seen in self.server.seen if seen.target != "/"]


@asynccontextmanager
async def priming(
    put: Script, other: Script = keep, *, bucket: str = "bucket", **changes: Any
) -> AsyncIterator[Primed]:
    clock = Clock()
    async with scripted(put, other) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        settings = settings_for(url, **{"prime": "auto", "receivers": ADDRESSES, **changes})
        async with sending(settings) as store:
            store.pool.reserve = RESERVE
            store.store.last_bucket = bucket
            primed = Primed(server, store, clock)
            primed.primer = Primer(store.store, clock, kept_s=KEPT_S)
            yield primed


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@in_loop
async def test_a_store_that_refuses_wrong_digests_is_primed(caplog: pytest.LogCaptureFixture) -> None:
    """The first upload goes alone; then as many as there are connections in reserve; nothing is stored or looked up."""
    async with priming(bad_digest) as primed:
        assert primed.primer.at_once == 1
        await primed.prime()
        assert primed.primer.at_once == RESERVE
        await primed.prime()
        assert primed.requests == ["PUT", "PUT"]
        assert len(primed.server.connections) == 1
        assert primed.connection.acked_bytes() >= 2 * PRIMED_BYTES
        one, other = primed.server.puts
    assert lines(caplog) == []
    assert one.target.startswith(f"/bucket/{KEY_PREFIX}")
    assert one.target != other.target
    for put in (one, other):
        assert put.whole
        assert put.length == PRIMED_BYTES
        given = base64.b64decode(put.headers["content-md5"], validate=True)
        assert len(given) == 16
        assert given != hashlib.md5(put.body, usedforsecurity=False).digest()
        assert "content-md5" in put.headers["authorization"]


async def closing(exchange: Exchange) -> None:
    """Refuse, and close the connection soon after, without having said so."""
    await bad_digest(exchange)
    await exchange.pause(KEPT_S / 4)
    exchange.connection.close()


async def unread_and_reset(exchange: Exchange) -> None:
    """Refuse before the body was read, and close, which resets the connection."""
    await exchange.read(1000)
    await exchange.refuse(400, "BadDigest")
    exchange.kept = False


async def unread(exchange: Exchange) -> None:
    """Refuse before the body was read, and leave the connection open."""
    await exchange.read(1000)
    await exchange.refuse(400, "BadDigest")
    await exchange.silence()


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (closing, "closes the connection"),
        (refusing(400, "BadDigest", Connection="close"), "closes the connection"),
        (unread, "before it has read it"),
        (unread_and_reset, "before it has read it"),
        (hang_up_after(1000), "closes the connection"),
        (reset_after(1000), "closes the connection"),
        (hang_up_after(), "closes the connection"),
        (refusing(403, "AccessDenied"), "AccessDenied"),
        (refusing(403, "InvalidAccessKeyId"), "InvalidAccessKeyId"),
        (refusing(404, "NoSuchBucket"), "NoSuchBucket"),
    ],
    ids=[
        "close",
        "announced",
        "unread",
        "unread, reset",
        "hang up",
        "reset",
        "hang up after all",
        "denied",
        "keys",
        "no bucket",
    ],
)
@in_loop
async def test_other_kinds_of_stores_see_one_upload(caplog: pytest.LogCaptureFixture, put: Script, why: str) -> None:
    """And the journal has one line. No address is disabled, or on its way to that."""
    async with priming(put) as primed:
        primed.store.pool.addresses.failed("127.0.0.1", "an upload failed", "another transfer")
        await primed.prime()
        assert primed.primer.at_once == 0
        primed.clock.now += 100 * PAUSE_FIRST_S
        assert primed.primer.at_once == 0
        assert len(primed.server.puts) == 1
        assert "DELETE" not in primed.requests
        assert primed.store.pool.addresses.disabled == []
        primed.store.pool.addresses.failed("127.0.0.1", "an upload failed", "another transfer")
        assert primed.store.pool.addresses.disabled == [], "one transfer's failures are one failure"
    (line,) = lines(caplog)
    assert why in line
    assert line.endswith("no connection is primed until a reload")


async def versioned(exchange: Exchange) -> None:
    """A bucket with versions, to other requests than PUT."""
    if exchange.method == "HEAD":
        await exchange.answer(headers={"x-amz-version-id": "v1", "ETag": '"x"'})
    elif exchange.method == "DELETE":
        await exchange.answer(204)
    else:
        await exchange.answer()


@pytest.mark.parametrize(("other", "query"), [(keep, ""), (versioned, "?versionId=v1")])
@in_loop
async def test_what_was_stored_after_all_is_deleted(
    caplog: pytest.LogCaptureFixture, other: Script, query: str
) -> None:
    """It alone, and in a bucket with versions that version; it is not done again, and the journal says so."""
    async with priming(keep, other) as primed:
        await primed.prime()
        assert primed.primer.at_once == 0
        assert primed.requests == ["PUT", "HEAD", "DELETE"]
        (put,) = primed.server.puts
        assert [seen.target for seen in primed.server.seen if seen.method == "DELETE"] == [put.target + query]
    deleted, off = lines(caplog)
    assert put.target[1:] in deleted
    assert "is deleted" in deleted
    assert "stores an upload with a wrong Content-MD5" in off


async def without_answer(exchange: Exchange) -> None:
    """Store it, and hang up."""
    await exchange.read()
    exchange.server.objects[exchange.target] = bytes(exchange.body)
    exchange.server.metadata[exchange.target] = {}


@in_loop
async def test_what_may_be_stored_is_looked_up(caplog: pytest.LogCaptureFixture) -> None:
    """It was read, and no answer came."""
    async with priming(without_answer) as primed:
        await primed.prime()
        assert primed.primer.at_once == 0
        assert primed.requests == ["PUT", "HEAD", "DELETE"]
    deleted, off = lines(caplog)
    assert "is deleted" in deleted
    assert off.endswith("the store stores an upload with a wrong Content-MD5: no connection is primed until a reload")


@in_loop
async def test_what_is_not_stored_is_no_evidence() -> None:
    """The store gave no answer and has no object: another upload is sent later."""
    async with priming(silent_after(), answer_timeout_s=1.0) as primed:
        await primed.prime()
        primed.clock.now += PAUSE_FIRST_S
        primed.server.put = bad_digest
        await primed.prime()
        assert primed.requests == ["PUT", "HEAD", "PUT"]
        assert primed.primer.at_once == RESERVE


@in_loop
async def test_an_object_that_cannot_be_deleted_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async def other(exchange: Exchange) -> None:
        await exchange.refuse(403, "AccessDenied")

    async with priming(keep, other) as primed:
        await primed.prime()
        (put,) = primed.server.puts
        assert primed.store.pool.addresses.disabled == []
    assert f"{put.target[1:]} was, or may be, stored, and could not be deleted: AccessDenied" in lines(caplog)[0]


@pytest.mark.parametrize("prime", ["auto", "bucket/scratch-"])
@in_loop
async def test_a_server_error_is_waited_out(caplog: pytest.LogCaptureFixture, prime: str) -> None:
    """Longer each time; it says nothing of the addresses. Then connections are primed after all."""
    async with priming(refusing(503, "SlowDown"), prime=prime) as primed:
        primed.store.pool.addresses.failed("127.0.0.1", "an upload failed", "another transfer")
        for wait_s in (PAUSE_FIRST_S, 2 * PAUSE_FIRST_S):
            assert primed.primer.at_once > 0
            await primed.prime()
            primed.clock.now += wait_s - 1
            assert primed.primer.at_once == 0
            primed.clock.now += 1
        assert primed.store.pool.addresses.disabled == []
        primed.server.put = bad_digest if prime == "auto" else keep
        await primed.prime()
        assert primed.primer.at_once == RESERVE
    assert lines(caplog) == []


@pytest.mark.parametrize("broken", [reset_after(1000), hang_up_after(), refusing(503, "SlowDown")])
@in_loop
async def test_a_connection_that_breaks_later_was_broken_by_something_else(broken: Script) -> None:
    """The store is known to refuse what it must refuse, so nothing is looked up either."""
    async with priming(bad_digest) as primed:
        await primed.prime()
        primed.server.put = broken
        await primed.prime()
        assert primed.primer.at_once == 0
        primed.clock.now += PAUSE_FIRST_S
        assert primed.primer.at_once == RESERVE
        assert primed.requests == ["PUT", "PUT"]


@in_loop
async def test_without_a_bucket_nothing_is_sent() -> None:
    """Before anything was stored; and where the settings do not allow the bucket last used."""
    async with priming(bad_digest, bucket="", allowed_buckets=("mine",)) as primed:
        assert primed.primer.at_once == 0
        primed.store.store.last_bucket = "yours"
        assert primed.primer.at_once == 0
        primed.store.store.last_bucket = "mine"
        assert primed.primer.at_once == 1


@in_loop
async def test_it_takes_a_share_of_the_rate_as_an_upload_does() -> None:
    """At 6 Mbit/s what the kernel paces of a megabyte takes most of a second; without a limit, a hundredth."""
    async with priming(bad_digest, bwlimit_bps=6_000_000) as primed:
        began = asyncio.get_running_loop().time()
        await primed.prime()
        assert asyncio.get_running_loop().time() - began - KEPT_S > 0.3
        assert primed.requests == ["PUT"]


@in_loop
async def test_a_sink_is_distinguished_from_a_store() -> None:
    """What gives any success, and has no object then, is no store that refuses: nothing is to be deleted."""

    async def nothing(exchange: Exchange) -> None:
        await exchange.answer(404)

    async with priming(answering(200, ETag='"x"'), nothing, verify="no-etag") as primed:
        await primed.prime()
        assert primed.primer.at_once == 0
        assert primed.requests == ["PUT", "HEAD"]
