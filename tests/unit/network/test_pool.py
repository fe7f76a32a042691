"""The lanes: lent to one at a time, the best one first, and whatever happens each is given back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest
from lab.loopback import socket_of
from lab.scripted import scripted
from lab.sending import a_file, in_loop, sending, settings_for


@in_loop
async def test_a_connection_is_lent_to_one_at_a_time() -> None:
    """Who comes when all are lent waits until one is given back, in the order of coming."""
    async with scripted() as server, sending(settings_for(server.url)) as sender:
        order: list[int] = []

        async def use(number: int) -> None:
            async with sender.lanes.take():
                order.append(number)
                await asyncio.sleep(0)

        async with sender.lanes.take():
            tasks = [asyncio.create_task(use(number)) for number in range(5)]
            for _ in range(10):
                await asyncio.sleep(0)
            assert order == []
        await asyncio.gather(*tasks)
        assert order == [0, 1, 2, 3, 4]


@in_loop
async def test_what_can_be_spared() -> None:
    """Half of the lanes are kept for others; while somebody waits for one there is none to spare."""
    async with scripted() as server, sending(settings_for(server.url, max_connections=5)) as sender:
        lanes, held = sender.lanes, contextlib.AsyncExitStack()
        seen = [lanes.for_parts]
        for _ in range(5):
            await held.enter_async_context(lanes.take())
            seen.append(lanes.for_parts)
        assert seen == [2, 1, 0, 0, 0, 0]
        waiter = asyncio.create_task(contextlib.AsyncExitStack().enter_async_context(lanes.take()))
        await asyncio.sleep(0)
        lanes._idle += lanes._all
        assert lanes.for_parts == 0
        waiter.cancel()
        await asyncio.wait({waiter})
        assert lanes.for_parts == 2
        lanes._idle.clear()
        await held.aclose()


@pytest.mark.parametrize("woken", [False, True])
@in_loop
async def test_a_waiter_that_is_cancelled_takes_no_lane_with_it(woken: bool) -> None:
    """Cancelled while it waits, or in the moment in which it was woken: the next one gets the lane."""
    async with scripted() as server, sending(settings_for(server.url)) as sender:
        got = asyncio.Event()

        async def use() -> None:
            async with sender.lanes.take():
                got.set()

        holding = contextlib.AsyncExitStack()
        await holding.enter_async_context(sender.lanes.take())
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
async def test_an_error_gives_the_lane_back() -> None:
    """Whatever happens to who holds it."""
    async with scripted() as server, sending(settings_for(server.url)) as sender:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                async with sender.lanes.take():
                    raise ZeroDivisionError


@in_loop
async def test_the_one_used_last_is_lent_first(tmp_path: Any) -> None:
    """Its congestion window is the widest; and an open one goes before one that must connect."""
    file = a_file(tmp_path / "file", 3000)
    async with scripted() as server, sending(settings_for(server.url, max_connections=3)) as sender:

        async def burst(count: int) -> None:
            await asyncio.gather(*(sender.put(file, f"key{n}") for n in range(count)))

        await sender.put(file)
        await burst(1)
        assert len(server.connections) == 1, "the open one, though two others were never used"
        await burst(3)
        last = server.seen[-1].connection
        await sender.put(file)
        assert (len(server.connections), server.seen[-1].connection) == (3, last)


@in_loop
async def test_sockets_have_their_options(tmp_path: Any) -> None:
    """Every connection that a lane makes is watched by the kernel too."""
    settings = {"stall_timeout_s": 3.0, "congestion": "reno"}
    async with scripted() as server, sending(settings_for(server.url, **settings)) as sender:
        await sender.put(a_file(tmp_path / "file", 3000))
        ours = socket_of(server.connections[0].writer.get_extra_info("peername"))
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 16_000
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
