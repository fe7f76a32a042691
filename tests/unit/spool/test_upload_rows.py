"""Rows of uploads: read as they were written, told from nonsense, compacted without loss, saved from a damaged file."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.model.request import Destination
from s3daemon.spool.database import Damaged, SpoolFile
from s3daemon.spool.recovery import RecoverableFile
from s3daemon.spool.rows import compact
from s3daemon.spool.upload_rows import (
    SCHEMA,
    BeginUpload,
    EndUpload,
    MarkCompleting,
    MultipartUpload,
    SavePart,
    UploadChange,
    carry_out,
    read,
)

Rows = list[tuple[MultipartUpload, dict[int, str], bool]]


def upload(id_: str, size: int = 12) -> MultipartUpload:
    return MultipartUpload(id_, "http://store", "00ff" * 4, Destination("tenant:bucket", "a//b ü"), size, "1-2", 5)


def after(changes: list[UploadChange]) -> Rows:
    """What a spool holds after these."""
    db = sqlite3.connect(":memory:")
    for statement in SCHEMA:
        db.execute(statement)
    for change in changes:
        carry_out(db.execute, change)
    found = [(rows.upload, rows.etags, rows.completing) for rows in read(db.execute)]
    db.close()
    return sorted(found, key=lambda rows: rows[0].id)


def test_where_its_parts_lie() -> None:
    """They cover the file, and only the last is shorter."""
    for size, lengths in ((12, [5, 5, 2]), (10, [5, 5]), (1, [1])):
        it = upload("u", size)
        numbers = range(1, it.count + 1)
        assert [it.length(n) for n in numbers] == lengths
        assert [it.offset(n) for n in numbers] == [0, 5, 10][: len(lengths)]


ids = st.sampled_from("abc")
changes = st.lists(
    st.one_of(
        st.builds(SavePart, ids, st.integers(1, 3), st.sampled_from(["x", "y"])),
        st.builds(MarkCompleting, ids),
        st.builds(EndUpload, ids),
    ),
    max_size=20,
)


@given(changes)
def test_compacting_loses_nothing(given_changes: list[UploadChange]) -> None:
    """A store names no two uploads alike, so what is over does not begin again."""
    begun: list[UploadChange] = [BeginUpload(upload(id_)) for id_ in "abc"]
    few = [change for change in compact([*begun, *given_changes]) if isinstance(change, UploadChange)]
    assert after(few) == after([*begun, *given_changes])
    assert len(few) <= 3 * (1 + 3 + 1)


@pytest.mark.parametrize("damage", ["size_bytes = 0", "part_bytes = 'many'", "bucket = ''"])
def test_nonsense_is_damage(tmp_path: Path, damage: str) -> None:
    """A row that no daemon writes."""
    file = SpoolFile(tmp_path / "spool.db", create=True)
    file.commit([[BeginUpload(upload("u"))]])
    file._db.execute(f"UPDATE upload SET {damage}")
    with pytest.raises(Damaged):
        file.uploads()
    file.close()


def test_they_are_saved_from_a_damaged_file(tmp_path: Path) -> None:
    """What can be read goes on in the replacement."""
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[BeginUpload(upload("u")), SavePart("u", 2, "etag"), MarkCompleting("u")]])
    file._db.execute("DROP TABLE state")
    file.close()
    lasting = RecoverableFile(path, create=True)
    (rows,) = lasting.use(SpoolFile.uploads)
    assert lasting.replaced
    assert (rows.upload, rows.etags, rows.completing) == (upload("u"), {2: "etag"}, True)
    lasting.close()


def test_their_own_damage_costs_no_transfer(tmp_path: Path) -> None:
    """A damaged page of theirs is a file that is replaced; the transfers are carried over without them."""
    path = tmp_path / "spool.db"
    file = SpoolFile(path, create=True)
    file.commit([[BeginUpload(upload(f"{n:04}")) for n in range(500)]])
    (root,) = file._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'upload'").fetchone()
    file.close()
    with path.open("r+b") as raw:
        raw.seek((root - 1) * 4096)
        raw.write(random.Random(1).randbytes(4096))
    lasting = RecoverableFile(path, create=True)
    assert lasting.use(SpoolFile.uploads) == []
    assert lasting.replaced
    lasting.close()
