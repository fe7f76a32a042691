"""What is known of the endpoint, and so how many attempts may start, and of the keys, when it refuses them.

`Health` is a state machine with no sleep. It keeps a queue of 54 000 transfers from hammering an endpoint that is down,
and from spending its attempts on keys that are refused; and it says when waiting clients are better deferred at once.

`KeyEvidence` finds out whether the keys are at fault. One refusal may be this destination's: a proxy that normalizes
paths breaks the signatures of some keys only, and a denial is usually the bucket's. So a neutral request of our own is
sent, signed with the same keys, and its answer decides together with what the keys have done before
(`model.verdict.keys_after`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code
from s3daemon.model.record import MessageId, Priority
from s3daemon.model.request import Destination
from s3daemon.model.verdict import UNREACHED, Keys, keys_after
from s3daemon.units import clock_time, span

_log = logging.getLogger(__name__)

Ask = Callable[[], Awaitable[None]]
"""Sends a signed request that concerns no destination; AttemptError when it is refused or has no answer."""

#: One failure may be bad luck of one transfer, two a lost connection; three without a success in between are an outage.
AWAY_AFTER_FAILURES = 3
#: A shorter outage is not noticed by a waiting client; in a longer one, hooks must not wait 30 s for each image.
KNOWN_AWAY_AFTER_S = 5.0
PROBE_FIRST_S = 1.0
#: Half of the back-off's maximum: there are at most two probes, so they cost nothing, and all transfers wait for them.
#: After an outage of any length, transfers go on within one exposure.
PROBE_MAX_S = 30.0
#: While no connection is to be had, a small request asks this often whether one is: it costs nothing, and transfers go
#: on within five seconds of the store's return.
ASK_EVERY_S = 3.0
#: One probe first. From the fourth round on two, of different transfers: one that always fails, or hangs, must not hide
#: the recovery.
PROBES_FIRST, PROBES_MAX, PROBES_MORE_AFTER = 1, 2, 3
#: Of an answer to the neutral request after which there is no reason to send it again.
_CLEAR_STATUSES = range(400, 500)
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
        AWAY   a small request is answered where none was      AWAY   the next probe at once
        any    refused; or suspected at 2 destinations alike   HELD   1 probe each 5 minutes
        HELD   succeeded, if it started since; reload          UP
        HELD   failed or suspected                             HELD

    Failures and suspicions count since the last success. A failed connection always counts, since it concerns no
    transfer, and so does an attempt that is not answered if a neutral request is not answered either; any other failure
    counts once per destination: one object that the store cannot take is not an outage. An attempt
    that started before the hold does not lift it when it succeeds; one that started before a reload does not hold the
    queue when it is refused.

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
        self._failed: set[Destination] = set()
        self._suspects: dict[str, Destination] = {}  # by code, the first destination
        self._rounds = 0
        self._probe_at = 0.0
        self.away_reason = ""  #: the failure that made it away, or came before that, one line with its code
        self.unreached = False  #: away, and the last attempt found no connection: a small request tells of a return

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

    def suspected(self, error: AttemptError, destination: Destination, started_at: float) -> None:
        """Note a refusal that may concern all transfers, or this destination alone."""
        now = self._monotonic()
        if started_at >= self._reloaded_at and not self.held:
            suspects = self._suspects
            if error.status:
                self._set_up()  # whatever is refused, it answers
            self._suspects = suspects
            if suspects.setdefault(error.code, destination) != destination:
                self.refused(error, started_at)
        self._delay_held_probe(now)

    def failed(self, error: AttemptError, destination: Destination, *, is_unanswered: bool = False) -> None:
        """Note that an attempt ended in an error for which the endpoint may be to blame.

        Args:
            error: the attempt's.
            destination: of its transfer.
            is_unanswered: a neutral request was not answered either, so it is as if no connection was to be had.
        """
        now = self._monotonic()
        if not self.held:
            was_away = self.away
            self._count(destination, now, is_unreached=is_unanswered or error.code in UNREACHED)
            if not was_away:
                self.away_reason = f"{error.code}: {error.text}"
        self._delay_held_probe(now)

    def _delay_held_probe(self, now: float) -> None:
        if self.held and now >= self._probe_at:
            self._probe_at = now + HELD_PROBE_S

    def _count(self, destination: Destination, now: float, *, is_unreached: bool) -> None:
        if is_unreached or destination not in self._failed:
            self._failures += 1
        if len(self._failed) < AWAY_AFTER_FAILURES:
            self._failed.add(destination)
        if self._failures < AWAY_AFTER_FAILURES:
            return
        if self._away_since is None:
            self._away_since = now
        elif now < self._probe_at:
            return  # it belongs to the round that was counted already
        self.unreached = is_unreached
        delay = min(PROBE_FIRST_S * 2.0 ** min(self._rounds, 16), PROBE_MAX_S)
        self._probe_at = now + delay * self._rng.uniform(0.75, 1.0)
        self._rounds += 1

    def reached(self) -> None:
        """Note that a small request was answered: the next probe need not wait, unless PUTs are known to fail."""
        if self.unreached:
            self.unreached, self._probe_at = False, self._monotonic()

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

    @property
    def next_probe_s(self) -> float | None:
        """Seconds until an attempt tries whether the endpoint is back, or takes the keys; None while all may start."""
        return max(0.0, self._probe_at - self._monotonic()) if self.held or self.away else None

    def wake_at(self) -> float | None:
        """Return the monotonic time from which `may_start` may be true without another event; None: there is none."""
        waits = (self.held or self.away) and self._monotonic() < self._probe_at
        return self._probe_at if waits else None


class Outages:
    """Notes when the endpoint goes away and is back, and when the queue is held and released: an entry for each.

    Args:
        health: to follow.
        monotonic: monotonic seconds.
        wall: seconds since the epoch.

    Attributes:
        since_usec: since when it is away or held, microseconds since the epoch; None while it is neither.
    """

    def __init__(self, health: Health, monotonic: Clock, wall: Clock) -> None:
        self._health = health
        self._monotonic = monotonic
        self._wall = wall
        self._state: tuple[bool, bool] = False, False
        self._began: dict[str, float] = {}
        self.since_usec: int | None = None

    def note(self) -> None:
        """Compare with what was last noted; called after whatever may have changed the health."""
        before, self._state = self._state, (bool(self._health.held), self._health.away)
        if before == self._state:
            return
        (was_held, was_away), (held, away) = before, self._state
        if was_away and not away:
            self._end(
                "away", MessageId.BACK, "the endpoint is back" if not held else "the endpoint answers, and refuses"
            )
        if was_held and not held:
            self._end("held", MessageId.RELEASED, "the queue is released")
        if held and not was_held:
            text = f"the queue is held: {self._health.held}; nothing is lost, fix it and reload"
            self._begin("held", MessageId.HELD, text, logging.CRITICAL)
        if away and not was_away:
            text = f"the endpoint is away: {self._health.away_reason}; transfers are kept and tried until it is back"
            self._begin("away", MessageId.AWAY, text, logging.ERROR)

    def _begin(self, state: str, kind: MessageId, text: str, level: int) -> None:
        self._began[state] = self._monotonic()
        self.since_usec = round(self._wall() * 1e6)
        fields: dict[str, int | str] = {"MESSAGE_ID": kind.value, "S3DAEMON_SINCE_USEC": self.since_usec}
        if (next_s := self._health.next_probe_s) is not None:
            fields["S3DAEMON_DELAY_USEC"] = round(next_s * 1e6)
            text += f"; next attempt in {span(next_s)}"
        _log.log(level, "%s", text, extra={"journal": fields})

    def _end(self, state: str, kind: MessageId, text: str) -> None:
        seconds = self._monotonic() - self._began.pop(state)
        since_usec = round((self._wall() - seconds) * 1e6)
        self.since_usec = None
        fields = {"MESSAGE_ID": kind.value, "S3DAEMON_SINCE_USEC": since_usec, "PRIORITY": int(Priority.NOTICE)}
        _log.warning(
            "%s; it was %s for %s, since %s",
            text,
            state,
            span(seconds),
            clock_time(since_usec),
            extra={"journal": fields},
        )


async def ask_nothing() -> None:
    """Be the neutral request where there is none: nothing is learned from it."""
    raise AttemptError(Code.NO_ANSWER, "no neutral request was sent")


class KeyEvidence:
    """What is known of the keys in force. Belongs to the running event loop.

    Args:
        ask: sends the neutral request.
        clock: monotonic seconds.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[AttemptError | None] | None = None  # has not been sent yet
        self._in_force_since = -math.inf
        self._ever_accepted = False
        self._ever_stored = False
        self._doubtful: dict[str, float] = {}
        self._must_learn = True
        self._learning: asyncio.Task[None] | None = None

    def stored(self, started_at: float) -> None:
        """Note that an attempt that started at `started_at` (monotonic seconds) has stored its object.

        After the first one the neutral request is sent, until it has a clear answer: where good keys are allowed it, a
        later denial of it tells that the keys are bad. Ceph with `rgw_s3_auth_use_sts` says nothing else of keys that
        were replaced.
        """
        if started_at >= self._in_force_since:
            if self._must_learn:
                self._must_learn = False
                self._learning = asyncio.get_running_loop().create_task(self._learn())
            self._ever_stored = True
            self._doubtful = {id_: at for id_, at in self._doubtful.items() if at > started_at}

    def reload(self) -> set[str]:
        """Forget what is known: other keys may be in force.

        Returns:
            the ids of transfers that failed by a denial, if nothing was stored since: they deserve another attempt.
        """
        doubtful, self._doubtful = set(self._doubtful), {}
        self._in_force_since = self._clock()
        self._ever_accepted = self._ever_stored = False
        self._must_learn = True
        return doubtful

    def denied(self, transfer_id: str) -> None:
        """Note that a transfer has failed by a denial although the neutral request did not confirm the keys."""
        self._doubtful[transfer_id] = self._clock()

    async def examine(self, refusal: AttemptError, started_at: float) -> Keys:
        """Ask, and return what follows for the keys.

        Args:
            refusal: the attempt's error.
            started_at: when the attempt started, monotonic seconds.
        """
        asked_at = self._clock()
        neutral = None if started_at < self._in_force_since else await self.ask()
        found = keys_after(
            refusal,
            neutral,
            ever_accepted=self._ever_accepted,
            ever_stored=self._ever_stored,
            replaced=min(started_at, asked_at) < self._in_force_since,
        )
        self._ever_accepted |= found is Keys.GOOD
        return found

    async def _learn(self) -> None:
        since = self._in_force_since
        error = await self.ask()
        if since == self._in_force_since:
            self._ever_accepted |= error is None
            self._must_learn = error is not None and error.status not in _CLEAR_STATUSES

    async def ask(self) -> AttemptError | None:
        """Return the error of a neutral request that is sent from now on; all who wait for its turn share it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._send())
        return await asyncio.shield(self._next)

    async def _send(self) -> AttemptError | None:
        async with self._lock:
            self._next = None
            try:
                await self._ask()
            except AttemptError as exc:
                return exc
            except Exception as exc:
                _log.exception("a bug in the neutral request")
                return AttemptError(Code.INTERNAL, f"a bug: {type(exc).__name__}")
        return None
