"""The keeper: connections are opened before they are needed, kept open, replaced and moved; no server is flooded."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest
from lab.env import no_free_descriptor
from lab.keeping import (
    CONNECTIONS,
    INTERVAL_S,
    Clock,
    ResolvingLoop,
    answered,
    kept,
    resolving,
    sweeps,
)
from lab.scripted import (
    Exchange,
    Script,
    Scripted,
    answering,
    close_silently,
    hang_up_after,
    http_1_0,
    scripted,
    silent_after,
)
from lab.sending import in_loop
from lab.serving import until

from s3daemon.network.address import DISABLED_FIRST_S
from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.asking import ASK_AGAIN_S
from s3daemon.network.keepalive.idle_limit import SWEEP_S, TRIAL_EVERY_S
from s3daemon.network.keepalive.keeper import PRIMED_BYTES, RETRY_MAX_S, select_due
from s3daemon.network.keepalive.small_request import SILENT_CLOSES, SMALL_REQUESTS
from s3daemon.network.lookup import GONE_AFTER_S, RESOLVE_EVERY_S
from s3daemon.network.pool import ConnectionPool
from s3daemon.network.tcp import UNPACED_PACKETS


@in_loop
async def test_all_are_opened_before_they_are_needed() -> None:
    """Each is opened by one cheap, unsigned request, without a bucket; then the keeper rests."""
    async with scripted() as server, kept(server) as pool:
        await answered(server, CONNECTIONS)
        assert (pool.limit, pool.open_count, pool.opened, len(server.connections)) == (
            CONNECTIONS,
            CONNECTIONS,
            CONNECTIONS,
            CONNECTIONS,
        )
        assert {(seen.method, seen.target) for seen in server.seen} == {("GET", "/")}
        assert not any("authorization" in seen.headers for seen in server.seen)
        await sweeps(2)
        assert len(server.seen) == CONNECTIONS


@in_loop
async def test_idle_connections_are_used_after_the_interval(clock: Clock) -> None:
    """After the interval every idle connection carries a request again, and none is opened anew."""
    async with scripted() as server, kept(server, clock) as pool:
        for rounds in (1, 2, 3):
            await answered(server, rounds * CONNECTIONS)
            clock.now += INTERVAL_S
        assert pool.opened == CONNECTIONS
    numbers = sorted(seen.connection.number for seen in server.seen[: 3 * CONNECTIONS])
    assert numbers == sorted(3 * list(range(CONNECTIONS)))


@in_loop
async def test_new_connections_are_used_until_linux_paces_them(clock: Clock) -> None:
    """With a limit each carries ten small packets before any upload's, one a sweep; then it rests."""
    async with scripted() as server, kept(server, clock, bwlimit_bps=8_000_000) as pool:
        for rounds in range(1, UNPACED_PACKETS + 1):
            await answered(server, rounds * CONNECTIONS)
            assert {connection.is_paced for connection in pool.idle()} == {rounds == UNPACED_PACKETS}
            await sweeps(1)
            assert len(server.seen) == rounds * CONNECTIONS
            clock.now += SWEEP_S
        await sweeps(2)
        assert (len(server.seen), pool.opened) == (UNPACED_PACKETS * CONNECTIONS, CONNECTIONS)


@in_loop
async def test_the_keepers_requests_do_not_change_the_order_of_use(clock: Clock) -> None:
    """The connection used last, which has the widest window, is acquired next, whatever the keeper sent meanwhile."""
    async with scripted() as server, kept(server, clock) as pool:
        await answered(server, CONNECTIONS)
        async with pool.acquire() as last:
            pass
        for rounds in (2, 3):
            clock.now += INTERVAL_S
            await answered(server, rounds * CONNECTIONS)
            async with pool.acquire() as connection:
                assert connection is last


