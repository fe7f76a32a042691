"""The last exposures: how long each took until its last object was stored, and which files are missing. Pure.

An exposure is all transfers with the same tag; those without a tag are grouped by their key up to its last slash.
Callers report each transfer when it becomes pending, when it no longer is, and when it ends, and each request that is
refused; the time is passed in. The spool keeps exposures across a restart (`spool.exposures`); which transfers are
pending follows from the transfers that it keeps.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from s3daemon.errors import Code, one_line
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.request import MAX_DESTINATION_CHARS, Transfer, prefix_of

#: How many exposures are kept, those requested last: at one a minute, the last five hours. Those of which every request
#: was refused are counted apart, up to as many, so that they never displace others.
KEPT = 300
#: The number of missing files that are kept of one exposure: more than any has, and a limit to the memory that clients
#: can fill.
MISSING_KEPT = 1000
#: An exposure with more objects than this is none, and each counts: a tag or a folder for a whole night must not fill
#: the memory.
MARKS_KEPT = 2000
#: The longest times from the first request to the last object stored, seconds: beyond the first an exposure is late,
#: beyond the second it is lost.
LATE_S, LOST_S = 10.0, 30.0

#: The name of an exposure: True and a tag, or False and bucket/prefix.
Name = tuple[bool, str]


def names_of(tags: Iterable[str], destination: str) -> tuple[Name, ...]:
    """Return the names of the exposures that a transfer to bucket/key belongs to."""
    return tuple((True, tag) for tag in dict.fromkeys(tags)) or ((False, prefix_of(destination)),)


def is_understood(code: str) -> bool:
    """Return whether a request that was refused with this code was understood: it has a destination that is valid.

    The destination of any other is what a malformed line looks like, and belongs to no exposure; its tag does.
    """
    return code != Code.BAD_REQUEST


#: The verdict on files without a tag, whose time is not judged: they may be all files of a night, in one folder.
UNTAGGED = "untagged"


def verdict_of(seconds: float | None, *, missing: bool, tagged: bool = True, late_s: float = LATE_S) -> str:
    """Return the verdict on an exposure, the worst that is true, for status, page, metrics and report.

    Args:
        seconds: from its first request to its last object, or to now while one is pending; None when none was stored.
        missing: a file of it was refused, failed permanently, or is known to be missing.
        tagged: it has a tag, so it is one exposure and its time is judged.
        late_s: it is late after so many seconds; lost after `LOST_S`, or after these where they are more.

    Returns:
        `lost`, `incomplete`, `late`, or `in time`; without a tag `incomplete` or `untagged`.
    """
    if tagged and seconds is not None and seconds > max(late_s, LOST_S):
        return "lost"
    if missing:
        return "incomplete"
    if not tagged:
        return UNTAGGED
    return "late" if seconds is not None and seconds > late_s else "in time"


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a file of an exposure is not stored, and will not be.

    Args:
        outcome: `failed` or `refused`.
        reason: `CODE: text`.
    """

    outcome: str
    reason: str


def mark_of(destination: str) -> int:
    """Return a number for a destination, in 64 bits with a sign, that tells it from the others of its exposure."""
    return int.from_bytes(blake2b(destination.encode(errors="surrogatepass"), digest_size=8).digest(), signed=True)


@dataclass(slots=True)
class Exposure:
    """What is known of one exposure.

    Args:
        name: the tag, or bucket and prefix.
        tagged: the name is a tag.
        first_usec: when its first request came, microseconds since the epoch.
        last_usec: when its last object so far was stored, likewise; None when none was.
        stored: objects in the store; each destination counts once, however often it was sent, up to `MARKS_KEPT`.
        size_bytes: of these.
        missing: by destination, in the order of time; at most `MISSING_KEPT`.
        pending: ids of the transfers that are not over.
        marks: `mark_of` the destinations that were stored.
    """

    name: str
    tagged: bool
    first_usec: int
    last_usec: int | None = None
    stored: int = 0
    size_bytes: int = 0
    missing: dict[str, Missing] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    marks: set[int] = field(default_factory=set)

    @property
    def failed(self) -> int:
        """The number of files whose transfer failed permanently."""
        return sum(missing.outcome == "failed" for missing in self.missing.values())

    @property
    def refused(self) -> int:
        """The number of files whose request was refused."""
        return len(self.missing) - self.failed

    @property
    def only_refused(self) -> bool:
        """Whether no request of the exposure was accepted, as far as it is known."""
        return not (self.pending or self.stored or self.failed)

    @property
    def reason(self) -> str:
        """Why the first missing file is missing; empty when none is."""
        return next((missing.reason for missing in self.missing.values()), "")

    def seconds(self, now_usec: int) -> float | None:
        """Return the seconds from the first request to the last object, or to `now_usec` while transfers are pending.

        Returns:
            None when nothing is pending and no object was stored.
        """
        end_usec = now_usec if self.pending else self.last_usec
        return None if end_usec is None else max(0, end_usec - self.first_usec) / 1e6

    def verdict(self, now_usec: int) -> str:
        """Return `verdict_of` at a moment of the wall clock, microseconds since the epoch."""
        return verdict_of(self.seconds(now_usec), missing=bool(self.missing), tagged=self.tagged)

    def put_stored(self, what: str, size_bytes: int) -> None:
        """Count the object that was stored at the destination `what`, unless it is counted already."""
        if self.stored < MARKS_KEPT:
            if (mark := mark_of(what)) in self.marks:
                return
            self.marks.add(mark)
        self.stored += 1
        self.size_bytes += size_bytes

    def put_missing(self, what: str, missing: Missing) -> None:
        """Note that the file for the destination `what` is missing, and why."""
        if what in self.missing or len(self.missing) < MISSING_KEPT:
            self.missing[what] = missing


