"""Draw a report as a picture, by matplotlib, which only `--plot FILE` needs and imports.

The colours are Okabe and Ito's, which people with any colour vision can tell apart; and nothing is shown by colour
alone: what is beyond its limit is hatched, what failed is a cross, each line has its own dashes and its name in the
legend. Legends are above the axes, where they hide nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any

from s3daemon.commands.report.stats import Report
from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.units import datetime_of, limit, seconds, size

#: matplotlib's types, which are not there for everyone who checks types.
Axes = Any
Picture = Any

SUFFIXES = (".png", ".svg")
_BLUE, _VERMILLION, _SKY, _BLACK = "#0072B2", "#D55E00", "#56B4E9", "#000000"
_LIMIT, _DASHED, _DOTTED = "-", "--", ":"
_DPI = 110
_DAY_USEC = 86_400_000_000
_BINS_PER_DECADE = 20
#: More points than this are drawn small and faint, so that a crowd shows how dense it is.
_CROWD = 5_000
#: An outage makes more rings than this; they must not hide what they are around.
_MANY_RINGS, _RING, _THIN = 100, {"s": 50}, {"s": 14, "lw": 0.3}
#: More groups than this are points over time; fewer are bars with their names, level where they fit.
_MOST_BARS, _MOST_LEVEL_NAMES, _NAME_CHARS = 30, 6, 24
_MOST_STICKS = 400
_HOSTS_CHARS = 60
#: How times are shown on an axis that spans less than so many seconds.
_TIME_FORMATS = ((900, "%H:%M:%S"), (86_400, "%H:%M"), (math.inf, "%m-%d %H:%M"))
#: Which of 1 to 9 a logarithmic axis shows, for less than so many decades.
_LOG_TICKS = ((1.5, (1, 1.5, 2, 3, 4, 5, 7)), (3, (1, 2, 5)), (math.inf, (1,)))


def save(report: Report, path: Path, zone: tzinfo | None) -> None:
    """Draw the report into a file.

    Args:
        report: with groups, and something stored.
        path: .png or .svg.
        zone: for points in time; None for the system's.

    Raises:
        S3daemonError: `NoPlotting`, matplotlib is not installed; `NotWritable`; `NothingStored`.
    """
    picture = drawn(report, zone)
    try:
        picture.savefig(path)
    except OSError as exc:
        raise S3daemonError(Code.NOT_WRITABLE, f"cannot write {path}: {exc.strerror or exc}") from exc


def drawn(report: Report, zone: tzinfo | None) -> Picture:
    """Draw three charts, from the top: how long, when, each group's last object; raise as `save` does."""
    if not report.figures.stored:
        raise S3daemonError(Code.NOTHING_STORED, "nothing was stored, so there is nothing to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        text = "--plot takes the package s3daemon-report, or pip's s3daemon[report]"
        raise S3daemonError(Code.NO_PLOTTING, text) from exc
    picture = Figure(figsize=(13, 12), dpi=_DPI, layout="constrained")
    axes = picture.subplots(3, 1)
    picture.suptitle(_title(report), fontsize=13)
    _distribution(axes[0], report)
    _series(axes[1], report, zone)
    _groups(axes[2], report, zone)
    return picture


def _title(report: Report) -> str:
    figures = report.figures
    hosts = one_line(", ".join(report.hosts))
    where = f"{hosts}: " if hosts else ""
    if len(hosts) > _HOSTS_CHARS:
        where = f"{len(report.hosts)} hosts: "
    many = f"{figures.stored} transfers stored, {figures.failed} failed, {size(figures.size_bytes)}"
    return f"{where}{many}; {figures.over_limit} over {limit(report.limit_usec)}"


def _distribution(axes: Axes, report: Report) -> None:
    totals = [max(one.record.total_usec, 1) / 1e6 for one in report.transfers if one.record.stored]
    limit_s = report.limit_usec / 1e6
    edges = _edges(min(totals), max(totals), limit_s)
    _, _, bars = axes.hist(totals, bins=edges, color=_BLUE, edgecolor="white", linewidth=0.4)
    for bar, low in zip(bars, edges, strict=False):
        if low >= limit_s * (1 - 1e-9):
            bar.set(facecolor=_VERMILLION, hatch="///")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="seconds from request to stored, logarithmic", ylabel="transfers, logarithmic")
    _log_ticks(axes.xaxis, math.log10(edges[-1] / edges[0]))
    axes.axvline(limit_s, color=_VERMILLION, linestyle=_LIMIT, label=f"limit {limit(report.limit_usec)}")
    if spread := report.figures.total:
        axes.axvline(spread.p50_usec / 1e6, color=_BLACK, linestyle=_DOTTED, label=f"p50 {seconds(spread.p50_usec)}")
        axes.axvline(spread.p99_usec / 1e6, color=_BLACK, linestyle=_DASHED, label=f"p99 {seconds(spread.p99_usec)}")
    _head(axes, "How long transfers took")


def _edges(least: float, most: float, limit_s: float) -> list[float]:
    """Return the edges of classes, even on a logarithmic scale, with one exactly at the limit."""
    step = 1 / _BINS_PER_DECADE
    first = math.floor(math.log10(least / limit_s) / step)
    last = max(math.floor(math.log10(most / limit_s) / step) + 1, first + 1)
    return [limit_s * 10 ** (at * step) for at in range(first, last + 1)]


