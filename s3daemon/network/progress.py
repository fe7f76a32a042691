"""How far an attempt has come: what is acknowledged of all that it sends, and how fast. Told the time, never asks.

An attempt has one upload, or one for each part of a large object, several at a time; each joins here as its body begins
and leaves as it ends.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

#: Samples kept for the recent rate; with one each 2 s it is that of the last 4 to 6 s.
_SAMPLES = 3


class Moving(Protocol):
    """An upload, as far as this module looks at it."""

    size: int  #: of its body, bytes
    receiver: str  #: the address that it goes to

    def acked(self) -> int:
        """Bytes acknowledged since the body began, headers and TLS's share included."""


class Progress:
    """That of one attempt."""

    def __init__(self) -> None:
        self._moving: list[Moving] = []
        self._arrived = 0
        self._last_receiver = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def __len__(self) -> int:
        """How many uploads are under way."""
        return len(self._moving)

    def there(self, count: int) -> None:
        """So many bytes, of a file that goes in parts, are in the store since an earlier attempt."""
        self._arrived += count

    def begin(self, upload: Moving) -> None:
        """Its body is about to be sent."""
        self._moving.append(upload)
        self._last_receiver = upload.receiver

    def end(self, upload: Moving) -> None:
        """It is over, not closed yet. What did not arrive whole has to be sent again, and counts for nothing."""
        if upload in self._moving:
            self._moving.remove(upload)
            self._arrived += upload.size if upload.acked() >= upload.size else 0

    @property
    def acked_bytes(self) -> int:
        """How much of the file is acknowledged."""
        return self._arrived + sum(min(upload.acked(), upload.size) for upload in self._moving)

    @property
    def receivers(self) -> list[str]:
        """Addresses that it goes to now; once all is sent, the last one."""
        now = dict.fromkeys(upload.receiver for upload in self._moving) or dict.fromkeys([self._last_receiver])
        return [address for address in now if address]

    def sample(self, now: float) -> None:
        """Remember how far it is at monotonic time `now`, for `recent_rate`."""
        self._samples.append((now, self.acked_bytes))

    def recent_rate(self, now: float) -> float | None:
        """Bytes per second since the oldest sample; None when there is none, or no time has passed."""
        if not self._samples or now <= self._samples[0][0]:
            return None
        then, acked = self._samples[0]
        return max(0, self.acked_bytes - acked) / (now - then)
