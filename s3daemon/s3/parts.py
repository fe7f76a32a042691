"""The parts of a large file: how large they are, how many are sent at a time, and the sending itself.

**How many connections a file gets.** Every large file has one, as any upload has. More parts take a connection only
while more than half of all are idle, so other transfers find half of them free at any time, and a large file is back to
its one connection as its parts end. Several large files share the other half evenly.

Where uploads are paced, parts side by side only make each of them slower, and those in flight are what a crash costs.
So there are no more than are sent in a few seconds, or than it takes to fill the link: see `parts_under_rate`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError, Code
from s3daemon.model.files.source import Source
from s3daemon.model.request import Transfer
from s3daemon.network.uploads.progress import TICK_S, Progress
from s3daemon.s3.sender import Sender, SentBody
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload, OpenUploads

#: S3's limit ("Amazon S3 multipart upload limits"); Ceph's rgw_multipart_part_upload_limit is the same.
MAX_PARTS = 10_000
#: Where parts must be larger than the setting, their size is a multiple of this: easier to read in a bucket's listing.
_ROUND_BYTES = 1 << 20
#: Under a rate, what is sent in this many seconds and this many round trips is in flight. Parts that began together end
#: together, and then a round trip passes before the next ones' first bytes arrive: it should be a tenth at most.
IN_FLIGHT_S, IN_FLIGHT_ROUND_TRIPS = 2.0, 10
#: What one connection can be relied on to have in flight: a long link at a high rate takes many to fill.
WINDOW_BYTES = 1_000_000
#: The store answers one part while the next is sent.
_LEAST_PARTS = 2
#: No attempt can succeed with this upload: the store lost it, or will not make an object of the parts that it has.
UNUSABLE_CODES = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder", "EntityTooSmall"})


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file that an attempt stores in parts.

    Args:
        transfer: names the destination.
        source: the open file; the caller closes it.
        open_uploads: holds what the next attempt can resume.
        failed_addresses: addresses to avoid if another one is enabled.
        progress: counts the bytes.
        on_sent: called with the ETag that the object must have (`etag_in_parts`) before it is asked for.
    """

    transfer: Transfer
    source: Source
    open_uploads: OpenUploads
    failed_addresses: Collection[str]
    progress: Progress
    on_sent: Callable[[str], None] = lambda _: None


def part_bytes(size: int, wanted: int) -> int:
    """Return the size of the parts of a file of `size` bytes: `wanted`, or more if there would be too many parts."""
    least = -(-size // MAX_PARTS)
    return wanted if least <= wanted else -(-least // _ROUND_BYTES) * _ROUND_BYTES


def goes_in_parts(size: int, settings: Settings) -> bool:
    """Return whether a file of `size` bytes is sent in parts; a single part would only cost round trips."""
    return size > settings.multipart_threshold_bytes and size > part_bytes(size, settings.part_size_bytes)


def parts_under_rate(part_size: int, rate_bps: int, rtt_s: float) -> float:
    """Return how many parts are worth sending at a time, of all files together.

    Args:
        part_size: bytes.
        rate_bps: what all uploads together are paced at, bit/s; 0 when they are not.
        rtt_s: the round-trip time to the store, seconds.
    """
    if not rate_bps:
        return math.inf
    bytes_per_s = rate_bps / 8
    in_time = int((IN_FLIGHT_S + IN_FLIGHT_ROUND_TRIPS * rtt_s) * bytes_per_s / part_size)
    filling = math.ceil(rtt_s * bytes_per_s / WINDOW_BYTES)
    return max(_LEAST_PARTS, in_time, filling)


def parts_at_once(count: int, usable: int, files: int, most: float = math.inf) -> int:
    """Return how many parts of one file may be in flight.

    Args:
        count: parts of the file that the store did not have when the attempt began, at least 1. It must not shrink as
            they are sent: a round that grows wider at its end takes connections that are not warm yet.
        usable: connections that uploads can use at once.
        files: large files that are being sent.
        most: how many parts are worth sending at a time, of all files together.
    """
    share = max(1, int(min(usable // 2, most)) // max(1, files))
    # Rounds of equal width: 16 parts go 8 at a time, not 12 and then 4 that leave the link half empty.
    rounds = -(-count // share)
    return -(-count // rounds)


def upload_params(upload: MultipartUpload) -> dict[str, Any]:
    """Return the parameters of an operation that identify the upload to the store."""
    return {"Bucket": upload.destination.bucket, "Key": upload.destination.key, "UploadId": upload.id}


class PartSender:
    """Sends parts.

    Args:
        sender: carries the requests.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._files = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more large file, which the connections are shared with, for the duration of a block."""
        self._files += 1
        try:
            yield
        finally:
            self._files -= 1

    async def send(self, file: LargeFile, open_upload: OpenUpload) -> list[SentBody]:
        """Send the parts of a file that an upload does not have, and return them in the order in which it got them.

        Raises:
            AttemptError: one failed; those that were in flight then are finished.
            FileError: the file could not be read, or changed meanwhile.
        """
        part_size = open_upload.upload.part_bytes
        numbers = deque(n for n in range(1, open_upload.upload.count + 1) if n not in open_upload.etags)
        count = len(numbers)
        sent: list[SentBody] = []
        running: dict[asyncio.Task[SentBody], int] = {}
        failure: AttemptError | None = None
        stale_allowed = self._sender.pool.limit  # each connection may have been closed by the store while it was idle

        try:
            while running or (numbers and failure is None):
                while numbers and failure is None and self._may_start(len(running), count, part_size):
                    number = numbers.popleft()
                    running[asyncio.create_task(self._send_part(file, open_upload, number))] = number
                    await asyncio.sleep(0)  # it takes its connection before the next one counts those that are idle
                done, _ = await asyncio.wait(running, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    number = running.pop(task)
                    try:
                        sent.append(task.result())
                    except AttemptError as exc:
                        if open_upload.abandoned:
                            raise
                        is_stale = exc.code == Code.STALE_CONNECTION
                        if exc.code == Code.SLOW_CONNECTION or (is_stale and stale_allowed > 0):
                            stale_allowed -= is_stale
                            numbers.appendleft(number)
                        else:
                            failure = failure or exc
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        if failure is not None:
            raise failure
        return sent

    def _may_start(self, running: int, count: int, part_size: int) -> bool:
        if not running:
            return True
        pool = self._sender.pool
        most = parts_under_rate(part_size, pool.pacer.limit_bps, pool.rtt_s)
        may_run = parts_at_once(count, pool.usable, self._files, most)
        return running < may_run and pool.available_for_parts > 0

    async def _send_part(self, file: LargeFile, open_upload: OpenUpload, number: int) -> SentBody:
        upload = open_upload.upload

        def note(md5: str) -> None:
            open_upload.sent[number] = md5

        try:
            sent = await self._sender.send_file(
                "upload_part",
                upload.transfer_id,
                file.source,
                upload.offset(number),
                upload.length(number),
                failed_addresses=file.failed_addresses,
                progress=file.progress,
                **upload_params(upload),
                PartNumber=number,
                on_sent=note,
            )
        except AttemptError as exc:
            open_upload.abandoned |= exc.code in UNUSABLE_CODES
            raise
        if not sent.etag:
            raise AttemptError(Code.BAD_ANSWER, "the store gave no ETag for a part")
        file.open_uploads.part(open_upload, number, sent.etag)
        return sent
