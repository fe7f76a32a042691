"""One file to a scripted server: what goes over the wire, what counts as stored, and what is found."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from lab.schemes import PLAIN, Scheme
from lab.scripted import (
    Exchange,
    Script,
    answering,
    etag_of,
    hang_up_after,
    silent_after,
)
from lab.sending import a_file, failure, in_loop, transfer_of

from s3daemon.model.files.source import Source
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.s3.store import LookupResult, Stored

SMALL = 3_000
MIDDLE = 1 << 20
LARGE = 12 << 20


@pytest.mark.parametrize("size", [0, 1, SMALL, MIDDLE, LARGE])
@in_loop
async def test_one_plain_put(tmp_path: Path, scheme: Scheme, size: int) -> None:
    """One PUT with a length, an unsigned payload and the transfer's id; no Expect, no chunks; the object is whole."""
    file = a_file(tmp_path / "file", size)
    async with scheme.store() as (server, sender):
        stored = await sender.put(file, "some/key")
    (put,) = server.seen
    assert (put.method, put.target, bytes(put.body)) == ("PUT", "/bucket/some/key", file.read_bytes())
    assert put.headers["content-length"] == str(size)
    assert put.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert len(put.headers["x-amz-meta-s3daemon-id"]) == 16
    assert put.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=testkey/")
    unwanted = ("expect", "transfer-encoding", "content-encoding", "x-amz-trailer", "x-amz-decoded-content-length")
    assert not set(unwanted) & set(put.headers)
    assert (stored.etag, stored.size) == (hashlib.md5(file.read_bytes()).hexdigest(), size)
    assert stored.upload_usec > 0
    assert stored.rtt_usec > 0
    assert stored.connection == "new"


@in_loop
async def test_a_connection_is_used_again(tmp_path: Path, scheme: Scheme) -> None:
    """The result says whether it was new or warm."""
    file = a_file(tmp_path / "file", SMALL)
    async with scheme.store() as (server, sender):
        assert [(await sender.put(file)).connection for _ in range(3)] == ["new", "warm", "warm"]
    assert [seen.connection.number for seen in server.seen] == [0, 0, 0]


@pytest.mark.parametrize("size", [SMALL, LARGE])
@in_loop
async def test_a_wrong_etag_is_not_stored(tmp_path: Path, size: int) -> None:
    """An ETag that is an MD5 but not that of what was sent fails the attempt."""
    file = a_file(tmp_path / "file", size)
    async with PLAIN.store(answering(ETag=etag_of(b"other"))) as (_, sender):
        error = await failure(sender.put(file))
    assert (error.code, error.address) == ("ETagMismatch", "127.0.0.1")
    assert hashlib.md5(file.read_bytes()).hexdigest() in error.text


@pytest.mark.parametrize("etag", ['"0123456789abcdef0123456789abcdef-2"', '"opaque"'])
@in_loop
async def test_an_etag_that_is_not_an_md5_is_not_compared(tmp_path: Path, etag: str) -> None:
    """Multipart uploads, encryption and some stores give such ETags."""
    async with PLAIN.store(answering(ETag=etag)) as (_, sender):
        stored = await sender.put(a_file(tmp_path / "file", SMALL))
    assert stored.etag == etag.strip('"')


@in_loop
async def test_a_weak_etag_is_compared_by_its_text(tmp_path: Path) -> None:
    """A proxy that changes answers makes the store's ETags weak; a wrong one is found all the same."""
    file = a_file(tmp_path / "file", SMALL)
    right = etag_of(file.read_bytes())
    async with PLAIN.store(answering(ETag=f"W/{right}")) as (_, sender):
        assert (await sender.put(file)).etag == right.strip('"')
    async with PLAIN.store(answering(ETag=f"W/{etag_of(b'other')}")) as (_, sender):
        assert (await failure(sender.put(file))).code == "ETagMismatch"


