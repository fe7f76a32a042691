"""The parts of a large file: how large they are, how many go at a time, and that each is sent until the store has it.

**Who gets how many connections.** Every large file has one, as any upload has. Further parts take one only while more
than half of the connections are idle, so what else is accepted meanwhile finds half of them at once, and a large file
is back to its one as its parts end. Several large files share the other half evenly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code
from s3daemon.model.source import Source
from s3daemon.network.progress import TICK_S
from s3daemon.s3.sender import Delivered, Sender
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload, OpenUploads

#: S3's limit ("Amazon S3 multipart upload limits"); Ceph's rgw_multipart_part_upload_limit is the same.
MAX_PARTS = 10_000
#: Where parts must be larger than was set, their size is a whole number of these: easier to read in a bucket's listing.
_ROUND_BYTES = 1 << 20
#: With this upload no attempt can succeed: the store lost it, or will not make an object of what it has.
START_OVER = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"})


def part_bytes(size: int, wanted: int) -> int:
    """The size of the parts of a file of `size` bytes: `wanted`, or more where it would else have too many."""
    least = -(-size // MAX_PARTS)
    return wanted if least <= wanted else -(-least // _ROUND_BYTES) * _ROUND_BYTES


def is_for_parts(size: int, settings: Settings) -> bool:
    """Whether a file of `size` bytes goes in parts; a single part would only cost round trips."""
    return size > settings.multipart_threshold_bytes and size > part_bytes(size, settings.part_size_bytes)


def names_of(upload: MultipartUpload) -> dict[str, Any]:
    """The parameters that name it to the store."""
    return {"Bucket": upload.destination.bucket, "Key": upload.destination.key, "UploadId": upload.id}


@contextlib.contextmanager
def certain(begun: OpenUpload | None = None) -> Iterator[None]:
    """Nothing before the completion makes an object, so no failure leaves one in doubt."""
    try:
        yield
    except AttemptError as exc:
        exc.ambiguous = False
        if begun is not None and exc.code in START_OVER:
            begun.abandoned = True
        raise


class Parts:
    """Sends parts.

    Args:
        sending: carries the requests.

    Attributes:
        files: how many large files are under way; for whoever sends them to count.
    """

    def __init__(self, sending: Sender) -> None:
        self._sending = sending
        self.files = 0

    async def send(
        self, begun: OpenUpload, source: Source, ledger: OpenUploads, tried: Collection[str]
    ) -> list[Delivered]:
        """Send those that the store has not; tell what was sent.

        Raises:
            AttemptError: one failed; those that were in flight then are over.
            FileError: the file could not be read or changed meanwhile.
        """
        todo = deque(n for n in range(1, begun.upload.count + 1) if n not in begun.etags)
        sent: list[Delivered] = []
        running: dict[asyncio.Task[Delivered], int] = {}
        failure: AttemptError | None = None
        patience = self._sending.pool.limit  # each connection may have been closed while it was idle
        try:
            while running or (todo and failure is None):
                while todo and failure is None and self._may_start(len(running), len(todo)):
                    number = todo.popleft()
                    running[asyncio.create_task(self._send_part(begun, number, source, ledger, tried))] = number
                    await asyncio.sleep(0)  # for it to take its connection, before the next one counts the idle ones
                done, _ = await asyncio.wait(running, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number = running.pop(task)
                    try:
                        sent.append(task.result())
                    except AttemptError as exc:
                        if begun.abandoned:
                            raise
                        if exc.code == Code.STALE_CONNECTION and patience > 0:
                            patience -= 1
                            todo.appendleft(number)
                        else:
                            failure = failure or exc
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if failure is not None:
            raise failure
        return sent

    def _may_start(self, running: int, waiting: int) -> bool:
        """Whether a file may send one more part, with so many in flight and so many to come."""
        if not running:
            return True
        pool = self._sending.pool
        share = max(1, pool.usable // 2 // max(1, self.files))
        # Rounds of equal width: 16 parts go 8 at a time, not 12 and then 4 that leave the link half empty.
        left = running + waiting
        rounds = -(-left // share)
        return running < -(-left // rounds) and pool.available_for_parts > 0

    async def _send_part(
        self, begun: OpenUpload, number: int, source: Source, ledger: OpenUploads, tried: Collection[str]
    ) -> Delivered:
        upload = begun.upload
        at, length = upload.offset(number), upload.length(number)
        with certain(begun):
            delivered = await self._sending.deliver(
                *("upload_part", upload.transfer_id, source, at, length),
                **names_of(upload),
                tried=tried,
                PartNumber=number,
            )
        if not delivered.etag:
            raise AttemptError(Code.BAD_ANSWER, "the store gave no ETag for a part")
        ledger.part(begun, number, delivered.etag)
        return delivered
