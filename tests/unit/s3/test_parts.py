"""Parts: large enough that there are not too many, and so many at a time that nobody else has to wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.sending import settings_for

from s3daemon.s3.parts import MAX_PARTS, Parts, is_for_parts, part_bytes

MIB, GIB = 1 << 20, 1 << 30


@given(st.integers(1, 50_000 * GIB), st.integers(5 * MIB, 5 * GIB))
def test_there_are_never_too_many(size: int, wanted: int) -> None:
    """As many as fit into S3's bound; of the size that was set wherever that does."""
    chosen = part_bytes(size, wanted)
    assert -(-size // chosen) <= MAX_PARTS
    assert chosen == wanted or (chosen > wanted and -(-size // wanted) > MAX_PARTS and chosen % MIB == 0)


@pytest.mark.parametrize(
    ("size", "threshold", "part", "wanted"),
    [
        (100 * MIB, 100 * MIB, 64 * MIB, False),
        (100 * MIB + 1, 100 * MIB, 64 * MIB, True),
        (20 * MIB, 5 * MIB, 64 * MIB, False),
        (64 * MIB + 1, 5 * MIB, 64 * MIB, True),
    ],
)
def test_what_goes_in_parts(size: int, threshold: int, part: int, wanted: bool) -> None:
    """What is larger than the threshold, unless one part would hold all of it."""
    settings = settings_for("http://store", multipart_threshold_bytes=threshold, part_size_bytes=part)
    assert is_for_parts(size, settings) is wanted


@dataclass
class FakePool:
    """So many connections, of which so many are available."""

    usable: int = 25
    limit: int = 30
    available_for_parts: int = 12


@dataclass
class FakeSending:
    """Has a pool, and sends nothing."""

    pool: FakePool


def width(waiting: int, *, files: int = 1, limit: int = 25) -> int:
    """How many of so many parts are started before one of them ends."""
    pool = FakePool(usable=limit, available_for_parts=limit // 2)
    sending: Any = FakeSending(pool)
    parts, running = Parts(sending), 0
    parts.files = files
    while waiting and parts._may_start(running, waiting):
        running, waiting, pool.available_for_parts = running + 1, waiting - 1, pool.available_for_parts - bool(running)
    return running


@pytest.mark.parametrize(
    ("count", "at_once"), [(1, 1), (2, 2), (12, 12), (13, 7), (16, 8), (24, 12), (32, 11), (10_000, 12)]
)
def test_rounds_are_of_equal_width(count: int, at_once: int) -> None:
    """No more than half of the connections, and no last round of a few that leave the link half empty."""
    assert width(count) == at_once


@pytest.mark.parametrize(("files", "at_once"), [(1, 12), (2, 6), (4, 3), (12, 1), (25, 1)])
def test_several_files_share_evenly(files: int, at_once: int) -> None:
    """Each has one in any case."""
    assert width(10_000, files=files) == at_once


@pytest.mark.parametrize(("limit", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (1000, 500)])
def test_of_few_connections_one_is_enough(limit: int, at_once: int) -> None:
    """However many there are."""
    assert width(10_000, limit=limit) == at_once


def test_without_an_available_connection_one_part_goes() -> None:
    """While others use the connections, a file keeps to its one, and never loses it."""
    sending: Any = FakeSending(FakePool(available_for_parts=0))
    parts = Parts(sending)
    assert [parts._may_start(running, 10) for running in (0, 1)] == [True, False]
