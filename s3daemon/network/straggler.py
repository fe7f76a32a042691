"""Decides when an upload is moved: its connection is far slower than others. Pure: the time is passed in.

Of each body the acknowledged bytes are sampled once a tick (`Pace`), and compared with what other bodies moved in the
same span of time (`Stragglers`), so a link that slows down or stalls makes all of them equally slow, and none is moved:

    a body                             others in the same time                        moved
    ---------------------------------  ---------------------------------------------  ---------------------------------
    has little left                    any                                            no: it would not gain
    waits for its file                 any                                            no: that is not the connection
    moves                              half of them at least `FAR_SLOWER` times as    after `MIN_AGE_S` and 5 round
                                       fast                                           trips; never while it speeds up
                                                                                      like a new connection
    moves                              as slow                                        no: that is the path
    moves, alone for `ALONE_S`         none; those before were `FAR_SLOWER_ALONE`     once
                                       times as fast
    moves, alone for `ALONE_S`         none known; its share of the rate in force is  once
                                       `FAR_SLOWER_THAN_RATE` times as much
    no byte, no answer for a while     were answered ten times sooner                 after `SILENT_S`, doubled by each
                                                                                      move before
    the same                           wait as long                                   no: that is the store

A move starts the body again. So it must gain: what is left would take `GAIN` times as long as all of it elsewhere. And
the more it costs the longer a body is watched: for half of the time that all of it takes elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

#: Far slower. Flows that share a link without pacing differ by two or three times.
FAR_SLOWER = 4.0
FAR_SLOWER_ALONE = 8.0
#: A rate set by hand may be wrong by much, so it convicts only what hardly moves.
FAR_SLOWER_THAN_RATE = 32.0
#: Younger bodies are not judged, seconds and round trips: by then a new connection has sent 30 times its first window.
MIN_AGE_S, MIN_AGE_ROUND_TRIPS = 0.35, 5
#: A connection that opens its window doubles its rate each round trip, for so many round trips at most; one whose slow
#: start ended early crawls at first.
OPENING_ROUND_TRIPS = 16
#: Over so long a rate is measured, seconds and round trips; others are compared with if they moved within 4 times that.
WINDOW_S, WINDOW_ROUND_TRIPS = 0.25, 4
#: A body alone is judged after this long: it may be the path.
ALONE_S, ALONE_ROUND_TRIPS = 2.0, 10
#: No byte and no answer: "retry after 2 seconds, then 4" (AWS, "Best practices design patterns: optimizing Amazon S3
#: performance", on small requests).
SILENT_S = 2.0
SILENT_TIMES = 10
#: A byte may have been acknowledged so long before it was seen, seconds.
SAMPLED_S = 0.15
#: Two must have been answered meanwhile: one may be an exception.
SILENT_PEERS = 2
#: So many times longer the rest must take than a move, and this much longer, seconds.
GAIN, GAIN_S = 3.0, 0.5
#: A move costs round trips beside the sending: for the request, and for a window that is not open yet.
MOVE_ROUND_TRIPS = 8
#: One body is moved so often at most.
MOVES_MAX = 4
#: Smaller bodies have no rate: they are a few packets.
RATED_BYTES = 64 * 1024
#: A body at least this large, or half as large as another one, tells at which rate that could move. The first bytes
#: are taken at any rate, by the buffers on the way; of a body that is not answered yet they are left out, seconds.
_COMPARABLE_BYTES, _COMPARABLE_SHARE, _FIRST_BYTES_S = 4 << 20, 2, 0.3
#: A receiver that reads slowly opens its window seldom, for a few hundred kilobytes: the rate of what moves like that
#: shows over so many bytes only, which what is fast moves within so many of the windows above.
_RATE_BYTES, _RATE_WINDOWS = 1 << 20, 8
#: What ended longer ago tells nothing, seconds; and so many are remembered.
_LATELY_S, _REMEMBERED = 120.0, 64
#: A rate that was far ahead of this body holds for so long, seconds: those that moved at it have ended by now.
_REFERENCE_S = 5.0
#: It must be slow for so long without a break, seconds; and for this share of what a move costs, up to the maximum.
SLOW_MIN_S, SLOW_SHARE, SLOW_MAX_S = 0.1, 0.5, 5.0
#: With a longer gap between two samples this process was stopped, and no connection was silent or slow, seconds.
_GAP_S = 0.5
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Move:
    """That an upload is to be moved.

    Args:
        reason: one line.
        reference: the rate that others have, bytes/s; it is expected of the next connection too. None when unknown.
        blames_address: no other upload moves well at the address.
        window: what the next connection must be able to have in flight, bytes. While this one may still open its
            window, over a long way, one that has to do so too is no better.
    """

    reason: str
    reference: float | None
    blames_address: bool
    window: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """How often a body was moved, and the last `Move.reference`."""

    count: int = 0
    reference: float | None = None


NEVER_MOVED = Moved()


class Pace:
    """How a body moved, from samples.

    Args:
        size: bytes.
        moved: how often before.

    Attributes:
        address: where it goes.
        began: when, monotonic seconds.
        reference: the rate that others have, bytes/s, as found at `reference_at`; None when that is unknown.
        speed: its rate of late, bytes/s; once it has ended, that of all of it.
        slow_since: from when on it was far below that at each tick; None when it was not at the last one.
        silent_s: for how long no byte was acknowledged, up to the last sample.
        has_ended: it was answered.
    """

    def __init__(self, size: int, moved: Moved = NEVER_MOVED) -> None:
        self.size = size
        self.moved = moved
        self.address = ""
        self.began = self.reference_at = 0.0
        self.reference = moved.reference
        self.speed = 0.0
        self.slow_since: float | None = None
        self.silent_s = 0.0
        self.has_ended = False
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, address: str, now: float) -> None:
        """Note that it begins, where to and when."""
        self.address = address
        self.began = self.reference_at = now
        self._samples.append((now, 0))

    @property
    def at(self) -> float:
        """When it was sampled last, monotonic seconds."""
        return self._samples[-1][0]

    @property
    def acked(self) -> int:
        """The bytes acknowledged then."""
        return self._samples[-1][1]

    def sample(self, now: float, acked: int) -> None:
        """Note the bytes acknowledged at `now`."""
        gap_s = now - self.at
        self.slow_since = None if gap_s > _GAP_S else self.slow_since
        self.silent_s = 0.0 if acked != self.acked else self.silent_s + min(gap_s, _GAP_S)
        self._samples.append((now, acked))

    def moved_since(self, count: int) -> float | None:
        """Return since when the last `count` bytes were acknowledged; None when there are not so many."""
        return next((at for at, acked in reversed(self._samples) if acked <= self.acked - count), None)

    def rate(self, since: float, until: float) -> float:
        """Return bytes per second between two times, in a straight line between samples; 0 when that is no time."""
        span = until - since
        return max(0.0, self._acked_at(until) - self._acked_at(since)) / span if span > 0 else 0.0

    def _acked_at(self, time: float) -> float:
        later_at, later = self._samples[-1]
        for at, acked in reversed(self._samples):
            if at <= time:
                share = (time - at) / (later_at - at) if later_at > at else 0.0
                return acked + (later - acked) * min(1.0, share)
            later_at, later = at, acked
        return float(self._samples[0][1])

    def may_be_opening(self, rtt_s: float) -> bool:
        """Return whether its connection may still open its window."""
        return self.at - self.began < OPENING_ROUND_TRIPS * rtt_s

    def is_speeding_up(self, window: float, rtt_s: float) -> bool:
        """Return whether it moves like a connection that opens its window."""
        middle = self.at - window / 2
        return self.may_be_opening(rtt_s) and self.rate(middle, self.at) > 1.5 * self.rate(self.at - window, middle)


class Stragglers:
    """The bodies on the way to one store, and those that ended lately."""

    def __init__(self) -> None:
        self._moving: list[Pace] = []
        self._ended: deque[Pace] = deque(maxlen=_REMEMBERED)

    def begin(self, pace: Pace, address: str, now: float) -> None:
        """Add a body that begins, where to and when."""
        pace.begin(address, now)
        self._moving.append(pace)

    def end(self, pace: Pace, now: float, *, answered: bool) -> None:
        """Remove a body that is over at monotonic time `now`; others are compared with it if it was `answered`."""
        if pace not in self._moving:
            return
        self._moving.remove(pace)
        if answered:
            pace.sample(now, pace.size)
            pace.speed, pace.has_ended = pace.rate(pace.began, now), True
            self._ended.append(pace)

    def tick(
        self, pace: Pace, now: float, acked: int, *, rtt_s: float, share: float | None = None, is_starved: bool = False
    ) -> Move | None:
        """Note how far a body is, and return a `Move` when it should be moved.

        Args:
            pace: of the body.
            now: monotonic seconds.
            acked: bytes acknowledged since it began.
            rtt_s: the least round-trip time of its connection, seconds.
            share: what its connection may send at most, bytes/s; None when there is no limit.
            is_starved: all that was read of the file is acknowledged, and more is to come.
        """
        pace.sample(now, min(acked, pace.size))
        if is_starved:
            pace.slow_since, pace.silent_s = None, 0.0
            return None
        if pace.moved.count >= MOVES_MAX:
            return None
        return self._too_slow(pace, rtt_s, share) or self._too_silent(pace, rtt_s)

    def _too_slow(self, pace: Pace, rtt_s: float, share: float | None) -> Move | None:
        now, window = pace.at, max(WINDOW_S, WINDOW_ROUND_TRIPS * rtt_s)
        pace.speed = pace.rate(max(pace.began, now - window), now)
        if pace.size < RATED_BYTES or pace.acked >= pace.size:
            return None
        fastest = max((other.speed for other in (*self._moving, *self._ended)), default=0.0)
        if max(fastest, pace.reference or 0.0, share or 0.0) <= FAR_SLOWER * pace.speed:
            pace.slow_since = None  # as nearly always: no more need be known
            return None
        faster, is_alone = self._compare(pace, window, rtt_s, share)
        expected = min(pace.reference or 0.0, share or math.inf)
        if expected <= FAR_SLOWER * pace.speed:
            pace.slow_since = None
            return None
        pace.slow_since = now if pace.slow_since is None else pace.slow_since
        rate = pace.rate(max(pace.began, min(pace.slow_since, now - window)), now)
        if not _is_worth_it(pace, rate, expected, rtt_s) or pace.is_speeding_up(window, rtt_s):
            return None
        good = {peer.address for peer in faster or self._lately(pace)}
        reason = f"{rate / 1000:.0f} kB/s, where {expected / 1000:.0f} kB/s are usual"
        window_bytes = int(FAR_SLOWER * rate * rtt_s) if pace.may_be_opening(rtt_s) else 0
        return Move(reason, None if is_alone else pace.reference, pace.address not in good, window_bytes)

    def _compare(self, pace: Pace, window: float, rtt_s: float, share: float | None) -> tuple[list[Pace], bool]:
        """Set the reference of a body; return the others that are far faster, and whether there are none to compare."""
        compared = [(peer, *rates) for peer in self._others(pace) if (rates := _compared(pace, peer, window))]
        faster = [(peer, theirs) for peer, own, theirs in compared if theirs > FAR_SLOWER * own]
        alone = None
        if faster and 2 * len(faster) >= len(compared):
            pace.reference, pace.reference_at = statistics.median(theirs for _, theirs in faster), pace.at
        elif not any(_is_comparable(pace, other) for other in self._others(pace, pace.at - window)):
            alone = self._reference_alone(pace, rtt_s, share)
        if alone is not None:
            pace.reference, pace.reference_at = alone, pace.at
        elif pace.at - pace.reference_at > _REFERENCE_S:
            pace.reference = None
        return [peer for peer, _ in faster], alone is not None

    def _others(self, pace: Pace, since: float = 0.0) -> Iterable[Pace]:
        """Return the other bodies in flight, and those that have ended after this one began and after `since`."""
        yield from (other for other in self._moving if other is not pace)
        yield from (other for other in self._ended if other.at > max(pace.began, since))

    def _lately(self, pace: Pace) -> list[Pace]:
        ended = [other for other in self._ended if other.at > pace.at - _LATELY_S]
        return [other for other in ended if _is_comparable(pace, other)]

    def _reference_alone(self, pace: Pace, rtt_s: float, share: float | None) -> float | None:
        if pace.moved.count or pace.at - pace.began < ALONE_S + ALONE_ROUND_TRIPS * rtt_s:
            return None
        if lately := self._lately(pace):
            usual = statistics.median(other.speed for other in lately)
            return usual if usual > FAR_SLOWER_ALONE * pace.speed else None
        return share if share is not None and share > FAR_SLOWER_THAN_RATE * pace.speed else None

    def _too_silent(self, pace: Pace, rtt_s: float) -> Move | None:
        silent_s = pace.silent_s
        if silent_s < (SILENT_S + WINDOW_ROUND_TRIPS * rtt_s) * 2**pace.moved.count:
            return None
        since = pace.at - silent_s - SAMPLED_S  # an answer before that says nothing of the path since
        similar = [other for other in self._others(pace, since) if other.size * _COMPARABLE_SHARE >= pace.size]
        answered = [other for other in similar if other.has_ended]
        usual_s = statistics.median(other.silent_s for other in similar) if similar else silent_s
        if len(answered) < SILENT_PEERS or silent_s < SILENT_TIMES * usual_s:
            return None
        what = "no answer" if pace.acked >= pace.size else "no byte taken"
        is_blamed = pace.address not in {other.address for other in answered}
        return Move(f"{what} for {silent_s:.1f} s, where others are answered", pace.reference, blames_address=is_blamed)


def _is_comparable(pace: Pace, other: Pace) -> bool:
    return other.size >= max(RATED_BYTES, min(pace.size // _COMPARABLE_SHARE, _COMPARABLE_BYTES))


def _compared(pace: Pace, other: Pace, window: float) -> tuple[float, float] | None:
    """Return the rates of a body and another one in the time that they shared last; None when that tells nothing."""
    until = min(pace.at, other.at)
    if not _is_comparable(pace, other) or until < pace.at - 4 * window:
        return None
    moved_since = other.moved_since(_RATE_BYTES)
    if not other.has_ended:
        earliest = max(other.began + _FIRST_BYTES_S, until - _RATE_WINDOWS * window)
        if moved_since is None or moved_since < earliest or other.acked >= other.size:
            return None  # what it moved may all be in a buffer
    since = max(pace.began, other.began, min(until - window, other.began if moved_since is None else moved_since))
    if until - since < min(window, other.at - other.began) / 2 or until <= since:
        return None
    return pace.rate(since, until), other.rate(since, until)


def _is_worth_it(pace: Pace, rate: float, expected: float, rtt_s: float) -> bool:
    """Return whether a body that is slow was watched for long enough, and would gain by a move."""
    age_s, slow_s = pace.at - pace.began, 0.0 if pace.slow_since is None else pace.at - pace.slow_since
    again_s = pace.size / expected + MOVE_ROUND_TRIPS * rtt_s
    is_watched = age_s >= max(MIN_AGE_S, MIN_AGE_ROUND_TRIPS * rtt_s)
    is_watched &= slow_s >= min(max(SLOW_MIN_S, SLOW_SHARE * again_s), SLOW_MAX_S)
    return is_watched and pace.size - pace.acked > rate * (GAIN * again_s + GAIN_S)
