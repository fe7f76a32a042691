"""Requests to the store: signed by aiobotocore, sent over our own connections, and watched while they make progress.

aiobotocore builds and signs every request and parses every answer, but does not send: a `before-send` handler carries
each request over the connection that its context names. So nothing between here and the store sends a request twice,
follows a redirect, waits for a `100 Continue`, or opens a connection by itself.

A request with a body ends with an answer, with an error, because it makes no progress, or because its connection is
far slower than others (`SlowConnection`: the caller sends it again, over another one). An error does not show whether
the body arrived; the kernel does: while TCP has fewer bytes acknowledged than the body has, it cannot have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import botocore.exceptions
from aiobotocore.awsrequest import AioAWSResponse

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code, one_line
from s3daemon.model.files.source import SMALL_BYTES, Source
from s3daemon.model.files.turns import Turns
from s3daemon.model.verdict import UNCONNECTED, may_be_the_address
from s3daemon.network.cause import unresolved
from s3daemon.network.connection import Connection
from s3daemon.network.pool import ConnectionPool, Load
from s3daemon.network.tcp import TcpInfo
from s3daemon.network.uploads.progress import TICK_S, Progress, StallWatch, Upload
from s3daemon.network.uploads.straggler import NEVER_MOVED, MoveHistory, Stragglers, TrackedBody
from s3daemon.s3.answers import (
    SENDING_ERRORS,
    STATUS_HEADER,
    VERIFY_ADVICE,
    contradicts,
    decoded,
    etag_of,
    failure_of,
    flaw_of,
    refusal_of,
    stall_of,
)
from s3daemon.s3.body import FileBody
from s3daemon.s3.signing.client import Signer

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: The operations that make an object: only after these it can be unknown whether there is one.
_MAKE_OBJECTS = frozenset({"put_object", "complete_multipart_upload"})
#: The connection that requests of this context are sent over.
_connection: ContextVar[Connection] = ContextVar("connection")


@dataclass(frozen=True, slots=True)
class SentBody:
    """A body that the store has taken.

    Args:
        etag: as the store gave it, without quotes.
        rtt_usec: smoothed round-trip time at the end, microseconds; 0 when unknown.
        retransmits: TCP segments sent again meanwhile.
        connection: `warm` or `new`.
        address: the store's address that took it.
    """

    etag: str
    rtt_usec: int
    retransmits: int
    connection: str
    address: str


async def _watched(request: Awaitable[_T], look: Callable[[], None], abort: Callable[[], None]) -> _T:
    """Carry out `request` and return its result; call `look` each tick until then, and end the request if that raises.

    Args:
        request: to carry out; in this task, since a task of its own would cost each small file two rounds more of the
            event loop.
        look: called each `TICK_S`.
        abort: called before the request is cancelled, from within or without.

    Raises:
        Exception: that of `look`; else what the request raises.
    """
    loop = asyncio.get_running_loop()
    found: Exception | None = None
    timer: asyncio.TimerHandle

    def tick() -> None:
        nonlocal found, timer
        timer = loop.call_later(TICK_S, tick)
        try:
            look()
        except Exception as exc:  # of whatever kind, it is raised to the caller
            found = exc
            timer.cancel()
            abort()
            limit.reschedule(loop.time())

    timer = loop.call_later(TICK_S, tick)
    try:
        async with asyncio.timeout(None) as limit:
            return await request
    except asyncio.CancelledError:
        abort()
        raise
    except Exception as exc:
        if found is not None:
            raise found from exc
        raise
    finally:
        timer.cancel()


class _MoveWatch:
    """Ends an upload that should be moved: compares it with others from its beginning to the end of the context.

    Args:
        sender: sends the body.
        upload: that of the body.
        progress: of the attempt; gets the move and the slow address.
        offset: of the body in the file.
        transfer_id: the transfer that it belongs to.
        needs_lookup: once all of the body was sent, the object must be looked up before it is sent again; False for a
            part.
    """

    def __init__(
        self, sender: Sender, upload: Upload, progress: Progress, offset: int, transfer_id: str, *, needs_lookup: bool
    ) -> None:
        self._sender = sender
        self._upload = upload
        self._progress = progress
        self._offset = offset
        self._transfer_id = transfer_id
        self._needs_lookup = needs_lookup
        self._tracked = TrackedBody(upload.size, progress.histories.get(offset, NEVER_MOVED))

    def begin(self, transport: asyncio.BaseTransport) -> None:
        """Begin the upload over `transport`, and the comparison."""
        self._upload.begin(transport)
        self._sender.stragglers.begin(self._tracked, self._upload.address, time.monotonic())

    def tick(self, body: FileBody, info: TcpInfo) -> None:
        """Compare the upload with others now; `info` is what the kernel says of it.

        Raises:
            AttemptError: `SlowConnection`, it should be sent over another connection, and one is idle.
        """
        upload, sender = self._upload, self._sender
        has_arrived = body.finished and info.outstanding == 0
        move = sender.stragglers.tick(
            self._tracked,
            time.monotonic(),
            upload.acked(),
            rtt_s=info.least_rtt_usec / 1e6,
            share=None if has_arrived else info.pacing_limit or None,
            is_starved=body.reading or (info.outstanding == 0 and not body.finished),
        )
        is_sendable = sender.can_look_up or not (self._needs_lookup and upload.was_sent)
        if move is None or not (is_sendable and sender.pool.has_spare(move.window)):
            return
        _log.info("an upload to %s is moved to another connection: %s", upload.address, move.reason)
        self._progress.histories[self._offset] = MoveHistory(self._tracked.history.count + 1, move.reference)
        self._progress.slow_addresses.add(upload.address)
        if move.blames_address:
            sender.pool.addresses.slow(upload.address, move.reason, self._transfer_id)
        raise AttemptError(Code.SLOW_CONNECTION, move.reason)

    def __enter__(self) -> None:
        """Do nothing: the comparison begins with the body."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End the comparison. A moved body that was sent whole may still arrive, so that error is ambiguous."""
        self._sender.stragglers.end(self._tracked, time.monotonic(), answered=error is None)
        if isinstance(error, AttemptError) and error.code == Code.SLOW_CONNECTION:
            error.ambiguous = self._upload.was_sent


