"""Learn how long a server keeps idle connections, from those that it closes. Pure: the time is passed in.

`Closes` sees which ones the server closed, from one look at them to the next; `IdleLimit` says, from that, how often to
use each idle connection.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from s3daemon.clock import Clock
from s3daemon.network.connection import Connection
from s3daemon.network.keepalive.small_request import INTERVAL_MIN_S, KEPT_S

#: How often the connections are looked at, seconds: an idle time at which a close was seen is too long by up to this.
SWEEP_S = 1.0
#: A limit shows again as soon as the connections that were opened again have been idle for as long; or this much later,
#: as uploads use them meanwhile. Seconds.
SUSPECTED_FOR_S = 60.0
#: How often one connection rests for longer than the limit that was learned, to find out whether it still holds.
TRIAL_EVERY_S = 300.0


class SeenCloses(NamedTuple):
    """What one look at the idle connections showed.

    Args:
        closed_after_s: for how long each had been idle that the server closed since the last look, seconds.
        longest_open_s: the longest time that an open one has been idle, seconds; 0 when none is open.
        ends_after_answers: one was closed soon after the answer to a small request. Where others that had rested for
            longer were closed as well, it was not that answer which ended it.
    """

    closed_after_s: list[float]
    longest_open_s: float
    ends_after_answers: bool


class Closes:
    """Tells which idle connections the server closed, from one look at them to the next.

    A connection that carried another request since says nothing: that may have ended it.
    """

    def __init__(self) -> None:
        #: Idle and open at the last look, with the number of requests that each had carried by then.
        self._open: dict[Connection, int] = {}
        #: Over which the last request was a small one, with the number of requests that each had carried with it.
        self._asked_over: dict[Connection, int] = {}

    def asked_over(self, connection: Connection) -> None:
        """Note that the last request over `connection` was a small one, and was answered."""
        self._asked_over[connection] = connection.requests

    def forget_asked(self) -> None:
        """Forget over which small requests went: another one is used now."""
        self._asked_over.clear()

    def look(self, idle: Iterable[Connection], now: float) -> SeenCloses:
        """Compare the idle connections, at monotonic time `now`, with what they were at the last look."""
        idle_s = {each: now - each.used_at for each in idle}
        carried = self._open | self._asked_over
        closed_after_s = [
            idle_s[each]
            for each in idle_s
            if carried.get(each) == each.requests and each.answered and each.persistent and not each.is_open
        ]
        recent = [each for each in idle_s if self._asked_over.get(each) == each.requests and idle_s[each] < KEPT_S]
        self._open = {each: each.requests for each in idle_s if each.is_open}
        self._asked_over = {each: each.requests for each in recent if each.is_open}
        return SeenCloses(
            closed_after_s,
            longest_open_s=max((idle_s[each] for each in self._open if each.answered), default=0.0),
            ends_after_answers=len(self._asked_over) < len(recent) and max(closed_after_s, default=0.0) < KEPT_S,
        )


class IdleLimit:
    """Learns after which idle time the server closes a connection, and forgets it when one lives for longer.

    A restart of the server closes connections too, all at one moment, and they may well have been idle for the same
    time. So one close is a suspicion. A second one at the same idle time, while no connection lives longer, is a limit.
    A server that is restarted again and again may close them after the same time as well; so while a limit is
    suspected, one connection is used all the time: it outlives a limit, but no restart.

    Args:
        wanted_s: how often to use an idle connection while no limit is known, seconds.
        clock: monotonic seconds.
    """

    def __init__(self, wanted_s: float, clock: Clock) -> None:
        self._wanted_s = wanted_s
        self._clock = clock
        self._limit_s = math.inf
        self._suspected_s = math.inf
        self._suspected_at = -math.inf
        self._trial_at = math.inf

    @property
    def interval_s(self) -> float:
        """How often to use each idle connection, seconds."""
        return min(self._wanted_s, max(INTERVAL_MIN_S, self._limit_s / 2))

    @property
    def limit_s(self) -> float | None:
        """The idle time after which the server closes a connection, seconds; None when it is not known to."""
        return self._limit_s if self._limit_s < math.inf else None

    @property
    def is_suspected(self) -> bool:
        """Whether the next closes may show a limit that is not known yet, so that one connection should not rest."""
        is_new = self._suspected_s < self._limit_s
        return is_new and self._clock() - self._suspected_at <= self._suspected_s + SUSPECTED_FOR_S

    @property
    def is_trial_due(self) -> bool:
        """Whether one connection should rest as if there were no limit, to find out whether it still holds."""
        return self._clock() >= self._trial_at

    def observe(self, closed: Sequence[float], longest_open: float) -> bool:
        """Take in what one look at the connections showed.

        Args:
            closed: for how long each that the server closed since the last look had been idle, seconds.
            longest_open: the longest time that an open one has been idle, seconds; more than 0 when any is open.

        Returns:
            Whether `interval_s` changed.
        """
        before = self.interval_s
        if closed and min(closed) >= KEPT_S and max(closed) - min(closed) <= 2 * SWEEP_S:
            self._note_close(min(closed), is_any_open=longest_open > 0)
        if longest_open >= self._suspected_s + SWEEP_S / 2:
            self._suspected_s = math.inf
        if longest_open > self._limit_s + SWEEP_S:
            self._limit_s = self._trial_at = math.inf
        return self.interval_s != before

    def _note_close(self, idle_s: float, *, is_any_open: bool) -> None:
        now = self._clock()
        since_s = now - self._suspected_at
        is_alike = abs(idle_s - self._suspected_s) <= SWEEP_S and since_s <= idle_s + SUSPECTED_FOR_S
        is_same_moment = is_alike and since_s < idle_s - SWEEP_S  # seen in two looks
        if is_alike and not is_same_moment and is_any_open:  # else it was a restart
            self._limit_s = min(self._limit_s, idle_s, self._suspected_s)
        if not is_same_moment:
            self._suspected_s, self._suspected_at = idle_s, now
        self._trial_at = now + TRIAL_EVERY_S if self._limit_s < math.inf else math.inf
