"""The listing of the queue: aligned, counted, and on a narrow terminal without losing what names a transfer."""

from __future__ import annotations

import pytest

from s3daemon.commands.queue import table, total
from s3daemon.commands.table import lines
from s3daemon.control.rows import Row

ROW = Row(
    id="0123456789abcdef", state="pending", age_s=3661, attempts=3, code="SlowDown", text="busy", next_in_s=12.7,
    size_bytes=8_388_608, destination="raw/2025/img_0001.fits", file="/data/2025/img_0001.fits", notified=False,
)  # fmt: skip
FAILED = Row(
    id="fedcba9876543210", state="failed", age_s=9, attempts=1, code="NoSuchBucket", text="no bucket", next_in_s=None,
    size_bytes=3000, destination="x/y", file="/a\n", notified=False,
)  # fmt: skip


def test_a_line_for_each_transfer() -> None:
    assert [" ".join(line.split()) for line in lines(table([ROW, FAILED]), None)] == [
        "ID STATE AGE ATTEMPTS NEXT SIZE DESTINATION LAST ERROR FILE",
        "0123456789abcdef pending 1h01m 3 12s 8.39 MB raw/2025/img_0001.fits SlowDown: busy /data/2025/img_0001.fits",
        "fedcba9876543210 failed, client not notified 9s 1 3 kB x/y NoSuchBucket: no bucket /a\\n",
    ]


@pytest.mark.parametrize(
    ("width", "end", "beneath"),
    [
        (200, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  /data/2025/img_0001.fits", []),
        (115, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy  …5/img_0001.fits", []),
        (100, "8.39 MB  raw/2025/img_0001.fits  SlowDown: busy", []),
        (80, "8.39 MB  SlowDown: busy", ["    raw/2025/img_0001.fits"]),
        (60, "8.39 MB", ["    raw/2025/img_0001.fits", "    SlowDown: busy"]),
    ],
)
def test_a_narrow_terminal_keeps_what_names_a_transfer(width: int, end: str, beneath: list[str]) -> None:
    """The file gives way first; the destination is never cut."""
    _, line, *rest = lines(table([ROW]), width)
    assert line.startswith("0123456789abcdef  pending ")
    assert line.endswith(end)
    assert len(line) <= width
    assert rest == beneath


def test_totals() -> None:
    assert total([]) == "nothing in the queue"
    assert total([ROW, FAILED]) == "2 transfers, 8.39 MB: 1 pending, 1 failed; the oldest 1h01m old"
