"""One file to S3, and what the answer means.

A file up to the multipart threshold goes in one PUT, a larger one in parts (`multipart`). Whichever way, an object is
stored when the store says so, its ETag, where that is an MD5, is that of what was sent, and the file's path still names
what was opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from enum import Enum
from http import HTTPStatus
from typing import Any

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError
from s3daemon.model.request import Transfer
from s3daemon.model.source import Source
from s3daemon.network.pool import ConnectionPool
from s3daemon.network.progress import Progress
from s3daemon.s3.client import Signer
from s3daemon.s3.multipart import Multipart
from s3daemon.s3.parts import is_for_parts
from s3daemon.s3.sender import Sender
from s3daemon.s3.stored import FILE_KEY, ID_KEY, Stored, marks_of, parts_of
from s3daemon.spool.open_uploads import OpenUploads

__all__ = ["FILE_KEY", "ID_KEY", "LookupResult", "Store", "Stored"]


class LookupResult(Enum):
    """Why `Store.find` found nothing."""

    NOT_FOUND = "no object is there, or another one"
    FORBIDDEN = "the store does not let us look"


class Store:
    """One S3 store, reached over its connections.

    Args:
        settings: limits of an attempt, verification.
        pool: the connections to use.
        signer: makes and signs the requests.
        clock: monotonic seconds.

    Attributes:
        url: of the endpoint.
        sending: its requests; knows what is under way.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool, signer: Signer, clock: Clock = time.monotonic) -> None:
        self.url = settings.endpoint_url
        self.sending = Sender(settings, pool, signer)
        self._settings = settings
        self._clock = clock
        self._multipart = Multipart(self.sending, clock)

    async def put(
        self,
        transfer: Transfer,
        source: Source,
        ledger: OpenUploads | None = None,
        tried: Collection[str] = (),
        progress: Progress | None = None,
    ) -> Stored:
        """Store the file under the transfer's destination, and verify it.

        Args:
            transfer: names the destination; its id goes into the object's metadata.
            source: the open file; stays the caller's.
            ledger: of uploads in parts; without it an attempt leaves nothing to the next one.
            tried: receivers to pass over if another one serves.
            progress: told how far it is.

        Raises:
            AttemptError: it is not stored, or (`ambiguous`) may be.
            FileError: the file could not be read or changed meanwhile; if a mixture was stored, an attempt must follow.
        """
        self.sending.under_way[transfer.id] = Progress() if progress is None else progress
        try:
            return await self._put(transfer, source, OpenUploads() if ledger is None else ledger, tried)
        finally:
            del self.sending.under_way[transfer.id]

    async def _put(self, transfer: Transfer, source: Source, ledger: OpenUploads, tried: Collection[str]) -> Stored:
        if is_for_parts(source.state.size, self._settings):
            return await self._multipart.put(transfer, source, ledger, tried)
        started, to = self._clock(), transfer.destination
        sent = await self.sending.deliver(
            "put_object", transfer.id, source, tried=tried, Bucket=to.bucket, Key=to.key, Metadata=marks_of(transfer)
        )
        await asyncio.get_running_loop().run_in_executor(None, source.check_unchanged)
        upload_usec = round((self._clock() - started) * 1e6)
        return Stored(
            sent.etag, sent.size, upload_usec, sent.rtt_usec, sent.retransmits, sent.connection, receiver=sent.receiver
        )

    async def find(self, transfer: Transfer, tried: Collection[str] = ()) -> Stored | LookupResult:
        """Look whether the store has the object that an attempt of this transfer sent.

        Args:
            transfer: the one.
            tried: receivers to pass over if another one serves.

        Raises:
            AttemptError: there was no answer that tells.
        """
        destination = transfer.destination
        try:
            head = await self.ask("head_object", tried=tried, Bucket=destination.bucket, Key=destination.key)
        except AttemptError as refusal:
            if refusal.status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED):
                return LookupResult.NOT_FOUND if refusal.status == HTTPStatus.NOT_FOUND else LookupResult.FORBIDDEN
            raise
        seen, marks = transfer.seen, {FILE_KEY: transfer.seen.mark, **head.get("Metadata", {})}
        if (marks.get(ID_KEY), marks[FILE_KEY], head.get("ContentLength")) != (transfer.id, seen.mark, seen.size):
            return LookupResult.NOT_FOUND
        etag = str(head.get("ETag", "")).strip('"')
        return Stored(etag, seen.size, parts=parts_of(etag))

    async def ask(self, operation: str, **params: Any) -> Mapping[str, Any]:
        """Carry out an operation that has no body, as `Sender.ask` does."""
        return await self.sending.ask(operation, **params)
