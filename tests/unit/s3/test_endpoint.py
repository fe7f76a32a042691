"""Endpoints: which connections a reload keeps, and how the end of the keeper is noticed."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from fake_sender import FakeSender
from lab.sending import in_loop, settings_for

from s3daemon.config.settings import Settings
from s3daemon.errors import SettingsError
from s3daemon.network.keeper import PRIMED_BYTES
from s3daemon.s3.endpoint import Endpoint, Primer
from s3daemon.s3.store import Store

SETTINGS = settings_for("http://store")


class FakeKeeper:
    """Does nothing until it is cancelled, or until `bug` is set."""

    made: list[FakeKeeper]

    def __init__(self, settings: Settings, pool: object, prime: object) -> None:
        self.prime = prime
        self.bug = asyncio.Event()
        self.running = False
        FakeKeeper.made.append(self)

    async def run(self) -> None:
        self.running = True
        try:
            await self.bug.wait()
            raise ZeroDivisionError
        finally:
            self.running = False


@pytest.fixture(autouse=True)
def no_keepers() -> None:
    FakeKeeper.made = []


def endpoint_of(settings: Settings, before: Endpoint | None = None) -> Endpoint:
    """An endpoint whose keeper is a fake."""
    keeper: Any = FakeKeeper
    return Endpoint(settings, before, keeper=keeper)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"access_key": "other"}, True),
        ({"bwlimit_bps": 10_000_000}, True),
        ({"prime": "bucket/scratch"}, True),
        ({"endpoint_url": "http://other"}, False),
        ({"max_connections": 2}, False),
        ({"stall_timeout_s": 7.0}, False),
        ({"congestion": "bbr"}, False),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@in_loop
async def test_connections_are_kept_if_their_settings_are(change: dict[str, Any], kept: bool) -> None:
    """New keys or another rate take no new connections; another store or timeout does."""
    before = endpoint_of(SETTINGS)
    after = endpoint_of(replace(SETTINGS, **change), before)
    assert (after.pool is before.pool) is kept
    assert after.pool.pacer.is_limited is ("bwlimit_bps" in change)
    await before.close(after)
    await after.close()


@in_loop
async def test_a_keeper_that_fails_is_noticed() -> None:
    """`watch` raises what it failed with."""
    endpoint = endpoint_of(SETTINGS)
    await endpoint.open()
    watching = asyncio.create_task(endpoint.watch())
    await asyncio.sleep(0)
    assert not watching.done()
    FakeKeeper.made[0].bug.set()
    with pytest.raises(ZeroDivisionError):
        await watching
    await endpoint.close()


@in_loop
async def test_a_watch_ends_when_the_endpoint_retires() -> None:
    """The old keeper stops at once; the client stays until the attempts in flight have ended and `leave` is done."""
    before, steps = endpoint_of(SETTINGS), list[str]()
    await before.open()
    after = endpoint_of(SETTINGS, before)
    await after.open()
    attempt_ends = asyncio.Event()

    async def attempt() -> None:
        await attempt_ends.wait()
        steps.append("attempt")

    async def leave(store: Store) -> None:
        assert store is before.store
        steps.append("leave")

    retiring = asyncio.create_task(before.retire(after, {asyncio.create_task(attempt())}, leave))
    async with asyncio.timeout(5):
        await before.watch()
        assert [keeper.running for keeper in FakeKeeper.made] == [False, True]
        attempt_ends.set()
        await retiring
    assert steps == ["attempt", "leave"]
    await after.close()


@in_loop
async def test_without_keys_nothing_is_started(tmp_path: Any) -> None:
    """The endpoint can be closed all the same, and a watch of it ends."""
    (tmp_path / "empty").write_text("")
    settings = Settings(
        endpoint_url="http://store", shared_credentials_file=str(tmp_path / "empty"), state_dir="/nonexistent"
    )
    endpoint = endpoint_of(settings)
    with contextlib.suppress(SettingsError):
        await endpoint.open()
    assert not FakeKeeper.made
    await endpoint.watch()
    await endpoint.close()


@in_loop
async def test_secrets_are_known_once_open() -> None:
    """So that the journal can hide them."""
    endpoint = endpoint_of(replace(SETTINGS, secret_key="sesame"))
    await endpoint.open()
    assert endpoint.secrets == ("sesame",)
    await endpoint.close()


@pytest.mark.parametrize(("prime", "wanted"), [("", False), ("bucket/scratch-", True)])
@in_loop
async def test_connections_are_primed_only_if_the_settings_say_so(prime: str, wanted: bool) -> None:
    """The keeper gets no function for it otherwise."""
    endpoint = endpoint_of(replace(SETTINGS, prime=prime))
    await endpoint.open()
    assert (FakeKeeper.made[0].prime is not None) is wanted
    await endpoint.close()


@in_loop
async def test_each_connection_has_a_scratch_object_of_its_own() -> None:
    """Its key ends in the connection's number."""
    sender: Any = FakeSender()
    sender.pool.index = lambda connection: 4
    connection: Any = object()
    await Primer(replace(SETTINGS, prime="bucket/scratch-"), sender).prime(connection)
    ((operation, params),) = sender.called
    assert (operation, params["Bucket"], params["Key"]) == ("put_object", "bucket", "scratch-4")
    assert params["connection"] is connection
    assert sender.sent == [(0, 0, PRIMED_BYTES)]
