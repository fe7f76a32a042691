"""Decides when an upload is moved because its connection is far slower than others. Pure: the time is passed in.

A body is what one request sends: a file, or a part of it. Once a tick the bytes acknowledged of each are sampled
(`TrackedBody`), and compared with those of other bodies in the same span of time (`Stragglers`). A link that slows down
or stalls makes all of them equally slow, so none is moved. To move an upload is to end it and to send the body again,
from its start, over another connection:

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
#: A new connection doubles its rate each round trip, for at most this many round trips: then its window is open. Where
#: slow start ended early, the rate grows more slowly, and needs as many.
OPENING_ROUND_TRIPS = 16
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
#: After a longer gap between two samples, seconds, this process was stopped: no connection was slow or silent then.
_GAP_S = 0.5
_SAMPLES = 64


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


class TrackedBody:
    """One body, and the samples of what was acknowledged of it.

    Args:
        size: bytes.
        history: its moves before.

    Attributes:
        address: where it is sent.
        began: when, monotonic seconds.
        reference: the rate that others have, bytes/s, as found at `reference_at`; None when that is unknown.
        speed: its rate at the last tick, bytes/s; once it has ended, that of the whole body.
        slow_since: since when it was far below `reference` at each tick, monotonic seconds; None when it was not at the
            last one.
        silent_s: for how long no byte was acknowledged, up to the last sample.
        has_ended: it was answered.
    """

    def __init__(self, size: int, history: MoveHistory = NEVER_MOVED) -> None:
        self.size = size
        self.history = history
        self.address = ""
        self.began = self.reference_at = 0.0
        self.reference = history.reference
        self.speed = 0.0
        self.slow_since: float | None = None
        self.silent_s = 0.0
        self.has_ended = False
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, address: str, now: float) -> None:
        """Note that it begins to be sent to `address`, at monotonic time `now`."""
        self.address = address
        self.began = self.reference_at = now
        self._samples.append((now, 0))

    @property
    def sampled_at(self) -> float:
        """The time of the last sample, monotonic seconds."""
        return self._samples[-1][0]

    @property
    def acked(self) -> int:
        """The bytes that were acknowledged at the last sample."""
        return self._samples[-1][1]

    def sample(self, now: float, acked: int) -> None:
        """Add a sample: the bytes acknowledged since the body began, at monotonic time `now`."""
        gap_s = now - self.sampled_at
        self.slow_since = None if gap_s > _GAP_S else self.slow_since
        self.silent_s = 0.0 if acked != self.acked else self.silent_s + min(gap_s, _GAP_S)
        self._samples.append((now, acked))

    def last_bytes_since(self) -> float | None:
        """Return the time from which on the last `_RATE_BYTES` were acknowledged; None when fewer were."""
        return next((at for at, acked in reversed(self._samples) if acked <= self.acked - _RATE_BYTES), None)

    def rate(self, since: float, until: float) -> float:
        """Return bytes per second between two times, interpolated between samples; 0 when `until` is not later."""
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
        return self.sampled_at - self.began < OPENING_ROUND_TRIPS * rtt_s

    def is_speeding_up(self, window: float, rtt_s: float) -> bool:
        """Return whether its rate grows like that of a connection that opens its window."""
        middle = self.sampled_at - window / 2
        return self.may_be_opening(rtt_s) and self.rate(middle, self.sampled_at) > 1.5 * self.rate(
            self.sampled_at - window, middle
        )


class _Usual(NamedTuple):
    """What a body that is far slower could have: the rate, bytes/s; who has it; found without any that is sent now."""

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
        body.begin(address, now)
        self._in_flight.append(body)

    def end(self, body: TrackedBody, now: float, *, answered: bool) -> None:
        """Remove a body that is over at monotonic time `now`; others are compared with it if it was `answered`."""
        if body not in self._in_flight:
            return
        self._in_flight.remove(body)
        if answered:
            body.sample(now, body.size)
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
            rtt_s: the least round-trip time of its connection, seconds.
            share: what its connection may send at most, bytes/s; None when there is no limit, or nothing more to send.
            is_starved: all that was read of the file is acknowledged, and more is to come.
        """
        body.sample(now, min(acked, body.size))
        if is_starved or (share is not None and share < LEAST_SHARE):
            body.slow_since, body.silent_s = None, 0.0
            return None
        if body.history.count >= MOVES_MAX:
            return None
        return self._too_slow(body, rtt_s, share) or self._too_silent(body, rtt_s)

    def _too_slow(self, body: TrackedBody, rtt_s: float, share: float | None) -> Move | None:
        now, window = body.sampled_at, max(WINDOW_S, WINDOW_ROUND_TRIPS * rtt_s)
        body.speed = body.rate(max(body.began, now - window), now)
        if body.size <= SMALL_BYTES or body.acked >= body.size:
            return None
        usual = self._usual(body, window, rtt_s, share)
        if usual is None:
            body.slow_since = None
            return None
        body.slow_since = now if body.slow_since is None else body.slow_since
        rate = body.rate(max(body.began, min(body.slow_since, now - window)), now)
        if not _is_worth_it(body, rate, usual.rate, rtt_s) or body.is_speeding_up(window, rtt_s):
            return None
        good = {peer.address for peer in usual.faster or self._lately(body)}
        reason = f"{rate / 1000:.0f} kB/s; {usual.rate / 1000:.0f} kB/s is usual"
        window_bytes = int(FAR_SLOWER * rate * rtt_s) if body.may_be_opening(rtt_s) else 0
        return Move(reason, None if usual.is_alone else body.reference, body.address not in good, window_bytes)

    def _usual(self, body: TrackedBody, window: float, rtt_s: float, share: float | None) -> _Usual | None:
        """Return what is usual, having updated the reference of a body; None when the body is not far slower."""
        fastest = max((other.speed for other in (*self._in_flight, *self._ended)), default=0.0)
        if max(fastest, body.reference or 0.0, share or 0.0) <= FAR_SLOWER * body.speed:
            return None  # as nearly always: the comparison would not change that
        faster, is_alone = self._compare(body, window, rtt_s, share)
        rate = min(body.reference or 0.0, share or math.inf)
        return _Usual(rate, faster, is_alone) if rate > FAR_SLOWER * body.speed else None

    def _compare(
        self, body: TrackedBody, window: float, rtt_s: float, share: float | None
    ) -> tuple[list[TrackedBody], bool]:
        """Set the reference of a body; return the others that are far faster, and whether it was found without any."""
        compared = [(peer, *rates) for peer in self._others(body) if (rates := _compared(body, peer, window))]
        faster = [(peer, theirs) for peer, own, theirs in compared if theirs > FAR_SLOWER * own]
        alone = None
        if faster and 2 * len(faster) >= len(compared):
            body.reference, body.reference_at = statistics.median(theirs for _, theirs in faster), body.sampled_at
        elif not any(_is_comparable(body, other) for other in self._others(body, body.sampled_at - window)):
            alone = self._reference_alone(body, rtt_s, share)
        if alone is not None:
            body.reference, body.reference_at = alone, body.sampled_at
        elif body.sampled_at - body.reference_at > _REFERENCE_S:
            body.reference = None
        return [peer for peer, _ in faster], alone is not None

    def _others(self, body: TrackedBody, since: float = 0.0) -> Iterable[TrackedBody]:
        """Yield the other bodies in flight, and those that have ended after this one began and after `since`."""
        yield from (other for other in self._in_flight if other is not body)
        yield from (other for other in self._ended if other.sampled_at > max(body.began, since))

    def _lately(self, body: TrackedBody) -> list[TrackedBody]:
        ended = [other for other in self._ended if other.sampled_at > body.sampled_at - _LATELY_S]
        return [other for other in ended if _is_comparable(body, other)]

    def _reference_alone(self, body: TrackedBody, rtt_s: float, share: float | None) -> float | None:
        if body.history.count or body.sampled_at - body.began < ALONE_S + ALONE_ROUND_TRIPS * rtt_s:
            return None
        if lately := self._lately(body):
            usual = statistics.median(other.speed for other in lately)
            return usual if usual > FAR_SLOWER_ALONE * body.speed else None
        return share if share is not None and share > FAR_SLOWER_THAN_RATE * body.speed else None

    def _too_silent(self, body: TrackedBody, rtt_s: float) -> Move | None:
        silent_s = body.silent_s
        if silent_s < (SILENT_S + WINDOW_ROUND_TRIPS * rtt_s) * 2**body.history.count:
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
    least = min(body.size // _COMPARABLE_SHARE, _COMPARABLE_BYTES)
    return other.size > SMALL_BYTES and other.size >= least


def _compared(body: TrackedBody, other: TrackedBody, window: float) -> tuple[float, float] | None:
    """Return the rates of a body and another one in the last time in which both were sent; None: not comparable."""
    until = min(body.sampled_at, other.sampled_at)
    if not _is_comparable(body, other) or until < body.sampled_at - 4 * window:
        return None
    full_since = other.last_bytes_since()
    if not other.has_ended:
        earliest = max(other.began + _FIRST_BYTES_S, until - _RATE_WINDOWS * window)
        if full_since is None or full_since < earliest or other.acked >= other.size:
            return None  # all that it sent may be in a buffer
    since = max(body.began, other.began, min(until - window, other.began if full_since is None else full_since))
    if until - since < min(window, other.sampled_at - other.began) / 2 or until <= since:
        return None
    return body.rate(since, until), other.rate(since, until)


def _is_worth_it(body: TrackedBody, rate: float, expected: float, rtt_s: float) -> bool:
    """Return whether a body was slow for long enough, and would be stored sooner by a move."""
    age_s, slow_s = body.sampled_at - body.began, 0.0 if body.slow_since is None else body.sampled_at - body.slow_since
    again_s = body.size / expected + MOVE_ROUND_TRIPS * rtt_s
    is_watched = age_s >= max(MIN_AGE_S, MIN_AGE_ROUND_TRIPS * rtt_s)
    is_watched &= slow_s >= min(max(SLOW_MIN_S, SLOW_SHARE * again_s), SLOW_MAX_S)
    return is_watched and body.size - body.acked > rate * (GAIN * again_s + GAIN_S)
