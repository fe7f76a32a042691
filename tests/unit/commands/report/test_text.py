"""The text of a report says what the figures say, and fits its terminal."""

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo

import pytest
from lab.records import START_USEC, failed, record

from s3daemon.commands.report.data import write_csv, write_json
from s3daemon.commands.report.select import RefusedRequest, ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.commands.report.text import lines
from s3daemon.model.record import TransferRecord
from s3daemon.units import moment

SECOND = 1_000_000


def shown(*records: TransferRecord, by: str = "", width: int | None = None, hosts: Sequence[str] = "n") -> list[str]:
    transfers = [ReportedTransfer(made, hosts[n % len(hosts)]) for n, made in enumerate(records)]
    return list(lines(Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by=by), UTC, width))


class Clocks(tzinfo):
    """A zone whose clocks are set back an hour, half a minute after the first record."""

    def utcoffset(self, when: datetime | None) -> timedelta:
        return timedelta(hours=2 if when is None or when.second < 50 else 1)

    def fromutc(self, when: datetime) -> datetime:
        return when + self.utcoffset(when)

    def dst(self, when: datetime | None) -> timedelta:
        return self.utcoffset(when) - timedelta(hours=1)

    def tzname(self, when: datetime | None) -> str:
        return "SUMMER" if self.dst(when) else "WINTER"


NIGHT = (
    record(1, size_bytes=40_000_000, total_usec=SECOND, upload_usec=SECOND, queue_usec=0),
    record(2, size_bytes=2_000_000, start_usec=START_USEC + SECOND, total_usec=8 * SECOND, queue_usec=7 * SECOND,
           attempts=2, upload_usec=SECOND, key="night/slow.fits"),
    failed(3, "NoSuchBucket: no\nsuch", tags=("exposure-2",), start_usec=START_USEC + 60 * SECOND,
           key="night/lost.fits"),
)  # fmt: skip


def test_a_night_in_which_the_clocks_change() -> None:
    """Both times have their zone, or the night would be an hour shorter."""
    records = (record(1), record(2, start_usec=START_USEC + 35 * SECOND))
    transfers = [ReportedTransfer(made, "n") for made in records]
    report = Report.of(transfers, limit_usec=SECOND, late_usec=SECOND)
    assert list(lines(report, Clocks(), None))[2].startswith("from 2026-11-23 04:13:20 SUMMER to 2026-11-23 03:13:5")


def test_a_whole_report() -> None:
    """Everything that was asked about is there, in the order in which an operator asks."""
    assert shown(*NIGHT, by="tag", hosts="ab") == [
        "3 transfers: 2 stored, 1 FAILED",
        "42 MB stored in 2.000 s of uploading: 21 MB/s",
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
        "ATTEMPTS  ENDED                DESTINATION          HOST",
        "       1  2026-11-23 02:14:20  raw/night/lost.fits  a",
        r"    NoSuchBucket: no\nsuch",
        "",
        "SLOWEST",
        "  TOTAL  REQUESTED             SIZE  DESTINATION          HOST",
        "8.000 s  2026-11-23 02:13:21   2 MB  raw/night/slow.fits  b",
        "    2 attempts over 7.000 s; upload 1.000 s (2 MB/s, RTT 200 ms)",
        "1.000 s  2026-11-23 02:13:20  40 MB  raw/night/f.fits     a",
        "    upload 1.000 s (40 MB/s, RTT 200 ms)",
        "",
        "TAG         FIRST REQUEST        LAST STORED  ELAPSED  STORED  FAILED   SIZE  SLOWEST  OVER",
        "exposure-1  2026-11-23 02:13:20  02:13:29     9.000 s       2       0  42 MB  8.000 s     1",
        "exposure-2  2026-11-23 02:14:20  -                  -       0       1    0 B        -     0  INCOMPLETE",
        "    failed: 1 NoSuchBucket",
        "2 groups: 1 in time, 1 incomplete; late after 10 s, lost after 30 s",
    ]


def test_one_line_of_why() -> None:
    """An exposure that is late says which object came last, on which host, and what it waited for."""
    made = [
        record(n, key=f"e/{n}", tags=("e",), total_usec=n * 3 * SECOND, queue_usec=0, upload_usec=n * 3 * SECOND)
        for n in (1, 4)
    ]
    found = shown(*made, by="tag", hosts="ab")
    (at,) = (number for number, line in enumerate(found) if line.endswith("  LATE"))
    assert found[at + 1] == "    last 4 on b: upload 12.00 s (667 kB/s, RTT 200 ms)"
    assert "    last 4: upload" in "\n".join(shown(*made, by="tag", hosts="a"))


