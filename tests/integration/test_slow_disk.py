"""A disk slower than the store: nobody is told *stored* while a crash could still bring back what is older.

Else the older transfer, still in the spool, would be sent again over the newer one, of which the spool knows nothing.
"""

import asyncio
import time
from pathlib import Path

import test_server
from fakes import House

from s3daemon.model.reply import Outcome
from s3daemon.spool.spool import Spool


def test_stored_is_said_when_the_spool_has_it_too(tmp_path: Path) -> None:
    """The reply waits for the disk although the object is stored."""

    async def main() -> None:
        house = test_server.House(tmp_path)
        house.intake.ticket = house.intake._ticket()
        reply = asyncio.create_task(house.say(test_server.PLAIN))
        try:
            await house.until(lambda: bool(house.intake.requests))
            house.intake.end()
            await asyncio.wait({reply}, timeout=0.2)
            assert not reply.done()
        finally:
            house.intake.ticket.durable.set_result(None)
            assert await reply == b"Success"
            await house.close()

    asyncio.run(main())


def taken_by(spool: Spool) -> None:
    """Wait until the writer has all that it was given."""
    until = time.monotonic() + 10
    while spool._writer._queue:
        assert time.monotonic() < until
        time.sleep(0.001)


def test_newer_content_is_durable_no_earlier_than_the_removal_of_older(tmp_path: Path) -> None:
    """A transfer stored before the disk had it counts as durable when what it overtook is gone from the disk."""

    async def main() -> None:
        spool = Spool.open(tmp_path / "spool")
        house = House(spool=spool)
        house.store.seconds = 0.001
        older = await house.intake.submit(house.request("/older"))
        await older.durable
        assert (await older.outcome).outcome is Outcome.STORED
        with spool._writer._file._lock:  # the disk stands still
            stuck = asyncio.create_task(spool.begin("nobody"))
            await asyncio.sleep(0)
            await asyncio.to_thread(taken_by, spool)
            newer = await house.intake.submit(house.request("/newer"))
            assert (await newer.outcome).outcome is Outcome.STORED
            durable = asyncio.ensure_future(newer.durable)
            await asyncio.wait({durable}, timeout=0.2)
            assert not durable.done()
        await asyncio.gather(stuck, durable)
        assert spool.entries() == []
        await spool.close()

    asyncio.run(main())
