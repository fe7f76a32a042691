"""One file to S3: signed by aiobotocore, sent over a lane, and what the answer means.

aiobotocore builds and signs every request and reads every answer, but does not send them: a `before-send` handler
carries each over the lane that its context names. So nothing between here and the store sends twice, follows a
redirect, waits for a `100 Continue`, or opens a connection that nobody asked for.

An attempt ends by an answer, by an error, or because it no longer moves. What the error was does not tell whether the
object arrived; TCP does: while fewer bytes than the body has were acknowledged, it cannot have.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
import botocore.exceptions
import botocore.parsers
from aiobotocore.awsrequest import AioAWSResponse

from .answers import failure_of, refusal_of
from .body import FileBody
from .connections import Lanes
from .errors import AttemptError, FileError
from .lane import Lane
from .request import Transfer
from .settings import Settings
from .signing import Signer
from .source import Source
from .tcp import TICK_S, Clock, StallWatch
from .upload import Upload

#: The object's metadata (`x-amz-meta-...` on the wire): the transfer that stored it, and which content of its file.
ID_KEY, FILE_KEY = "s3daemon-id", "s3daemon-file"
#: Length of a hex MD5; an ETag of another shape (multipart, some encryptions) says nothing about the content.
_MD5_DIGITS = 32

_T = TypeVar("_T")
_lane: ContextVar[Lane] = ContextVar("lane")


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of an object that is in the store.

    Args:
        etag: as the store gave it, without quotes.
        size: bytes.
        upload_usec: from taking a connection to the answer, microseconds; 0 when it was found there.
        rtt_usec: smoothed round-trip time at the end, microseconds; 0 when unknown.
        retransmits: TCP segments sent again meanwhile.
        connection: `warm`, `new`, or empty when it was found there.
    """

    etag: str
    size: int
    upload_usec: int = 0
    rtt_usec: int = 0
    retransmits: int = 0
    connection: str = ""


class Absence(Enum):
    """Why `Store.find` found nothing."""

    CERTAIN = "no object is there, or another one"
    REFUSED = "the store does not let us look"


