"""A large file to S3 in parts, several at a time; what the store has of it already is not sent again.

    CreateMultipartUpload       carries the object's metadata; what it began is in the ledger before a part is sent
    UploadPart                  each a watched PUT over a connection of its own; in the ledger once the store has it
    CompleteMultipartUpload     makes the object; of all three it alone can leave it unknown whether there is one

An attempt goes on with what an earlier one began, of this process or of another, when the content of the file, the
store and the size of parts are the same; what the ledger says of parts is compared once with what the store says. A
part that fails fails the attempt, but those in flight are let finish first: each counts for the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code, SpoolError
from s3daemon.model.request import Transfer
from s3daemon.model.source import Source
from s3daemon.s3.parts import START_OVER, Parts, certain, names_of, part_bytes
from s3daemon.s3.sender import Sender
from s3daemon.s3.stored import Stored, marks_of
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload, OpenUploads

#: "Processing of a CompleteMultipartUpload request could take several minutes" (Amazon S3 API Reference). Longer than
#: any gateway's own limit, so that it is they who give up first; the object is then looked up.
COMPLETE_S = 600.0
#: After these, an object may be there though the store did not say so. `NoSuchUpload`: or it was completed before.
_UNTOLD = frozenset({Code.CONNECTION_CLOSED, Code.NO_ANSWER, Code.BAD_ANSWER, "NoSuchUpload"})
#: The answer to a listing of parts when there is no such upload, S3's and Ceph's.
_LOST = frozenset({"NoSuchUpload", "NoSuchKey"})
#: A store that does not let us list parts, or cannot: then the ledger must be enough.
_NO_LISTING = (HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
_MD5 = re.compile(r"[0-9a-fA-F]{32}")


class Multipart:
    """Stores large files.

    Args:
        sending: carries the requests.
        clock: monotonic seconds.
    """

    def __init__(self, sending: Sender, clock: Clock) -> None:
        self._sending = sending
        self._settings = sending.settings
        self._clock = clock
        self._parts = Parts(sending)
        self._beginning: set[asyncio.Task[OpenUpload]] = set()

    async def put(self, transfer: Transfer, source: Source, ledger: OpenUploads, tried: Collection[str] = ()) -> Stored:
        """Store the file, as `Store.put` does.

        Raises:
            AttemptError, FileError: likewise.
        """
        started = self._clock()
        unchanged = asyncio.get_running_loop().run_in_executor
        self._parts.files += 1
        try:
            begun = await self._take_up(transfer, source, ledger, tried)
            begun = begun or await self._begin(transfer, source, ledger, tried)
            if (progress := self._sending.under_way.get(transfer.id)) is not None:
                progress.add_stored(sum(map(begun.upload.length, begun.etags)))
            sent = await self._parts.send(begun, source, ledger, tried)
            await unchanged(None, source.check_unchanged)
            etag = await self._complete(begun, ledger, tried)
        finally:
            self._parts.files -= 1
        await unchanged(None, source.check_unchanged)
        return Stored(
            etag=etag,
            size=source.state.size,
            upload_usec=round((self._clock() - started) * 1e6),
            rtt_usec=statistics.median_low(part.rtt_usec for part in sent) if sent else 0,
            retransmits=sum(part.retransmits for part in sent),
            connection=min((part.connection for part in sent), default=""),  # "new" before "warm"
            parts=begun.upload.count,
            receiver=sent[-1].receiver if sent else "",
        )

    def _describe(self, id_: str, transfer: Transfer, source: Source) -> MultipartUpload:
        state = source.state
        size = part_bytes(state.size, self._settings.part_size_bytes)
        url = self._settings.endpoint_url
        return MultipartUpload(id_, url, transfer.id, transfer.destination, state.size, state.mark, size)

    async def _take_up(
        self, transfer: Transfer, source: Source, ledger: OpenUploads, tried: Collection[str]
    ) -> OpenUpload | None:
        """What an earlier attempt left, as far as the store has it; None when there is nothing to go on with."""
        found: OpenUpload | None = None
        for begun in ledger.of(transfer.id):
            if begun.upload == self._describe(begun.upload.id, transfer, source):
                found = begun
            elif begun.upload.endpoint == self._settings.endpoint_url:
                begun.abandoned = True
        if found is None or not found.etags:
            return found
        try:
            with certain():
                there = await self._list(found.upload, tried)
        except AttemptError as exc:
            found.abandoned = exc.code in _LOST
            if not found.abandoned and exc.status not in _NO_LISTING:
                raise
            return None if found.abandoned else found
        length = found.upload.length
        found.etags = {n: etag for n, etag in found.etags.items() if there.get(n) == (etag, length(n))}
        return found

    async def _list(self, upload: MultipartUpload, tried: Collection[str]) -> Mapping[int, tuple[str, int]]:
        """ETag and size of each part that the store has."""
        there: dict[int, tuple[str, int]] = {}
        marker = 0
        while True:
            names = names_of(upload)
            page = await self._sending.ask("list_parts", tried=tried, **names, PartNumberMarker=marker)
            for part in page.get("Parts", ()):
                there[int(part["PartNumber"])] = (str(part.get("ETag", "")).strip('"'), int(part.get("Size", -1)))
            before, marker = marker, max(there, default=0)
            if not page.get("IsTruncated") or marker <= before:
                return there

    async def _begin(
        self, transfer: Transfer, source: Source, ledger: OpenUploads, tried: Collection[str]
    ) -> OpenUpload:
        """Begin one. Shielded: what the store begins must be known, though the attempt is ended meanwhile."""

        async def begin() -> OpenUpload:
            to = transfer.destination
            with certain():
                answer = await self._sending.ask(
                    "create_multipart_upload", tried=tried, Bucket=to.bucket, Key=to.key, Metadata=marks_of(transfer)
                )
            if not (id_ := str(answer.get("UploadId", ""))):
                raise AttemptError(Code.BAD_ANSWER, "the store began an upload and did not name it")
            with contextlib.suppress(SpoolError):  # a full disk holds up no accepted transfer
                await ledger.begin(self._describe(id_, transfer, source))
            return next(begun for begun in ledger if begun.upload.id == id_)

        beginning = asyncio.create_task(begin())
        self._beginning.add(beginning)
        beginning.add_done_callback(self._begun)
        return await asyncio.shield(beginning)

    def _begun(self, beginning: asyncio.Task[OpenUpload]) -> None:
        self._beginning.discard(beginning)
        if not beginning.cancelled():
            beginning.exception()  # told to whoever waited, if somebody did

    async def _complete(self, begun: OpenUpload, ledger: OpenUploads, tried: Collection[str]) -> str:
        """Have the store make the object; its ETag."""
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(begun.etags.items())]
        with contextlib.suppress(SpoolError):
            await ledger.completing(begun)
        try:
            answer = await self._sending.ask(
                "complete_multipart_upload",
                answer_s=max(COMPLETE_S, self._settings.answer_timeout_s),
                tried=tried,
                **names_of(begun.upload),
                MultipartUpload={"Parts": parts},
            )
        except AttemptError as exc:
            begun.abandoned = exc.code in START_OVER
            exc.ambiguous = exc.ambiguous or exc.code in _UNTOLD
            raise
        ledger.over(begun)
        # Ceph RGW 18 leaves it empty in the answer that makes the object.
        etag = str(answer.get("ETag", "")).strip('"') or await self._etag_of(begun.upload)
        if self._settings.verify != "off":
            _verify(etag, [etag for _, etag in sorted(begun.etags.items())])
        return etag

    async def _etag_of(self, upload: MultipartUpload) -> str:
        """Look it up; empty when that fails, for the object is stored all the same."""
        to = upload.destination
        with contextlib.suppress(AttemptError):
            head = await self._sending.ask("head_object", Bucket=to.bucket, Key=to.key)
            return str(head.get("ETag", "")).strip('"')
        return ""


def _verify(etag: str, parts: Sequence[str]) -> None:
    """Compare the object's ETag with those of its parts, where all of them are made as S3 makes them."""
    digest, _, count = etag.partition("-")
    if count != str(len(parts)) or not all(_MD5.fullmatch(text) for text in (digest, *parts)):
        return
    wanted = hashlib.md5(b"".join(map(bytes.fromhex, parts)), usedforsecurity=False).hexdigest()
    if digest.lower() != wanted:
        text = f"the store's ETag is {etag}, that of the parts that were sent {wanted}-{count}"
        raise AttemptError(Code.ETAG_MISMATCH, text)
