"""One S3 store: put a file there, and find it again.

A file up to the multipart threshold goes in one PUT, a larger one in parts (`multipart`). In both cases an object
counts as stored when the store says so in S3's own form (`answers`), its ETag, where that is an MD5, is that of what
was sent, and the file's path still names the file that was opened.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code
from s3daemon.model.files.source import Source, check_unchanged, md5_of
from s3daemon.model.request import Transfer
from s3daemon.model.verdict import accuses_keys
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.answers import contradicts, etag_of, is_encrypted, is_md5, parts_of
from s3daemon.s3.multipart import Multipart
from s3daemon.s3.parts import LargeFile, goes_in_parts, upload_params
from s3daemon.s3.sender import Sender
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads

#: The object's metadata (`x-amz-meta-...` on the wire): the id of the transfer that stored it, and its file's `mark`.
ID_KEY, FILE_KEY = "s3daemon-id", "s3daemon-file"


class LookupResult(Enum):
    """Why `Store.find` found nothing."""

    NOT_FOUND = "there is no object, or another one"
    FORBIDDEN = "the keys may not look"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object that is in the store.

    Args:
        etag: as the store gave it, without quotes.
        size: bytes.
        upload_usec: duration of the attempt that stored it, from taking a connection to the answer, microseconds; parts
            that earlier attempts sent take none of it; 0 when it was found.
        rtt_usec: smoothed round-trip time at the end, microseconds, the median of parts; 0 when unknown.
        retransmits: TCP segments sent again meanwhile, by all connections that took part.
        connection: `warm`; `new` when one had to be opened for it; empty when it was found.
        parts: the number of parts; 1 for a single PUT.
        address: the store's address that took it, of parts the last one's; empty when it was found.
    """

    etag: str
    size: int
    upload_usec: int = 0
    rtt_usec: int = 0
    retransmits: int = 0
    connection: str = ""
    parts: int = 1
    address: str = ""


def metadata_of(transfer: Transfer) -> dict[str, str]:
    """Return the metadata of a transfer's object, by which `Store.find` recognizes it."""
    return {ID_KEY: transfer.id, FILE_KEY: transfer.file_state.mark}


