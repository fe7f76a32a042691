"""The sender over a fake pool: how failures are reported, and what is noted of the addresses where they happen."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
from lab.sending import a_file, failure, in_loop, settings_for

from s3daemon.errors import AttemptError, FileError
from s3daemon.model.files.source import Source
from s3daemon.network.pool import Load
from s3daemon.network.uploads.progress import Progress, Upload
from s3daemon.s3.sender import Sender

ADDRESS = "192.0.2.1"


class FakeConnection:
    """An idle, open connection."""

    is_open = True
    address = ADDRESS

    def __init__(self) -> None:
        self.aborted = 0
        self.has_failed = False
        self.unconnected: list[str] = []

    def abort(self, transport: object) -> None:
        self.aborted += 1

    async def settle(self) -> None:
        """Nothing is under way."""

    def pop_failed_addresses(self) -> list[str]:
        found, self.unconnected = self.unconnected, []
        return found


@dataclass
class FakeAddresses:
    """Notes what fails and succeeds, and knows whether there is another address."""

    has_other: bool = False
    failed_at: list[tuple[str, str, str, Collection[str]]] = field(default_factory=list)
    succeeded_at: list[str] = field(default_factory=list)
    unconnected: list[str] = field(default_factory=list)

    def failed(self, address: str, reason: str, transfer: str = "") -> None:
        self.unconnected.append(address)

    def attempt_failed(self, error: AttemptError, address: str, transfer: str, tried: Collection[str]) -> bool:
        self.failed_at.append((error.code, address, transfer, tried))
        return self.has_other

    def succeeded(self, address: str) -> None:
        self.succeeded_at.append(address)

    def avoided(self, tried: Collection[str], bucket: str) -> Collection[str]:
        return tried


class FakePool:
    """A pool of one connection, or of a name that does not resolve."""

    def __init__(self) -> None:
        self.connection = FakeConnection()
        self.addresses = FakeAddresses()
        self.error: OSError | None = None
        self.acquired: list[tuple[Load, Collection[str]]] = []
        self.silent: list[str] = []

    def fell_silent(self, address: str) -> None:
        self.silent.append(address)

    @contextlib.asynccontextmanager
    async def acquire(self, load: Load, avoid: Collection[str]) -> AsyncIterator[FakeConnection]:
        if self.error is not None:
            raise self.error
        self.acquired.append((load, avoid))
        yield self.connection


class Scene:
    """A sender to a store that does what `operation` does."""

    def __init__(self, operation: Callable[..., Awaitable[Any]], **settings: Any) -> None:
        self.pool = FakePool()
        pool: Any = self.pool
        signer: Any = SimpleNamespace(call=lambda _, **params: operation(**params))
        self.sender = Sender(settings_for("http://store", **settings), pool, signer)


def raising(error: Exception) -> Callable[..., Awaitable[Any]]:
    """An operation that fails."""

    async def operation(**_: object) -> None:
        raise error

    return operation


def refusal(status: int, code: str) -> botocore.exceptions.ClientError:
    """S3's refusal as botocore raises it."""
    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "HeadObject")


@in_loop
async def test_a_call_returns_the_parsed_answer() -> None:
    """The parameters go to the operation; the connection avoids the addresses that failed."""
    given: list[dict[str, object]] = []

    async def operation(**params: object) -> dict[str, int]:
        given.append(params)
        return {"ContentLength": 3}

    scene = Scene(operation)
    assert await scene.sender.call("head_object", failed_addresses=["a"], Key="key") == {"ContentLength": 3}
    assert (given, scene.pool.acquired) == ([{"Key": "key"}], [(Load.NO_BODY, ["a"])])


