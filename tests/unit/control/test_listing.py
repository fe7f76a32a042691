"""The listing: rows survive the trip as JSON, and the table fits its terminal without hiding what matters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.control.listing import Row, row, table, total
from s3daemon.errors import S3daemonError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.rows import Entry
from s3daemon.units import size, span

TRANSFER = Transfer(
    "0123456789abcdef",
    "/data/2025/img_0001.fits",
    Destination("raw", "2025/img_0001.fits"),
    ("exposure-1",),
    FileState(8_388_608, 1, 2, 3),
    accepted_usec=1_000_000_000,
)
ROW = row(Entry(7, TRANSFER, 0.0, 3, False, "SlowDown", "busy"), "pending", now_usec=4_661_000_000, next_in_s=12.7)

texts = st.text(max_size=80)
rows = st.builds(
    Row,
    id=st.text("0123456789abcdef", min_size=16, max_size=16),
    state=st.sampled_from(["in flight", "pending", "behind", "held", "failed"]),
    age_s=st.integers(0, 10**8),
    attempts=st.integers(0, 10**5),
    code=texts,
    text=texts,
    next_in_s=st.none() | st.floats(0, 300),
    size_bytes=st.integers(0, 1 << 43),
    destination=texts,
    file=texts,
    told=st.booleans(),
)


def test_the_row_of_an_entry() -> None:
    """What the spool knows and what the daemon adds."""
    assert ROW.as_dict() == {
        "id": "0123456789abcdef",
        "state": "pending",
        "age_s": 3661,
        "attempts": 3,
        "code": "SlowDown",
        "text": "busy",
        "next_in_s": 12.7,
        "size_bytes": 8_388_608,
        "destination": "raw/2025/img_0001.fits",
        "file": "/data/2025/img_0001.fits",
        "told": False,
    }


def test_a_clock_that_went_back() -> None:
    """An age is never negative."""
    assert row(Entry(7, TRANSFER, 0.0), "pending", now_usec=0).age_s == 0


@given(rows)
def test_json_and_back(one: Row) -> None:
    """Rows come back as they were, whatever a later version adds."""
    assert Row.from_dict(json.loads(json.dumps({**one.as_dict(), "later": 1}))) == one


@pytest.mark.parametrize("members", [None, [], "x", {}, {**ROW.as_dict(), "age_s": "1"}, {**ROW.as_dict(), "id": None}])
def test_no_row(members: Any) -> None:
    """Anything else is told as what it is: another version's."""
    with pytest.raises(S3daemonError, match="of another version"):
        Row.from_dict(members)


def test_the_table() -> None:
    """Aligned, numbers to the right, the last line counts."""
    error = ("NoSuchBucket", "no bucket")
    failed = Row("fedcba9876543210", "failed", 9, 1, *error, None, 3000, "x/y", "/a\n", told=False)
    assert [" ".join(line.split()) for line in table([ROW, failed], None)] == [
        "ID STATE AGE ATTEMPTS NEXT SIZE DESTINATION LAST ERROR FILE",
        "0123456789abcdef pending 1h01m 3 12s 8.39 MB raw/2025/img_0001.fits SlowDown: busy /data/2025/img_0001.fits",
        "fedcba9876543210 failed, client not notified 9s 1 3 kB x/y NoSuchBucket: no bucket /a\\n",
        "2 transfers, 8.39 MB: 1 pending, 1 failed; the oldest 1h01m old",
    ]
    head, first, second, _ = table([ROW, failed], None)
    for column in ("STATE", "DESTINATION", "LAST ERROR", "FILE"):
        assert first[head.index(column) - 1] == second[head.index(column) - 1] == " ", column
        assert first[head.index(column)] != " ", column
    for column in ("AGE", "ATTEMPTS", "SIZE"):
        end = head.index(column) + len(column)
        assert first[end - 1] != " ", column
        assert second[end - 1] != " ", column


@pytest.mark.parametrize(
    ("width", "end"),
    [
        (200, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  /data/2025/img_0001.fits"),
        (110, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  …_0001.fits"),
        (90, "8.39 MB  …w/2025/img_0001.fits  SlowD…"),
        (80, "8.39 MB  …g_0001.fits  SlowD…"),
    ],
)
def test_a_narrow_table(width: int, end: str) -> None:
    """The file gives way first, then the error's end, then the key's beginning."""
    line = list(table([ROW], width))[1]
    assert line.endswith(end)
    assert len(line) <= width


@given(st.lists(rows, max_size=5), st.integers(20, 200))
def test_tables_fit(some: list[Row], width: int) -> None:
    """No line but the last is wider than the terminal, and each is one line of plain text."""
    lines = list(table(some, width))
    assert len(lines) == len(some) + 2
    assert all(len(line) <= width for line in lines[:-1])
    assert all(line.isprintable() for line in lines)


def test_totals() -> None:
    """Nothing is said plainly."""
    assert total([]) == "nothing in the queue"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (200_000, "2d07h")],
)
def test_spans(seconds: float, text: str) -> None:
    """Two units at most."""
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (5 << 40, "5.5 TB")],
)
def test_sizes(count: int, text: str) -> None:
    """Three digits at most."""
    assert size(count) == text
