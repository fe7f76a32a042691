"""The last exposures that this process delivered: how long each took up to its last object, and what is missing.

An exposure is the transfers that carry one tag; those without a tag are grouped by their key up to its last slash.
The callers report every transfer that becomes pending, ceases to be, or ends, and pass the time: no I/O, no clock.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from s3daemon.control.codec import JsonObject
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import Transfer, prefix_of

#: The ones requested last are kept. At one a minute this is half an hour, and as many bars as a chart shows well.
KEPT = 30
#: From the first request to the last object stored: longer is late; later still, and the exposure is given up as lost.
LATE_S, LOST_S = 10.0, 30.0
#: The verdict on files that carry no tag: what they have in common is a folder, which may be that of a whole night.
UNTAGGED = "untagged"


def judge(seconds: float | None, *, missing: int, tagged: bool, late_s: float = LATE_S, lost_s: float = LOST_S) -> str:
    """The one verdict on an exposure, for status, page, metrics and report: the worst that applies.

    Args:
        seconds: from its first request to its last object, or to now while some are pending; None when none came.
        missing: files that are known to be missing for good.
        tagged: it is known to be one exposure, so its time can be judged.
        late_s: after so many seconds it is late.
        lost_s: after so many it is given up, though not before it is late.

    Returns:
        `lost`, `incomplete`, `late`, or `in time`; without a tag `incomplete` or `untagged`.
    """
    if tagged and (seconds is None or seconds > max(late_s, lost_s)):
        return "lost"
    if missing:
        return "incomplete"
    if not tagged:
        return UNTAGGED
    return "late" if (seconds or 0.0) > late_s else "in time"


@dataclass(frozen=True, slots=True)
class ExposureStatus(JsonObject):
    """One exposure at one moment.

    Args:
        name: the tag, or bucket and prefix.
        tagged: the name is a tag.
        first_usec: when its first request came, microseconds since the epoch.
        last_usec: when its last object so far was stored; None when none was.
        seconds: from the first request to the last object, or to now while transfers are pending; None when all failed.
        verdict: of `judge`.
        stored, failed, pending: numbers of transfers.
        size_bytes: stored.
    """

    name: str
    tagged: bool
    first_usec: int
    last_usec: int | None
    seconds: float | None
    verdict: str
    stored: int
    failed: int
    pending: int
    size_bytes: int


@dataclass(slots=True)
class Exposure:
    """What is known of one exposure.

    Args:
        name: the tag, or bucket and prefix.
        tagged: the name is a tag.
        first_usec: when its first request came, microseconds since the epoch.
        last_usec: when its last object so far was stored, likewise; None when none was.
        stored: transfers whose object is in the store.
        failed: ids of the transfers that failed for good.
        size_bytes: stored.
        pending: ids of the transfers that are not over.
    """

    name: str
    tagged: bool
    first_usec: int
    last_usec: int | None = None
    stored: int = 0
    failed: set[str] = field(default_factory=set)
    size_bytes: int = 0
    pending: set[str] = field(default_factory=set)

    def at(self, now_usec: int) -> ExposureStatus:
        """Its status at a moment of the wall clock, microseconds since the epoch."""
        seconds = self._seconds(now_usec)
        return ExposureStatus(
            name=self.name,
            tagged=self.tagged,
            first_usec=self.first_usec,
            last_usec=self.last_usec,
            seconds=seconds,
            verdict=judge(seconds, missing=len(self.failed), tagged=self.tagged),
            stored=self.stored,
            failed=len(self.failed),
            pending=len(self.pending),
            size_bytes=self.size_bytes,
        )

    def _seconds(self, now_usec: int) -> float | None:
        end_usec = now_usec if self.pending else self.last_usec
        return None if end_usec is None else max(0, end_usec - self.first_usec) / 1e6


class Exposures:
    """The last exposures, in the order of their first requests.

    Args:
        kept: how many.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._by_name: dict[tuple[bool, str], Exposure] = {}
        self._order: list[Exposure] = []

    def __iter__(self) -> Iterator[Exposure]:
        return iter(self._order)

    def added(self, transfer: Transfer) -> None:
        """Count a transfer that is pending, for the first time or again after it failed."""
        to = transfer.destination
        for exposure in self._of(transfer.tags, to.bucket, to.key, transfer.accepted_usec):
            exposure.failed.discard(transfer.id)
            exposure.pending.add(transfer.id)

    def removed(self, transfer: Transfer) -> None:
        """Count a transfer that is no longer pending. One that was withdrawn without a record leaves no trace."""
        for exposure in [exposure for exposure in self._order if transfer.id in exposure.pending]:
            exposure.pending.remove(transfer.id)
            if not (exposure.pending or exposure.stored or exposure.failed):
                self._forget(exposure)

    def recorded(self, record: TransferRecord) -> None:
        """Count a transfer that is over."""
        for exposure in self._of(record.tags, record.bucket, record.key, record.start_usec):
            exposure.pending.discard(record.transfer_id)
            if record.stored:
                exposure.stored += 1
                exposure.size_bytes += record.size_bytes
                exposure.last_usec = max(exposure.last_usec or 0, record.start_usec + record.total_usec)
            else:
                exposure.failed.add(record.transfer_id)

    def _of(self, tags: Iterable[str], bucket: str, key: str, start_usec: int) -> Iterator[Exposure]:
        """Yield the exposures that a transfer belongs to; none when they are older than all that are kept."""
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
        exposure = self._by_name[name] = Exposure(name[1], name[0], start_usec)
        insort(self._order, exposure, key=_first)
        return exposure

    def _forget(self, exposure: Exposure) -> None:
        self._order.remove(exposure)
        del self._by_name[exposure.tagged, exposure.name]


def _first(exposure: Exposure) -> int:
    return exposure.first_usec
