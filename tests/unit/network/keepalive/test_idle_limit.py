"""What is learned of a server that closes idle connections: on a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from lab.keeping import Clock

from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.idle_limit import SUSPECTED_FOR_S, TRIAL_EVERY_S, Closes, IdleLimit, SeenCloses
from s3daemon.network.keepalive.small_request import KEPT_S

WANTED_S = 10.0
#: When, the idle times of those closed, and the longest of those still open, all in seconds.
Look = tuple[float, list[float], float]
LEARNED: list[Look] = [(0, [6.0] * 30, 0), (7, [6.2] * 29, 0.5)]


@pytest.mark.parametrize(
    ("looks", "interval_s"),
    [
        pytest.param([(0, [7.0] * 30, 0)], WANTED_S, id="a restart of an idle server"),
        pytest.param([(0, [7.0] * 9, 7.0), (0.1, [7.1] * 9, 0)], WANTED_S, id="a restart that is seen in two looks"),
        pytest.param([(0, [2.1, 7.0], 0), (9, [2.1, 7.0], 0)], WANTED_S, id="two restarts under uploads"),
        pytest.param([(0, [7.0] * 30, 0), (8, [], 7.5), (20, [7.0] * 30, 0)], WANTED_S, id="connections lived longer"),
        pytest.param([(0, [7.0] * 8, 7.5), (8, [], 7.5), (16, [7.0] * 8, 7.5)], WANTED_S, id="others live longer"),
        pytest.param([(0, [7.0] * 30, 0), (9, [4.0] * 30, 0)], WANTED_S, id="two restarts at different idle times"),
        pytest.param([(0, [7.0], 0), (8 + SUSPECTED_FOR_S, [7.0], 0)], WANTED_S, id="two restarts on different days"),
        pytest.param([(0, [0.5], 0), (1, [0.5], 0), (2, [0.5], 0)], WANTED_S, id="closed after each answer"),
        pytest.param([(0, [7.0] * 30, 0), (8, [7.0] * 30, 0)], WANTED_S, id="two restarts, one after the other"),
        pytest.param(
            [(0, [7.0] * 30, 0), (8, [0.9, *[7.0] * 29], 0.1)], WANTED_S, id="what was used lately closed too"
        ),
        pytest.param([(0, [30.0], 0), (31, [30.0], 0.5)], WANTED_S, id="a limit that the interval serves"),
        pytest.param(LEARNED, 3.0, id="twice after the same idle time"),
        pytest.param([(0, [2.0], 0), (3, [2.0], 0.5)], 1.0, id="no more than one a second"),
        pytest.param([(0, [6.0], 6.0), (7, [6.9], 6.0)], 3.0, id="seen up to a second late"),
        pytest.param([(at, [6.0], 5.9) for at in range(6)], 3.0, id="one connection after the other"),
        pytest.param([*LEARNED, (20, [], 6.5)], 3.0, id="at the limit"),
        pytest.param([*LEARNED, (20, [], 7.5)], WANTED_S, id="beyond the limit"),
        pytest.param([*LEARNED, (20, [4.0], 0), (25, [4.0], 0.5)], 2.0, id="a shorter limit"),
        pytest.param([*LEARNED, (20, [2.9] * 30, 0)], 3.0, id="a restart after a limit was learned"),
    ],
)
def test_the_interval(looks: list[Look], interval_s: float, clock: Clock) -> None:
    """A limit is two closes in a row at the same idle time while none lives longer; a longer life ends it."""
    limit, start = IdleLimit(WANTED_S, clock), clock.now
    for at, closed, longest_open in looks:
        clock.now = start + at
        before = limit.interval_s
        assert limit.observe(closed, longest_open) == (limit.interval_s != before)
    assert limit.interval_s == interval_s


def test_a_limit_is_tried_again(clock: Clock) -> None:
    """While one is known, every few minutes one connection rests for longer; a close puts the next try off."""
    limit = IdleLimit(WANTED_S, clock)
    assert not limit.is_trial_due
    for _ in range(2):
        limit.observe([6.0], 0.5)
        clock.now += 6
    clock.now -= 6
    for _ in range(2):
        clock.now += TRIAL_EVERY_S - 1
        is_due = [limit.is_trial_due]
        clock.now += 1
        is_due.append(limit.is_trial_due)
        assert is_due == [False, True]
        limit.observe([6.0], 0)
    clock.now += TRIAL_EVERY_S
    limit.observe([], 8.0)
    assert (limit.is_trial_due, limit.interval_s) == (False, WANTED_S)


@dataclass(eq=False)
class Resting(Connection):
    """What `Closes` looks at of a connection; it was used at 0 s."""

    is_open: bool = True
    answered: bool = True
    persistent: bool = True
    requests: int = 1
    used_at: float = 0.0


@pytest.mark.parametrize(
    ("case", "changes", "closed_after_s", "longest_open_s"),
    [
        ("closed by the server", {"is_open": False}, [6.0], 0.0),
        ("still open", {}, [], 6.0),
        ("open, but not answered yet", {"answered": False}, [], 0.0),
        ("closed while another request was sent", {"is_open": False, "requests": 2}, [], 0.0),
        ("opened again, and closed without an answer", {"is_open": False, "answered": False}, [], 0.0),
        ("closed as its answer said", {"is_open": False, "persistent": False}, [], 0.0),
    ],
)
def test_which_closes_tell_of_an_idle_limit(
    case: str, changes: dict[str, Any], closed_after_s: list[float], longest_open_s: float
) -> None:
    """Those of connections that rested since they were last seen open; each is told once."""
    closes, connection = Closes(), Resting()
    closes.look([connection], 1.0)
    for name, value in changes.items():
        setattr(connection, name, value)
    assert closes.look([connection], 6.0) == SeenCloses(closed_after_s, longest_open_s, ends_after_answers=False), case
    assert closes.look([connection], 7.0).closed_after_s == [], case


CLOSED = {"is_open": False}


@pytest.mark.parametrize(
    ("case", "changes", "now", "is_told"),
    [
        ("closed soon after it", CLOSED, KEPT_S - 0.1, True),
        ("closed later", CLOSED, KEPT_S, False),
        ("still open", {}, 1.0, False),
        ("closed as the answer said", {**CLOSED, "persistent": False}, 1.0, True),
        ("closed later, as the answer said", {**CLOSED, "persistent": False}, KEPT_S, False),
        ("closed while another request was sent", {**CLOSED, "requests": 2}, 1.0, False),
    ],
)
@pytest.mark.parametrize("is_seen_open", [False, True])
def test_which_closes_cast_doubt_on_the_small_request(
    case: str, changes: dict[str, Any], now: float, is_told: bool, is_seen_open: bool
) -> None:
    """Those soon after its answer, whether or not the connection was seen open between the two; each is told once."""
    closes, connection = Closes(), Resting()
    closes.asked_over(connection)
    if is_seen_open:
        closes.look([connection], 0.5)
    for name, value in changes.items():
        setattr(connection, name, value)
    assert closes.look([connection], now).ends_after_answers is is_told, case
    assert not closes.look([connection], now).ends_after_answers, case


def test_which_closes_cast_no_doubt_on_the_small_request() -> None:
    """One in use, one over which another request was found since, and one that was closed together with others."""
    for rested_s, is_told in ((KEPT_S, False), (KEPT_S / 2, True)):
        closes, connection, other = Closes(), Resting(), Resting(used_at=1.0 - rested_s)
        closes.look([other], 0.0)
        closes.asked_over(connection)
        connection.is_open = other.is_open = False
        seen = closes.look([connection, other], 1.0)
        assert (seen.closed_after_s, seen.ends_after_answers) == ([1.0, rested_s], is_told)
    closes, connection = Closes(), replace(connection)
    closes.asked_over(connection)
    assert not closes.look([], 1.0).ends_after_answers, "in use"
    assert not closes.look([connection], 1.0).ends_after_answers, "in use since"
    closes.asked_over(connection)
    closes.forget_asked()
    assert not closes.look([connection], 1.0).ends_after_answers, "another request keeps it"
