"""Requests over the pool's connections: signed by aiobotocore, sent by us, and watched while they move.

aiobotocore builds and signs every request and reads every answer, but does not send them: a `before-send` handler
carries each over the connection that its context names. So nothing between here and the store sends twice, follows a
redirect, waits for a `100 Continue`, or opens a connection that nobody asked for.

A request with a body ends by an answer, by an error, or because it no longer moves. What the error was does not tell
whether the body arrived; TCP does: while fewer bytes than it has were acknowledged, it cannot have.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import botocore.exceptions
from aiobotocore.awsrequest import AioAWSResponse

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code
from s3daemon.model.source import SMALL_BYTES, Source
from s3daemon.network.connection import Connection
from s3daemon.network.pool import ConnectionPool
from s3daemon.network.progress import TICK_S, Progress, StallWatch, Upload
from s3daemon.s3.body import FileBody
from s3daemon.s3.client import Signer
from s3daemon.s3.failures import SENDING_ERRORS, failure_of, refusal_of, stall_of

#: Length of a hex MD5; an ETag of another shape (multipart, some encryptions) says nothing about the content.
MD5_DIGITS = 32

_T = TypeVar("_T")
_connection: ContextVar[Connection] = ContextVar("connection")


@dataclass(frozen=True, slots=True)
class Delivered:
    """What is known of a body that the store has taken.

    Args:
        etag: as the store gave it, without quotes.
        size: bytes.
        rtt_usec: smoothed round-trip time at the end, microseconds; 0 when unknown.
        retransmits: TCP segments sent again meanwhile.
        connection: `warm` or `new`.
        receiver: the address that took it.
    """

    etag: str
    size: int
    rtt_usec: int
    retransmits: int
    connection: str
    receiver: str


class Sender:
    """Sends what its signer signs.

    Args:
        settings: limits of a request, verification.
        pool: the connections to use.
        signer: makes and signs the requests.

    Attributes:
        under_way: how far each transfer is of which an attempt is under way, by its id.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool, signer: Signer) -> None:
        self.settings = settings
        self.pool = pool
        self.under_way: dict[str, Progress] = {}
        self._signer = signer
        signer.send_with(self._send)

    async def deliver(
        self,
        operation: str,
        transfer_id: str,
        source: Source,
        offset: int = 0,
        size: int | None = None,
        *,
        tried: Collection[str] = (),
        over: Connection | None = None,
        **params: object,
    ) -> Delivered:
        """Send a file, or a slice of it, as the body of one request, and verify it.

        Args:
            operation: botocore's name for it, such as `put_object`.
            transfer_id: whose it is.
            source: the open file; stays the caller's.
            offset: where the slice begins, bytes.
            size: of the slice, bytes; None for all.
            tried: receivers to pass over if another one serves.
            over: the connection to use; without it the best one that is idle.
            params: the operation's others.

        Raises:
            AttemptError: the store did not take it, or (`ambiguous`) may have.
            FileError: the file could not be read or changed meanwhile.
        """
        length = source.state.size if size is None else size
        async with self._over(over, transfer_id) if over else self._borrow(transfer_id, tried, length) as connection:
            upload = Upload(connection, length, self.under_way.get(transfer_id))
            body = FileBody(source, offset, length, digest=self.settings.verify != "off", on_start=upload.begin)
            try:
                request = getattr(self._signer.client, operation)(Body=body, **params)
                answer = await self._watched(connection, body, upload, request)
                info = upload.info()
                if not (body.finished and upload.may_have_arrived):
                    raise body.error or AttemptError(Code.BAD_ANSWER, "the store answered before it had the whole body")
            finally:
                if not (body.finished and upload.may_have_arrived):  # what was not taken shall not come later
                    connection.abort(body.transport)
                upload.close()
        etag = str(answer.get("ETag", "")).strip('"')
        _verify(body.md5, etag)
        self.pool.addresses.succeeded(connection.address)
        retransmits = upload.retransmits(info) if info else 0
        rtt_usec = info.rtt_usec if info else 0
        return Delivered(etag, length, rtt_usec, retransmits, upload.connection_state, connection.address)

    async def ask(
        self, operation: str, *, answer_s: float | None = None, tried: Collection[str] = (), **params: object
    ) -> Mapping[str, Any]:
        """Carry out an operation that sends no file, by botocore's name for it, such as `head_object`.

        Args:
            operation: its name.
            answer_s: how long it may take once there is a connection, seconds; None for as long as a stall.
            tried: receivers to pass over if another one serves.
            params: its own.

        Raises:
            AttemptError: the store refused, or there was no answer that tells.
        """
        limit = self.settings.connect_timeout_s + (answer_s or self.settings.stall_timeout_s)
        async with self._borrow(operation, tried):
            try:
                async with asyncio.timeout(limit):
                    answer: Mapping[str, Any] = await getattr(self._signer.client, operation)(**params)
            except botocore.exceptions.ClientError as exc:
                raise refusal_of(exc) from exc
            except SENDING_ERRORS as exc:
                raise failure_of(exc, ambiguous=False, stale=False) from exc
        return answer

    async def _watched(
        self, connection: Connection, body: FileBody, upload: Upload, request: Coroutine[Any, Any, _T]
    ) -> _T:
        """Carry `request` out while it moves.

        Raises:
            AttemptError, FileError: as `deliver` does.
        """
        watch = StallWatch(self.settings.stall_timeout_s, self.settings.answer_timeout_s)
        task = asyncio.create_task(request)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                info = upload.info()
                arrived = body.finished and info is not None and info.outstanding == 0
                if body.transport is not None and watch.tick(upload.acked(), arrived=arrived):
                    raise stall_of(
                        self.settings, len(body), upload.acked(),
                        arrived=arrived, reading=body.reading, ambiguous=upload.may_have_arrived,
                    )  # fmt: skip
            return task.result()
        except botocore.exceptions.ClientError as exc:
            raise refusal_of(exc) from exc
        except SENDING_ERRORS as exc:
            if body.error is not None:
                raise body.error from exc
            stale = upload.connection_state == "warm" and upload.acked() < len(body)
            raise failure_of(exc, ambiguous=upload.may_have_arrived, stale=stale) from exc
        finally:
            if not task.done():
                connection.abort(body.transport)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # it may have failed just as we were cancelled

    @contextlib.asynccontextmanager
    async def _over(self, connection: Connection, who: str, tried: Collection[str] = ()) -> AsyncIterator[Connection]:
        token = _connection.set(connection)
        try:
            yield connection
        except AttemptError as exc:
            self.pool.addresses.attempt_failed(exc, connection.address, who, tried)
            raise
        finally:
            _connection.reset(token)

    @contextlib.asynccontextmanager
    async def _borrow(self, who: str, tried: Collection[str], size: int = 0) -> AsyncIterator[Connection]:
        try:
            async with (
                self.pool.acquire(large=size > SMALL_BYTES, avoid=tried) as connection,
                self._over(connection, who, tried),
            ):
                yield connection
        except (socket.gaierror, TimeoutError) as exc:
            reason = exc.strerror or "no answer in time"
            raise AttemptError(Code.NAME_NOT_RESOLVED, f"the endpoint's name does not resolve: {reason}") from exc

    async def _send(self, request: Any, **_: object) -> AioAWSResponse:
        """Carry a signed request over this context's connection; what aiobotocore calls in place of its own session."""
        given = request.headers.items()
        headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in given}
        headers.pop("Expect", None)  # a round trip, and aiohttp waits for ever when the 100 does not come
        response = await _connection.get().request(request.method, request.url, headers, request.body or None)
        raw = {name.decode().lower(): value.decode(errors="replace") for name, value in response.raw_headers}
        return AioAWSResponse(str(response.url), response.status, raw, response)


def _verify(md5: str, etag: str) -> None:
    if md5 and len(etag) == MD5_DIGITS and etag.lower() != md5:
        raise AttemptError(
            Code.ETAG_MISMATCH,
            f"the store's ETag is {etag}, the MD5 of what was sent {md5}; S3DAEMON_VERIFY=off if its ETags are no MD5s",
        )
