"""Track whether the endpoint is away or the queue is held, how many attempts may start, and whether keys are valid.

`Health` is a state machine that never sleeps. Without it a queue of 54 000 transfers would overload an endpoint that
was down, and make attempts with keys that are refused. It also says when waiting clients should be deferred at once.

`Outages` writes a journal entry when a state begins or ends.

`StoringWatch` notices that nothing is stored for whatever reason, also where nothing is stopped for it.

`KeyEvidence` finds out whether the access keys are at fault. One refusal may concern its destination alone: a proxy
that normalizes paths breaks the signatures of some object keys only, and a denial usually concerns the bucket. So a
neutral request, which names no destination, is sent with the same access keys. Its answer, together with what these
keys were accepted for before, decides (`model.verdict.keys_after`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code
from s3daemon.model.record import MessageId, Priority
from s3daemon.model.request import Destination
from s3daemon.model.verdict import ACCESS_DENIED, CLIENT_STATUSES, UNREACHED, Keys, keys_after
from s3daemon.units import clock_time, plural, span

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Ask = Callable[[], Awaitable[None]]
"""Sends the neutral request, which is signed and names no destination; AttemptError: it is refused or unanswered."""

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
#: A neutral request after a success that had no clear answer is repeated, after a later success, no sooner than this,
#: seconds.
LEARN_AGAIN_S = 60.0
#: How long attempts must fail until that is shown, seconds: as long as a hook waits. By then the first delays are over.
FAILING_AFTER_S = 30.0
#: The number of probes at a time: one in the first three rounds, then two, of different transfers, so that one that
#: always fails, or hangs, does not hide the recovery.
PROBES_FIRST, PROBES_MAX, PROBES_MORE_AFTER = 1, 2, 3
#: A probe that takes longer, such as a large file, or one without an answer, does not hide the recovery: it counts as a
#: probe for so long, seconds. While nothing is answered, each attempt ends after a minute: then six are in flight.
PROBE_ALONE_S = 10.0
#: The time between probes while the queue is held, seconds. People correct settings and reload; a probe finds out what
#: was corrected at the store, of which the daemon has no notice, but for a certificate (`ASK_EVERY_S`).
HELD_PROBE_S = 300.0


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

    def _set_up(self) -> None:
        self.held = ""  #: why the queue is held and what to do, one line with its code; empty when it is not
        self._is_denial = False  # it is held for what may concern some destinations only
        self._held_at = 0.0
        self._away_since: float | None = None
        self._failures = 0
        self._failed: set[Destination] = set()
        self._suspects: dict[str, Destination] = {}  # by code, the first destination
        self._rounds = 0
        self._probe_at = 0.0
        self._last_failure = ""  # once away, the one that made it so
        #: away, or held for its certificate: the last attempt had no connection, so small requests test for its return
        self.unreached = False

    @property
    def away(self) -> bool:
        """Whether the endpoint does not answer, or answers that it cannot serve."""
        return self._away_since is not None

    @property
    def away_reason(self) -> str:
        """The failure that showed that the endpoint is away, one line with its code; empty when it is not."""
        return self._last_failure if self.away else ""

    @property
    def known_away(self) -> bool:
        """Whether it has been away for so long that waiting clients should be deferred at once."""
        return self._away_since is not None and self._monotonic() - self._away_since >= KNOWN_AWAY_AFTER_S

    @property
    def admits_new(self) -> bool:
        """Whether live transfers may start: it answers, if only with errors, and is not held except for a denial."""
        return (not self.held or self._is_denial) and not (self.away and self.unreached)

    def succeeded(self, started_at: float) -> None:
        """Note that the endpoint answered an attempt that started at `started_at` (monotonic seconds)."""
        self._succeeded_at = self._monotonic()
        self._success_began_at = max(self._success_began_at, started_at)
        if not self.held or started_at >= self._held_at:
            self._set_up()

    def refused(self, error: AttemptError, started_at: float) -> None:
        """Note that an attempt ended in an error that every transfer would get."""
        now = self._monotonic()
        if started_at >= self._reloaded_at and not self.held:
            self._set_up()
            cure = "" if "reload" in error.text else "; fix it and reload"
            self.held, self._held_at, self._probe_at = f"{error.code}: {error.text}{cure}", now, now + HELD_PROBE_S
            self._is_denial = error.code == ACCESS_DENIED
        if self.held:
            self.unreached = error.code == Code.TLS_REFUSED
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
        now = self._monotonic()
        is_unreached = is_unanswered or error.code in UNREACHED
        is_past = error.silent_s > 0.0 and now - error.silent_s < self._success_began_at
        is_its_own = not self.away and not is_unreached and (is_past or failed_since < self._succeeded_at)
        is_probe = self._away_since is None or started_at >= self._away_since
        if not self.held and not is_its_own and is_probe:
            was_away = self.away
            self._count(destination, now, is_unreached=is_unreached)
            if not was_away:
                self._last_failure = f"{error.code}: {error.text}"
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
        """Note that a small request was answered: a probe may start now, if the last attempt had no connection."""
        if self.unreached:
            self.unreached, self._probe_at = False, self._monotonic()

    def reload(self) -> None:
        """Forget what is known: new settings are in force. While the endpoint is away the next attempt is a probe."""
        reason = self.away_reason
        self._reloaded_at = self._monotonic()
        self._set_up()
        if reason:
            self._away_since, self._failures, self._last_failure = self._reloaded_at, AWAY_AFTER_FAILURES, reason

    def may_start(self, started: Iterable[float]) -> bool:
        """Return whether one more attempt may start.

        Args:
            started: when those in flight started, monotonic seconds.
        """
        return not (self.held or self.away) or (self._monotonic() >= self._probe_at and self._room_at(started) is None)

    def _room_at(self, started: Iterable[float]) -> float | None:
        """Return when a probe too many stops to count, monotonic seconds; None when there is room for one more now."""
        since = self._held_at if self.held else self._away_since or 0.0
        now = self._monotonic()
        limit = PROBES_MAX if self.away and self._rounds > PROBES_MORE_AFTER else PROBES_FIRST
        probes = sorted(at for at in started if at >= since and at + PROBE_ALONE_S > now)
        return probes[-limit] + PROBE_ALONE_S if len(probes) >= limit else None

    @property
    def next_probe_s(self) -> float | None:
        """Seconds until the next probe may start; None while every attempt may."""
        return max(0.0, self._probe_at - self._monotonic()) if self.held or self.away else None

    def wake_at(self, started: Iterable[float]) -> float | None:
        """Return the monotonic time from which `may_start` may be true without another event; None: there is none.

        Args:
            started: as for `may_start`.
        """
        if not (self.held or self.away):
            return None
        return self._probe_at if self._monotonic() < self._probe_at else self._room_at(started)


class Outages:
    """Writes a journal entry when the endpoint is away or back, and when the queue is held or released.

    Args:
        health: to follow.
        next_attempt_s: seconds until the next attempt while it is away or held, else None.
        monotonic: monotonic seconds.
        wall: seconds since the epoch.
    """

    def __init__(
        self, health: Health, next_attempt_s: Callable[[], float | None], monotonic: Clock, wall: Clock
    ) -> None:
        self._health = health
        self._next_attempt_s = next_attempt_s
        self._monotonic = monotonic
        self._wall = wall
        self._state = ""  # `held` or `away`, never both; empty for neither
        self._began = 0.0  # monotonic seconds; of that state

    @property
    def for_s(self) -> float | None:
        """For how long it has been away or held, seconds, whatever the wall clock did; None while it is neither."""
        return self._monotonic() - self._began if self._state else None

    @property
    def since_usec(self) -> int | None:
        """Since when it is away or held, microseconds since the epoch by the wall clock of now; None likewise."""
        return None if (for_s := self.for_s) is None else self._usec_before(for_s)

    def note(self) -> None:
        """Write entries for what has changed since the last call; called after all that may change the health."""
        state = "held" if self._health.held else "away" if self._health.away else ""
        if state == self._state:
            return
        if self._state == "away":
            text = "the endpoint answers, but refuses the keys" if state else "the endpoint is back"
            self._end(MessageId.BACK, text)
        elif self._state == "held":
            self._end(MessageId.RELEASED, "the queue is released")
        self._state, self._began = state, self._monotonic()
        if state == "held":
            text = f"the queue is held: {self._health.held}; nothing is lost"
            self._begin(MessageId.HELD, text, logging.CRITICAL)
        elif state == "away":
            text = f"the endpoint is away: {self._health.away_reason}; transfers are kept and tried until it is back"
            self._begin(MessageId.AWAY, text, logging.ERROR)

    def _begin(self, kind: MessageId, text: str, level: int) -> None:
        next_s = self._next_attempt_s() or 0.0  # None only while it is neither away nor held
        fields = {
            "MESSAGE_ID": kind.value,
            "S3DAEMON_SINCE_USEC": self._usec_before(0.0),
            "S3DAEMON_DELAY_USEC": round(next_s * 1e6),
        }
        _log.log(level, "%s; next attempt in %s", text, span(math.ceil(next_s)), extra={"journal": fields})

    def _end(self, kind: MessageId, text: str) -> None:
        seconds = self._monotonic() - self._began
        since_usec = self._usec_before(seconds)
        fields = {"MESSAGE_ID": kind.value, "S3DAEMON_SINCE_USEC": since_usec, "PRIORITY": int(Priority.NOTICE)}
        _log.warning(
            "%s; it was %s for %s, since %s",
            text,
            self._state,
            span(seconds),
            clock_time(since_usec),
            extra={"journal": fields},
        )

    def _usec_before(self, seconds: float) -> int:
        return round((self._wall() - seconds) * 1e6)


class StoringWatch:
    """Notices that attempts at several destinations fail, whatever their errors, and nothing is stored in between.

    `Health` stops what would fail too. An error that accuses its own transfer or file stops nothing, such as a code
    that is not known here, or a file system that does not answer. If every attempt ends in one, people have to know.
    An attempt that has sent everything, and has waited for its answer as long, counts like one that has failed.

    Args:
        monotonic: monotonic seconds.
    """

    def __init__(self, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self.clear()

    def clear(self) -> None:
        """Note that an object was stored, that nothing is left to store, or that new settings are in force."""
        self._cleared_at = self._monotonic()
        self._since = math.inf
        self._destinations: set[Destination] = set()
        self._last_error = ""

    def failed(self, destination: Destination, error: str) -> None:
        """Note that an attempt failed and another will follow; `error` is one line with its code."""
        self._since = min(self._since, self._monotonic())
        if len(self._destinations) < AWAY_AFTER_FAILURES:
            self._destinations.add(destination)
        self._last_error = error

    def failing(self, unanswered: Mapping[Destination, float]) -> str:
        """Return for how long nothing has been stored, and why, in one line; empty when attempts do not fail so.

        Args:
            unanswered: where everything was sent and no answer has come, and when the attempt started, monotonic
                seconds.
        """
        now = self._monotonic()
        waits = {destination: max(at, self._cleared_at) for destination, at in unanswered.items()}
        waits = {destination: since for destination, since in waits.items() if now - since >= FAILING_AFTER_S}
        for_s = now - min(self._since, *waits.values(), math.inf)
        if for_s < FAILING_AFTER_S or len(self._destinations | waits.keys()) < AWAY_AFTER_FAILURES:
            return ""
        count = plural(len(waits), "upload")
        why = f"the last error is {self._last_error}" if self._last_error else f"{count} without an answer"
        return f"nothing stored for {span(for_s)}, {why}"


class KeyEvidence:
    """Evidence on whether the access keys in force are valid. Belongs to the running event loop.

    Args:
        ask: sends the neutral request.
        clock: monotonic seconds.

    Attributes:
        tasks: those in which neutral requests are sent; they use the store.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._ask = ask
        self._clock = clock
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[AttemptError | None] | None = None  # has not been sent yet
        self._in_force_since = -math.inf
        self._ever_accepted = False
        self._ever_stored = False
        self._doubtful: dict[str, float] = {}
        self._learn_at = -math.inf

    def stored(self, started_at: float) -> None:
        """Note that an attempt that started at `started_at` (monotonic seconds) has stored its object.

        After the first one the neutral request is sent, and every `LEARN_AGAIN_S` until its answer is clear. If valid
        keys are allowed that request, a later denial of it means that the keys are no longer valid. It is the only sign
        with Ceph's `rgw_s3_auth_use_sts`, which denies every request with keys that were replaced.
        """
        if started_at >= self._in_force_since:
            if self._clock() >= self._learn_at:
                self._learn_at = math.inf
                self._start(self._learn())
            self._ever_stored = True
            self._doubtful = {id_: at for id_, at in self._doubtful.items() if at > started_at}

    def reload(self) -> set[str]:
        """Forget what is known: other keys may be in force.

        Returns:
            the ids of transfers that failed by a denial since the last success; they should be tried again.
        """
        doubtful, self._doubtful = set(self._doubtful), {}
        self._in_force_since = self._clock()
        self._ever_accepted = self._ever_stored = False
        self._learn_at = -math.inf
        return doubtful

    def denied(self, transfer_id: str) -> None:
        """Note that a transfer has failed by a denial although the neutral request did not confirm the keys."""
        self._doubtful[transfer_id] = self._clock()

    async def examine(self, refusal: AttemptError, started_at: float) -> Keys:
        """Send the neutral request, and return what follows for the keys.

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

    def _start(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _learn(self) -> None:
        since = self._in_force_since
        error = await self.ask()
        if since == self._in_force_since:
            self._ever_accepted |= error is None
            if error is not None and error.status not in CLIENT_STATUSES:
                self._learn_at = self._clock() + LEARN_AGAIN_S

    async def ask(self) -> AttemptError | None:
        """Send the neutral request, and return its error; None when it is accepted. Callers that wait share one."""
        if self._next is None:
            self._next = self._start(self._send())
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