def _series(axes: Axes, report: Report, zone: tzinfo | None) -> None:
    stored = [one.record for one in report.transfers if one.record.stored]
    over = [record for record in stored if record.total_usec > report.limit_usec]
    again = [record for record in stored if record.attempts > 1]
    crowd = len(stored) > _CROWD
    faint = max(0.15, min(0.6, 2 * _CROWD / max(len(stored), 1)))
    kinds: tuple[tuple[list[Any], str, dict[str, Any]], ...] = (
        (stored, "stored", {"color": _BLUE, "s": 2 if crowd else 12, "alpha": faint, "lw": 0}),
        (over, "over the limit", {"color": _VERMILLION, "marker": "D", "s": 18}),
        (again, "at a later attempt", {"fc": "none", "ec": _BLACK, **(_THIN if len(again) > _MANY_RINGS else _RING)}),
        ([one.record for one in report.failed], "failed", {"color": _BLACK, "marker": "x", "s": 50}),
    )
    for records, kind, look in kinds:
        if records:
            dates, times = [_date(r.start_usec) for r in records], [max(r.total_usec, 1) / 1e6 for r in records]
            # Points as pixels: a vector for each would make an SVG of 200 000 transfers useless.
            axes.scatter(dates, times, rasterized=True, zorder=3, label=f"{kind}: {len(records)}", **look)
    name = f"limit {limit(report.limit_usec)}"
    axes.axhline(report.limit_usec / 1e6, color=_VERMILLION, linestyle=_LIMIT, label=name)
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    _log_ticks(axes.yaxis, math.log10(high / low))
    axes.set_ylabel("seconds from request to end, logarithmic")
    _time_axis(axes, report, zone)
    _head(axes, "When")


def _groups(axes: Axes, report: Report, zone: tzinfo | None) -> None:
    times = [(group.figures.to_last_usec or 0) / 1e6 for group in report.groups]
    axes.set_ylabel("seconds from first request")
    axes.set_ylim(0, max([report.late_usec / 1e6, *times]) * 1.15)
    if len(times) <= _MOST_BARS:
        _bars(axes, report, times)
    else:
        _points(axes, report, times)
        _time_axis(axes, report, zone)
    axes.axhline(report.late_usec / 1e6, color=_VERMILLION, linestyle=_LIMIT, label=f"late: {limit(report.late_usec)}")
    _head(axes, f"Time to the last object, by {report.by}")


def _bars(axes: Axes, report: Report, times: Sequence[float]) -> None:
    """Draw a bar with its name for each group."""
    late = [report.late(group) for group in report.groups]
    colors = [_VERMILLION if is_late else _SKY for is_late in late]
    bars = axes.bar(range(len(times)), times, width=0.6, color=colors, edgecolor=_BLACK, linewidth=0.5)
    for bar, is_late, group, to_last_s in zip(bars, late, report.groups, times, strict=True):
        bar.set_hatch("///" if is_late else "")
        reached = f"{to_last_s:.3g} s" if group.figures.stored else "nothing stored"
        text = f"{reached}\n{group.figures.failed} failed" if group.figures.failed else reached
        axes.annotate(text, (bar.get_x() + bar.get_width() / 2, to_last_s), ha="center", va="bottom", fontsize=9)
    names = [one_line(group.name) for group in report.groups]
    shown = [name if len(name) <= _NAME_CHARS else "…" + name[1 - _NAME_CHARS :] for name in names]
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(names) > _MOST_LEVEL_NAMES else {}
    axes.set_xticks(range(len(names)), shown, fontsize=9, parse_math=False, **turned)
    axes.set_xlim(-0.7, max(len(times), 3) - 0.3)


def _points(axes: Axes, report: Report, times: Sequence[float]) -> None:
    """Draw a point for each group, at the time of its first request."""
    dates = [_date(group.figures.first_usec or 0) for group in report.groups]
    if len(times) <= _MOST_STICKS:
        axes.vlines(dates, 0, times, colors=_SKY, linewidth=0.8)
    kinds = [
        "incomplete" if group.figures.failed else "late" if report.late(group) else "in time" for group in report.groups
    ]
    for kind, marker, color, points in (
        ("in time", "o", _BLUE, 8), ("late", "D", _VERMILLION, 18), ("incomplete", "x", _BLACK, 40),
    ):  # fmt: skip
        at = [number for number, found in enumerate(kinds) if found == kind]
        if at:
            look = {"s": points, "marker": marker, "color": color, "label": f"{kind}: {len(at)}"}
            axes.scatter([dates[n] for n in at], [times[n] for n in at], rasterized=True, **look)


def _head(axes: Axes, title: str) -> None:
    """Put a title to the left and the legend to the right, both above the axes."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    legend = axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, fontsize=10, frameon=False, borderpad=0)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([30])
    axes.grid(alpha=0.3)


def _log_ticks(axis: Any, decades: float) -> None:
    """Label an axis with round numbers, as many as fit, in plain digits."""
    from matplotlib import ticker

    subs = next(subs for below, subs in _LOG_TICKS if decades < below)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _time_axis(axes: Axes, report: Report, zone: tzinfo | None) -> None:
    from matplotlib import dates

    first_s = (report.figures.first_usec or 0) / 1e6
    begin = datetime_of(report.figures.first_usec or 0, zone)
    span_s = (report.transfers[-1].record.start_usec / 1e6) - first_s
    shape = next(shape for below, shape in _TIME_FORMATS if span_s < below)
    axes.xaxis.set_major_locator(dates.AutoDateLocator(tz=begin.tzinfo))
    axes.xaxis.set_major_formatter(dates.DateFormatter(shape, tz=begin.tzinfo))
    axes.set_xlabel(f"time of request, from {begin:%Y-%m-%d} on, {begin:%Z}")


def _date(usec: int) -> float:
    """Return microseconds since the epoch as matplotlib counts them: in days."""
    return usec / _DAY_USEC
