"""The store over a fake sender: what is sent for a file, what is returned, and how an object is recognized."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sender import Answer, FakeSender
from lab.sending import a_file, failure, in_loop, settings_for, transfer_of

from s3daemon.errors import AttemptError, FileError
from s3daemon.model.files.source import Source, md5_of
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.store import FILE_KEY, ID_KEY, LookupResult, Store, Stored
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads

MIB = 1 << 20
TRANSFER = Transfer("0123456789abcdef", "/f", Destination("bucket", "dir/key"), (), FileState(3000, 5, 7, 9), 0)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    opened = Source.open(os.fspath(a_file(tmp_path / "file", 100_000)))
    yield opened
    opened.close()


def store_of(sender: FakeSender) -> Store:
    """A store whose clock advances by a second each time it is read."""
    seconds = iter(range(1000))
    return Store(sender, lambda: float(next(seconds)))


@in_loop
async def test_a_file_is_stored_by_one_put(source: Source) -> None:
    """The object has the transfer's marks; the result has what the sender measured, and the duration."""
    sender, transfer, progress = FakeSender(), transfer_of(source), Progress()
    stored = await store_of(sender).put(transfer, source, failed_addresses=["192.0.2.9"], progress=progress)
    assert stored == Stored("etag-0", 100_000, 1_000_000, 100, 1, "warm", 1, "192.0.2.1")
    ((operation, params),) = sender.called
    assert (operation, params["Bucket"], params["Key"]) == ("put_object", "bucket", "key")
    assert params["Metadata"] == {ID_KEY: transfer.id, FILE_KEY: source.state.mark}
    assert (params["failed_addresses"], params["progress"]) == (["192.0.2.9"], progress)


@in_loop
async def test_a_large_file_is_stored_in_parts(tmp_path: Path) -> None:
    """The round-trip time is the median of the parts, the retransmits their sum, the address the last one's."""
    settings = settings_for("http://store", multipart_threshold_bytes=5 * MIB, part_size_bytes=5 * MIB)
    sender = FakeSender(settings)
    sender.answers = {
        "create_multipart_upload": {"UploadId": "id"},
        "complete_multipart_upload": {"ETag": '"opaque"'},
    }
    with (tmp_path / "large").open("wb") as file:
        file.truncate(12 * MIB)
    large = Source.open(os.fspath(tmp_path / "large"))
    transfer = transfer_of(large)
    stored = await store_of(sender).put(transfer, large)
    large.close()
    assert stored == Stored("opaque", 12 * MIB, 1_000_000, 300, 3, "warm", 3, "192.0.2.1")
    created = dict(sender.called)["create_multipart_upload"]
    assert created["Metadata"] == {ID_KEY: transfer.id, FILE_KEY: large.state.mark}


@pytest.mark.parametrize("there", [True, False])
@in_loop
async def test_a_completion_without_an_etag_is_looked_up(tmp_path: Path, there: bool) -> None:
    """Ceph's gateway leaves it out. Without the object nothing is stored, and what was sent stays open."""
    settings = settings_for("http://store", multipart_threshold_bytes=5 * MIB, part_size_bytes=5 * MIB)
    sender, open_uploads = FakeSender(settings), OpenUploads()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(12 * MIB)
    large = Source.open(os.fspath(tmp_path / "large"))
    transfer = transfer_of(large)
    marks = {ID_KEY: transfer.id, FILE_KEY: large.state.mark} if there else {}
    sender.answers = {
        "create_multipart_upload": {"UploadId": "id"},
        "complete_multipart_upload": {"ETag": '""'},
        "head_object": {"Metadata": marks, "ContentLength": 12 * MIB, "ETag": '"looked-up"'},
    }
    putting = store_of(sender).put(transfer, large, open_uploads)
    if there:
        assert (await putting).etag == "looked-up"
    else:
        error = await failure(putting)
        assert (error.code, error.ambiguous) == ("BadAnswer", True)
    large.close()
    assert bool(list(open_uploads)) is not there


MD5 = hashlib.md5(b"sent").hexdigest()


