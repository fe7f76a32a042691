"""Priming: each connection carries a scratch object of its own, paced as an upload is, before uploads come."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lab.schemes import Scheme, scheme_of
from lab.scripted import refusing, scripted
from lab.sending import a_file, failure, in_loop, sending, settings_for

from s3daemon.network.keepalive import SWEEP_S
from s3daemon.network.keeper import PRIMED_BYTES
from s3daemon.s3.endpoint import Endpoint, Primer

PREFIX = "scratch/prime-"


@pytest.fixture(params=["plain", "tls"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    """Both ways to a store."""
    return scheme_of(request)


@in_loop
async def test_an_object_for_each_connection(scheme: Scheme) -> None:
    """Its key has the connection's number, so that no object is written twice at once; the same the next time."""
    async with scheme.store(max_connections=2, prime=PREFIX) as (server, sender):
        settings = settings_for(server.url, prime=PREFIX)
        primer = Primer(settings, sender.store.sender)
        for _ in range(2):
            for connection in sender.pool.idle():
                with sender.pool.maintain(connection):
                    await sender.pool.assign_address(connection)
                    await primer.prime(connection)
                assert connection.acked_bytes() >= PRIMED_BYTES
        assert [put.target for put in server.puts] == ["/scratch/prime-0", "/scratch/prime-1"] * 2
        assert {len(put.body) for put in server.puts} == {PRIMED_BYTES}


@in_loop
async def test_refused() -> None:
    """It is the keeper's to judge."""
    async with scripted(put=refusing(404, "NoSuchBucket")) as server:
        settings = settings_for(server.url, prime=PREFIX)
        async with sending(settings) as sender:
            (connection,) = sender.pool.idle()
            await sender.pool.assign_address(connection)
            assert (await failure(Primer(settings, sender.store.sender).prime(connection))).code == "NoSuchBucket"


@in_loop
async def test_an_endpoint_primes_when_told_to(tmp_path: Path) -> None:
    """Without S3DAEMON_PRIME nothing is written; with it the windows of all connections are open before long."""
    async with scripted() as server:
        for prime, count in (("", 0), (PREFIX, 4)):
            settings = settings_for(server.url, max_connections=3, prime=prime)
            endpoint = Endpoint(settings, lambda name, work: asyncio.create_task(work, name=name))
            await endpoint.open()
            await server.until(lambda pool=endpoint.pool: pool.open_count == pool.limit)  # type: ignore[misc]
            async with asyncio.timeout(30):
                while sum(put.over for put in server.puts) < count:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(SWEEP_S + 0.2)
            assert len(server.puts) == count
            if prime:
                async with endpoint.pool.acquire(large=True) as connection:
                    assert connection.window > a_file(tmp_path / "file", 100_000).stat().st_size
            await endpoint.close()
