"""The pool: each connection is used by one at a time, the best one first, and is released whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from lab.keeping import Clock
from lab.scripted import Scripted, scripted
from lab.sending import in_loop, settings_for

from s3daemon.model.record import MessageId, Priority
from s3daemon.network.address import SmallRequestOutcome
from s3daemon.network.connection import Connection
from s3daemon.network.pool import CONNECTIONS_PER_RESERVE, TRIAL_BESIDE, ConnectionPool, Load

ADDRESSES = ("127.0.0.1", "127.0.0.2")


@contextlib.asynccontextmanager
async def pool_to(
    url: str, count: int = 1, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[ConnectionPool]:
    """So many connections, none in reserve, closed at the end."""
    pool = ConnectionPool(settings_for(url, max_connections=count, **changes), clock or Clock(), reserve=0)
    try:
        yield pool
    finally:
        await pool.close()


def two_addresses(server: Scripted) -> dict[str, Any]:
    """What `pool_to` needs so that a server on all addresses is reached at two of them."""
    return {"url": server.url.replace("0.0.0.0", "store.invalid"), "receivers": ADDRESSES}


async def get(connection: Connection, url: str) -> None:
    """Send a small request."""
    await connection.request("GET", url, {}, None)


@in_loop
async def test_a_spare_connection_is_idle_open_and_leads_somewhere_good() -> None:
    """Only to such a one an upload is moved."""
    async with scripted(address="0.0.0.0") as server, pool_to(count=2, **two_addresses(server)) as pool:
        assert not pool.has_spare(), "none is open"
        async with pool.acquire() as connection:
            await get(connection, str(pool.url))
            assert not pool.has_spare(), "it is in use"
        assert pool.has_spare(connection.window)
        assert not pool.has_spare(connection.window + 1), "its window is not as wide"
        pool.addresses.failed(connection.address, "refused")
        assert not pool.has_spare(), "its address is disabled"


@in_loop
async def test_a_connection_is_used_by_one_at_a_time() -> None:
    """While all are in use others wait, and get one in the order in which they asked."""
    async with pool_to("http://127.0.0.1:9") as pool:
        order: list[int] = []

        async def use(number: int) -> None:
            async with pool.acquire():
                order.append(number)
                await asyncio.sleep(0)

        async with pool.acquire():
            assert (pool.in_use, pool.idle()) == (1, [])
            tasks = [asyncio.create_task(use(number)) for number in range(5)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert order == []
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]
        assert pool.in_use == 0


@in_loop
async def test_the_round_trip_time_is_that_of_an_open_connection() -> None:
    """It is known after an answer, and while a connection is open."""
    async with scripted() as server, pool_to(server.url) as pool:
        assert pool.rtt_s == 0
        async with pool.acquire() as connection:
            await get(connection, server.url)
        assert 0 < pool.rtt_s < 0.5
        await connection.close()
        assert pool.rtt_s == 0


@in_loop
async def test_half_of_the_connections_are_available_for_parts() -> None:
    """The other half is kept for further uploads; while an upload waits for a connection none is available."""
    async with pool_to("http://127.0.0.1:9", 5) as pool, contextlib.AsyncExitStack() as acquired:
        available = [pool.available_for_parts]
        for _ in range(5):
            await acquired.enter_async_context(pool.acquire())
            available.append(pool.available_for_parts)
        assert available == [2, 1, 0, 0, 0, 0]

        async def wait_for_one() -> None:
            async with pool.acquire():
                pass

        waiter = asyncio.create_task(wait_for_one())
        await asyncio.sleep(0)
        await acquired.aclose()
        assert (len(pool.idle()), pool.available_for_parts) == (5, 0), "it was woken, and has not run yet"
        await waiter
        assert pool.available_for_parts == 2


@pytest.mark.parametrize(
    ("usable", "reserve"), [(1, 1), (CONNECTIONS_PER_RESERVE, 1), (CONNECTIONS_PER_RESERVE + 1, 2)]
)
@in_loop
async def test_the_reserve_comes_on_top(usable: int, reserve: int) -> None:
    """There is one connection more for each so many, and uploads can use as many as was set."""
    pool = ConnectionPool(settings_for("http://127.0.0.1:9", max_connections=usable))
    assert (pool.usable, pool.reserve, pool.limit) == (usable, reserve, usable + reserve)
    await pool.close()


@pytest.mark.parametrize("woken", [False, True])
@in_loop
async def test_a_waiter_that_is_cancelled_loses_no_connection(woken: bool) -> None:
    """Cancelled while it waits, or at the moment at which it was woken: the next one gets the connection."""
    async with pool_to("http://127.0.0.1:9") as pool:
        got = asyncio.Event()

        async def use() -> None:
            async with pool.acquire():
                got.set()

        holding = contextlib.AsyncExitStack()
        await holding.enter_async_context(pool.acquire())
        first, second = asyncio.create_task(use()), asyncio.create_task(use())
        await asyncio.sleep(0)
        if not woken:
            first.cancel()
        await holding.aclose()
        if woken:
            first.cancel()
        async with asyncio.timeout(5):
            await second
        assert first.cancelled()


@in_loop
async def test_an_error_releases_the_connection() -> None:
    """Whatever happens to the request that used it."""
    async with pool_to("http://127.0.0.1:9") as pool:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with pool.acquire():
                    raise ZeroDivisionError
        assert pool.in_use == 0


@in_loop
async def test_a_connection_in_maintenance_is_not_acquired() -> None:
    """It is released to whoever waits for it when the keeper is done, and keeps its place."""
    async with pool_to("http://127.0.0.1:9") as pool:
        (connection,) = pool.idle()

        async def use() -> Connection:
            async with pool.acquire() as acquired:
                return acquired

        with pool.maintain(connection):
            assert pool.idle() == []
            task = asyncio.create_task(use())
            await asyncio.sleep(0)
            assert not task.done()
        assert await task is connection


@in_loop
async def test_an_open_connection_goes_before_one_that_must_connect() -> None:
    """And of open ones with equal windows the one used last."""
    async with scripted() as server, pool_to(server.url, 3) as pool:
        async with pool.acquire() as opened:
            await get(opened, server.url)
        async with pool.acquire() as again:
            assert again is opened
        async with contextlib.AsyncExitStack() as acquired:
            for _ in range(3):
                connection = await acquired.enter_async_context(pool.acquire())
                await get(connection, server.url)
                connection.window = 10_000
        assert (pool.open_count, pool.opened, len(server.connections)) == (3, 3, 3)
        last = pool.idle()[-1]
        for load in Load:
            async with pool.acquire(load) as again:
                assert again is last


@in_loop
async def test_a_connection_that_the_store_will_not_keep_is_not_used_again() -> None:
    """The store may close it only after the next request was sent."""
    async with scripted() as server, pool_to(server.url, 1) as pool:
        for keeps, opened in ((True, 1), (False, 1), (False, 2), (True, 3), (True, 3)):
            async with pool.acquire() as connection:
                await get(connection, server.url)
                pool.addresses.set_keeping(connection.address, keeps=keeps)
            assert pool.opened == opened
            assert pool.open_count == keeps


async def open_with_windows(pool: ConnectionPool, url: str, *windows: int) -> list[Connection]:
    """Open as many connections, each with its window, and leave them idle."""
    async with contextlib.AsyncExitStack() as acquired:
        connections = [await acquired.enter_async_context(pool.acquire()) for _ in windows]
        for connection, window in zip(connections, windows, strict=True):
            await get(connection, url)
            connection.window = window
    return connections


@in_loop
async def test_much_goes_over_the_widest_window_and_little_over_the_narrowest() -> None:
    """A small upload is as fast over any, and leaves the widest to one that needs it."""
    async with scripted() as server, pool_to(server.url, 3) as pool:
        await open_with_windows(pool, server.url, 20_000, 30_000, 10_000)
        async with pool.acquire(Load.LARGE_BODY) as large, pool.acquire(Load.SMALL_BODY) as small:
            assert (large.window, small.window) == (30_000, 10_000)


@in_loop
async def test_a_connection_whose_last_request_failed_comes_after_the_others() -> None:
    """Whatever its window: a balancer may have given it the one gateway that is broken."""
    async with scripted() as server, pool_to(server.url, 3) as pool:
        for connection in await open_with_windows(pool, server.url, 20_000, 30_000, 10_000):
            connection.has_failed = connection.window != 20_000
        for load in Load:
            windows = [20_000, 30_000, 10_000] if load is Load.LARGE_BODY else [20_000, 10_000, 30_000]
            async with contextlib.AsyncExitStack() as acquired:
                found = [await acquired.enter_async_context(pool.acquire(load)) for _ in range(3)]
                assert [connection.window for connection in found] == windows


@pytest.mark.parametrize(
    ("load", "others", "is_slow"),
    [
        (Load.SMALL_BODY, 2, False),
        (Load.SMALL_BODY, 1, False),
        (Load.LARGE_BODY, 2, False),
        (Load.NO_BODY, 2, False),
        (Load.SMALL_BODY, 2, True),
    ],
)
@in_loop
async def test_in_a_burst_a_small_upload_tries_out_an_address_on_trial(load: Load, others: int, is_slow: bool) -> None:
    """Otherwise one that came back last would never have an upload, where the others have connections for all.

    Not an upload that is alone: none would show that it should be moved. Nor a large one, for which the connection is
    too new; nor one to an address that is slow, which a small upload would not show; nor a request without a body,
    which is not moved.
    """
    async with scripted(address="0.0.0.0") as server, pool_to(**two_addresses(server), count=6) as pool:
        for connection in await open_with_windows(pool, str(pool.url), *[10_000] * 6):
            if connection.address == ADDRESSES[0]:  # its window alone would never have it chosen
                connection.window += -1 if load is Load.LARGE_BODY else 1
        for transfer in ("one", "two"):
            if is_slow:
                pool.addresses.slow(ADDRESSES[0], "moved", transfer)
            else:
                pool.addresses.failed(ADDRESSES[0], "503", transfer)
        pool.addresses.probed(ADDRESSES[0], SmallRequestOutcome.ANSWERED)
        async with contextlib.AsyncExitStack() as acquired:
            for _ in range(others):
                await acquired.enter_async_context(pool.acquire(avoid=ADDRESSES[:1]))
            async with pool.acquire(load) as connection:
                tries_out = connection.address == ADDRESSES[0]
        assert tries_out == (load is Load.SMALL_BODY and others == TRIAL_BESIDE and not is_slow)


@in_loop
async def test_connections_spread_over_the_addresses() -> None:
    """Each new one goes to the address that has the fewest."""
    async with scripted(address="0.0.0.0") as server, pool_to(**two_addresses(server), count=4) as pool:
        assert pool.open_per_address() == {ADDRESSES[0]: 0, ADDRESSES[1]: 0}
        async with contextlib.AsyncExitStack() as acquired:
            for number in range(4):
                connection = await acquired.enter_async_context(pool.acquire())
                assert sum(pool.per_address().values()) == number + 1, "one that is about to connect counts"
                await get(connection, str(pool.url))
        assert pool.open_per_address() == {ADDRESSES[0]: 2, ADDRESSES[1]: 2}


@in_loop
async def test_an_address_that_failed_is_avoided() -> None:
    """A connection to another one is chosen, or made if there is none; unless no other one is enabled."""
    async with scripted(address="0.0.0.0") as server, pool_to(**two_addresses(server)) as pool:
        async with pool.acquire() as connection:
            await get(connection, str(pool.url))
            first = connection.address
        place = pool.index(connection)
        async with pool.acquire(avoid={first}) as other:
            assert other is not connection
            assert (pool.index(other), other.address in ADDRESSES, other.address == first) == (place, True, False)
            await get(other, str(pool.url))
        assert (pool.limit, pool.opened, pool.open_count) == (1, 2, 1)
        async with pool.acquire(avoid=ADDRESSES) as same:
            assert same is other, "none is left to go to instead"


@in_loop
async def test_where_an_upload_stalls_only_connections_answered_meanwhile_are_kept(clock: Clock) -> None:
    """A NAT that has lost its state drops the others as well, without a word; an address beside it is left alone."""
    async with (
        scripted(address="0.0.0.0") as server,
        pool_to(count=4, clock=clock, stall_timeout_s=10.0, **two_addresses(server)) as pool,
    ):
        async with contextlib.AsyncExitStack() as stack:
            used = [await stack.enter_async_context(pool.acquire()) for _ in range(4)]
            for connection in used:
                await get(connection, str(pool.url))
        here, there = ([each for each in used if each.address == address] for address in ADDRESSES)
        clock.now += 8
        await get(here[0], str(pool.url))
        clock.now += 3
        pool.fell_silent(ADDRESSES[0])
        assert [each in pool.idle() for each in (*here, *there)] == [True, False, True, True]
        assert (pool.limit, pool.open_count) == (4, 3)


@in_loop
async def test_a_disabled_address_is_logged(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """As a warning if it ever answered, with the message's id; and so is that it is enabled again."""
    caplog.set_level(logging.INFO)
    async with pool_to("http://store.invalid", clock=clock, receivers=ADDRESSES) as pool:
        pool.addresses.asked(ADDRESSES[0], SmallRequestOutcome.ANSWERED, "")
        pool.addresses.failed(ADDRESSES[0], "no connection")
        clock.now += 5
        pool.addresses.probed(ADDRESSES[0], SmallRequestOutcome.ANSWERED)
        pool.addresses.succeeded(ADDRESSES[0])
    disabled, enabled = caplog.records
    text = "address 127.0.0.1 of the store is temporarily disabled: no connection; next asked in 5s"
    assert disabled.getMessage() == text
    assert disabled.levelno == logging.WARNING
    assert disabled.__dict__["journal"] == {
        "MESSAGE_ID": MessageId.ADDRESS_DISABLED, "S3DAEMON_RECEIVER": ADDRESSES[0], "S3DAEMON_DELAY_USEC": 5_000_000,
    }  # fmt: skip
    assert enabled.getMessage() == "address 127.0.0.1 of the store is enabled again; it was disabled for 5s"
    assert enabled.__dict__["journal"] == {
        "MESSAGE_ID": MessageId.ADDRESS_ENABLED, "S3DAEMON_RECEIVER": ADDRESSES[0], "PRIORITY": Priority.NOTICE,
    }  # fmt: skip


@in_loop
async def test_a_congestion_control_that_is_refused_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not for each connection."""
    async with (
        scripted() as server,
        pool_to(server.url, 2, congestion="nosuch") as pool,
        pool.acquire() as first,
        pool.acquire() as second,
    ):
        await get(first, server.url)
        await get(second, server.url)
    assert [text.startswith("congestion control nosuch") for text in caplog.messages] == [True]