@pytest.mark.parametrize(
    ("etag", "expected", "found"),
    [
        (MD5, MD5, True),
        (MD5.upper(), MD5, True),
        ("0" * 32, MD5, False),
        ("opaque", MD5, True),
        ("0" * 32, "", True),
        (f"{MD5}-3", f"{MD5}-3", True),
        (f"{MD5}-3", f"{MD5}-4", False),
        (f"{MD5}-3", "-4", False),
        (f"{MD5}-3", "-3", True),
        (f"{'0' * 32}-3", f"{MD5}-3", False),
    ],
)
@in_loop
async def test_an_object_of_other_content_is_not_found(etag: str, expected: str, found: bool) -> None:
    """One with a bit that has flipped on the way has all of our marks."""
    sender = FakeSender()
    sender.answers["head_object"] = {"Metadata": MARKS, "ContentLength": 3000, "ETag": f'"{etag}"'}
    assert isinstance(await store_of(sender).find(TRANSFER, expected=expected), Stored) is found


@in_loop
async def test_after_a_crash_the_file_itself_is_compared(source: Source) -> None:
    """What was sent is then not known; the file is."""
    sender, transfer = FakeSender(), transfer_of(source)
    head = {"Metadata": {ID_KEY: transfer.id, FILE_KEY: source.state.mark}, "ContentLength": 100_000}
    sender.answers["head_object"] = head | {"ETag": f'"{"0" * 32}"'}
    assert await store_of(sender).find(transfer, source=source) is LookupResult.NOT_FOUND
    sender.answers["head_object"] = head | {"ETag": f'"{await md5_of(source, 5.0)}"'}
    assert isinstance(await store_of(sender).find(transfer, source=source), Stored)


@in_loop
async def test_an_object_does_not_count_if_its_file_changes_during_the_look_up(source: Source) -> None:
    sender, transfer = FakeSender(), transfer_of(source)
    head = {"Metadata": {ID_KEY: transfer.id, FILE_KEY: source.state.mark}, "ContentLength": 100_000}
    sender.answers["head_object"] = head | {"ETag": '"opaque"'}
    assert isinstance(await store_of(sender).find(transfer, source=source), Stored)
    os.truncate(source.path, 5)
    with pytest.raises(FileError, match="changed"):
        await store_of(sender).find(transfer, source=source)
    assert isinstance(await store_of(sender).find(transfer), Stored), "its owner may change it: it was stored"


@pytest.mark.parametrize(
    ("etag", "expected", "encryption"),
    [("0" * 32, "0" * 32, ""), ("0" * 32, "", "aws:kms"), ("opaque", "", "")],
    ids=["known", "encrypted", "not-md5"],
)
@in_loop
async def test_the_file_is_not_read_where_that_decides_nothing(
    source: Source, etag: str, expected: str, encryption: str
) -> None:
    """It may be large."""
    sender, transfer = FakeSender(), transfer_of(source)
    head = {"Metadata": {ID_KEY: transfer.id, FILE_KEY: source.state.mark}, "ContentLength": 100_000}
    sender.answers["head_object"] = head | {"ETag": f'"{etag}"', "ServerSideEncryption": encryption}
    source.close()
    assert isinstance(await store_of(sender).find(transfer, expected=expected, source=source), Stored)


@in_loop
async def test_a_file_that_changed_meanwhile_is_not_stored(source: Source) -> None:
    """The store has its older content then: the attempt fails."""
    os.truncate(source.path, 5)
    with pytest.raises(FileError) as caught:
        await store_of(FakeSender()).put(transfer_of(source), source)
    assert caught.value.code == "FileChanged"


MARKS = {ID_KEY: TRANSFER.id, FILE_KEY: TRANSFER.file_state.mark}


@pytest.mark.parametrize(
    ("metadata", "size", "found"),
    [
        (MARKS, 3000, True),
        ({ID_KEY: TRANSFER.id}, 3000, True),
        (MARKS | {ID_KEY: "f" * 16}, 3000, False),
        (MARKS | {FILE_KEY: "5-8"}, 3000, False),
        (MARKS, 2999, False),
        ({}, 3000, False),
    ],
    ids=["same", "without-file", "other-transfer", "other-file", "other-size", "without-marks"],
)
@in_loop
async def test_an_object_is_recognized_by_its_marks_and_size(metadata: dict[str, str], size: int, found: bool) -> None:
    """It must be of this transfer and of the file as it is now. An object without the file's mark has only the id."""
    sender = FakeSender()
    sender.answers["head_object"] = {"Metadata": metadata, "ContentLength": size, "ETag": '"e"'}
    expected = Stored("e", 3000) if found else LookupResult.NOT_FOUND
    assert await store_of(sender).find(TRANSFER) == expected
    assert sender.called == [("head_object", {"Bucket": "bucket", "Key": "dir/key"})]


