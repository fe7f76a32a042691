"""A large file in parts, to a scripted server: what goes over the wire, and what the next attempt resumes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab.scripted import Exchange, Script, Scripted, answering, keep, scripted
from lab.sending import (
    OpenStore,
    a_file,
    failure,
    in_loop,
    sending,
    settings_for,
    transfer_of,
)
from lab.serving import until

from s3daemon.errors import FileError
from s3daemon.model.files.source import Source
from s3daemon.model.request import Transfer
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.store import LookupResult, Stored
from s3daemon.spool.open_uploads import OpenUploads

MIB = 1 << 20
PART = 5 * MIB
#: Four parts and a short one.
SIZE = 4 * PART + 1000
PARTS = [1, 2, 3, 4, 5]


@dataclass
class Case:
    """A server, a store over it, one transfer of a large file, and what its attempts leave to each other."""

    server: Scripted
    sender: OpenStore
    file: Path
    open_uploads: OpenUploads = field(default_factory=OpenUploads)
    progress: Progress = field(default_factory=Progress)
    transfer: Transfer | None = None

    async def put(self) -> Stored:
        """Make one attempt."""
        source = Source.open(os.fspath(self.file))
        try:
            self.transfer = self.transfer or transfer_of(source)
            return await self.sender.store.put(self.transfer, source, self.open_uploads, progress=self.progress)
        finally:
            source.close()

    @property
    def asked(self) -> list[str]:
        """Method and query of each request but those for parts."""
        return [
            f"{seen.method} {seen.target.partition('?')[2].partition('=')[0]}"
            for seen in self.server.seen
            if seen.method != "PUT"
        ]

    @property
    def sent(self) -> list[int]:
        """The numbers of the parts that the store has taken, in order of arrival."""
        return self.server.assembly.stored


@contextlib.asynccontextmanager
async def case(tmp_path: Path, put: Script = keep, other: Script = keep, **changes: Any) -> AsyncIterator[Case]:
    """One, over eight connections: so that three parts go at a time, and then two."""
    given = {"max_connections": 8, "multipart_threshold_bytes": PART, "part_size_bytes": PART} | changes
    async with scripted(put, other) as server, sending(settings_for(server.url, **given)) as sender:
        yield Case(server, sender, a_file(tmp_path / "large", SIZE))


def number_of(exchange: Exchange) -> int:
    """The number of the part that a PUT brings."""
    return int(exchange.target.partition("partNumber=")[2].partition("&")[0])


def except_part(number: int, script: Script) -> Script:
    """A store that treats one part by `script`."""

    async def either(exchange: Exchange) -> None:
        await (script if number_of(exchange) == number else keep)(exchange)

    return either


def except_for(method: str, script: Script) -> Script:
    """A store that treats one kind of request by `script`, such as `POST uploadId`, the completion."""

    async def either(exchange: Exchange) -> None:
        kind = f"{exchange.method} {exchange.target.partition('?')[2].partition('=')[0]}"
        await (script if kind == method else keep)(exchange)

    return either


async def hang_up(exchange: Exchange) -> None:
    """Close the connection in the middle of the body."""
    await exchange.read(exchange.length // 2)


def refuse(status: int, code: str) -> Script:
    """Refuse as S3 does."""

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.refuse(status, code)

    return script


@in_loop
async def test_a_large_file_is_stored_whole_in_parts(tmp_path: Path) -> None:
    """One object with the transfer's marks, found again by them; its parts' ETags make its own; nothing is left."""
    async with case(tmp_path) as it:
        stored = await it.put()
        content = it.file.read_bytes()
        assert it.server.objects == {"/bucket/key": content}
        digests = b"".join(hashlib.md5(content[at : at + PART]).digest() for at in range(0, SIZE, PART))
        assert (stored.etag, stored.size, stored.parts) == (f"{hashlib.md5(digests).hexdigest()}-5", SIZE, 5)
        assert stored.upload_usec > 0
        assert stored.rtt_usec > 0
        assert stored.connection == "new"
        assert sorted(it.sent) == PARTS
        assert it.asked == ["POST uploads", "POST uploadId"]
        assert not any("expect" in seen.headers for seen in it.server.seen)
        assert {seen.headers["x-amz-content-sha256"] for seen in it.server.puts} == {"UNSIGNED-PAYLOAD"}
        assert not list(it.open_uploads)
        assert not it.server.assembly.uploads
        assert it.transfer is not None
        assert await it.sender.store.find(it.transfer) == Stored(stored.etag, SIZE, parts=5)


@pytest.mark.parametrize(("size", "parts"), [(PART, 0), (PART + 1, 2), (2 * PART, 2)])
@in_loop
async def test_only_files_above_the_threshold_are_sent_in_parts(tmp_path: Path, size: int, parts: int) -> None:
    """Up to the threshold it is one PUT; the last part may be of any size, but it is never empty."""
    async with case(tmp_path) as it:
        it.file = a_file(tmp_path / "large", size)
        stored = await it.put()
        assert (len(it.sent), stored.parts) == (parts, parts or 1)
        assert it.server.objects == {"/bucket/key": it.file.read_bytes()}


@in_loop
async def test_the_next_attempt_resumes(tmp_path: Path) -> None:
    """One part fails: the others in flight are finished, and only what is missing is sent again."""
    async with case(tmp_path, except_part(2, hang_up)) as it:
        error = await failure(it.put())
        assert (error.code, error.ambiguous) == ("ConnectionClosed", False)
        assert 2 not in it.sent
        (begun,) = it.open_uploads
        assert set(begun.etags) == set(it.sent) == {1, 3}
        it.server.put = keep
        stored = await it.put()
        assert sorted(it.sent) == PARTS, "none twice"
        assert it.asked == ["POST uploads", "GET uploadId", "POST uploadId"]
        assert (stored.parts, it.server.objects["/bucket/key"]) == (5, it.file.read_bytes())
        assert not list(it.open_uploads)


@in_loop
async def test_all_pages_of_a_listing_are_read(tmp_path: Path) -> None:
    """The store lists its parts a page at a time."""
    async with case(tmp_path, other=except_for("POST uploadId", refuse(503, "SlowDown"))) as it:
        await failure(it.put())
        it.server.other = keep
        await it.put()
        assert sorted(it.sent) == PARTS
        assert it.asked.count("GET uploadId") == 2


@pytest.mark.parametrize("what", ["gone", "another content", "shorter"])
@in_loop
async def test_what_the_store_lists_counts(tmp_path: Path, what: str) -> None:
    """A part that was noted, and that the store does not have as it was sent, is sent again."""
    async with case(tmp_path, other=except_for("POST uploadId", refuse(503, "SlowDown"))) as it:
        await failure(it.put())
        (upload,) = it.server.assembly.uploads.values()
        if what == "gone":
            del upload.parts[4]
        else:
            upload.parts[4] = b"x" * PART if what == "another content" else upload.parts[4][:-1]
        it.server.other = keep
        await it.put()
        assert sorted(it.sent) == sorted([*PARTS, 4])
        assert it.server.objects["/bucket/key"] == it.file.read_bytes()


@pytest.mark.parametrize(
    "listing",
    [
        refuse(403, "AccessDenied"),
        refuse(500, "InternalError"),
        answering(200, b"<ListPartsResult><Part>"),
        answering(200, b"<html><body>Back soon</body></html>"),
        answering(200),
    ],
    ids=["denied", "failed", "nonsense", "page", "empty"],
)
@in_loop
async def test_without_a_listing_the_notes_count(tmp_path: Path, listing: Script) -> None:
    """A store that does not list parts must not cost the transfer: our own notes count then."""
    async with case(tmp_path, except_part(2, hang_up), except_for("GET uploadId", listing)) as it:
        await failure(it.put())
        it.server.put = keep
        await it.put()
        assert sorted(it.sent) == PARTS


@in_loop
async def test_an_upload_that_the_store_lost_is_replaced(tmp_path: Path) -> None:
    """Within the attempt that finds it lost."""
    async with case(tmp_path, except_part(2, hang_up)) as it:
        await failure(it.put())
        it.server.assembly.uploads.clear()
        it.server.put = keep
        await it.put()
        assert it.server.assembly.begun == 2
        assert it.server.objects["/bucket/key"] == it.file.read_bytes()
        assert [begun.abandoned for begun in it.open_uploads] == [True]


@pytest.mark.parametrize(
    ("put", "other", "ambiguous"),
    [
        (except_part(3, refuse(404, "NoSuchUpload")), keep, False),
        (keep, except_for("POST uploadId", refuse(400, "InvalidPart")), False),
        (keep, except_for("POST uploadId", refuse(400, "EntityTooSmall")), False),
        (keep, except_for("POST uploadId", refuse(404, "NoSuchUpload")), True),
    ],
    ids=["part", "invalid", "too-small", "completion"],
)
@in_loop
async def test_an_upload_that_cannot_be_completed_is_replaced(
    tmp_path: Path, put: Script, other: Script, ambiguous: bool
) -> None:
    """The next attempt creates another. A completion that finds no upload may have been done before: look up."""
    async with case(tmp_path, put, other) as it:
        error = await failure(it.put())
        assert error.ambiguous is ambiguous
        assert [begun.abandoned for begun in it.open_uploads] == [True]
        it.server.put = it.server.other = keep
        await it.put()
        assert it.server.assembly.begun == 2


@in_loop
async def test_parts_of_another_size_are_not_resumed(tmp_path: Path) -> None:
    """As after a reload; the old upload is abandoned, to be aborted."""
    async with case(tmp_path, except_part(2, hang_up)) as it:
        await failure(it.put())
        settings = settings_for(it.server.url, multipart_threshold_bytes=PART, part_size_bytes=2 * PART)
        it.server.put = keep
        async with sending(settings) as it.sender:
            assert (await it.put()).parts == 3
        assert [begun.abandoned for begun in it.open_uploads] == [True]


@in_loop
async def test_an_upload_at_another_store_is_not_resumed(tmp_path: Path) -> None:
    """It is not abandoned: the janitor decides what becomes of it."""
    async with case(tmp_path, except_part(2, hang_up)) as it, scripted() as other:
        await failure(it.put())
        settings = settings_for(other.url, multipart_threshold_bytes=PART, part_size_bytes=PART)
        async with sending(settings) as it.sender:
            assert (await it.put()).parts == 5
        assert other.objects == {"/bucket/key": it.file.read_bytes()}
        assert [(begun.abandoned, begun.upload.endpoint) for begun in it.open_uploads] == [(False, it.server.url)]


def touch(file: Path) -> None:
    os.utime(file)


def replace(file: Path) -> None:
    a_file(file.with_name("twin"), SIZE).replace(file)


@pytest.mark.parametrize("change", [touch, replace, Path.unlink])
@pytest.mark.parametrize("when", ["in a part", "after the last part"])
@in_loop
async def test_a_file_that_changes_is_not_stored(tmp_path: Path, change: Callable[[Path], None], when: str) -> None:
    """No object is made of two contents; the next attempt stores the newer one, with an upload of its own."""
    changed = False

    async def changing(exchange: Exchange) -> None:
        nonlocal changed
        if when == "in a part" and not changed:
            change(it.file)
            changed = True
        await keep(exchange)
        if when != "in a part" and len(it.sent) == len(PARTS):
            change(it.file)

    async with case(tmp_path, changing, max_connections=8 if when == "in a part" else 1) as it:
        with pytest.raises(FileError) as caught:
            await it.put()
        assert caught.value.code == ("NoSuchFile" if change is Path.unlink else "FileChanged")
        assert not it.server.objects
        assert "POST uploadId" not in it.asked
        it.server.put = keep
        a_file(it.file, SIZE + 1)
        await it.put()
        assert it.server.objects["/bucket/key"] == it.file.read_bytes()
        assert [begun.abandoned for begun in it.open_uploads] == [True]


@in_loop
async def test_a_part_with_a_wrong_etag_is_sent_again(tmp_path: Path) -> None:
    """The store does not have it as it was sent."""

    async def wrong_etag(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(headers={"ETag": f'"{"0" * 32}"'})

    async with case(tmp_path, except_part(1, wrong_etag)) as it:
        assert (await failure(it.put())).code == "ETagMismatch"
        it.server.put = keep
        await it.put()
        assert sorted(it.sent) == PARTS
        assert it.server.objects["/bucket/key"] == it.file.read_bytes()


def completed_as(etag: str) -> Script:
    """Complete the upload, and answer another ETag."""

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        root = "CompleteMultipartUploadResult"
        await exchange.answer(200, f"<{root}><ETag>{etag}</ETag></{root}>".encode())

    return script


@pytest.mark.parametrize(
    ("etag", "verify", "code"),
    [
        (f"{'0' * 32}-5", "auto", "ETagMismatch"),
        (f"{'0' * 32}-5", "off", ""),
        (f"{'0' * 32}-4", "auto", "BadAnswer"),
        (f"{'0' * 32}-4", "off", ""),
        ("x", "auto", ""),
    ],
)
@in_loop
async def test_the_etag_of_the_object_is_verified(tmp_path: Path, etag: str, verify: str, code: str) -> None:
    """If it has S3's form, and only then."""
    async with case(tmp_path, other=except_for("POST uploadId", completed_as(etag)), verify=verify) as it:
        if code:
            assert (await failure(it.put())).code == code
        else:
            assert (await it.put()).etag == etag
        # The store has made its object, and there is nothing to abort; unless its answer says that this is not ours.
        assert bool(list(it.open_uploads)) is (code == "BadAnswer")


