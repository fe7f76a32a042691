"""A report is about the transfers that were asked for, each of them once."""

import json
from typing import TypedDict, Unpack

import pytest
from lab.records import START_USEC, entry, failed, record, refusal

from s3daemon.commands.report.select import OTHERS, Collection, RefusedRequest, Selection
from s3daemon.model.record import MessageId
from s3daemon.units import BEGIN_USEC, END_USEC

SECOND = 1_000_000


class Wanted(TypedDict, total=False):
    """Arguments of Selection."""

    since_usec: int
    until_usec: int
    buckets: tuple[str, ...]
    prefixes: tuple[str, ...]
    tags: tuple[str, ...]
    hosts: tuple[str, ...]
    units: tuple[str, ...]
    of_this_host: bool


def collected(*entries: dict[str, object], **wanted: Unpack[Wanted]) -> Collection:
    selection = Selection(**wanted)
    made = Collection(selection)
    for one in filter(selection.trusts, entries):
        made.add(one)
    return made


def ids(collection: Collection) -> list[int]:
    return [int(seen.record.transfer_id, 16) for seen in collection.transfers()]


def test_records_come_by_time_of_request() -> None:
    """Whatever the order of recording, transfers come in the order of their requests, with their hosts."""
    late, early = record(1, start_usec=START_USEC + 5), record(2, start_usec=START_USEC)
    found = collected(entry(late, "b"), entry(early, "a"))
    assert ids(found) == [2, 1]
    assert [seen.host for seen in found.transfers()] == ["a", "b"]
    assert found.transfers()[0].end_usec == START_USEC + early.total_usec


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [1, 2, 3]),
        ({"buckets": ("raw",)}, [1, 3]),
        ({"buckets": ("raw", "log")}, [1, 2, 3]),
        ({"prefixes": ("night/",)}, [1]),
        ({"prefixes": ("night/", "day/s")}, [1, 2]),
        ({"tags": ("b",)}, [1, 2]),
        ({"tags": ("a",), "buckets": ("log",)}, []),
        ({"hosts": ("n2",)}, [2, 3]),
        ({"units": ("s3daemon@15556.service",)}, [3]),
    ],
)
def test_selection(wanted: Wanted, found: list[int]) -> None:
    """Values of one kind are alternatives, kinds narrow each other."""
    unit = "s3daemon.service"
    entries = [
        entry(record(1, bucket="raw", key="night/f", tags=("a", "b")), "n1", _SYSTEMD_UNIT=unit),
        entry(record(2, bucket="log", key="day/s", tags=("b",)), "n2", _SYSTEMD_UNIT=unit),
        entry(record(3, bucket="raw", key="x", tags=()), "n2", _SYSTEMD_UNIT="s3daemon@15556.service"),
    ]
    assert ids(collected(*entries, **wanted)) == found


@pytest.mark.parametrize(
    ("unit", "wanted", "trusted"),
    [
        ("s3daemon.service", {"of_this_host": True}, True),
        ("s3daemon@15556.service", {"of_this_host": True}, True),
        ("session-3.scope", {"of_this_host": True}, False),
        ("user@1000.service", {}, False),
        ("s3daemon.service.evil.service", {}, False),
        ("nots3daemon.service", {}, False),
        ("s3daemon@1.socket", {}, False),
        (None, {"of_this_host": True}, False),
        (None, {}, True),
        ("s3daemon.service", {"units": ("run-u3.service",)}, False),
        ("run-u3.service", {"units": ("run-u3.service",), "of_this_host": True}, True),
        (None, {"units": ("s3daemon.service",)}, False),
    ],
)
def test_whose_entries_count(unit: str | None, wanted: Wanted, trusted: bool) -> None:
    """Those of the units that were asked for, else the service's; without a unit only such as are from elsewhere."""
    given = entry(record(1)) | ({} if unit is None else {"_SYSTEMD_UNIT": unit})
    assert Selection(**wanted).trusts(given) == trusted