class Store:
    """One S3 store, reached over its lanes.

    Args:
        settings: limits of an attempt, verification.
        lanes: the connections to use.
        signer: makes and signs the requests.
        clock: monotonic seconds.
    """

    def __init__(self, settings: Settings, lanes: Lanes, signer: Signer, clock: Clock = time.monotonic) -> None:
        self._settings = settings
        self._lanes = lanes
        self._signer = signer
        self._clock = clock
        signer.send_with(self._send)

    async def put(self, transfer: Transfer, source: Source) -> Stored:
        """Store the file under the transfer's destination, in one PUT, and verify it.

        Args:
            transfer: names the destination; its id goes into the object's metadata.
            source: the open file; stays the caller's.

        Raises:
            AttemptError: it is not stored, or (`ambiguous`) may be.
            FileError: the file could not be read or changed meanwhile; if a mixture was stored, an attempt must follow.
        """
        started = self._clock()
        async with self._borrow() as lane:
            upload = Upload(lane, source.state.size)
            body = FileBody(source, digest=self._settings.verify != "off", on_start=upload.begin)
            try:
                answer = await self._watched(lane, body, upload, self._put_request(transfer, body))
                info = upload.info()
                if not (body.finished and upload.may_have_arrived):
                    raise body.error or AttemptError("BadAnswer", "the store answered before it had the whole file")
            finally:
                if not (body.finished and upload.may_have_arrived):  # what was not taken shall not come later
                    lane.cut(body.transport)
                upload.close()
        etag = str(answer.get("ETag", "")).strip('"')
        _verify(body.md5, etag)
        await asyncio.get_running_loop().run_in_executor(None, source.check_unchanged)
        return Stored(
            etag=etag,
            size=len(body),
            upload_usec=round((self._clock() - started) * 1e6),
            rtt_usec=info.rtt_usec if info else 0,
            retransmits=upload.retransmits(info) if info else 0,
            connection=upload.connection,
        )

    async def find(self, transfer: Transfer) -> Stored | Absence:
        """Look whether the store has the object that an attempt of this transfer sent.

        Raises:
            AttemptError: there was no answer that tells.
        """
        destination = transfer.destination
        try:
            head = await self.ask("head_object", Bucket=destination.bucket, Key=destination.key)
        except AttemptError as refusal:
            if refusal.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED):
                return Absence.CERTAIN if refusal.status == HTTPStatus.NOT_FOUND else Absence.REFUSED
            raise
        seen, marks = transfer.seen, {FILE_KEY: transfer.seen.mark, **head.get("Metadata", {})}
        if (marks.get(ID_KEY), marks[FILE_KEY], head.get("ContentLength")) != (transfer.id, seen.mark, seen.size):
            return Absence.CERTAIN
        return Stored(etag=str(head.get("ETag", "")).strip('"'), size=seen.size)

    async def ask(self, operation: str, **params: object) -> Mapping[str, Any]:
        """Carry out an operation that has no body, by botocore's name for it, such as `head_object`.

        Raises:
            AttemptError: the store refused, or there was no answer that tells.
        """
        async with self._borrow():
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s + self._settings.stall_timeout_s):
                    answer: Mapping[str, Any] = await getattr(self._signer.client, operation)(**params)
            except botocore.exceptions.ClientError as exc:
                raise refusal_of(exc) from exc
            except _SENDING as exc:
                raise failure_of(exc, ambiguous=False, stale=False) from exc
        return answer

    def _put_request(self, transfer: Transfer, body: FileBody) -> Coroutine[Any, Any, Mapping[str, Any]]:
        to = transfer.destination
        result: Coroutine[Any, Any, Mapping[str, Any]] = self._signer.client.put_object(
            Bucket=to.bucket, Key=to.key, Body=body, Metadata={ID_KEY: transfer.id, FILE_KEY: transfer.seen.mark}
        )
        return result

    async def _watched(self, lane: Lane, body: FileBody, upload: Upload, request: Coroutine[Any, Any, _T]) -> _T:
        """Carry `request` out while it moves.

        Raises:
            AttemptError, FileError: as `put` does.
        """
        watch = StallWatch(self._settings.stall_timeout_s, self._settings.answer_timeout_s)
        task = asyncio.create_task(request)
        try:
            while not (await asyncio.wait({task}, timeout=TICK_S))[0]:
                info = upload.info()
                arrived = body.finished and info is not None and info.due == 0
                if body.transport is not None and watch.tick(upload.acked(), arrived=arrived):
                    raise _stalled(self._settings, body, upload, arrived=arrived)
            return task.result()
        except botocore.exceptions.ClientError as exc:
            raise refusal_of(exc) from exc
        except _SENDING as exc:
            if body.error is not None:
                raise body.error from exc
            stale = upload.connection == "warm" and upload.acked() < len(body)
            raise failure_of(exc, ambiguous=upload.may_have_arrived, stale=stale) from exc
        finally:
            if not task.done():
                lane.cut(body.transport)
                task.cancel()
                await asyncio.wait({task})

    @contextlib.asynccontextmanager
    async def _borrow(self) -> AsyncIterator[Lane]:
        try:
            async with self._lanes.take() as lane:
                token = _lane.set(lane)
                try:
                    yield lane
                finally:
                    _lane.reset(token)
        except (socket.gaierror, TimeoutError) as exc:
            reason = exc.strerror or "no answer in time"
            raise AttemptError("NameNotResolved", f"the endpoint's name does not resolve: {reason}") from exc

    async def _send(self, request: Any, **_: object) -> AioAWSResponse:
        """Carry a signed request over the lane of this context; what aiobotocore calls in place of its own session."""
        given = request.headers.items()
        headers = {name: value.decode() if isinstance(value, bytes) else value for name, value in given}
        headers.pop("Expect", None)  # a round trip, and aiohttp waits for ever when the 100 does not come
        response = await _lane.get().request(request.method, request.url, headers, request.body or None)
        raw = {name.decode().lower(): value.decode(errors="replace") for name, value in response.raw_headers}
        return AioAWSResponse(str(response.url), response.status, raw, response)


#: What sending can raise, from aiohttp, the kernel, botocore's reading of garbage, and ourselves.
_SENDING = (
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    FileError,
    botocore.exceptions.BotoCoreError,
    botocore.parsers.ResponseParserError,
    ValueError,
)


def _stalled(settings: Settings, body: FileBody, upload: Upload, *, arrived: bool) -> AttemptError | FileError:
    if arrived:
        text = f"all was sent and no answer came for {settings.answer_timeout_s:g} s"
        return AttemptError("NoAnswer", text, ambiguous=True)
    if body.reading:
        return FileError("ReadFailed", f"the file system did not answer for {settings.stall_timeout_s:g} s")
    text = f"the store took no byte for {settings.stall_timeout_s:g} s, after {upload.acked()} of {len(body)}"
    return AttemptError("Stalled", text, ambiguous=upload.may_have_arrived)


def _verify(md5: str, etag: str) -> None:
    if md5 and len(etag) == _MD5_DIGITS and etag.lower() != md5:
        raise AttemptError(
            "ETagMismatch",
            f"the store's ETag is {etag}, the MD5 of what was sent {md5}; S3DAEMON_VERIFY=off if its ETags are no MD5s",
        )
