"""A disk slower than the store: no client gets *stored* while a crash could still bring back what is older.

Else the older transfer, still in the spool, would be sent again over the newer one, which is not in the spool yet.
"""

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest
from fake_transfer import transfer
from fakes import House

from s3daemon.model.reply import Outcome
from s3daemon.spool.spool import Spool


def test_newer_content_is_durable_no_earlier_than_the_removal_of_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transfer stored before its row is on disk counts as durable when the rows of older ones are gone from there."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def recording(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", recording)
    writing, disk_works = threading.Event(), threading.Event()

    def stand_still(statement: str) -> None:
        """Before each statement wait for the disk."""
        writing.set()
        assert disk_works.wait(20)

    async def main() -> None:
        spool = Spool.open(tmp_path / "spool")
        house = House(spool=spool)
        house.store.seconds = 0.001
        older = await house.intake.submit(house.request("/older"))
        await older.durable
        assert (await older.outcome).outcome is Outcome.STORED
        opened[-1].set_trace_callback(stand_still)
        stuck = asyncio.create_task(spool.start_attempt(transfer(9)))
        assert await asyncio.to_thread(writing.wait, 20)
        newer = await house.intake.submit(house.request("/newer"))
        assert (await newer.outcome).outcome is Outcome.STORED
        durable = asyncio.ensure_future(newer.durable)
        await asyncio.wait({durable}, timeout=0.2)
        assert not durable.done()
        disk_works.set()
        await asyncio.gather(stuck, durable)
        assert spool.entries() == []
        await spool.close()

    asyncio.run(main())