async def completed_in_silence(exchange: Exchange) -> None:
    """Complete the upload, and close the connection without an answer."""
    await exchange.read()
    name, _, query = exchange.target.partition("?")
    exchange.server.assembly.answer("POST", name, query, exchange.headers, bytes(exchange.body))


async def completed_with_an_error(exchange: Exchange) -> None:
    """Answer 200 at once and an error in the body, as S3 does when it fails after a while."""
    await exchange.read()
    await exchange.answer(200, b'<?xml version="1.0"?>\n\n<Error><Code>InternalError</Code></Error>')


async def completed_after_white_space(exchange: Exchange) -> None:
    """The white space that kept the connection alive precedes the document, where XML does not allow it."""
    await completed_in_silence(exchange)
    await exchange.answer(200, b"   \n<?xml version='1.0'?><CompleteMultipartUploadResult/>")


@pytest.mark.parametrize(
    ("script", "code", "there"),
    [
        (completed_in_silence, "ConnectionClosed", True),
        (completed_with_an_error, "InternalError", False),
        (completed_after_white_space, "BadAnswer", True),
        (refuse(500, "InternalError"), "InternalError", False),
    ],
)
@in_loop
async def test_a_completion_without_a_clear_answer_is_looked_up(
    tmp_path: Path, script: Script, code: str, there: bool
) -> None:
    """Without a clear answer there may be an object: it is found by its marks, or the completion asked for again."""
    async with case(tmp_path, other=except_for("POST uploadId", script)) as it:
        error = await failure(it.put())
        assert (error.code, error.ambiguous) == (code, True)
        (begun,) = it.open_uploads
        assert begun.completing
        assert it.transfer is not None
        it.server.other = keep
        found = await it.sender.store.find(it.transfer)
        assert isinstance(found, Stored) is there
        if not there:
            assert found is LookupResult.NOT_FOUND
            await it.put()
            assert sorted(it.sent) == PARTS
            assert it.server.objects["/bucket/key"] == it.file.read_bytes()


