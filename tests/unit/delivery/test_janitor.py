"""Orphans are aborted, whoever left them, when the store can be reached; what cannot be done is told, once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from fakes import fly

from s3daemon.delivery.attempt import LATE_ARRIVAL_S
from s3daemon.delivery.janitor import SWEEP_MAX_S, SWEEP_S, Janitor
from s3daemon.errors import AttemptError
from s3daemon.model.request import Destination
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads

HERE, THERE = "http://here", "http://there"


class FakeStore:
    """Notes what is aborted, or answers an error."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.aborted: list[str] = []
        self.error: AttemptError | None = None
        self.asked = 0

    async def ask(self, operation: str, **params: Any) -> dict[str, Any]:
        assert (operation, params["Bucket"], params["Key"]) == ("abort_multipart_upload", "bucket", "key")
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.aborted.append(params["UploadId"])
        return {}


class House:
    """A janitor and all that it knows, in a loop whose time flies."""

    def __init__(self) -> None:
        self.ledger = OpenUploads()
        self.pending = {"pending"}
        self.store = FakeStore(HERE)
        store: Callable[[], Any] = lambda: self.store  # noqa: E731
        clock = asyncio.get_running_loop().time
        self.janitor = Janitor(self.ledger, self.pending.__contains__, store, clock)

    async def begin(self, id_: str, transfer_id: str = "over", endpoint: str = HERE) -> None:
        await self.ledger.begin(MultipartUpload(id_, endpoint, transfer_id, Destination("bucket", "key"), 9, "m", 5))

    @property
    def left(self) -> list[str]:
        return [begun.upload.id for begun in self.ledger]


def test_orphans_are_aborted() -> None:
    """What belongs to a pending transfer stays, unless that one began anew without it."""

    async def main() -> None:
        house = House()
        for id_, transfer_id in (("mine", "pending"), ("abandoned", "pending"), ("orphan", "over")):
            await house.begin(id_, transfer_id)
        next(begun for begun in house.ledger if begun.upload.id == "abandoned").abandoned = True
        assert await house.janitor.sweep()
        assert house.store.aborted == ["abandoned", "orphan"]
        assert house.left == ["mine"]
        house.pending.clear()
        assert await house.janitor.sweep()
        assert house.left == []

    fly(main)


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchBucket"])
def test_what_is_gone_is_forgotten(code: str) -> None:
    """Aborted or completed before, or the bucket is no more."""

    async def main() -> None:
        house = House()
        await house.begin("orphan")
        house.store.error = AttemptError(code, "gone", status=404)
        assert await house.janitor.sweep()
        assert house.left == []

    fly(main)


def test_an_endpoint_that_fails_is_asked_again() -> None:
    """One request at a time, ever less often, however many wait; and then all is aborted."""

    async def main() -> None:
        house = House()
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

    fly(main)


def test_a_completion_at_work_is_left_alone() -> None:
    """An abort would take the parts from under the object: only when no completion can be at work any more."""

    async def main() -> None:
        house = House()
        await house.begin("orphan")
        (begun,) = house.ledger
        await house.ledger.completing(begun)
        running = asyncio.create_task(house.janitor.run())
        await asyncio.sleep(LATE_ARRIVAL_S - SWEEP_S)
        assert house.store.aborted == []
        await asyncio.sleep(3 * SWEEP_S)
        assert house.store.aborted == ["orphan"]
        running.cancel()

    fly(main)


def test_what_may_not_be_aborted_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Keys without that right: one warning with all that a person needs to do it, and no more tries."""

    async def main() -> None:
        house = House()
        await house.begin("orphan")
        house.store.error = AttemptError("AccessDenied", "no", status=403)
        assert await house.janitor.sweep()
        assert house.left == []

    fly(main)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(word in record.getMessage() for word in ("orphan", "bucket/key", HERE, "AccessDenied"))


def test_a_store_that_is_left_is_tidied(caplog: pytest.LogCaptureFixture) -> None:
    """After a reload with another endpoint: all that is there is aborted; else a warning names it."""

    async def main() -> None:
        house = House()
        await house.begin("here", "pending")
        await house.begin("there", "pending", THERE)
        there = FakeStore(THERE)
        old: Any = there
        await house.janitor.leave(old)
        assert (there.aborted, house.left, caplog.records) == (["there"], ["here"], [])
        await house.begin("unreached", "pending", THERE)
        there.error = AttemptError("ConnectionFailed", "no connection")
        await house.janitor.leave(old)
        assert house.left == ["here"]
        assert "unreached" in caplog.records[0].getMessage()

    fly(main)


def test_a_store_that_is_in_use_again_is_not_tidied() -> None:
    """A reload back to it came while the last attempts were waited for."""

    async def main() -> None:
        house = House()
        await house.begin("here", "pending")
        old: Any = FakeStore(HERE)
        await house.janitor.leave(old)
        assert house.left == ["here"]

    fly(main)


def test_at_a_start_what_is_out_of_reach_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Of an upload at another endpoint nothing is known but its name: one warning, and never again."""

    async def main() -> None:
        house = House()
        await house.begin("here", "pending")
        await house.begin("there", "pending", THERE)
        house.janitor.disown()
        assert house.left == ["here"]
        house.janitor.disown()

    fly(main)
    assert ["there" in record.getMessage() for record in caplog.records] == [True]
