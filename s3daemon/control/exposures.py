"""The last exposures as the status shows them, counted from several parts of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3daemon.control.codec import JsonObject
from s3daemon.model.exposure import Exposure, Exposures

if TYPE_CHECKING:  # commands read the status without a delivery
    from s3daemon.delivery.uploader import Uploader
    from s3daemon.ingress.refusals import Refusals
    from s3daemon.spool.spool import Spool

#: As many bars as a chart shows well; at one a minute half an hour.
SHOWN = 30


@dataclass(frozen=True, slots=True)
class ExposureStatus(JsonObject):
    """One exposure at one moment.

    Args:
        name: the tag, or bucket and prefix.
        tagged: the name is a tag.
        first_usec: when its first request came, microseconds since the epoch.
        last_usec: when its last object so far was stored; None when none was.
        seconds: from the first request to the last object, or to now while one is pending; None without either.
        verdict: as of `verdict_of`.
        stored, failed, refused, pending: numbers of files; the last of transfers.
        size_bytes: stored.
        reason: why the first missing file is missing; empty when none is.
    """

    name: str
    tagged: bool
    first_usec: int
    last_usec: int | None
    seconds: float | None
    verdict: str
    stored: int
    failed: int
    refused: int
    pending: int
    size_bytes: int
    reason: str


def status_of(exposure: Exposure, now_usec: int) -> ExposureStatus:
    """Describe an exposure at a moment of the wall clock, microseconds since the epoch."""
    return ExposureStatus(
        name=exposure.name,
        tagged=exposure.tagged,
        first_usec=exposure.first_usec,
        last_usec=exposure.last_usec,
        seconds=exposure.seconds(now_usec),
        verdict=exposure.verdict(now_usec),
        stored=exposure.stored,
        failed=exposure.failed,
        refused=exposure.refused,
        pending=len(exposure.pending),
        size_bytes=exposure.size_bytes,
        reason=exposure.reason,
    )


def watch_exposures(uploader: Uploader, spool: Spool, refusals: Refusals) -> Exposures:
    """Return the exposures that the spool kept, to which every transfer and every refusal is added from now on."""
    exposures = Exposures(spool.kept.exposures, on_loss=spool.save_loss)
    uploader.schedule.on_added = lambda queued: exposures.added(queued.transfer)
    uploader.schedule.on_removed = lambda queued: exposures.removed(queued.transfer)
    uploader.records.observers.append(exposures.recorded)
    refusals.observers.append(exposures.refused)
    for entry in spool.failed_entries():
        exposures.failed_before(entry.transfer, f"{entry.code}: {entry.text}")
    return exposures
