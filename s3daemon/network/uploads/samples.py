"""What was acknowledged of a body, by time, and the rates that follow from it. Pure: the time is passed in.

It measures; what a rate means is decided in `straggler`.
"""

from __future__ import annotations

from collections import deque

#: After a longer gap between two samples, seconds, this process was stopped: no connection was slow or silent then.
GAP_S = 0.5
#: A new connection doubles its rate each round trip, for at most this many round trips: then its window is open. Where
#: slow start ended early, the rate grows more slowly, and needs as many.
OPENING_ROUND_TRIPS = 16
#: A rate that grows by this factor within half a window grows as that of a new connection does.
_SPEEDS_UP = 1.5
_SAMPLES = 64


class Samples:
    """The bytes acknowledged of one body at each tick.

    Attributes:
        began: when it began to be sent, monotonic seconds.
        silent_s: for how long no byte was acknowledged, up to the last sample.
    """

    def __init__(self) -> None:
        self.began = 0.0
        self.silent_s = 0.0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, now: float) -> None:
        """Note that it begins to be sent at monotonic time `now`."""
        self.began = now
        self._samples.append((now, 0))

    def add(self, now: float, acked: int) -> None:
        """Add a sample: the bytes acknowledged since the body began, at monotonic time `now`."""
        gap_s = now - self.sampled_at
        self.silent_s = 0.0 if acked != self.acked else self.silent_s + min(gap_s, GAP_S)
        self._samples.append((now, acked))

    @property
    def sampled_at(self) -> float:
        """The time of the last sample, monotonic seconds."""
        return self._samples[-1][0]

    @property
    def acked(self) -> int:
        """The bytes that were acknowledged at the last sample."""
        return self._samples[-1][1]

    @property
    def age_s(self) -> float:
        """How long it was sent, up to the last sample, seconds."""
        return self.sampled_at - self.began

    def time_of_last(self, count: int) -> float | None:
        """Return the time from which on the last `count` bytes were acknowledged; None when fewer were."""
        return next((at for at, acked in reversed(self._samples) if acked <= self.acked - count), None)

    def rate(self, since: float, until: float) -> float:
        """Return bytes per second between two times, interpolated between samples; 0 when `until` is not later."""
        span = until - since
        return max(0.0, self._acked_at(until) - self._acked_at(since)) / span if span > 0 else 0.0

    def recent_rate(self, over_s: float) -> float:
        """Return bytes per second in the last `over_s` seconds, or since it began."""
        return self.rate(max(self.began, self.sampled_at - over_s), self.sampled_at)

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
        return self.age_s < OPENING_ROUND_TRIPS * rtt_s

    def is_speeding_up(self, window: float, rtt_s: float) -> bool:
        """Return whether its rate grows like that of a connection that opens its window."""
        middle = self.sampled_at - window / 2
        before, after = self.rate(self.sampled_at - window, middle), self.rate(middle, self.sampled_at)
        return self.may_be_opening(rtt_s) and after > _SPEEDS_UP * before
