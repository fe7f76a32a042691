"""The buckets that cannot take objects now, while others can. Pure: the time is passed in."""

from __future__ import annotations

import math
from collections.abc import Iterator

#: A bucket whose quota is used up gets one attempt after this long, at first and at most, seconds: each costs the
#: sending of a whole file, and space is made by people.
FULL_FIRST_S, FULL_MAX_S = 5.0, 300.0


class FullBuckets:
    """The buckets that take no more, and when each is tried again: by one transfer at a time."""

    def __init__(self) -> None:
        self._delays: dict[str, tuple[float, float]] = {}  # when the next attempt may start, and the delay after it

    def __iter__(self) -> Iterator[str]:
        return iter(self._delays)

    def refused(self, bucket: str, now: float) -> None:
        """Note that the bucket's quota is used up."""
        self._delays.setdefault(bucket, (now + FULL_FIRST_S, FULL_FIRST_S))

    def earliest(self, bucket: str) -> float:
        """Return the monotonic time from which an attempt at `bucket` may start; 0 for one that is not full."""
        return self._delays[bucket][0] if bucket in self._delays else 0.0

    def started(self, bucket: str, now: float) -> None:
        """Note that an attempt starts: until its outcome is known, the bucket's others wait."""
        if bucket in self._delays:
            delay_s = min(2 * self._delays[bucket][1], FULL_MAX_S)
            self._delays[bucket] = now + delay_s, delay_s

    def stored(self, bucket: str) -> bool:
        """Note that the bucket has taken an object; return whether it was full."""
        return self._delays.pop(bucket, None) is not None

    def clear(self) -> None:
        """Forget all full buckets: an operator has changed something."""
        self._delays.clear()


class SilentBuckets:
    """The buckets that did not answer when last asked, while another one took an object."""

    def __init__(self) -> None:
        self._silent: set[str] = set()
        self._last_stored, self._stored_at = "", -math.inf  # the bucket that has taken an object last, and when

    def __iter__(self) -> Iterator[str]:
        return iter(self._silent)

    def __contains__(self, bucket: object) -> bool:
        """Return whether a bucket is silent."""
        return bucket in self._silent

    def unanswered(self, bucket: str, started_at: float) -> None:
        """Note that an attempt which started at `started_at` was not answered."""
        if self._stored_at > started_at and self._last_stored != bucket:
            self._silent.add(bucket)

    def answered(self, bucket: str) -> None:
        """Note that an attempt was answered, if only with an error."""
        self._silent.discard(bucket)

    def stored(self, bucket: str, now: float) -> bool:
        """Note that the bucket has taken an object; return whether it was silent."""
        was_silent = bucket in self._silent
        self._silent.discard(bucket)
        self._last_stored, self._stored_at = bucket, now
        return was_silent

    def clear(self) -> None:
        """Forget all silent buckets: an operator has changed something."""
        self._silent.clear()
