"""Multipart uploads that a store may still hold: known in memory, kept in the spool, until they are stored or aborted.

    call            what the spool keeps
    ----            --------------------
    begin           the upload; durable when it returns, so that whatever follows can be resumed or aborted
    part            a part that the store has; lazy: a row that a crash takes costs one part sent again
    completing      that the object may come into being; durable when it returns
    over            nothing more of it; lazy: a row that a crash leaves costs one abort that finds nothing

An upload's rows outlive its transfer's. Whoever ends a transfer need not think of it: an upload whose transfer is not
pending is an orphan, and `janitor` has the store drop it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from s3daemon.spool.upload_rows import (
    BeginUpload,
    EndUpload,
    MarkCompleting,
    MultipartUpload,
    SavePart,
    UploadChange,
    UploadRows,
)
from s3daemon.spool.writer import Job


@dataclass(slots=True, eq=False)
class OpenUpload(UploadRows):
    """An upload that was begun and is not over.

    Attributes:
        abandoned: no attempt goes on with it, though its transfer may be pending: it is to be aborted. Only in memory;
            after a restart the transfer's next attempt finds out anew.
    """

    abandoned: bool = False


class OpenUploads:
    """The uploads of one daemon. Its methods belong to the event loop.

    Args:
        put: takes a change to the spool's writer; without it nothing is kept beyond this process.
        found: what opening the spool read.
    """

    def __init__(self, put: Callable[[Job], None] | None = None, found: Iterable[UploadRows] = ()) -> None:
        self._put = put
        self._begun = {rows.upload.id: OpenUpload(rows.upload, rows.etags, rows.completing) for rows in found}

    def __iter__(self) -> Iterator[OpenUpload]:
        """All of them, whichever comes or goes meanwhile."""
        return iter(list(self._begun.values()))

    def of(self, transfer_id: str) -> list[OpenUpload]:
        """Those that a transfer began and did not abandon."""
        return [one for one in self if one.upload.transfer_id == transfer_id and not one.abandoned]

    async def begin(self, upload: MultipartUpload) -> None:
        """Keep a new upload.

        Raises:
            SpoolError: it is not durable yet; it is kept all the same.
        """
        self._begun[upload.id] = OpenUpload(upload)
        await self._durably(BeginUpload(upload))

    def part(self, begun: OpenUpload, number: int, etag: str) -> None:
        """The store has a part."""
        begun.etags[number] = etag
        self._lazily(SavePart(begun.upload.id, number, etag))

    async def completing(self, begun: OpenUpload) -> None:
        """The store is about to be asked for the object.

        Raises:
            SpoolError: it is not durable yet.
        """
        begun.completing = True
        await self._durably(MarkCompleting(begun.upload.id))

    def over(self, begun: OpenUpload) -> None:
        """The store has it no more: it is completed, aborted, or unknown there."""
        if self._begun.pop(begun.upload.id, None) is not None:
            self._lazily(EndUpload(begun.upload.id))

    def changes(self) -> list[UploadChange]:
        """What brings all of it into a spool that lost it."""
        return [change for one in self for change in one.changes()]

    async def _durably(self, change: UploadChange) -> None:
        if self._put is not None:
            answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._put(Job([change], answer))
            await answer

    def _lazily(self, change: UploadChange) -> None:
        if self._put is not None:
            self._put(Job([change]))
