"""A damaged file: what can be read is carried over, the old one is kept, and a crash at any step loses nothing more."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

import s3daemon.spool.recovery
from s3daemon.errors import StartError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.database import SpoolFile, is_corrupt
from s3daemon.spool.exposures import KeptExposures
from s3daemon.spool.recovery import RecoverableFile
from s3daemon.spool.rows import (
    BeginUpload,
    Entry,
    Hint,
    Insert,
    MarkCompleting,
    MultipartUpload,
    SaveClock,
    SaveHint,
    SavePart,
)

ROWS = 2000
PAGE = 4096


def entry(seq: int) -> Entry:
    place = Destination("bucket", f"20261123/{seq:06d}.fits")
    return Entry(
        seq, Transfer(f"{seq:016x}", f"/data/20261123/{seq:06d}.fits", place, ("t",), FileState(1, 2, 3, 4), 5), 1.0
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound spool of some 100 pages, all of it in the file itself."""
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[Insert(entry(seq)) for seq in range(1, ROWS + 1)], [SaveClock(77.0)]])
    file.close()
    return path


def open_all(path: Path) -> tuple[list[Entry], float, int, bool]:
    file = RecoverableFile(path, create=True)
    found = file.use(lambda opened: (opened.entries(), opened.active_base_s, opened.last_seq))
    file.close()
    return *found, file.take_replaced()


