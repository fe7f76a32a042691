"""Draw a report as three charts: the distribution of transfer times, transfer times over the night, and groups."""

from __future__ import annotations

import logging
import math
import warnings
from datetime import tzinfo
from pathlib import Path
from typing import Any

from s3daemon.commands.report.plot import groups
from s3daemon.commands.report.plot.axes import (
    BLACK,
    BLUE,
    LARGE,
    VERMILLION,
    Axes,
    date,
    head,
    limit_line,
    log_ticks,
    time_axis,
)
from s3daemon.commands.report.stats import Report
from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.units import limit, moment, plural, recent, seconds, size

Picture = Any

SUFFIXES = (".png", ".svg")
#: Inches and dots: letters of 12 points are 9 pixels high in a thumbnail of 480.
_SIZE, _DPI = (8, 11), 150
_SOLID, _DASHED, _DOTTED = "-", "--", ":"
_BINS_PER_DECADE = 20
#: More points than this are drawn small and faint, so that a crowd shows how dense it is.
_CROWD = 5_000
#: An outage makes more rings than this; they must not hide what they are around.
_MANY_RINGS, _RING, _THIN = 100, {"s": 60}, {"s": 16, "lw": 0.4}
_HOSTS_CHARS = 40


def save(report: Report, path: Path, zone: tzinfo | None) -> None:
    """Draw the report into a file.

    Args:
        report: with groups, and something stored.
        path: .png or .svg.
        zone: for points in time; None for the system's.

    Raises:
        S3daemonError: `NoPlotting`, matplotlib is not installed; `NotWritable`; `NothingStored`.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot keep its list of fonts
    picture = drawn(report, zone)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # for each letter of a name that its font lacks
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
        text = "--plot needs the package s3daemon-report, or pip install 's3daemon[report]'"
        raise S3daemonError(Code.NO_PLOTTING, text) from exc
    picture = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    axes = picture.subplots(3, 1)
    picture.suptitle(_title(report, zone), fontsize=LARGE, parse_math=False)
    _distribution(axes[0], report)
    _series(axes[1], report, zone)
    groups.draw(axes[2], report, zone)
    return picture


def _title(report: Report, zone: tzinfo | None) -> str:
    figures = report.figures
    hosts = one_line(", ".join(report.hosts))
    where = hosts if len(hosts) <= _HOSTS_CHARS else plural(len(report.hosts), "host")
    first, last = figures.first_usec or 0, figures.last_usec or 0
    period = f"{moment(first, zone)} to {recent(last, first, zone)}"
    failed = f"{figures.failed} FAILED" if figures.failed else "none failed"
    over = f"{figures.over_limit} over {limit(report.limit_usec)}"
    many = f"{figures.stored} stored, {failed}, {size(figures.size_bytes)}; {over}"
    return f"{where + ', ' if where else ''}{period}\n{many}"


def _distribution(axes: Axes, report: Report) -> None:
    totals = [max(one.record.total_usec, 1) / 1e6 for one in report.transfers if one.record.stored]
    limit_s = report.limit_usec / 1e6
    edges = _edges(min(totals), max(totals), limit_s)
    _, _, bars = axes.hist(totals, bins=edges, color=BLUE, edgecolor="white", linewidth=0.4)
    for bar, low in zip(bars, edges, strict=False):
        if low >= limit_s * (1 - 1e-9):
            bar.set(facecolor=VERMILLION, hatch="///")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.5, None)
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.set(xlabel="seconds from request to stored, logarithmic", ylabel="transfers, log.")
    log_ticks(axes.xaxis, edges[0], edges[-1])
    axes.axvline(limit_s, color=VERMILLION, linestyle=_SOLID, label=f"limit {limit(report.limit_usec)}")
    if spread := report.figures.total:
        axes.axvline(spread.p50_usec / 1e6, color=BLACK, linestyle=_DOTTED, label=f"p50 {seconds(spread.p50_usec)}")
        axes.axvline(spread.p99_usec / 1e6, color=BLACK, linestyle=_DASHED, label=f"p99 {seconds(spread.p99_usec)}")
    head(axes, "How long transfers took")


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
        (stored, "stored", {"color": BLUE, "s": 3 if crowd else 16, "alpha": faint, "lw": 0}),
        (over, "over the limit", {"color": VERMILLION, "marker": "D", "s": 24}),
        (again, "at a later attempt", {"fc": "none", "ec": BLACK, **(_THIN if len(again) > _MANY_RINGS else _RING)}),
        ([one.record for one in report.failed], "failed", {"color": BLACK, "marker": "x", "s": 70}),
    )
    for records, kind, look in kinds:
        if records:
            dates, times = [date(r.start_usec) for r in records], [max(r.total_usec, 1) / 1e6 for r in records]
            # Points as pixels: a vector for each would make an SVG of 200 000 transfers useless.
            axes.scatter(dates, times, rasterized=True, zorder=3, label=f"{kind}: {len(records)}", **look)
    axes.set_yscale("log")
    limit_line(axes, report.limit_usec / 1e6, f"limit {limit(report.limit_usec)}")
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel("seconds, logarithmic")
    time_axis(axes, report.transfers[0].record.start_usec, report.transfers[-1].record.start_usec, zone)
    head(axes, "When transfers were requested, and how long each took")
