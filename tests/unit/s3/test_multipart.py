"""Uploads in parts over a fake sender: what an attempt resumes, and what it leaves to the next one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_sender import FakeSender
from lab.sending import failure, in_loop, settings_for, transfer_of

from s3daemon.errors import AttemptError, Code, FileError
from s3daemon.model.files.source import Source
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.multipart import CompletedUpload, Multipart
from s3daemon.s3.parts import LargeFile
from s3daemon.spool.open_uploads import MultipartUpload, OpenUpload, OpenUploads

PART = 5 << 20
SIZE = 2 * PART + 1000
URL = "http://store"
MD5S = [hashlib.md5(bytes([n])).hexdigest() for n in range(4)]
ETAG = hashlib.md5(b"".join(map(bytes.fromhex, MD5S[1:]))).hexdigest() + "-3"


class Attempt:
    """A file of three parts, and attempts to store it."""

    def __init__(self, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(SIZE)
        self.source = Source.open(os.fspath(path))
        self.transfer = transfer_of(self.source)
        self.sender = FakeSender(settings_for(URL, multipart_threshold_bytes=PART, part_size_bytes=PART))
        self.sender.etags = dict(enumerate(MD5S))
        self.sender.answers = {
            "create_multipart_upload": {"UploadId": "new"},
            "complete_multipart_upload": {"ETag": f'"{ETAG}"'},
        }
        self.open_uploads = OpenUploads()
        self.progress = Progress()

        self.multipart = Multipart(self.sender)

    async def put(self) -> CompletedUpload:
        file = LargeFile(self.transfer, self.source, self.open_uploads, (), self.progress)
        return await self.multipart.put(file, {"name": "value"})

    async def earlier(self, upload_id: str = "old", url: str = URL, size: int = PART, **etags: str) -> OpenUpload:
        """An upload of an earlier attempt, with the parts that are given as `p1=ETag`."""
        state, to = self.source.state, self.transfer.destination
        upload = MultipartUpload(upload_id, url, self.transfer.id, to, state.size, state.mark, size)
        await self.open_uploads.begin(upload)
        (found,) = (one for one in self.open_uploads if one.upload.id == upload_id)
        found.etags = {int(name[1:]): etag for name, etag in etags.items()}
        return found

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self.sender.called]


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    made = Attempt(tmp_path / "large")
    yield made
    made.source.close()


def listing(**parts: tuple[str, int]) -> dict[str, Any]:
    """The store's answer to ListParts, with the parts that are given as `p1=(ETag, size)`."""
    return {
        "Parts": [{"PartNumber": int(n[1:]), "ETag": f'"{etag}"', "Size": size} for n, (etag, size) in parts.items()]
    }


@in_loop
async def test_an_upload_is_created_filled_and_completed(attempt: Attempt) -> None:
    """All parts are sent, and the object has the metadata."""
    completed = await attempt.put()
    assert (completed.etag, completed.expected, len(completed.sent)) == (ETAG, ETAG, 3)
    (left,) = attempt.open_uploads
    assert left is completed.open_upload, "it is ended once the object is known to be there"
    assert attempt.operations == ["create_multipart_upload", *["upload_part"] * 3, "complete_multipart_upload"]
    assert attempt.sender.called[0][1] == {"Bucket": "bucket", "Key": "key", "Metadata": {"name": "value"}}
    parts = [{"PartNumber": n, "ETag": f'"{MD5S[n]}"'} for n in (1, 2, 3)]
    assert attempt.sender.called[-1][1]["MultipartUpload"] == {"Parts": parts}
    assert sorted(attempt.sender.sent) == [(1, 0, PART), (2, PART, PART), (3, 2 * PART, 1000)]


@in_loop
async def test_parts_of_a_file_that_changed_meanwhile_are_not_put_together(attempt: Attempt) -> None:
    """The object would be of neither content, and replace the one before it."""
    os.truncate(attempt.source.path, SIZE - 1)
    with pytest.raises(FileError) as caught:
        await attempt.put()
    assert caught.value.code == "FileChanged"
    assert attempt.operations == ["create_multipart_upload", *["upload_part"] * 3]


@in_loop
async def test_an_earlier_upload_is_resumed(attempt: Attempt) -> None:
    """Only parts that the store lists as they were noted are kept, and they count as stored."""
    await attempt.earlier(p1=MD5S[1], p2=MD5S[2], p3=MD5S[3])
    attempt.sender.answers["list_parts"] = listing(p1=(MD5S[1], PART), p2=("other", PART), p3=(MD5S[3], 999))
    await attempt.put()
    assert sorted(number for number, _, _ in attempt.sender.sent) == [2, 3]
    assert attempt.progress.acked_bytes == PART
    assert "create_multipart_upload" not in attempt.operations


