"""`s3.store` against real stores: Ceph's gateway over HTTPS and HTTP, SeaweedFS, moto."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lab.rgw import Gateway
from lab.s3 import S3Server
from lab.sending import OpenStore, a_file, failure, in_loop, sending, transfer_of

from s3daemon.config.settings import Settings
from s3daemon.model.files.source import Source
from s3daemon.s3.store import ID_KEY, LookupResult, Stored, metadata_of
from s3daemon.spool.open_uploads import MultipartUpload, OpenUploads

SMALL = 3_000
LARGE = 20 << 20
#: A file of up to 64 KiB is read and hashed in another way than a larger one.
SIZES = [0, 1, SMALL, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, LARGE]
#: Every printable character of ASCII but the slash, in pieces that no store takes for a path.
PRINTABLE = "k" + "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) != "/")
KEYS = [PRINTABLE, "night 1/a file.fits", " edges ", "100%/%2F+%20", "ü/日本語/\U0001f600", "~a/.b/c.."]
#: Keys that only a store without directories distinguishes.
ODD_KEYS = ["a//b///c", "/leading", "trailing/", "a/../b/./c", "..", "x" * 1024]
NAMES = ("rgw", "rgw-plain", "seaweed", "moto")


@pytest.fixture(params=NAMES)
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each store in turn."""
    name, _, plain = request.param.partition("-")
    found: Any = request.getfixturevalue(name)
    made: S3Server = found.plain if plain else found
    return made


@contextlib.asynccontextmanager
async def to(server: S3Server, **environ: str) -> AsyncIterator[OpenStore]:
    """A store over a server, with settings from the environment as the daemon's are."""
    settings = Settings.from_environ(server.settings() | {"S3DAEMON_STATE_DIR": "/nonexistent"} | environ)
    async with sending(settings) as sender:
        yield sender


def content(server: S3Server, bucket: str, key: str) -> bytes:
    """The object's content."""
    with closing(server.client()) as client:
        found: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found


@in_loop
async def test_files_of_all_sizes(tmp_path: Path, server: S3Server) -> None:
    """They are stored whole, verified, and have the transfer's id."""
    bucket = server.new_bucket()
    async with to(server) as sender:
        for size in SIZES:
            file = a_file(tmp_path / "file", size)
            source = Source.open(str(file))
            transfer = transfer_of(source, f"size/{size}", bucket)
            stored = await sender.store.put(transfer, source)
            source.close()
            assert (stored.size, stored.etag) == (size, hashlib.md5(file.read_bytes()).hexdigest())
            assert content(server, bucket, f"size/{size}") == file.read_bytes()
            with closing(server.client()) as client:
                head = client.head_object(Bucket=bucket, Key=f"size/{size}")
            assert (head["Metadata"][ID_KEY], head["ContentLength"]) == (transfer.id, size)
            assert await sender.store.find(transfer) == Stored(stored.etag, size)


@in_loop
async def test_a_file_in_parts(tmp_path: Path, server: S3Server) -> None:
    """It is stored whole, with its metadata; parts that the store has already are not sent again."""
    bucket, part = server.new_bucket(), 5 << 20
    file = a_file(tmp_path / "file", 2 * part + 1000)
    sizes = {"S3DAEMON_MULTIPART_THRESHOLD": "5MiB", "S3DAEMON_PART_SIZE": "5MiB"}
    source, open_uploads = Source.open(str(file)), OpenUploads()
    async with to(server, **sizes) as sender:
        transfer = transfer_of(source, "key", bucket)
        stored = await sender.store.put(transfer, source, open_uploads)
        assert (stored.size, stored.parts, stored.etag[-2:]) == (source.state.size, 3, "-3")
        assert content(server, bucket, "key") == file.read_bytes()
        assert await sender.store.find(transfer) == Stored(stored.etag, stored.size, parts=3)

        # A part of another content, so that the object shows that it was not sent again.
        with closing(server.client()) as client:
            where = {"Bucket": bucket, "Key": "key"}
            id_ = client.create_multipart_upload(**where, Metadata=metadata_of(transfer))["UploadId"]
            etag = client.upload_part(**where, UploadId=id_, PartNumber=2, Body=b"x" * part)["ETag"].strip('"')
        state = source.state
        await open_uploads.begin(
            MultipartUpload(id_, server.url, transfer.id, transfer.destination, state.size, state.mark, part)
        )
        open_uploads.part(next(iter(open_uploads)), 2, etag)
        assert (await sender.store.put(transfer, source, open_uploads)).parts == 3
        whole = file.read_bytes()
        assert content(server, bucket, "key") == whole[:part] + b"x" * part + whole[2 * part :]
        assert not list(open_uploads)
    source.close()


