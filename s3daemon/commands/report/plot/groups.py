"""The chart of a report's groups: the time to the last object of each exposure.

Each is a point at the time of its first request; the worst has its name. Where one took many times the limit, the axis
is logarithmic and says so: an outage is seen, and the rest of the night is too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo

from s3daemon.commands.report.plot.axes import (
    BLACK,
    BLUE,
    SKY,
    SMALL,
    VERMILLION,
    Axes,
    date,
    head,
    limit_line,
    log_ticks,
    time_axis,
)
from s3daemon.commands.report.stats import LOST_USEC, WRONG, Report
from s3daemon.errors import one_line
from s3daemon.units import limit, span

#: More sticks than this would be a wall.
_MOST_STICKS = 400
#: Beyond this many times the limit a linear axis would flatten the rest.
_FLATTENING = 4
_LEAST_S = 0.05
#: The height of the chart over that of its highest point: the worst one's name is written there.
_ROOM = 1.3


def draw(axes: Axes, report: Report, zone: tzinfo | None) -> None:
    """Draw the groups of a report, of which at least one transfer is stored."""
    times = [(group.figures.to_last_usec or 0) / 1e6 for group in report.groups]
    _scale(axes, times, report.late_usec / 1e6)
    _points(axes, report, times)
    usecs = [group.first_usec for group in report.groups]
    time_axis(axes, min(usecs), max(usecs), zone)
    limit_line(axes, report.late_usec / 1e6, f"late {limit(report.late_usec)}")
    if max(times) > LOST_USEC / 1e6 > report.late_usec / 1e6:
        limit_line(axes, LOST_USEC / 1e6, f"lost {limit(LOST_USEC)}")
    head(axes, f"Time to the last object, by {report.by}")


def _scale(axes: Axes, times: Sequence[float], limit_s: float) -> None:
    """Choose the scale of the seconds, and say which it is."""
    if max(times) <= _FLATTENING * limit_s:
        axes.set_ylabel("seconds")
        axes.set_ylim(0, max(limit_s, *times) * _ROOM)
        return
    least = max(_LEAST_S, min(limit_s, *(time for time in times if time > 0)) / 2)
    most = max(times) * (max(times) / least) ** (_ROOM - 1)
    axes.set_yscale("log")
    axes.set_ylim(least, most)
    log_ticks(axes.yaxis, least, most)
    axes.set_ylabel("seconds, logarithmic")


def _time(time_s: float) -> str:
    return f"{time_s:.3g} s" if time_s < 999.5 else span(time_s)  # noqa: PLR2004 - from here on three digits read 1e+03


def _points(axes: Axes, report: Report, times: Sequence[float]) -> None:
    """Draw a point for each group, at the time of its first request, and name the worst."""
    dates = [date(group.first_usec) for group in report.groups]
    floor = axes.get_ylim()[0]
    shown = [max(time, floor) for time in times]
    if len(times) <= _MOST_STICKS:
        axes.vlines(dates, floor, shown, colors=SKY, linewidth=0.8)
    verdicts = [report.verdict(group) for group in report.groups]
    for verdict, marker, color, points in (
        ("in time", "o", BLUE, 12), ("late", "D", VERMILLION, 26), ("lost", "s", VERMILLION, 34),
        ("incomplete", "X", BLACK, 60), ("untagged", ".", BLACK, 12),
    ):  # fmt: skip
        at = [number for number, found in enumerate(verdicts) if found == verdict]
        if at:
            look = {"s": points, "marker": marker, "color": color, "label": f"{verdict}: {len(at)}"}
            axes.scatter([dates[n] for n in at], [shown[n] for n in at], rasterized=True, zorder=4, **look)
    bad = [number for number, verdict in enumerate(verdicts) if verdict in WRONG]
    if bad:
        worst = max(bad, key=times.__getitem__)
        text = f"{one_line(report.groups[worst].name.text, 40)}, {_time(times[worst])}"
        place = (dates[worst] - dates[0]) / max(dates[-1] - dates[0], 1e-9)  # where in the night it is
        side = "left" if place < 1 / 3 else "right" if place > 2 / 3 else "center"
        patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}  # upon whatever line runs there
        axes.annotate(
            text, (dates[worst], shown[worst]), textcoords="offset points", xytext=(0, 8), ha=side, va="bottom",
            fontsize=SMALL, bbox=patch, zorder=5, parse_math=False,
        )  # fmt: skip