@pytest.mark.parametrize("has_other", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (refusal(503, "SlowDown"), "SlowDown", 503),
        (aiohttp.ServerDisconnectedError(), "ConnectionClosed", 0),
        (ValueError("garbage"), "BadAnswer", 0),
    ],
)
@in_loop
async def test_an_error_has_the_address_where_it_happened(
    error: Exception, code: str, status: int, has_other: bool
) -> None:
    """And whether another one can be tried; the address's failure is noted with the operation."""
    scene = Scene(raising(error))
    scene.pool.addresses.has_other = has_other
    found = await failure(scene.sender.call("head_object", failed_addresses=["a"]))
    assert (found.code, found.status, found.address, found.other_address) == (code, status, ADDRESS, has_other)
    assert scene.pool.addresses.failed_at == [(code, ADDRESS, "head_object", {"a"})]


@pytest.mark.parametrize(
    ("error", "has_failed"),
    [
        (refusal(503, "ServiceUnavailable"), True),
        (refusal(403, "403"), True),
        (refusal(403, "SignatureDoesNotMatch"), True),
        (refusal(404, "NoSuchUpload"), True),
        (refusal(400, "InvalidPart"), False),
        (refusal(403, "QuotaExceeded"), False),
    ],
)
@in_loop
async def test_a_connection_has_failed_until_it_carries_a_request(
    error: botocore.exceptions.ClientError, has_failed: bool
) -> None:
    """Only by an error that another connection to the same address may not bring."""
    errors: list[Exception | None] = [error, None]

    async def operation(**_: object) -> dict[str, object]:
        if raised := errors.pop(0):
            raise raised
        return {}

    scene = Scene(operation)
    await failure(scene.sender.call("list_parts"))
    assert scene.pool.connection.has_failed == has_failed
    scene.pool.connection.has_failed = True
    await scene.sender.call("list_parts")
    assert not scene.pool.connection.has_failed


@pytest.mark.parametrize(
    ("operation", "ambiguous"),
    [
        ("head_object", False),
        ("create_multipart_upload", False),
        ("list_parts", False),
        ("abort_multipart_upload", False),
        ("complete_multipart_upload", True),
    ],
)
@in_loop
async def test_only_what_makes_an_object_can_leave_it_unknown_whether_there_is_one(
    operation: str, ambiguous: bool
) -> None:
    """A server error may come after the request was carried out; but most requests make no object."""
    for error in (refusal(503, "SlowDown"), AttemptError("BadAnswer", "no S3", status=200, ambiguous=True)):
        scene = Scene(raising(error))
        assert (await failure(scene.sender.call(operation))).ambiguous is ambiguous


@in_loop
async def test_all_addresses_that_did_not_accept_the_connection_are_to_blame() -> None:
    """And count as tried, so that nobody is sent back to them at once."""
    scene = Scene(raising(ConnectionRefusedError()))
    scene.pool.connection.unconnected = ["b", "c"]
    await failure(scene.sender.call("head_object", failed_addresses=["a"]))
    assert scene.pool.addresses.unconnected == ["b", "c"]
    assert scene.pool.addresses.failed_at[0][3] == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (botocore.exceptions.ParamValidationError(report="arn:x"), "BadRequest"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "BadRequest"),
        (botocore.exceptions.NoCredentialsError(), "NoCredentials"),
    ],
)
@in_loop
async def test_what_fails_before_anything_is_sent_blames_the_request(error: Exception, code: str) -> None:
    scene = Scene(raising(error))
    assert (await failure(scene.sender.call("put_object"))).code == code


@in_loop
async def test_a_call_without_an_answer_ends_at_its_limit() -> None:
    """The limit is the operation's own, or the stall timeout. For so long the store was silent."""
    scene = Scene(lambda **_: asyncio.sleep(60), connect_timeout_s=0.1)
    async with asyncio.timeout(5):
        error = await failure(scene.sender.call("head_object", answer_timeout_s=0.05))
    assert (error.code, error.ambiguous, round(error.silent_s, 3)) == ("NoAnswer", False, 0.15)


