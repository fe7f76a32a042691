"""Rows as values: what is written is read back, invalid rows are refused, and compacting changes no outcome."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.errors import RequestError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.rows import (
    COLUMNS,
    BeginUpload,
    Change,
    ClearFailures,
    Delete,
    EndUpload,
    Entry,
    Expire,
    Hint,
    Insert,
    MarkCompleting,
    MultipartUpload,
    SaveClock,
    SaveHint,
    SavePart,
    Update,
    UploadChange,
    compact,
    file_columns,
    from_row,
    tag_columns,
    to_row,
)

PLACE = Destination("tenant:bucket", "a//b ü%+.fits")
TRANSFER = Transfer("00ff" * 4, "/data/x y\udcff\n.fits", PLACE, ("night", "ü"), FileState(0, -1, 2**64 - 1, 2**63), 12)
ENTRY = Entry(7, TRANSFER, 1.5, 3, True, "SlowDown", "slow down", True, 2.5, True)


def test_a_row_is_read_as_it_was_written() -> None:
    row = to_row(ENTRY)
    assert from_row(row) == ENTRY
    assert len(row) == len(COLUMNS.split(","))
    assert row[2] == os.fsencode(TRANSFER.file)
    assert all(-(2**63) <= value < 2**63 for value in row if isinstance(value, int))  # what SQLite can hold


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("bucket", ""),
        ("key", "a\nb"),
        ("tags", "{"),
        ("tags", None),
        ("size_bytes", "many"),
        ("accepted_service", None),
    ],
)
def test_an_invalid_row_is_refused(column: str, value: object) -> None:
    row = list[object](to_row(ENTRY))
    row[COLUMNS.split(", ").index(column)] = value
    with pytest.raises((ValueError, TypeError, RequestError)):
        from_row(tuple(row))


def test_the_columns_of_tags_and_of_the_file_are_those_that_change() -> None:
    changed = dataclasses.replace(TRANSFER, tags=("a", "b"), file_state=FileState(1, 2, 3, 4))
    row = dict(zip(COLUMNS.split(", "), to_row(ENTRY), strict=True))
    new = {**row, **tag_columns(changed), **file_columns(changed)}
    assert from_row(tuple(new.values())) == dataclasses.replace(ENTRY, transfer=changed)


# A model of the table: seq -> row, destination of a row = its seq modulo 2.
Row = dict[str, object]
DESTINATIONS = (Destination("b", "0"), Destination("b", "1"))


def carry_out(table: dict[int, Row], change: Change) -> None:
    match change:
        case Insert(entry):
            table.setdefault(entry.seq, {"failed": entry.failed, "failed_active_s": entry.failed_active_s})
        case Update(seq, columns) if seq in table:
            table[seq] = {**table[seq], **columns}
        case Delete(seq):
            table.pop(seq, None)
        case ClearFailures(destination, before):
            for seq in [s for s in table if table[s]["failed"] and DESTINATIONS[s % 2] == destination and s < before]:
                del table[seq]


seqs = st.integers(0, 5)
changes = st.one_of(
    st.builds(Update, seqs, st.fixed_dictionaries({}, optional={"attempts": seqs, "client_notified": st.booleans()})),
    st.builds(Update, seqs, st.just({"failed": True})),
    st.builds(Delete, seqs),
    st.builds(ClearFailures, st.sampled_from(DESTINATIONS), seqs),
    st.builds(SaveClock, st.floats(0, 9)),
    st.builds(SaveHint, st.builds(Hint, st.just("https://store"), st.integers(0, 9))),
    st.builds(Expire, st.floats(0, 9)),
)


@given(st.lists(changes, max_size=30))
def test_compacting_loses_nothing(given_changes: list[Change]) -> None:
    """All that may differ: a failure that was cleared and then updated once more stays listed."""
    plain: dict[int, Row] = {seq: {"failed": False, "failed_active_s": 0.0} for seq in range(6)}
    short = {seq: dict(row) for seq, row in plain.items()}
    few = compact(given_changes)
    for change in given_changes:
        carry_out(plain, change)
    for change in few:
        carry_out(short, change)
    assert {seq: short[seq] for seq in plain} == plain
    assert all(short[seq]["failed"] for seq in short.keys() - plain.keys())


@given(st.lists(changes, max_size=300))
def test_compacting_bounds_what_is_kept(given_changes: list[Change]) -> None:
    """One for each row, for each row stored at each destination, one clock, one expiry."""
    assert len(compact(given_changes)) <= 6 + 2 * 6 + 2
    assert compact(compact(given_changes)) == compact(given_changes)


def test_the_last_saved_clock_counts() -> None:
    assert compact([SaveClock(1.0), Update(1, {"client_notified": True}), SaveClock(2.0)]) == [
        Update(1, {"client_notified": True}),
        SaveClock(2.0),
    ]


def upload(id_: str, size: int = 12) -> MultipartUpload:
    return MultipartUpload(id_, "http://store", "00ff" * 4, PLACE, size, "1-2", 5)


@pytest.mark.parametrize(("size", "lengths"), [(12, [5, 5, 2]), (10, [5, 5]), (1, [1])])
def test_parts_cover_the_file_and_only_the_last_is_shorter(size: int, lengths: list[int]) -> None:
    it = upload("u", size)
    numbers = range(1, it.count + 1)
    assert [it.length(n) for n in numbers] == lengths
    assert [it.offset(n) for n in numbers] == [0, 5, 10][: len(lengths)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpoolFile]:
    """A spool's file, empty before and after each test."""
    file = SpoolFile(tmp_path_factory.mktemp("spool") / "spool.db", create=True)
    yield file
    file.close()


def rows_after(file: SpoolFile, changes: list[UploadChange]) -> list[tuple[MultipartUpload, dict[int, str], bool]]:
    """The rows of uploads that `changes` leave in the empty file."""
    file.commit([changes])
    found = [(rows.upload, rows.etags, rows.completing) for rows in file.uploads()]
    file.commit([[EndUpload(id_) for id_ in "abc"]])
    assert file.uploads() == []
    return sorted(found, key=lambda rows: rows[0].id)


upload_ids = st.sampled_from("abc")
upload_changes = st.one_of(
    st.builds(SavePart, upload_ids, st.integers(1, 3), st.sampled_from(["x", "y"])),
    st.builds(MarkCompleting, upload_ids),
    st.builds(EndUpload, upload_ids),
    st.builds(BeginUpload, st.builds(upload, upload_ids, st.integers(10, 12))),
)


@given(st.lists(upload_changes, max_size=20))
def test_compacting_loses_nothing_of_uploads(file: SpoolFile, given_changes: list[UploadChange]) -> None:
    """Two stores may give one id, so an upload with the id of another, ended or not, may begin."""
    all_changes: list[UploadChange] = [*(BeginUpload(upload(id_)) for id_ in "abc"), *given_changes]
    few = [change for change in compact(all_changes) if isinstance(change, UploadChange)]
    assert rows_after(file, few) == rows_after(file, all_changes)
    assert len(few) <= 3 * (1 + 3 + 1)