@in_loop
async def test_an_aborted_upload_is_gone(server: S3Server, seaweed: S3Server) -> None:
    """Its parts cannot be listed, and aborting it again gives the same error."""
    bucket = server.new_bucket()
    async with to(server) as sender:
        call = partial(sender.store.sender.call, Bucket=bucket, Key="key")
        id_ = (await call("create_multipart_upload"))["UploadId"]
        await call("list_parts", UploadId=id_)
        await call("abort_multipart_upload", UploadId=id_)
        error = await failure(call("list_parts", UploadId=id_))
        assert (error.code in ("NoSuchUpload", "NoSuchKey"), error.status) == (True, 404)
        if server.url != seaweed.url:  # SeaweedFS reports no error
            error = await failure(call("abort_multipart_upload", UploadId=id_))
            assert (error.code, error.status) == ("NoSuchUpload", 404)
    with closing(server.client()) as client:
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@in_loop
async def test_keys_of_printable_characters(tmp_path: Path, server: S3Server, seaweed: S3Server) -> None:
    """They arrive exactly, and so are found again."""
    bucket = server.new_bucket()
    file = a_file(tmp_path / "file", SMALL)
    async with to(server) as sender:
        for key in KEYS:
            source = Source.open(str(file))
            transfer = transfer_of(source, key, bucket)
            await sender.store.put(transfer, source)
            source.close()
            assert isinstance(await sender.store.find(transfer), Stored)
    if server.url == seaweed.url:  # it stores a backslash as a slash, and finds it by either
        assert server.keys(bucket) == {key.replace("\\", "/") for key in KEYS}
    else:
        assert server.keys(bucket) == set(KEYS)


@in_loop
async def test_odd_keys(tmp_path: Path, rgw: Gateway) -> None:
    """Keys that would not survive as paths are ordinary keys to Ceph."""
    bucket = rgw.new_bucket()
    file = a_file(tmp_path / "file", SMALL)
    async with to(rgw) as sender:
        for key in ODD_KEYS:
            await sender.put(file, key, bucket)
    assert rgw.keys(bucket) == set(ODD_KEYS)


@in_loop
async def test_a_newer_transfer_replaces_the_object(tmp_path: Path, server: S3Server) -> None:
    """The older transfer's object is not found any more."""
    bucket = server.new_bucket()
    async with to(server) as sender:
        older = Source.open(str(a_file(tmp_path / "older", SMALL)))
        first = transfer_of(older, "key", bucket)
        await sender.store.put(first, older)
        older.close()
        newer = a_file(tmp_path / "newer", SMALL - 1)
        await sender.put(newer, "key", bucket)
        assert await sender.store.find(first) is LookupResult.NOT_FOUND
    assert content(server, bucket, "key") == newer.read_bytes()


@pytest.mark.parametrize("server", ["rgw", "rgw-plain", "moto"], indirect=True)
@in_loop
async def test_no_such_bucket(tmp_path: Path, server: S3Server) -> None:
    """S3's own code, not ambiguous. (SeaweedFS creates the bucket instead, if the keys may.)"""
    bucket = f"none-{uuid.uuid4().hex[:12]}"
    async with to(server) as sender:
        for size in (SMALL, LARGE):
            error = await failure(sender.put(a_file(tmp_path / "file", size), "key", bucket))
            assert (error.code, error.status, error.ambiguous) == ("NoSuchBucket", 404, False)


@pytest.mark.parametrize(
    ("wrong", "code"), [("access_key", "InvalidAccessKeyId"), ("secret_key", "SignatureDoesNotMatch")]
)
@pytest.mark.parametrize("name", ["rgw", "seaweed"])
@in_loop
async def test_wrong_keys(tmp_path: Path, request: pytest.FixtureRequest, name: str, wrong: str, code: str) -> None:
    """A store that checks signatures says which key is wrong; the error quotes no secret."""
    server: S3Server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    given: dict[str, Any] = {wrong: "mistaken"}
    async with to(dataclasses.replace(server, **given)) as sender:
        error = await failure(sender.put(a_file(tmp_path / "file", SMALL), "key", bucket))
    assert (error.code, error.status, error.ambiguous) == (code, 403, False)
    assert "mistaken" not in error.text
    assert server.keys(bucket) == set()


