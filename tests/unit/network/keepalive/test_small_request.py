"""Which small request keeps a connection open, asked of scripted servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from lab.keeping import Clock
from lab.scripted import Exchange, Script, Scripted, answering, close_silently, hang_up_after, scripted
from lab.sending import in_loop, settings_for

from s3daemon.network.connection import ANSWER_MAX_BYTES, Connection
from s3daemon.network.keepalive.small_request import SMALL_REQUESTS, find_small_request
from s3daemon.network.rate.pacing import Pacer


@contextlib.asynccontextmanager
async def sending(server: Scripted) -> AsyncIterator[tuple[Connection, Callable[[str], Awaitable[object]]]]:
    """A connection, and what sends over it."""
    connection = Connection(settings_for(server.url), None, Pacer(0), Clock())
    connection.set_addresses(["127.0.0.1"])

    async def send(method: str) -> None:
        await connection.request(method, server.url, {}, None)

    try:
        yield connection, send
    finally:
        await connection.close()


def only(*kept: str, otherwise: Script) -> Script:
    """Keep the connection after these methods."""

    async def script(exchange: Exchange) -> None:
        await (answering() if exchange.method in kept else otherwise)(exchange)

    return script


async def with_a_body(exchange: Exchange) -> None:
    """Send a body whatever the method, as Ceph RGW 16 does after `HEAD /`."""
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
    await exchange.write(b"body")
    exchange.kept = True


OTHERWISE = {
    "announced": answering(Connection="close"),
    "silent": close_silently,
    "4 MB": answering(404, bytes(4 * ANSWER_MAX_BYTES)),
    "9 kB header": answering(X_Header="x" * 9000),
    "70 kB header": answering(X_Header="x" * 70_000),
    "body": with_a_body,
}


@pytest.mark.parametrize(
    ("kept", "otherwise", "found"),
    [
        (SMALL_REQUESTS, "announced", "GET"),
        (("HEAD", "OPTIONS"), "announced", "HEAD"),
        (("HEAD", "OPTIONS"), "4 MB", "HEAD"),
        (("OPTIONS",), "silent", "OPTIONS"),
        (("GET",), "body", "GET"),
        ((), "announced", ""),
        ((), "silent", ""),
        ((), "9 kB header", "GET"),
        ((), "70 kB header", ""),
    ],
)
@in_loop
async def test_the_first_request_that_keeps_the_connection(kept: tuple[str, ...], otherwise: str, found: str) -> None:
    """Each is sent twice: it keeps the connection if the second goes over the same one."""
    script = only(*kept, otherwise=OTHERWISE[otherwise])
    async with scripted(other=script) as server, sending(server) as (connection, send):
        assert await find_small_request(connection, send) == found


@in_loop
async def test_a_connection_that_ends_with_its_second_answer_is_not_kept() -> None:
    """As where a server allows two requests over each."""
    seen: set[int] = set()

    async def the_second_is_the_last(exchange: Exchange) -> None:
        number = exchange.connection.number
        await (answering(Connection="close") if number in seen else answering())(exchange)
        seen.add(number)

    async with scripted(other=the_second_is_the_last) as server, sending(server) as (connection, send):
        assert await find_small_request(connection, send) == ""


@in_loop
async def test_a_server_that_is_away_says_nothing() -> None:
    """No answer at all is an error, not a server that keeps nothing."""
    async with scripted(other=hang_up_after()) as server, sending(server) as (connection, send):
        with pytest.raises(aiohttp.ClientError):
            await find_small_request(connection, send)


class Cuts:
    """Closes the connection of some requests, each so long after its answer, as a relay that is cut does."""

    def __init__(self, *delays_s: float) -> None:
        self._delays_s = list(delays_s)

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.answer()
        if self._delays_s:
            asyncio.get_running_loop().call_later(self._delays_s.pop(0), exchange.connection.close)


@pytest.mark.parametrize("delays_s", [(0.0,), (0.1, 0.2)], ids=["one", "two"])
@in_loop
async def test_a_cut_connection_does_not_count_as_closed_by_the_store(delays_s: tuple[float, ...]) -> None:
    """Fewer closes than a habit needs: the next connection is kept."""
    async with scripted(other=Cuts(*delays_s)) as server, sending(server) as (connection, send):
        assert await find_small_request(connection, send, 0.5) == "GET"


@in_loop
async def test_a_short_idle_limit_keeps_no_connection() -> None:
    """Closed after every answer, each time after the same short while: it would be opened anew for every upload."""
    async with scripted(other=Cuts(*[0.1] * 9)) as server, sending(server) as (connection, send):
        assert await find_small_request(connection, send, 1.0) == ""
