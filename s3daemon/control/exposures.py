"""The last exposures, as far as this process saw them: how long each took to its last object, and what is missing.

An exposure is what requests give one tag; what has no tag goes by the key up to its last slash. It watches the same
records as the journal, and what becomes pending and ceases to be. Pure: it is told everything, the time included.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from s3daemon.model.record import TransferRecord
from s3daemon.model.request import Transfer, prefix_of

#: Those asked for last are kept. At one a minute this is half an hour, and as many bars as a chart shows well.
KEPT = 30
#: From the first request to the last object stored: longer is late; longer still, and nobody waits for it any more.
LATE_S, LOST_S = 10.0, 30.0


@dataclass(slots=True)
class Exposure:
    """What is known of one.

    Args:
        name: the tag, or the prefix.
        tagged: it is a tag.
        first_usec: when it was asked for first, microseconds since the epoch.
        last_usec: when its last object so far was stored, likewise; None when none was.
        stored: transfers whose object is in the store.
        failed: ids of those that failed for good.
        size_bytes: stored.
        pending: ids of those that are not over.
    """

    name: str
    tagged: bool
    first_usec: int
    last_usec: int | None = None
    stored: int = 0
    failed: set[str] = field(default_factory=set)
    size_bytes: int = 0
    pending: set[str] = field(default_factory=set)

    def seconds(self, now_usec: int) -> float | None:
        """From the first request to the last object; to now while something is pending; None: all of it failed."""
        end_usec = now_usec if self.pending else self.last_usec
        return None if end_usec is None else max(0, end_usec - self.first_usec) / 1e6

    def verdict(self, now_usec: int) -> str:
        """The worst of what is so: `lost`, or `incomplete` since something failed, or `late`; else `in time`."""
        seconds = self.seconds(now_usec)
        if seconds is None or seconds > LOST_S:
            return "lost"
        return "incomplete" if self.failed else "late" if seconds > LATE_S else "in time"

    def as_dict(self, now_usec: int) -> dict[str, object]:
        """For JSON.

        Args:
            now_usec: wall clock, microseconds since the epoch.
        """
        return {
            "name": self.name,
            "tagged": self.tagged,
            "first_usec": self.first_usec,
            "last_usec": self.last_usec,
            "seconds": self.seconds(now_usec),
            "verdict": self.verdict(now_usec),
            "stored": self.stored,
            "failed": len(self.failed),
            "pending": len(self.pending),
            "size_bytes": self.size_bytes,
        }


class Exposures:
    """The last ones, in the order in which they were asked for.

    Args:
        kept: so many.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_name: dict[tuple[bool, str], Exposure] = {}
        self._order: list[Exposure] = []

    def __iter__(self) -> Iterator[Exposure]:
        return iter(self._order)

    def added(self, transfer: Transfer) -> None:
        """It is pending, for the first time or again after it failed."""
        to = transfer.destination
        for exposure in self._of(transfer.tags, to.bucket, to.key, transfer.accepted_usec):
            exposure.failed.discard(transfer.id)
            exposure.pending.add(transfer.id)

    def removed(self, transfer: Transfer) -> None:
        """It is no longer pending. What was withdrawn without a record leaves no trace."""
        for exposure in [exposure for exposure in self._order if transfer.id in exposure.pending]:
            exposure.pending.remove(transfer.id)
            if not (exposure.pending or exposure.stored or exposure.failed):
                self._forget(exposure)

    def recorded(self, record: TransferRecord) -> None:
        """It is over."""
        for exposure in self._of(record.tags, record.bucket, record.key, record.start_usec):
            exposure.pending.discard(record.transfer_id)
            if record.stored:
                exposure.stored += 1
                exposure.size_bytes += record.size_bytes
                exposure.last_usec = max(exposure.last_usec or 0, record.start_usec + record.total_usec)
            else:
                exposure.failed.add(record.transfer_id)

    def _of(self, tags: Iterable[str], bucket: str, key: str, start_usec: int) -> Iterator[Exposure]:
        """Those that a transfer is a part of; none when they are older than what is kept."""
        for tag in dict.fromkeys(tags) or [None]:
            name = (True, tag) if tag is not None else (False, prefix_of(bucket, key))
            exposure = self._by_name.get(name) or self._new(name, start_usec)
            if exposure is not None:
                if start_usec < exposure.first_usec:
                    exposure.first_usec = start_usec
                    self._order.sort(key=_first)
                yield exposure

    def _new(self, name: tuple[bool, str], start_usec: int) -> Exposure | None:
        if len(self._order) >= self._kept:
            if start_usec <= self._order[0].first_usec:
                return None
            self._forget(self._order[0])
        made = self._by_name[name] = Exposure(name[1], name[0], start_usec)
        insort(self._order, made, key=_first)
        return made

    def _forget(self, exposure: Exposure) -> None:
        self._order.remove(exposure)
        del self._by_name[exposure.tagged, exposure.name]


def _first(exposure: Exposure) -> int:
    return exposure.first_usec
