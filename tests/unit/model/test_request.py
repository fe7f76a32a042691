"""Requests are valid once made: what cannot be carried out cannot be constructed."""

import os

import pytest

from s3daemon.errors import RequestError
from s3daemon.model.request import Destination, FileState, Request, Transfer

HERE = Destination("bucket", "key")


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("a/b/c", "b", "c"),
        ("alias/bucket/dir/with/slashes", "bucket", "dir/with/slashes"),
        ("a/b//lead", "b", "/lead"),
        ("a/b/trail/", "b", "trail/"),
        ("a/tenant:bucket/k", "tenant:bucket", "k"),
        ("a/b/é ü%2F+?#", "b", "é ü%2F+?#"),
        ("a/b/" + "k" * 1024, "b", "k" * 1024),
    ],
)
def test_destinations(text: str, bucket: str, key: str) -> None:
    """The alias is dropped, the bucket ends at the second slash, the key is the rest as it is."""
    assert Destination.parse(text) == Destination(bucket, key)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a/", "a/b", "a/b/", "/b/c", "a//c", "//"),
        *("a/b/\n", "a/b/\x7f", "a/b/\x85", "a/\0/c", "a/b/\ud800"),
        *("a/b/" + "k" * 1025, "a/b/" + "é" * 513, "a/" + "b" * 513 + "/c"),
    ],
)
def test_bad_destinations(text: str) -> None:
    """Each is refused with one line."""
    with pytest.raises(RequestError) as caught:
        Destination.parse(text)
    assert caught.value.code == "BadRequest"
    assert caught.value.text.isprintable()


@pytest.mark.parametrize("file", ["", "a", "./a", "-", "~/a", "/a\0b", "/a\ud800b"])
def test_bad_files(file: str) -> None:
    """Relative names, NUL and what is no file name at all."""
    with pytest.raises(RequestError):
        Request(file, HERE)


@pytest.mark.parametrize("file", ["/a", "/a b", "/a\nb", "/", os.fsdecode(b"/\xff\xfe")])
def test_good_files(file: str) -> None:
    """Whatever a file system can hold."""
    assert Request(file, HERE).file == file


@pytest.mark.parametrize("tag", ["x" * 129, "a\nb", "\x1b[31m"])
def test_bad_tags(tag: str) -> None:
    """A tag is short and printable."""
    with pytest.raises(RequestError):
        Request("/a", HERE, tag=tag)


def test_ids_are_new() -> None:
    """Two transfers of one request are two."""
    seen = FileState(1, 2, 3, 4)
    request = Request("/a", HERE, tag="night")
    first, second = Transfer.accept(request, seen, 5), Transfer.accept(request, seen, 5)
    assert first.id != second.id
    assert len(first.id) == 16
    assert first.tags == ("night",)
    assert Transfer.accept(Request("/a", HERE), seen, 5).tags == ()
