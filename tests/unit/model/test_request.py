"""Requests are valid once constructed: what cannot be carried out cannot be constructed."""

import os

import pytest

from s3daemon.errors import RequestError
from s3daemon.model.request import Destination, FileState, Request, Transfer, prefix_of

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
def test_destinations_are_parsed(text: str, bucket: str, key: str) -> None:
    """The alias is dropped, the bucket ends at the second slash, the key is the rest as it is."""
    assert Destination.parse(text) == Destination(bucket, key)


@pytest.mark.parametrize("text", ["", "a", "a/", "a/b", "a/b/", "/b", "/b/", "a//c", "//", "//c"])
def test_a_destination_without_a_bucket_or_a_key_is_told_the_form(text: str) -> None:
    with pytest.raises(RequestError, match=r"^'.*' is not alias/bucket/key$") as caught:
        Destination.parse(text)
    assert caught.value.code == "BadRequest"


@pytest.mark.parametrize(
    "text",
    [
        *("a/b/\n", "a/b/\x7f", "a/b/\x85", "a/\0/c", "a/b/\ud800"),
        *("a/b/" + "k" * 1025, "a/b/" + "é" * 513, "a/" + "b" * 513 + "/c"),
    ],
)
def test_bad_destinations_are_refused(text: str) -> None:
    """The error is one printable line."""
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
def test_bad_file_names_are_refused(file: str) -> None:
    """Relative names, NUL bytes, and text that is not a file name."""
    with pytest.raises(RequestError):
        Request(file, HERE)


@pytest.mark.parametrize("file", ["/a", "/a b", "/a\nb", "/", os.fsdecode(b"/\xff\xfe")])
def test_any_absolute_file_name_is_accepted(file: str) -> None:
    """Also with control characters and bytes that are not UTF-8."""
    assert Request(file, HERE).file == file


@pytest.mark.parametrize("tag", ["x" * 129, "a\nb", "\x1b[31m"])
def test_bad_tags_are_refused(tag: str) -> None:
    """A tag must be short and printable."""
    with pytest.raises(RequestError):
        Request("/a", HERE, tag=tag)


def test_every_transfer_has_a_new_id() -> None:
    """Also two transfers of one request; an empty tag is left out."""
    seen = FileState(1, 2, 3, 4)
    request = Request("/a", HERE, tag="night")
    first, second = Transfer.accept(request, seen, 5), Transfer.accept(request, seen, 5)
    assert first.id != second.id
    assert len(first.id) == 16
    assert first.tags == ("night",)
    assert Transfer.accept(Request("/a", HERE), seen, 5).tags == ()


@pytest.mark.parametrize(
    ("key", "prefix"), [("a/b/c/f", "raw/a/b/c/"), ("a/f", "raw/a/"), ("a//f", "raw/a//"), ("f", "raw/")]
)
def test_prefixes(key: str, prefix: str) -> None:
    """The bucket, and the key up to its last slash."""
    assert prefix_of(f"raw/{key}") == prefix


def test_a_file_state_ignores_the_device() -> None:
    """A reboot may change its number; size, time and inode count."""
    state = FileState(1, 2, 3, 4)
    assert state == FileState(1, 2, 3, 5)
    assert state.mark == "2-3-0"
    assert state not in (FileState(0, 2, 3, 4), FileState(1, 0, 3, 4), FileState(1, 2, 0, 4))


def stat_of(mtime_ns: int, ctime_ns: int) -> os.stat_result:
    """A result of `os.stat`."""
    times = {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns}
    return os.stat_result((0o100644, 7, 8, 1, 0, 0, 3000, 0, 0, 0), times)


@pytest.mark.parametrize("seconds", [-(10**10), 0, 10**10, 2**63 - 1])
def test_any_time_of_a_file_fits_64_bits(seconds: int) -> None:
    """Also those after the year 2262; two of them that differ do so afterwards."""
    state, other = (FileState.of(stat_of(seconds * 10**9 + ns, 1)) for ns in (0, 1))
    assert -(2**63) <= state.mtime_ns < 2**63
    assert state != other


def test_a_change_time_tells_a_rewritten_file() -> None:
    """Its modification time can be set back."""
    before, now = FileState.of(stat_of(5, 6)), FileState.of(stat_of(5, 7))
    assert before == FileState(3000, 5, 7, 9, 6)
    assert now != before
    assert (before.mark, now.mark) == ("5-7-6", "5-7-7")
