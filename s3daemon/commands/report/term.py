"""A report's charts in characters, for a terminal: how long transfers took, when, and each group's last object.

What is within its limit is full, what is beyond is hatched; nothing is told by colour. Where the output cannot show
block characters, ASCII stands for them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from itertools import pairwise

from s3daemon.commands.report.stats import Group, Report, percentile
from s3daemon.commands.report.text import moment, zone_name
from s3daemon.commands.report.why import bound, seconds
from s3daemon.errors import one_line

FULL, BEYOND, LINE, LESS, CROSS = "█", "▒", "─", "▏", "×"
_ASCII = str.maketrans({FULL: "#", BEYOND: ":", LINE: "-", LESS: "|", CROSS: "x", "…": "~"})
#: Bounds of the classes of times within each decade: close to even steps on a logarithmic scale, and round.
_STEPS = (1, 1.5, 2, 3, 5, 7)
_ROWS = 10
_MOST_GROUPS = 30
_NAME = 28
_LABEL = 10


def charts(report: Report, zone: tzinfo | None, width: int, encoding: str = "utf-8") -> Iterator[str]:
    """Lines no longer than `width`.

    Args:
        report: at least one stored transfer makes a chart.
        zone: for points in time; None for the system's.
        width: characters, 40 at least.
        encoding: of the output.
    """
    try:
        (FULL + BEYOND + LINE + LESS + CROSS + "…").encode(encoding)
        ascii_only = False
    except UnicodeEncodeError:
        ascii_only = True
    for line in _charts(report, zone, max(width, 40)):
        yield line.translate(_ASCII) if ascii_only else line


def _charts(report: Report, zone: tzinfo | None, width: int) -> Iterator[str]:
    totals = [seen.record.total_usec for seen in report.sightings if seen.record.stored]
    if not totals:
        yield "nothing was stored, so there is no chart"
        return
    yield from _distribution(totals, report.limit_usec, width)
    yield ""
    yield from _series(report, zone, width)
    if report.groups:
        yield ""
        yield from _groups(report, width)


def _distribution(totals: Sequence[int], limit_usec: int, width: int) -> Iterator[str]:
    """How many took how long: classes of times, as bars."""
    bounds = _bounds(min(totals), max(totals), limit_usec)
    counts = [0] * (len(bounds) - 1)
    for usec in totals:
        counts[max(bisect_left(bounds, usec) - 1, 0)] += 1
    digits = len(str(max(counts)))
    room = width - 2 * _LABEL - digits - 3
    yield f"HOW LONG {len(totals)} stored transfers took"
    for (low, high), count in zip(pairwise(bounds), counts, strict=True):
        if low == limit_usec:
            yield _ruled(f"limit {bound(limit_usec)}", width)
        span = f"{seconds(low):>{_LABEL}}{seconds(high):>{_LABEL}}"
        yield f"{span} {count:>{digits}} {_bar(count, max(counts), room, beyond=low >= limit_usec)}".rstrip()


def _bounds(least: int, most: int, limit_usec: int) -> list[int]:
    """Bounds of classes from `least` to `most`, the limit among them if it lies between."""
    decades = range(math.floor(math.log10(max(least, 1))) - 1, math.ceil(math.log10(max(most, 1))) + 1)
    all_bounds = sorted({round(step * 10**decade) for decade in decades for step in _STEPS})
    first = max((at for at, bound in enumerate(all_bounds) if bound < least), default=0)
    last = max(bisect_left(all_bounds, most), first + 1)
    bounds = set(all_bounds[first : last + 1])
    if min(bounds) < limit_usec < max(bounds):
        bounds.add(limit_usec)
    return sorted(bounds)


def _bar(value: float, most: float, room: int, *, beyond: bool) -> str:
    """A bar; what is too little for one character is a thin one."""
    length = round(value / most * room) if most else 0
    return (BEYOND if beyond else FULL) * length or (LESS if value else "")


def _series(report: Report, zone: tzinfo | None, width: int) -> Iterator[str]:
    """Median and longest time of each moment of the night, on a logarithmic scale, with the limit as a line."""
    limit = f"limit {bound(report.limit_usec)}"
    margin = max(len(limit), _LABEL)
    room = width - margin - 1
    begin = report.figures.first_usec or 0
    step = max(1, -(-(max(seen.record.start_usec for seen in report.sightings) + 1 - begin) // room))
    slots: list[list[int]] = [[] for _ in range(room)]
    failed = [" "] * room
    for seen in report.sightings:
        slot = (seen.record.start_usec - begin) // step
        if seen.record.stored:
            slots[slot].append(max(seen.record.total_usec, 1))
        else:
            failed[slot] = CROSS
    tops = [(percentile(sorted(slot), 50), max(slot)) if slot else (0, 0) for slot in slots]
    least = min(median for median, _ in tops if median)
    most = max(*(longest for _, longest in tops), round(report.limit_usec * 1.2), least * 2)
    levels = [least * (most / least) ** (row / _ROWS) for row in range(_ROWS)]
    at_limit = sum(level <= report.limit_usec for level in levels) - 1
    yield f"WHEN, by time of request: {FULL} median, {BEYOND} longest, of each {seconds(step)}"
    for row in reversed(range(_ROWS)):
        blank = LINE if row == at_limit else " "
        cells = (
            FULL if median >= levels[row] else BEYOND if longest >= levels[row] else blank for median, longest in tops
        )
        name = limit if row == at_limit else seconds(levels[row])
        yield f"{name:>{margin}} {''.join(cells)}".rstrip()
    if CROSS in failed:
        yield f"{'failed':>{margin}} {''.join(failed)}".rstrip()
    left, right = moment(begin, zone), f"{moment(begin + step * room, zone)[11:]} {zone_name(begin, zone)}"
    yield f"{'':{margin}} {left}{right:>{room - len(left)}}"


def _groups(report: Report, width: int) -> Iterator[str]:
    """The time from each group's first request to its last object."""
    found = [(group, group.figures.to_last_usec or 0) for group in report.groups]
    shown = sorted(found, key=lambda pair: -pair[1])[:_MOST_GROUPS]
    names = {group.name for group, _ in shown}
    which = f"the {len(shown)} longest of {len(found)}" if len(found) > len(shown) else "all"
    yield f"TIME TO THE LAST OBJECT by {report.by}, {which}; {BEYOND} late, after {bound(report.late_usec)}"
    most = max(usec for _, usec in shown)
    room = width - _NAME - _LABEL - 2 - len(" 9999 FAILED")
    for group, usec in found:
        if group.name in names:
            bar = _bar(usec, most, room, beyond=report.late(group))
            yield f"{_name(group):<{_NAME}} {seconds(usec):>{_LABEL}} {bar}{_failed(group)}"


def _name(group: Group) -> str:
    """The end of a name tells exposures apart."""
    name = one_line(group.name)
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]


def _failed(group: Group) -> str:
    return f" {group.figures.failed} FAILED" if group.figures.failed else ""


def _ruled(text: str, width: int) -> str:
    return f"{LINE * (2 * _LABEL - len(text) - 1)} {text} {LINE * (width - 2 * _LABEL - 1)}"
