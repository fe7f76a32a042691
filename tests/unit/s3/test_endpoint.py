"""Endpoints: which connections a reload keeps, and how the end of the keeper is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lab.certs import Authority
from lab.sending import in_loop, settings_for

from s3daemon.config.settings import Settings
from s3daemon.errors import SettingsError
from s3daemon.network.rate.bandwidth import Limit, Origin
from s3daemon.s3.endpoint import Endpoint
from s3daemon.s3.store import Store
from s3daemon.spool.rows import Hint

SETTINGS = settings_for("http://store")


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The certificates of two authorities."""
    one, other = (Authority(tmp_path_factory.mktemp("authority")).ca.read_text() for _ in range(2))
    return one, other


class Started(list[tuple[str, "asyncio.Task[None]"]]):
    """Records the background tasks; in place of the work that is given each waits for its cancellation."""

    def __call__(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        work.close()
        task = asyncio.create_task(asyncio.sleep(60))
        self.append((name, task))
        return task


def endpoint_of(settings: Settings, before: Endpoint | None = None, start: Started | None = None) -> Endpoint:
    """An endpoint that opens no connection."""
    return Endpoint(settings, Started() if start is None else start, before)


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
    """New keys or another rate take no new connections; another store or timeout does. None is forgotten."""
    before = endpoint_of(SETTINGS)
    next(iter(before.pool.idle())).opened = 3
    after = endpoint_of(replace(SETTINGS, **change), before)
    assert (after.pool is before.pool) is kept
    assert after.pool.opened == 3
    await after.open()
    assert bool(after.pool.pacer.limit_bps) is ("bwlimit_bps" in change)
    await before.close(after)
    await after.close()


@pytest.mark.parametrize(
    ("bundle", "secret", "expected"),
    [
        (0, "s", []),
        (1, "s", ["AWS_CA_BUNDLE"]),
        (0, "t", ["AWS_SHARED_CREDENTIALS_FILE"]),
        (1, "t", ["AWS_CA_BUNDLE", "AWS_SHARED_CREDENTIALS_FILE"]),
    ],
)
@in_loop
async def test_a_reload_names_the_files_that_were_edited(
    tmp_path: Path, authorities: tuple[str, str], bundle: int, secret: str, expected: list[str]
) -> None:
    """Their paths stay, so the variables do not differ. What the settings do not name is not named."""
    ca, keys = tmp_path / "ca.pem", tmp_path / "keys"

    def write(bundle: int, secret: str, key: str = "k") -> None:
        ca.write_text(authorities[bundle])
        keys.write_text(f"[p]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")

    write(0, "s")
    named = replace(
        settings_for("https://store", ca_bundle=str(ca)),
        access_key="", secret_key="", shared_credentials_file=str(keys), profile="p",
    )  # fmt: skip
    before = endpoint_of(named)
    await before.open()
    write(bundle, secret)
    after = endpoint_of(named, before)
    await after.open()
    assert after.reread_since(before) == expected
    other = endpoint_of(settings_for("https://store"), after)
    await other.open()
    assert other.reread_since(after) == []
    plain = endpoint_of(replace(named, endpoint_url="http://store"), after)
    await plain.open()
    assert plain.reread_since(after) == [], "without TLS no authorities are read"
    write(bundle, secret, "another")
    keyed = endpoint_of(named, plain)
    await keyed.open()
    assert keyed.reread_since(after) == ["AWS_SHARED_CREDENTIALS_FILE"], "the access key alone was replaced"
    await before.close(after)
    await after.close(other)
    await other.close()
    await plain.close(keyed)
    await keyed.close()


@in_loop
async def test_a_refused_reload_leaves_the_limit_as_it_was(tmp_path: Path) -> None:
    """Without keys the new endpoint does not open, and what uploads may send stays."""
    before = endpoint_of(replace(SETTINGS, bwlimit_bps=8_000_000))
    await before.open()
    file = tmp_path / "credentials"
    file.write_text("")
    faulty = replace(SETTINGS, access_key="", secret_key="", shared_credentials_file=str(file), bwlimit_bps=1_000_000)
    after = endpoint_of(faulty, before)
    with pytest.raises(SettingsError):
        await after.open()
    assert after.pool is before.pool
    assert before.pool.bandwidth.limit == Limit(8_000_000, Origin.SET)
    await after.close(before)
    await before.close()


@pytest.mark.parametrize(
    ("changed", "kept"),
    [("", True), ("the file is written anew", True), ("another authority", False), ("one authority more", False)],
)
@in_loop
async def test_a_reload_takes_new_connections_if_what_they_trust_has_changed(
    tmp_path: Path, authorities: tuple[str, str], changed: str, kept: bool
) -> None:
    """The path of the bundle stays, its content counts: an authority that was removed is no longer trusted."""
    one, other = authorities
    bundle = tmp_path / "ca.pem"
    bundle.write_text(one)
    settings = settings_for("https://store", ca_bundle=str(bundle))
    before = endpoint_of(settings)
    contents = {"the file is written anew": one, "another authority": other, "one authority more": one + other}
    if changed:
        bundle.write_text(contents[changed])
    after = endpoint_of(settings, before)
    assert (after.pool is before.pool) is kept
    await before.close(after)
    await after.close()


@in_loop
async def test_a_reload_sees_that_the_systems_authorities_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authorities: tuple[str, str]
) -> None:
    """A file with all of them, and a directory with one in each."""
    bundle, directory = tmp_path / "cert.pem", tmp_path / "certs"
    directory.mkdir()
    bundle.write_text(authorities[0])
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(directory))
    settings = settings_for("https://store")
    endpoints = [endpoint_of(settings)]
    endpoints.append(endpoint_of(settings, endpoints[-1]))
    bundle.write_text(authorities[1])
    endpoints.append(endpoint_of(settings, endpoints[-1]))
    (directory / "0a1b2c3d.0").write_text(authorities[0])
    endpoints.append(endpoint_of(settings, endpoints[-1]))
    pools = [endpoint.pool for endpoint in endpoints]
    assert [new is old for old, new in pairwise(pools)] == [True, False, False]
    for endpoint in endpoints:
        await endpoint.close()


