"""What the status says at length: uploads in the order in which they began, receivers with what they have, exposures
that follow every transfer from acceptance to record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from fakes import House, away, fly
from lab.records import START_USEC

from s3daemon.control.overview import receivers_of, uploads_of, watch
from s3daemon.delivery.schedule import Job
from s3daemon.errors import AttemptError, SpoolError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.network.progress import Progress


@dataclass(eq=False)
class Moving:
    """An upload."""

    size: int
    got: int
    address: str

    def acked(self) -> int:
        return self.got


def job(seq: int, started_at: float, got: int = 0) -> Job:
    transfer = Transfer(f"{seq:016x}", "/f", Destination("b", f"k{seq}"), (), FileState(1000, 1, 1, 1), START_USEC)
    made = Job(seq, transfer, 0.0, 0.0, attempts=1, started_at=started_at)
    if got:
        made.progress = Progress()
        made.progress.begin(Moving(1000, got, f"192.0.2.{seq}"))
    return made


def test_uploads() -> None:
    """One that just began has neither progress nor a division by zero; rates are those of acknowledged bytes."""
    first, second, third = uploads_of([job(3, 10.0), job(1, 9.0, 500), job(2, 8.0, 200)], 10.0)
    assert [first["key"], second["key"], third["key"]] == ["k2", "k1", "k3"]
    assert (first["acked_bytes"], first["rate_bytes_per_s"], first["seconds"]) == (200, 100, 2.0)
    assert (third["acked_bytes"], third["rate_bytes_per_s"], third["receivers"]) == (0, 0, [])
    moving = job(1, 9.0, 500)
    assert moving.progress
    moving.progress.sample(9.5)
    moving.progress.begin(Moving(1000, 250, ""))
    (upload,) = uploads_of([moving], 10.0)
    assert (upload["rate_bytes_per_s"], upload["recent_bytes_per_s"]) == (750, 500)


def test_receivers() -> None:
    """Those with connections, with uploads, or left aside, each once."""
    uploads = uploads_of([job(1, 9.0, 500), job(2, 9.0, 200)], 10.0)
    assert receivers_of({"192.0.2.1": 4, "192.0.2.7": 1}, uploads, ["192.0.2.9"]) == [
        {"address": "192.0.2.1", "connections": 4, "uploads": 1, "aside": False},
        {"address": "192.0.2.2", "connections": 0, "uploads": 1, "aside": False},
        {"address": "192.0.2.7", "connections": 1, "uploads": 0, "aside": False},
        {"address": "192.0.2.9", "connections": 0, "uploads": 0, "aside": True},
    ]


def test_exposures_follow_every_transfer() -> None:
    """Accepted, stored, failed, refused by a full disk: at each moment they say what is so."""

    async def main() -> None:
        house = House()
        exposures = watch(house.uploader)
        house.store.answer = away
        tickets = [await house.intake.submit(house.request(key=f"k{n}", tag="e1")) for n in range(3)]
        (one,) = exposures
        assert (one.name, one.pending) == ("e1", {ticket.id for ticket in tickets})
        await asyncio.sleep(20)
        assert (one.stored, len(one.pending)) == (0, 3)
        failing = AttemptError("NoSuchBucket", "no", status=404)
        house.store.answer = lambda transfer: failing if transfer.destination.key == "k2" else None
        await asyncio.sleep(120)
        assert (one.stored, len(one.pending), one.failed) == (2, 0, {tickets[2].id})
        last = max(record.start_usec + record.total_usec for record in house.journal.records if record.stored)
        assert one.last_usec == last

        house.spool.full = True
        ticket = await house.intake.submit(house.request(key="k9", tag="e2"))
        assert [exposure.name for exposure in exposures] == ["e1", "e2"]
        with pytest.raises(SpoolError):
            await ticket.durable
        assert [exposure.name for exposure in exposures] == ["e1"]

    fly(main)