class Store:
    """One S3 store.

    Args:
        sender: carries the requests.
        clock: monotonic seconds.
        last_bucket: the bucket that an object was stored in last, as far as it is known; else empty.

    Attributes:
        last_bucket: the bucket that an object was stored in last; empty while none is known.
        url: URL of the endpoint.
        sender: as given, for operations beside those of this class.
    """

    def __init__(self, sender: Sender, clock: Clock = time.monotonic, *, last_bucket: str = "") -> None:
        self.url = sender.settings.endpoint_url
        self.sender = sender
        self._clock = clock
        self.last_bucket = last_bucket
        self._multipart = Multipart(sender)

    async def put(
        self,
        transfer: Transfer,
        source: Source,
        open_uploads: OpenUploads | None = None,
        failed_addresses: Collection[str] = (),
        progress: Progress | None = None,
        *,
        on_sent: Callable[[str], None] = lambda _: None,
    ) -> Stored:
        """Store the file under the transfer's destination, and verify it.

        Args:
            transfer: names the destination; its id goes into the object's metadata.
            source: the open file; the caller closes it.
            open_uploads: notes uploads in parts; without it an attempt leaves nothing that the next one can resume.
            failed_addresses: addresses to avoid if another one is enabled.
            progress: counts the bytes.
            on_sent: called, once the store may have all of the file, with the ETag that its object must have: an MD5
                sum, or what `etag_in_parts` returns; empty when none is computed.

        Raises:
            AttemptError: it is not stored, or (`ambiguous`) may be.
            FileError: the file could not be read, or changed meanwhile; its older content may be stored then, so
                another attempt must follow.
        """
        started, progress = self._clock(), Progress() if progress is None else progress
        if goes_in_parts(source.state.size, self.sender.settings):
            open_uploads = OpenUploads() if open_uploads is None else open_uploads
            file = LargeFile(transfer, source, open_uploads, failed_addresses, progress, on_sent)
            completed = await self._multipart.put(file, metadata_of(transfer))
            count, sent = completed.open_upload.upload.count, completed.sent
            etag = completed.etag or await self._look_up_etag(transfer, completed.expected, failed_addresses)
            open_uploads.over(completed.open_upload)
        else:
            whole = await self.sender.send_file(
                "put_object",
                transfer.id,
                source,
                failed_addresses=failed_addresses,
                progress=progress,
                on_sent=on_sent,
                Bucket=transfer.destination.bucket,
                Key=transfer.destination.key,
                Metadata=metadata_of(transfer),
            )
            etag, count, sent = whole.etag, 1, [whole]
        await check_unchanged(source, self.sender.settings.stall_timeout_s)
        self.last_bucket = transfer.destination.bucket
        return Stored(
            etag,
            source.state.size,
            upload_usec=round((self._clock() - started) * 1e6),
            rtt_usec=statistics.median_low(body.rtt_usec for body in sent) if sent else 0,
            retransmits=sum(body.retransmits for body in sent),
            connection=min((body.connection for body in sent), default=""),  # "new" before "warm"
            parts=count,
            address=sent[-1].address if sent else "",
        )

    async def _look_up_etag(self, transfer: Transfer, expected: str, failed_addresses: Collection[str]) -> str:
        """Return the ETag of an object that the store says to have made, without an ETag: Ceph RGW 18 does.

        Raises:
            AttemptError: it does not have it, or does not answer.
        """
        try:
            found = await self.find(transfer, failed_addresses, expected=expected)
        except AttemptError as exc:
            exc.ambiguous = True
            raise
        if found is LookupResult.NOT_FOUND:
            raise AttemptError(Code.BAD_ANSWER, "the store answered without an ETag, and has no object", ambiguous=True)
        return found.etag if isinstance(found, Stored) else ""  # keys that may not look have the store's word alone

    async def find(
        self,
        transfer: Transfer,
        failed_addresses: Collection[str] = (),
        *,
        expected: str = "",
        source: Source | None = None,
    ) -> Stored | LookupResult:
        """Look whether the store has the object that an attempt of this transfer sent.

        Args:
            transfer: names the destination, and what the object's metadata must be.
            failed_addresses: addresses to avoid if another one is enabled.
            expected: the ETag that the object must have, as `put` gave it to `on_sent`; empty when it is not known.
            source: the open file, unchanged since; it is read where the object's MD5 can only be compared with its.

        Raises:
            AttemptError: there was no clear answer.
            FileError: the object is there, but the file cannot be read, or changed meanwhile.
        """
        to = transfer.destination
        try:
            head = await self.sender.call(
                "head_object", failed_addresses=failed_addresses, Bucket=to.bucket, Key=to.key
            )
        except AttemptError as exc:
            if exc.status == HTTPStatus.NOT_FOUND:
                return LookupResult.NOT_FOUND
            if exc.status in (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED):
                self.sender.can_look_up = False
                return LookupResult.FORBIDDEN
            raise
        size, mark, metadata = transfer.file_state.size, transfer.file_state.mark, head.get("Metadata", {})
        found = (metadata.get(ID_KEY), metadata.get(FILE_KEY, mark), head.get("ContentLength"))
        if found != (transfer.id, mark, size):
            return LookupResult.NOT_FOUND
        etag = etag_of(head)
        if self.sender.settings.verify == "auto":
            if is_md5(etag) and not (is_encrypted(head) or is_md5(expected)) and source is not None:
                expected = await md5_of(source, self.sender.settings.stall_timeout_s)
            if contradicts(head, expected):
                return LookupResult.NOT_FOUND
        if source is not None:
            await check_unchanged(source, self.sender.settings.stall_timeout_s)
        return Stored(etag, size, parts=parts_of(etag) or 1)

    async def ask_neutrally(self) -> None:
        """Send a signed request that concerns no destination: it tells whether the store accepts the keys.

        Not HEAD, whose errors have no code; and a list of buckets has no key that a proxy could fold. An address that
        refuses the keys may be alone in that, so each enabled one is asked in turn until one accepts them.

        Raises:
            AttemptError: every address refused it, or one gave no clear answer.
        """
        refused_at: set[str] = set()
        while True:
            try:
                await self.sender.call("list_buckets", failed_addresses=refused_at, MaxBuckets=1)
            except AttemptError as exc:
                if not (accuses_keys(exc) and exc.other_address) or exc.address in refused_at:
                    raise
                refused_at.add(exc.address)
            else:
                return

    async def abort(self, upload: MultipartUpload) -> None:
        """Have the store forget an upload in parts, and delete the parts that it has.

        Raises:
            AttemptError: it did not, or there is no such upload.
        """
        await self.sender.call("abort_multipart_upload", **upload_params(upload))
