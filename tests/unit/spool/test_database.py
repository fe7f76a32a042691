"""The SQLite file: its schema by version, and that a commit is whole or nothing."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s3daemon.errors import StartError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.database import FIRST_VERSION, LAST_VERSION, Damaged, SpoolFile, is_corrupt
from s3daemon.spool.rows import (
    BeginUpload,
    ClearFailures,
    Delete,
    Entry,
    Expire,
    Hint,
    Insert,
    MultipartUpload,
    SaveClock,
    SaveHint,
    Update,
)

PLACE = Destination("bucket", "key")
#: A file as the first version that was released left it.
SCHEMA_4 = """
CREATE TABLE transfer (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, file BLOB NOT NULL, bucket TEXT NOT NULL,
    key TEXT NOT NULL, tags TEXT NOT NULL, size_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL, device INTEGER NOT NULL, accepted_usec INTEGER NOT NULL,
    accepted_service REAL NOT NULL, attempts INTEGER NOT NULL, begun INTEGER NOT NULL, code TEXT NOT NULL,
    text TEXT NOT NULL, failed INTEGER NOT NULL, failed_service REAL NOT NULL, told INTEGER NOT NULL,
    ctime_ns INTEGER, md5 TEXT NOT NULL DEFAULT '');
CREATE INDEX transfer_overtaken ON transfer (bucket, key) WHERE failed = 1;
CREATE TABLE state (service REAL NOT NULL);
CREATE TABLE upload (
    id TEXT PRIMARY KEY, endpoint TEXT NOT NULL, transfer_id TEXT NOT NULL, bucket TEXT NOT NULL,
    key TEXT NOT NULL, size_bytes INTEGER NOT NULL, mark TEXT NOT NULL, part_bytes INTEGER NOT NULL,
    completing INTEGER NOT NULL);
CREATE TABLE part (
    upload_id TEXT NOT NULL, number INTEGER NOT NULL, etag TEXT NOT NULL,
    PRIMARY KEY (upload_id, number)) WITHOUT ROWID;
CREATE TABLE exposure (
    id INTEGER PRIMARY KEY, tagged INTEGER NOT NULL, name TEXT NOT NULL, first_usec INTEGER NOT NULL,
    last_usec INTEGER, stored INTEGER NOT NULL, size_bytes INTEGER NOT NULL, UNIQUE (tagged, name));
CREATE TABLE missing (
    exposure INTEGER NOT NULL, destination TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (exposure, destination));
CREATE TABLE ended (seq INTEGER PRIMARY KEY, id TEXT NOT NULL);
INSERT INTO transfer VALUES
    (1, '0000000000000001', x'2f646174612f31', 'bucket', 'key', '[]', 1, 2, 3, 4, 5,
        1.0, 0, 0, '', '', 1, 9.0, 0, 6, '0f'),
    (2, '0000000000000002', x'2f646174612f32', 'bucket', 'key', '[]', 1, 2, 3, 4, 5,
        1.0, 0, 0, '', '', 0, 0.0, 0, NULL, '');
UPDATE sqlite_sequence SET seq = 7;
INSERT INTO state VALUES (77.0);
INSERT INTO upload VALUES ('u', 'http://store', 'id', 'bucket', 'key', 12, '1-2', 5, 0);
INSERT INTO exposure VALUES (1, 1, 'night', 5, 6, 2, 3000);
PRAGMA user_version = 4;
"""
UPLOAD = MultipartUpload("u", "http://store", "id", PLACE, 12, "1-2", 5)


def entry(seq: int, *, failed: bool = False, failed_active_s: float = 0.0) -> Entry:
    transfer = Transfer(f"{seq:016x}", f"/data/{seq}", PLACE, (), FileState(1, 2, 3, 4, 6), 5)
    return Entry(seq, transfer, 1.0, failed=failed, failed_active_s=failed_active_s)


def seqs(file: SpoolFile) -> list[int]:
    return [row.seq for row in file.entries()]


def test_a_new_file_has_the_newest_schema(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    path = tmp_path / "what? 100%.db"
    file = SpoolFile(path, create=True)
    assert (file.entries(), file.active_base_s, file.last_seq) == ([], 0.0, 0)
    assert connections[-1].execute("PRAGMA synchronous").fetchone() == (
        2,
    )  # FULL: what no test without a power cut can see
    assert not Path(f"{path}-shm").exists()
    file.close()
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (LAST_VERSION,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


@pytest.mark.parametrize("answer", ["SELECT 'delete'", "SELECT 'wal' UNION ALL SELECT abs(-9223372036854775808)"])
def test_a_file_without_a_wal_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A disk error in the change of mode leaves a journal, with which no later fault of the disk would end."""

    class Stubborn(sqlite3.Connection):
        """Keeps its mode; an error comes at the end of the statement, as where its commit fails."""

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            return super().execute(answer if "journal_mode" in sql else sql, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Stubborn))
    with pytest.raises(sqlite3.Error):
        SpoolFile(tmp_path / "spool.db", create=True)