@in_loop
async def test_a_bucket_of_another_account(tmp_path: Path, rgw: Gateway) -> None:
    """Valid keys that may not write there."""
    bucket = rgw.new_bucket()
    async with to(rgw.new_account()) as sender:
        file = a_file(tmp_path / "file", SMALL)
        error = await failure(sender.put(file, "key", bucket))
        assert (error.code, error.status, error.ambiguous) == ("AccessDenied", 403, False)
        source = Source.open(str(file))
        assert await sender.store.find(transfer_of(source, "key", bucket)) is LookupResult.FORBIDDEN
        source.close()


@in_loop
async def test_a_quota_that_is_used_up_has_its_code(tmp_path: Path, rgw: Gateway) -> None:
    """Ceph has a code of its own for an account that has used up its quota."""
    account = rgw.new_account()
    uid = account.access_key
    for words in (("set", "--max-size=4096"), ("enable",)):
        with contextlib.suppress(json.JSONDecodeError):  # these print nothing
            rgw.admin("quota", *words, "--quota-scope=user", f"--uid={uid}")
    bucket = account.new_bucket()
    async with to(account) as sender:
        for size in (10_000, LARGE):
            error = await failure(sender.put(a_file(tmp_path / "file", size), "key", bucket))
            assert (error.code, error.status, error.ambiguous) == ("QuotaExceeded", 403, False)


@in_loop
async def test_tenants(tmp_path: Path, rgw: Gateway) -> None:
    """Ceph's names of the form tenant:bucket go through, though botocore's own check would refuse them."""
    tenant, uid, secret = f"t{uuid.uuid4().hex[:8]}", f"u{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    keys = ("--access-key", uid, "--secret-key", secret)
    rgw.admin("user", "create", "--tenant", tenant, "--uid", uid, "--display-name", uid, *keys)
    owner = S3Server(rgw.url, uid, secret, rgw.ca)
    bucket = owner.new_bucket()
    file = a_file(tmp_path / "file", SMALL)
    async with to(owner) as sender:
        await sender.put(file, "with", f"{tenant}:{bucket}")
        await sender.put(file, "without", bucket)
    assert owner.keys(bucket) == {"with", "without"}
    async with to(rgw) as sender:
        error = await failure(sender.put(file, "key", f"{tenant}:{bucket}"))
        assert error.code == "AccessDenied"
        error = await failure(sender.put(file, "key", f"{tenant}:none"))
        assert error.code == "NoSuchBucket"


@pytest.mark.parametrize("profile", ["", "camera"])
@in_loop
async def test_keys_from_a_shared_credentials_file(tmp_path: Path, seaweed: S3Server, profile: str) -> None:
    """The keys may be in a file of the AWS tools, under a profile."""
    credentials = tmp_path / "credentials"
    credentials.write_text(
        "[default]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n"
        "[camera]\naws_access_key_id=testkey\naws_secret_access_key=testsecret\n"
        "[wrong]\naws_access_key_id = testkey\naws_secret_access_key = other\n"
    )
    bucket = seaweed.new_bucket()
    environ = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
    async with to(seaweed, **environ, AWS_PROFILE=profile) as sender:
        await sender.put(a_file(tmp_path / "file", SMALL), "key", bucket)
    async with to(seaweed, **environ, AWS_PROFILE="wrong") as sender:
        error = await failure(sender.put(tmp_path / "file", "key", bucket))
        assert error.code == "SignatureDoesNotMatch"


@in_loop
async def test_a_connection_is_used_again(tmp_path: Path, server: S3Server, moto: S3Server) -> None:
    """If the store keeps it open; else each request takes a new one."""
    bucket = server.new_bucket()
    file = a_file(tmp_path / "file", SMALL)
    async with to(server, S3DAEMON_MAX_CONNECTIONS="1") as sender:
        connections = [(await sender.put(file, f"key{n}", bucket)).connection for n in range(4)]
        kept = sender.pool.opened == 1
        assert connections == ["new", *(["warm"] * 3 if kept else ["new"] * 3)]
    assert kept or server.url == moto.url, "moto may close after each answer; no other does"
