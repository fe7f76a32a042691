"""One address behind the store's name: enabled, disabled for a while, or on trial. Pure: the time is passed in.

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
                                          the probe is not sent: a limit of this host     DISABLED, for 5 s more
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

An address is judged by its uploads; a small request proves little. A gateway may answer it and still refuse every PUT,
as Ceph's does while its notification queue is broken: so an address that answers again gets one connection until an
upload over it succeeded. A proxy may answer it with 503 or with what cannot be read, and pass every PUT on: so one that
answers badly gets one connection too, and the first upload over it decides.

`addresses` says when to disable one: the last enabled one never is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

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


class State(Enum):
    """Which connections go to an address."""

    ENABLED = "its share"
    TRIAL = "one"
    DISABLED = "none"


@dataclass(slots=True)
class Address:
    """What is known of one address.

    Args:
        state: which connections go there.
        reason: why it was disabled or put on trial, one line; of a disabled one, what its last probe found.
        limited_at: when that was, the first time since an upload succeeded, monotonic seconds.
        times_disabled: how often it was disabled without a successful upload in between.
        probe_at: when it is to be probed, monotonic seconds; of meaning while it is disabled.
        is_slow: it was disabled for uploads that were far slower than others.
        keeps: it keeps connections open after its answers.
        failed: ids of the transfers that failed there since an upload succeeded.
        slow: ids of the transfers whose uploads were moved away since an upload succeeded that was not.
        uploaded_at: when an upload succeeded last, monotonic seconds.
        heard_at: when it answered anything last, monotonic seconds.
        has_answered_small: it has answered a small request, ever.
        unanswered_since: when the first small request since `heard_at` was sent that it did not answer; else infinite.
    """

    state: State = State.ENABLED
    reason: str = ""
    limited_at: float = 0.0
    times_disabled: int = 0
    probe_at: float = 0.0
    is_slow: bool = False
    keeps: bool = True
    failed: set[str] = field(default_factory=set)
    slow: set[str] = field(default_factory=set)
    uploaded_at: float = -math.inf
    heard_at: float = -math.inf
    has_answered_small: bool = False
    unanswered_since: float = math.inf

    @property
    def is_disabled(self) -> bool:
        """Whether no connection should go there."""
        return self.state is State.DISABLED

    @property
    def is_on_trial(self) -> bool:
        """Whether one connection should go there."""
        return self.state is State.TRIAL

    @property
    def has_answered(self) -> bool:
        """Whether the address answered anything, ever."""
        return self.heard_at > -math.inf

    def has_uploaded_lately(self, now: float) -> bool:
        """Return whether an upload succeeded so short a time ago that small requests say nothing."""
        return now - self.uploaded_at <= UPLOADS_COUNT_S

    def is_silent(self, now: float) -> bool:
        """Return whether a small request, and whatever followed, has had no answer for long."""
        return now - self.unanswered_since >= SILENT_S

    def note_answer(self, now: float) -> None:
        """Note that the address answered something."""
        self.heard_at, self.unanswered_since = now, math.inf

    def note_silence(self, since: float, now: float) -> None:
        """Note that it did not answer a small request that was sent at `since`.

        One that never answers any says nothing by that, nor does one that has answered something else meanwhile.
        """
        if self.has_answered_small and self.heard_at < since:
            self.unanswered_since = min(self.unanswered_since, since, now)

    def note_failure(self, transfer: str) -> bool:
        """Note that an upload of a transfer failed, or a connection (empty); return whether it is broken by that."""
        self.failed.add(transfer)
        return not transfer or self.is_on_trial or len(self.failed) >= TRANSFERS_IN_A_ROW

    def note_slow(self, transfer: str) -> bool:
        """Note that an upload of a transfer was far slower than others; return whether it is too slow by that."""
        self.slow.add(transfer)
        return self.is_on_trial or len(self.slow) >= TRANSFERS_IN_A_ROW

    def note_stored(self, now: float, *, proves_speed: bool) -> bool:
        """Note that an upload succeeded; return whether that ends a time for which it was disabled.

        Args:
            now: monotonic seconds.
            proves_speed: it was large enough to have a rate, and was not moved away.
        """
        self.uploaded_at = now
        self.failed.clear()
        if proves_speed:
            self.slow.clear()
            self.is_slow = False
        if self.is_slow:
            return False
        was_disabled = self.times_disabled > 0
        self.state, self.times_disabled = State.ENABLED, 0
        return was_disabled

    def disable(self, now: float, reason: str) -> bool:
        """Disable it for a while, each time twice as long; return whether it is the first time in a row."""
        is_first = not self.times_disabled
        if is_first:
            self.limited_at, self.reason = now, reason
        first_s = SLOW_FIRST_S if self.is_slow else DISABLED_FIRST_S
        self.state = State.DISABLED
        self.probe_at = now + min(first_s * 2.0 ** min(self.times_disabled, 16), DISABLED_MAX_S)
        self.times_disabled += 1
        self.uploaded_at = -math.inf
        self.failed.clear()
        self.slow.clear()
        return is_first

    def doubt(self, now: float, reason: str) -> None:
        """Put an enabled address on trial: a small request was answered badly."""
        if self.state is State.ENABLED:
            self.state, self.limited_at, self.reason = State.TRIAL, now, reason

    def end_doubt(self) -> None:
        """End a trial to which only a small request has led: one is answered well."""
        if self.is_on_trial and not self.times_disabled:
            self.state = State.ENABLED
