"""One connection: where it connects, what the kernel is asked for it, and what it knows of itself after each answer."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from lab.keeping import Clock
from lab.loopback import socket_of
from lab.scripted import Exchange, Script, answering, hang_up_after, http_1_0, scripted
from lab.sending import in_loop, settings_for

from s3daemon.network.connection import ANSWER_MAX_BYTES, Connection
from s3daemon.network.rate.pacing import Pacer
from s3daemon.network.tcp import UNPACED_PACKETS


@contextlib.asynccontextmanager
async def connection_to(
    url: str, *addresses: str, limit_bps: int = 0, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[Connection]:
    """A connection, not open yet, closed at the end."""
    connection = Connection(settings_for(url, **changes), None, Pacer(limit_bps), clock or Clock())
    connection.set_addresses(list(addresses) or ["127.0.0.1"])
    try:
        yield connection
    finally:
        await connection.close()


async def get(connection: Connection, url: str) -> int:
    """The status of the answer to a small request."""
    return (await connection.request("GET", url, {}, None)).status


@in_loop
async def test_it_opens_with_its_first_request_and_stays_open() -> None:
    """A second request finds it open; what it knows of itself follows."""
    clock = Clock()
    async with scripted() as server, connection_to(server.url, clock=clock) as connection:
        assert (connection.is_open, connection.answered, connection.acked_bytes()) == (False, False, 0)
        clock.now += 5
        assert [await get(connection, server.url) for _ in range(2)] == [200, 200]
        assert (connection.is_open, connection.answered, connection.persistent) == (True, True, True)
        assert (connection.opened, connection.requests, connection.used_at) == (1, 2, clock.now)
        assert connection.acked_bytes() > 0
        assert connection.window > 0
        assert len(server.connections) == 1
    assert not connection.is_open


@in_loop
async def test_its_socket_has_the_options() -> None:
    """Keep-alive, a limit for unacknowledged data that is above the stall watch's, and the congestion control."""
    async with scripted() as server, connection_to(server.url, stall_timeout_s=3.0, congestion="reno") as connection:
        await get(connection, server.url)
        ours = socket_of(server.connections[0].writer.get_extra_info("peername"))
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 16_000
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


@in_loop
async def test_it_connects_to_the_first_address_that_accepts() -> None:
    """Those before it are reported once as failed; the name in the URL is never resolved."""
    async with scripted(address="127.0.0.2") as server:
        url = server.url.replace("127.0.0.2", "store.invalid")
        async with connection_to(url, "127.0.0.1", "127.0.0.2") as connection:
            await get(connection, url)
            assert connection.address == "127.0.0.2"
            assert connection.pop_failed_addresses() == ["127.0.0.1"]
            assert connection.pop_failed_addresses() == []


@in_loop
async def test_a_close_by_the_server_is_seen() -> None:
    """Without a request; the next one opens it again."""
    async with scripted() as server, connection_to(server.url) as connection:
        await get(connection, server.url)
        connection.has_failed = True
        server.connections[0].close()
        async with asyncio.timeout(5):
            while connection.is_open:
                await asyncio.sleep(0)
        assert (connection.answered, connection.acked_bytes()) == (True, 0)
        await get(connection, server.url)
        assert (connection.is_open, connection.opened, connection.has_failed) == (True, 2, False)


@in_loop
async def test_an_answer_to_no_request_is_taken_for_none() -> None:
    """What comes over an idle connection ends it; the next request goes over a new one, in the same call."""
    async with scripted() as server, connection_to(server.url) as connection:
        await get(connection, server.url)
        server.connections[0].writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0)
        assert connection.is_open
        assert [await get(connection, server.url) for _ in range(2)] == [200, 200]
        assert (connection.opened, len(server.connections)) == (2, 2)


@pytest.mark.parametrize("script", [http_1_0, answering(Connection="close")], ids=["http-1.0", "close"])
@in_loop
async def test_a_server_that_does_not_keep_connections_is_noted(script: Script) -> None:
    """By the version or the header of its answer."""
    async with scripted(other=script) as server, connection_to(server.url) as connection:
        await get(connection, server.url)
        assert not connection.persistent


