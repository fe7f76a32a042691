"""What is known of the endpoint, and so how many attempts may start: a state machine without clock or sleep.

It keeps a queue of 54 000 transfers from hammering an endpoint that is down, and from burning its attempts on keys that
are refused; and it says when a waiting client is better told at once that it will have to wait.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from s3daemon.errors import AttemptError, FileError
from s3daemon.model.verdict import Verdict, blames_endpoint, judge

#: One failure may be one transfer's bad luck, two a lost connection; three without a success in between are an outage.
AWAY_AFTER_FAILURES = 3
#: Shorter is a glitch that a waiting client does not notice; longer, and hooks must not stand 30 s per image.
KNOWN_AWAY_AFTER_S = 5.0
PROBE_FIRST_S = 1.0
#: Half of a back-off's cap: probes are at most two, so they cost nothing, and what they delay is everybody. After an
#: outage of any length service is back within one exposure.
PROBE_MAX_S = 30.0
#: One probe first. From the fourth round on two, of different transfers: one that is poisoned or hangs must not hide
#: the recovery.
PROBES_FIRST, PROBES_MAX, PROBES_MORE_AFTER = 1, 2, 3
#: Keys and quotas are mended by people, who reload; this is for a mending on the other side, of which nobody tells us.
HELD_PROBE_S = 300.0


class Health:
    """What is known of the endpoint, and so how many attempts may start.

        state  event                                           next   what may start in it
        -----  -----                                           ----   -------------------
        UP     success                                         UP     everything
        UP     3 failures that blame the endpoint in a row     AWAY
        AWAY   success; reload                                 UP     1 probe, later 2, after 1 s ... 30 s each
        AWAY   failure that blames the endpoint                AWAY
        any    failure with the verdict HOLD                   HELD   1 probe each 5 minutes
        HELD   success of an attempt begun since; reload       UP
        HELD   any other failure                               HELD

    A failure that has an answer counts once per transfer in a row: one object that the store chokes on is not an
    outage. An attempt begun before the hold does not lift it when it succeeds; one begun before a reload does not hold
    the queue when it fails.

    Args:
        rng: jitter.
        monotonic: a monotonic clock in seconds.
    """

    def __init__(self, rng: random.Random, monotonic: Callable[[], float]) -> None:
        self._rng = rng
        self._monotonic = monotonic
        self._reloaded_at = -math.inf
        self._up()

    def _up(self) -> None:
        self.held = ""  #: why the queue is held, one line with its code; empty when it is not
        self._held_at = 0.0
        self._away_since: float | None = None
        self._failures = 0
        self._last_failed = ""
        self._rounds = 0
        self._probe_at = 0.0

    @property
    def away(self) -> bool:
        """The endpoint does not answer, or answers that it cannot serve."""
        return self._away_since is not None

    @property
    def known_away(self) -> bool:
        """Away for so long that waiting clients are better deferred at once."""
        return self._away_since is not None and self._monotonic() - self._away_since >= KNOWN_AWAY_AFTER_S

    def succeeded(self, began: float = math.inf) -> None:
        """An attempt that began at `began` (monotonic seconds; the default: just now) stored its object."""
        if not self.held or began >= self._held_at:
            self._up()

    def failed(self, error: AttemptError | FileError, transfer_id: str = "", began: float = math.inf) -> None:
        """An attempt of `transfer_id` that began at `began` (as above) ended in `error`."""
        now = self._monotonic()
        if judge(error) is Verdict.HOLD and began >= self._reloaded_at:
            if not self.held:
                self._up()
                self.held, self._held_at, self._probe_at = f"{error.code}: {error.text}", now, now + HELD_PROBE_S
        elif not self.held and blames_endpoint(error):
            self._count(error, transfer_id, now)
        if self.held and now >= self._probe_at and isinstance(error, AttemptError):
            self._probe_at = now + HELD_PROBE_S

    def _count(self, error: AttemptError | FileError, transfer_id: str, now: float) -> None:
        answered = isinstance(error, AttemptError) and error.status > 0
        if not (answered and transfer_id and transfer_id == self._last_failed):
            self._failures += 1
        self._last_failed = transfer_id
        if self._failures < AWAY_AFTER_FAILURES:
            return
        if self._away_since is None:
            self._away_since = now
        elif now < self._probe_at:
            return  # a straggler of the same round
        delay = min(PROBE_FIRST_S * 2.0 ** min(self._rounds, 16), PROBE_MAX_S)
        self._probe_at = now + delay * self._rng.uniform(0.75, 1.0)
        self._rounds += 1

    def reload(self) -> None:
        """New settings are in force: what was known of the old ones is void."""
        self._reloaded_at = self._monotonic()
        self._up()

    def may_start(self, in_flight: int) -> bool:
        """Whether one more attempt may start while `in_flight` others are on their way."""
        if not (self.held or self.away):
            return True
        more = self.away and self._rounds > PROBES_MORE_AFTER
        return in_flight < (PROBES_MAX if more else PROBES_FIRST) and self._monotonic() >= self._probe_at

    def wake_at(self) -> float | None:
        """The monotonic time at which `may_start` can next turn true by itself; None: it waits for no clock."""
        waits = (self.held or self.away) and self._monotonic() < self._probe_at
        return self._probe_at if waits else None
