"""The keeper: lanes are opened before they are needed, kept, replaced and moved; and no server is hammered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import aiohttp
import pytest
from lab.keeping import INTERVAL_S, LANES, Clock, Named, answered, kept, sweeps
from lab.scripted import Exchange, Script, Scripted, answering, hang_up_after, scripted, silent_after
from lab.sending import in_loop

from s3daemon.errors import AttemptError
from s3daemon.network.addresses import ASIDE_FIRST_S
from s3daemon.network.connection import Connection
from s3daemon.network.keeper import PRIMED_BYTES, SWEEP_S
from s3daemon.network.tcp import UNPACED_PACKETS


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
async def test_new_ones_are_used_until_linux_paces_them() -> None:
    """With a limit each carries ten small packets before any upload's, one a sweep; then it rests."""
    clock = Clock()
    async with scripted() as server, kept(server, clock, bwlimit_bps=8_000_000) as lanes:
        for rounds in range(1, UNPACED_PACKETS + 1):
            await answered(server, rounds * LANES)
            assert {lane.is_paced for lane in lanes.idle()} == {rounds == UNPACED_PACKETS}
            await sweeps(1)
            assert len(server.seen) == rounds * LANES
            clock.now += SWEEP_S
        await sweeps(2)
        assert (len(server.seen), lanes.opened) == (UNPACED_PACKETS * LANES, LANES)


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
    async with scripted(other=hang_up_after()) as server, kept(server, max_connections=2 * at_once, spare=0):
        await server.until(lambda: len(server.connections) >= at_once)
        await sweeps(4)
        # Half at first, then one, then one more at most; aiohttp tries each GET twice.
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


async def quiet(server: Scripted, count: int) -> None:
    """So many requests were answered, and no more follow."""
    await answered(server, count)
    await sweeps(1)
    assert len(server.seen) == count


@in_loop
async def test_an_idle_close_halves_the_interval() -> None:
    """A server that closed at age T finds each connection used again at T/2, before its patience ends."""
    clock = Clock()
    async with scripted() as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        clock.now += 6.0
        for connection in server.connections:
            connection.close()
        await answered(server, 2 * LANES)
        clock.now += 2.9
        await quiet(server, 2 * LANES)
        clock.now += 0.2
        await answered(server, 3 * LANES)
        assert (lanes.opened, lanes.open_count) == (2 * LANES, LANES)


@in_loop
async def test_a_restart_is_no_lack_of_patience() -> None:
    """Connections that end together at very different ages say nothing of how long the server waits."""
    clock = Clock()
    async with scripted() as server, kept(server, clock) as lanes:
        await answered(server, LANES)
        clock.now += 6.0
        async with lanes.take() as lane:
            await lane.request("GET", server.url, {}, None)
        await sweeps(1)
        for connection in server.connections:
            connection.close()
        await answered(server, 2 * LANES + 1)
        clock.now += INTERVAL_S - 0.1
        await quiet(server, 2 * LANES + 1)


@in_loop
async def test_a_connection_that_an_upload_ended_is_no_idle_close() -> None:
    """Its age says nothing."""
    clock = Clock()
    async with scripted() as server, kept(server, clock, spare=0) as lanes:
        await answered(server, LANES)
        clock.now += 5.0
        async with lanes.take() as lane:
            server.other = hang_up_after(0)
            with pytest.raises(aiohttp.ClientError):
                await lane.request("POST", server.url, {}, None)
            server.other = answering()
        await answered(server, LANES + 2)
        clock.now += INTERVAL_S - 5.1
        await quiet(server, LANES + 2)


RECEIVERS = ("127.0.0.1", "127.0.0.2")


def named(server: Scripted) -> str:
    """Its URL by a name that resolves nowhere."""
    return server.url.replace("0.0.0.0", "store.invalid")


def loads(server: Scripted) -> list[int]:
    """How many open connections each of `RECEIVERS` has."""
    names = [each.writer.get_extra_info("sockname")[0] for each in server.open_connections]
    return [names.count(address) for address in RECEIVERS]


