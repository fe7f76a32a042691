"""The last exposures: grouped as the report groups them, each transfer counted once, and only the newest kept."""

from __future__ import annotations

import random
from typing import Any

import pytest
from lab.records import START_USEC, failed, record

from s3daemon.control.exposures import status_of
from s3daemon.model.exposure import MISSING_KEPT, Exposures, Loss, Missing, verdict_of
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.request import Destination, FileState, Transfer

S = 1_000_000


def transfer(number: int, at_s: float = 0.0, tags: tuple[str, ...] = ("exposure-1",), key: str = "night/f") -> Transfer:
    seen = FileState(1, 2, 3, 4)
    return Transfer(f"{number:016x}", "/f", Destination("raw", key), tags, seen, START_USEC + round(at_s * S))


def shown(exposures: Exposures, at_s: float = 0.0) -> list[dict[str, Any]]:
    return [status_of(exposure, START_USEC + round(at_s * S)).as_dict() for exposure in exposures]


def after(number: int, at_s: float, took_s: float, **changes: Any) -> TransferRecord:
    return record(number, start_usec=START_USEC + round(at_s * S), total_usec=round(took_s * S), **changes)


@pytest.fixture
def exposures() -> Exposures:
    return Exposures()


def test_an_exposure_lasts_from_its_first_request_to_its_last_object(exposures: Exposures) -> None:
    """Pending, then stored; the last object is that stored last, whatever the order of the records."""
    for number, at_s in enumerate((0.0, 0.1, 0.2)):
        exposures.added(transfer(number, at_s))
    (one,) = shown(exposures, 1.0)
    assert (one["name"], one["tagged"], one["pending"], one["stored"]) == ("exposure-1", True, 3, 0)
    assert (one["seconds"], one["verdict"], one["last_usec"]) == (1.0, "in time", None)
    for number, at_s, took_s in ((2, 0.2, 1.0), (0, 0.0, 4.5), (1, 0.1, 1.0)):
        exposures.removed(transfer(number, at_s))
        exposures.recorded(after(number, at_s, took_s, key=f"night/{number}.fits"))
    (one,) = shown(exposures, 60.0)
    assert (one["pending"], one["stored"], one["failed"], one["size_bytes"]) == (0, 3, 0, 24_000_000)
    assert (one["first_usec"], one["last_usec"], one["seconds"]) == (START_USEC, START_USEC + 4_500_000, 4.5)


@pytest.mark.parametrize("tags", [("t",), ()])
def test_a_destination_counts_once_in_an_exposure(exposures: Exposures, tags: tuple[str, ...]) -> None:
    """A file that is sent twice hides no other, with a tag or without one."""
    for number, key in ((1, "night/a"), (2, "night/a"), (3, "night/b")):
        exposures.recorded(record(number, tags=tags, key=key))
    (one,) = exposures
    assert (one.stored, one.size_bytes) == (2, 16_000_000)


def test_verdicts() -> None:
    """Past 10 s late, past 30 s lost, by what is stored or by what is still pending; a failure leaves a gap."""
    exposures = Exposures()
    for took_s, verdict in ((10.0, "in time"), (10.1, "late"), (30.1, "lost")):
        exposures.recorded(after(1, 0, took_s))
        assert shown(exposures)[0]["verdict"] == verdict
    exposures = Exposures()
    exposures.added(transfer(1))
    for now_s, verdict in ((10.0, "in time"), (11.0, "late"), (31.0, "lost")):
        assert shown(exposures, now_s)[0]["verdict"] == verdict
    exposures = Exposures()
    exposures.recorded(failed(1, key="night/lost"))
    assert (shown(exposures)[0]["seconds"], shown(exposures)[0]["verdict"]) == (None, "incomplete")
    exposures.recorded(after(2, 0, 1.0))
    assert (shown(exposures)[0]["failed"], shown(exposures)[0]["verdict"]) == (1, "incomplete")
    exposures.recorded(after(3, 0, 31.0))
    assert shown(exposures)[0]["verdict"] == "lost"


@pytest.mark.parametrize(
    ("seconds", "missing", "tagged", "verdict"),
    [
        (10.0, False, True, "in time"),
        (10.1, False, True, "late"),
        (10.1, True, True, "incomplete"),
        (30.1, True, True, "lost"),
        (None, True, True, "incomplete"),
        (36_000.0, False, False, "untagged"),
        (36_000.0, True, False, "incomplete"),
    ],
)
def test_the_verdict(seconds: float | None, missing: bool, tagged: bool, verdict: str) -> None:
    """The worst that applies; the time of files without a tag is never judged, for they may be a whole night's."""
    assert verdict_of(seconds, missing=missing, tagged=tagged) == verdict


