"""The bucket last used, kept over restarts."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from lab.keeping import Clock
from lab.sending import in_loop

from s3daemon.s3.priming.last_bucket import NAME, WRITE_EVERY_S, LastBucket

URL = "https://store:7480"


def read(directory: Path, endpoint: str = URL) -> str:
    """What a restart finds."""
    bucket = LastBucket(directory, endpoint)
    bucket.read()
    return bucket.name


async def written(directory: Path, name: str) -> None:
    async with asyncio.timeout(10):
        while read(directory) != name:
            await asyncio.sleep(0.01)


@in_loop
async def test_kept_over_a_restart(tmp_path: Path) -> None:
    """For its endpoint; at another one nothing is known."""
    bucket = LastBucket(tmp_path, URL)
    assert bucket.name == ""
    bucket.note("tenant:images")
    assert bucket.name == "tenant:images"
    await written(tmp_path, "tenant:images")
    assert read(tmp_path, "https://other:7480") == ""
    assert os.listdir(tmp_path) == [NAME]


@in_loop
async def test_buckets_in_turn_are_not_written_each_time(tmp_path: Path) -> None:
    """In memory the last one is known at once."""
    clock = Clock()
    bucket = LastBucket(tmp_path, URL, clock)
    for name in ("one", "other", "one", "other"):
        bucket.note(name)
        assert bucket.name == name
    await written(tmp_path, "one")
    clock.now += WRITE_EVERY_S
    bucket.note("other")
    await written(tmp_path, "other")


def test_what_was_used_since_the_start_counts(tmp_path: Path) -> None:
    """The file is older."""
    (tmp_path / NAME).write_text(json.dumps({"endpoint": URL, "bucket": "old"}))
    bucket = LastBucket(tmp_path, URL)
    bucket.name = "new"
    bucket.read()
    assert bucket.name == "new"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b"{}", b"null", b"[" * 3000]
    + [
        json.dumps({"endpoint": URL, "bucket": bucket}).encode()
        for bucket in ("", 7, None, [], "a/b", "a\n", "x" * 5000)
    ],
)
def test_a_damaged_file_is_no_bucket(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert read(tmp_path) == ""


@in_loop
async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """The bucket is known until the end of the process; no file is left half done."""
    (tmp_path / NAME).mkdir()
    bucket = LastBucket(tmp_path, URL)
    bucket.note("images")
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert bucket.name == "images"
    assert os.listdir(tmp_path) == [NAME]