@in_loop
async def test_lanes_move_away_from_a_receiver_that_is_left_aside_and_back() -> None:
    """All are opened elsewhere in the background; after a good answer one goes back, after an upload its share."""
    clock = Clock()
    async with (
        scripted(address="0.0.0.0") as server,
        kept(server, clock, named(server), receivers=RECEIVERS) as lanes,
    ):
        await answered(server, LANES)
        assert loads(server) == [2, 2]
        lanes.receivers.failed("127.0.0.1", "refused")
        await server.until(lambda: loads(server) == [0, 4])
        clock.now += ASIDE_FIRST_S
        await server.until(lambda: lanes.receivers.serves("127.0.0.1"))
        await server.until(lambda: loads(server) == [1, 3])
        await sweeps(2)
        assert loads(server) == [1, 3], "one on trial"
        lanes.receivers.succeeded("127.0.0.1")
        await server.until(lambda: loads(server) == [2, 2])
        assert lanes.limit == lanes.open_count == LANES


@in_loop
async def test_a_receiver_that_answers_503_is_found_before_an_upload_finds_it() -> None:
    """The answer to a touch keeps the connection, and condemns the receiver while another one serves."""

    async def first_is_broken(exchange: Exchange) -> None:
        broken = exchange.connection.writer.get_extra_info("sockname")[0] == RECEIVERS[0]
        await answering(503 if broken else 200)(exchange)

    async with (
        scripted(other=first_is_broken, address="0.0.0.0") as server,
        kept(server, url=named(server), receivers=RECEIVERS) as lanes,
    ):
        await server.until(lambda: loads(server) == [0, LANES])
        assert lanes.aside == [RECEIVERS[0]]


@in_loop
async def test_a_probe_that_is_refused() -> None:
    """A receiver that answers 503 to a small request stays aside, and is asked again later."""
    clock = Clock()
    async with (
        scripted(other=answering(503), address="0.0.0.0") as server,
        kept(server, clock, named(server), receivers=RECEIVERS) as lanes,
    ):
        await answered(server, LANES)
        lanes.receivers.failed("127.0.0.1", "503")
        for rounds in (1, 2):
            clock.now += 2 * rounds * ASIDE_FIRST_S
            before = len(server.seen)
            await server.until(lambda before=before: len(server.seen) > before)  # type: ignore[misc]
            await sweeps(1)
            assert lanes.receivers.aside == ["127.0.0.1"]


@in_loop
async def test_a_new_connection_is_primed_while_nothing_is_lent() -> None:
    """Each one once, but never beside an upload; none is touched for its first packets as well."""
    clock = Clock()
    async with scripted() as server:
        primed: list[Connection] = []

        async def prime(lane: Connection) -> None:
            primed.append(lane)
            await lane.request("PUT", server.url, {}, bytes(PRIMED_BYTES))

        async with kept(server, clock, prime=prime, bwlimit_bps=10**10) as lanes:
            async with lanes.take():
                await sweeps(1)
                clock.now += SWEEP_S
                await sweeps(1)
                assert not primed
            await server.until(lambda: len(primed) >= LANES)
            await sweeps(2)
            assert len(primed) == len(set(primed)) == LANES
            assert all(lane.is_paced and lane.carried() >= PRIMED_BYTES for lane in primed)
            assert [seen.method for seen in server.seen].count("GET") == LANES, "priming is enough"


@in_loop
async def test_priming_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, and nothing else suffers."""

    async def prime(lane: Connection) -> None:
        raise AttemptError("NoSuchBucket", "create the bucket")

    async with scripted() as server, kept(server, prime=prime) as lanes:
        await answered(server, LANES)
        await sweeps(2)
        assert lanes.open_count == LANES
    (message,) = [text for text in caplog.messages if "PRIME" in text]
    assert "NoSuchBucket" in message