@in_loop
async def test_any_answer_keeps_a_connection(clock: Clock) -> None:
    """A store refuses an anonymous request: that is an answer, and no reason to open another connection."""
    async with scripted(other=answering(403, b"<Error/>")) as server, kept(server, clock) as pool:
        await answered(server, CONNECTIONS)
        clock.now += INTERVAL_S
        await answered(server, 2 * CONNECTIONS)
        assert (pool.opened, pool.open_count) == (CONNECTIONS, CONNECTIONS)


@in_loop
async def test_what_the_server_closes_is_opened_again(clock: Clock) -> None:
    """Connections that a server closed are opened again before any upload needs them, without waiting the interval."""
    async with scripted() as server, kept(server, clock) as pool:
        await answered(server, CONNECTIONS)
        clock.now += SWEEP_S
        for connection in server.connections:
            connection.close()
        await answered(server, 2 * CONNECTIONS)
        assert (pool.open_count, pool.opened) == (CONNECTIONS, 2 * CONNECTIONS)
        assert len(server.open_connections) == CONNECTIONS


@pytest.mark.parametrize(
    ("script", "closes"),
    [(http_1_0, 1), (answering(Connection="close"), 1), (close_silently, SILENT_CLOSES)],
    ids=["http-1.0", "close", "unannounced"],
)
@in_loop
async def test_no_connection_is_opened_to_a_server_that_keeps_none(
    script: Script, closes: int, caplog: pytest.LogCaptureFixture
) -> None:
    """That is logged once; one connection a minute finds out whether it keeps them now, and then all are opened."""
    caplog.set_level(logging.INFO)
    clock, tries = Clock(), closes * len(SMALL_REQUESTS)
    async with scripted(other=script) as server, kept(server, clock) as pool:
        for rounds in (1, 2):
            await until(lambda: not pool.small_request)
            tried = len(server.connections)
            assert tried <= CONNECTIONS + rounds * tries
            clock.now += ASK_AGAIN_S - 1
            await sweeps(3)
            assert (len(server.connections), pool.open_count) == (tried, 0)
            clock.now += 1
            await server.until(partial(lambda tried: len(server.connections) == tried + tries, tried))
            await sweeps(2)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("the store closes each connection after its answer")
        server.other = answering()
        clock.now += ASK_AGAIN_S
        await until(lambda: pool.open_count == CONNECTIONS)
        assert caplog.messages[1:] == ["the store keeps connections open now"]


@in_loop
async def test_why_an_idle_store_is_unreachable_is_said_in_words(clock: Clock) -> None:
    """In those that a failed upload has: an operator reads them before any file is sent."""
    async with scripted(other=hang_up_after()) as server, kept(server, clock) as pool:
        await until(lambda: bool(pool.addresses.unreachable))
        assert pool.addresses.unreachable == "ConnectionClosed, the store closed the connection"


@in_loop
async def test_a_server_that_kept_no_connection_is_asked_again_after_an_outage(clock: Clock) -> None:
    """No connection is due there, so that no other request would find out that it is away, or back."""
    async with scripted(other=http_1_0) as server, kept(server, clock) as pool:
        await until(lambda: not pool.small_request)
        server.other = hang_up_after()
        while not pool.addresses.unreachable:
            clock.now += ASK_AGAIN_S
            await sweeps(1)
        server.other = answering()
        clock.now += RETRY_MAX_S
        await until(lambda: pool.open_count == CONNECTIONS)
        assert not pool.addresses.unreachable


@in_loop
async def test_connections_that_end_at_different_times_are_answers(clock: Clock) -> None:
    """The address is not unreachable because of that, as it would be without an answer."""
    delays_s = iter([0.0, 0.2, 0.0, 0.2, 0.0, 0.2])

    async def cut(exchange: Exchange) -> None:
        await exchange.answer()
        if (delay_s := next(delays_s, None)) is not None:
            asyncio.get_running_loop().call_later(delay_s, exchange.connection.close)

    async with scripted(other=http_1_0) as server, kept(server, clock) as pool:
        await until(lambda: not pool.small_request)
        server.other, before = cut, len(server.connections)
        while len(server.connections) < before + SILENT_CLOSES:
            clock.now += ASK_AGAIN_S
            await sweeps(1)
        await sweeps(1)
        assert not pool.addresses.unreachable


