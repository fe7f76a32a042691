"""What the front page shows of the program is what the program prints."""

from __future__ import annotations

import io
import re
from datetime import UTC
from pathlib import Path

from lab.records import START_USEC, record
from lab.statuses import empty, exposure, receiver, upload

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import Report
from s3daemon.commands.report.text import lines
from s3daemon.commands.status.command import Screen
from s3daemon.commands.status.view import view_of
from s3daemon.control.status import Status

README = (Path(__file__).resolve().parents[2] / "README.rst").read_text()
TAG = "AB_O_20261123_000042"
SECOND = 1_000_000


def sample(command: str) -> list[str]:
    """The lines that the front page shows below a command, without their indentation."""
    found = re.search(rf"^    \$ {re.escape(command)}\n((?:    .*\n|\n)*)", README, re.M)
    assert found, command
    return [line.removeprefix("    ") for line in found[1].rstrip().splitlines()]


def shape(line: str) -> list[str]:
    """The words of a line, every number replaced by 0."""
    return re.sub(r"[\d.]+", "0", line).split()


def test_status() -> None:
    uploads = [
        upload(
            n, id=f"{n:016x}", key=f"20261123/R0{n}.fits", tags=[TAG], attempt=1, size_bytes=16_000_000, seconds=3.0,
            acked_bytes=8_000_000 - n * 20_000, recent_bytes_per_s=2_550_000 - n * 5_000,
            rate_bytes_per_s=2_660_000 - n * 10_000, receivers=[f"203.0.113.{6 + n}"],
        )
        for n in (1, 2, 3)
    ]  # fmt: skip
    pending = {"name": TAG, "first_usec": START_USEC, "verdict": "in time", "stored": 2, "pending": 3}
    answer = empty() | {
        "status": "3 in flight; 0 pending; the oldest is 3s old; 30 of 30 connections open",
        "host": "node1", "uploads": uploads, "exposures": [exposure(1, 3.4) | pending],
        "receivers": [receiver(f"203.0.113.{6 + n}", 10, 1) for n in (1, 2, 3)],
        "limit": {"rate_bps": 61_000_000, "origin": "found"},
    }  # fmt: skip
    out = io.StringIO()
    Screen(out).show(view_of(Status.from_dict(answer), UTC))
    assert sample("s3daemon status") == out.getvalue().splitlines()


def test_report() -> None:
    """Each line has its words and columns there; the sample is shortened, and its figures are of a real night."""
    transfers = [
        ReportedTransfer(
            record(100 * night + n, key=f"{night}/{n}", tags=(f"AB_O_20261123_00004{night}",), size_bytes=4_200_000,
                   total_usec=2 * SECOND, start_usec=START_USEC + 60 * night * SECOND),
            "node1",
        )
        for night in (2, 3, 4) for n in range(46)
    ]  # fmt: skip
    report = Report.of(transfers, limit_usec=7 * SECOND, late_usec=10 * SECOND, by="tag")
    printed = [shape(line) for line in lines(report, UTC)]
    shown = [shape(line) for line in sample("s3daemon report --since yesterday --by tag")]
    assert [line for line in shown if line not in printed] == []
