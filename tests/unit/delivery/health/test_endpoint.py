"""The endpoint's health: the table in the class's docstring, row by row, on a clock that the test moves."""

import math
import random

import pytest
from lab.keeping import Clock

from s3daemon.delivery.health.endpoint import HELD_PROBE_S, KNOWN_AWAY_AFTER_S, PROBE_ALONE_S, Health
from s3daemon.errors import AttemptError
from s3daemon.model.request import Destination

DOWN = AttemptError("ConnectionFailed", "connection refused")
BUSY = AttemptError("SlowDown", "slow down", status=503)
HERE, THERE, ELSEWHERE = (Destination("bucket", key) for key in ("here", "there", "elsewhere"))
BAD_KEY = AttemptError("InvalidAccessKeyId", "no such key", status=403)

NOW = math.inf
"""Of an attempt: it started after all that the test did before."""


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(random.Random(1), clock)


def away(health: Health) -> None:
    for _ in range(3):
        health.failed(DOWN, HERE)


def state(health: Health) -> str:
    """The row of the table."""
    assert not (health.away and health.held)
    return "AWAY" if health.away else "HELD" if health.held else "UP"


def test_up_starts_everything_and_waits_for_nothing(health: Health) -> None:
    assert health.may_start([])
    assert health.may_start([NOW] * 1000)
    assert health.wake_at([]) is None
    assert state(health) == "UP"


def test_three_failures_in_a_row_are_an_outage_and_a_success_ends_it(health: Health) -> None:
    health.failed(DOWN, HERE)
    health.failed(DOWN, HERE)
    health.succeeded(NOW)
    health.failed(DOWN, HERE)
    health.failed(DOWN, HERE)
    assert state(health) == "UP"
    health.failed(DOWN, HERE)
    assert state(health) == "AWAY"
    health.succeeded(NOW)
    assert state(health) == "UP"
    assert health.may_start([NOW] * 24)


@pytest.mark.parametrize("error", [BUSY, AttemptError("BadAnswer", "a page"), AttemptError("Stalled", "no byte")])
def test_what_the_store_cannot_take_is_not_an_outage(health: Health, error: AttemptError) -> None:
    """Two objects that always fail are not; a third destination without a success in between makes it one."""
    for destination in (HERE, THERE) * 10:
        health.failed(error, destination)
    assert state(health) == "UP"
    health.failed(error, ELSEWHERE)
    assert state(health) == "AWAY"


def test_a_success_between_shows_that_it_is_the_destinations_fault(health: Health) -> None:
    for destination in (HERE, THERE, ELSEWHERE) * 10:
        health.failed(BUSY, destination)
        health.succeeded(NOW)
    assert state(health) == "UP"


@pytest.mark.parametrize(
    ("error", "is_unanswered", "counts"),
    [
        (AttemptError("503", "", status=503), False, False),
        (AttemptError("NoAnswer", ""), False, False),
        (AttemptError("NoAnswer", ""), True, True),
        (AttemptError("ConnectionFailed", ""), False, True),
    ],
)
def test_what_had_failed_since_a_success_too_is_the_transfers_fault(
    health: Health, clock: Clock, error: AttemptError, is_unanswered: bool, counts: bool
) -> None:
    before, clock.now = clock.now, clock.now + 1
    health.succeeded(clock.now)
    for key in "abc":
        destination = Destination("bucket", key)
        health.failed(error, destination, is_unanswered=is_unanswered, failed_since=before)
    assert (health.away, health.admits_new) == (counts, not counts)
    for key in "abc":
        health.failed(error, Destination("bucket", key), failed_since=clock.now + 1)
    assert health.away


@pytest.mark.parametrize("code", ["NoAnswer", "Stalled"])
@pytest.mark.parametrize(("began_later_s", "is_away"), [(-11.0, True), (-9.0, False)])
def test_a_silence_that_began_before_a_successful_attempt_is_of_an_outage_that_is_over(
    health: Health, clock: Clock, code: str, began_later_s: float, is_away: bool
) -> None:
    """The store hangs, and serves again; attempts from before still wait for their answers, and time out."""
    health.succeeded(clock.now + began_later_s)
    for key in "abc":
        health.failed(AttemptError(code, "", silent_s=10.0), Destination("bucket", key), started_at=clock.now - 60)
    assert health.away is is_away


def test_attempts_from_before_an_outage_neither_delay_a_probe_nor_count_as_one(health: Health, clock: Clock) -> None:
    started_at = clock.now
    clock.now += 60
    away(health)
    wake = health.wake_at([])
    assert wake is not None
    clock.now = wake
    assert (health.may_start([started_at] * 24), health.may_start([clock.now])) == (True, False)
    health.failed(AttemptError("NoAnswer", "", silent_s=60.0), THERE, started_at=started_at)
    assert health.may_start([])
    health.failed(AttemptError("NoAnswer", "", silent_s=60.0), THERE, started_at=wake)
    assert not health.may_start([])


def test_a_probe_that_takes_long_does_not_hide_the_recovery(health: Health, clock: Clock) -> None:
    """Such as a large file, or one that a store which is back will never answer: another one may start."""
    away(health)
    started_at = clock.now = health.wake_at([]) or 0.0
    assert (health.may_start([started_at]), health.wake_at([started_at])) == (False, started_at + PROBE_ALONE_S)
    clock.now += PROBE_ALONE_S
    assert health.may_start([started_at] * 5)
    probes = [started_at, clock.now - 3]
    assert (health.may_start(probes), health.wake_at(probes)) == (False, clock.now - 3 + PROBE_ALONE_S)
    clock.now += 100
    health.failed(DOWN, HERE)
    assert not health.may_start(probes), "each failure delays the next one"