@dataclass(frozen=True, slots=True)
class Loss:
    """A file that has just become missing, to be kept on disk.

    Args:
        names: of its exposures.
        at_usec: when it was requested, microseconds since the epoch.
        what: the destination, or as much as was given of it.
        missing: why.
    """

    names: tuple[Name, ...]
    at_usec: int
    what: str
    missing: Missing


def loss_of(transfer: Transfer, reason: str) -> Loss:
    """Return the loss of a transfer that fails permanently."""
    destination = str(transfer.destination)
    names = names_of(transfer.tags, destination)
    return Loss(names, transfer.accepted_usec, destination, Missing("failed", reason))


class Exposures:
    """The last exposures, in the order of their first requests.

    Args:
        known: the exposures that an earlier process kept.
        kept: the number of exposures to keep, and again of those of which all was refused.
        on_loss: called with every file that becomes missing; writes it to disk.

    Attributes:
        on_change: called with the name of an exposure that has changed, before it may be read.
    """

    def __init__(
        self,
        known: Iterable[Exposure] = (),
        *,
        kept: int = KEPT,
        on_loss: Callable[[Loss], None] = lambda loss: None,
    ) -> None:
        self.on_change: Callable[[Name], None] = lambda name: None
        self._kept = kept
        self._on_loss = on_loss
        self._order = sorted(known, key=_first)
        self._by_name: dict[Name, Exposure] = {(one.tagged, one.name): one for one in self._order}

    def __iter__(self) -> Iterator[Exposure]:
        return iter(self._order)

    def of_tag(self, tag: str) -> Exposure | None:
        """Return the exposure of a tag; None when nothing is known of it."""
        return self._by_name.get((True, tag))

    def added(self, transfer: Transfer) -> None:
        """Add a transfer that became pending: for the first time, again after it failed, or for one more tag."""
        destination = str(transfer.destination)
        for exposure in self._of(names_of(transfer.tags, destination), transfer.accepted_usec):
            exposure.missing.pop(destination, None)
            exposure.pending.add(transfer.id)

    def removed(self, transfer: Transfer) -> None:
        """Remove a transfer that is no longer pending, and an exposure that has nothing else."""
        for name in names_of(transfer.tags, str(transfer.destination)):
            exposure = self._by_name.get(name)
            if exposure is not None and transfer.id in exposure.pending:
                exposure.pending.remove(transfer.id)
                if not (exposure.pending or exposure.stored or exposure.missing):
                    self._forget(exposure)
                self.on_change(name)

    def recorded(self, record: TransferRecord) -> None:
        """Count a transfer that has ended: stored, or failed permanently."""
        names = names_of(record.tags, record.destination)
        if not record.stored:
            loss = Loss(names, record.start_usec, record.destination, Missing("failed", record.error))
            self._lose(loss, record.transfer_id)
            return
        for exposure in self._of(names, record.start_usec):
            exposure.pending.discard(record.transfer_id)
            exposure.missing.pop(record.destination, None)
            exposure.put_stored(record.destination, record.size_bytes)
            exposure.last_usec = max(exposure.last_usec or 0, record.end_usec)
            self.on_change((exposure.tagged, exposure.name))

    def refused(self, refusal: Refusal, at_usec: int) -> None:
        """Count a file that was refused, if it had a tag or a valid destination; `at_usec`: microseconds, epoch."""
        if refusal.tag or ("/" in refusal.destination and is_understood(refusal.code)):
            names = names_of([refusal.tag] if refusal.tag else [], refusal.destination)
            reason = f"{refusal.code}: {refusal.text}"
            what = refusal.destination or one_line(refusal.file, MAX_DESTINATION_CHARS)
            self._lose(Loss(names, at_usec, what, Missing("refused", reason)))

    def failed_before(self, transfer: Transfer, reason: str) -> None:
        """Count a transfer that had failed before this process started, unless the exposure that was kept has it."""
        destination = str(transfer.destination)
        for exposure in self._of(names_of(transfer.tags, destination), transfer.accepted_usec):
            if destination not in exposure.missing:
                exposure.put_missing(destination, Missing("failed", reason))

    def _lose(self, loss: Loss, transfer_id: str = "") -> None:
        for exposure in self._of(loss.names, loss.at_usec, refused=loss.missing.outcome == "refused"):
            exposure.pending.discard(transfer_id)
            exposure.put_missing(loss.what, loss.missing)
            self.on_change((exposure.tagged, exposure.name))
        self._on_loss(loss)

    def _of(self, names: Iterable[Name], start_usec: int, *, refused: bool = False) -> Iterator[Exposure]:
        """Yield the exposures of these names; none when they are older than all that are kept."""
        for name in names:
            exposure = self._by_name.get(name) or self._new(name, start_usec, refused=refused)
            if exposure is not None:
                if start_usec < exposure.first_usec:
                    exposure.first_usec = start_usec
                    self._order.sort(key=_first)
                yield exposure

    def _new(self, name: Name, start_usec: int, *, refused: bool) -> Exposure | None:
        for only_refused in (True, False) if len(self._order) >= self._kept else ():
            alike = [one for one in self._order if one.only_refused is only_refused]
            is_new_one = refused is only_refused
            excess = max(0, len(alike) + is_new_one - self._kept)
            if excess and is_new_one and start_usec <= alike[0].first_usec:
                return None
            for one in alike[:excess]:
                self._forget(one)
        exposure = self._by_name[name] = Exposure(name[1], name[0], start_usec)
        insort(self._order, exposure, key=_first)
        return exposure

    def _forget(self, exposure: Exposure) -> None:
        self._order.remove(exposure)
        del self._by_name[exposure.tagged, exposure.name]


def _first(exposure: Exposure) -> int:
    return exposure.first_usec