def test_exposures_that_lack_files() -> None:
    """How many they have and should have is said of each, and where the number comes from."""
    made = [
        record(10 * e + n, key=f"{e}/{n}", tags=(f"e{e}",), start_usec=START_USEC + e) for e in range(4) for n in (1, 2)
    ]
    found = shown(*made[:-1], by="tag")
    assert [line.split()[-1] for line in found if line.startswith("e")][-2:] == ["INCOMPLETE", "number"]
    assert "    1 of 2 files" in found
    assert found[-1] == "expected: 2 files each, as 3 exposures have; --expect N sets another number"


REFUSED = ((2, "NotReadable"), (3, "NotReadable"), (3, "NoSuchFile"))


def test_refused_files_are_missing() -> None:
    """Their exposure is incomplete, and says why; one that was stored at another request is not missing.

    A file that was refused twice is one file, missing for the last reason.
    """
    transfers = [ReportedTransfer(record(n, key=f"e/{n}", tags=("e",)), "n") for n in (1, 2)]
    refused = [RefusedRequest(("raw", f"e/{n}"), ("e",), code, START_USEC) for n, code in REFUSED]
    found = Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by="tag", refused=refused)
    assert [found.verdict(group) for group in found.groups] == ["incomplete"]
    shown_lines = list(lines(found, UTC))
    assert "    refused: 1 NoSuchFile" in shown_lines
    assert shown_lines[0] == "2 transfers: 2 stored, none failed; not accepted: 1 NoSuchFile"


def test_an_exposure_of_which_every_file_was_refused_is_there() -> None:
    """With the time of the first refusal, also where nothing else is shown, as JSON and as CSV."""
    transfers = [ReportedTransfer(record(n, key=f"e/{n}", tags=("e",)), "n") for n in (1, 2)]
    at_usec = transfers[0].record.start_usec + 60 * SECOND
    refused = [RefusedRequest(("raw", f"f/{n}"), ("f",), "NotReadable", at_usec + n) for n in range(3)]
    found = Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by="tag", refused=refused)
    assert [(group.name.text, found.verdict(group)) for group in found.groups] == [
        ("e", "in time"),
        ("f", "incomplete"),
    ]
    shown_lines = list(lines(found.late_only(), UTC))
    (row,) = (line for line in shown_lines if line.startswith("f "))
    assert moment(at_usec, UTC) in row
    assert "    refused: 3 NotReadable" in shown_lines
    for write in (write_json, write_csv):
        out = io.StringIO()
        write(found, out)
        assert "incomplete" in out.getvalue()


def test_hosts_at_80_columns() -> None:
    """The figures by which hosts are ordered are there; the time between a night's first and last object is not."""
    (head,) = (line for line in shown(*NIGHT, by="host", hosts="ab", width=80) if line.startswith("HOST"))
    assert head.split() == ["HOST", "STORED", "FAILED", "SIZE", "SLOWEST", "OVER"]


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


@pytest.mark.parametrize("width", [70, 80, 100])
def test_width(width: int) -> None:
    """No row is longer than the terminal, and no name is cut: one that is too long has a line of its own."""
    key = "a/very/long/prefix/that/all/have/in/common/" + "x" * 60 + "tail.fits"
    made = [record(1, key=key), failed(2, key=key), *(record(n) for n in range(3, 12))]
    found = shown(*made, by="prefix", width=width, hosts=[f"a-host-with-a-long-name-{n}" for n in range(9)])
    rows = [line for line in found if not re.match(r" {4}\S", line)]
    assert max(map(len, rows)) <= width
    assert found.count(f"    raw/{key}") == 2
    assert "…" not in "".join(found)
    assert all(f"a-host-with-a-long-name-{n}" in "".join(found[:9]) for n in range(9))


def test_control_characters() -> None:
    """Control characters in a name or an error do not reach the terminal."""
    text = "".join(
        shown(failed(1, "Bad\x1b[2J: x\r", key="\x1b]0;t\x07"), record(2, tags=("\x1b[1m",), key="\udcff"), by="tag")
    )
    assert text.isprintable()
