"""The lanes: opened before they are needed, kept, replaced, lent to one at a time; and no server is hammered."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from lab.loopback import socket_of
from lab.scripted import Exchange, Script, Scripted, answering, hang_up_after, scripted, silent_after
from lab.sending import a_file, in_loop, sending, settings_for

from s3daemon.connections import SWEEP_S, Lanes

LANES = 4
INTERVAL_S = 10.0


class Clock:
    """Stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def kept(
    server: Scripted, clock: Clock | None = None, url: str = "", **changes: Any
) -> AsyncIterator[Lanes]:
    """Lanes to a server, with their keeper at work."""
    given = {"max_connections": LANES, "keepalive_interval_s": INTERVAL_S} | changes
    lanes = Lanes(settings_for(url or server.url, **given), clock or Clock())
    keeper = asyncio.create_task(lanes.keep())
    try:
        yield lanes
    finally:
        keeper.cancel()
        await asyncio.wait({keeper})
        await lanes.close()


async def answered(server: Scripted, count: int) -> None:
    """So many requests were answered, and the answers read."""
    await server.until(lambda: sum(seen.over for seen in server.seen) >= count)
    for _ in range(100):  # both ends live in this loop: what was written is there to be read in its next rounds
        await asyncio.sleep(0)


async def sweeps(count: int) -> None:
    """Let the keeper look around so often: what it should not do must have had the time to happen."""
    await asyncio.sleep(count * SWEEP_S + 0.2)


@in_loop
async def test_all_are_opened_before_they_are_needed() -> None:
    """Each lane is warmed with one cheap, unsigned request, without a bucket; then the keeper rests."""
    async with scripted() as server, kept(server) as lanes:
        await answered(server, LANES)
        assert (lanes.limit, lanes.open_count, lanes.opened, len(server.connections)) == (LANES, LANES, LANES, LANES)
        assert {(seen.method, seen.target) for seen in server.seen} == {("GET", "/")}
        assert not any("authorization" in seen.headers for seen in server.seen)
        await sweeps(2)
        assert len(server.seen) == LANES


@in_loop
async def test_idle_ones_are_used_now_and_then() -> None:
    """After the interval every idle connection carries a request again, the same connections as before."""
    clock = Clock()
    async with scripted() as server, kept(server, clock) as lanes:
        for rounds in (1, 2, 3):
            await answered(server, rounds * LANES)
            clock.now += INTERVAL_S
        assert lanes.opened == LANES
    numbers = sorted(seen.connection.number for seen in server.seen[: 3 * LANES])
    assert numbers == sorted(3 * list(range(LANES)))


@in_loop
async def test_being_touched_changes_no_order() -> None:
    """The connection used last, whose window is the widest, is the one lent next, however often all were touched."""
    clock = Clock()
    async with scripted() as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        async with lanes.take() as last:
            pass
        for rounds in (2, 3):
            clock.now += INTERVAL_S
            await answered(server, rounds * LANES)
            async with lanes.take() as lane:
                assert lane is last


@in_loop
async def test_any_answer_keeps_a_connection() -> None:
    """A store refuses an anonymous request: that is an answer, and no reason to open another connection."""
    clock = Clock()
    async with scripted(other=answering(403, b"<Error/>")) as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        clock.now += INTERVAL_S
        await answered(server, 2 * LANES)
        assert (lanes.opened, lanes.open_count) == (LANES, LANES)


@in_loop
async def test_what_the_server_closes_is_replaced() -> None:
    """A server that ends idle connections finds new ones, without an upload's having come, or time having passed."""
    async with scripted() as server, kept(server) as lanes:
        await answered(server, LANES)
        for connection in server.connections:
            connection.close()
        await answered(server, 2 * LANES)
        assert (lanes.open_count, lanes.opened) == (LANES, 2 * LANES)
        assert len(server.open_connections) == LANES


async def old_fashioned(exchange: Exchange) -> None:
    """Answer as HTTP/1.0 does, and close."""
    await exchange.read()
    await exchange.answer(version="HTTP/1.0")


@pytest.mark.parametrize("script", [old_fashioned, answering(Connection="close")], ids=["http-1.0", "close"])
@in_loop
async def test_a_server_that_closes_after_every_answer_is_not_hammered(script: Script) -> None:
    """It gets one request an interval on each lane and no more."""
    clock = Clock()
    async with scripted(other=script) as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        await sweeps(2)
        assert (len(server.seen), lanes.open_count) == (LANES, 0)
        clock.now += INTERVAL_S
        await answered(server, 2 * LANES)
        await sweeps(1)
        assert len(server.seen) == 2 * LANES


