"""The exposures in the spool's file: counted once whatever crashes, the last ones kept, never more than their bound."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_transfer import transfer
from lab.records import START_USEC, failed, record

from s3daemon.model.exposure import KEPT, MARKS_KEPT, MISSING_KEPT, Exposure, Exposures, Loss, Missing, mark_of
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.exposures import ENDED_KEPT, KeptExposures, SaveLoss
from s3daemon.spool.rows import Delete, Entry, Insert, compact
from s3daemon.spool.spool import Spool

S = 1_000_000


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpoolFile]:
    opened = SpoolFile(tmp_path / "spool.db", create=True)
    yield opened
    opened.close()


def stored(number: int, **changes: object) -> TransferRecord:
    return record(number, **{"key": f"night/{number}.fits"} | changes)


def test_a_stored_transfer_is_counted_by_the_commit_that_removes_its_row(file: SpoolFile) -> None:
    """For each of its tags; of one commit, so that a crash leaves both or neither."""
    file.commit([[Insert(Entry(7, transfer(7), 1.0))]])
    one = stored(7, tags=("a", "b"), total_usec=2 * S)
    file.commit([[Delete(7, one)]])
    kept = file.kept()
    assert file.entries() == []
    mark = {mark_of("raw/night/7.fits")}
    assert kept.exposures == tuple(
        Exposure(name, True, START_USEC, START_USEC + 2 * S, 1, 8_000_000, marks=mark) for name in "ab"
    )
    assert kept.ended == ((7, one.transfer_id),)
    again = stored(8, tags=("a",), start_usec=START_USEC - S, total_usec=S)
    file.commit([[Delete(0, again)]])
    first, _ = sorted(file.kept().exposures, key=lambda each: each.name)
    assert (first.stored, first.first_usec, first.last_usec) == (2, START_USEC - S, START_USEC + 2 * S)
    assert file.kept().ended == kept.ended  # it never had a row


def test_a_destination_counts_once_in_an_exposure(file: SpoolFile) -> None:
    """However often it is stored, so that a file sent twice hides no other; but the last time is that of the last."""
    one, again = stored(1, tags=("a",)), stored(2, tags=("a",), key="night/1.fits", total_usec=9 * S)
    file.commit([[Delete(0, one), Delete(0, again)]])
    (kept,) = file.kept().exposures
    assert (kept.stored, kept.size_bytes, kept.last_usec) == (1, 8_000_000, START_USEC + 9 * S)
    file.commit([[Delete(0, stored(number, tags=())) for number in (3, 3, 4)]])
    assert [each.stored for each in file.kept().exposures if not each.tagged] == [2], "without a tag too"


def test_beyond_a_number_each_counts(file: SpoolFile) -> None:
    """A tag for a whole night keeps a bounded number of marks."""
    file.commit([[Delete(0, stored(number, tags=("a",))) for number in range(MARKS_KEPT + 10)]])
    file.commit([[Delete(0, stored(number, tags=("a",))) for number in (0, MARKS_KEPT + 1)]])
    (kept,) = file.kept().exposures
    assert (kept.stored, len(kept.marks)) == (MARKS_KEPT + 12, MARKS_KEPT)


def loss(what: str, name: str = "a", outcome: str = "refused", at_usec: int = START_USEC) -> SaveLoss:
    return SaveLoss(Loss(((True, name),), at_usec, what, Missing(outcome, f"Code: {what}")))


def test_missing_files_are_kept_until_they_are_stored(file: SpoolFile) -> None:
    file.commit([[loss("raw/x"), loss("raw/night/f.fits", outcome="failed"), loss("raw/x")]])
    (one,) = file.kept().exposures
    assert (one.refused, one.failed, one.stored, one.last_usec) == (1, 1, 0, None)
    file.commit([[Delete(0, stored(1, tags=("a",), key="night/f.fits"))]])
    (one,) = file.kept().exposures
    assert (one.stored, one.missing) == (1, {"raw/x": Missing("refused", "Code: raw/x")})


def test_what_is_kept_is_what_is_known_before_a_restart(file: SpoolFile) -> None:
    """When the first request came, though others ended sooner; and why the first file is missing."""

    def save(loss: Loss) -> None:
        file.commit([[SaveLoss(loss)]])

    known = Exposures(on_loss=save)

    def end(one: TransferRecord) -> None:
        known.recorded(one)
        if one.stored:
            file.commit([[Delete(0, one)]])

    def later(seconds: int) -> int:
        return START_USEC + seconds * S

    end(stored(1, tags=("a",), start_usec=later(5)))
    end(failed(2, tags=("a",), key="night/2.fits", start_usec=later(0)))
    end(failed(3, tags=("a",), key="night/3.fits", start_usec=later(1)))
    known.refused(Refusal(code="NoSuchFile", text="gone", destination="raw/night/2.fits", tag="a"), later(9))
    for number in range(MISSING_KEPT):
        known.refused(Refusal(code="NoSuchFile", text="gone", destination=f"raw/b/{number}", tag="a"), later(9))
    end(failed(4, tags=("a",), key="night/3.fits", start_usec=later(10)))
    assert file.kept().exposures == tuple(known)
    (one,) = known
    assert (one.first_usec, one.reason, len(one.missing)) == (later(0), "NoSuchFile: gone", MISSING_KEPT)
    assert one.missing["raw/night/3.fits"].outcome == "failed"


def test_the_last_ones_are_kept(file: SpoolFile) -> None:
    """Of exposures, with what is missing of them, of files missing in one, and of transfers that are stored."""
    file.commit([[loss("raw/x", f"e{number}", at_usec=number)] for number in range(KEPT + 20)])
    kept = file.kept()
    assert [one.name for one in kept.exposures] == [f"e{number}" for number in range(20, KEPT + 20)]
    assert all(one.refused == 1 for one in kept.exposures)
    file.commit([[loss(f"raw/{number}", "big", at_usec=KEPT + 20)] for number in range(MISSING_KEPT + 9)])
    assert file.kept().exposures[-1].refused == MISSING_KEPT
    count = stored(1)
    file.commit([[Delete(seq, count) for seq in range(1, ENDED_KEPT + 50)]])
    assert [seq for seq, _ in file.kept().ended] == list(range(50, ENDED_KEPT + 50))


def test_nothing_is_left_of_an_exposure_that_is_forgotten(
    connections: list[sqlite3.Connection], file: SpoolFile
) -> None:
    """Its id may be given to another one, and its files would be missing there."""
    for number in range(KEPT + 20):
        count = stored(number, tags=(f"e{number}",), start_usec=START_USEC + number)
        file.commit([[Delete(0, count), loss("raw/x", f"e{number}", at_usec=START_USEC + number)]])
    for table in ("missing", "counted"):
        left = f"SELECT count(*) FROM {table} WHERE exposure NOT IN (SELECT id FROM exposure)"
        assert connections[-1].execute(left).fetchone() == (0,)


def test_refused_requests_take_the_place_of_no_accepted_one(file: SpoolFile) -> None:
    """Each kind has its own limit."""
    file.commit([[Delete(0, stored(1, tags=("stored",))), loss("raw/x", "failed", "failed")]])
    file.commit([[loss("raw/x", f"r{number}", at_usec=START_USEC + number + 1)] for number in range(KEPT + 20)])
    names = {one.name for one in file.kept().exposures}
    assert names == {"stored", "failed"} | {f"r{number}" for number in range(20, KEPT + 20)}


def test_counts_are_never_merged_while_the_disk_fails() -> None:
    """What is retained loses no count, and no row that is removed comes back."""
    counts = [stored(number) for number in range(3)]
    removals = [Delete(0, counts[0]), Delete(0, counts[1]), Delete(5, counts[2])]
    assert compact([*removals, loss("x"), loss("x"), loss("y")]) == [*removals, loss("x"), loss("y")]


def test_a_damaged_file_gives_its_exposures_to_the_next(file: SpoolFile, tmp_path: Path) -> None:
    one = Exposure("a", True, 1, 2, 3, 4, {"raw/x": Missing("failed", "r")}, marks={1, -(1 << 63)})
    kept = KeptExposures((one,), ((3, "0" * 16),))
    file.commit([[kept], [kept]])
    assert file.kept() == kept


def test_a_spool_knows_them_after_a_restart_and_after_a_crash(tmp_path: Path) -> None:
    """The crash is a copy of the files as they are: a transfer is either pending there or counted."""
    one, two = transfer(1), transfer(2)

    async def live() -> None:
        spool = Spool.open(tmp_path / "one")
        for each in (one, two):
            await spool.add(each, 1.0, attempt_started=True)
        spool.remove(one.id, stored(1, tags=("a",)))
        spool.save_loss(Loss(((True, "a"),), START_USEC, "raw/x", Missing("refused", "NoSuchFile: gone")))
        await spool.start_attempt(two)  # with all that came before it
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        spool.remove(two.id, stored(2, tags=("a",)))
        await spool.close()

    async def again(name: str, count: int) -> None:
        spool = Spool.open(tmp_path / name)
        (found,) = spool.kept.exposures
        assert (found.stored, found.reason) == (count, "NoSuchFile: gone")
        assert found.stored + len(spool.entries()) == 2
        await spool.close()

    asyncio.run(live())
    for name, count in (("one", 2), ("two", 1)):
        asyncio.run(again(name, count))