def test_limits_of_ones_own() -> None:
    """The limits can be given; one that is late later than others are lost is never lost before."""
    assert verdict_of(4.0, missing=False, tagged=True, late_s=3) == "late"
    assert verdict_of(50.0, missing=False, tagged=True, late_s=60) == "in time"


def test_a_failure_that_is_retried_and_stored_does_not_count(exposures: Exposures) -> None:
    exposures.recorded(failed(1, key="night/f"))
    exposures.recorded(after(2, 0, 1.0))
    exposures.added(transfer(1))
    assert (shown(exposures)[0]["failed"], shown(exposures)[0]["pending"]) == (0, 1)
    exposures.removed(transfer(1))
    exposures.recorded(after(1, 0, 5.0, key="night/f"))
    (one,) = shown(exposures)
    assert (one["failed"], one["pending"], one["stored"], one["verdict"]) == (0, 0, 2, "in time")


def test_groups_as_the_report_makes_them(exposures: Exposures) -> None:
    """Each tag once; without tags the key up to its last slash."""
    exposures.recorded(after(1, 0, 1, tags=("a", "b", "a")))
    exposures.recorded(after(2, 1, 1, tags=(), key="night/e1/f.fits"))
    exposures.recorded(after(3, 2, 1, tags=(), key="f.fits"))
    exposures.recorded(after(4, 3, 1, tags=("raw/",)))
    names = [(one["name"], one["tagged"], one["stored"]) for one in shown(exposures)]
    assert names == [("a", True, 1), ("b", True, 1), ("raw/night/e1/", False, 1), ("raw/", False, 1), ("raw/", True, 1)]


def test_a_withdrawn_transfer_leaves_no_trace(exposures: Exposures) -> None:
    """An acceptance that the disk refused, and a tag that a later request added."""
    exposures.added(transfer(1))
    exposures.removed(transfer(1, tags=("exposure-1", "another")))
    assert shown(exposures) == []
    exposures.added(transfer(2))
    exposures.added(transfer(3))
    exposures.removed(transfer(3))
    assert shown(exposures)[0]["pending"] == 1


def test_the_oldest_is_forgotten_for_a_newer_one() -> None:
    """Whatever the order in which they come; one older than all that is kept does not come in."""
    exposures = Exposures(kept=30)
    numbers = list(range(1000))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        exposures.added(transfer(number, number, (f"e{number}",)))
    assert [one["name"] for one in shown(exposures)] == [f"e{number}" for number in range(970, 1000)]
    exposures.removed(transfer(5, 5, ("e5",)))
    exposures.recorded(after(5, 5, 9_000, tags=("e5",)))
    assert len(shown(exposures)) == 30
    exposures.added(transfer(2000, -1, ("e990",)))
    assert shown(exposures)[0]["name"] == "e990"


def test_refused_requests_take_the_place_of_no_accepted_one() -> None:
    """Only that of other exposures of which all was refused: the oldest of these goes."""
    exposures = Exposures(kept=3)
    exposures.added(transfer(1, 0, ("pending",)))
    exposures.recorded(after(2, 1, 1.0, tags=("stored",)))
    exposures.recorded(failed(3, start_usec=START_USEC + 2 * S, tags=("failed",)))
    for number in range(100):
        exposures.refused(refusal(tag=f"r{number}"), START_USEC + (number + 3) * S)
    assert [one["name"] for one in shown(exposures)] == ["pending", "stored", "failed", "r97", "r98", "r99"]
    exposures.added(transfer(4, 200, ("r98",)))
    exposures.added(transfer(5, 201, ("new",)))
    assert [one["name"] for one in shown(exposures)] == ["failed", "r97", "r98", "r99", "new"]
    exposures.refused(refusal(tag="old"), START_USEC - S)
    assert len(shown(exposures)) == 6


