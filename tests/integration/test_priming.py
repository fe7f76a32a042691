"""Priming: each connection carries a scratch object, or an upload that is refused, before uploads come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from lab.schemes import Scheme
from lab.scripted import Exchange, Scripted, keep, refusing, scripted
from lab.sending import a_file, in_loop, sending, settings_for, transfer_of

from s3daemon.model.files.source import Source
from s3daemon.network.keepalive.idle_limit import SWEEP_S
from s3daemon.network.keepalive.keeper import PRIMED_BYTES
from s3daemon.network.pool import Load
from s3daemon.s3.endpoint import Endpoint
from s3daemon.s3.priming.primer import KEY_PREFIX, Primer

PREFIX = "scratch/prime-"


@in_loop
async def test_an_object_for_each_connection(scheme: Scheme) -> None:
    """Its key has the connection's number, so that no object is written twice at once; the same the next time."""
    async with scheme.store(max_connections=2, prime=PREFIX) as (server, sender):
        primer = Primer(sender.store)
        for _ in range(2):
            for connection in sender.pool.idle():
                with sender.pool.maintain(connection):
                    await sender.pool.assign_address(connection)
                    await primer.prime(connection)
                assert connection.acked_bytes() >= PRIMED_BYTES
        assert [put.target for put in server.puts] == ["/scratch/prime-0", "/scratch/prime-1"] * 2
        assert {len(put.body) for put in server.puts} == {PRIMED_BYTES}


@in_loop
async def test_a_bucket_that_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and not tried again."""
    async with scripted(put=refusing(404, "NoSuchBucket")) as server:
        settings = settings_for(server.url, prime=PREFIX)
        async with sending(settings) as sender:
            primer = Primer(sender.store)
            (connection,) = sender.pool.idle()
            await sender.pool.assign_address(connection)
            await primer.prime(connection)
            assert primer.at_once == 0
    (line,) = [text for text in caplog.messages if "PRIME" in text]
    assert "NoSuchBucket" in line


@in_loop
async def test_an_endpoint_primes_connections_if_the_setting_says_so(tmp_path: Path) -> None:
    """Without S3DAEMON_PRIME nothing is written; with it the windows of all connections are open before long."""
    async with scripted() as server:
        for prime, count in (("", 0), (PREFIX, 4)):
            settings = settings_for(server.url, max_connections=3, prime=prime)
            endpoint = Endpoint(settings, lambda name, work: asyncio.create_task(work, name=name))
            await endpoint.open()
            await server.until(partial(lambda pool: pool.open_count == pool.limit, endpoint.pool))
            async with asyncio.timeout(30):
                while sum(put.over for put in server.puts) < count:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(SWEEP_S + 0.2)
            assert len(server.puts) == count
            if prime:
                async with endpoint.pool.acquire(Load.LARGE_BODY) as connection:
                    assert connection.window > a_file(tmp_path / "file", 100_000).stat().st_size
            await endpoint.close()


@in_loop
async def test_an_endpoint_primes_by_refused_uploads(tmp_path: Path) -> None:
    """To the bucket last used: by an upload of this process, of an earlier one, or of the settings before."""

    async def put(exchange: Exchange) -> None:
        await (keep if exchange.length < PRIMED_BYTES else refusing(400, "BadDigest"))(exchange)

    def primed(server: Scripted) -> list[Exchange]:
        return [put for put in server.puts if put.over and put.target.startswith(f"/mine/{KEY_PREFIX}")]

    def start(name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=name)

    async with scripted(put) as server:
        settings = settings_for(server.url, max_connections=3, prime="auto")
        endpoint = Endpoint(settings, start)
        await endpoint.open()
        await server.until(lambda: endpoint.pool.open_count == endpoint.pool.limit)
        await asyncio.sleep(SWEEP_S + 0.2)
        assert not server.puts, "no bucket is known"
        source = Source.open(os.fspath(a_file(tmp_path / "file", 3000)))
        await endpoint.store.put(transfer_of(source, bucket="mine"), source)
        source.close()
        await server.until(lambda: len(primed(server)) == endpoint.pool.limit)
        await endpoint.close()
        before = len(primed(server))
        started = Endpoint(settings, start, hint=endpoint.hint)
        await started.open()
        await server.until(lambda: len(primed(server)) == before + started.pool.limit)
        await asyncio.sleep(SWEEP_S + 0.2)
        assert len(primed(server)) == before + started.pool.limit, "each once"
        before = len(primed(server))
        reloaded = Endpoint(replace(settings, max_connections=2), start, started)
        await reloaded.open()
        await started.close(reloaded)
        await server.until(lambda: len(primed(server)) == before + reloaded.pool.limit)
        await reloaded.close()
        assert list(server.objects) == ["/mine/key"]
