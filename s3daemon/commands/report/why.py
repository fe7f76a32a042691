"""Where a transfer's time went, and so why it was slow.

Pure.

    total = queue + upload + rest      queue ends where the attempt that stored it began, so earlier attempts are in it
"""

from __future__ import annotations

from dataclasses import dataclass

from s3daemon.model.record import TransferRecord
from s3daemon.units import size

#: A part below this share of the total explains nothing.
_TELLING = 0.1


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What took longest.

    Args:
        cause: "retried", "queued", "network" or "after", the longest part of the time.
        text: each part that matters, the longest first, for people.
    """

    cause: str
    text: str

    @classmethod
    def of(cls, record: TransferRecord) -> Breakdown:
        """Why a stored transfer took as long as it did."""
        upload = record.upload_usec or 0
        rest = max(0, record.total_usec - record.queue_usec - upload)
        waited = "retried" if record.attempts > 1 else "queued"
        parts = {waited: record.queue_usec, "network": upload, "after": rest}
        ordered = sorted(parts, key=lambda name: -parts[name])
        telling = [name for name in ordered if name == ordered[0] or parts[name] > _TELLING * record.total_usec]
        return cls(ordered[0], "; ".join(_told(name, parts[name], record) for name in telling))


def _told(part: str, usec: int, record: TransferRecord) -> str:
    match part:
        case "retried":
            return f"{record.attempts} attempts, the last began after {seconds(usec)}"
        case "queued":
            return f"queued {seconds(usec)}"
        case "after":
            return f"{seconds(usec)} after the upload, for a look whether it stayed or for the disk"
        case _:
            return f"upload {seconds(usec)}{_network(usec, record)}"


def _network(usec: int, record: TransferRecord) -> str:
    """What the network did to an upload."""
    told = [f"{size(record.size_bytes / usec * 1e6)}/s"] if usec else []
    if record.rtt_usec is not None:
        told.append(f"RTT {record.rtt_usec / 1000:.3g} ms")
    if record.retransmits:
        told.append(f"{record.retransmits} segment{'' if record.retransmits == 1 else 's'} sent again")
    if record.connection == "new":
        told.append("new connection")
    if record.receiver:
        told.append(f"to {record.receiver}")
    return f" ({', '.join(told)})" if told else ""


def seconds(usec: float) -> str:
    """Microseconds as seconds for people: four digits, and no more than milliseconds."""
    value = usec / 1e6
    for below, digits in ((10, 3), (100, 2), (1000, 1)):
        if value < below:
            return f"{value:.{digits}f} s"
    return f"{value:.0f} s"


def bound(usec: int) -> str:
    """A limit as it was given: 7 s."""
    return f"{usec / 1e6:g} s"
