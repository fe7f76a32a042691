"""Orphans are aborted, whichever process left them, when the store can be reached; what cannot be aborted is logged."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fakes import flying_with

from s3daemon.delivery.attempt import LATE_ARRIVAL_S
from s3daemon.delivery.janitor import SWEEP_MAX_S, SWEEP_S, Janitor
from s3daemon.errors import AttemptError
from s3daemon.model.request import Destination
from s3daemon.s3.store import Store
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads

HERE, THERE = "http://here", "http://there"


class FakeStore(Store):
    """A store that aborts uploads, or answers with an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.aborted: list[str] = []
        self.error: AttemptError | None = None
        self.broken: set[str] = set()
        self.asked = 0

    async def abort(self, upload: MultipartUpload) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if upload.id in self.broken:
            raise AttemptError("InternalError", "a bug of the store", status=500)
        self.aborted.append(upload.id)


class House:
    """A janitor and what it knows, in a FlyingLoop."""

    def __init__(self) -> None:
        self.open_uploads = OpenUploads()
        self.pending = {"pending"}
        self.store = FakeStore(HERE)
        clock = asyncio.get_running_loop().time
        self.janitor = Janitor(self.open_uploads, self.pending.__contains__, lambda: self.store, clock)

    async def begin(self, id_: str, transfer_id: str = "over", endpoint: str = HERE) -> None:
        await self.open_uploads.begin(
            MultipartUpload(id_, endpoint, transfer_id, Destination("bucket", "key"), 9, "m", 5)
        )

    @property
    def left(self) -> list[str]:
        return [one.upload.id for one in self.open_uploads]


@flying_with(House)
async def test_orphans_are_aborted(house: House) -> None:
    """An upload of a pending transfer stays, unless the transfer has abandoned it."""
    for id_, transfer_id in (("mine", "pending"), ("abandoned", "pending"), ("orphan", "over")):
        await house.begin(id_, transfer_id)
    next(one for one in house.open_uploads if one.upload.id == "abandoned").abandoned = True
    assert await house.janitor.sweep()
    assert house.store.aborted == ["abandoned", "orphan"]
    assert house.left == ["mine"]
    house.pending.clear()
    assert await house.janitor.sweep()
    assert house.left == []


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchBucket"])
@flying_with(House)
async def test_an_upload_that_the_store_does_not_have_is_forgotten(house: House, code: str) -> None:
    """It was aborted or completed before, or the bucket is gone."""
    await house.begin("orphan")
    house.store.error = AttemptError(code, "gone", status=404)
    assert await house.janitor.sweep()
    assert house.left == []


@flying_with(House)
async def test_an_endpoint_that_fails_is_asked_ever_less_often(house: House) -> None:
    """There is one request at a time, however many uploads wait; and in the end all are aborted."""
    for id_ in ("orphan", "another"):
        await house.begin(id_)
    running = asyncio.create_task(house.janitor.run())
    house.store.error = AttemptError("404", "a proxy's own page", status=404)
    await asyncio.sleep(10 * SWEEP_MAX_S)
    assert 10 <= house.store.asked <= 20
    house.store.error = None
    await asyncio.sleep(SWEEP_MAX_S + SWEEP_S)
    assert house.left == []
    running.cancel()


@flying_with(House)
async def test_an_upload_that_cannot_be_aborted_keeps_none_back(house: House) -> None:
    """The store fails for one of them again and again."""
    for id_ in ("broken", "another", "third"):
        await house.begin(id_)
    house.store.broken = {"broken"}
    assert not await house.janitor.sweep()
    assert not await house.janitor.sweep()
    assert (house.store.aborted, house.left) == (["another", "third"], ["broken"])


