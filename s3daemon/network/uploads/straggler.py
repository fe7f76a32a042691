"""Decides when an upload is moved because its connection is far slower than others. Pure: the time is passed in.

A body is what one request sends: a file, or a part of it. Once a tick the bytes acknowledged of each are sampled, and
compared with those of other bodies in the same span of time. A link that slows down or stalls makes all of them equally
slow, so none is moved. To move an upload is to end it and to send the body again, from its start, over another
connection:

    a body                             other bodies in the same time                  moved
    ---------------------------------  ---------------------------------------------  ---------------------------------
    has little left                    any                                            no: it would not gain
    waits for its file                 any                                            no: the connection is not slow
    is sent, with less than            any                                            no: its own pacing makes it silent
    `LEAST_SHARE`
    is sent                            half of them are at least `FAR_SLOWER` times   after `MIN_AGE_S` and 5 round
                                       as fast                                        trips; not while it speeds up
                                                                                      like a new connection
    is sent                            as slow                                        no: the path is slow
    is sent, alone for `ALONE_S`       none; earlier ones were `FAR_SLOWER_ALONE`     once
                                       times as fast
    is sent, alone for `ALONE_S`       none, nor earlier ones; its share of the       once
                                       bandwidth limit is `FAR_SLOWER_THAN_RATE`
                                       times its rate
    no byte, no answer for a while     were answered ten times sooner                 after `SILENT_S`, twice as long
                                                                                      after each move
    no byte, no answer for a while     wait as long                                   no: the store is slow

A move must save time: the rest would take at least `GAIN` times as long here as the whole body does elsewhere. And the
more a move costs, the longer a body must have been slow: half of the time that the whole body takes elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from s3daemon.model.files.source import SMALL_BYTES
from s3daemon.network.uploads.samples import GAP_S, Samples

#: The factor by which an upload is far slower than others. Flows that share a link without pacing differ by two or
#: three times.
FAR_SLOWER = 4.0
FAR_SLOWER_ALONE = 8.0
#: A limit that was set by hand may be far too high, so compared with it only a body that makes hardly any
#: progress is too slow.
FAR_SLOWER_THAN_RATE = 32.0
#: With a smaller share of the bandwidth limit, bytes/s, a body is not judged: Linux sends a paced socket's data in
#: bursts of up to 64 KiB, so that for more than a second nothing is sent; and to send all of it again costs most there.
LEAST_SHARE = 1 << 16
#: Younger bodies are not judged, seconds and round trips: at this age a new connection has sent 30 first windows.
MIN_AGE_S, MIN_AGE_ROUND_TRIPS = 0.35, 5
#: Rates are measured over this time, seconds and round trips. Other bodies count if sampled within 4 times as long.
WINDOW_S, WINDOW_ROUND_TRIPS = 0.25, 4
#: A body that is alone is judged after this long, seconds and round trips, since the path may be slow for a moment.
ALONE_S, ALONE_ROUND_TRIPS = 2.0, 10
#: A body with no byte acknowledged and no answer for this long, seconds, is silent: "retry after 2 seconds, then 4"
#: (AWS, "Best practices design patterns: optimizing Amazon S3 performance", on small requests).
SILENT_S = 2.0
#: It must be silent this many times as long as similar bodies.
SILENT_TIMES = 10
#: The longest time between the acknowledgement of a byte and the sample that shows it, seconds.
SAMPLED_S = 0.15
#: The number of similar bodies that must have been answered meanwhile: one may be an exception.
SILENT_PEERS = 2
#: The rest must take at least `GAIN` times as long as a move, and `GAIN_S` seconds more.
GAIN, GAIN_S = 3.0, 0.5
#: The round trips that a move costs besides the sending: for the request, and for a window that is not open yet.
MOVE_ROUND_TRIPS = 8
#: The most moves of one body.
MOVES_MAX = 4
#: Another body is compared if it has at least `_COMPARABLE_BYTES`, or this one's size divided by `_COMPARABLE_SHARE`.
#: Buffers on the way take its first bytes at any rate: until it has its answer, those of its first `_FIRST_BYTES_S`
#: seconds do not count.
_COMPARABLE_BYTES, _COMPARABLE_SHARE, _FIRST_BYTES_S = 4 << 20, 2, 0.3
#: A receiver that reads slowly opens its window seldom, and then for a few hundred kilobytes. So another body's rate is
#: measured over at least `_RATE_BYTES`, and compared only if they were sent within `_RATE_WINDOWS` times as long as a
#: rate is measured otherwise.
_RATE_BYTES, _RATE_WINDOWS = 1 << 20, 8
#: Of the bodies that have ended, those of the last `_LATELY_S` seconds are compared, and the last `_REMEMBERED` known.
_LATELY_S, _REMEMBERED = 120.0, 64
#: A reference is kept for so long, seconds, although the faster bodies have ended since.
_REFERENCE_S = 5.0
#: A body must be slow for so long without a break, seconds: the least, the share of what a move costs, the most.
SLOW_MIN_S, SLOW_SHARE, SLOW_MAX_S = 0.1, 0.5, 5.0


@dataclass(frozen=True, slots=True)
class Move:
    """The decision to move an upload.

    Args:
        reason: one line.
        reference: the rate that others have, bytes/s; it is expected of the next connection too. None when unknown.
        blames_address: no other upload is fast at the same address.
        window: the least that the next connection must be able to have in flight, bytes; 0: any will do. While the
            window of this connection may still be opening, another one that is as narrow would be no better.
    """

    reason: str
    reference: float | None
    blames_address: bool
    window: int = 0


@dataclass(frozen=True, slots=True)
class MoveHistory:
    """The moves of one body so far.

    Args:
        count: how many.
        reference: that of the last `Move`, bytes/s; None when it had none.
    """

    count: int = 0
    reference: float | None = None


NEVER_MOVED = MoveHistory()


class TrackedBody(Samples):
    """One body, with what was found out by comparing it.

    Args:
        size: bytes.
        history: its moves before.

    Attributes:
        address: where it is sent.
        rtt_s: the least round-trip time of its connection, seconds.
        share: what its connection may send at most, bytes/s; None when there is no limit, or nothing more to send.
        speed: its rate at the last tick, bytes/s; once it has ended, that of the whole body.
        reference: the rate that others have, bytes/s, as found at `reference_at`; None when that is unknown.
        slow_since: since when it was far below what can be expected at each tick, monotonic seconds; None when it was
            not at the last one.
        has_ended: it was answered.
    """

    def __init__(self, size: int, history: MoveHistory = NEVER_MOVED) -> None:
        super().__init__()
        self.size = size
        self.history = history
        self.address = ""
        self.rtt_s = 0.0
        self.share: float | None = None
        self.speed = 0.0
        self.reference = history.reference
        self.reference_at = 0.0
        self.slow_since: float | None = None
        self.has_ended = False

    @property
    def window_s(self) -> float:
        """The time over which its rate is measured, seconds."""
        return max(WINDOW_S, WINDOW_ROUND_TRIPS * self.rtt_s)

    @property
    def is_small(self) -> bool:
        """Whether the body is too small to have a rate."""
        return self.size <= SMALL_BYTES

    def refer_to(self, rate: float | None) -> None:
        """Note the rate that others have now; None: there is none to compare, and a known one holds for a while."""
        if rate is not None:
            self.reference, self.reference_at = rate, self.sampled_at
        elif self.sampled_at - self.reference_at > _REFERENCE_S:
            self.reference = None

    def is_far_slower_than(self, rate: float) -> bool:
        """Return whether its rate is far below `rate`, bytes/s."""
        return rate > FAR_SLOWER * self.speed


class _Expected(NamedTuple):
    """What a body could have elsewhere: the rate, bytes/s; who has it now; found though there is no other body."""

    rate: float
    faster: list[TrackedBody]
    is_alone: bool


class Stragglers:
    """The bodies that are being sent to one store, and those that ended a short time ago."""

    def __init__(self) -> None:
        self._in_flight: list[TrackedBody] = []
        self._ended: deque[TrackedBody] = deque(maxlen=_REMEMBERED)

    def begin(self, body: TrackedBody, address: str, now: float) -> None:
        """Add a body that begins to be sent to `address`, at monotonic time `now`."""
        body.begin(now)
        body.address, body.reference_at = address, now
        self._in_flight.append(body)

    def end(self, body: TrackedBody, now: float, *, answered: bool) -> None:
        """Remove a body that is over at monotonic time `now`; others are compared with it if it was `answered`."""
        if body not in self._in_flight:
            return
        self._in_flight.remove(body)
        if answered:
            body.add(now, body.size)
            body.speed, body.has_ended = body.rate(body.began, now), True
            self._ended.append(body)

    def tick(
        self,
        body: TrackedBody,
        now: float,
        acked: int,
        *,
        rtt_s: float,
        share: float | None = None,
        is_starved: bool = False,
    ) -> Move | None:
        """Note how far a body is; return a `Move` when it should be moved, else None.

        Args:
            body: one that has begun.
            now: monotonic seconds.
            acked: bytes acknowledged since it began.
            rtt_s: as of `TrackedBody`.
            share: as of `TrackedBody`.
            is_starved: all that was read of the file is acknowledged, and more is to come.
        """
        was_stopped = now - body.sampled_at > GAP_S
        body.rtt_s, body.share = rtt_s, share
        body.add(now, min(acked, body.size))
        is_held_back = is_starved or (share is not None and share < LEAST_SHARE)
        if was_stopped or is_held_back:
            body.slow_since = None
        if is_held_back:
            body.silent_s = 0.0
            return None
        if body.history.count >= MOVES_MAX:
            return None
        return self._too_slow(body) or self._too_silent(body)

    def _too_slow(self, body: TrackedBody) -> Move | None:
        body.speed = body.recent_rate(body.window_s)
        if body.is_small or body.acked >= body.size:
            return None
        expected = self._expected(body)
        if expected is None:
            body.slow_since = None
            return None
        body.slow_since = body.sampled_at if body.slow_since is None else body.slow_since
        rate = body.recent_rate(max(body.window_s, body.sampled_at - body.slow_since))
        if not _is_worth_it(body, rate, expected.rate) or body.is_speeding_up(body.window_s, body.rtt_s):
            return None
        good = {other.address for other in expected.faster or self._lately(body)}
        reason = f"{rate / 1000:.0f} kB/s; {expected.rate / 1000:.0f} kB/s is usual"
        window_bytes = int(FAR_SLOWER * rate * body.rtt_s) if body.may_be_opening(body.rtt_s) else 0
        return Move(reason, None if expected.is_alone else body.reference, body.address not in good, window_bytes)

    def _expected(self, body: TrackedBody) -> _Expected | None:
        """Return what a body could have, having updated its reference; None when it is not far slower than that."""
        fastest = max((other.speed for other in (*self._in_flight, *self._ended)), default=0.0)
        if not body.is_far_slower_than(max(fastest, body.reference or 0.0, body.share or 0.0)):
            return None  # as nearly always: the comparison would not change that, and takes time
        compared = [(other, *rates) for other in self._others(body) if (rates := _compared(body, other))]
        faster = [(other, theirs) for other, own, theirs in compared if theirs > FAR_SLOWER * own]
        alone = None
        if faster and 2 * len(faster) >= len(compared):
            body.refer_to(statistics.median(theirs for _, theirs in faster))
        else:
            alone = self._reference_alone(body)
            body.refer_to(alone)
        rate = min(body.reference or 0.0, body.share or math.inf)
        others = [other for other, _ in faster]
        return _Expected(rate, others, alone is not None) if body.is_far_slower_than(rate) else None

    def _others(self, body: TrackedBody, since: float = 0.0) -> Iterable[TrackedBody]:
        """Yield the other bodies in flight, and those that have ended after this one began and after `since`."""
        yield from (other for other in self._in_flight if other is not body)
        yield from (other for other in self._ended if other.sampled_at > max(body.began, since))

    def _lately(self, body: TrackedBody) -> list[TrackedBody]:
        ended = [other for other in self._ended if other.sampled_at > body.sampled_at - _LATELY_S]
        return [other for other in ended if _is_comparable(body, other)]

    def _reference_alone(self, body: TrackedBody) -> float | None:
        """Return the rate that a body should have which is alone, and far slower than that; else None. Once a body."""
        others = self._others(body, body.sampled_at - body.window_s)
        is_alone = not any(_is_comparable(body, other) for other in others)
        if not is_alone or body.history.count or body.age_s < ALONE_S + ALONE_ROUND_TRIPS * body.rtt_s:
            return None
        if lately := self._lately(body):
            usual = statistics.median(other.speed for other in lately)
            return usual if usual > FAR_SLOWER_ALONE * body.speed else None
        return body.share if body.share is not None and body.share > FAR_SLOWER_THAN_RATE * body.speed else None

    def _too_silent(self, body: TrackedBody) -> Move | None:
        silent_s = body.silent_s
        if silent_s < (SILENT_S + WINDOW_ROUND_TRIPS * body.rtt_s) * 2**body.history.count:
            return None
        since = body.sampled_at - silent_s - SAMPLED_S  # an earlier answer is no evidence about the path since
        similar = [other for other in self._others(body, since) if other.size * _COMPARABLE_SHARE >= body.size]
        answered = [other for other in similar if other.has_ended]
        usual_s = statistics.median(other.silent_s for other in similar) if similar else silent_s
        if len(answered) < SILENT_PEERS or silent_s < SILENT_TIMES * usual_s:
            return None
        what = "no answer" if body.acked >= body.size else "no byte acknowledged"
        is_blamed = body.address not in {other.address for other in answered}
        return Move(f"{what} for {silent_s:.1f} s, where others are answered", body.reference, blames_address=is_blamed)


def _is_comparable(body: TrackedBody, other: TrackedBody) -> bool:
    return not other.is_small and other.size >= min(body.size // _COMPARABLE_SHARE, _COMPARABLE_BYTES)


def _compared(body: TrackedBody, other: TrackedBody) -> tuple[float, float] | None:
    """Return the rates of a body and another one in the last time in which both were sent; None: not comparable."""
    window, until = body.window_s, min(body.sampled_at, other.sampled_at)
    if not _is_comparable(body, other) or until < body.sampled_at - 4 * window:
        return None
    full_since = other.time_of_last(_RATE_BYTES)
    if not other.has_ended:
        earliest = max(other.began + _FIRST_BYTES_S, until - _RATE_WINDOWS * window)
        if full_since is None or full_since < earliest or other.acked >= other.size:
            return None  # all that it sent may be in a buffer
    since = max(body.began, other.began, min(until - window, other.began if full_since is None else full_since))
    if until - since < min(window, other.age_s) / 2 or until <= since:
        return None
    return body.rate(since, until), other.rate(since, until)


def _is_worth_it(body: TrackedBody, rate: float, expected: float) -> bool:
    """Return whether a body was slow for long enough, and would be stored sooner by a move."""
    slow_s = 0.0 if body.slow_since is None else body.sampled_at - body.slow_since
    again_s = body.size / expected + MOVE_ROUND_TRIPS * body.rtt_s
    is_watched = body.age_s >= max(MIN_AGE_S, MIN_AGE_ROUND_TRIPS * body.rtt_s)
    is_watched &= slow_s >= min(max(SLOW_MIN_S, SLOW_SHARE * again_s), SLOW_MAX_S)
    return is_watched and body.size - body.acked > rate * (GAIN * again_s + GAIN_S)
