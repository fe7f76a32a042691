"""A large file to S3 in parts, several at a time; parts that the store has already are not sent again.

    CreateMultipartUpload       carries the object's metadata; the upload is in `open_uploads` before a part is sent
    UploadPart                  each a watched PUT over a connection of its own; noted once the store has it
    CompleteMultipartUpload     makes the object; only its failure can leave it unknown whether there is one

An attempt resumes the upload of an earlier one, of this process or of another, when the file's content, the store and
the size of parts are the same; the parts noted, and those whose answer was lost, are compared once with those that the
store lists. A part that fails fails the attempt, but parts in flight are finished first: each of them is one less for
the next attempt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from s3daemon.errors import AttemptError, Code
from s3daemon.model.files.source import check_unchanged
from s3daemon.model.verdict import Verdict, judge
from s3daemon.s3.answers import VERIFY_ADVICE, contradicts, etag_in_parts, etag_of, parts_of
from s3daemon.s3.parts import UNUSABLE_CODES, LargeFile, PartSender, part_bytes, upload_params
from s3daemon.s3.sender import Sender, SentBody
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload
from s3daemon.units import plural

#: "Processing of a CompleteMultipartUpload request could take several minutes" (Amazon S3 API Reference). Longer than
#: any gateway's own limit, so that the gateway gives up first; the object is then looked up.
COMPLETE_TIMEOUT_S = 600.0
#: After this many server errors the file is sent again: a store can lose what it needs to complete this upload.
_COMPLETIONS_MAX = 10
#: After these there may be an object though the store did not say so. `NoSuchUpload`: it may be completed already.
_AMBIGUOUS_CODES = frozenset({Code.CONNECTION_CLOSED, Code.NO_ANSWER, Code.BAD_ANSWER, "NoSuchUpload"})
#: The answer to a listing of parts when there is no such upload, S3's and Ceph's.
_LOST_CODES = frozenset({"NoSuchUpload", "NoSuchKey"})
#: The answers, beside permanent errors and nonsense, of a store that does not let us list parts, or cannot. Then the
#: parts that were noted count. If the bucket is gone or the store has failed, the answer to the next part says so.
_NO_LISTING = (
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.NOT_IMPLEMENTED,
)


@dataclass(frozen=True, slots=True)
class CompletedUpload:
    """A file that was stored in parts.

    Args:
        etag: the object's, as the store gave it, without quotes; empty when it gave none.
        expected: the ETag that it must have (`etag_in_parts`).
        open_upload: the caller ends it, once it is certain that there is the object.
        sent: the parts that this attempt sent, in the order in which the store took them.
    """

    etag: str
    expected: str
    open_upload: OpenUpload
    sent: list[SentBody]


class Multipart:
    """Stores large files in parts.

    Args:
        sender: carries the requests.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._settings = sender.settings
        self._parts = PartSender(sender)

    async def put(self, file: LargeFile, metadata: Mapping[str, str]) -> CompletedUpload:
        """Store a file as an object with this metadata.

        Raises:
            AttemptError, FileError: as `Store.put` does.
        """
        with self._parts.counted():
            open_upload = await self._resume(file) or await self._create(file, metadata)
            file.progress.add_stored(sum(map(open_upload.upload.length, open_upload.etags)))
            sent = await self._parts.send(file, open_upload)
            await check_unchanged(file.source, self._settings.stall_timeout_s)
            expected = _expected(open_upload)
            file.on_sent(expected)
            etag = await self._complete(file, open_upload, expected)
        return CompletedUpload(etag, expected, open_upload, sent)

    def _describe(self, upload_id: str, file: LargeFile) -> MultipartUpload:
        transfer, state = file.transfer, file.source.state
        size = part_bytes(state.size, self._settings.part_size_bytes)
        url = self._settings.endpoint_url
        return MultipartUpload(upload_id, url, transfer.id, transfer.destination, state.size, state.mark, size)

    async def _resume(self, file: LargeFile) -> OpenUpload | None:
        """Return an earlier attempt's upload, with the parts that the store has; None when there is nothing to resume.

        Uploads at this store that do not fit any more are abandoned.
        """
        found: OpenUpload | None = None
        for open_upload in file.open_uploads.of(file.transfer.id):
            if open_upload.upload == self._describe(open_upload.upload.id, file):
                found = open_upload
            elif open_upload.upload.endpoint == self._settings.endpoint_url:
                open_upload.abandoned = True
        if found is None or not (found.etags or found.sent):
            return found
        try:
            listed = await self._list_parts(found.upload, file.failed_addresses)
        except AttemptError as exc:
            found.abandoned = exc.code in _LOST_CODES
            is_listing_alone = exc.status in _NO_LISTING or exc.code == Code.BAD_ANSWER
            if not (found.abandoned or is_listing_alone or judge(exc) is Verdict.PERMANENT):
                raise
            return None if found.abandoned else found
        length = found.upload.length
        known = found.sent | found.etags
        found.etags = {n: etag for n, etag in known.items() if etag and listed.get(n) == (etag, length(n))}
        return found

    async def _list_parts(
        self, upload: MultipartUpload, failed_addresses: Collection[str]
    ) -> Mapping[int, tuple[str, int]]:
        """Return the ETag and size of each part that the store has, by its number."""
        listed: dict[int, tuple[str, int]] = {}
        marker = 0
        while True:
            params = upload_params(upload)
            page = await self._sender.call(
                "list_parts", failed_addresses=failed_addresses, **params, PartNumberMarker=marker
            )
            for part in page.get("Parts", ()):
                listed[int(part.get("PartNumber", 0))] = etag_of(part), int(part.get("Size", -1))
            before, marker = marker, max(listed, default=0)
            if not page.get("IsTruncated") or marker <= before:
                return listed

    async def _create(self, file: LargeFile, metadata: Mapping[str, str]) -> OpenUpload:
        """Have the store create an upload. If this is cancelled meanwhile, one without parts may be left there."""
        answer = await self._sender.call(
            "create_multipart_upload",
            failed_addresses=file.failed_addresses,
            Bucket=file.transfer.destination.bucket,
            Key=file.transfer.destination.key,
            Metadata=metadata,
        )
        if not (upload_id := str(answer.get("UploadId", ""))):
            raise AttemptError(Code.BAD_ANSWER, "the store created an upload and did not give its id")
        return await file.open_uploads.begin(self._describe(upload_id, file))

    async def _complete(self, file: LargeFile, open_upload: OpenUpload, expected: str) -> str:
        """Have the store make the object, and return its ETag, which must be the `expected` one."""
        parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(open_upload.etags.items())]
        await file.open_uploads.completing(open_upload)
        try:
            answer = await self._sender.call(
                "complete_multipart_upload",
                answer_timeout_s=max(COMPLETE_TIMEOUT_S, self._settings.answer_timeout_s),
                failed_addresses=file.failed_addresses,
                **upload_params(open_upload.upload),
                MultipartUpload={"Parts": parts},
            )
        except AttemptError as exc:
            open_upload.failed_completions += exc.status == HTTPStatus.INTERNAL_SERVER_ERROR
            open_upload.abandoned = exc.code in UNUSABLE_CODES or open_upload.failed_completions >= _COMPLETIONS_MAX
            exc.ambiguous |= exc.code in _AMBIGUOUS_CODES
            raise
        etag = etag_of(answer)
        if self._settings.verify == "auto":
            if parts_of(etag) not in (None, open_upload.upload.count):
                text = f"the store's ETag is {etag}, but it was sent {plural(open_upload.upload.count, 'part')}"
                raise AttemptError(Code.BAD_ANSWER, text, ambiguous=True)
            if contradicts(answer, expected):
                file.open_uploads.over(open_upload)
                text = f"the store's ETag is {etag}, that of the parts that were sent {expected}; {VERIFY_ADVICE}"
                raise AttemptError(Code.ETAG_MISMATCH, text)
        return etag


def expected_etag(open_uploads: Iterable[OpenUpload]) -> str:
    """Return the ETag that an object made of one of these uploads must have (`etag_in_parts`).

    Returns:
        "" if the store was not asked for an object, or for different ones.
    """
    found = {_expected(each) for each in open_uploads if each.completing}
    return found.pop() if len(found) == 1 else ""


def _expected(open_upload: OpenUpload) -> str:
    return etag_in_parts([etag for _, etag in sorted(open_upload.etags.items())])