@in_loop
async def test_a_reload_looks_the_name_up_again() -> None:
    before = endpoint_of(SETTINGS)
    before.pool.addresses.replace(["192.0.2.1"])
    after = endpoint_of(SETTINGS, before)
    assert after.pool.names.must_resolve
    await before.close(after)
    await after.close()


@in_loop
async def test_the_keeper_is_a_background_task_until_the_endpoint_is_closed() -> None:
    """It is started by the function that reports it if it dies."""
    started = Started()
    endpoint = endpoint_of(SETTINGS, start=started)
    assert not started
    await endpoint.open()
    ((name, task),) = started
    assert (name, task.done()) == ("the keeper of connections", False)
    await endpoint.close()
    await asyncio.wait({task})
    assert task.cancelled()


@in_loop
async def test_an_endpoint_retires_after_its_attempts() -> None:
    """The old keeper stops at once; the client stays until the attempts in flight have ended and `leave` is done."""
    before_tasks, after_tasks, steps = Started(), Started(), list[str]()
    before = endpoint_of(SETTINGS, start=before_tasks)
    await before.open()
    after = endpoint_of(SETTINGS, before, after_tasks)
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
        await asyncio.wait({before_tasks[0][1]})
        assert (steps, after_tasks[0][1].done()) == ([], False)
        attempt_ends.set()
        await retiring
    assert steps == ["attempt", "leave"]
    await after.close()


@pytest.mark.parametrize("change", [{}, {"max_connections": 2}], ids=["connections kept", "new connections"])
@in_loop
async def test_what_was_found_is_used_at_the_next_start_and_after_a_reload(change: dict[str, Any]) -> None:
    """Of the same store; of another one nothing is known."""
    hint = Hint("http://store", 8_000_000, "images")
    start = Endpoint(SETTINGS, Started(), hint=hint)
    await start.open()
    assert start.pool.bandwidth.limit.origin is Origin.KEPT
    assert start.hint == hint
    start.store.last_bucket = "other"
    after = endpoint_of(replace(SETTINGS, **change), start)
    await after.open()
    assert after.pool.bandwidth.limit.origin is Origin.KEPT
    assert after.hint == Hint("http://store", 8_000_000, "other")
    elsewhere = endpoint_of(replace(SETTINGS, endpoint_url="http://other"), after)
    await elsewhere.open()
    assert elsewhere.hint == Hint("http://other")
    for one, successor in ((start, after), (after, elsewhere), (elsewhere, None)):
        await one.close(successor)


@in_loop
async def test_without_keys_nothing_is_started(tmp_path: Any) -> None:
    """The endpoint can be closed all the same."""
    (tmp_path / "empty").write_text("")
    settings = Settings(
        endpoint_url="http://store", shared_credentials_file=str(tmp_path / "empty"), state_dir="/nonexistent"
    )
    started = Started()
    endpoint = endpoint_of(settings, start=started)
    with pytest.raises(SettingsError):
        await endpoint.open()
    assert not started
    await endpoint.close()


@in_loop
async def test_secrets_are_known_once_open() -> None:
    """So that the journal can hide them."""
    endpoint = endpoint_of(replace(SETTINGS, secret_key="sesame"))
    await endpoint.open()
    assert endpoint.secrets == ("sesame",)
    await endpoint.close()
