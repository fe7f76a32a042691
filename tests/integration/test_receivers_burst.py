"""A store with four addresses, one of which refuses every PUT: no transfer of a burst needs more than two attempts.

It is overloaded, and disabled; or it has a policy of its own, which denies the bucket, and the bucket avoids it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeJournal, FakeSpool
from lab.keeping import answered
from lab.scripted import Exchange, Script, keep, scripted
from lab.sending import a_file, in_loop, settings_for

from s3daemon.clock import ActiveClock
from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.intake import Intake
from s3daemon.delivery.uploader import Uploader
from s3daemon.model.record import MessageId
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Destination, Request
from s3daemon.s3.endpoint import Endpoint

ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
BURST = 20


def refuse_at_the_first(status: int, code: str) -> Script:
    """A gateway that answers small requests and refuses PUTs, such as one whose notification queue is broken."""

    async def treat(exchange: Exchange) -> None:
        if exchange.connection.writer.get_extra_info("sockname")[0] == ADDRESSES[0]:
            await exchange.read()
            await exchange.refuse(status, code)
        else:
            await keep(exchange)

    return treat


@pytest.mark.parametrize(
    ("status", "code", "disabled"),
    [(503, "SlowDown", [ADDRESSES[0]]), (403, "AccessDenied", []), (404, "NoSuchBucket", [])],
)
@in_loop
async def test_one_of_four_refuses(tmp_path: Path, status: int, code: str, disabled: list[str]) -> None:
    """In the first burst some transfers need a second attempt, at once; in the next one none does."""
    files = [a_file(tmp_path / f"file{n}", 200_000 if n % 2 else 3_000) for n in range(BURST)]
    async with scripted(put=refuse_at_the_first(status, code), address="0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "store.invalid")
        settings = settings_for(url, max_connections=BURST, receivers=ADDRESSES, stall_timeout_s=10.0)

        def start(name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
            return asyncio.create_task(work, name=name)

        endpoint = Endpoint(settings, start)
        await endpoint.open()
        spool: Any = FakeSpool()
        journal: Any = FakeJournal()
        clock = asyncio.get_running_loop().time
        holder = SettingsHolder(settings)
        attempts = Attempts(holder, spool, lambda: endpoint.store)
        ask = endpoint.store.ask_neutrally
        active_clock = ActiveClock(0.0, clock)
        uploader = Uploader(holder, spool, attempts, journal, active_clock, start=start, ask=ask, clock=clock)
        intake = Intake(holder, uploader, spool)

        async def burst(number: int) -> list[int]:
            requests = [Request(str(file), Destination("bucket", f"{number}/{file.name}")) for file in files]
            tickets = [await intake.submit(request) for request in requests]
            assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.STORED}
            records, journal.records = journal.records, []
            assert {record.receiver for record in records} == set(ADDRESSES[1:])
            assert not disabled or all(record.connection == "warm" for record in records)
            return sorted(record.attempts for record in records)

        await answered(server, endpoint.pool.limit)
        first = await burst(1)
        assert {entry["S3DAEMON_RECEIVER"] for entry in journal.of(MessageId.ATTEMPT_FAILED)} == {ADDRESSES[0]}
        assert set(first) == {1, 2}, first
        await asyncio.sleep(0)
        assert endpoint.pool.addresses.disabled == disabled
        assert endpoint.pool.limit == BURST + endpoint.pool.reserve
        await server.until(lambda: endpoint.pool.open_count == endpoint.pool.limit)
        assert set(await burst(2)) == {1}
        assert len(server.objects) == 2 * BURST
        assert not uploader.health.away
        await endpoint.close()
