"""Write a report as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import tzinfo

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import (
    METHOD,
    Breakdown,
    Figures,
    Group,
    Report,
    Spread,
)
from s3daemon.commands.table import Column, Table, cut
from s3daemon.commands.table import lines as table_lines
from s3daemon.errors import one_line
from s3daemon.units import limit, moment, seconds, size, zone_name

#: Failures that are shown one by one; a bad night has thousands of one kind, and `--json` has them all.
_SHOWN_FAILURES = 10
_DAY_CHARS = len("2026-11-23 ")
#: Destinations and tags differ at their ends.
_NAME_CHARS = 20
_DESTINATION = Column("DESTINATION", least=_NAME_CHARS, keep="end")
_REASON = Column("", place="below")


def lines(report: Report, zone: tzinfo | None, width: int | None = None) -> Iterator[str]:
    """Yield the report, line by line.

    Args:
        report: at least one transfer in it.
        zone: for points in time; None for the system's.
        width: of the terminal; None leaves lines as long as they are.
    """
    figures = report.figures
    for line in _head(report, zone):
        yield line if width is None else cut(line, width)
    yield ""
    yield from table_lines(_spreads(figures), width)
    yield f"of the stored; percentiles by {METHOD}"
    yield ""
    over = f" ({figures.over_limit / figures.stored:.2%})" if figures.over_limit else ""
    yield f"over the limit of {limit(report.limit_usec)}: {figures.over_limit}{over}"
    yield f"with more than one attempt: {figures.repeated}"
    if report.failed:
        yield ""
        yield from table_lines(_failures(report, zone), width)
        if len(report.failed) > _SHOWN_FAILURES:
            yield f"and {len(report.failed) - _SHOWN_FAILURES} before"
    if report.slowest:
        yield ""
        yield from table_lines(_slowest(report, zone), width)
    if report.by:
        yield ""
        yield from table_lines(_groups(report, zone), width)
        if late := sum(map(report.late, report.groups)):
            yield f"{len(report.groups)} groups; LATE, {late} of them: no last object within {limit(report.late_usec)}"


def _head(report: Report, zone: tzinfo | None) -> Iterator[str]:
    figures = report.figures
    failed = f"{figures.failed} FAILED" if figures.failed else "none failed"
    plural = "" if figures.transfers == 1 else "s"
    yield f"{figures.transfers} transfer{plural}: {figures.stored} stored, {failed}"
    rate = figures.rate_bytes_per_s
    busy = f" in {seconds(figures.busy_usec)} with uploads under way: {size(rate)}/s" if rate is not None else ""
    yield f"{size(figures.size_bytes)} stored{busy}"
    first, last = figures.first_usec or 0, figures.last_usec or 0
    period = f"from {moment(first, zone)} to {moment(last, zone)} {zone_name(first, zone)}"
    hosts = report.hosts
    yield f"{period}; {'host' if len(hosts) == 1 else 'hosts'} {one_line(', '.join(hosts))}" if hosts else period


def _spreads(figures: Figures) -> Table:
    columns = [Column(""), *(Column(name, align="right") for name in ("P50", "P90", "P99", "MAX"))]
    named = (("total", figures.total), ("queue", figures.queue), ("upload", figures.upload))
    return Table(columns, [(name, *_spread(spread)) for name, spread in named])


def _spread(spread: Spread | None) -> Sequence[str]:
    if spread is None:
        return ("-",) * 4
    return [seconds(usec) for usec in (spread.p50_usec, spread.p90_usec, spread.p99_usec, spread.max_usec)]


def _failures(report: Report, zone: tzinfo | None) -> Table:
    columns = (Column("ATTEMPTS", align="right"), Column("ENDED"), _DESTINATION, _REASON)
    rows = [
        (str(one.record.attempts), moment(one.end_usec, zone), _destination(one), one.record.error)
        for one in report.failed[:_SHOWN_FAILURES]
    ]
    return Table(columns, rows, "FAILED: " + ", ".join(f"{count} {one_line(code, 60)}" for code, count in report.codes))


def _slowest(report: Report, zone: tzinfo | None) -> Table:
    columns = (
        Column("TOTAL", align="right"),
        Column("REQUESTED"),
        Column("SIZE", align="right"),
        _DESTINATION,
        _REASON,
    )
    rows = [
        (
            seconds(one.record.total_usec),
            moment(one.record.start_usec, zone),
            size(one.record.size_bytes),
            _destination(one),
            Breakdown.of(one.record).text,
        )
        for one in report.slowest
    ]
    return Table(columns, rows, "SLOWEST")


def _groups(report: Report, zone: tzinfo | None) -> Table:
    columns = (
        Column(report.by.upper(), least=_NAME_CHARS, keep="end"),
        Column("FIRST REQUEST", place="drop"),
        Column("LAST STORED", place="drop"),
        Column("BETWEEN", align="right"),
        Column("STORED", align="right"),
        Column("FAILED", align="right"),
        Column("SIZE", align="right", place="drop"),
        Column("SLOWEST", align="right", place="drop"),
        Column("OVER", align="right", place="drop"),
        Column(""),
    )
    return Table(columns, [_group(report, group, zone) for group in report.groups])


def _group(report: Report, group: Group, zone: tzinfo | None) -> Sequence[str]:
    figures = group.figures
    notes = ("LATE",) * report.late(group) + ("INCOMPLETE",) * bool(figures.failed)
    return (
        group.name,
        moment(figures.first_usec or 0, zone),
        "-" if figures.last_stored_usec is None else moment(figures.last_stored_usec, zone)[_DAY_CHARS:],
        "-" if figures.to_last_usec is None else seconds(figures.to_last_usec),
        str(figures.stored),
        str(figures.failed),
        size(figures.size_bytes),
        "-" if figures.total is None else seconds(figures.total.max_usec),
        str(figures.over_limit),
        " ".join(notes),
    )


def _destination(one: ReportedTransfer) -> str:
    return f"{one.record.bucket}/{one.record.key}"
