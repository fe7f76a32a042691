"""Write a report for programs: JSON with all of it, CSV with a line for each transfer or each group.

Times end in `_usec`: microseconds, since the epoch where they are points in time. What is unknown is null, or empty.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC
from typing import TextIO

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import METHOD, Figures, Group, Report
from s3daemon.commands.report.why import Breakdown

_RECORD = (
    "transfer_id", "outcome", "bucket", "key", "size_bytes", "start_usec", "queue_usec", "upload_usec", "total_usec",
    "attempts", "endpoint", "rtt_usec", "retransmits", "connection", "receiver", "changed", "error",
)  # fmt: skip


def write_json(report: Report, out: TextIO) -> None:
    """Write one object, indented."""
    slowest = [_with_reason(report, one) for one in report.slowest]
    found: dict[str, object] = {
        "limit_usec": report.limit_usec,
        "late_usec": report.late_usec,
        "percentiles": METHOD,
        "hosts": report.hosts,
        **_figures(report.figures),
        "failures": {"by_code": dict(report.figures.codes), "transfers": [_transfer(one) for one in report.failed]},
        "refused": dict(report.refused_codes),
        "slowest": slowest,
    }
    if report.by:
        found["by"] = report.by
        found["expected_files"] = report.expected.files or None
        found["groups"] = [
            {
                **_group(report, group),
                "refused_codes": dict(group.missing.refused),
                "last": group.last and _with_reason(report, group.last),
            }
            for group in report.groups
        ]
    json.dump(found, out, indent=1)
    out.write("\n")


def write_csv(report: Report, out: TextIO) -> None:
    """Write a heading and a line for each group; without groups one for each transfer, by the time of request."""
    if report.by:
        rows = [_flat(_group(report, group)) for group in report.groups]
        head = list(rows[0]) if rows else ["name"]
    else:
        rows = [{**_transfer(one), "tags": ";".join(one.record.tags)} for one in report.transfers]
        head = ["host", *_RECORD, "tags"]
    writer = csv.DictWriter(out, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _transfer(one: ReportedTransfer) -> dict[str, object]:
    return {"host": one.host, **{name: getattr(one.record, name) for name in _RECORD}, "tags": list(one.record.tags)}


def _with_reason(report: Report, one: ReportedTransfer) -> dict[str, object]:
    return _transfer(one) | {"why": asdict(Breakdown.of(one, report.delays, UTC))}


def _group(report: Report, group: Group) -> dict[str, object]:
    verdict = report.verdict(group)
    judged: dict[str, object] = {"verdict": verdict, "late": verdict in ("late", "lost"), "files": group.files}
    judged["refused"] = sum(count for _, count in group.missing.refused)
    return {"name": group.name.text, **judged, "missing": report.missing(group), **_figures(group.figures)}


def _figures(figures: Figures) -> dict[str, object]:
    derived = {"to_last_usec": figures.to_last_usec, "rate_bytes_per_s": figures.rate_bytes_per_s}
    members = asdict(figures)
    del members["codes"]
    return members | derived


def _flat(members: Mapping[str, object]) -> dict[str, object]:
    """Return members of members beside the others: `total_p50_usec`."""
    flat: dict[str, object] = {}
    for name, value in members.items():
        if name in ("total", "queue", "upload"):
            spread = value if isinstance(value, dict) else {}
            flat |= {f"{name}_{p}": spread.get(p) for p in ("p50_usec", "p90_usec", "p99_usec", "max_usec")}
        else:
            flat[name] = value
    return flat


def _cell(value: object) -> object:
    """Return a value for a line: without undecodable bytes, which the output would refuse; True is 1."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return int(value) if isinstance(value, bool) else value