def garbage(path: Path, page: int, pages: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(b"\xa5" * PAGE * pages)


def renamed(path: Path) -> list[str]:
    return sorted(other.name.removeprefix("spool.db.corrupt-") for other in path.parent.glob("spool.db.corrupt-*"))


def test_a_sound_file_is_left_alone(path: Path) -> None:
    entries, active_s, last, replaced = open_all(path)
    assert [row.seq for row in entries] == list(range(1, ROWS + 1))
    assert (active_s, last, replaced) == (77.0, ROWS, False)
    assert renamed(path) == []


def test_rows_around_a_damaged_page_are_carried_over(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = path.stat().st_size // PAGE // 2
    garbage(path, damaged, 3)
    before = path.read_bytes()
    with caplog.at_level(logging.ERROR):
        entries, active_s, last, replaced = open_all(path)
    assert replaced
    assert ROWS - 150 < len(entries) < ROWS
    assert entries == [entry(row.seq) for row in entries]
    assert (entries[0].seq, entries[-1].seq, active_s, last) == (1, ROWS, 77.0, ROWS)
    assert f"{len(entries)} transfers carried over, up to {ROWS - len(entries)} could not be read" in caplog.text
    (name,) = renamed(path)
    assert len(name) == len("20261123T010203Z")
    assert path.with_name(f"spool.db.corrupt-{name}").read_bytes() == before
    assert open_all(path) == (entries, active_s, last, False)


@pytest.mark.parametrize("keep", [0.9, 0.5, 0.1])
def test_a_truncated_file(path: Path, keep: float) -> None:
    pages = path.stat().st_size // PAGE
    kept = int(pages * keep)
    os.truncate(path, kept * PAGE)
    entries, _, _, replaced = open_all(path)
    assert replaced
    assert [row.seq for row in entries] == list(range(1, len(entries) + 1))
    assert len(entries) >= (kept - 9) * ROWS // pages  # the first pages hold no rows


@pytest.mark.parametrize("content", [b"this is not a database\n" * 1000, b"SQLite format 3\0" + b"\0" * 5000])
def test_not_a_database(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(b"nor is this")
    entries, active_s, _, replaced = open_all(path)
    assert (entries, active_s, replaced) == ([], 0.0, True)
    (name,) = {other.removesuffix("-wal") for other in renamed(path)}
    assert path.with_name(f"spool.db.corrupt-{name}").read_bytes() == content


@pytest.mark.parametrize("reads", [20, 500, 1_000_000])
def test_what_could_not_be_read_is_not_under_reported(
    path: Path, reads: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the search of a large file is given up."""
    monkeypatch.setattr(s3daemon.spool.recovery, "MAX_BAD_READS", reads)
    pages = path.stat().st_size // PAGE
    for page in range(10, pages, 3):
        garbage(path, page)
    with caplog.at_level(logging.ERROR):
        entries, *_ = open_all(path)
    assert f"{len(entries)} transfers carried over, up to {ROWS - len(entries)} could not be read" in caplog.text


def test_that_nothing_is_known_of_what_was_lost_is_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b"not a database" * 1000)
    with caplog.at_level(logging.ERROR):
        open_all(path)
    assert "0 transfers carried over, an unknown number could not be read" in caplog.text


def test_the_root_page_is_gone(path: Path) -> None:
    db = sqlite3.connect(path)
    (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'transfer'").fetchone()
    db.close()
    garbage(path, root - 1)
    entries, active_s, last, replaced = open_all(path)
    assert (entries, active_s, replaced) == ([], 77.0, True)
    assert last == 0


def test_damage_found_at_work_is_repaired_at_work(path: Path, connections: list[sqlite3.Connection]) -> None:
    file = RecoverableFile(path, create=True)
    assert len(file.use(SpoolFile.entries)) == ROWS
    file.close()
    file = RecoverableFile(path, create=True)
    file.use(lambda opened: opened.last_seq)
    connections[-1].execute("PRAGMA shrink_memory")  # or the pages would be served from memory
    garbage(path, path.stat().st_size // PAGE // 2, 3)
    survivors = file.use(SpoolFile.entries)
    assert file.take_replaced()
    assert not file.take_replaced()
    assert ROWS - 150 < len(survivors) < ROWS
    file.use(lambda opened: opened.commit([[Insert(entry(ROWS + 1))]]))
    file.close()
    assert open_all(path)[0] == [*survivors, entry(ROWS + 1)]


@pytest.mark.parametrize("suffixes", [["", "-wal"], [""], ["-wal"]])
def test_files_that_are_removed_at_work_are_written_anew(
    path: Path, suffixes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever was committed is there after a crash: with what the old file alone had."""
    file = RecoverableFile(path, create=True)
    hint, kept = Hint("http://store", 10**9, "bucket"), KeptExposures(ended=((1, "0" * 16),))
    failed = dataclasses.replace(entry(ROWS + 1), failed=True)
    file.use(lambda opened: opened.commit([[Insert(failed), SaveHint(hint), SaveClock(78.0), kept]]))
    for suffix in suffixes:
        Path(f"{path}{suffix}").unlink()
    file.use(lambda opened: opened.commit([[Insert(entry(ROWS + 2))]]))
    assert file.take_replaced()
    assert "removed or replaced while the daemon runs: 2001 transfers written anew" in caplog.text
    shutil.copytree(path.parent, crashed := path.parent / "crashed")
    file.close()
    copy = SpoolFile(crashed / path.name, create=False)
    assert copy.entries() == [*(entry(seq) for seq in range(1, ROWS + 1)), failed, entry(ROWS + 2)]
    assert (copy.hint, copy.active_base_s, copy.kept()) == (hint, 78.0, kept)
    copy.close()


def test_files_that_cannot_be_written_anew_stay_open(path: Path) -> None:
    """The directory is gone: nothing is committed, and nothing is lost before it is back."""
    file = RecoverableFile(path, create=True)
    file.use(lambda opened: opened.last_seq)
    path.parent.rename(away := path.parent.with_name("away"))
    with pytest.raises(sqlite3.OperationalError):
        file.use(lambda opened: opened.commit([[Insert(entry(ROWS + 1))]]))
    away.rename(path.parent)
    path.unlink()
    file.use(lambda opened: opened.commit([[Insert(entry(ROWS + 1))]]))
    file.close()
    assert len(open_all(path)[0]) == ROWS + 1


def test_a_damaged_file_keeps_what_ended_and_the_hint(path: Path) -> None:
    """Clients of transfers stored just before are answered, and nothing is found out again."""
    hint, kept = Hint("http://store", 10**9, "bucket"), KeptExposures(ended=((1, "0" * 16), (2, "1" * 16)))
    file = SpoolFile(path, create=True)
    file.commit([[SaveHint(hint), kept]])
    file.close()
    garbage(path, path.stat().st_size // PAGE // 2, 3)
    recoverable = RecoverableFile(path, create=True)
    found = recoverable.use(lambda opened: (opened.hint, opened.kept()))
    assert recoverable.take_replaced()
    assert found == (hint, kept)
    recoverable.close()


def test_a_tool_repairs_nothing(path: Path) -> None:
    garbage(path, path.stat().st_size // PAGE // 2)
    file = RecoverableFile(path, create=False)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        file.use(SpoolFile.entries)
    assert is_corrupt(caught.value)
    file.close()
    assert renamed(path) == []


@pytest.mark.skipif(sqlite3.sqlite_version_info < (3, 35), reason="this SQLite cannot drop a column")
def test_a_damaged_file_of_an_older_version_is_read(path: Path) -> None:
    """Though it lacks a column."""
    db = sqlite3.connect(path)
    db.executescript("ALTER TABLE transfer DROP COLUMN changed; PRAGMA user_version = 6")
    db.close()
    os.truncate(path, path.stat().st_size - 3 * PAGE)
    entries, active_s, _, replaced = open_all(path)
    assert (active_s, replaced) == (77.0, True)
    assert ROWS - 150 < len(entries) < ROWS


def test_two_in_one_second_have_two_names(path: Path) -> None:
    for _ in range(3):
        path.write_bytes(b"not a database" * 100)
        assert open_all(path)[3]
    assert len(renamed(path)) == 3


def test_a_newer_spool_is_not_taken_for_a_damaged_one(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StartError):
        open_all(path)
    assert renamed(path) == []


def test_a_half_built_replacement_is_removed(path: Path) -> None:
    Path(f"{path}.new").write_bytes(b"half")
    Path(f"{path}.new-wal").write_bytes(b"half")
    assert len(open_all(path)[0]) == ROWS
    assert sorted(other.name for other in path.parent.iterdir()) == ["spool.db"]


@pytest.mark.parametrize("moved", [[], ["-wal"], ["-wal", ""]])
def test_an_interrupted_replacement_is_finished(path: Path, tmp_path: Path, moved: list[str]) -> None:
    """The crash came after step 2 of the module's docstring, or somewhere within step 3."""
    shutil.copy(path, f"{path}.rescued")
    path.write_bytes(b"damaged")
    Path(f"{path}-wal").write_bytes(b"its WAL")
    for suffix in moved:
        Path(f"{path}{suffix}").rename(tmp_path / f"spool.db.corrupt-20261123T010203Z{suffix}")
    entries, _, _, replaced = open_all(path)
    assert len(entries) == ROWS
    assert not replaced
    kept = {other.read_bytes() for other in tmp_path.glob("spool.db.corrupt-*")}
    assert kept == {b"damaged", b"its WAL"}
    assert not Path(f"{path}.rescued").exists()


def upload(id_: str) -> MultipartUpload:
    return MultipartUpload(id_, "http://store", "00ff" * 4, Destination("bucket", "key"), 12, "1-2", 5)


def test_uploads_are_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[BeginUpload(upload("u")), SavePart("u", 2, "etag"), MarkCompleting("u")]])
    file.close()
    db = sqlite3.connect(path)
    db.execute("DROP TABLE state")
    db.close()
    recoverable = RecoverableFile(path, create=True)
    (rows,) = recoverable.use(SpoolFile.uploads)
    assert recoverable.take_replaced()
    assert (rows.upload, rows.etags, rows.completing) == (upload("u"), {2: "etag"}, True)
    recoverable.close()


def test_damaged_uploads_cost_no_transfer(path: Path) -> None:
    """A damaged page of uploads is a file that is replaced; the transfers are carried over without their uploads."""
    file = SpoolFile(path, create=True)
    file.commit([[BeginUpload(upload(f"{n:04}")) for n in range(500)]])
    file.close()
    db = sqlite3.connect(path)
    (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'upload'").fetchone()
    db.close()
    with path.open("r+b") as raw:
        raw.seek((root - 1) * PAGE)
        raw.write(random.Random(1).randbytes(PAGE))
    recoverable = RecoverableFile(path, create=True)
    assert recoverable.use(SpoolFile.uploads) == []
    assert recoverable.take_replaced()
    assert len(recoverable.use(SpoolFile.entries)) == ROWS
    recoverable.close()


def test_an_emptied_file_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite takes it for a new database. Where there is no file nothing can be lost."""
    path.write_bytes(b"")
    assert open_all(path)[0] == []
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "they are lost" in caplog.messages[0]
    path.unlink()
    caplog.clear()
    open_all(path)
    assert caplog.messages == []


def test_an_empty_file_is_left_to_the_daemon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tool that opened it would make it a sound spool, and nobody would hear that there may have been transfers."""
    path = tmp_path / "spool.db"
    path.touch()
    with pytest.raises(StartError, match=r"spool\.db is empty; if it held transfers, they are lost") as caught:
        RecoverableFile(path, create=False).use(SpoolFile.entries)
    assert (caught.value.code, path.stat().st_size, caplog.messages) == ("SpoolCorrupt", 0, [])
    assert open_all(path) == ([], 0.0, 0, False)
    assert caplog.messages == [f"{path} is empty; if it held transfers, they are lost: send their files again"]
