"""The endpoint's health: the table in the module's docstring, row by row, on a clock that goes when told."""

import random

import pytest

from s3daemon.delivery.health import HELD_PROBE_S, PROBE_MAX_S, Health
from s3daemon.errors import AttemptError, FileError

DOWN = AttemptError("ConnectionFailed", "connection refused")
BUSY = AttemptError("SlowDown", "slow down", status=503)
DENIED = AttemptError("AccessDenied", "denied", status=403)
BAD_KEY = AttemptError("InvalidAccessKeyId", "no such key", status=403)
GONE = FileError("NoSuchFile", "no such file")


class Clock:
    """A monotonic clock that goes when told."""

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
        health.failed(DOWN)


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
    health.failed(DOWN)
    health.failed(DOWN)
    health.succeeded()
    health.failed(DOWN)
    health.failed(DOWN)
    assert state(health) == "UP"
    health.failed(DOWN)
    assert state(health) == "AWAY"
    health.succeeded()
    assert state(health) == "UP"
    assert health.may_start(24)


def test_failures_that_blame_no_endpoint_do_not_count(health: Health) -> None:
    for error in (DENIED, GONE) * 5:
        health.failed(error)
    assert state(health) == "UP"


def test_one_object_that_the_store_chokes_on_is_not_an_outage(health: Health) -> None:
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
    health.succeeded()
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
        health.failed(DOWN)
        health.failed(DOWN)  # the second probe of the same round, or a straggler: the round counts once
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
            health.failed(DOWN)
        clock.now = health.wake_at() or clock.now
    assert 2 * 48 * 3600 / PROBE_MAX_S <= probes <= 2 * 48 * 3600 / (0.75 * PROBE_MAX_S) + 20


def test_an_answer_about_a_transfer_does_not_delay_the_next_probe(health: Health, clock: Clock) -> None:
    away(health)
    clock.now = health.wake_at() or 0.0
    health.failed(DENIED)
    assert health.may_start(0)


def test_bad_keys_hold_the_queue_from_any_state(health: Health) -> None:
    health.failed(BAD_KEY)
    assert health.held == "InvalidAccessKeyId: no such key"
    assert not health.may_start(0)
    health.reload()
    away(health)
    health.failed(BAD_KEY)
    assert state(health) == "HELD"


def test_held_is_probed_each_five_minutes(health: Health, clock: Clock) -> None:
    health.failed(BAD_KEY)
    for error in (BAD_KEY, DOWN, DENIED, BAD_KEY):
        assert health.wake_at() == clock.now + HELD_PROBE_S
        clock.now += HELD_PROBE_S
        assert health.may_start(0)
        assert not health.may_start(1)
        health.failed(error)
        assert not health.may_start(0)
    clock.now += HELD_PROBE_S
    health.failed(GONE)  # nothing was asked of the store
    assert health.may_start(0)
    health.succeeded(began=clock.now)
    assert state(health) == "UP"
    assert health.may_start(24)


def test_an_attempt_from_before_the_hold_does_not_lift_it(health: Health, clock: Clock) -> None:
    began = clock.now
    clock.now += 1
    health.failed(BAD_KEY, began=began)
    clock.now += 1
    health.succeeded(began=began)
    assert state(health) == "HELD"


def test_an_attempt_with_the_old_keys_does_not_hold_the_new_ones(health: Health, clock: Clock) -> None:
    health.failed(BAD_KEY)
    began = clock.now
    clock.now += 1
    health.reload()
    assert state(health) == "UP"
    health.failed(BAD_KEY, began=began)
    assert state(health) == "UP"
    health.failed(BAD_KEY, began=clock.now)
    assert state(health) == "HELD"


def test_reload_ends_an_outage_too(health: Health) -> None:
    away(health)
    health.reload()
    assert health.may_start(24)