@pytest.mark.parametrize(
    ("etag", "parts"), [("0" * 32 + "-12", 12), ("0" * 32, 1), ("x" * 32 + "-12", 1), ("0" * 32 + "-123456", 1)]
)
@in_loop
async def test_the_etag_tells_the_number_of_parts(etag: str, parts: int) -> None:
    """As far as it has S3's form."""
    sender = FakeSender()
    sender.answers["head_object"] = {"Metadata": MARKS, "ContentLength": 3000, "ETag": f'"{etag}"'}
    assert await store_of(sender).find(TRANSFER) == Stored(etag, 3000, parts=parts)


@pytest.mark.parametrize(
    ("status", "result"),
    [(404, LookupResult.NOT_FOUND), (403, LookupResult.FORBIDDEN), (405, LookupResult.FORBIDDEN)],
)
@in_loop
async def test_a_lookup_that_finds_nothing(status: int, result: LookupResult) -> None:
    """No object and no permission to look are different results: only the first is certain.

    Without the permission no body that was sent whole is moved from now on.
    """
    sender = FakeSender()
    sender.answers["head_object"] = AttemptError(str(status), "no", status=status)
    assert await store_of(sender).find(TRANSFER) is result
    assert sender.can_look_up is (result is LookupResult.NOT_FOUND)


@in_loop
async def test_a_lookup_without_a_clear_answer_is_an_error() -> None:
    """It must be tried again."""
    sender = FakeSender()
    sender.answers["head_object"] = AttemptError("503", "no", status=503)
    assert (await failure(store_of(sender).find(replace(TRANSFER, tags=("x",))))).status == 503


@in_loop
async def test_an_upload_is_aborted_by_its_id() -> None:
    """Bucket, key and id are the upload's own."""
    sender = FakeSender()
    upload = MultipartUpload("id", "http://store", TRANSFER.id, TRANSFER.destination, 10, "mark", 5)
    await store_of(sender).abort(upload)
    assert sender.called == [("abort_multipart_upload", {"Bucket": "bucket", "Key": "dir/key", "UploadId": "id"})]


def gateways(*refusals: str) -> Callable[[Collection[str]], Answer]:
    """Addresses with the codes of their refusals; without one an address accepts the neutral request."""

    def answer(failed_addresses: Collection[str]) -> Answer:
        codes = {f"192.0.2.{number}": code for number, code in enumerate(refusals)}
        here, *others = [address for address in codes if address not in failed_addresses]
        if not (code := codes[here]):
            return {}
        status = 503 if code == "SlowDown" else 403
        return AttemptError(code, "no", status=status, address=here, other_address=bool(others))

    return answer


@pytest.mark.parametrize(
    ("refusals", "found", "asked"),
    [
        (("", "InvalidAccessKeyId", ""), "", 1),
        (("InvalidAccessKeyId", "", "InvalidAccessKeyId"), "", 2),
        (("AccessDenied", "SignatureDoesNotMatch", ""), "", 3),
        (("AccessDenied", "AccessDenied", "AccessDenied"), "AccessDenied", 3),
        (("SlowDown", "", ""), "SlowDown", 1),
    ],
)
@in_loop
async def test_keys_that_one_address_refuses_are_shown_to_the_others(
    refusals: tuple[str, ...], found: str, asked: int
) -> None:
    """They are refused by the store only if no address accepts them; what is no answer is not asked again."""
    sender = FakeSender(answers={"list_buckets": gateways(*refusals)})
    try:
        await store_of(sender).ask_neutrally()
        code = ""
    except AttemptError as exc:
        code = exc.code
    assert (code, len(sender.called)) == (found, asked)


@in_loop
async def test_an_address_that_is_asked_again_ends_the_question() -> None:
    """Another address may be enabled and still not get the request, such as one on trial."""
    refused = AttemptError("AccessDenied", "no", status=403, address="192.0.2.1", other_address=True)
    sender = FakeSender(answers={"list_buckets": refused})
    assert (await failure(store_of(sender).ask_neutrally())).code == "AccessDenied"
    assert len(sender.called) == 2
