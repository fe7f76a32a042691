"""What became of a transfer, put into the journal's terms."""

from __future__ import annotations

from s3daemon.delivery.schedule import Job
from s3daemon.model.record import AttemptFailure, TransferRecord
from s3daemon.s3.store import Stored


def record_of(job: Job, stored: Stored | None, endpoint: str, now: float, wall: float) -> TransferRecord:
    """The record of a transfer that is over.

    Args:
        job: with its last error when it failed.
        stored: what the store said; None when it failed.
        endpoint: URL of the store.
        now: monotonic seconds.
        wall: seconds since the epoch; dates the end of what an earlier process accepted: no monotonic clock spans two.
    """
    transfer = job.transfer
    total = max(0.0, wall - transfer.accepted_usec / 1e6) if job.recovered else now - job.accepted_at
    attempted = job.attempts > 0
    return TransferRecord(
        transfer_id=transfer.id,
        outcome="stored" if stored else "failed",
        file=transfer.file,
        bucket=transfer.destination.bucket,
        key=transfer.destination.key,
        size_bytes=stored.size if stored else transfer.seen.size,
        start_usec=transfer.accepted_usec,
        queue_usec=_usec(total - (now - job.started_at)) if attempted else _usec(total),
        upload_usec=stored.upload_usec if stored else None,
        total_usec=_usec(total),
        attempts=job.attempts,
        tags=transfer.tags,
        endpoint=endpoint if attempted else "",
        etag=stored.etag if stored else "",
        error="" if stored else f"{job.code}: {job.text}",
        rtt_usec=stored.rtt_usec if stored else None,
        retransmits=stored.retransmits if stored else None,
        connection=stored.connection if stored else "",
        receiver=stored.address if stored else job.receiver,
        changed=job.changed,
        parts=stored.parts if stored and stored.parts > 1 else None,
    )


def warning_of(job: Job, delay_s: float | None) -> AttemptFailure:
    """The entry about an attempt that failed on the way.

    Args:
        job: with the error.
        delay_s: seconds to the next attempt; None when that waits for something else.
    """
    return AttemptFailure(
        transfer_id=job.transfer.id,
        bucket=job.transfer.destination.bucket,
        key=job.transfer.destination.key,
        attempt=job.attempts,
        code=job.code,
        text=job.text,
        receiver=job.receiver,
        delay_usec=None if delay_s is None else _usec(delay_s),
    )


def _usec(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
