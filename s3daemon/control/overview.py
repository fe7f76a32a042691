"""What the status says beyond counts, as the members of JSON objects: each upload, each exposure, where connections go.

    uploads     one for each attempt in flight, that begun first at the head
      id, bucket, key, file, tags         the transfer's
      attempt                             its number, from 1
      seconds                             since it began
      size_bytes, acked_bytes             of the file; of that acknowledged by the receiver (TCP_INFO)
      rate_bytes_per_s                    since the attempt began
      recent_bytes_per_s                  over its last 4 to 6 s; before that as above
      receivers                           addresses that it goes to now
    receivers   one for each address that connections are open to, or that is left aside
      address, connections
      uploads                             attempts in flight to it
      aside                               it failed and is left aside: nothing goes there
    exposures   the last ones, as `Exposure.as_dict` has them

`Operations.status` puts them together with the counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from s3daemon.control.exposures import Exposures
from s3daemon.delivery.schedule import Job
from s3daemon.delivery.uploader import Uploader

#: Transfers that the status lists of those that wait, and of those that failed; `s3daemon queue` has them all.
LISTED = 20


def watch(uploader: Uploader) -> Exposures:
    """Watch what the uploader carries out from here on."""
    exposures = Exposures()
    uploader.schedule.on_added = lambda job: exposures.added(job.transfer)
    uploader.schedule.on_removed = lambda job: exposures.removed(job.transfer)
    uploader.observers.append(exposures.recorded)
    return exposures


def uploads_of(running: Iterable[Job], now: float) -> list[dict[str, Any]]:
    """Those in flight at monotonic time `now`."""
    return [_upload(job, now) for job in sorted(running, key=lambda job: (job.started_at, job.seq))]


def _upload(job: Job, now: float) -> dict[str, Any]:
    transfer, progress = job.transfer, job.progress
    acked = progress.acked_bytes if progress else 0
    seconds = max(0.0, now - job.started_at)
    rate = acked / seconds if seconds else 0.0
    recent = progress.recent_rate(now) if progress else None
    return {
        "id": transfer.id,
        "bucket": transfer.destination.bucket,
        "key": transfer.destination.key,
        "file": transfer.file,
        "tags": list(transfer.tags),
        "attempt": max(1, job.attempts),
        "seconds": round(seconds, 3),
        "size_bytes": transfer.seen.size,
        "acked_bytes": acked,
        "rate_bytes_per_s": round(rate),
        "recent_bytes_per_s": round(rate if recent is None else recent),
        "receivers": progress.addresses if progress else [],
    }


def receivers_of(
    connections: Mapping[str, int], uploads: Iterable[Mapping[str, Any]], aside: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The addresses.

    Args:
        connections: open ones by address.
        uploads: as `uploads_of` gave them.
        aside: those to which nothing goes.
    """
    busy = Counter(address for upload in uploads for address in upload["receivers"])
    left = set(aside)
    return [
        {"address": a, "connections": connections.get(a, 0), "uploads": busy[a], "aside": a in left}
        for a in sorted({*connections, *busy, *left})
    ]