@in_loop
async def test_a_server_that_hangs_up_is_not_hammered() -> None:
    """One that takes connections and ends them is soon tried by one lane at a time, ever less often."""
    at_once = 4
    async with scripted(other=hang_up_after()) as server, kept(server, max_connections=4 * at_once):
        await server.until(lambda: len(server.connections) >= at_once)
        await sweeps(4)
        # Four at first, then one, then one more at most; aiohttp tries each GET twice.
        assert 2 * at_once < len(server.connections) <= 2 * (at_once + 2)


@in_loop
async def test_an_endpoint_that_is_away_is_found_when_it_is_back(unused_port: int) -> None:
    """While nobody listens nothing happens; once somebody does, all lanes open."""
    url = f"http://127.0.0.1:{unused_port}"
    async with scripted() as server, kept(server, url=url, keepalive_interval_s=1.0) as lanes:
        await sweeps(1)
        assert (lanes.open_count, server.seen) == (0, [])
        running = await asyncio.start_server(server.take, "127.0.0.1", unused_port)
        await answered(server, LANES)
        assert lanes.open_count == LANES
        running.close()


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port on which nobody listens yet: bound, so that nobody else gets it, by a socket that allows sharing it."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@in_loop
async def test_uploads_find_a_lane_while_others_are_touched() -> None:
    """The keeper works on a share of the lanes: with a server that never answers it, an upload goes at once."""
    clock = Clock()
    async with scripted() as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        server.other = silent_after()
        clock.now += INTERVAL_S
        await server.until(lambda: len(server.seen) > LANES)
        async with asyncio.timeout(5), lanes.take() as lane:
            assert lane.is_open


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


class Named(asyncio.SelectorEventLoop):
    """A loop in which every name has the addresses given."""

    addresses: tuple[str, ...] = ()
    asked = 0

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        kind = socket.SOCK_STREAM
        return [(socket.AF_INET, kind, socket.IPPROTO_TCP, "", (address, port)) for address in self.addresses]


def test_all_addresses_of_a_name_are_used_in_turn() -> None:
    """The lanes spread over them; the name is asked for once, and again when the answer is old."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Named)
        clock = Clock()
        async with scripted(address="0.0.0.0") as server:
            url = server.url.replace("0.0.0.0", "store.example")
            loop.addresses = ("127.0.0.1", "127.0.0.2")
            async with kept(server, clock, url) as lanes:
                await answered(server, LANES)
                local = [each.writer.get_extra_info("sockname")[0] for each in server.connections]
                assert sorted(local) == ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]
                assert {seen.headers["host"] for seen in server.seen} == {url.removeprefix("http://")}
                assert loop.asked == 1
                loop.addresses = ("127.0.0.3",)
                clock.now += 3600
                for connection in server.connections:
                    connection.close()
                await answered(server, 2 * LANES)
                assert server.connections[-1].writer.get_extra_info("sockname")[0] == "127.0.0.3"
                assert (loop.asked, lanes.open_count) == (2, LANES)

    with asyncio.Runner(loop_factory=Named) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_an_address_that_refuses_is_passed_over() -> None:
    """A name may have an address where nobody listens, as localhost has: no request fails for that."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Named)
        async with scripted(address="127.0.0.2") as server:
            loop.addresses = ("127.0.0.1", "127.0.0.2")
            async with kept(server, url=server.url.replace("127.0.0.2", "store.example")) as lanes:
                await answered(server, LANES)
                assert lanes.open_count == LANES
                async with lanes.take() as lane:
                    assert lane.is_open

    with asyncio.Runner(loop_factory=Named) as runner:
        runner.run(asyncio.wait_for(main(), 60))


def test_a_name_that_does_not_resolve_yet() -> None:
    """The keeper goes on trying; nobody who asks for a lane meanwhile loses it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Named)
        async with scripted() as server:
            url = server.url.replace("127.0.0.1", "store.example")
            async with kept(server, url=url, keepalive_interval_s=1.0) as lanes:
                for _ in range(2 * LANES):
                    with pytest.raises(socket.gaierror):
                        async with lanes.take():
                            raise AssertionError("a lane without an address")
                loop.addresses = ("127.0.0.1",)
                await answered(server, LANES)
                assert lanes.open_count == LANES

    with asyncio.Runner(loop_factory=Named) as runner:
        runner.run(asyncio.wait_for(main(), 60))


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