@in_loop
async def test_an_etag_that_is_left_out_is_looked_up(tmp_path: Path) -> None:
    """Ceph's gateway answers an empty one; the object has it."""

    async def without_etag(exchange: Exchange) -> None:
        await completed_in_silence(exchange)
        await exchange.answer(200, b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>")

    async with case(tmp_path, other=except_for("POST uploadId", without_etag)) as it:
        assert (await it.put()).etag == it.server.etags["/bucket/key"].strip('"')


@in_loop
async def test_a_completion_may_take_its_time(tmp_path: Path) -> None:
    """Longer than any other answer: the store has to assemble the object."""

    async def slowly(exchange: Exchange) -> None:
        await exchange.read()
        await asyncio.sleep(1.5)
        await keep(exchange)

    async with case(tmp_path, other=except_for("POST uploadId", slowly)) as it:
        assert (await it.put()).parts == 5


@pytest.mark.parametrize("script", [refuse(503, "SlowDown"), refuse(500, "InternalError"), completed_in_silence])
@in_loop
async def test_before_the_completion_nothing_is_ambiguous(tmp_path: Path, script: Script) -> None:
    """A creation or a part that fails makes no object."""
    async with case(tmp_path, other=except_for("POST uploads", script)) as it:
        assert not (await failure(it.put())).ambiguous
        assert not list(it.open_uploads)
    async with case(tmp_path, script) as it:
        assert not (await failure(it.put())).ambiguous


@in_loop
async def test_a_cancelled_attempt_keeps_its_parts(tmp_path: Path) -> None:
    """Parts in flight are aborted and cannot arrive later; stored ones stay noted, and the next attempt resumes."""
    holding, ended = asyncio.Event(), asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await exchange.read(1000)
        holding.set()
        await ended.wait()
        await exchange.read()

    async with case(tmp_path, except_part(5, hold)) as it:
        it.file = a_file(tmp_path / "large", 5 * PART)
        attempt = asyncio.create_task(it.put())
        await holding.wait()
        await until(lambda: len(next(iter(it.open_uploads)).etags) == 4)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        ended.set()
        await it.server.until(lambda: all(seen.over for seen in it.server.puts))
        assert not it.server.puts[-1].whole
        it.server.put = keep
        await it.put()
        assert sorted(it.sent) == PARTS


@in_loop
async def test_a_connection_that_was_closed_costs_no_attempt(tmp_path: Path) -> None:
    """Of connections that the server closed while they were idle, each part goes again over another connection."""
    closing = True

    async def close_the_warm(exchange: Exchange) -> None:
        if closing and any(seen.connection is exchange.connection for seen in it.server.seen[:-1]):
            exchange.connection.reset()
        else:
            await keep(exchange)

    async with case(tmp_path, max_connections=1) as it:
        stale = except_part(1, close_the_warm)
        it.server.put = stale
        stored = await it.put()
        assert sorted(it.sent) == PARTS
        assert stored.parts == 5
        assert len(it.server.puts) == 6


@pytest.mark.parametrize(("connections", "most"), [(1, 1), (2, 1), (4, 2), (8, 3), (16, 5)])
@in_loop
async def test_how_many_parts_go_at_a_time(tmp_path: Path, connections: int, most: int) -> None:
    """Up to half of the connections, in rounds of equal width (of five parts: three and two); else one."""
    at_once = []

    async def slowly(exchange: Exchange) -> None:
        at_once.append(sum(not seen.over for seen in exchange.server.puts))
        await exchange.read()
        await asyncio.sleep(0.1)
        await keep(exchange)

    async with case(tmp_path, slowly, max_connections=connections) as it:
        await it.put()
    assert max(at_once) == most


@in_loop
async def test_other_transfers_get_a_connection_at_once(tmp_path: Path) -> None:
    """While a large file is sent over half of the connections, as many small ones as there are others do not wait."""
    going = asyncio.Event()

    async def parts_wait(exchange: Exchange) -> None:
        if "partNumber" in exchange.target:
            await going.wait()
        await keep(exchange)

    async with case(tmp_path, parts_wait) as it:
        large = asyncio.create_task(it.put())
        await it.server.until(lambda: len(it.server.puts) == 3)
        small = a_file(tmp_path / "small", 3000)
        async with asyncio.timeout(5):
            await asyncio.gather(*(it.sender.put(small, f"small{n}") for n in range(5)))
        assert not it.sent
        going.set()
        await large
