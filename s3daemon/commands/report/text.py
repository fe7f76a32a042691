"""A report as text for people: lines, aligned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import METHOD, Figures, Group, Report, Spread
from s3daemon.commands.report.why import Breakdown, bound, seconds
from s3daemon.errors import one_line
from s3daemon.units import size

#: Failures that are shown one by one; a bad night has thousands of one kind, and `--json` has them all.
_SHOWN_FAILURES = 10
_GAP, _INDENT, _DAY_CHARS = "  ", 10, len("2026-11-23 ")


def lines(report: Report, zone: tzinfo | None, width: int | None = None) -> Iterator[str]:
    """The report.

    Args:
        report: at least one transfer in it.
        zone: for points in time; None for the system's.
        width: of the terminal; None leaves lines as long as they are.
    """
    for line in _lines(report, zone, width):
        yield line[:width].rstrip()


def _lines(report: Report, zone: tzinfo | None, width: int | None) -> Iterator[str]:
    figures = report.figures
    yield from _head(report, zone)
    yield ""
    yield from table(("", "P50", "P90", "P99", "MAX"), [*_spreads(figures)], {1, 2, 3, 4})
    yield f"of the stored; percentiles by {METHOD}"
    yield ""
    over = f" ({figures.over_limit / figures.stored:.2%})" if figures.over_limit else ""
    yield f"over the limit of {bound(report.limit_usec)}: {figures.over_limit}{over}"
    yield f"with more than one attempt: {figures.repeated}"
    if report.failed:
        yield from ("", *_failures(report, zone, width))
    if report.slowest:
        yield from ("", *_slowest(report, zone, width))
    if report.by:
        yield from ("", *_groups(report, zone))


def _head(report: Report, zone: tzinfo | None) -> Iterator[str]:
    figures = report.figures
    failed = f"{figures.failed} FAILED" if figures.failed else "none failed"
    plural = "" if figures.transfers == 1 else "s"
    yield f"{figures.transfers} transfer{plural}: {figures.stored} stored, {failed}"
    rate = figures.rate_bytes_per_s
    busy = f" in {seconds(figures.busy_usec)} with uploads under way: {size(rate)}/s" if rate is not None else ""
    yield f"{size(figures.size_bytes)} stored{busy}"
    first, last = figures.first_usec or 0, figures.last_usec or 0
    span = f"from {moment(first, zone)} to {moment(last, zone)} {zone_name(first, zone)}"
    hosts = report.hosts
    yield f"{span}; {'host' if len(hosts) == 1 else 'hosts'} {one_line(', '.join(hosts))}" if hosts else span


def _spreads(figures: Figures) -> Iterator[tuple[str, ...]]:
    for name, spread in (("total", figures.total), ("queue", figures.queue), ("upload", figures.upload)):
        yield name, *_spread(spread)


def _spread(spread: Spread | None) -> tuple[str, ...]:
    if spread is None:
        return ("-",) * 4
    return tuple(map(seconds, (spread.p50_usec, spread.p90_usec, spread.p99_usec, spread.max_usec)))


def _failures(report: Report, zone: tzinfo | None, width: int | None) -> Iterator[str]:
    yield "FAILED: " + ", ".join(f"{count} {one_line(code, 60)}" for code, count in report.codes)
    shown = report.failed[:_SHOWN_FAILURES]
    rows = [(str(seen.record.attempts), moment(seen.end_usec, zone), destination(seen)) for seen in shown]
    why = [one_line(seen.record.error) for seen in shown]
    yield from _explained(("ATTEMPTS", "ENDED", "DESTINATION"), rows, {0}, why, width)
    if len(report.failed) > len(shown):
        yield f"and {len(report.failed) - len(shown)} before"


def _slowest(report: Report, zone: tzinfo | None, width: int | None) -> Iterator[str]:
    yield "SLOWEST"
    rows = [
        (seconds(r.total_usec), moment(r.start_usec, zone), size(r.size_bytes), destination(seen))
        for seen in report.slowest
        for r in [seen.record]
    ]
    why = [Breakdown.of(seen.record).text for seen in report.slowest]
    yield from _explained(("TOTAL", "REQUESTED", "SIZE", "DESTINATION"), rows, {0, 2}, why, width)


def _explained(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int], why: Sequence[str], width: int | None
) -> Iterator[str]:
    """A table with a line below each row. Its last column is a destination, cut at the front: their ends differ."""
    above, *lines = table(head, rows, numbers)
    yield above
    for line, row, reason in zip(lines, rows, why, strict=True):
        excess = len(line) - width if width else 0
        kept = len(row[-1]) - excess - 1
        yield line if excess <= 0 or kept <= 0 else f"{line[: -len(row[-1])]}…{row[-1][-kept:]}"
        yield f"{'':{_INDENT}}{reason}"


def _groups(report: Report, zone: tzinfo | None) -> Iterator[str]:
    numbers = {3, 4, 5, 6, 7, 8}
    head = ("FIRST REQUEST", "LAST STORED", "BETWEEN", "STORED", "FAILED", "SIZE", "SLOWEST", "OVER", "")
    yield from table((report.by.upper(), *head), [_group(report, group, zone) for group in report.groups], numbers)
    if late := sum(map(report.late, report.groups)):
        yield f"{len(report.groups)} groups; LATE, {late} of them: no last object within {bound(report.late_usec)}"


def _group(report: Report, group: Group, zone: tzinfo | None) -> tuple[str, ...]:
    figures = group.figures
    notes = ("LATE",) * report.late(group) + ("INCOMPLETE",) * bool(figures.failed)
    return (
        one_line(group.name, 120),
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


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> Iterator[str]:
    """Rows under a head, columns aligned.

    Args:
        head: a name for each column.
        rows: of the same length.
        numbers: columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    shape = _GAP.join(f"{{:{'>' if column in numbers else '<'}{width}}}" for column, width in enumerate(widths))
    for cells in (head, *rows):
        yield shape.format(*cells).rstrip()


def destination(seen: ReportedTransfer) -> str:
    """bucket/key, fit for a line."""
    return one_line(f"{seen.record.bucket}/{seen.record.key}", 8192)


def moment(usec: int, zone: tzinfo | None) -> str:
    """A point in time for people, to the second."""
    return f"{_datetime(usec, zone):%Y-%m-%d %H:%M:%S}"


def zone_name(usec: int, zone: tzinfo | None) -> str:
    """What the zone is called at that time."""
    return f"{_datetime(usec, zone):%Z}"


def _datetime(usec: int, zone: tzinfo | None) -> datetime:
    return datetime.fromtimestamp(usec / 1e6, zone).astimezone(zone)