@in_loop
async def test_a_failed_request_counts_as_no_answer() -> None:
    """The connection was opened, and has not carried an answer."""
    async with scripted(other=hang_up_after()) as server, connection_to(server.url) as connection:
        with pytest.raises(aiohttp.ClientError):
            await connection.request("POST", server.url, {}, None)
        assert (connection.answered, connection.requests) == (False, 1)


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until the close"])
@in_loop
async def test_an_answer_without_end_is_not_read(chunked: bool) -> None:
    """After 1 MiB the connection is reset; the server gets rid of little more. The error has the status."""
    written = 0

    async def endless(exchange: Exchange) -> None:
        nonlocal written
        await exchange.write(
            b"HTTP/1.1 500 Maintenance\r\n%s\r\n" % (b"Transfer-Encoding: chunked\r\n" if chunked else b"")
        )
        while True:
            await exchange.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            written += 65536

    async with scripted(endless, endless) as server, connection_to(server.url) as connection:
        for method in ("GET", "PUT"):
            with pytest.raises(
                aiohttp.ClientPayloadError, match="its status is 500, and its body is longer than 1 MiB"
            ):
                await connection.request(method, server.url, {}, None)
            assert (connection.is_open, connection.persistent) == (False, False)
            await server.until(lambda: all(seen.over for seen in server.seen))
        assert written < 40 * ANSWER_MAX_BYTES, "what two kernels hold on its way"


@in_loop
async def test_an_answer_of_a_mebibyte_is_read() -> None:
    """Whole, and the connection stays."""
    content = bytes(ANSWER_MAX_BYTES)
    async with scripted(other=answering(200, content)) as server, connection_to(server.url) as connection:
        answer = await connection.request("GET", server.url, {}, None)
        assert (answer.body, await answer.read(), connection.is_open) == (content, content, True)


@in_loop
async def test_redirects_are_not_followed() -> None:
    """Following one would carry the file to another host."""
    moved = answering(307, Location="http://elsewhere.invalid/")
    async with scripted(other=moved) as server, connection_to(server.url) as connection:
        assert await get(connection, server.url) == 307


@in_loop
async def test_it_is_paced_after_its_first_packets() -> None:
    """With a limit; without one there is nothing to wait for."""
    async with scripted() as server:
        async with connection_to(server.url) as connection:
            assert connection.is_paced
        async with connection_to(server.url, limit_bps=8_000_000) as connection:
            for _ in range(UNPACED_PACKETS):
                assert not connection.is_paced
                await get(connection, server.url)
            assert connection.is_paced


@in_loop
async def test_an_abort_takes_back_what_was_not_acknowledged() -> None:
    """The server sees a reset in place of the rest of the body."""
    size = 4 << 20
    begun, aborted = asyncio.Event(), asyncio.Event()
    ended: list[ConnectionError] = []

    async def read_after_the_abort(exchange: Exchange) -> None:
        await exchange.read(1)
        begun.set()
        await aborted.wait()
        try:
            await exchange.read()
        except ConnectionError as exc:
            ended.append(exc)

    class Body(aiohttp.BytesIOPayload):
        """Bytes that show the transport that they go over."""

        async def write_with_length(self, writer: Any, content_length: int | None) -> None:
            transports.append(writer.transport)
            await super().write_with_length(writer, content_length)

    transports: list[asyncio.Transport] = []
    async with scripted(other=read_after_the_abort) as server, connection_to(server.url) as connection:
        body = Body(io.BytesIO(bytes(size)))
        request = asyncio.create_task(connection.request("POST", server.url, {}, body))
        await begun.wait()
        connection.abort(transports[0])
        with pytest.raises((aiohttp.ClientError, OSError)):
            await request
        aborted.set()
        await server.until(lambda: server.seen[0].over)
        assert [type(error) for error in ended] == [ConnectionResetError]
        assert len(server.seen[0].body) < size


@in_loop
async def test_an_abort_of_what_is_over_does_nothing() -> None:
    """Also where the rest was sent after a close: there Python 3.11's transport fails."""
    here, there = socket.socketpair()
    async with connection_to("http://127.0.0.1:1") as connection:
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=here)
        transport.write(bytes(8 << 20))
        transport.close()
        with there:
            there.setblocking(False)
            while await asyncio.get_running_loop().sock_recv(there, 1 << 20):
                pass
        connection.abort(transport)


@in_loop
async def test_an_abort_of_a_transport_without_a_socket_does_nothing() -> None:
    """As a TLS transport has none, in Python 3.11, once the server has reset it."""
    async with connection_to("http://127.0.0.1:1") as connection:
        connection.abort(asyncio.WriteTransport())
