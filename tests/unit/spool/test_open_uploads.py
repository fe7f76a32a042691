"""What is begun is on disk before a part is sent, and what is on disk is what the next process finds."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from pathlib import Path

from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads
from s3daemon.spool.spool import Spool

HOUR = 3600.0
PLACE = Destination("tenant:bucket", "a//b ü.fits")
TRANSFER = Transfer("00ff" * 4, "/data/f", PLACE, (), FileState(12, 1, 2, 3), 4)


def upload(id_: str, transfer_id: str = TRANSFER.id) -> MultipartUpload:
    return MultipartUpload(id_, "http://store", transfer_id, PLACE, 12, "1-2", 5)


def told(ledger: OpenUploads) -> dict[str, tuple[dict[int, str], bool]]:
    """All that it holds."""
    return {begun.upload.id: (begun.etags, begun.completing) for begun in ledger}


def found(directory: Path) -> dict[str, tuple[dict[int, str], bool]]:
    """What a new process finds there, were this one killed now."""
    copy = directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)

    async def main() -> dict[str, tuple[dict[int, str], bool]]:
        spool = Spool.open(copy)
        try:
            assert all(begun.upload == upload(begun.upload.id) for begun in spool.open_uploads)
            return told(spool.open_uploads)
        finally:
            await spool.close()

    return asyncio.run(main())


async def found_by_another(directory: Path) -> dict[str, tuple[dict[int, str], bool]]:
    return await asyncio.to_thread(found, directory)


def test_what_a_crash_leaves(tmp_path: Path) -> None:
    """Beginning and completing are durable at once; parts, and that it is over, with the next that is awaited."""

    async def main() -> None:
        state = tmp_path / "state"
        spool = Spool.open(state, lazy_s=HOUR)
        ledger = spool.open_uploads
        await ledger.begin(upload("one"))
        assert await found_by_another(state) == {"one": ({}, False)}
        (one,) = ledger
        ledger.part(one, 1, "etag1")
        ledger.part(one, 3, "etag3")
        await ledger.begin(upload("two"))
        assert await found_by_another(state) == {"one": ({1: "etag1", 3: "etag3"}, False), "two": ({}, False)}
        await ledger.completing(one)
        assert await found_by_another(state) == {"one": ({1: "etag1", 3: "etag3"}, True), "two": ({}, False)}
        ledger.part(one, 3, "another")
        ledger.over(next(begun for begun in ledger if begun.upload.id == "two"))
        await spool.close()
        assert told(ledger) == await found_by_another(state) == {"one": ({1: "etag1", 3: "another"}, True)}

    asyncio.run(main())


def test_nothing_of_what_is_over_stays_on_disk(tmp_path: Path) -> None:
    """A part that is noted after the end leaves no row behind."""

    async def main() -> None:
        spool = Spool.open(tmp_path)
        await spool.open_uploads.begin(upload("one"))
        (one,) = spool.open_uploads
        spool.open_uploads.part(one, 1, "etag")
        spool.open_uploads.over(one)
        spool.open_uploads.part(one, 2, "late")
        await spool.close()

    asyncio.run(main())
    db = sqlite3.connect(tmp_path / "spool.db")
    assert [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("upload", "part")] == [(0,), (0,)]
    db.close()


def test_it_outlives_its_transfer(tmp_path: Path) -> None:
    """Stored, dropped or failed: whoever ends a transfer need not think of its upload."""

    async def main() -> None:
        spool = Spool.open(tmp_path)
        await spool.add(TRANSFER, 1.0, attempt_started=True)
        await spool.open_uploads.begin(upload("one"))
        await spool.drop([TRANSFER.id])
        await spool.close()
        spool = Spool.open(tmp_path)
        assert spool.entries() == []
        assert [begun.upload for begun in spool.open_uploads] == [upload("one")]
        assert [begun.upload for begun in spool.open_uploads.of(TRANSFER.id)] == [upload("one")]
        assert spool.open_uploads.of("another") == []
        (one,) = spool.open_uploads
        one.abandoned = True
        assert spool.open_uploads.of(TRANSFER.id) == []
        await spool.close()

    asyncio.run(main())


def test_a_spool_that_was_replaced_gets_it_again(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    """The file is destroyed under the daemon: what memory has is in its replacement."""

    async def main() -> None:
        state = tmp_path / "state"
        replaced = asyncio.Event()
        spool = Spool.open(state, on_replaced=replaced.set)
        await spool.add(TRANSFER, 1.0, attempt_started=True)
        await spool.open_uploads.begin(upload("one"))
        (one,) = spool.open_uploads
        spool.open_uploads.part(one, 1, "etag")
        await spool.start_attempt(TRANSFER.id)
        connections[-1].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connections[-1].execute("PRAGMA shrink_memory")  # or the pages would be served from memory
        with (state / "spool.db").open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom((state / "spool.db").stat().st_size - 4096))
        await spool.start_attempt(TRANSFER.id)
        await asyncio.wait_for(replaced.wait(), 20)
        await spool.restore([])
        assert await found_by_another(state) == {"one": ({1: "etag"}, False)}
        await spool.close()

    asyncio.run(main())
