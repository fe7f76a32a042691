"""The charts in characters show every transfer, in its class and beside its limit, and fit the terminal."""

import re
from datetime import UTC

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.commands.report.term import BEYOND, CROSS, FULL, LINE, charts
from s3daemon.model.record import TransferRecord

SECOND = 1_000_000
CLASS = re.compile(r" *([0-9.]+) s +([0-9.]+) s +([0-9]+) ?(.*)")


def drawn(
    *records: TransferRecord, width: int = 80, encoding: str = "utf-8", limit_usec: int = 7 * SECOND
) -> list[str]:
    sightings = [ReportedTransfer(made, "n") for made in sorted(records, key=lambda made: made.start_usec)]
    report = Report.of(sightings, limit_usec=limit_usec, late_usec=10 * SECOND, by="tag")
    return list(charts(report, UTC, width, encoding))


def classes(text: list[str]) -> list[tuple[float, float, int, str]]:
    found = [match for line in text[: text.index("")] if (match := CLASS.fullmatch(line))]
    return [(float(m[1]), float(m[2]), int(m[3]), m[4]) for m in found]


@given(
    st.lists(st.integers(0, 700_000_000_000), min_size=1, max_size=30), st.sampled_from([1_000, 2_500_000, 7_000_000])
)
def test_every_transfer_is_in_a_class(totals: list[int], limit_usec: int) -> None:
    """Whatever times there are, and whatever the limit, the classes count each once and no line is too long."""
    text = drawn(*(record(n, total_usec=usec) for n, usec in enumerate(totals)), limit_usec=limit_usec)
    assert sum(count for _, _, count, _ in classes(text)) == len(totals)
    assert max(map(len, text)) <= 80


def test_distribution() -> None:
    """Classes have round bounds, bars as long as their counts, and what is beyond the limit is hatched below a line."""
    totals = [SECOND] * 40 + [1_200_000] * 20 + [7 * SECOND] + [7 * SECOND + 1]
    text = drawn(*(record(n, total_usec=usec) for n, usec in enumerate(totals)))
    found = classes(text)
    counts = {high: (count, bar) for _, high, count, bar in found if count}
    assert {high: count for high, (count, _) in counts.items()} == {1.0: 40, 1.5: 20, 7.0: 1, 10.0: 1}
    assert counts[1.0][1] == FULL * 55
    assert counts[1.5][1] == FULL * 28
    assert set(counts[7.0][1]) == {FULL}
    assert set(counts[10.0][1]) == {BEYOND}
    (ruler,) = [n for n, line in enumerate(text) if " limit 7 s " in line and line.startswith(LINE)]
    assert CLASS.fullmatch(text[ruler - 1])
    assert text[ruler + 1].startswith("   7.000 s")


def test_series() -> None:
    """Over time: the median full, the longest hatched, a cross where something failed, and the limit as a line."""
    calm = [record(n, start_usec=START_USEC + n * SECOND, total_usec=SECOND) for n in range(60)]
    text = drawn(
        *calm,
        record(99, start_usec=START_USEC + 30 * SECOND, total_usec=60 * SECOND),
        failed(100, start_usec=START_USEC),
    )
    begin = next(n for n, line in enumerate(text) if line.startswith("WHEN"))
    rows = text[begin + 1 : begin + 11]
    assert [row.count(FULL) for row in rows[:-1]] == [0] * 9
    assert rows[-1].count(FULL) == 60
    assert all(row.count(BEYOND) == 1 for row in rows[:-1])
    assert len({row.index(BEYOND) for row in rows[:-1]}) == 1
    (limit,) = [row for row in rows if row.startswith(" limit 7 s ")]
    assert limit.count(LINE) == 80 - 11 - 1
    assert text[begin + 11] == f"    failed {CROSS}"
    assert text[begin + 12].split() == ["2026-11-23", "02:13:20", "02:14:19", "UTC"]


def test_groups() -> None:
    """Each exposure's time to its last object, late ones hatched, failures said; of many the longest are shown."""
    made = [
        record(n, tags=(f"exposure-{n:03}",), start_usec=START_USEC + n * SECOND, total_usec=n * SECOND)
        for n in range(40)
    ]
    text = drawn(*made, failed(99, tags=("exposure-039",)))
    (head,) = [
        n for n, line in enumerate(text) if line.startswith("TIME TO THE LAST OBJECT by tag, the 30 longest of 40")
    ]
    bars = text[head + 1 :]
    assert [line.split()[0] for line in bars] == [f"exposure-{n:03}" for n in range(10, 40)] or bars[0].startswith(
        "exposure-039"
    )
    hatched = [line.split()[0] for line in bars if BEYOND in line]
    assert "exposure-010" not in hatched
    assert {"exposure-011", "exposure-038"} <= set(hatched)
    assert sum(line.endswith(" 1 FAILED") for line in bars) == 1


def test_long_names_are_told_apart() -> None:
    """Of a long name the end is shown, where exposures differ."""
    text = drawn(record(1, tags=("x" * 50 + "-000001",)))
    assert text[-1].startswith("…" + "x" * 20 + "-000001 ")


def test_nothing_stored() -> None:
    """Without a stored transfer it says so."""
    assert drawn(failed(1)) == ["nothing was stored, so there is no chart"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_without_block_characters(encoding: str) -> None:
    """Where the output has no block characters, ASCII stands for them."""
    text = "\n".join(drawn(record(1), record(2, total_usec=99 * SECOND), failed(3), encoding=encoding))
    assert text.isascii()
    assert "#" in text
    assert ":::" in text
