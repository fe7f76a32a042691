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
        ("/b/c", "b", "c"),
        ("/b//c", "b", "/c"),
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
        *("", "a", "a/", "a/b", "a/b/", "/b", "/b/", "a//c", "//", "//c"),
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


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        (Destination("b", "night/"), "ends in a slash: give the whole key"),
        (Destination("b", "/"), "ends in a slash: give the whole key"),
        (Destination("b", "k//"), "ends in a slash: give the whole key"),
        *((Destination("b", key), "has a part that is . or ..") for key in (".", "..", "./k", "../k", "k/.", "k/..")),
        *((Destination("b", key), "has a part that is . or ..") for key in ("k/./l", "k/../l", "/../k", "k/../../l")),
        (Destination("..", "b/k"), "has a part that is . or .."),
        (Destination(".", "k"), "has a part that is . or .."),
    ],
)
def test_a_destination_that_is_not_what_it_seems_is_refused(destination: Destination, reason: str) -> None:
    """Three files to `night/` would be one object; a proxy resolves `..`, and with it the bucket that is allowed."""
    with pytest.raises(RequestError) as caught:
        Request("/a", destination)
    assert caught.value.code == "BadRequest"
    assert reason in caught.value.text


@pytest.mark.parametrize("key", ["a//b", "//a", "...", "a/...", ".a", "a.", "..a/b..", "a/.b", "%2e%2e/a", "a\\..\\b"])
def test_keys_that_only_look_like_it_are_taken(key: str) -> None:
    """An empty part goes as it is, and a name may begin or end with dots."""
    assert Request("/a", Destination("b", key)).destination.key == key


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