@pytest.mark.parametrize(("script", "verify"), [(answering(), "no-etag"), (answering(201), "no-etag")])
@in_loop
async def test_a_sink_without_etags_takes_a_setting(tmp_path: Path, script: Script, verify: str) -> None:
    """Without it nothing is stored."""
    file = a_file(tmp_path / "file", SMALL)
    async with PLAIN.store(script, verify=verify) as (_, sender):
        assert (await sender.put(file)).etag == ""
    async with PLAIN.store(script) as (_, sender):
        error = await failure(sender.put(file))
        assert (error.code, error.ambiguous) == ("BadAnswer", True)


@pytest.mark.parametrize("verify", ["off", "no-etag"])
@in_loop
async def test_no_etag_is_compared_without_verification(tmp_path: Path, verify: str) -> None:
    async with PLAIN.store(answering(ETag=etag_of(b"other")), verify=verify) as (_, sender):
        assert f'"{(await sender.put(a_file(tmp_path / "file", SMALL))).etag}"' == etag_of(b"other")


@in_loop
async def test_no_answer_is_asked_for_in_compressed_form(tmp_path: Path) -> None:
    """A proxy that compresses changes sizes; one that does so all the same is understood."""

    async def compressing(exchange: Exchange) -> None:
        await exchange.read()
        body = gzip.compress(b"<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>")
        await exchange.answer(404, body, headers={"Content-Encoding": "gzip", "Content-Type": "application/xml"})

    async with PLAIN.store() as (server, sender):
        await sender.put(a_file(tmp_path / "file", SMALL))
        await sender.store.find(transfer())
        assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}
        server.put = compressing
        assert (await failure(sender.put(tmp_path / "file"))).code == "NoSuchBucket"


@pytest.mark.parametrize(
    ("body", "etags", "code", "words"),
    [
        (b"<Error><Code>InternalError</Code></Error>", [], "InternalError", "the store answered 200"),
        (b"", ['"' + "0" * 32 + '"', '"abc"'], "BadAnswer", "which is not valid"),
        (b"", ['"abc"', "right"], "BadAnswer", "which is not valid"),
        (b"", ["right", "right"], "", ""),
        (b"\n", ["right"], "", ""),
    ],
    ids=["an error", "two ETags", "the right one last", "twice the same", "a line end"],
)
@in_loop
async def test_odd_answers_200(tmp_path: Path, body: bytes, etags: list[str], code: str, words: str) -> None:
    """An error is told with the status that came; ETags that contradict each other are none."""

    async def odd(exchange: Exchange) -> None:
        await exchange.read()
        right = etag_of(bytes(exchange.body))
        head = "".join(f"ETag: {right if etag == 'right' else etag}\r\n" for etag in etags)
        await exchange.write(f"HTTP/1.1 200 OK\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    async with PLAIN.store(odd) as (_, sender):
        file = a_file(tmp_path / "file", SMALL)
        if not code:
            assert (await sender.put(file)).etag
            return
        error = await failure(sender.put(file))
        assert (error.code, words in error.text, error.ambiguous) == (code, True, True), error.text


@in_loop
async def test_verification_can_be_disabled(tmp_path: Path) -> None:
    """For a store whose ETags look like MD5s and are not."""
    async with PLAIN.store(answering(ETag=etag_of(b"other")), verify="off") as (_, sender):
        await sender.put(a_file(tmp_path / "file", LARGE))


@in_loop
async def test_an_etag_in_capitals_without_quotes(tmp_path: Path) -> None:
    """It is compared all the same."""
    file = a_file(tmp_path / "file", SMALL)
    async with PLAIN.store(answering(ETag=etag_of(file.read_bytes()).strip('"').upper())) as (_, sender):
        await sender.put(file)


def transfer(size: int = SMALL, key: str = "key") -> Transfer:
    """A transfer whose file is not read."""
    return Transfer("0123456789abcdef", "/f", Destination("bucket", key), (), FileState(size, 0, 0, 0), 0)


@in_loop
async def test_finding_what_was_stored(tmp_path: Path) -> None:
    """An object is this transfer's when it has its id, and the file's content as it is now; nothing else is."""
    file = a_file(tmp_path / "file", SMALL)
    source = Source.open(str(file))
    async with PLAIN.store() as (_, sender):
        ours = transfer_of(source)
        assert await sender.store.find(ours) is LookupResult.NOT_FOUND
        await sender.store.put(ours, source)
        source.close()
        assert await sender.store.find(ours) == Stored(etag_of(file.read_bytes()).strip('"'), SMALL)
        assert await sender.store.find(transfer()) is LookupResult.NOT_FOUND
        for other in ({"size": SMALL + 1}, {"mtime_ns": 1}, {"inode": 1}):
            now = replace(ours.file_state, **other)
            assert await sender.store.find(replace(ours, file_state=now)) is LookupResult.NOT_FOUND


@pytest.mark.parametrize("status", [403, 405])
@in_loop
async def test_a_lookup_that_is_forbidden(status: int) -> None:
    """A refused HEAD does not say whether there is an object."""
    async with PLAIN.store(other=answering(status)) as (_, sender):
        assert await sender.store.find(transfer()) is LookupResult.FORBIDDEN


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (answering(503), "503"),
        (hang_up_after(), "ConnectionClosed"),
        (silent_after(), "NoAnswer"),
        (answering(200, b"<html><body>Back soon</body></html>"), "BadAnswer"),
        (answering(200, ETag='"6b0b679a-30"'), "BadAnswer"),
    ],
)
@in_loop
async def test_a_lookup_without_a_clear_answer(script: Script, code: str) -> None:
    """An unclear answer, or none within the limits of connecting and stalling, is an error."""
    async with PLAIN.store(other=script, connect_timeout_s=0.1) as (_, sender):
        error = await failure(sender.store.find(transfer()))
    assert (error.code, error.ambiguous) == (code, False)


