"""What people are told of the endpoint: entries in the journal about outages, and a line while nothing is stored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from s3daemon.clock import Clock
from s3daemon.delivery.health.endpoint import AWAY_AFTER_FAILURES, Health
from s3daemon.model.record import MessageId, Priority
from s3daemon.model.request import Destination
from s3daemon.units import clock_time, plural, span

_log = logging.getLogger(__name__)

#: How long attempts must fail until that is shown, seconds: as long as a hook waits. By then the first delays are over.
FAILING_AFTER_S = 30.0
#: How long the store must be unreachable until that is an entry, seconds: the status has it at once.
UNREACHABLE_AFTER_S = 30.0
_CHECK = "s3daemon check shows where the path to it ends"
#: What may be wrong, the worst first: the entry of its beginning, with the reason in the braces, and that of its end.
_BEGINNINGS = {
    "held": (MessageId.HELD, logging.CRITICAL, "the queue is held: {}; nothing is lost"),
    "away": (MessageId.AWAY, logging.ERROR, "the endpoint is away: {}; transfers are kept and tried until it is back"),
    "unreachable": (MessageId.UNREACHABLE, logging.WARNING, f"the store cannot be reached: {{}}; {_CHECK}"),
}
_ENDS = {
    "held": (MessageId.RELEASED, "the queue is released"),
    "away": (MessageId.BACK, "the endpoint is back"),
    "unreachable": (MessageId.REACHED, "the store can be reached again"),
}


class Outages:
    """Writes a journal entry when the endpoint is away or back, and when the queue is held or released.

    While nothing is sent nothing shows that it is away: then when it is unreachable, as small requests find, or not.

    Args:
        health: to follow.
        next_attempt_s: seconds until the next attempt while it is away or held, else None.
        monotonic: monotonic seconds.
        wall: seconds since the epoch.

    Attributes:
        on_change: called after each entry.
    """

    def __init__(
        self, health: Health, next_attempt_s: Callable[[], float | None], monotonic: Clock, wall: Clock
    ) -> None:
        self._health = health
        self._next_attempt_s = next_attempt_s
        self._monotonic = monotonic
        self._wall = wall
        self._state = ""  # one of `_BEGINNINGS`; empty for none
        self._began = 0.0  # monotonic seconds; of that state
        self._unreachable = ""  # why, once that has lasted
        self._unreached_at: float | None = None
        self.on_change: Callable[[], None] = lambda: None

    @property
    def for_s(self) -> float | None:
        """For how long it has been held, away or unreachable, seconds, whatever the wall clock did; else None."""
        return self._monotonic() - self._began if self._state else None

    @property
    def since_usec(self) -> int | None:
        """When `for_s` began, microseconds since the epoch by the wall clock of now; None where that is None."""
        return None if (for_s := self.for_s) is None else self._usec_before(for_s)

    def note(self) -> None:
        """Write entries for what has changed since the last call; called after all that may change the health."""
        if self._health.held or self._health.away:  # what ends that is an answer: then it is reachable too
            self._unreachable, self._unreached_at = "", None
        reasons = {"held": self._health.held, "away": self._health.away_reason, "unreachable": self._unreachable}
        before, state = self._state, next((name for name, reason in reasons.items() if reason), "")
        if state == before:
            return
        if before and not (before == "unreachable" and state):  # what is held or away has not been reached
            kind, text = _ENDS[before]
            self._end(kind, "the endpoint answers, but refuses the keys" if before == "away" and state else text)
        self._state, self._began = state, self._monotonic()
        if state == "unreachable" and self._unreached_at is not None:
            self._began = self._unreached_at
        if state:
            kind, level, text = _BEGINNINGS[state]
            self._begin(kind, text.format(reasons[state]), level)
        self.on_change()

    def note_reach(self, unreachable: str, *, has_answered: bool) -> None:
        """Note whether small requests reach the store, and write entries as `note` does; called every few seconds.

        Args:
            unreachable: why no address answers, one line; empty if one does, or none has failed yet.
            has_answered: one has answered. Of new addresses, as after a reload, nothing is known at first: no news.
        """
        if not (unreachable or has_answered):
            return
        now = self._monotonic()
        self._unreached_at = None if not unreachable else now if self._unreached_at is None else self._unreached_at
        has_lasted = self._unreached_at is not None and now - self._unreached_at >= UNREACHABLE_AFTER_S
        self._unreachable = unreachable if has_lasted else ""
        self.note()

    def _begin(self, kind: MessageId, text: str, level: int) -> None:
        fields: dict[str, str | int] = {"MESSAGE_ID": kind.value, "S3DAEMON_SINCE_USEC": self.since_usec or 0}
        next_s = self._next_attempt_s()
        if next_s is not None:  # it is away or held
            fields["S3DAEMON_DELAY_USEC"] = round(next_s * 1e6)
            text = f"{text}; next attempt in {span(math.ceil(next_s))}"
        _log.log(level, "%s", text, extra={"journal": fields})

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
