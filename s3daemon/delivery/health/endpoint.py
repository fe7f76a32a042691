"""Whether the endpoint is away or the queue is held, and so how many attempts may start. Pure: it never sleeps.

Without it a queue of 54 000 transfers would overload an endpoint that was down, and make attempts with keys that are
refused. It also says when waiting clients should be deferred at once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code
from s3daemon.model.request import Destination
from s3daemon.model.verdict import ACCESS_DENIED, UNREACHED

#: One failure may be bad luck of one transfer, two a lost connection; three without a success in between are an outage.
AWAY_AFTER_FAILURES = 3
#: A waiting client does not notice a shorter outage; in a longer one, hooks must not wait 30 s for each image. Seconds.
KNOWN_AWAY_AFTER_S = 5.0
PROBE_FIRST_S = 1.0
#: The longest time between probes, seconds: half of the back-off's maximum, since there are at most two probes and all
#: transfers wait for them. After an outage of any length, transfers continue within one exposure.
PROBE_MAX_S = 30.0
#: While no connection can be opened, a small request tries this often whether one can, seconds: it costs nothing, and
#: transfers continue within five seconds of the store's return.
ASK_EVERY_S = 3.0
#: The number of probes at a time: one in the first three rounds, then two, of different transfers, so that one that
#: always fails, or hangs, does not hide the recovery.
PROBES_FIRST, PROBES_MAX, PROBES_MORE_AFTER = 1, 2, 3
#: A probe that takes longer, such as a large file, or one without an answer, does not hide the recovery: it counts as a
#: probe for so long, seconds. While nothing is answered, each attempt ends after a minute: then six are in flight.
PROBE_ALONE_S = 10.0
#: The time between probes while the queue is held, seconds. People correct settings and reload; a probe finds out what
#: was corrected at the store, of which the daemon has no notice, but for a certificate (`ASK_EVERY_S`).
HELD_PROBE_S = 300.0


@dataclass(slots=True)
class _Stop:
    """Why not every attempt may start.

    Args:
        since: monotonic seconds; an attempt that started since then is a probe.
        reason: one line with its code.
        probe_at: when the next probe may start, monotonic seconds.
        unreached: the last attempt had no connection, so small requests test whether one can be had.
    """

    since: float
    reason: str
    probe_at: float = 0.0
    unreached: bool = False


@dataclass(slots=True)
class _Away(_Stop):
    """The endpoint is away. `rounds` of probes have failed, the attempts that showed the outage included."""

    rounds: int = 0


@dataclass(slots=True)
class _Held(_Stop):
    """The queue is held. It `is_denial`: what may concern some destinations only."""

    is_denial: bool = False


class Health:
    """The state of the endpoint, and so how many attempts may start.

        state  event                                           next   what may start in it
        -----  -----                                           ----   -------------------
        UP     succeeded                                       UP     everything
        UP     failed, 3 times in a row                        AWAY
        AWAY   succeeded, or suspected with an answer          UP     1 probe, later 2, each after 1 s ... 30 s;
        AWAY   failed                                          AWAY     while it answers, live transfers too
        AWAY   reload                                          AWAY   the next probe at once
        AWAY   a small request is answered, none was before    AWAY   the next probe at once
        any    refused; or suspected at 2 destinations         HELD   1 probe each 5 minutes;
               with the same code                                       after a denial, live transfers too
        HELD   succeeded, if it started since; reload          UP
        HELD   failed or suspected                             HELD
        HELD   a small request is answered, none was before    HELD   the next probe at once

    Failures and suspicions since the last success count. A failed connection always counts, since no transfer is to
    blame for it, and so does an unanswered attempt if a neutral request is not answered either. Any other failure
    counts once per destination: one object that the store cannot take is not an outage; and not at all if its transfer
    had failed before the last success already, or if the store has been silent to it since before an attempt started
    that has succeeded: such a silence is of an outage that is over. A probe is an attempt that started in the outage:
    those from before neither delay it nor count as one. It counts as one for 10 s, since it may take long. Nor may
    objects that always fail stop others: live transfers, which have not failed yet, may start while the endpoint is
    away but answers, and while the queue is held for a denial, which keys that may write elsewhere get too. The first
    success ends either; a hold only if its attempt started after the hold began. A refusal holds the queue only if its
    attempt started after the last reload.

    Args:
        rng: jitter.
        monotonic: a monotonic clock in seconds.
    """

    def __init__(self, rng: random.Random, monotonic: Clock) -> None:
        self._rng = rng
        self._monotonic = monotonic
        self._reloaded_at = self._succeeded_at = self._success_began_at = -math.inf
        self._set_up()

    def _set_up(self, suspects: dict[str, Destination] | None = None) -> None:
        self._stop: _Away | _Held | None = None
        self._failures = 0  # since the last success, while it is neither away nor held
        self._failed: set[Destination] = set()
        self._suspects = suspects or {}  # by code, the first destination

    @property
    def held(self) -> str:
        """Why the queue is held and what to do, one line with its code; empty when it is not."""
        return self._stop.reason if isinstance(self._stop, _Held) else ""

    @property
    def away(self) -> bool:
        """Whether the endpoint does not answer, or answers that it cannot serve."""
        return isinstance(self._stop, _Away)

    @property
    def away_reason(self) -> str:
        """The failure that showed that the endpoint is away, one line with its code; empty when it is not."""
        return self._stop.reason if isinstance(self._stop, _Away) else ""

    @property
    def known_away(self) -> bool:
        """Whether the endpoint has been away for so long that waiting clients should be deferred at once."""
        return isinstance(self._stop, _Away) and self._monotonic() >= self._stop.since + KNOWN_AWAY_AFTER_S

    @property
    def known_away_at(self) -> float | None:
        """From when on waiting clients should be deferred, monotonic seconds, if that is still to come; else None."""
        if not isinstance(self._stop, _Away) or self.known_away:
            return None
        return self._stop.since + KNOWN_AWAY_AFTER_S

    @property
    def unreached(self) -> bool:
        """Whether the endpoint is away, or held for its certificate, and small requests test for its return."""
        return self._stop is not None and self._stop.unreached

    @property
    def admits_new(self) -> bool:
        """Whether live transfers may start: it answers, if only with errors, and is not held except for a denial."""
        return self._stop.is_denial if isinstance(self._stop, _Held) else not self.unreached

    def succeeded(self, started_at: float) -> None:
        """Note that the endpoint answered an attempt that started at `started_at` (monotonic seconds)."""
        self._succeeded_at = self._monotonic()
        self._success_began_at = max(self._success_began_at, started_at)
        if not (isinstance(self._stop, _Held) and started_at < self._stop.since):
            self._set_up()

    def refused(self, error: AttemptError, started_at: float) -> None:
        """Note that an attempt ended in an error that every transfer would get."""
        if not self.held and started_at >= self._reloaded_at:
            cure = "" if "reload" in error.text else "; fix it and reload"
            reason, is_denial = f"{error.code}: {error.text}{cure}", error.code == ACCESS_DENIED
            self._set_up()
            self._stop = _Held(self._monotonic(), reason, is_denial=is_denial)
        if isinstance(self._stop, _Held):
            self._stop.unreached = error.code == Code.TLS_REFUSED
        self._delay_held_probe()

    def suspected(self, error: AttemptError, destination: Destination, started_at: float) -> None:
        """Note a refusal that may concern all transfers, or this destination alone."""
        if not self.held and started_at >= self._reloaded_at:
            if error.status:
                self._set_up(self._suspects)  # whatever is refused, it answers
            if self._suspects.setdefault(error.code, destination) != destination:
                self.refused(error, started_at)
        self._delay_held_probe()

    def failed(
        self,
        error: AttemptError,
        destination: Destination,
        *,
        started_at: float = math.inf,
        is_unanswered: bool = False,
        failed_since: float = math.inf,
    ) -> None:
        """Note that an attempt ended in an error for which the endpoint may be to blame.

        Args:
            error: the attempt's.
            destination: of its transfer.
            started_at: when the attempt started, monotonic seconds; infinite: just now.
            is_unanswered: a neutral request was not answered either, which counts like a failed connection.
            failed_since: when its transfer failed for the first time, monotonic seconds; infinite if never before.
        """
        now, is_unreached = self._monotonic(), is_unanswered or error.code in UNREACHED
        if self._stop is None:
            is_past = error.silent_s > 0.0 and now - error.silent_s < self._success_began_at
            is_its_own = not is_unreached and (is_past or failed_since < self._succeeded_at)
            if not is_its_own and self._count(destination, is_unreached=is_unreached) >= AWAY_AFTER_FAILURES:
                self._stop = _Away(now, f"{error.code}: {error.text}")
                self._end_round(self._stop, is_unreached=is_unreached)
        elif isinstance(self._stop, _Away) and started_at >= self._stop.since and now >= self._stop.probe_at:
            self._end_round(self._stop, is_unreached=is_unreached)  # else it was counted with the round before
        self._delay_held_probe()

    def _count(self, destination: Destination, *, is_unreached: bool) -> int:
        """Count a failure, once for each destination unless there was no connection; return how many there are now."""
        if is_unreached or destination not in self._failed:
            self._failures += 1
        self._failed.add(destination)
        return self._failures

    def _end_round(self, away: _Away, *, is_unreached: bool) -> None:
        """Note that probes have failed: the next one comes later."""
        delay_s = min(PROBE_FIRST_S * 2.0 ** min(away.rounds, 16), PROBE_MAX_S) * self._rng.uniform(0.75, 1.0)
        away.unreached, away.probe_at, away.rounds = is_unreached, self._monotonic() + delay_s, away.rounds + 1

    def _delay_held_probe(self) -> None:
        if isinstance(self._stop, _Held) and self._monotonic() >= self._stop.probe_at:
            self._stop.probe_at = self._monotonic() + HELD_PROBE_S

    def reached(self) -> None:
        """Note that a small request was answered: a probe may start now, if the last attempt had no connection."""
        if self._stop is not None and self._stop.unreached:
            self._stop.unreached, self._stop.probe_at = False, self._monotonic()

    def reload(self) -> None:
        """Forget what is known: new settings are in force. While the endpoint is away the next attempt is a probe."""
        reason = self.away_reason
        self._reloaded_at = self._monotonic()
        self._set_up()
        if reason:
            self._stop = _Away(self._reloaded_at, reason)

    def may_start(self, started: Iterable[float]) -> bool:
        """Return whether one more attempt may start.

        Args:
            started: when those in flight started, monotonic seconds.
        """
        return self.wake_at(started) is None

    @property
    def next_probe_s(self) -> float | None:
        """Seconds until the next probe may start; None while every attempt may."""
        return None if self._stop is None else max(0.0, self._stop.probe_at - self._monotonic())

    def wake_at(self, started: Iterable[float]) -> float | None:
        """Return the monotonic time from which `may_start` is true if nothing else happens; None: it is true now.

        Args:
            started: as for `may_start`.
        """
        if self._stop is None:
            return None
        now, limit = self._monotonic(), PROBES_FIRST
        if now < self._stop.probe_at:
            return self._stop.probe_at
        if isinstance(self._stop, _Away) and self._stop.rounds > PROBES_MORE_AFTER:
            limit = PROBES_MAX
        probes = sorted(at for at in started if at >= self._stop.since and at + PROBE_ALONE_S > now)
        return probes[-limit] + PROBE_ALONE_S if len(probes) >= limit else None