@flying_with(House)
async def test_an_upload_that_the_store_may_be_completing_is_left_alone_for_a_while(house: House) -> None:
    """An abort would take the parts from under its object."""
    await house.begin("orphan")
    (one,) = house.open_uploads
    await house.open_uploads.completing(one)
    running = asyncio.create_task(house.janitor.run())
    await asyncio.sleep(LATE_ARRIVAL_S - SWEEP_S)
    assert house.store.aborted == []
    await asyncio.sleep(3 * SWEEP_S)
    assert house.store.aborted == ["orphan"]
    running.cancel()


@flying_with(House)
async def test_an_upload_that_may_not_be_aborted_is_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """One warning has all that a person needs to abort it, and it is not tried again."""
    await house.begin("orphan")
    house.store.error = AttemptError("AccessDenied", "no", status=403)
    assert await house.janitor.sweep()
    assert house.left == []
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(word in record.getMessage() for word in ("orphan", "bucket/key", HERE, "AccessDenied"))


@flying_with(House)
async def test_uploads_at_a_store_that_is_no_longer_in_use_are_aborted(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """That is so after a reload with another endpoint; a warning names what could not be aborted."""
    await house.begin("here", "pending")
    await house.begin("there", "pending", THERE)
    there = FakeStore(THERE)
    old = there
    await house.janitor.abort_all(old)
    assert (there.aborted, house.left, caplog.records) == (["there"], ["here"], [])
    await house.begin("unreached", "pending", THERE)
    there.error = AttemptError("ConnectionFailed", "no connection")
    await house.janitor.abort_all(old)
    assert house.left == ["here"]
    assert "unreached" in caplog.records[0].getMessage()
    await house.begin("refused", "pending", THERE)
    there.error = AttemptError("SlowDown", "the store answered 503", status=503)
    await house.janitor.abort_all(old)
    assert "the endpoint has changed, and the old one did not abort it" in caplog.records[1].getMessage()


@flying_with(House)
async def test_an_upload_that_the_old_store_may_be_completing_is_left_there(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """The new endpoint may be the same store, which soon has the object: an abort would take the parts from it."""
    await house.begin("there", "pending", THERE)
    (one,) = house.open_uploads
    await house.open_uploads.completing(one)
    there = FakeStore(THERE)
    await house.janitor.abort_all(there)
    assert (there.asked, house.left) == (0, [])
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("there", "bucket/key", THERE, "may still be completing it"))


@flying_with(House)
async def test_a_store_that_is_replaced_is_not_used_after_it_is_closed(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The abort under way is waited for; the other orphans are left to the store in use."""
    for id_ in ("one", "two"):
        await house.begin(id_, "over")
    old = house.store
    answered, abort = asyncio.Event(), old.abort

    async def slow_abort(upload: MultipartUpload) -> None:
        await answered.wait()
        await abort(upload)

    monkeypatch.setattr(old, "abort", slow_abort)
    sweeping = asyncio.create_task(house.janitor.sweep())
    await asyncio.sleep(0)
    house.store = FakeStore(HERE)
    leaving = asyncio.create_task(house.janitor.abort_all(old))
    await asyncio.sleep(10)
    assert not leaving.done()
    answered.set()
    await leaving
    assert await sweeping
    assert (old.aborted, house.left) == (["one"], ["two"])
    assert await house.janitor.sweep()
    assert house.store.aborted == ["two"]


@flying_with(House)
async def test_uploads_at_a_store_that_is_in_use_again_are_kept(house: House) -> None:
    """A second reload came before the last attempts there had ended."""
    await house.begin("here", "pending")
    old = FakeStore(HERE)
    await house.janitor.abort_all(old)
    assert house.left == ["here"]


@flying_with(House)
async def test_at_the_start_uploads_at_another_endpoint_are_logged(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    """There is one warning for each, and no more at the next start."""
    await house.begin("here", "pending")
    await house.begin("there", "pending", THERE)
    house.janitor.forget_other_endpoints()
    assert house.left == ["here"]
    house.janitor.forget_other_endpoints()
    assert ["there" in record.getMessage() for record in caplog.records] == [True]
