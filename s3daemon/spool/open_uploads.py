"""Multipart uploads that a store may still hold: known in memory, kept in the spool, until they are stored or aborted.

    call            what the spool saves
    ----            --------------------
    begin           the upload; durable when it returns *, so that whatever follows can be resumed or aborted
    part            a part that the store has; lazy: a row that a crash takes costs one part sent again
    completing      that the object may come to exist; durable when it returns *
    over            the removal of all of it; lazy: a row that a crash leaves costs one abort that finds nothing

    * unless the disk fails, which delays no accepted transfer: as soon as it can be written

An id is a store's own: another store may give the same one, and so may a store that counts, after its restart. In
memory all are kept; of those with one id the spool has the last, and another one once that is over.

An upload's rows outlive its transfer's. The code that ends a transfer need not consider it: an upload whose transfer is
not pending is an orphan, and `delivery.janitor` has the store abort it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from s3daemon.errors import SpoolError
from s3daemon.spool.rows import (
    BeginUpload,
    EndUpload,
    MarkCompleting,
    MultipartUpload,
    OpenUpload,
    SavePart,
    UploadChange,
)
from s3daemon.spool.writer import Writer

__all__ = ["MultipartUpload", "OpenUpload", "OpenUploads"]


class OpenUploads:
    """The uploads of one daemon. Its methods belong to the event loop.

    Args:
        writer: saves them in the spool; without it nothing is kept beyond this process.
        found: what opening the spool read.
    """

    def __init__(self, writer: Writer | None = None, found: Iterable[OpenUpload] = ()) -> None:
        self._writer = writer
        self._uploads = {upload.upload: upload for upload in found}

    def __iter__(self) -> Iterator[OpenUpload]:
        """Iterate over a copy of the list, so that uploads may begin and end meanwhile."""
        return iter(list(self._uploads.values()))

    def of(self, transfer_id: str) -> list[OpenUpload]:
        """Return the uploads that a transfer began and did not abandon."""
        return [upload for upload in self if upload.upload.transfer_id == transfer_id and not upload.abandoned]

    async def begin(self, upload: MultipartUpload) -> OpenUpload:
        """Keep a new upload."""
        begun = self._uploads[upload] = OpenUpload(upload)
        await self._apply(BeginUpload(upload))
        return begun

    def part(self, upload: OpenUpload, number: int, etag: str) -> None:
        """Save that the store has a part."""
        upload.etags[number] = etag
        self._apply_lazily(SavePart(upload.upload.id, number, etag))

    async def completing(self, upload: OpenUpload) -> None:
        """Save that the store is about to be asked for the object."""
        upload.completing = True
        await self._apply(MarkCompleting(upload.upload.id))

    def over(self, upload: OpenUpload) -> None:
        """Forget an upload that the store does not hold any more: it is completed, aborted, or unknown there."""
        if self._uploads.get(upload.upload) is not upload:
            return
        del self._uploads[upload.upload]
        self._apply_lazily(EndUpload(upload.upload.id))
        for change in (change for other in self if other.upload.id == upload.upload.id for change in other.changes()):
            self._apply_lazily(change)

    def changes(self) -> list[UploadChange]:
        """Return the changes that bring all uploads into a spool that lost them."""
        return [change for upload in self for change in upload.changes()]

    async def _apply(self, change: UploadChange) -> None:
        if self._writer is not None:
            with contextlib.suppress(SpoolError):
                await self._writer.apply(change)

    def _apply_lazily(self, change: UploadChange) -> None:
        if self._writer is not None:
            self._writer.apply_lazily(change)
