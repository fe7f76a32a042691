"""What all charts of a picture share: colours, titles, limits, axes.

The colours are Okabe and Ito's, which people with any colour vision can tell apart; and nothing is shown by colour
alone: what is beyond its limit is hatched or a diamond, what failed is a cross, each line has its name at its end or in
the legend. Titles, legends and names of limits are outside the axes, where they hide nothing and nothing hides them.
"""

from __future__ import annotations

import math
from datetime import tzinfo
from typing import Any

from s3daemon.units import datetime_of

#: matplotlib's types, which are not there for everyone who checks types.
Axes = Any

BLUE, VERMILLION, SKY, BLACK = "#0072B2", "#D55E00", "#56B4E9", "#000000"
SMALL, NORMAL, LARGE = 11, 12, 15
_DAY_USEC = 86_400_000_000
_LEGEND_COLUMNS = 4
#: How times are shown on an axis that spans less than this many seconds.
_TIME_FORMATS = ((10, "%H:%M:%S.%f"), (900, "%H:%M:%S"), (86_400, "%H:%M"), (math.inf, "%m-%d\n%H:%M"))
_MOST_TIMES = 7
#: At both ends of an axis of times: for a single moment matplotlib would show years.
_LEAST_MARGIN_USEC = 500_000
#: Which of 1 to 9 a logarithmic axis shows, for less than this many decades.
_LOG_TICKS = ((1.2, (1, 1.5, 2, 3, 5, 7)), (3, (1, 2, 5)), (math.inf, (1,)))


def head(axes: Axes, title: str) -> None:
    """Put a title and the legend, where there is one, above the axes, one above the other."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SMALL)
    axes.xaxis.label.set_size(NORMAL)
    axes.yaxis.label.set_size(NORMAL)
    handles, names = axes.get_legend_handles_labels()
    rows = -(-len(names) // _LEGEND_COLUMNS)
    axes.set_title(title, loc="left", fontsize=LARGE, fontweight="bold", pad=8 + 19 * rows)
    if not names:
        return
    legend = axes.legend(
        handles, names, loc="lower left", bbox_to_anchor=(0, 1), ncols=_LEGEND_COLUMNS, fontsize=NORMAL,
        frameon=False, borderpad=0, borderaxespad=0.3, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_alpha(1)
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([40])


def limit_line(axes: Axes, value_s: float, name: str) -> None:
    """Draw a level limit, named at its end, right of the axes."""
    axes.axhline(value_s, color=VERMILLION, linewidth=1.5, zorder=2)
    axes.annotate(
        name, (1, value_s), xycoords=axes.get_yaxis_transform(), xytext=(5, 0), textcoords="offset points",
        ha="left", va="center", fontsize=NORMAL, color=VERMILLION, annotation_clip=False,
    )  # fmt: skip


def log_ticks(axis: Any, least: float, most: float) -> None:
    """Label an axis with round numbers, as many as fit, in plain digits."""
    from matplotlib import ticker

    decades = math.log10(most / least)
    subs = next(subs for below, subs in _LOG_TICKS if decades < below)
    axis.set_major_locator(ticker.LogLocator(subs=subs))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def time_axis(axes: Axes, first_usec: int, last_usec: int, zone: tzinfo | None) -> None:
    """Label the times between two moments, microseconds since the epoch."""
    from matplotlib import dates

    begin = datetime_of(first_usec, zone)
    margin_usec = max(_LEAST_MARGIN_USEC, (last_usec - first_usec) / 20)
    axes.set_xlim(date(first_usec - margin_usec), date(last_usec + margin_usec))
    shape = next(shape for below, shape in _TIME_FORMATS if (last_usec - first_usec) / 1e6 < below)
    axes.xaxis.set_major_locator(dates.AutoDateLocator(tz=begin.tzinfo, minticks=3, maxticks=_MOST_TIMES))
    digits = -5 if shape.endswith("%f") else None  # of six, one is enough
    axes.xaxis.set_major_formatter(lambda value, _: f"{dates.num2date(value, begin.tzinfo):{shape}}"[:digits])
    axes.set_xlabel(f"time of request, from {begin:%Y-%m-%d} on, {begin:%Z}")


def date(usec: float) -> float:
    """Return microseconds since the epoch as matplotlib counts them: in days."""
    return usec / _DAY_USEC