@in_loop
async def test_parts_whose_answers_were_lost_are_not_sent_again(attempt: Attempt) -> None:
    """The store lists them, with the MD5 sums of what was sent."""
    earlier = await attempt.earlier()
    earlier.sent |= {1: MD5S[1], 2: MD5S[2], 3: ""}
    attempt.sender.answers["list_parts"] = listing(p1=(MD5S[1], PART), p2=("other", PART), p3=("", 1000))
    await attempt.put()
    assert sorted(number for number, _, _ in attempt.sender.sent) == [2, 3]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("No", 403),
        ("No", 405),
        ("No", 500),
        ("No", 501),
        (Code.BAD_ANSWER, 200),
        ("InvalidArgument", 400),
        ("InvalidRequest", 400),
        ("NoSuchBucket", 404),
    ],
)
@in_loop
async def test_without_a_listing_the_notes_count(attempt: Attempt, code: str, status: int) -> None:
    """A store that does not let us list its parts, or never can, must not cost the transfer."""
    await attempt.earlier(p1=MD5S[1])
    attempt.sender.answers["list_parts"] = AttemptError(code, "no", status=status)
    await attempt.put()
    assert sorted(number for number, _, _ in attempt.sender.sent) == [2, 3]


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey"])
@in_loop
async def test_an_upload_that_the_store_lost_is_replaced(attempt: Attempt, code: str) -> None:
    """It is abandoned, and another one is created in the same attempt."""
    old = await attempt.earlier(p1=MD5S[1])
    attempt.sender.answers["list_parts"] = AttemptError(code, "no", status=404)
    await attempt.put()
    assert (old.abandoned, len(attempt.sender.sent)) == (True, 3)


@in_loop
async def test_a_listing_that_fails_fails_the_attempt(attempt: Attempt) -> None:
    """The next attempt lists again."""
    old = await attempt.earlier(p1=MD5S[1])
    attempt.sender.answers["list_parts"] = AttemptError("503", "no", status=503)
    error = await failure(attempt.put())
    assert (error.status, old.abandoned) == (503, False)


@in_loop
async def test_an_upload_that_does_not_fit_is_abandoned(attempt: Attempt) -> None:
    """One of another part size is; one at another store is left as it is."""
    other_size, other_store = await attempt.earlier("size", size=2 * PART), await attempt.earlier("url", "http://other")
    await attempt.put()
    assert (other_size.abandoned, other_store.abandoned) == (True, False)
    assert "create_multipart_upload" in attempt.operations


@pytest.mark.parametrize(
    ("code", "status", "ambiguous", "abandoned"),
    [
        ("ConnectionClosed", 0, True, False),
        ("NoAnswer", 0, True, False),
        ("BadAnswer", 0, True, False),
        ("NoSuchUpload", 404, True, True),
        ("InvalidPart", 400, False, True),
        ("EntityTooSmall", 400, False, True),
        ("SlowDown", 503, False, False),
    ],
)
@in_loop
async def test_a_completion_that_fails(
    attempt: Attempt, code: str, status: int, ambiguous: bool, abandoned: bool
) -> None:
    """Without a clear answer there may be an object; what cannot be completed is abandoned; all else is kept."""
    attempt.sender.answers["complete_multipart_upload"] = AttemptError(code, "no", status=status)
    error = await failure(attempt.put())
    (left,) = attempt.open_uploads
    assert (error.ambiguous, left.abandoned, left.completing) == (ambiguous, abandoned, True)


@in_loop
async def test_a_completion_that_fails_again_and_again_ends_the_upload(attempt: Attempt) -> None:
    """The store may have lost what it needs, and say only that it has a fault: the parts are sent to another upload."""
    errors = {500: "InternalError", 503: "SlowDown"}
    for status in [503] * 20 + [500] * 10:
        attempt.sender.answers["complete_multipart_upload"] = AttemptError(errors[status], "no", status=status)
        attempt.sender.answers["list_parts"] = AttemptError("AccessDenied", "no", status=403)
        await failure(attempt.put())
    assert (len(attempt.sender.sent), attempt.operations.count("create_multipart_upload")) == (3, 1)
    del attempt.sender.answers["complete_multipart_upload"]
    await attempt.put()
    assert (len(attempt.sender.sent), attempt.operations.count("create_multipart_upload")) == (6, 2)


@pytest.mark.parametrize(
    ("etag", "code"),
    [
        ("0" * 32 + "-3", "ETagMismatch"),
        (ETAG[:-1] + "2", "BadAnswer"),
        ("opaque", ""),
        (ETAG.upper(), ""),
        ("", ""),
    ],
)
@in_loop
async def test_the_etag_of_the_object_is_verified(attempt: Attempt, etag: str, code: str) -> None:
    """It must be made of the parts' ETags, and of as many, where it has S3's form."""
    attempt.sender.answers["complete_multipart_upload"] = {"ETag": f'"{etag}"'}
    if code:
        assert (await failure(attempt.put())).code == code
    else:
        assert (await attempt.put()).etag == etag


@in_loop
async def test_a_listed_part_without_a_number_is_none(attempt: Attempt) -> None:
    """It is sent again."""
    await attempt.earlier(p1=MD5S[1])
    attempt.sender.answers["list_parts"] = {"Parts": [{"ETag": f'"{MD5S[1]}"', "Size": PART}]}
    await attempt.put()
    assert [number for number, *_ in attempt.sender.sent] == [1, 2, 3]


@in_loop
async def test_an_upload_without_an_id_is_a_bad_answer(attempt: Attempt) -> None:
    """Nothing can be sent to it, and nothing is noted."""
    attempt.sender.answers["create_multipart_upload"] = {}
    assert (await failure(attempt.put())).code == "BadAnswer"
    assert not list(attempt.open_uploads)
