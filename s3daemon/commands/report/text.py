"""Write a report as text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from textwrap import TextWrapper

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.commands.report.stats import LOST_USEC, METHOD, WRONG, Figures, Group, Report, Spread
from s3daemon.commands.report.why import Breakdown
from s3daemon.commands.table import Column, Table
from s3daemon.commands.table import lines as table_lines
from s3daemon.errors import one_line
from s3daemon.model.exposure import UNTAGGED
from s3daemon.units import clock_time, limit, moment, plural, seconds, size, zone_name

#: Failures that are shown one by one; a bad night has thousands of one kind, and `--json` has them all.
_SHOWN_FAILURES = 10
_DESTINATION = Column("DESTINATION", place="fold")
_REASON = Column("", place="below")
_HOST = Column("HOST", optional=True, place="fold")


def lines(report: Report, zone: tzinfo | None, width: int | None = None) -> Iterator[str]:
    """Yield the report, line by line.

    Args:
        report: at least one transfer or refused request in it.
        zone: for points in time; None for the system's.
        width: of the terminal; None leaves lines as long as they are.
    """
    if report.wrong_only:
        yield from table_lines(_groups(report, zone), width) if report.groups else [f"none is {', '.join(WRONG)}"]
        yield from _total(report)
        yield ""
    figures = report.figures
    for line in _head(report, zone):
        yield from (
            [line] if width is None else TextWrapper(width, break_on_hyphens=False, break_long_words=False).wrap(line)
        )
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
    if report.by and not report.wrong_only:
        yield ""
        yield from table_lines(_groups(report, zone), width)
        yield from _total(report)


def _head(report: Report, zone: tzinfo | None) -> Iterator[str]:
    figures = report.figures
    failed = f"{figures.failed} FAILED" if figures.failed else "none failed"
    refused = f"; not accepted: {_counts(report.refused_codes)}" if report.refused_codes else ""
    yield f"{plural(figures.transfers, 'transfer')}: {figures.stored} stored, {failed}{refused}"
    rate = figures.rate_bytes_per_s
    busy = f" in {seconds(figures.busy_usec)} of uploading: {size(rate)}/s" if rate is not None else ""
    yield f"{size(figures.size_bytes)} stored{busy}"
    first, last = figures.first_usec or 0, figures.last_usec or 0
    begin, end = zone_name(first, zone), zone_name(last, zone)
    period = f"from {moment(first, zone)}{'' if begin == end else f' {begin}'} to {moment(last, zone)} {end}"
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
    columns = (Column("ATTEMPTS", align="right"), Column("ENDED"), _DESTINATION, _HOST, _REASON)
    rows = [
        (
            str(one.record.attempts),
            moment(one.end_usec, zone),
            "/".join(one.place),
            _host(report, one),
            one.record.error,
        )
        for one in report.failed[:_SHOWN_FAILURES]
    ]
    return Table(columns, rows, f"FAILED: {_counts(report.figures.codes)}")


def _slowest(report: Report, zone: tzinfo | None) -> Table:
    columns = (
        Column("TOTAL", align="right"),
        Column("REQUESTED"),
        Column("SIZE", align="right"),
        _DESTINATION,
        _HOST,
        _REASON,
    )
    rows = [
        (
            seconds(one.record.total_usec),
            moment(one.record.start_usec, zone),
            size(one.record.size_bytes),
            "/".join(one.place),
            _host(report, one),
            Breakdown.of(one, report.delays, zone).text,
        )
        for one in report.slowest
    ]
    return Table(columns, rows, "SLOWEST")


def _groups(report: Report, zone: tzinfo | None) -> Table:
    columns = (
        Column(report.by.upper(), place="fold"),
        Column("FIRST REQUEST", place="drop", optional=True),
        Column("LAST STORED", place="drop", optional=True),
        Column("ELAPSED", align="right", optional=True),
        Column("STORED", align="right"),
        Column("FAILED", align="right"),
        Column("SIZE", align="right", place="drop"),
        Column("SLOWEST", align="right", place="drop"),
        Column("OVER", align="right", place="drop"),
        Column("", optional=True),
        _REASON,
    )
    return Table(columns, [_group(report, group, zone) for group in report.groups])


def _group(report: Report, group: Group, zone: tzinfo | None) -> Sequence[str]:
    figures = group.figures
    verdict = report.verdict(group)
    last = "-" if figures.last_stored_usec is None else clock_time(figures.last_stored_usec, zone)
    between = "-" if figures.to_last_usec is None else seconds(figures.to_last_usec)
    # Those of a host or a receiver, of which the verdict is "", are the night's.
    times = (moment(group.first_usec, zone), last, between) if verdict else ("",) * 3
    return (
        group.name.text,
        *times,
        str(figures.stored),
        str(figures.failed),
        size(figures.size_bytes),
        "-" if figures.total is None else seconds(figures.total.max_usec),
        str(figures.over_limit),
        verdict.upper() if verdict in WRONG else "" if verdict == "in time" else verdict,
        _reason(report, group, verdict, zone) if verdict in WRONG or group.missing.refused else "",
    )


def _reason(report: Report, group: Group, verdict: str, zone: tzinfo | None) -> str:
    """Say in one line what is wrong with a group: the files that it lacks, and what its last object waited for."""
    found = []
    if group.name.exposure and group.files < report.expected.files:
        found.append(f"{group.files} of {plural(report.expected.files, 'file')}")
    for what, codes in (("failed", group.missing.failed), ("refused", group.missing.refused)):
        if codes:
            found.append(f"{what}: {_counts(codes)}")
    if group.last is not None and verdict in ("late", "lost"):
        host = _host(report, group.last)
        on = f" on {host}" if host else ""
        name = group.last.record.key.rpartition("/")[2]
        found.append(f"last {name}{on}: {Breakdown.of(group.last, report.delays, zone).text}")
    return "; ".join(found)


def _total(report: Report) -> Iterator[str]:
    """Say how many exposures are what, by which limits."""
    verdicts = Counter(report.verdict(group) for group in report.groups)
    many = [f"{verdicts[word]} {word}" for word in ("in time", *WRONG, UNTAGGED) if verdicts[word]]
    if many:
        limits = f"late after {limit(report.late_usec)}, lost after {limit(max(report.late_usec, LOST_USEC))}"
        yield f"{plural(len(report.groups), 'group')}: {', '.join(many)}; {limits}"
    if many and report.expected.learned_from:
        what = f"{plural(report.expected.files, 'file')} each, as {report.expected.learned_from} exposures have"
        yield f"expected: {what}; --expect N sets another number"


def _counts(codes: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{count} {one_line(code, 60)}" for code, count in codes)


def _host(report: Report, one: ReportedTransfer) -> str:
    """The host of a transfer, where there are several."""
    return one.host if len(report.hosts) > 1 else ""