def test_a_refusal_at_one_destination_holds_nothing(health: Health) -> None:
    for _ in range(10):
        health.suspected(BAD_KEY, HERE, NOW)
    assert state(health) == "UP"
    assert health.may_start([NOW] * 24)


def test_the_same_refusal_at_a_second_destination_holds_the_queue(health: Health) -> None:
    health.suspected(BAD_KEY, HERE, NOW)
    health.suspected(AttemptError("ExpiredToken", "old", status=400), THERE, NOW)
    assert state(health) == "UP", "another refusal"
    health.suspected(BAD_KEY, THERE, NOW)
    assert health.held == "InvalidAccessKeyId: no such key; fix it and reload"


def test_a_success_between_two_refusals_clears_the_keys(health: Health) -> None:
    health.suspected(BAD_KEY, HERE, NOW)
    health.succeeded(NOW)
    health.suspected(BAD_KEY, THERE, NOW)
    assert state(health) == "UP"


def test_a_refusal_from_before_a_reload_raises_no_suspicion(health: Health, clock: Clock) -> None:
    started_at = clock.now
    clock.now += 1
    health.reload()
    for destination in (HERE, THERE):
        health.suspected(BAD_KEY, destination, started_at)
    assert state(health) == "UP"


def test_an_endpoint_that_refuses_is_not_away(health: Health) -> None:
    away(health)
    health.suspected(BAD_KEY, HERE, NOW)
    assert state(health) == "UP"


def test_away_is_known_after_five_seconds(health: Health, clock: Clock) -> None:
    assert health.known_away_at is None
    away(health)
    known, at = [], clock.now + KNOWN_AWAY_AFTER_S
    for seconds in (4.9, 0.2):
        clock.now += seconds
        known.append((health.known_away, health.known_away_at))
    health.succeeded(NOW)
    known.append((health.known_away, health.known_away_at))
    assert known == [(False, at), (True, None), (False, None)]


def test_away_is_probed_by_one_then_two_at_growing_distance(health: Health, clock: Clock) -> None:
    away(health)
    delays, limits = [], []
    for _ in range(10):
        wake = health.wake_at([])
        assert wake is not None
        assert not health.may_start([])
        delays.append(wake - clock.now)
        clock.now = wake
        assert health.wake_at([]) is None
        limits.append(next(n for n in range(5) if not health.may_start([NOW] * n)))
        health.failed(DOWN, HERE)
        health.failed(DOWN, HERE)  # another one of the same round, which counts once
    for delay, whole in zip(delays, [1, 2, 4, 8, 16, 30, 30, 30, 30, 30], strict=True):
        assert 0.75 * whole <= delay <= whole
    assert limits == [1, 1, 1, 2, 2, 2, 2, 2, 2, 2]


def test_bad_keys_hold_the_queue_from_any_state(health: Health) -> None:
    health.refused(BAD_KEY, NOW)
    assert health.held == "InvalidAccessKeyId: no such key; fix it and reload"
    assert not health.may_start([])
    health.reload()
    away(health)
    health.refused(BAD_KEY, NOW)
    assert state(health) == "HELD"


def test_held_is_probed_every_five_minutes(health: Health, clock: Clock) -> None:
    health.refused(BAD_KEY, NOW)
    for error in (BAD_KEY, DOWN, BUSY, BAD_KEY):
        assert health.wake_at([]) == clock.now + HELD_PROBE_S
        clock.now += HELD_PROBE_S
        assert health.may_start([])
        assert not health.may_start([NOW])
        if error is BAD_KEY:
            health.refused(error, NOW)
        else:
            health.failed(error, HERE)
        assert not health.may_start([])
    clock.now += HELD_PROBE_S
    health.succeeded(started_at=clock.now)
    assert state(health) == "UP"
    assert health.may_start([NOW] * 24)


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


def test_an_answer_where_there_was_no_connection_brings_the_next_probe_forward(health: Health) -> None:
    """Not while PUTs are known to fail: that the endpoint answers is then no news."""
    away(health)
    assert not health.may_start([])
    health.reached()
    assert health.may_start([])
    for destination in (HERE, THERE, ELSEWHERE):
        health.failed(BUSY, destination)
    health.reached()
    assert not health.may_start([])


def test_a_queue_held_for_a_certificate_is_probed_once_a_connection_opens(health: Health) -> None:
    """That refutes nothing of refused keys."""
    expired = AttemptError("TLSRefused", "the certificate has expired")
    health.refused(BAD_KEY, NOW)
    health.reached()
    assert not health.may_start([])
    health.refused(expired, NOW)
    health.reached()
    assert (health.may_start([]), state(health)) == (True, "HELD")
    health.refused(expired, NOW)
    assert not health.may_start([])
    health.refused(BAD_KEY, NOW)
    assert not health.unreached


def test_without_any_answer_one_destination_is_enough(health: Health) -> None:
    """A neutral request was not answered either, so it is not that destination's fault; a small request may end it."""
    closed = AttemptError("ConnectionClosed", "closed")
    for _ in range(3):
        health.failed(closed, HERE)
    assert not health.away
    for _ in range(2):
        health.failed(closed, HERE, is_unanswered=True)
    assert (health.away, health.unreached) == (True, True)


def test_after_a_reload_in_an_outage_one_attempt_finds_out_at_once(health: Health) -> None:
    """Nobody has answered yet, so the endpoint is not back; clients wait as they do when it has just gone."""
    away(health)
    health.reload()
    assert (health.away, health.known_away, bool(health.away_reason)) == (True, False, True)
    assert (health.may_start([]), health.may_start([NOW] * 24)) == (True, False)
    health.succeeded(0.0)
    assert (health.away, health.may_start([NOW] * 24)) == (False, True)