@pytest.mark.parametrize(
    ("uid", "error", "wanted", "trusted"),
    [
        ("0", "Dropped: by an operator", {"of_this_host": True}, True),
        ("0", "Dropped: by an operator", {}, True),
        ("0", "Dropped: by an operator", {"units": ("s3daemon.service",)}, False),
        ("1000", "Dropped: by an operator", {}, False),
        ("0", "NoSuchBucket: none", {}, False),
    ],
)
def test_what_root_dropped_without_a_daemon_counts(uid: str, error: str, wanted: Wanted, trusted: bool) -> None:
    """It is written in root's session; whose instance's it was is not known."""
    given = entry(failed(1, error), _SYSTEMD_UNIT="session-3.scope", _UID=uid)
    assert Selection(**wanted).trusts(given) == trusted


@pytest.mark.parametrize(
    "impossible",
    [
        {"S3DAEMON_START_USEC": "9" * 20},
        {"S3DAEMON_START_USEC": "0"},
        {"S3DAEMON_START_USEC": str(BEGIN_USEC - 1)},
        {"S3DAEMON_START_USEC": str(END_USEC - 402_000)},  # it ends too late
        {"S3DAEMON_TOTAL_USEC": "9" * 23},
        {"S3DAEMON_QUEUE_USEC": "9" * 400},
        {"S3DAEMON_UPLOAD_USEC": "9" * 400},
        {"S3DAEMON_RTT_USEC": "9" * 400},
        {"S3DAEMON_SIZE_BYTES": "9" * 400},
        {"S3DAEMON_RETRANSMITS": "9" * 400},
        *({"S3DAEMON_SIZE_BYTES": text} for text in ("\u0663", "+3", " 3", "1_000")),
    ],
    ids=str,
)
def test_impossible_numbers_leave_a_record_out(impossible: dict[str, str]) -> None:
    """It is counted with those that cannot be read."""
    found = collected(entry(record(1)), entry(record(2)) | impossible)
    assert (ids(found), found.unreadable) == ([1], 1)


def test_bounds_are_on_the_time_of_recording() -> None:
    """The bounds hold for when journald took the record; both ends are included."""
    recorded = [START_USEC + n * SECOND for n in range(4)]
    entries = [entry(record(n)) | {"__REALTIME_TIMESTAMP": str(usec)} for n, usec in enumerate(recorded)]
    assert ids(collected(*entries, since_usec=recorded[1], until_usec=recorded[2])) == [1, 2]


def test_without_a_time_of_recording_the_end_counts() -> None:
    """An entry that does not say when it was recorded counts as recorded when its transfer ended."""
    bare = entry(record(1, total_usec=5 * SECOND))
    del bare["__REALTIME_TIMESTAMP"]
    assert ids(collected(bare, since_usec=START_USEC + 5 * SECOND)) == [1]
    assert ids(collected(bare, since_usec=START_USEC + 5 * SECOND + 1)) == []


def test_a_transfer_recorded_twice_counts_once() -> None:
    """Stored beats failed; of two that say stored the first is right, of two failures the last, in any order."""
    first, second = record(1, total_usec=2 * SECOND), record(1, total_usec=60 * SECOND, attempts=2)
    early, late = failed(2, "Stalled: x", total_usec=SECOND), failed(2, "AccessDenied: y", total_usec=9 * SECOND)
    lost, retried = failed(3, total_usec=SECOND), record(3, total_usec=90 * SECOND)
    entries = [entry(made) for made in (first, second, early, late, lost, retried)]
    for order in (entries, entries[::-1]):
        found = collected(*order)
        assert {
            seen.record.transfer_id: (seen.record.outcome, seen.record.total_usec) for seen in found.transfers()
        } == {
            first.transfer_id: ("stored", 2 * SECOND),
            late.transfer_id: ("failed", 9 * SECOND),
            retried.transfer_id: ("stored", 90 * SECOND),
        }