@pytest.mark.parametrize("text", ["Mon, 32 Foo 2026", "9" * 20, "inf", ""])
@in_loop
async def test_a_time_that_is_none_spoils_no_answer(text: str) -> None:
    """Nothing here needs the times in answers; one year too far was an error in the library that reads them."""
    async with PLAIN.store(other=answering(Last_Modified=text, ETag='"x"')) as (server, sender):
        assert await sender.store.find(transfer()) is LookupResult.NOT_FOUND
        bucket = f"<Buckets><Bucket><CreationDate>{text}</CreationDate></Bucket></Buckets>"
        server.other = answering(body=f"<ListAllMyBucketsResult>{bucket}</ListAllMyBucketsResult>".encode())
        await sender.store.ask_neutrally()


KEYS = [
    "".join(chr(c) for c in range(0x20, 0x7F)),
    " leading and trailing ",
    "a//b///c/",
    "/leading",
    "100%/%2F%41/+",
    "ü/日本語/\U0001f600",
    "a/../b/./c/..",
    "..",
    "?query=1&b#fragment",
    "x" * 1024,
]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key[:12])
@in_loop
async def test_keys_reach_the_store_exactly(tmp_path: Path, key: str) -> None:
    """Every printable character, dots, doubled slashes: what the server unquotes is the key and nothing else."""
    async with PLAIN.store() as (server, sender):
        await sender.put(a_file(tmp_path / "file", 1), key, bucket="tenant:bucket")
    bucket, _, found = server.seen[0].target.removeprefix("/").partition("/")
    assert (unquote(bucket), unquote(found)) == ("tenant:bucket", key)


@in_loop
async def test_concurrent_uploads_are_not_mixed_up(tmp_path: Path) -> None:
    """Ten at once over three connections: each object is its own file, and no fourth connection is made."""
    files = [a_file(tmp_path / f"file{n}", SMALL + n) for n in range(10)]
    async with PLAIN.store(max_connections=3) as (server, sender):
        await asyncio.gather(*(sender.put(file, file.name) for file in files))
    assert len(server.connections) == 3
    assert server.objects == {f"/bucket/{file.name}": file.read_bytes() for file in files}
