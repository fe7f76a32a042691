"""For programs a report is JSON or CSV, with every transfer and figure in it, in microseconds."""

import csv
import io
import json
from typing import Any

from lab.records import START_USEC, failed, record

from s3daemon.commands.report.data import write_csv, write_json
from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.model.record import TransferRecord

SECOND = 1_000_000
NIGHT = (record(1, tags=("a", "b"), total_usec=8 * SECOND), failed(2, "Stalled: x", key="night/g.fits", tags=("a",)))


def report(*records: TransferRecord, by: str = "") -> Report:
    transfers = [ReportedTransfer(made, "n1") for made in records]
    return Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by=by)


def as_json(made: Report) -> dict[str, Any]:
    out = io.StringIO()
    write_json(made, out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def as_csv(made: Report) -> list[dict[str, str]]:
    out = io.StringIO()
    write_csv(made, out)
    return list(csv.DictReader(io.StringIO(out.getvalue())))


def test_json() -> None:
    """The figures, all failures, the slowest with the reason, and the groups."""
    found = as_json(report(*NIGHT, by="tag"))
    assert (found["transfers"], found["stored"], found["failed"], found["over_limit"]) == (2, 1, 1, 1)
    assert found["total"] == {f"{p}_usec": 8 * SECOND for p in ("p50", "p90", "p99", "max")}
    assert found["percentiles"] == "nearest rank"
    assert found["failures"]["by_code"] == {"Stalled": 1}
    assert found["failures"]["transfers"][0]["transfer_id"] == NIGHT[1].transfer_id
    (slow,) = found["slowest"]
    assert (slow["host"], slow["key"], slow["tags"], slow["why"]["cause"]) == (
        "n1",
        "night/f.fits",
        ["a", "b"],
        "after",
    )
    assert [(g["name"], g["stored"], g["failed"], g["missing"], g["to_last_usec"]) for g in found["groups"]] == [
        ("a", 1, 1, 1, 8 * SECOND),
        ("b", 1, 0, 0, 8 * SECOND),
    ]
    assert [(g["verdict"], g["late"], g["last"]["key"]) for g in found["groups"]] == [
        ("incomplete", False, "night/f.fits"),
        ("in time", False, "night/f.fits"),
    ]


def test_json_of_nothing() -> None:
    """A night without transfers is an object of the same shape."""
    found = as_json(report())
    assert (found["transfers"], found["total"], found["first_usec"], found["slowest"]) == (0, None, None, [])
    assert "groups" not in found
    assert found.keys() | {"by", "groups", "expected_files"} == as_json(report(*NIGHT, by="tag")).keys()


def test_csv_of_transfers() -> None:
    """A line for each transfer, and what is unknown is empty."""
    stored, lost = as_csv(report(*NIGHT))
    assert (stored["outcome"], stored["total_usec"], stored["upload_usec"]) == ("stored", "8000000", "400000")
    assert (stored["tags"], stored["changed"], stored["host"]) == ("a;b", "0", "n1")
    assert (lost["outcome"], lost["upload_usec"], lost["error"]) == ("failed", "", "Stalled: x")
    assert stored["start_usec"] == str(START_USEC)


def test_csv_of_groups() -> None:
    """A line for each group, the percentiles beside the other figures."""
    one, two = as_csv(report(*NIGHT, by="tag"))
    assert (one["name"], one["stored"], one["failed"], one["total_p99_usec"], one["late"]) == (
        "a",
        "1",
        "1",
        "8000000",
        "0",
    )
    assert two["name"] == "b"
    assert {"queue_p50_usec", "upload_max_usec", "to_last_usec", "rate_bytes_per_s"} <= one.keys()


def test_csv_of_nothing() -> None:
    """There is a head even without lines."""
    for by in ("", "tag"):
        out = io.StringIO()
        write_csv(report(by=by), out)
        assert len(out.getvalue().splitlines()) == 1


def test_names_that_are_not_text() -> None:
    """Bytes that are not UTF-8, commas and quotes reach the other side of the pipe."""
    made = report(record(1, key='a,"b\udcff'))
    (row,) = as_csv(made)
    assert row["key"] == r'a,"b\udcff'
    out = io.TextIOWrapper(io.BytesIO(), "utf-8")
    write_json(made, out)
    out.flush()
