"""Which uploads are moved, told from simulated ones: each has a rate by time, and is looked at once a tick."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from s3daemon.network.uploads.straggler import (
    MOVES_MAX,
    SILENT_S,
    SLOW_MAX_S,
    Move,
    MoveHistory,
    Stragglers,
    TrackedBody,
)

TICK_S = 0.125
MIB = 1 << 20
FAST, SLOW = 20e6, 100e3

Rate = Callable[[float], float]


@dataclass
class Body:
    """A simulated upload.

    Args:
        size: bytes.
        rate: at which it moves, bytes/s, by its age.
        at: when it begins, seconds.
        answer_s: from the last byte to the answer.
        address: where it goes.
        rtt_s: round-trip time of its connection.
        share: what it may send, bytes/s.
        starved: whether its file gives nothing more, by its age.
        moved: how often before.
    """

    size: int = 8 * MIB
    rate: Rate | float = FAST
    at: float = 0.0
    answer_s: float = 0.0
    address: str = "a"
    rtt_s: float = 0.0
    share: float | None = None
    starved: Callable[[float], bool] = lambda _: False
    moved: MoveHistory = MoveHistory()  # noqa: RUF009 - frozen
    acked: float = 0.0
    whole_at: float = math.inf


def simulate(bodies: list[Body], until: float = 30.0) -> dict[int, tuple[float, Move]]:
    """The moves: by the body's place, its age then and the move."""
    stragglers, step = Stragglers(), TICK_S / 5
    all_tracked = [TrackedBody(body.size, body.moved) for body in bodies]
    moves: dict[int, tuple[float, Move]] = {}
    moving = set[int]()
    over = set[int]()
    for number in range(round(until / step)):
        now = number * step
        for n, (body, tracked) in enumerate(zip(bodies, all_tracked, strict=True)):
            if n in over or now < body.at:
                continue
            if n not in moving:
                stragglers.begin(tracked, body.address, now)
                moving.add(n)
            age = now - body.at
            body.acked += (body.rate(age) if callable(body.rate) else body.rate) * step
            if body.acked >= body.size:
                body.acked, body.whole_at = body.size, min(body.whole_at, now)
            if now >= body.whole_at + body.answer_s:
                stragglers.end(tracked, now, answered=True)
                over.add(n)
            elif number % 5 == n % 5:
                move = stragglers.tick(
                    tracked, now, int(body.acked), rtt_s=body.rtt_s, share=body.share, is_starved=body.starved(age)
                )
                if move is not None:
                    stragglers.end(tracked, now, answered=False)
                    moves[n] = (age, move)
                    over.add(n)
    return moves


def turning(at: float, before: Rate | float, after: float) -> Rate:
    """A rate that changes at that age."""
    return lambda age: after if age >= at else before(age) if callable(before) else before