@pytest.mark.parametrize("error", [socket.gaierror(socket.EAI_NONAME, "Name not known"), TimeoutError()])
@in_loop
async def test_a_name_that_does_not_resolve_has_no_address(error: OSError) -> None:
    """Nothing is noted of any address."""
    scene = Scene(raising(ValueError()))
    scene.pool.error = error
    found = await failure(scene.sender.call("head_object"))
    assert (found.code, found.address, scene.pool.addresses.failed_at) == ("NameNotResolved", "", [])


@in_loop
async def test_an_answer_before_the_body_is_not_a_success(tmp_path: Path) -> None:
    """What was not sent must not arrive later: the connection is aborted."""

    async def operation(**_: object) -> dict[str, str]:
        return {"ETag": '"x"'}

    scene, source = Scene(operation), Source.open(str(a_file(tmp_path / "file", 100_000)))
    error = await failure(scene.sender.send_file("put_object", "id", source, progress=Progress()))
    source.close()
    assert (error.code, error.ambiguous, error.address) == ("BadAnswer", False, ADDRESS)
    assert (scene.pool.acquired, scene.pool.connection.aborted) == ([(Load.LARGE_BODY, set())], 1)
    assert scene.pool.addresses.succeeded_at == []


@in_loop
async def test_a_connection_that_was_given_is_used(tmp_path: Path) -> None:
    """None is taken from the pool."""
    scene, source = Scene(raising(refusal(404, "NoSuchBucket"))), Source.open(str(a_file(tmp_path / "file", 3)))
    connection: Any = FakeConnection()
    error = await failure(
        scene.sender.send_file("put_object", "id", source, progress=Progress(), connection=connection)
    )
    source.close()
    assert (error.code, scene.pool.acquired, connection.aborted) == ("NoSuchBucket", [], 1)


@in_loop
async def test_a_cancelled_request_aborts_its_connection(tmp_path: Path) -> None:
    """So that nothing of it arrives later."""
    scene, source = Scene(lambda **_: asyncio.sleep(60)), Source.open(str(a_file(tmp_path / "file", 3)))
    sending = asyncio.create_task(scene.sender.send_file("put_object", "id", source, progress=Progress()))
    await asyncio.sleep(0.01)
    sending.cancel()
    await asyncio.wait({sending})
    source.close()
    assert sending.cancelled()
    assert scene.pool.connection.aborted


@pytest.mark.parametrize("reading", [True, False])
@in_loop
async def test_a_body_without_progress_ends_at_its_limit(tmp_path: Path, *, reading: bool) -> None:
    """Whether the store takes nothing or the file system gives nothing, which is an error of another kind."""

    async def operation(**params: Any) -> None:
        params["Body"].transport = SimpleNamespace()
        params["Body"].reading = reading
        await asyncio.sleep(60)

    scene, source = Scene(operation), Source.open(str(a_file(tmp_path / "file", 3)))
    with pytest.raises((AttemptError, FileError)) as caught:
        async with asyncio.timeout(5):
            await scene.sender.send_file("put_object", "id", source, progress=Progress())
    source.close()
    assert caught.value.code == ("ReadFailed" if reading else "Stalled")
    assert scene.pool.connection.aborted
    assert scene.pool.silent == ([] if reading else [ADDRESS])


@pytest.mark.parametrize("was_sent", [True, False])
@in_loop
async def test_a_body_of_which_nothing_is_acknowledged_may_have_arrived_if_all_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, was_sent: bool
) -> None:
    """Where the path is broken on its way back only, the store has the object and its answer is lost."""

    async def operation(**params: Any) -> None:
        params["Body"].transport = SimpleNamespace()
        await asyncio.sleep(60)

    monkeypatch.setattr(Upload, "was_sent", property(lambda _: was_sent))
    scene, source = Scene(operation), Source.open(str(a_file(tmp_path / "file", 3)))
    error = await failure(scene.sender.send_file("put_object", "id", source, progress=Progress()))
    source.close()
    assert (error.code, error.ambiguous) == ("Stalled", was_sent)