class Sender:
    """Sends the requests to one store.

    Args:
        settings: limits of a request, verification.
        pool: the connections to use.
        signer: creates and signs the requests.

    Attributes:
        can_look_up: whether objects can be looked up, as far as is known. If not, a body that was sent whole is not
            moved.
        stragglers: compares the bodies that are being sent.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool, signer: Signer) -> None:
        self.settings = settings
        self.pool = pool
        self.can_look_up = settings.verify != "no-etag"
        self._signer = signer
        self.stragglers = Stragglers()
        self._turns = Turns(at_once=1, rounds=1)

    async def open(self) -> None:
        """Open the signer; from then on requests can be sent.

        Raises:
            SettingsError: there are no keys.
        """
        await self._signer.open(self._send)

    async def close(self) -> None:
        """Close the signer; the pool stays open."""
        await self._signer.close()

    async def send_file(
        self,
        operation: str,
        transfer_id: str,
        source: Source,
        offset: int = 0,
        size: int | None = None,
        *,
        failed_addresses: Collection[str] = (),
        connection: Connection | None = None,
        progress: Progress,
        on_sent: Callable[[str], None] = lambda _: None,
        **params: object,
    ) -> SentBody:
        """Send a file, or a slice of it, as the body of one request, and verify it.

        Args:
            operation: botocore's name for it, such as `put_object`.
            transfer_id: the transfer that the file belongs to.
            source: the open file; the caller closes it.
            offset: start of the slice, bytes.
            size: length of the slice, bytes; None: the whole file.
            failed_addresses: addresses to avoid if another one is enabled.
            connection: the connection to use, which the caller has taken; its address is not blamed for a failure.
                None: the best one that is idle.
            progress: of the attempt.
            on_sent: called with the MD5 of the body (empty where none is computed) if all of it was handed to the
                kernel, whether the request succeeded or not.
            params: the operation's other parameters.

        Raises:
            AttemptError: the store did not store it, or (`ambiguous`) may have. `SlowConnection`: its connection is too
                slow, and it should be sent again at once, not to the `slow_addresses` of `progress`.
            FileError: the file could not be read, or changed meanwhile.
        """
        length, bucket = source.state.size if size is None else size, str(params.get("Bucket", ""))
        load = Load.LARGE_BODY if length > SMALL_BYTES else Load.SMALL_BODY
        avoid = {*failed_addresses, *progress.slow_addresses}
        async with self._using(connection, operation, transfer_id, avoid, bucket=bucket, load=load) as used:
            upload = Upload(used, length, progress)
            mover = _MoveWatch(self, upload, progress, offset, transfer_id, needs_lookup=operation in _MAKE_OBJECTS)
            digest = self.settings.verify == "auto"
            body = FileBody(source, offset, length, digest=digest, turns=self._turns, on_start=mover.begin)
            try:
                with mover:
                    request = self._signer.call(operation, Body=body, **params)
                    answer = await self._watch(body, upload, request, mover)
                    info = upload.info()
                    if info is None or not (body.finished and upload.may_have_arrived):
                        text = "the store answered before it had the whole body"
                        raise body.error or AttemptError(Code.BAD_ANSWER, text)
            finally:
                if not (body.finished and upload.may_have_arrived):  # the rest must not arrive later
                    upload.abort(body.transport)
                if body.finished:
                    on_sent(body.md5)
                upload.close()
                if upload.is_aborted:
                    await used.settle()
            etag = etag_of(answer)
            if contradicts(answer, body.md5):
                text = f"the store's ETag is {etag}, the MD5 sum of the bytes sent is {body.md5}; {VERIFY_ADVICE}"
                raise AttemptError(Code.ETAG_MISMATCH, text)
        self.pool.addresses.succeeded(used.address, proves_speed=load is Load.LARGE_BODY)
        self.pool.addresses.taken(used.address, transfer_id, bucket)
        return SentBody(etag, info.rtt_usec, upload.retransmits(info), upload.connection_state, used.address)

    async def call(
        self,
        operation: str,
        *,
        answer_timeout_s: float | None = None,
        failed_addresses: Collection[str] = (),
        connection: Connection | None = None,
        **params: object,
    ) -> Mapping[str, Any]:
        """Carry out an operation that sends no file, and return its parsed answer.

        Args:
            operation: botocore's name for it, such as `head_object`.
            answer_timeout_s: how long it may take once there is a connection, seconds; None: the stall timeout.
            failed_addresses: addresses to avoid if another one is enabled.
            connection: as for `send_file`.
            params: the operation's parameters.

        Raises:
            AttemptError: the store refused, or gave no clear answer.
        """
        limit = self.settings.connect_timeout_s + (answer_timeout_s or self.settings.stall_timeout_s)
        bucket = str(params.get("Bucket", ""))
        async with self._using(connection, operation, operation, failed_addresses, bucket=bucket, load=Load.NO_BODY):
            try:
                async with asyncio.timeout(limit):
                    answer: Mapping[str, Any] = await self._signer.call(operation, **params)
            except botocore.exceptions.ClientError as exc:
                raise refusal_of(exc, arrived=True) from exc
            except SENDING_ERRORS as exc:
                raise failure_of(exc, ambiguous=False, stale=False, limit_s=limit) from exc
        return answer

    async def _watch(self, body: FileBody, upload: Upload, request: Awaitable[_T], mover: _MoveWatch) -> _T:
        """Carry out `request` while it makes progress and should not be moved, and return its answer.

        Raises:
            AttemptError, FileError: as `send_file` does.
        """
        watch = StallWatch(self.settings.stall_timeout_s, self.settings.answer_timeout_s)

        def look() -> None:
            if body.transport is None:
                return
            info = upload.info()
            arrived = body.finished and info is not None and info.outstanding == 0
            limit = info.pacing_limit if info is not None else 0
            if watch.tick(upload.acked(), arrived=arrived, pacing_limit=limit):
                raise stall_of(self.settings, len(body), upload.acked(), arrived=arrived, reading=body.reading)
            if info is not None:
                mover.tick(body, info)

        try:
            return await _watched(request, look, lambda: upload.abort(body.transport))
        except botocore.exceptions.ClientError as exc:
            raise refusal_of(exc, arrived=upload.may_have_arrived) from exc
        except AttemptError as exc:  # `_send`'s, or one of the above
            # Of a path that is broken only on its way back, no acknowledgement comes, and all that was sent arrives.
            exc.ambiguous = upload.was_sent if exc.code == Code.STALLED else upload.may_have_arrived
            if body.error is not None:
                raise body.error from exc
            raise
        except SENDING_ERRORS as exc:
            if body.error is not None:
                raise body.error from exc
            raise failure_of(exc, ambiguous=upload.may_have_arrived, stale=upload.was_stale) from exc

    @contextlib.asynccontextmanager
    async def _using(
        self,
        connection: Connection | None,
        operation: str,
        purpose: str,
        failed_addresses: Collection[str],
        *,
        bucket: str,
        load: Load,
    ) -> AsyncIterator[Connection]:
        """Send the block's requests over `connection`; if that is None, over one of the pool, whose address is blamed.

        Args:
            connection: which the caller has taken.
            operation: botocore's name for it.
            purpose: the transfer's id, or the operation.
            failed_addresses: the addresses where it failed before.
            bucket: that it concerns; empty for none.
            load: what is sent.
        """
        if connection is not None:
            async with self._use(connection, operation):
                yield connection
            return
        avoid = self.pool.addresses.avoided(failed_addresses, bucket)
        try:
            async with (
                self.pool.acquire(load, avoid) as acquired,
                self._use(acquired, operation),
                self._blame(acquired, purpose, failed_addresses),
            ):
                yield acquired
        except (socket.gaierror, TimeoutError) as exc:
            raise AttemptError(Code.NAME_NOT_RESOLVED, unresolved(exc)) from exc

    @contextlib.asynccontextmanager
    async def _use(self, connection: Connection, operation: str) -> AsyncIterator[Connection]:
        """Send the block's requests over a connection, and note which addresses do not accept it."""
        token = _connection.set(connection)
        try:
            yield connection
        except AttemptError as exc:
            exc.ambiguous &= operation in _MAKE_OBJECTS
            raise
        finally:
            self._blame_unconnected(connection)
            _connection.reset(token)

    @contextlib.asynccontextmanager
    async def _blame(
        self, connection: Connection, purpose: str, failed_addresses: Collection[str]
    ) -> AsyncIterator[None]:
        """Note at which address, and over which connection, the block's requests fail.

        Args:
            connection: in use.
            purpose: the transfer's id, or the operation.
            failed_addresses: the addresses where it failed before.
        """
        try:
            yield
        except AttemptError as exc:
            reason = f"{exc.code}, {exc}" if exc.code in UNCONNECTED else "no connection"
            tried = {*failed_addresses, *self._blame_unconnected(connection, reason)}
            exc.other_address = self.pool.addresses.attempt_failed(exc, connection.address, purpose, tried)
            exc.address = connection.address
            connection.has_failed = may_be_the_address(exc)
            if exc.code == Code.STALLED:
                self.pool.fell_silent(connection.address)
            raise
        connection.has_failed = False

    def _blame_unconnected(self, connection: Connection, reason: str = "no connection") -> list[str]:
        """Return the addresses that did not accept the connection, which tries all in turn; each is to blame.

        Args:
            connection: that was used.
            reason: one line, for when they are disabled.
        """
        found = connection.pop_failed_addresses()
        for address in found:
            self.pool.addresses.failed(address, reason)
        return found

    async def _send(self, request: Any, event_name: str = "", **_: object) -> AioAWSResponse:
        """Send a signed request over the context's connection; aiobotocore calls this instead of its own session.

        Args:
            request: to send.
            event_name: botocore's; it ends in the name of the operation.

        Raises:
            AttemptError: `BadAnswer`, the answer cannot be S3's.
        """
        given = request.headers.items()
        headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in given}
        headers.pop("Expect", None)  # it costs a round trip, and aiohttp waits for ever when the 100 does not come
        response = await _connection.get().request(request.method, request.url, headers, request.body or None)
        raw = {name.decode().lower(): value.decode(errors="replace") for name, value in response.raw_headers}
        etags = {value.decode(errors="replace") for name, value in response.raw_headers if name.lower() == b"etag"}
        if len(etags) > 1:  # of which the last one would be believed
            raw["etag"] = ", ".join(sorted(etags))
        raw[STATUS_HEADER] = str(response.status)
        encoding = raw.pop("content-encoding", "")
        content = decoded(response.body, encoding)
        if content is None:
            flaw = f"the answer {response.status} has the Content-Encoding {encoding!r}, which was not asked for"
        else:
            operation = event_name.rpartition(".")[2]
            needs_etag = self.settings.verify != "no-etag"
            flaw = flaw_of(operation, response.status, raw, content, needs_etag=needs_etag)
        if flaw or content is None:
            raise AttemptError(Code.BAD_ANSWER, one_line(flaw, 250), status=response.status, ambiguous=True)
        return AioAWSResponse(str(response.url), response.status, raw, replace(response, body=content))
