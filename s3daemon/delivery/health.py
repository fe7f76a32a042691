"""What is known of the endpoint, and so how many attempts may start: a state machine with no sleep.

It keeps a queue of 54 000 transfers from hammering an endpoint that is down, and from spending its attempts on keys
that are refused; and it says when waiting clients are better deferred at once.
"""

from __future__ import annotations

import math
import random

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError

#: One failure may be bad luck of one transfer, two a lost connection; three without a success in between are an outage.
AWAY_AFTER_FAILURES = 3
#: A shorter outage is not noticed by a waiting client; in a longer one, hooks must not wait 30 s for each image.
KNOWN_AWAY_AFTER_S = 5.0
PROBE_FIRST_S = 1.0
#: Half of the back-off's maximum: there are at most two probes, so they cost nothing, and all transfers wait for them.
#: After an outage of any length, transfers go on within one exposure.
PROBE_MAX_S = 30.0
#: One probe first. From the fourth round on two, of different transfers: one that always fails, or hangs, must not hide
#: the recovery.
PROBES_FIRST, PROBES_MAX, PROBES_MORE_AFTER = 1, 2, 3
#: People fix keys and quotas, and reload; this is for what is fixed at the store without notice to the daemon.
HELD_PROBE_S = 300.0


class Health:
    """What is known of the endpoint, and so how many attempts may start.

        state  event                                           next   what may start in it
        -----  -----                                           ----   -------------------
        UP     succeeded                                       UP     everything
        UP     failed, 3 times in a row                        AWAY
        AWAY   succeeded; reload                               UP     1 probe, later 2, after 1 s ... 30 s each
        AWAY   failed                                          AWAY
        any    refused                                         HELD   1 probe each 5 minutes
        HELD   succeeded, if it started since; reload          UP
        HELD   failed                                          HELD

    A failure that has an answer counts once per transfer in a row: one object that the store cannot take is not an
    outage. An attempt that started before the hold does not lift it when it succeeds; one that started before a reload
    does not hold the queue when it is refused.

    Args:
        rng: jitter.
        monotonic: a monotonic clock in seconds.
    """

    def __init__(self, rng: random.Random, monotonic: Clock) -> None:
        self._rng = rng
        self._monotonic = monotonic
        self._reloaded_at = -math.inf
        self._set_up()

    def _set_up(self) -> None:
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
        """It has been away for so long that waiting clients are better deferred at once."""
        return self._away_since is not None and self._monotonic() - self._away_since >= KNOWN_AWAY_AFTER_S

    def succeeded(self, started_at: float) -> None:
        """Note that the endpoint answered an attempt that started at `started_at` (monotonic seconds)."""
        if not self.held or started_at >= self._held_at:
            self._set_up()

    def refused(self, error: AttemptError, started_at: float) -> None:
        """Note that an attempt ended in an error that every transfer would get."""
        now = self._monotonic()
        if started_at >= self._reloaded_at and not self.held:
            self._set_up()
            self.held, self._held_at, self._probe_at = f"{error.code}: {error.text}", now, now + HELD_PROBE_S
        self._delay_held_probe(now)

    def failed(self, error: AttemptError, transfer_id: str) -> None:
        """Note that an attempt ended in an error for which the endpoint is to blame."""
        now = self._monotonic()
        if not self.held:
            self._count(error, transfer_id, now)
        self._delay_held_probe(now)

    def _delay_held_probe(self, now: float) -> None:
        if self.held and now >= self._probe_at:
            self._probe_at = now + HELD_PROBE_S

    def _count(self, error: AttemptError, transfer_id: str, now: float) -> None:
        if error.status == 0 or transfer_id != self._last_failed:
            self._failures += 1
        self._last_failed = transfer_id
        if self._failures < AWAY_AFTER_FAILURES:
            return
        if self._away_since is None:
            self._away_since = now
        elif now < self._probe_at:
            return  # it belongs to the round that was counted already
        delay = min(PROBE_FIRST_S * 2.0 ** min(self._rounds, 16), PROBE_MAX_S)
        self._probe_at = now + delay * self._rng.uniform(0.75, 1.0)
        self._rounds += 1

    def reload(self) -> None:
        """Forget what is known: new settings are in force."""
        self._reloaded_at = self._monotonic()
        self._set_up()

    def may_start(self, in_flight: int) -> bool:
        """Return whether one more attempt may start while `in_flight` others are in flight."""
        if not (self.held or self.away):
            return True
        more = self.away and self._rounds > PROBES_MORE_AFTER
        return in_flight < (PROBES_MAX if more else PROBES_FIRST) and self._monotonic() >= self._probe_at

    def wake_at(self) -> float | None:
        """Return the monotonic time from which `may_start` may be true without another event; None: there is none."""
        waits = (self.held or self.away) and self._monotonic() < self._probe_at
        return self._probe_at if waits else None