def opening(rtt_s: float, most: float = FAST) -> Rate:
    """A new connection's: a first window of 14 kB that doubles each round trip."""
    return lambda age: min(most, 14_600 * 2 ** (age // rtt_s) / rtt_s)


def with_burst(rate: float, burst: int = 400_000) -> Rate:
    """The buffers on the way take the first bytes at once."""
    return lambda age: burst / 0.05 if age < 0.05 else rate


def in_lumps(phase: float) -> Rate:
    """300 kB/s in lumps, as a receiver takes them that opens its window seldom."""
    return lambda age: 600e3 / 0.05 if (age + phase) % 2.0 < 0.05 else 0.0


FAST_ONES = [Body() for _ in range(18)]


def copies(bodies: list[Body]) -> list[Body]:
    return [Body(b.size, b.rate, b.at, b.answer_s, b.address, b.rtt_s, b.share, b.starved, b.moved) for b in bodies]


@pytest.mark.parametrize(
    ("case", "bodies", "moved", "by"),
    [
        ("one in five of 2 MiB", [Body(2 * MIB, with_burst(SLOW) if n % 5 == 2 else FAST) for n in range(23)],
         {2, 7, 12, 17, 22}, 0.55),
        ("one in five of 8 MiB", [Body(rate=with_burst(SLOW) if n % 5 == 2 else FAST) for n in range(23)],
         {2, 7, 12, 17, 22}, 0.9),
        ("a quarter", [Body(rate=SLOW if n % 4 == 0 else FAST) for n in range(24)], {0, 4, 8, 12, 16, 20}, 0.9),
        ("one of two", [Body(rate=SLOW), Body()], {0}, 0.9),
        ("one that takes nothing", [Body(rate=0), *FAST_ONES], {0}, 0.9),
        ("turns slow in the middle", [Body(rate=turning(0.2, FAST, SLOW)), *FAST_ONES], {0}, 1.0),
        ("a part of a large file turns slow", [Body(64 * MIB, turning(1.6, FAST, SLOW)),
         *(Body(64 * MIB, at=3.4 * (n // 7)) for n in range(21))], {0}, 6.0),
        ("over a long way, new", [Body(rate=turning(1.0, opening(0.2, 5e6), SLOW), rtt_s=0.2),
         *(Body(rate=opening(0.2, 5e6), rtt_s=0.2) for _ in range(9))], {0}, 6.0),
        ("its file is slow", [Body(rate=SLOW, starved=lambda _: True), *FAST_ONES], set(), 0),
        ("three times slower", [Body(rate=FAST / 3), *FAST_ONES], set(), 0),
        ("little left", [Body(rate=turning(0.413, FAST, SLOW)), *FAST_ONES], set(), 0),
        ("new among warm ones, over a long way", [Body(rate=opening(0.2), rtt_s=0.2), *(
            Body(rate=5e6, rtt_s=0.2) for _ in range(18))], set(), 0),
        ("all slow", [Body(2 * MIB, with_burst(SLOW)) for _ in range(23)], set(), 0),
        ("all slow, and half of them fit into a buffer", [
            Body(2 * MIB, with_burst(SLOW, 3 * MIB if n % 2 else 400_000), answer_s=20) for n in range(23)], set(), 0),
        ("all slow, and each moves every other second", [
            Body(2 * MIB, in_lumps(n % 2)) for n in range(24)], set(), 0),
        ("all slow, after one another", [Body(2 * MIB, with_burst(SLOW), at=n / 4) for n in range(23)], set(), 0),
        ("all slow, alone each", [Body(MIB, with_burst(SLOW), at=12.0 * n) for n in range(3)], set(), 0),
        ("the link stalls under the last eight", [*FAST_ONES, *(
            Body(rate=turning(0.65, 12e6, 0), address="b") for _ in range(8))], set(), 0),
        ("a few kilobytes", [Body(60_000, 20e3), *FAST_ONES], set(), 0),
        ("alike with most", [*(Body(64 * MIB, FAST / 5) for _ in range(7)), *(
            Body(64 * MIB, at=1.0) for _ in range(2))], set(), 0),
        ("pauses at the beginning", [Body(2 * MIB, lambda age: 0 if age < 0.31 else FAST), *FAST_ONES], set(), 0),
        ("pauses for less than a move would take", [Body(rate=lambda age: 0 if 0.5 < age < 1.5 else 2e6), *(
            Body(rate=2e6) for _ in range(9))], set(), 0),
        ("a part that would take long elsewhere too", [Body(64 * MIB, SLOW), *(
            Body(64 * MIB, 2e6) for _ in range(9))], {0}, 7.0),
        ("all slow, and buffers take more of some", [
            Body(rate=with_burst(SLOW, 2 * MIB if n % 2 else 400_000)) for n in range(9)], set(), 0),
        ("among small ones, which buffers take whole", [Body(rate=SLOW), *(
            Body(200_000, 2e6, at=n / 20) for n in range(100))], set(), 0),
        ("five times slower, and over before a move gains much", [Body(rate=FAST / 5), *FAST_ONES], set(), 0),
        ("five times slower, over a long way", [Body(rate=1e6, rtt_s=0.2), *(
            Body(rate=5e6, rtt_s=0.2) for _ in range(9))], set(), 0),
        ("new among warm ones, over a long and wide way", [Body(64 * MIB, opening(0.2, 100e6), rtt_s=0.2), *(
            Body(1024 * MIB, 100e6, rtt_s=0.2) for _ in range(9))], set(), 0),
    ],
)  # fmt: skip
def test_uploads_far_slower_than_others_are_moved(case: str, bodies: list[Body], moved: set[int], by: float) -> None:
    """Those that are far slower than others, once it is certain and worth it, and no other."""
    moves = simulate(copies(bodies))
    assert set(moves) == moved, (case, moves)
    assert all(age <= by for age, _ in moves.values()), (case, moves)


def test_a_lone_upload_is_compared_with_recent_ones() -> None:
    """After two seconds, once: a second time that is the path."""
    before = [Body(at=n / 2) for n in range(4)]
    (age, move) = simulate([*before, Body(rate=SLOW, at=20.0)])[4]
    assert (2 <= age <= 3, move.reference) == (True, None)
    assert not simulate([*copies(before), Body(rate=SLOW, at=20.0, moved=MoveHistory(1))])
    assert not simulate([*copies(before), Body(64 * MIB, FAST / 5, at=20.0)])
    (age, _) = simulate([*copies(before), Body(rate=SLOW, at=20.0, rtt_s=0.3)])[4]
    assert age >= 5, "ten round trips more"
    assert not simulate([*copies(before), Body(rate=SLOW, at=200.0)], until=210.0), "two minutes later it is unknown"


def test_a_lone_first_upload_is_compared_with_the_rate_in_force() -> None:
    """A rate that is wrong by ten times convicts nobody."""
    assert set(simulate([Body(rate=SLOW, share=125e6)])) == {0}
    assert not simulate([Body(rate=4e6, size=200 * MIB, share=125e6)])
    assert not simulate([Body(rate=SLOW)]), "without a rate nothing is expected"


def test_over_a_long_way_the_next_connection_must_be_open_already() -> None:
    """One that crawls because its slow start ended early would crawl again over a new one; later anything is better."""
    others = [Body(rate=5e6, rtt_s=0.2) for _ in range(9)]
    (age, move) = simulate([Body(rate=250e3, rtt_s=0.2), *others])[0]
    assert (age < 3.2, move.window) == (True, 200_000)
    assert simulate([Body(rate=250e3), *copies(others)])[0][1].window == 0
    (age, move) = simulate([Body(32 * MIB, turning(5, 5e6, 250e3), rtt_s=0.2), *(
        Body(32 * MIB, 5e6, rtt_s=0.2) for _ in range(9))])[0]  # fmt: skip
    assert (age > 3.2, move.window) == (True, 0)


def test_what_a_tiny_limit_holds_back_is_not_slow() -> None:
    """The kernel sends 64 KiB of a body at once and then nothing for 13 s, while others come to their end."""

    def paced(age: float) -> float:
        return 65536 / 0.05 if age % 13.0 < 0.05 else 0.0

    ending = [Body(150_000, 150e3 / seconds, share=5e3) for seconds in (3.0, 3.5, 4.0, 4.5, 5.0)]
    assert not simulate([*ending, *(Body(150_000, paced, share=5e3) for _ in range(2))], until=60.0)


def test_a_share_that_was_lowered_is_not_slow() -> None:
    """Nobody expects more than may be sent."""
    before = [Body(at=n / 2) for n in range(4)]
    assert not simulate([*before, Body(rate=SLOW, at=20.0, share=SLOW)])


def test_what_was_expected_holds_for_the_next_connection() -> None:
    """A moved body that meets a slow connection again is moved again, though all others have ended; not for ever."""
    for count, moved in ((1, {0}), (MOVES_MAX, set())):
        assert set(simulate([Body(rate=with_burst(SLOW), moved=MoveHistory(count, FAST))], until=5.0)) == moved


def test_what_was_expected_is_forgotten_after_some_seconds() -> None:
    """The path may have become slow since."""
    for turns_at, moved in ((1.0, {0}), (6.0, set())):
        body = Body(32 * MIB, turning(turns_at, 5e6, SLOW), moved=MoveHistory(1, 5e6))
        assert set(simulate([body])) == moved


def test_the_address_is_blamed_unless_another_upload_moves_well_there() -> None:
    """One slow connection of an address is that connection's fault."""
    elsewhere = [Body(address="b") for _ in range(9)]
    assert simulate([Body(rate=SLOW), *elsewhere])[0][1].blames_address
    assert not simulate([Body(rate=SLOW), Body(), *copies(elsewhere)])[0][1].blames_address
    for address, blames in (("a", False), ("b", True)):
        before = [Body(address=address, at=n / 2) for n in range(4)]
        assert simulate([*before, Body(rate=SLOW, at=20.0)])[4][1].blames_address is blames


@pytest.mark.parametrize(
    ("case", "bodies", "moved"),
    [
        ("its answer does not come", [Body(3000, answer_s=20), *(Body(3000, answer_s=0.1) for _ in range(9))], {0}),
        ("a large one's does not", [Body(answer_s=20), *(Body(answer_s=0.1) for _ in range(9))], {0}),
        ("nothing of it is taken", [Body(3000, 0), *(Body(3000, answer_s=0.1) for _ in range(9))], {0}),
        ("all wait", [Body(3000, answer_s=20) for _ in range(9)], set()),
        ("the store stops in the middle", [Body(3000, answer_s=0.1 if n < 9 else 20) for n in range(23)], set()),
        ("its answer comes late", [Body(3000, answer_s=1.5), *(Body(3000, answer_s=0.1) for _ in range(9))], set()),
        ("the store is slow", [Body(3000, answer_s=4), *(Body(3000, answer_s=0.7) for _ in range(9))], set()),
        ("one other only", [Body(3000, answer_s=20), Body(3000, answer_s=0.1)], set()),
        ("others are much smaller", [Body(answer_s=20), *(Body(3000, answer_s=0.1) for _ in range(9))], set()),
    ],
)
def test_an_upload_without_an_answer_is_moved(case: str, bodies: list[Body], moved: set[int]) -> None:
    """Two seconds without a byte or an answer are enough if others of its size are answered ten times sooner."""
    moves = simulate(bodies)
    assert set(moves) == moved, (case, moves)
    assert all(SILENT_S <= age <= SILENT_S + 1 for age, _ in moves.values())


def test_a_second_silence_lasts_twice_as_long() -> None:
    """As the guidance for S3 says: two seconds, then four; and some round trips."""
    others = [Body(3000, answer_s=0.1, at=n / 10) for n in range(9)]
    (age, _) = simulate([Body(3000, answer_s=20, moved=MoveHistory(1)), *others])[0]
    assert 2 * SILENT_S <= age <= 2 * SILENT_S + 1
    (age, _) = simulate([Body(3000, answer_s=20, rtt_s=0.5), *copies(others)])[0]
    assert SILENT_S + 4 * 0.5 <= age <= SILENT_S + 3


def test_a_body_that_was_slow_before_this_process_was_stopped_is_watched_again() -> None:
    """For as long as without the stop, of which nothing is known."""
    stragglers, slow, fast = Stragglers(), TrackedBody(1024 * MIB), TrackedBody(1024 * MIB)
    for body in (slow, fast):
        stragglers.begin(body, "a", 0.0)
    moves = []
    for number in range(1, 100):
        now = number * TICK_S + (3.0 if number > 20 else 0.0)
        assert stragglers.tick(fast, now, int(now * 1e6), rtt_s=0.0) is None
        if stragglers.tick(slow, now, int(now * 1e4), rtt_s=0.0):
            moves.append(now)
    assert moves[0] >= 20 * TICK_S + 3.0 + SLOW_MAX_S


def test_a_process_that_was_stopped_finds_nothing_slow() -> None:
    """Answers wait to be read then, and no time has passed for a connection."""
    stragglers, tracked = Stragglers(), TrackedBody(3000)
    for _ in range(3):
        other = TrackedBody(3000)
        stragglers.begin(other, "a", 0.0)
        if _ == 0:
            stragglers.begin(tracked, "a", 0.0)
        stragglers.end(other, 0.1, answered=True)
    assert stragglers.tick(tracked, 0.125, 3000, rtt_s=0.0) is None
    assert stragglers.tick(tracked, 60.0, 3000, rtt_s=0.0) is None
    assert stragglers.tick(tracked, 60.125, 3000, rtt_s=0.0) is None
