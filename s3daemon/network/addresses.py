"""The addresses behind the store's name: which are enabled, and which are temporarily disabled. Pure.

    state     connections that go there   event                                           next state
    --------  --------------------------  ----------------------------------------------  -----------------------
    ENABLED   its share                   a connection fails; or uploads of two           DISABLED
                                          transfers do, one after the other; or uploads
                                          of two are far slower than others, with none
                                          at normal speed in between
                                          a small request is answered badly *             TRIAL
                                          a small request is not answered *               DISABLED
    DISABLED  none, but for a probe       the probe (a small request) is answered         TRIAL
              when its time is up         the probe is not answered                       DISABLED, twice as long
                                          the name has lost all that are not disabled     TRIAL
    TRIAL     one                         an upload succeeds                              ENABLED
                                          a small request is answered, and only one that  ENABLED
                                          was answered badly had led to the trial
                                          an upload or a connection fails, or an upload   DISABLED, twice as long
                                          is far slower than others                       if it was before
                                          a small request is not answered *               likewise

    * unless an upload succeeded there within `UPLOADS_COUNT_S`

    An address that was disabled because it is slow stays so for `SLOW_FIRST_S` at first: it answers every probe. And
    only an upload large enough to have a rate ends its trial.

    The last enabled one is never disabled; when it fails too, the endpoint is unreachable: an outage. The first answer
    of any of them ends it, and the disabled ones are probed at once: probably they were down for the same cause.

An address is judged by its uploads; a small request proves little. A gateway may answer it and still refuse every PUT,
as Ceph's does while its notification queue is broken: so an address that answers again gets one connection until an
upload over it succeeded. A proxy may answer it with 503 or with what cannot be read, and pass every PUT on: so one that
answers badly gets one connection too, and the first upload over it decides. What an outage means for transfers is
`delivery.health.endpoint`'s to decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError
from s3daemon.model.verdict import UNREACHED, blames_endpoint, may_be_the_address

#: How long an address is disabled at first, and at most, seconds: a glitch costs half an exposure, and one that is
#: broken for hours is probed a dozen times an hour.
DISABLED_FIRST_S, DISABLED_MAX_S = 5.0, 300.0
#: Likewise for one that is slow: each trial makes an image late.
SLOW_FIRST_S = 60.0
#: While an upload was stored there within this time, small requests say nothing of an address, seconds. During a night
#: that is always; after a quiet hour a small request may find out first that it is broken.
UPLOADS_COUNT_S = 300.0
#: An address that has answered nothing for so long since a small request was sent is silent, seconds: longer than any
#: store takes for one.
SILENT_S = 10.0
#: One failed transfer may be that transfer's fault; the next one's failure at the same address is not.
TRANSFERS_IN_A_ROW = 2


class SmallRequestOutcome(Enum):
    """What became of a small request."""

    ANSWERED = "answered"
    ANSWERED_BADLY = "answered badly"  # a server error, or what cannot be read
    NOT_ANSWERED = "not answered"  # connected, and hung up on or left waiting
    NOT_CONNECTED = "no connection"
    NOT_SENT = "not sent"  # for a limit of this host, which says nothing of the address

    @property
    def is_answer(self) -> bool:
        """Whether the address answered, well or badly."""
        return self in (SmallRequestOutcome.ANSWERED, SmallRequestOutcome.ANSWERED_BADLY)


@dataclass(slots=True)
class _State:
    """What is known of one address.

    Args:
        failed_transfers: ids of the transfers that failed there since one succeeded.
        slow_transfers: ids of the transfers whose uploads were moved away since an upload that was not was stored.
        is_slow: it was disabled for such uploads.
        times_disabled: how often it was disabled without a successful upload in between.
        limited_at: when it was disabled for the first of those times, or put on trial, monotonic seconds.
        reason: why, one line.
        probe_at: when it is to be probed, monotonic seconds; None while it is not disabled.
        on_trial: it answers again, or badly, and no upload has succeeded yet.
        keeps: it keeps connections open after its answers.
        uploaded_at: when an upload succeeded last, monotonic seconds.
        answers: it has answered a small request, ever.
        heard_at: when it answered anything last, monotonic seconds.
        unanswered_since: when the first small request since then was sent that it did not answer; else infinite.
    """

    failed_transfers: set[str] = field(default_factory=set)
    slow_transfers: set[str] = field(default_factory=set)
    is_slow: bool = False
    times_disabled: int = 0
    limited_at: float = 0.0
    reason: str = ""
    probe_at: float | None = None
    on_trial: bool = False
    keeps: bool = True
    uploaded_at: float = -math.inf
    answers: bool = False
    heard_at: float = -math.inf
    unanswered_since: float = math.inf

    def heard(self, now: float) -> None:
        """Note that it answered something."""
        self.heard_at, self.unanswered_since = now, math.inf

    @property
    def has_answered(self) -> bool:
        """Whether it answered anything, ever."""
        return self.heard_at > -math.inf

    @property
    def is_disabled(self) -> bool:
        return self.probe_at is not None


@dataclass(frozen=True, slots=True)
class Limited:
    """The state of an address that does not get its share of connections.

    Args:
        reason: what happened there first, one line.
        for_s: how long ago that was, seconds.
        next_probe_s: until it is asked again, seconds; None: it is on trial.
    """

    reason: str
    for_s: float
    next_probe_s: float | None


class Addresses:
    """The addresses of one endpoint.

    Args:
        clock: monotonic seconds.
        on_disabled: called with the address, the reason, the seconds until it is asked again, and whether it ever
            answered, when one is disabled for the first time in a row. Of a name's addresses one may be of a kind that
            this host cannot reach.
        on_enabled: called with the address and how long it was disabled, seconds, when an upload succeeded over one
            that had been.
    """

    def __init__(
        self,
        clock: Clock,
        on_disabled: Callable[[str, str, float, bool], None],
        on_enabled: Callable[[str, float], None],
    ) -> None:
        self._clock = clock
        self._on_disabled = on_disabled
        self._on_enabled = on_enabled
        self._states: dict[str, _State] = {}
        self._left: dict[str, _State] = {}  # of disabled ones that the last look-up did not give
        self._outage = ""  # of "connections", or of "uploads": small requests may be answered all the while

    def __bool__(self) -> bool:
        return bool(self._states)

    def replace(self, addresses: Iterable[str]) -> None:
        """Take over the addresses that the name has now; what is known of those that it had before is kept.

        One that is disabled is so when it comes back: of a name with many addresses each answer may have only some.
        Where all are disabled, as the name has lost the others, they are on trial.
        """
        known = self._left | self._states
        self._states = {address: known.get(address) or _State() for address in addresses}
        self._left = {each: state for each, state in known.items() if state.is_disabled and each not in self._states}
        for state in () if self.enabled else self._states.values():
            state.probe_at, state.on_trial = None, True

    @property
    def disabled(self) -> list[str]:
        """The addresses that are disabled."""
        return [address for address, state in self._states.items() if state.is_disabled]

    @property
    def unexpectedly_disabled(self) -> list[str]:
        """Those of the disabled addresses that an operator should hear of.

        Not one of a family, IPv4 or IPv6, of which none ever answered: many a name has addresses of both, and the store
        or this host's network serves only one. Before anything answers the endpoint itself is what is missing.
        """
        families = {_is_ipv6(address) for address, state in self._states.items() if state.has_answered}
        return [address for address in self.disabled if _is_ipv6(address) in families]

    @property
    def are_unreachable(self) -> bool:
        """Whether none accepted a connection and answered since the last enabled one failed, or all enabled are silent.

        A server that hangs accepts connections and bodies; uploads that were sent whole wait for its answer for a
        minute or longer, and small requests disable nothing while uploads were stored lately.
        """
        now, enabled = self._clock(), [self._states[address] for address in self.enabled]
        are_silent = bool(enabled) and all(now - state.unanswered_since >= SILENT_S for state in enabled)
        return self._outage == "connections" or are_silent

    @property
    def enabled(self) -> list[str]:
        """The addresses that are not disabled."""
        return [address for address, state in self._states.items() if not state.is_disabled]

    def next_probe_s(self, address: str) -> float:
        """Return the seconds until a disabled address is asked again; 0 when it is not disabled."""
        state = self._states.get(address)
        return max(0.0, state.probe_at - self._clock()) if state and state.probe_at is not None else 0.0

    @property
    def limited(self) -> dict[str, Limited]:
        """Those that do not get their share: disabled, as far as an operator should hear of it, or on trial."""
        now = self._clock()
        unexpected = {*self.unexpectedly_disabled}
        return {
            address: Limited(
                state.reason, now - state.limited_at, self.next_probe_s(address) if state.is_disabled else None
            )
            for address, state in self._states.items()
            if state.on_trial or address in unexpected
        }

    def set_keeping(self, address: str, *, keeps: bool) -> bool:
        """Note whether it keeps connections open after its answers; return whether that is news."""
        state = self._states.get(address)
        if state is None or state.keeps == keeps:
            return False
        state.keeps = keeps
        return True

    def keeps(self, address: str) -> bool:
        """Return whether it keeps connections open after its answers, as far as is known."""
        state = self._states.get(address)
        return state is None or state.keeps

    def is_enabled(self, address: str) -> bool:
        """Return whether it is not disabled. Of an address that the name no longer has nothing bad is known."""
        state = self._states.get(address)
        return state is None or not state.is_disabled

    def has_alternative(self, tried: Iterable[str]) -> bool:
        """Return whether an address other than those in `tried` is enabled."""
        excluded = set(tried)
        return any(self.is_enabled(address) for address in self._states if address not in excluded)

    def in_order(self, per_address: Mapping[str, int], avoid: Iterable[str] = ()) -> list[str]:
        """Return all addresses in the order in which a new connection should try them.

        Args:
            per_address: how many connections go to each now; the address with the fewest comes first.
            avoid: these come after all others that are enabled; those that keep no connection after those that do.
        """
        avoided = set(avoid)

        def rank(address: str) -> tuple[bool, bool, bool, bool, int]:
            state, count = self._states[address], per_address.get(address, 0)
            return state.is_disabled, state.on_trial and count > 0, address in avoided, not state.keeps, count

        return sorted(self._states, key=rank)

    def overloaded(self, per_address: Mapping[str, int]) -> str:
        """Return an address with at least two connections more than another one that could take one more.

        Args:
            per_address: how many connections go to each now.

        Returns:
            One on trial that has more than one while another is not on trial, else the address with the most; empty
            when all have their share.
        """
        counts = {address: per_address.get(address, 0) for address in self.enabled if self._states[address].keeps}
        on_trial = [address for address in counts if self._states[address].on_trial]
        if len(on_trial) < len(counts) and (surplus := [address for address in on_trial if counts[address] > 1]):
            return surplus[0]
        can_take = [count for address, count in counts.items() if not (self._states[address].on_trial and count)]
        fullest = max(counts, key=lambda address: counts[address], default="")
        return fullest if can_take and counts[fullest] - min(can_take) > 1 else ""

    def failed(self, address: str, reason: str, transfer: str = "") -> None:
        """Note a failure for which the address is to blame.

        Args:
            address: where it happened.
            reason: one line.
            transfer: the id of the transfer whose attempt it was; empty for a connection that could not be opened.
        """
        state = self._states.get(address)
        if state is None or state.is_disabled:
            return
        state.failed_transfers.add(transfer)
        is_broken = not transfer or state.on_trial or len(state.failed_transfers) >= TRANSFERS_IN_A_ROW
        if not is_broken:
            return
        if self.has_alternative([address]):
            self._disable(address, state, reason)
        else:
            self._outage = "uploads" if transfer else "connections"

    def slow(self, address: str, reason: str, transfer: str) -> None:
        """Note that an upload there was far slower than those at other addresses.

        Args:
            address: where it went.
            reason: one line.
            transfer: the id of the transfer that it belonged to.
        """
        state = self._states.get(address)
        if state is None or state.is_disabled:
            return
        state.slow_transfers.add(transfer)
        is_bad = state.on_trial or len(state.slow_transfers) >= TRANSFERS_IN_A_ROW
        if is_bad and self.has_alternative([address]):
            state.is_slow = True
            self._disable(address, state, f"it is far slower than others, {reason}")

    def attempt_failed(self, error: AttemptError, address: str, transfer: str, tried: Collection[str]) -> bool:
        """Note the failure of an attempt.

        Args:
            error: why it failed.
            address: where it failed.
            transfer: the id of the transfer, or the name of what else was asked.
            tried: the addresses where it failed before, those included that did not accept this connection.

        Returns:
            Whether another address may do otherwise, and the transfer can be tried there at once.
        """
        if error.status and (state := self._states.get(address)) is not None:
            state.heard(self._clock())
        if blames_endpoint(error):
            self.failed(address, f"{error.code}, {error}", "" if error.code in UNREACHED else transfer)
        return may_be_the_address(error) and self.has_alternative({*tried, address})

    def _end_outage(self) -> None:
        if self._outage:
            for state in self._states.values():
                if state.is_disabled and not state.is_slow:
                    state.probe_at, state.times_disabled = self._clock(), 1
        self._outage = ""

    def _disable(self, address: str, state: _State, reason: str) -> None:
        first_s = SLOW_FIRST_S if state.is_slow else DISABLED_FIRST_S
        is_first = not state.times_disabled
        state.probe_at = self._clock() + min(first_s * 2.0 ** min(state.times_disabled, 16), DISABLED_MAX_S)
        state.times_disabled += 1
        state.on_trial = False
        state.uploaded_at = -math.inf
        state.failed_transfers.clear()
        state.slow_transfers.clear()
        if is_first:
            state.limited_at, state.reason = self._clock(), reason
            self._on_disabled(address, reason, self.next_probe_s(address), state.has_answered)

    def asked(self, address: str, outcome: SmallRequestOutcome, reason: str, since: float = math.inf) -> None:
        """Note what became of a small request.

        Args:
            address: where it went.
            outcome: what became of it.
            reason: one line, for when the address is disabled.
            since: when it was sent, monotonic seconds; infinite: just now.
        """
        state = self._states.get(address)
        if state is None or outcome is SmallRequestOutcome.NOT_SENT:
            return
        self._note_answer(state, outcome, since)
        if state.is_disabled:
            return
        if outcome is SmallRequestOutcome.ANSWERED:
            state.on_trial &= state.times_disabled > 0  # what only a small request put on trial
        elif outcome is SmallRequestOutcome.NOT_CONNECTED:
            self.failed(address, reason)
        elif self._clock() - state.uploaded_at > UPLOADS_COUNT_S:
            if outcome is SmallRequestOutcome.NOT_ANSWERED:
                self.failed(address, reason)
            elif self.has_alternative([address]) and not state.on_trial:
                state.on_trial, state.limited_at, state.reason = True, self._clock(), reason

    def _note_answer(self, state: _State, outcome: SmallRequestOutcome, since: float = math.inf) -> None:
        """Note whether a small request, sent at `since`, was answered; an answer ends an outage of connections."""
        now = self._clock()
        if outcome.is_answer:
            state.answers = True
            state.heard(now)
            if self._outage == "connections":
                self._end_outage()
        elif outcome is SmallRequestOutcome.NOT_ANSWERED and state.answers and state.heard_at < since:
            state.unanswered_since = min(state.unanswered_since, since, now)

    def succeeded(self, address: str, *, proves_speed: bool = True) -> None:
        """Note that an upload over it was stored.

        Args:
            address: where it went.
            proves_speed: it was large enough to have a rate, and was not moved away.
        """
        state = self._states.get(address)
        if state is None:
            return
        self._end_outage()
        state.heard(self._clock())
        if state.is_disabled:
            return  # the upload began before it was disabled, or went there since no other took it
        state.uploaded_at = self._clock()
        state.failed_transfers.clear()
        if proves_speed:
            state.slow_transfers.clear()
            state.is_slow = False
        if state.is_slow:
            return
        state.on_trial = False
        if state.times_disabled:
            state.times_disabled = 0
            self._on_enabled(address, self._clock() - state.limited_at)

    def to_probe(self) -> list[str]:
        """Return the disabled addresses whose time is up."""
        now = self._clock()
        return [address for address, s in self._states.items() if s.probe_at is not None and s.probe_at <= now]

    def probed(self, address: str, outcome: SmallRequestOutcome) -> None:
        """Note the outcome of a small request to a disabled address."""
        state = self._states.get(address)
        if state is None or not state.is_disabled:
            return
        if outcome.is_answer:
            state.probe_at = None
            state.on_trial = True
            self._note_answer(state, outcome)
        else:
            self._disable(address, state, state.reason)


def _is_ipv6(address: str) -> bool:
    return ":" in address
