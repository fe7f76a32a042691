"""A report for programs: JSON with everything that is told, CSV with a line for each transfer or each group.

Times end in `_usec`: microseconds, since the epoch where they are points in time. The unknown is null, or empty.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TextIO

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import METHOD, Figures, Report
from s3daemon.commands.report.why import Breakdown

_RECORD = (
    "transfer_id", "outcome", "bucket", "key", "size_bytes", "start_usec", "queue_usec", "upload_usec", "total_usec",
    "attempts", "endpoint", "rtt_usec", "retransmits", "connection", "receiver", "changed", "error",
)  # fmt: skip


def write_json(report: Report, out: TextIO) -> None:
    """One object, indented."""
    slowest = [_transfer(seen) | {"why": asdict(Breakdown.of(seen.record))} for seen in report.slowest]
    found: dict[str, object] = {
        "limit_usec": report.limit_usec,
        "late_usec": report.late_usec,
        "percentiles": METHOD,
        "hosts": report.hosts,
        **_figures(report.figures),
        "failures": {"by_code": dict(report.codes), "transfers": [_transfer(seen) for seen in report.failed]},
        "slowest": slowest,
    }
    if report.by:
        found["by"] = report.by
        found["groups"] = [
            {"name": group.name, "late": report.late(group), **_figures(group.figures)} for group in report.groups
        ]
    json.dump(found, out, indent=1)
    out.write("\n")


def write_csv(report: Report, out: TextIO) -> None:
    """A head, and a line for each group; without groups for each transfer, by the time of request."""
    if report.by:
        rows = [{"name": g.name, "late": int(report.late(g)), **_flat(_figures(g.figures))} for g in report.groups]
        head = list(rows[0]) if rows else ["name"]
    else:
        rows = [{**_transfer(seen), "tags": ";".join(seen.record.tags)} for seen in report.sightings]
        head = ["host", *_RECORD, "tags"]
    writer = csv.DictWriter(out, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _transfer(seen: ReportedTransfer) -> dict[str, object]:
    return {"host": seen.host, **{name: getattr(seen.record, name) for name in _RECORD}, "tags": list(seen.record.tags)}


def _figures(figures: Figures) -> dict[str, object]:
    derived = {"to_last_usec": figures.to_last_usec, "rate_bytes_per_s": figures.rate_bytes_per_s}
    return asdict(figures) | derived


def _flat(members: Mapping[str, object]) -> dict[str, object]:
    """Members of members beside the others: `total_p50_usec`."""
    flat: dict[str, object] = {}
    for name, value in members.items():
        if name in ("total", "queue", "upload"):
            spread = value if isinstance(value, dict) else {}
            flat |= {f"{name}_{p}": spread.get(p) for p in ("p50_usec", "p90_usec", "p99_usec", "max_usec")}
        else:
            flat[name] = value
    return flat


def _cell(value: object) -> object:
    """A value for a line: no undecodable bytes, which the output would refuse; True is 1."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return int(value) if isinstance(value, bool) else value
