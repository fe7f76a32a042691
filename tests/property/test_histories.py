"""Whatever a store does, and whenever the daemon is killed: what is said is so, and who is not at fault does not wait.

Worlds of `lab.worlds`: some of each kind, a minute of them; by hand a hundred thousand histories. Those that were
wrong once are in `worlds/`, shrunk, and each is named for the behaviour that it holds.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from lab.histories import run, shrunk
from lab.liar import Behaviour, Body, End, Keep, Tag, lying_store, port_for
from lab.worlds import KINDS, World, behaviour, world_of

#: Another seed each day would find more, and fail where nobody changed anything: by hand.
SEED = int(os.environ.get("S3DAEMON_TEST_SEED", "14"))
ALL = {f"{kind} {SEED}": world_of(SEED, kind) for kind in ("rough", "own", "denied")}
#: With the usual seed: two in which most happens.
ALL |= {f"shared {seed}": world_of(seed, "shared", 60) for seed in (SEED + 2, SEED + 15)}
ALL |= {
    path.stem: World.from_json(path.read_text()) for path in sorted((Path(__file__).parent / "worlds").glob("*.json"))
}


#: How many are played at once: most of the time they wait.
AT_ONCE = 3

Played = Mapping[str, "Future[list[str]]"]


@pytest.fixture(scope="module")
def played() -> Iterator[Played]:
    """What was wrong in each world, by its name."""
    with ThreadPoolExecutor(AT_ONCE) as pool:  # its threads live for as long as the daemons that they start
        yield {name: pool.submit(run, world) for name, world in ALL.items()}


@pytest.mark.timed
@pytest.mark.parametrize("name", ALL)
def test_outcomes_are_reported_truthfully_and_faults_attributed(name: str, played: Played) -> None:
    assert played[name].result() == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_world_is_the_same_when_it_is_read_again(kind: str) -> None:
    """So a counterexample that is kept is the one that was found."""
    for seed in range(20):
        world = world_of(seed, kind)
        assert World.from_json(world.to_json()) == world
        assert world_of(seed, kind) == world


def test_a_world_is_shrunk_to_what_makes_it_wrong() -> None:
    world = world_of(1, "rough")
    guilty = world.sent[17].name

    def is_wrong(smaller: World) -> bool:
        return any(one.name == guilty for one in smaller.sent)

    assert [one.name for one in shrunk(world, is_wrong, tries=100).sent] == [guilty]


async def asked(port: int, method: str, target: str, body: bytes = b"") -> bytes:
    """All that the store says to one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    mark = "x-amz-meta-s3daemon-id: aa\r\n"
    writer.write(f"{method} {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{mark}\r\n".encode() + body)
    writer.write_eof()
    try:
        return await reader.read(-1)
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


PLANS: list[tuple[Behaviour, Callable[[bytes], bool], bool]] = [
    (Behaviour(), lambda said: b" 200 " in said and b"ETag" in said, True),
    (Behaviour(tag=Tag.NONE), lambda said: b" 200 " in said and b"ETag" not in said, True),
    (
        Behaviour(keep=Keep.NOTHING, body=Body.HTML).possible(),
        lambda said: b"ETag" not in said and b"log in" in said,
        False,
    ),
    (Behaviour(status=503, body="SlowDown"), lambda said: b" 503 " in said and b"SlowDown" in said, True),
    (Behaviour(take=0.5).possible(), lambda said: b"ETag" not in said, False),
    (Behaviour(end=End.RESET), lambda said: b"HTTP" not in said, True),
    (Behaviour(end=End.CLOSE), lambda said: said == b"", True),
    (Behaviour(end=End.HALF), lambda said: said.endswith(b"ETag: "), True),
    (Behaviour(header_bytes=9000), lambda said: len(said) > 9000, True),
]


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_the_store_does_as_its_plan_says(number: int) -> None:
    plan, answered, kept = PLANS[number]

    async def main() -> None:
        port = port_for(["127.0.0.1"])
        async with lying_store(["127.0.0.1"], port) as store:
            store.destinations["b/k"].constant["put"] = plan
            assert answered(await asked(port, "PUT", "/b/k", b"content"))
            assert (store.destinations["b/k"].kept is not None) == kept
            assert list(store.attempts) == ["aa"]

    asyncio.run(main())


def test_a_store_cannot_know_the_etag_of_what_it_does_not_keep() -> None:
    rng = random.Random(1)
    for plan in (behaviour(rng) for _ in range(2000)):
        assert plan == plan.possible()
        assert not (plan.keep == Keep.NOTHING and plan.tag == Tag.TRUE)
        assert replace(plan, keep=Keep.NOTHING).possible().tag != Tag.TRUE