def test_an_accepted_one_that_is_over_the_limit_keeps_no_older_refused_one_out() -> None:
    """There is one too many because a file of an exposure that was refused was accepted after all."""
    exposures = Exposures(kept=2)
    for number, tag in enumerate(("a", "b")):
        exposures.added(transfer(number, number, (tag,)))
    exposures.refused(refusal(tag="c"), START_USEC + 2 * S)
    exposures.added(transfer(3, 3, ("c",)))
    exposures.refused(refusal(tag="older"), START_USEC - S)
    assert [one["name"] for one in shown(exposures)] == ["older", "b", "c"]


def refusal(**changes: Any) -> Refusal:
    given = {"code": "NotReadable", "text": "no", "file": "/f", "destination": "raw/night/f", "tag": "exposure-1"}
    return Refusal(**{**given, **changes})


def test_a_refused_file_makes_its_exposure_incomplete() -> None:
    """With the first reason; the same file once, however often it is refused; until it is accepted after all."""
    losses: list[Loss] = []
    exposures = Exposures(on_loss=losses.append)
    exposures.recorded(after(1, 0, 1.0))
    exposures.refused(refusal(), START_USEC + S)
    exposures.refused(refusal(), START_USEC + S)
    exposures.refused(refusal(destination="raw/night/g", code="BadRequest", text="long"), START_USEC + S)
    (one,) = shown(exposures)
    assert (one["stored"], one["failed"], one["refused"], one["verdict"]) == (1, 0, 2, "incomplete")
    assert one["reason"] == "NotReadable: no"
    assert [(loss.what, loss.missing.outcome) for loss in losses] == [
        ("raw/night/f", "refused"), ("raw/night/f", "refused"), ("raw/night/g", "refused"),
    ]  # fmt: skip
    exposures.added(transfer(1, 2.0))
    assert (shown(exposures, 3)[0]["refused"], shown(exposures, 3)[0]["reason"]) == (1, "BadRequest: long")


def test_a_refusal_belongs_where_its_tag_or_its_key_says(exposures: Exposures) -> None:
    """What says neither is in no exposure."""
    for number, changes in enumerate(
        ({}, {"tag": ""}, {"tag": "", "destination": ""}, {"destination": ""}, {"tag": "", "destination": "raw"})
    ):
        exposures.refused(refusal(**changes), START_USEC + number)
    names = [(one["name"], one["tagged"], one["refused"]) for one in shown(exposures)]
    assert names == [("exposure-1", True, 2), ("raw/night/", False, 1)]


def test_a_request_that_was_not_understood_is_in_no_exposure(exposures: Exposures) -> None:
    """Its destination is that of a malformed line; only its tag counts."""
    exposures.refused(refusal(code="BadRequest", tag="", destination="http:/raw/h"), START_USEC)
    exposures.refused(refusal(code="BadRequest"), START_USEC)
    assert [one["name"] for one in shown(exposures)] == ["exposure-1"]


def test_what_was_kept_is_known_again() -> None:
    """The counts as they were, with what is pending; a failure that the spool lists is not counted twice."""
    before = Exposures()
    before.recorded(after(1, 0, 1.0))
    before.recorded(failed(2, key="night/g"))
    exposures = Exposures(list(before))
    exposures.failed_before(transfer(2, key="night/g"), "other")
    exposures.failed_before(transfer(3, key="night/h"), "NoSuchBucket: none")
    exposures.added(transfer(4, 0.5))
    (one,) = shown(exposures, 2)
    assert (one["stored"], one["failed"], one["pending"], one["reason"]) == (1, 2, 1, "NoSuchBucket: it is not there")


def test_an_exposure_keeps_a_bounded_number_of_missing_files(exposures: Exposures) -> None:
    for number in range(MISSING_KEPT + 10):
        exposures.refused(refusal(destination=f"raw/{number}"), START_USEC)
    assert shown(exposures)[0]["refused"] == MISSING_KEPT
    (one,) = exposures
    one.put_missing("raw/0", Missing("failed", "again"))
    assert one.reason == "again"


def test_each_change_is_announced() -> None:
    """When it is over, and not before it can be read: stored, failed, refused, withdrawn."""
    seen: list[tuple[bool, str]] = []
    exposures = Exposures()
    exposures.on_change = seen.append
    exposures.added(transfer(1))
    assert not seen
    exposures.removed(transfer(1))
    exposures.recorded(after(1, 0, 1.0, tags=("a", "b")))
    exposures.recorded(failed(2, tags=("c",)))
    exposures.refused(refusal(tag="d"), START_USEC)
    assert [name for _, name in seen] == ["exposure-1", "a", "b", "c", "d"]
