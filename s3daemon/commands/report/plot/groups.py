"""The chart of a report's groups: the time to the last object of each exposure.

Few exposures are bars with their names, many are points over the time of the night. Where one took many times the
limit, the axis is logarithmic and says so: an outage is seen, and the rest of the night is too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from itertools import takewhile
from typing import Any

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
from s3daemon.commands.report.stats import LOST_USEC, WRONG, Group, Report
from s3daemon.errors import one_line
from s3daemon.units import limit, span

#: More exposures than this are points over time; fewer are bars with their names, level where they fit.
_MOST_BARS, _LEVEL_CHARS, _NAME_CHARS = 24, 60, 18
#: More bars than this have their time upright above them, and only where something is wrong.
_MOST_TIMES = 9
_MOST_STICKS = 400
#: Names have at least this many characters in common before these are left out.
_LEAST_COMMON = 4
#: Beyond this many times the limit a linear axis would flatten the rest.
_FLATTENING = 4
_LEAST_S = 0.05
#: The height of the chart over that of its highest bar: its time is written there.
_ROOM = 1.3


def draw(axes: Axes, report: Report, zone: tzinfo | None) -> None:
    """Draw the groups of a report, of which at least one transfer is stored."""
    times = [(group.figures.to_last_usec or 0) / 1e6 for group in report.groups]
    _scale(axes, times, report.late_usec / 1e6)
    if len(times) <= _MOST_BARS:
        _bars(axes, report, times)
    else:
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


def _bars(axes: Axes, report: Report, times: Sequence[float]) -> None:
    """Draw a bar with its name for each group."""
    bad = [report.verdict(group) in WRONG for group in report.groups]
    floor = axes.get_ylim()[0]
    heights = [max(time - floor, 0) for time in times]
    colors = [VERMILLION if is_bad else SKY for is_bad in bad]
    bars = axes.bar(
        range(len(times)), heights, width=0.65, bottom=floor, color=colors, edgecolor=BLACK, linewidth=0.5, zorder=3
    )
    turned = {"rotation": 90} if len(times) > _MOST_TIMES else {}
    for bar, is_bad, group, time_s in zip(bars, bad, report.groups, times, strict=True):
        bar.set_hatch("///" if is_bad else "")
        if is_bad or len(times) <= _MOST_TIMES:
            _label(axes, (bar.get_x() + bar.get_width() / 2, max(time_s, floor)), _words(group, time_s), **turned)
    _names(axes, [one_line(group.name.text) for group in report.groups])


def _words(group: Group, time_s: float) -> str:
    reached = _time(time_s) if group.figures.stored else "none\nstored"
    failed = sum(count for _, count in group.missing.failed)
    return f"{reached}\n{failed} failed" if failed and group.figures.stored else reached


def _time(time_s: float) -> str:
    return f"{time_s:.3g} s" if time_s < 999.5 else span(time_s)  # noqa: PLR2004 - from here on three digits read 1e+03


def _label(axes: Axes, at: tuple[float, float], text: str, **look: Any) -> None:
    """Write above a point, upon whatever line runs there."""
    patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9}
    axes.annotate(
        text, at, textcoords="offset points", va="bottom", fontsize=SMALL, bbox=patch, zorder=5, parse_math=False,
        **{"ha": "center", "xytext": (0, 3), **look},
    )  # fmt: skip


def _names(axes: Axes, names: Sequence[str]) -> None:
    """Name the bars; what all names begin with is below the axis once."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(min(names), max(names), strict=False))
    common = "".join(sign for sign, _ in alike) if len(names) > 1 else ""
    common = common[: max(common.rfind(sign) for sign in "_-/.: ") + 1]
    if len(common) >= _LEAST_COMMON:
        axes.set_xlabel(f"{common}…", parse_math=False)
        names = [name[len(common) :] for name in names]
    most = max(_NAME_CHARS, _LEVEL_CHARS // max(len(names), 3))
    shown = [name if len(name) <= most else "…" + name[1 - most :] for name in names]
    crowded = sum(len(name) + 1 for name in shown) > _LEVEL_CHARS
    turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
    axes.set_xticks(range(len(names)), shown, parse_math=False, **turned)
    axes.set_xlim(-0.7, max(len(names), 3) - 0.3)


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
        _label(axes, (dates[worst], shown[worst]), text, ha=side, xytext=(0, 8))
