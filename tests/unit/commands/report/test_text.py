"""The text of a report says what the figures say, and fits its terminal."""

import re
from datetime import UTC

import pytest
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.commands.report.text import lines
from s3daemon.model.record import TransferRecord

SECOND = 1_000_000


def shown(*records: TransferRecord, by: str = "", width: int | None = None, hosts: str = "n") -> list[str]:
    transfers = [ReportedTransfer(made, hosts[n % len(hosts)]) for n, made in enumerate(records)]
    return list(lines(Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by=by), UTC, width))


NIGHT = (
    record(1, size_bytes=40_000_000, total_usec=SECOND, upload_usec=SECOND, queue_usec=0),
    record(2, size_bytes=2_000_000, start_usec=START_USEC + SECOND, total_usec=8 * SECOND, queue_usec=7 * SECOND,
           attempts=2, upload_usec=SECOND, key="night/slow.fits"),
    failed(3, "NoSuchBucket: no\nsuch", tags=("exposure-2",), start_usec=START_USEC + 60 * SECOND,
           key="night/lost.fits"),
)  # fmt: skip


def test_a_whole_report() -> None:
    """Everything that was asked about is there, in the order in which an operator asks."""
    assert shown(*NIGHT, by="tag", hosts="ab") == [
        "3 transfers: 2 stored, 1 FAILED",
        "42 MB stored in 9.000 s with uploads under way: 4.67 MB/s",
        "from 2026-11-23 02:13:20 to 2026-11-23 02:14:20 UTC; hosts a, b",
        "",
        "            P50      P90      P99      MAX",
        "total   1.000 s  8.000 s  8.000 s  8.000 s",
        "queue   0.000 s  7.000 s  7.000 s  7.000 s",
        "upload  1.000 s  1.000 s  1.000 s  1.000 s",
        "of the stored; percentiles by nearest rank",
        "",
        "over the limit of 7 s: 1 (50.00%)",
        "with more than one attempt: 1",
        "",
        "FAILED: 1 NoSuchBucket",
        "ATTEMPTS  ENDED                DESTINATION",
        "       1  2026-11-23 02:14:20  raw/night/lost.fits",
        r"    NoSuchBucket: no\nsuch",
        "",
        "SLOWEST",
        "  TOTAL  REQUESTED             SIZE  DESTINATION",
        "8.000 s  2026-11-23 02:13:21   2 MB  raw/night/slow.fits",
        "    2 attempts, the last began after 7.000 s; upload 1.000 s (2 MB/s, RTT 200 ms)",
        "1.000 s  2026-11-23 02:13:20  40 MB  raw/night/f.fits",
        "    upload 1.000 s (40 MB/s, RTT 200 ms)",
        "",
        "TAG         FIRST REQUEST        LAST STORED  BETWEEN  STORED  FAILED   SIZE  SLOWEST  OVER",
        "exposure-1  2026-11-23 02:13:20  02:13:29     9.000 s       2       0  42 MB  8.000 s     1",
        "exposure-2  2026-11-23 02:14:20  -                  -       0       1    0 B        -     0  LATE INCOMPLETE",
        "2 groups; LATE, 1 of them: no last object within 10 s",
    ]


def test_a_good_night() -> None:
    """Without failures the word FAILED does not occur, nor do groups that were not asked for."""
    text = "\n".join(shown(NIGHT[0]))
    assert "1 transfer: 1 stored, none failed" in text
    assert "FAILED" not in text
    assert "TAG" not in text
    assert "over the limit of 7 s: 0\n" in text


def test_nothing_stored() -> None:
    """When all failed there are no times, and that is shown as such."""
    text = "\n".join(shown(NIGHT[2]))
    assert "1 transfer: 0 stored, 1 FAILED" in text
    assert "total     -    -    -    -" in text
    assert "SLOWEST" not in text


def test_many_failures() -> None:
    """Of thousands of one kind the latest ten are shown, and how many there are."""
    text = shown(*(failed(n, key=f"k{n}", start_usec=START_USEC + n) for n in range(2500)))
    assert "FAILED: 2500 NoSuchBucket" in text
    assert [line.split("/")[-1] for line in text if "  raw/k" in line] == [f"k{n}" for n in range(2499, 2489, -1)]
    assert "and 2490 before" in text


@pytest.mark.parametrize("width", [60, 80, 100])
def test_width(width: int) -> None:
    """No row is longer than the terminal; a destination is cut at its beginning, since names differ at the end."""
    key = "a/very/long/prefix/that/all/have/in/common/" + "x" * 60 + "tail.fits"
    found = shown(record(1, key=key), failed(2, key=key), by="prefix", width=width)
    rows = [line for line in found if not re.match(r" {4}\S", line)]
    assert max(map(len, rows)) <= width
    assert sum(line.endswith("xtail.fits") and "…" in line for line in rows) == 2
    assert any(line.startswith("PREFIX") for line in rows)


def test_control_characters() -> None:
    """Control characters in a name or an error do not reach the terminal."""
    text = "".join(
        shown(failed(1, "Bad\x1b[2J: x\r", key="\x1b]0;t\x07"), record(2, tags=("\x1b[1m",), key="\udcff"), by="tag")
    )
    assert text.isprintable()