@in_loop
async def test_another_small_request_is_used_where_it_keeps_the_connection(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """It is logged and remembered: all further ones are of that kind, and all connections stay open."""
    caplog.set_level(logging.INFO)

    async def close_after_get(exchange: Exchange) -> None:
        await exchange.answer(headers={"Connection": "close"} if exchange.method == "GET" else {})

    async with scripted(other=close_after_get) as server, kept(server, clock) as pool:
        await until(lambda: pool.small_request == "HEAD")
        clock.now += SWEEP_S
        await until(lambda: pool.open_count == CONNECTIONS)
        await sweeps(2)
        before = len(server.seen)
        clock.now += INTERVAL_S
        await answered(server, before + CONNECTIONS)
        assert {seen.method for seen in server.seen[before:]} == {"HEAD"}
        assert (pool.small_request, pool.open_count) == ("HEAD", CONNECTIONS)
    assert caplog.messages == ["the store closes connections after GET /: HEAD / keeps them open"]


@in_loop
async def test_a_server_that_hangs_up_is_tried_less_often() -> None:
    """One that accepts connections and closes them gets a single attempt at a time, ever later, up to a limit."""
    clock, at_once = Clock(), 4
    async with (
        scripted(other=hang_up_after()) as server,
        kept(server, clock, max_connections=2 * at_once, reserve=0, keepalive_interval_s=100.0),
    ):

        async def attempts_are(count: int) -> None:
            """So many attempts are made, and no more follow; aiohttp tries each GET twice."""
            await server.until(lambda: len(server.connections) >= 2 * count)
            await sweeps(1)
            assert len(server.connections) == 2 * count

        await attempts_are(at_once)
        for number, pause_s in enumerate((2, 4, RETRY_MAX_S, RETRY_MAX_S)):
            clock.now += pause_s - 0.1
            await attempts_are(at_once + number)
            clock.now += 0.1
            await attempts_are(at_once + number + 1)


@in_loop
async def test_an_endpoint_is_found_when_it_is_back(unused_port: int) -> None:
    """While there is no listener nothing happens; once there is one, all connections open."""
    url, clock = f"http://127.0.0.1:{unused_port}", Clock()
    async with scripted() as server, kept(server, clock, url) as pool:
        await until(lambda: bool(pool.addresses.unreachable) and not pool.open_count)
        assert server.seen == []
        running = await asyncio.start_server(server.take, "127.0.0.1", unused_port)
        await sweeps(1)
        assert pool.open_count == 0, "not before the pause is over"
        clock.now += INTERVAL_S
        await answered(server, CONNECTIONS)
        assert pool.open_count == CONNECTIONS
        running.close()


@in_loop
async def test_a_bug_ends_the_keeper() -> None:
    """Whatever is not an expected failure comes out of `run`, so that it can end the service."""

    class Faulty:
        at_once = 1

        async def prime(self, connection: Connection) -> None:
            raise ZeroDivisionError

    async def keep() -> None:
        async with scripted() as server, kept(server, primer=Faulty()) as pool:
            await answered(server, CONNECTIONS)
            await sweeps(1)
            assert pool.in_use == 0

    with pytest.raises(ZeroDivisionError):
        await keep()


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port without a listener: bound, so that it stays free, by a socket that allows sharing it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@in_loop
async def test_uploads_find_a_connection_while_the_keeper_works(clock: Clock) -> None:
    """The keeper works on the reserve alone: with a server that never answers it, an upload starts at once."""
    async with scripted() as server, kept(server, clock) as pool:
        await answered(server, CONNECTIONS)
        server.other = silent_after()
        clock.now += INTERVAL_S
        await server.until(lambda: len(server.seen) > CONNECTIONS)
        async with asyncio.timeout(5), pool.acquire() as connection:
            assert connection.is_open


@resolving
async def test_an_address_that_refuses_connections_is_skipped(loop: ResolvingLoop) -> None:
    """A name may have an address without a listener, as localhost often has: no request fails for that."""
    async with scripted(address="127.0.0.2") as server:
        loop.addresses = ("127.0.0.1", "127.0.0.2")
        async with kept(server, url=server.url.replace("127.0.0.2", "store.example")) as pool:
            await answered(server, CONNECTIONS)
            assert pool.open_count == CONNECTIONS
            async with pool.acquire() as connection:
                assert connection.is_open


@resolving
async def test_why_no_address_accepts_a_connection(loop: ResolvingLoop, clock: Clock, unused_port: int) -> None:
    """Whichever of them was tried first, at first and later."""
    loop.addresses = ("127.0.0.1", "127.0.0.2")
    async with scripted() as server, kept(server, clock, f"http://store.example:{unused_port}") as pool:
        for _ in range(4):
            await sweeps(2)
            assert pool.addresses.unreachable == "ConnectionFailed, no connection to the store: Connection refused"
            clock.now += RETRY_MAX_S


@resolving
async def test_a_limit_of_this_host_says_nothing_of_the_name(loop: ResolvingLoop, clock: Clock) -> None:
    """The look-up had no descriptor: whether the store can be reached is not known."""
    loop.fault = OSError(errno.EMFILE, "Too many open files")
    async with scripted() as server, kept(server, clock, server.url.replace("127.0.0.1", "store.example")) as pool:
        await until(lambda: loop.lookups >= 1)
        await sweeps(2)
        assert not pool.addresses.unreachable


@resolving
async def test_a_name_that_does_not_resolve_yet(loop: ResolvingLoop) -> None:
    """The keeper goes on trying; attempts to acquire a connection meanwhile fail and leave it in the pool."""
    async with scripted() as server:
        url = server.url.replace("127.0.0.1", "store.example")
        clock = Clock()
        async with kept(server, clock, url) as pool:
            for _ in range(2 * CONNECTIONS):
                with pytest.raises(socket.gaierror):
                    async with pool.acquire():
                        raise AssertionError("a connection without an address")
            await until(lambda: bool(pool.addresses.unreachable))
            assert pool.addresses.unreachable.startswith("NameNotResolved, the endpoint's name does not resolve: ")
            loop.addresses = ("127.0.0.1",)
            clock.now += INTERVAL_S
            await answered(server, CONNECTIONS)
            assert pool.open_count == CONNECTIONS


@resolving
async def test_all_addresses_of_a_name_are_used_in_turn(loop: ResolvingLoop, clock: Clock) -> None:
    """Connections spread over them; the name is resolved once, and again when the result is old."""
    async with scripted(address="0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "store.example")
        loop.addresses = ("127.0.0.1", "127.0.0.2")
        async with kept(server, clock, url) as pool:
            await answered(server, CONNECTIONS)
            local = [each.writer.get_extra_info("sockname")[0] for each in server.connections]
            assert sorted(local) == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
            assert {seen.headers["host"] for seen in server.seen} == {url.removeprefix("http://")}
            assert loop.lookups == 1
            loop.addresses = ("127.0.0.3",)
            clock.now += 3600
            for connection in server.connections:
                connection.close()
            await answered(server, 2 * CONNECTIONS)
            assert server.connections[-1].writer.get_extra_info("sockname")[0] == "127.0.0.3"
            assert (loop.lookups, pool.open_count) == (2, CONNECTIONS)


@resolving
async def test_connections_move_one_after_the_other_when_the_name_has_other_addresses(
    loop: ResolvingLoop, clock: Clock
) -> None:
    """After a reload at once; else when no look-up gave the address for a while, for an answer may be a selection."""
    async with scripted(address="0.0.0.0") as server:
        loop.addresses = ("127.0.0.1",)
        async with kept(server, clock, server.url.replace("0.0.0.0", "store.example")) as pool:
            await answered(server, CONNECTIONS)
            loop.addresses = ("127.0.0.2",)
            clock.now += RESOLVE_EVERY_S
            await server.until(lambda: loop.lookups == 2)
            await sweeps(2)
            assert loads(server) == [CONNECTIONS, 0]
            pool.names.resolve_anew()
            await server.until(lambda: loads(server) == [0, CONNECTIONS])
            loop.addresses = ("127.0.0.1",)
            clock.now += GONE_AFTER_S
            await server.until(lambda: loads(server) == [CONNECTIONS, 0])
            loop.addresses = ()
            for _ in range(3):
                lookups = loop.lookups
                clock.now += GONE_AFTER_S
                await server.until(partial(lambda before: loop.lookups > before, lookups))
            await sweeps(2)
            assert loads(server) == [CONNECTIONS, 0]


async def no_more_than(server: Scripted, count: int) -> None:
    """So many requests are answered, and no more follow."""
    await answered(server, count)
    await sweeps(1)
    assert len(server.seen) == count


async def rest_and_close(server: Scripted, clock: Clock, pool: ConnectionPool, *, restart: bool = False) -> None:
    """Let all connections rest for 6 s, then close them: all, or those that nothing was sent over meanwhile."""
    await until(lambda: pool.open_count == CONNECTIONS)
    await sweeps(1)
    before = len(server.seen)
    for _ in range(6):
        clock.now += SWEEP_S
        await sweeps(1)
    clock.now += 0.2
    used = {seen.connection for seen in server.seen[before:]}
    for connection in server.open_connections:
        if restart or connection not in used:
            connection.close()
    await sweeps(1)
    clock.now += SWEEP_S if restart else 0  # what was used just now is opened again a sweep later


async def learn_idle_limit(server: Scripted, clock: Clock, pool: ConnectionPool) -> None:
    """Have the server close what is idle twice in a row, and wait until all connections are open again."""
    for _ in range(2):
        await rest_and_close(server, clock, pool)
    await until(lambda: pool.open_count == CONNECTIONS)


LEARNED = "the store closes connections that are idle for 6.2 s: each is now used every 3.1 s"


@in_loop
async def test_an_idle_limit_of_the_server_shortens_the_interval(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """After two closes in a row at age T each connection is used every T/2, before the server's limit."""
    caplog.set_level(logging.INFO)
    async with scripted() as server, kept(server, clock) as pool:
        await learn_idle_limit(server, clock, pool)
        await sweeps(1)
        opened, before = pool.opened, len(server.seen)
        clock.now += 3.2
        await answered(server, before + CONNECTIONS)
        await sweeps(1)
        assert {seen.connection for seen in server.seen[before:]} == set(server.open_connections)
        assert (len(server.seen), pool.opened) == (before + CONNECTIONS, opened)
    assert caplog.messages == [LEARNED]


@in_loop
async def test_a_learned_limit_is_forgotten_when_a_connection_lives_longer(
    caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """Every few minutes one connection rests; if it is still open beyond the limit the interval grows back."""
    caplog.set_level(logging.INFO)
    async with scripted() as server, kept(server, clock) as pool:
        await learn_idle_limit(server, clock, pool)
        clock.now += TRIAL_EVERY_S
        await sweeps(1)
        for _ in range(3):
            clock.now += 2.9
            await sweeps(1)
        assert caplog.messages == [LEARNED, "the store keeps idle connections: each is now used every 10.0 s"]


@in_loop
async def test_restarts_at_regular_times_are_not_an_idle_limit(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    """After the first closes one connection is used all the time: a restart ends it too, an idle limit does not."""
    caplog.set_level(logging.INFO)
    async with scripted() as server, kept(server, clock) as pool:
        for _ in range(4):
            await rest_and_close(server, clock, pool, restart=True)
    assert caplog.messages == []


@in_loop
async def test_a_connection_that_failed_in_use_is_not_an_idle_timeout(clock: Clock) -> None:
    """Its age says nothing of the server's timeout."""
    async with scripted() as server, kept(server, clock, reserve=0) as pool:
        await answered(server, CONNECTIONS)
        clock.now += 5.0
        async with pool.acquire() as connection:
            server.other = hang_up_after(0)
            with pytest.raises(aiohttp.ClientError):
                await connection.request("POST", server.url, {}, None)
            server.other = answering()
        await answered(server, CONNECTIONS + 2)
        clock.now += INTERVAL_S - 5.1
        await no_more_than(server, CONNECTIONS + 2)


@dataclass(eq=False)
class Due(Connection):
    """What is looked at of a connection to select it."""

    is_open: bool = True


@pytest.mark.parametrize(
    ("due", "running", "openings", "reserve", "selected"),
    [
        ("", 0, 2, 2, ""),
        ("cccc", 0, 2, 9, "cc"),
        ("cccc", 1, 2, 9, "c"),
        ("cccc", 3, 2, 9, ""),
        ("cccc", 0, 0, 9, ""),
        ("oooo", 0, 9, 2, "oo"),
        ("oooo", 1, 9, 2, "o"),
        ("oooo", 3, 9, 2, ""),
        ("oooo", 0, 0, 2, "oo"),
        ("ococ", 0, 9, 3, "cco"),
        ("ococ", 1, 9, 4, "cco"),
        ("ococ", 0, 9, 1, "cc"),
    ],
)
def test_which_connections_the_keeper_uses_at_once(
    due: str, running: int, openings: int, reserve: int, selected: str
) -> None:
    """Closed ones (c) first, as many as may be opened, then open ones (o), as many as the reserve has room for."""
    connections = [Due(each == "o") for each in due]
    found = select_due(connections, running, openings=openings, reserve=reserve)
    assert "".join("o" if each.is_open else "c" for each in found) == selected
    assert len(set(map(id, found))) == len(found)


ADDRESSES = ("127.0.0.1", "127.0.0.2")


def named(server: Scripted) -> str:
    """Its URL by a name that does not resolve."""
    return server.url.replace("0.0.0.0", "store.invalid")


def loads(server: Scripted) -> list[int]:
    """How many open connections each of `ADDRESSES` has."""
    names = [each.writer.get_extra_info("sockname")[0] for each in server.open_connections]
    return [names.count(address) for address in ADDRESSES]


@contextlib.asynccontextmanager
async def kept_at_two_addresses(clock: Clock) -> AsyncIterator[tuple[Scripted, ConnectionPool]]:
    """A pool whose connections lead to both."""
    async with (
        scripted(address="0.0.0.0") as server,
        kept(server, clock, named(server), receivers=ADDRESSES) as pool,
    ):
        await answered(server, CONNECTIONS)
        assert loads(server) == [2, 2]
        yield server, pool


@in_loop
async def test_a_connection_with_a_narrowed_window_is_replaced_while_none_is_in_use() -> None:
    """By a new one; the others stay."""
    async with scripted() as server, kept(server) as pool:
        await answered(server, CONNECTIONS)
        narrow = pool.idle()[0]
        async with pool.acquire():
            narrow.narrowed = True
            await sweeps(2)
            assert pool.opened == CONNECTIONS
        await answered(server, CONNECTIONS + 1)
        await sweeps(2)
        assert narrow not in pool.idle()
        assert (pool.opened, pool.open_count) == (CONNECTIONS + 1, CONNECTIONS)


@in_loop
async def test_no_address_is_disabled_where_this_host_has_no_descriptor(clock: Clock) -> None:
    """What the server closes is opened again once there are descriptors."""
    async with kept_at_two_addresses(clock) as (server, pool):
        with no_free_descriptor():
            for connection in server.connections:
                connection.close()
            for _ in range(9):
                clock.now += SWEEP_S
                await sweeps(1)
            assert (pool.open_count, pool.addresses.disabled) == (0, [])
        while pool.open_count < CONNECTIONS:
            clock.now += RETRY_MAX_S
            await sweeps(1)
        await until(lambda: loads(server) == [2, 2])  # it takes a connection later than the client has it


@in_loop
async def test_without_descriptors_opening_is_tried_once_a_sweep(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Also while other connections are open and answer, which is no reason to try at once again."""
    async with scripted() as server, kept(server, clock, reserve=2) as pool:
        await answered(server, CONNECTIONS)
        tried = 0
        request = Connection.request

        async def counted(connection: Connection, *args: Any, **options: Any) -> Any:
            nonlocal tried
            tried += not connection.is_open
            return await request(connection, *args, **options)

        monkeypatch.setattr(Connection, "request", counted)
        with no_free_descriptor():
            server.connections[0].close()
            for _ in range(10):
                clock.now += 11  # s; longer than an open one may be idle
                await sweeps(2)
            assert pool.open_count == CONNECTIONS - 1
        assert 2 <= tried <= 20


@in_loop
async def test_connections_move_away_from_a_disabled_address_and_back(clock: Clock) -> None:
    """All are opened elsewhere in the background; after a good answer one goes back, after an upload its share."""
    async with kept_at_two_addresses(clock) as (server, pool):
        pool.addresses.failed("127.0.0.1", "refused")
        await server.until(lambda: loads(server) == [0, 4])
        clock.now += DISABLED_FIRST_S
        await server.until(lambda: pool.addresses.is_enabled("127.0.0.1"))
        await server.until(lambda: loads(server) == [1, 3])
        await sweeps(2)
        assert loads(server) == [1, 3], "one, on trial"
        pool.addresses.succeeded("127.0.0.1")
        await server.until(lambda: loads(server) == [2, 2])
        assert pool.limit == pool.open_count == CONNECTIONS


def broken_at_first(broken: Script) -> Script:
    """Treat what comes to the first address so, and answer the rest."""

    async def script(exchange: Exchange) -> None:
        at_first = exchange.connection.writer.get_extra_info("sockname")[0] == ADDRESSES[0]
        await (broken if at_first else answering())(exchange)

    return script


@pytest.mark.parametrize("broken", [answering(503), answering(500, bytes(100))], ids=["503", "500 with a page"])
@in_loop
async def test_an_address_that_answers_badly_gets_one_connection_until_an_upload_is_stored(broken: Script) -> None:
    """A bad answer to a small request does not disable it; an upload that was stored gives it its share."""
    async with (
        scripted(other=broken_at_first(broken), address="0.0.0.0") as server,
        kept(server, url=named(server), receivers=ADDRESSES) as pool,
    ):
        await until(lambda: pool.open_per_address()[ADDRESSES[1]] >= CONNECTIONS - 1)
        assert pool.addresses.disabled == []
        server.other = broken_at_first(answering(503))
        pool.addresses.succeeded(ADDRESSES[0])
        await server.until(lambda: loads(server) == [2, 2])
        await sweeps(2)
        assert loads(server) == [2, 2]


@in_loop
async def test_connections_go_to_the_addresses_that_keep_them(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """One that closes each after its answer gets none, and is asked again; when it keeps them it gets its share."""
    caplog.set_level(logging.INFO)
    async with (
        scripted(other=broken_at_first(close_silently), address="0.0.0.0") as server,
        kept(server, clock, named(server), receivers=ADDRESSES) as pool,
    ):
        while loads(server) != [0, CONNECTIONS]:
            await sweeps(1)
            clock.now += SWEEP_S
        before = len(server.connections)
        clock.now += ASK_AGAIN_S / 2
        await sweeps(2)
        assert (len(server.connections), pool.small_request) == (before, "GET")
        server.other = answering()
        clock.now += ASK_AGAIN_S / 2
        await server.until(lambda: loads(server) == [2, 2])
    about = f"address {ADDRESSES[0]} of the store"
    assert [message for message in caplog.messages if message.startswith("address ")] == [
        f"{about} closes each connection: others are kept open instead",
        f"{about} keeps connections open now",
    ]


@in_loop
async def test_an_address_that_hangs_up_on_the_probe_stays_disabled(clock: Clock) -> None:
    """It is probed again later."""
    async with (
        scripted(other=broken_at_first(hang_up_after()), address="0.0.0.0") as server,
        kept(server, clock, named(server), receivers=ADDRESSES) as pool,
    ):
        await until(lambda: pool.addresses.disabled == [ADDRESSES[0]])
        await sweeps(1)
        clock.now += 2 * SWEEP_S
        await until(lambda: loads(server) == [0, CONNECTIONS])
        for rounds in (1, 2):
            clock.now += 2 * rounds * DISABLED_FIRST_S
            before = len(server.seen)
            await server.until(partial(lambda before: len(server.seen) > before, before))
            await sweeps(1)
            assert pool.addresses.disabled == [ADDRESSES[0]]


@in_loop
async def test_after_an_outage_all_addresses_are_found_at_once(unused_port: int, clock: Clock) -> None:
    """Also one whose next probe would be minutes away."""
    async with (
        scripted() as server,
        kept(server, clock, f"http://localhost:{unused_port}", receivers=ADDRESSES) as pool,
    ):
        while not any(pool.addresses.next_probe_s(address) > 100 for address in ADDRESSES):
            clock.now += INTERVAL_S
            await sweeps(2)
        assert len(pool.addresses.disabled) == 1
        running = await asyncio.start_server(server.take, "0.0.0.0", unused_port)
        clock.now += INTERVAL_S
        await until(lambda: not pool.addresses.disabled)
        running.close()


class FakePrimer:
    """Primes connections by a PUT, so many at the same time."""

    def __init__(self, server: Scripted, at_once: int) -> None:
        self.server = server
        self.at_once = at_once
        self.primed: list[Connection] = []
        self.now = 0
        self.most = 0

    async def prime(self, connection: Connection) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.primed.append(connection)
        await connection.request("PUT", self.server.url, {}, bytes(PRIMED_BYTES))
        self.now -= 1


@in_loop
async def test_new_connections_are_primed_while_none_is_in_use(clock: Clock) -> None:
    """Each once, and never beside an upload; small requests to get past its unpaced packets are not needed then."""
    async with scripted() as server:
        primer = FakePrimer(server, 100)
        async with kept(server, clock, primer=primer, bwlimit_bps=10**10) as pool:
            async with pool.acquire():
                await sweeps(1)
                clock.now += SWEEP_S
                await sweeps(1)
                assert not primer.primed
            await server.until(lambda: len(primer.primed) >= CONNECTIONS)
            await sweeps(2)
            assert len(primer.primed) == len(set(primer.primed)) == CONNECTIONS
            assert all(connection.is_paced and connection.acked_bytes() >= PRIMED_BYTES for connection in primer.primed)
            assert [seen.method for seen in server.seen].count("GET") == CONNECTIONS, "priming is enough"
    assert primer.most == 1, "not more than there are in reserve"


@pytest.mark.parametrize("at_once", [1, 2])
@in_loop
async def test_as_many_are_primed_at_once_as_the_primer_allows(at_once: int) -> None:
    async with scripted() as server:
        primer = FakePrimer(server, at_once)
        async with kept(server, primer=primer, reserve=3):
            await server.until(lambda: len(primer.primed) >= CONNECTIONS)
    assert primer.most == at_once


@in_loop
async def test_a_primer_that_is_off(clock: Clock) -> None:
    """Connections are kept as without it, and get past their unpaced packets by small requests."""
    async with scripted() as server:
        primer = FakePrimer(server, 0)
        async with kept(server, clock, primer=primer, bwlimit_bps=10**10) as pool:
            await answered(server, CONNECTIONS)
            clock.now += SWEEP_S
            await answered(server, 2 * CONNECTIONS)
            assert pool.open_count == CONNECTIONS
    assert not primer.primed