def test_a_spool_of_the_oldest_schema_is_read(tmp_path: Path) -> None:
    """Rows are as they were; the one of a file whose change time was not noted is of another state than that file."""
    path = tmp_path / "spool.db"
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA_4)
    db.close()
    file = SpoolFile(path, create=False)
    later = dataclasses.replace(entry(2).transfer, file_state=FileState(1, 2, 3, 4, 0))
    assert file.entries() == [
        dataclasses.replace(entry(1, failed=True, failed_active_s=9.0), sent_etag="0f"),
        dataclasses.replace(entry(2), transfer=later),
    ]
    assert [rows.upload for rows in file.uploads()] == [UPLOAD]
    assert [one.name for one in file.kept().exposures] == ["night"]
    assert (file.active_base_s, file.last_seq, file.hint) == (77.0, 7, Hint())
    file.commit([[Insert(entry(8)), BeginUpload(UPLOAD), SaveHint(Hint("http://store"))]])
    file.close()
    file = SpoolFile(path, create=False)
    assert (seqs(file), file.hint) == ([1, 2, 8], Hint("http://store"))
    file.close()


@pytest.mark.parametrize("version", [1, FIRST_VERSION - 1, LAST_VERSION + 1, 99])
def test_another_schema_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "spool.db"
    SpoolFile(path, create=True).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StartError) as caught:
        SpoolFile(path, create=True)
    assert caught.value.code == "SpoolNewer"
    assert f"schema {version}, this s3daemon knows {FIRST_VERSION} to {LAST_VERSION}" in caught.value.text
    assert path.read_bytes() == before


def test_no_file_is_created_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        SpoolFile(tmp_path / "spool.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_each_change_does_what_the_table_says(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "spool.db", create=True)
    rows = [
        entry(1),
        entry(2, failed=True, failed_active_s=10.0),
        entry(3, failed=True, failed_active_s=20.0),
        entry(4),
    ]
    assert file.commit([[Insert(row) for row in rows]]) == [[]]
    assert file.entries() == rows
    assert file.entries(2, 3) == rows[1:3]
    assert file.commit([[Expire(10.0), Expire(20.0)], [Update(4, {"failed": True, "failed_active_s": 30.0})]]) == [
        [rows[1].transfer.id],
        [],
    ]
    assert seqs(file) == [1, 3, 4]
    assert file.commit([[ClearFailures(PLACE, 3)]]) == [[]], "a failure that is newer than what was stored stays"
    gone = file.commit([[ClearFailures(Destination("bucket", "other"), 5), ClearFailures(PLACE, 5)]])
    assert gone == [[rows[2].transfer.id, rows[3].transfer.id]]
    file.commit([[Delete(1), Delete(77), Update(77, {"client_notified": True}), SaveClock(12.5)]])
    file.close()
    file = SpoolFile(tmp_path / "spool.db", create=False)
    assert (file.entries(), file.active_base_s) == ([], 12.5)
    assert file.last_seq == 4  # though the row is gone
    file.close()


def test_the_last_hint_is_kept(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "spool.db", create=True)
    assert file.hint == Hint()
    hint = Hint("https://store", 994_000_000, "tenant:images")
    file.commit([[SaveHint(Hint("https://other", 1_000_000, "one")), SaveHint(hint), SaveClock(3.0)]])
    file.close()
    file = SpoolFile(tmp_path / "spool.db", create=False)
    assert (file.hint, file.active_base_s) == (hint, 3.0)
    file.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [("rate_bps", value) for value in (-1, 1, 10**13, "fast", 1.5, b"1000000")]
    + [("bucket", value) for value in ("a/b", "a\n", b"\xff", "x" * 5000)]
    + [("endpoint", "CAST(x'ff' AS TEXT)")],
)
def test_a_damaged_hint_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, column: str, value: object
) -> None:
    """It is found anew, and the journal has one line."""
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[SaveClock(12.5), SaveHint(Hint("https://store", 994_000_000, "images")), Insert(entry(1))]])
    file.close()
    with sqlite3.connect(path) as db:
        if column == "endpoint":
            db.execute(f"UPDATE state SET endpoint = {value}")
        else:
            db.execute(f"UPDATE state SET {column} = ?", (value,))
    db.close()
    file = SpoolFile(path, create=False)
    assert (file.hint, file.active_base_s, seqs(file)) == (Hint(), 12.5, [1])
    assert ["it is found anew" in message for message in caplog.messages] == [True]
    file.commit([[SaveHint(Hint("https://store", 5_000_000))]])
    file.close()
    file = SpoolFile(path, create=False)
    assert file.hint == Hint("https://store", 5_000_000)
    file.close()