def test_what_cannot_be_read_is_counted() -> None:
    """An entry with the message id of a record that cannot be read is counted; any other entry is ignored."""
    good, cut, other = entry(record(1)), entry(record(2)), entry(record(3))
    cut["S3DAEMON_KEY"] = None  # what journalctl makes of a long field without --all
    other["MESSAGE_ID"] = MessageId.ATTEMPT_FAILED
    found = collected(good, cut, other, {})
    assert ids(found) == [1]
    assert found.unreadable == 1


def test_what_does_not_fit_json_is_understood() -> None:
    """A key that is not UTF-8 comes as a list of byte values, a field that repeats as a list of texts."""
    odd = entry(record(1, tags=("a", "b"))) | {"S3DAEMON_KEY": [*b"night/\xff"]}
    (one,) = collected(odd).transfers()
    assert (one.record.key, one.record.tags) == ("night/\udcff", ("a", "b"))


def test_values_that_repeat_are_kept_once() -> None:
    """So 200 000 records fit into memory; the file and the ETag, which no report shows, are not kept."""
    one, other = collected(*(entry(record(n, bucket="".join(["r", "aw"]))) for n in (1, 2))).transfers()
    assert one.record.bucket is other.record.bucket
    assert (one.record.file, one.record.etag) == ("", "")


def test_what_journald_looks_up() -> None:
    """What journalctl is asked for is not narrower than what is kept."""
    wanted = Selection(
        buckets=("raw", "log"), prefixes=("p",), tags=("t",), hosts=("h",), units=("u.service",), since_usec=1
    )
    assert wanted.matches() == [
        "MESSAGE_ID=59de861c00b54c97810d5760a3b1b9a0", "S3DAEMON_BUCKET=raw", "S3DAEMON_BUCKET=log", "S3DAEMON_TAG=t",
        "_HOSTNAME=h", "_SYSTEMD_UNIT=u.service",
        "+", *(f"MESSAGE_ID={kind}" for kind in OTHERS), "_HOSTNAME=h", "_SYSTEMD_UNIT=u.service",
    ]  # fmt: skip


REFUSED = json.loads(refusal("raw/night/f", "e", second=2, _HOSTNAME="n", _SYSTEMD_UNIT="s3daemon.service"))


def test_refused_requests_are_kept() -> None:
    """With a tag or a destination; what has neither is a file of nothing."""
    tagged = RefusedRequest(
        ("raw", "night/f"), ("e",), "NotReadable", START_USEC + 2 * SECOND, "n"
    )  # fmt: skip
    given = [json.loads(refusal(*words)) for words in (("raw/night/g",), ("", "e"), ("", ""))]
    found = collected(REFUSED, *given).refused
    assert found[0] == tagged
    assert [(one.place, tuple(one.tags)) for one in found] == [
        (("raw", "night/f"), ("e",)), (("raw", "night/g"), ()), (("", ""), ("e",)),
    ]  # fmt: skip


@pytest.mark.parametrize("usec", [None, "0", "soon", "\u0663"])
def test_a_refusal_without_a_time_is_left_out(usec: str | None) -> None:
    """It would make an exposure that began in 1970, and was lost."""
    found = collected(REFUSED | {"__REALTIME_TIMESTAMP": usec})
    assert (found.refused, found.unreadable) == ([], 1)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        ({"buckets": ("raw",), "prefixes": ("night/",), "tags": ("e",), "hosts": ("n",)}, 1),
        ({"since_usec": START_USEC + 2 * SECOND, "until_usec": START_USEC + 2 * SECOND}, 1),
        ({"units": ("s3daemon.service",)}, 1),
        ({"buckets": ("log",)}, 0),
        ({"prefixes": ("day/",)}, 0),
        ({"tags": ("d",)}, 0),
        ({"hosts": ("m",)}, 0),
        ({"units": ("s3daemon@15556.service",)}, 0),
        ({"since_usec": START_USEC + 2 * SECOND + 1}, 0),
        ({"until_usec": START_USEC + 2 * SECOND - 1}, 0),
    ],
)
def test_refused_requests_meet_every_condition(wanted: Wanted, count: int) -> None:
    """They are selected as transfers are, so that no exposure appears that was not asked for."""
    assert len(collected(REFUSED, **wanted).refused) == count
