"""An upload is on disk before a part is sent, and what is on disk is what the next process finds."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lab.sending import in_loop

from s3daemon.errors import SpoolError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads
from s3daemon.spool.spool import Spool

HOUR = 3600.0
PLACE = Destination("tenant:bucket", "a//b ü.fits")
TRANSFER = Transfer("00ff" * 4, "/data/f", PLACE, (), FileState(12, 1, 2, 3), 4)


def upload(id_: str, transfer_id: str = TRANSFER.id) -> MultipartUpload:
    return MultipartUpload(id_, "http://store", transfer_id, PLACE, 12, "1-2", 5)


def known(uploads: OpenUploads) -> dict[str, tuple[dict[int, str], bool]]:
    """The uploads: their parts, and whether they are being completed."""
    return {one.upload.id: (one.etags, one.completing) for one in uploads}


def found(directory: Path) -> dict[str, tuple[dict[int, str], bool]]:
    """What a new process finds there, were this one killed now."""
    copy = directory.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)

    async def main() -> dict[str, tuple[dict[int, str], bool]]:
        spool = Spool.open(copy)
        try:
            assert all(one.upload == upload(one.upload.id) for one in spool.open_uploads)
            return known(spool.open_uploads)
        finally:
            await spool.close()

    return asyncio.run(main())


async def found_by_another(directory: Path) -> dict[str, tuple[dict[int, str], bool]]:
    return await asyncio.to_thread(found, directory)


@in_loop
async def test_a_crash_leaves_what_was_awaited(tmp_path: Path) -> None:
    """Beginning and completing are durable at once; parts, and the end, with the next change that is awaited."""
    state = tmp_path / "state"
    spool = Spool.open(state, lazy_s=HOUR)
    uploads = spool.open_uploads
    await uploads.begin(upload("one"))
    assert await found_by_another(state) == {"one": ({}, False)}
    (one,) = uploads
    uploads.part(one, 1, "etag1")
    uploads.part(one, 3, "etag3")
    await uploads.begin(upload("two"))
    assert await found_by_another(state) == {"one": ({1: "etag1", 3: "etag3"}, False), "two": ({}, False)}
    await uploads.completing(one)
    assert await found_by_another(state) == {"one": ({1: "etag1", 3: "etag3"}, True), "two": ({}, False)}
    uploads.part(one, 3, "another")
    uploads.over(next(one for one in uploads if one.upload.id == "two"))
    await spool.close()
    assert known(uploads) == await found_by_another(state) == {"one": ({1: "etag1", 3: "another"}, True)}


@in_loop
async def test_an_ended_upload_leaves_no_row(tmp_path: Path) -> None:
    """Not even a part that is saved after the end."""
    spool = Spool.open(tmp_path)
    await spool.open_uploads.begin(upload("one"))
    (one,) = spool.open_uploads
    spool.open_uploads.part(one, 1, "etag")
    spool.open_uploads.over(one)
    spool.open_uploads.part(one, 2, "late")
    await spool.close()
    db = sqlite3.connect(tmp_path / "spool.db")
    assert [db.execute(f"SELECT count(*) FROM {table}").fetchone() for table in ("upload", "part")] == [(0,), (0,)]
    db.close()


@in_loop
async def test_two_stores_may_give_one_id(tmp_path: Path) -> None:
    """Both are known until they are over; the spool has the last one, with its own parts, and then the other."""
    here, there = upload("1"), replace(upload("1"), endpoint="http://other")
    state = tmp_path / "state"
    spool = Spool.open(state)
    uploads = spool.open_uploads

    async def kept() -> list[tuple[MultipartUpload, dict[int, str]]]:
        await spool.drop([])  # what is lazy is durable too
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(state, copy)
        other = Spool.open(copy)
        try:
            return [(one.upload, one.etags) for one in other.open_uploads]
        finally:
            await other.close()

    await uploads.begin(there)
    (first,) = uploads
    uploads.part(first, 1, "there")
    await uploads.begin(here)
    assert [one.upload for one in uploads] == [there, here]
    assert await kept() == [(here, {})]
    second = list(uploads)[1]
    uploads.part(second, 2, "here")
    uploads.over(second)
    assert await kept() == [(there, {1: "there"})]
    await uploads.begin(there)  # the store has restarted, and counts anew
    uploads.over(first)
    assert await kept() == [(there, {})]
    await spool.close()


@in_loop
async def test_a_full_disk_delays_no_upload() -> None:
    """It is kept in memory; the spool's writer retains what it could not write."""

    async def full(*_: object) -> None:
        raise SpoolError("SpoolFull", "no space")

    writer: Any = SimpleNamespace(apply=full)
    uploads = OpenUploads(writer)
    begun = await uploads.begin(upload("one"))
    await uploads.completing(begun)
    assert (begun.upload, known(uploads)) == (upload("one"), {"one": ({}, True)})


@in_loop
async def test_an_upload_outlives_its_transfer(tmp_path: Path) -> None:
    """Stored, dropped or failed: the code that ends a transfer need not consider its upload."""
    spool = Spool.open(tmp_path)
    await spool.add(TRANSFER, 1.0, attempt_started=True)
    await spool.open_uploads.begin(upload("one"))
    await spool.drop([TRANSFER.id])
    await spool.close()
    spool = Spool.open(tmp_path)
    assert spool.entries() == []
    assert [one.upload for one in spool.open_uploads] == [upload("one")]
    assert [one.upload for one in spool.open_uploads.of(TRANSFER.id)] == [upload("one")]
    assert spool.open_uploads.of("another") == []
    (one,) = spool.open_uploads
    one.abandoned = True
    assert spool.open_uploads.of(TRANSFER.id) == []
    await spool.close()


@in_loop
async def test_a_replaced_spool_gets_the_uploads_from_memory(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """The file is destroyed while the daemon runs: what is in memory goes into its replacement."""
    state = tmp_path / "state"
    replaced = asyncio.Event()
    spool = Spool.open(state, on_replaced=replaced.set)
    await spool.add(TRANSFER, 1.0, attempt_started=True)
    await spool.open_uploads.begin(upload("one"))
    (one,) = spool.open_uploads
    spool.open_uploads.part(one, 1, "etag")
    await spool.start_attempt(TRANSFER)
    damage(state / "spool.db")
    await spool.start_attempt(TRANSFER)
    await asyncio.wait_for(replaced.wait(), 20)
    await spool.restore([])
    assert await found_by_another(state) == {"one": ({1: "etag"}, False)}
    await spool.close()