def test_a_spool_without_its_state_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    SpoolFile(path, create=True).close()
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM state")
    db.close()
    with pytest.raises(Damaged, match="the table state is empty"):
        SpoolFile(path, create=False)


def test_a_bad_change_does_not_spoil_its_commit(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "spool.db", create=True)
    again = Insert(entry(1))
    results = file.commit([[again], [again], [Update(1, {"text": "\udcff"})], [SaveClock(2**70)], [Insert(entry(2))]])
    assert [type(result) for result in results] == [
        list,
        sqlite3.IntegrityError,
        UnicodeEncodeError,
        OverflowError,
        list,
    ]
    assert seqs(file) == [1, 2]
    assert file.commit([[Insert(entry(1), if_missing=True)]]) == [[]]
    file.close()


def test_a_failed_commit_leaves_no_trace_in_later_ones(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    """The disk is as full as `max_page_count` says: to SQLite that is the same error."""
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[Insert(entry(1))]])
    connections[-1].execute("PRAGMA max_page_count = 10")
    with pytest.raises(sqlite3.OperationalError) as caught:
        file.commit([[Insert(entry(seq))] for seq in range(2, 5000)])
    assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
    assert not is_corrupt(caught.value)
    file.commit([[SaveClock(3.0)]])
    assert seqs(file) == [1]
    file.close()
    file = SpoolFile(path, create=False)
    assert seqs(file) == [1]
    file.close()


def test_an_interrupted_commit_is_undone(tmp_path: Path) -> None:
    file = SpoolFile(tmp_path / "spool.db", create=True)

    class Interrupted(list[list[Insert]]):
        def __iter__(self) -> Iterator[list[Insert]]:
            yield [Insert(entry(1))]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        file.commit(Interrupted())
    file.commit([[Insert(entry(2))]])
    assert seqs(file) == [2]
    file.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE transfer SET bucket = ''",
        "UPDATE upload SET size_bytes = 0",
        "UPDATE upload SET part_bytes = 'many'",
        "UPDATE upload SET bucket = ''",
        "UPDATE transfer SET key = CAST(x'ff' AS TEXT)",
        "DROP TABLE state",
        "DELETE FROM state",
    ],
)
def test_invalid_rows_are_damage(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[Insert(entry(1)), BeginUpload(UPLOAD)]])
    file.close()
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    with pytest.raises(Damaged) as caught:  # noqa: PT012 - opening or reading: either may notice
        file = SpoolFile(path, create=False)
        try:
            file.entries()
            file.uploads()
        finally:
            file.close()
    assert is_corrupt(caught.value)


def test_failures_are_found_without_reading_the_rest(tmp_path: Path, connections: list[sqlite3.Connection]) -> None:
    file = SpoolFile(tmp_path / "spool.db", create=True)
    file.commit([[Insert(entry(seq, failed=seq % 3 == 0)) for seq in range(1, 10)]])
    assert file.failures() == [row for row in file.entries() if row.failed]
    assert [row.seq for row in file.failures()] == [3, 6, 9]
    assert file.count_failures(2) == (3, file.failures()[1:])
    query = "SELECT seq FROM transfer INDEXED BY transfer_overtaken WHERE failed = 1"
    (plan, *_) = connections[-1].execute(f"EXPLAIN QUERY PLAN {query}")
    assert "USING" in plan[3]
    assert "transfer_overtaken" in plan[3]
    file.close()
