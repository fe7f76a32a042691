"""Slow connections among fast ones: their uploads are moved, stored once by the store's own count, in one attempt.

The bars here are wide, since other tests run beside them; `tests/bench/stragglers` has the narrow ones.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from bench.exposure import HOOKS, Burst
from bench.stragglers import ADDRESSES, MIB, Scene, at_the_first, one_in_five, scene
from lab.counting import GOOD, Request, Treatment
from lab.sending import a_file

#: Over the exposure without stragglers: 2 MiB take 21 s at 100 kB/s.
TIMES, PLUS_S = 3.0, 3.0
NEVER_S = 3600.0


def check(made: Scene, usual: Burst, *found: Burst) -> None:
    """Everything in time, in one attempt, and once."""
    for burst in found:
        assert not burst.failures
        assert burst.done <= TIMES * usual.done + PLUS_S, (burst.done, usual.done)
    assert made.wrong() == []
    assert {record.attempts for record in made.daemon.records(1)} == {1}


def test_one_connection_in_five(tmp_path: Path) -> None:
    """Its images are moved to connections that stand idle, in the first exposure and after."""
    with scene(tmp_path) as made:
        (usual,) = made.exposures("usual", 2 * MIB, 1)
        made.store.treat = one_in_five
        check(made, usual, *made.exposures("slow", 2 * MIB, 2))
        assert 0 < made.moved() <= HOOKS


def test_one_receiver_of_four(tmp_path: Path) -> None:
    """It is disabled, and gets no image any more."""
    with scene(tmp_path, ADDRESSES) as made:
        (usual,) = made.exposures("usual", 2 * MIB, 1)
        made.store.treat = at_the_first
        found = made.exposures("slow", 2 * MIB, 2)
        check(made, usual, *found)
        assert any(f"{ADDRESSES[0]} of the store is temporarily disabled" in line for line in made.daemon.lines())
        before, moved = made.store.addresses[ADDRESSES[0]], made.moved()
        check(made, usual, *made.exposures("after", 2 * MIB, 1))
        assert (made.store.addresses[ADDRESSES[0]], made.moved()) == (before, moved)


def test_one_part_of_a_large_file(tmp_path: Path) -> None:
    """Only the part is sent again whose connection turns slow in its middle."""
    turned = list[Request]()

    def treat(request: Request) -> Treatment:
        if not request.target.endswith("partNumber=3") or turned:
            return GOOD
        turned.append(request)
        return Treatment(rate=20e3, after=5 * MIB)

    with scene(tmp_path, part_size="16MiB", multipart_threshold="16MiB", bwlimit="400M") as made:
        made.store.treat = treat
        began = time.monotonic()
        asyncio.run(made.deliver(a_file(tmp_path / "large", 160 * MIB), "bucket/large"))
        assert time.monotonic() - began < 60
        assert (made.moved(), made.wrong()) == (1, [])
        assert made.store.stored["/bucket/large"] == 1
        assert {record.attempts for record in made.daemon.records(1)} == {1}


def test_all_slow(tmp_path: Path) -> None:
    """That is the path: nothing is moved."""
    with scene(tmp_path) as made:
        made.exposures("usual", MIB, 1)
        made.store.treat = lambda _: Treatment(rate=300e3)
        (burst,) = made.exposures("slow", MIB, 1)
        assert (made.moved(), burst.failures, made.wrong()) == (0, [], [])


@pytest.mark.parametrize("treatment", [Treatment(after_s=NEVER_S), Treatment(before_s=NEVER_S)])
@pytest.mark.parametrize("size", [3000, MIB])
def test_an_upload_without_an_answer(tmp_path: Path, size: int, treatment: Treatment) -> None:
    """While others are answered it is moved after seconds, not after a minute; what the store has is not sent again."""
    with scene(tmp_path) as made:
        _one_of(made, size, treatment)
        (burst,) = made.exposures("one", MIB, 1)
        assert not burst.failures
        assert 2.0 <= burst.done <= 10
        assert (made.moved(), made.wrong()) == (1, [])
        assert {record.attempts for record in made.daemon.records(1)} == {1}


def test_an_upload_that_stops_in_its_middle(tmp_path: Path) -> None:
    """It is moved long before it counts as stalled, and sent again without a look-up."""
    with scene(tmp_path) as made:
        _one_of(made, 4 * MIB, Treatment(rate=0.0, after=MIB))
        (burst,) = made.exposures("one", 4 * MIB, 1)
        assert not burst.failures
        assert burst.done <= 8
        assert (made.moved(), made.wrong()) == (1, [])
        assert {record.attempts for record in made.daemon.records(1)} == {1}


def _one_of(made: Scene, size: int, treatment: Treatment) -> None:
    """Have the store treat one upload of this size like that, and all others well."""
    treated = list[Request]()

    def treat(request: Request) -> Treatment:
        if treated or request.size != size:
            return GOOD
        treated.append(request)
        return treatment

    made.store.treat = treat
