"""The endpoint's health: the table in the class's docstring, row by row, on a clock that the test moves."""

import math
import random

import pytest

from s3daemon.delivery.health import HELD_PROBE_S, PROBE_MAX_S, Health
from s3daemon.errors import AttemptError

DOWN = AttemptError("ConnectionFailed", "connection refused")
BUSY = AttemptError("SlowDown", "slow down", status=503)
BAD_KEY = AttemptError("InvalidAccessKeyId", "no such key", status=403)

NOW = math.inf
"""Of an attempt: it started after all that the test did before."""


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(random.Random(1), clock)


def away(health: Health) -> None:
    for _ in range(3):
        health.failed(DOWN, "aa")


def state(health: Health) -> str:
    """The row of the table."""
    assert not (health.away and health.held)
    return "AWAY" if health.away else "HELD" if health.held else "UP"


def test_up_starts_everything_and_waits_for_nothing(health: Health) -> None:
    assert health.may_start(0)
    assert health.may_start(1000)
    assert health.wake_at() is None
    assert state(health) == "UP"


def test_three_failures_in_a_row_are_an_outage_and_a_success_ends_it(health: Health) -> None:
    health.failed(DOWN, "aa")
    health.failed(DOWN, "aa")
    health.succeeded(NOW)
    health.failed(DOWN, "aa")
    health.failed(DOWN, "aa")
    assert state(health) == "UP"
    health.failed(DOWN, "aa")
    assert state(health) == "AWAY"
    health.succeeded(NOW)
    assert state(health) == "UP"
    assert health.may_start(24)


def test_one_object_that_the_store_cannot_take_is_not_an_outage(health: Health) -> None:
    for _ in range(10):
        health.failed(BUSY, "aa")
    assert state(health) == "UP"
    health.failed(BUSY, "bb")
    health.failed(BUSY, "aa")
    assert state(health) == "AWAY"


def test_without_any_answer_one_transfer_is_enough(health: Health) -> None:
    for _ in range(3):
        health.failed(DOWN, "aa")
    assert state(health) == "AWAY"


def test_away_is_known_after_five_seconds(health: Health, clock: Clock) -> None:
    away(health)
    known = []
    for seconds in (4.9, 0.2):
        clock.now += seconds
        known.append(health.known_away)
    health.succeeded(NOW)
    assert [*known, health.known_away] == [False, True, False]


def test_away_is_probed_by_one_then_two_at_growing_distance(health: Health, clock: Clock) -> None:
    away(health)
    delays, limits = [], []
    for _ in range(10):
        wake = health.wake_at()
        assert wake is not None
        assert not health.may_start(0)
        delays.append(wake - clock.now)
        clock.now = wake
        assert health.wake_at() is None
        limits.append(next(n for n in range(5) if not health.may_start(n)))
        health.failed(DOWN, "aa")
        health.failed(DOWN, "aa")  # another one of the same round, which counts once
    for delay, whole in zip(delays, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30], strict=True):
        assert 0.75 * whole <= delay <= whole
    assert limits == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]


def test_48_hours_of_outage_cost_a_bounded_number_of_probes(health: Health, clock: Clock) -> None:
    away(health)
    probes, end = 0, clock.now + 48 * 3600
    while clock.now < end:
        in_flight = 0
        while health.may_start(in_flight):
            in_flight += 1
        probes += in_flight
        for _ in range(in_flight):
            health.failed(DOWN, "aa")
        clock.now = health.wake_at() or clock.now
    assert 2 * 48 * 3600 / PROBE_MAX_S <= probes <= 2 * 48 * 3600 / (0.75 * PROBE_MAX_S) + 20


def test_bad_keys_hold_the_queue_from_any_state(health: Health) -> None:
    health.refused(BAD_KEY, NOW)
    assert health.held == "InvalidAccessKeyId: no such key"
    assert not health.may_start(0)
    health.reload()
    away(health)
    health.refused(BAD_KEY, NOW)
    assert state(health) == "HELD"


def test_held_is_probed_every_five_minutes(health: Health, clock: Clock) -> None:
    health.refused(BAD_KEY, NOW)
    for error in (BAD_KEY, DOWN, BUSY, BAD_KEY):
        assert health.wake_at() == clock.now + HELD_PROBE_S
        clock.now += HELD_PROBE_S
        assert health.may_start(0)
        assert not health.may_start(1)
        if error is BAD_KEY:
            health.refused(error, NOW)
        else:
            health.failed(error, "aa")
        assert not health.may_start(0)
    clock.now += HELD_PROBE_S
    health.succeeded(started_at=clock.now)
    assert state(health) == "UP"
    assert health.may_start(24)


def test_an_attempt_from_before_the_hold_does_not_lift_it(health: Health, clock: Clock) -> None:
    started_at = clock.now
    clock.now += 1
    health.refused(BAD_KEY, started_at=started_at)
    clock.now += 1
    health.succeeded(started_at=started_at)
    assert state(health) == "HELD"


def test_an_attempt_with_the_old_keys_does_not_hold_the_queue_after_a_reload(health: Health, clock: Clock) -> None:
    health.refused(BAD_KEY, NOW)
    started_at = clock.now
    clock.now += 1
    health.reload()
    assert state(health) == "UP"
    health.refused(BAD_KEY, started_at=started_at)
    assert state(health) == "UP"
    health.refused(BAD_KEY, started_at=clock.now)
    assert state(health) == "HELD"


def test_reload_ends_an_outage_too(health: Health) -> None:
    away(health)
    health.reload()
    assert health.may_start(24)
