"""Points in time as `journalctl --since` takes them: systemd.time(7), "PARSING TIMESTAMPS".

Pure: now comes in, and its zone with it.

    when  = "now" | "today" | "yesterday" | "tomorrow"
          | "@" seconds                     since the epoch
          | "+" span | "-" span | span " ago" | span " left"
          | [weekday] date [time] [zone]    without a time: 00:00
          | [weekday] time [zone]           today
    date  = 2026-11-23 | 26-11-23
    time  = 18:15 | 18:15:16 | 18:15:16.5   a "T" may join it to the date
    zone  = UTC | Z | +01:00 | Europe/Berlin
    span  = 2h 30min | 1.5d | 90            a plain number is seconds
"""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo

#: What an hour and its like are called, in seconds; a month is a twelfth of a year of 365.25 days, as systemd has it.
_UNITS = {
    name: seconds
    for names, seconds in (
        ("us usec µs", 1e-6),
        ("ms msec", 1e-3),
        ("s sec second seconds", 1),
        ("m min minute minutes", 60),
        ("h hr hour hours", 3600),
        ("d day days", 86400),
        ("w week weeks", 604800),
        ("M month months", 2629800),
        ("y year years", 31557600),
    )
    for name in names.split()
} | {"": 1}
_STEP = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-zµ]*)")
_DAYS = {"today": 0, "yesterday": -1, "tomorrow": 1}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_CALENDAR = re.compile(
    r"(?:(?P<weekday>[A-Za-z]+),?\s+)?"
    r"(?:(?P<year>[0-9]{4}|[0-9]{2})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2}))?"
    r"(?:(?:^|T|\s+|(?<=\s))(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:\.(?P<part>[0-9]{1,6}))?)?)?"
    r"\s*(?P<zone>Z|[+-][0-9]{2}:?[0-9]{2}|[A-Za-z][A-Za-z0-9_+/-]*)?"
)
#: A year of two digits: systemd takes 69 to 99 for the last century, as strptime(3) does.
_CENTURY_AT = 69


def usec_of(text: str, now: datetime) -> int:
    """The point in time that `text` names.

    Args:
        text: as above.
        now: what it is counted from; where the text names no zone, its zone counts, or, when it has none, the system's.

    Returns:
        Microseconds since the epoch.

    Raises:
        ValueError: the text names none.
    """
    text = text.strip()
    try:
        return _usec(_point(text, now))
    except (ValueError, OverflowError) as exc:
        raise ValueError(f"{text!r} is no time that journalctl takes: {exc}") from exc


def _usec(point: datetime) -> int:
    return (point - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _point(text: str, now: datetime) -> datetime:
    moment = now.astimezone()  # what has no zone has the system's
    if text == "now":
        return moment
    if text in _DAYS:
        return _local(now.tzinfo)(datetime.combine(now.date() + timedelta(_DAYS[text]), time()))
    if text.startswith("@"):
        return datetime.fromtimestamp(0, UTC) + timedelta(seconds=float(text[1:]))
    if text[:1] in ("+", "-"):
        return moment + _span(text[1:]) * (1 if text[0] == "+" else -1)
    for ending, sign in ((" ago", -1), (" left", 1)):
        if text.endswith(ending):
            return moment + _span(text.removesuffix(ending)) * sign
    return _calendar(text, now)


def _span(text: str) -> timedelta:
    at, seconds = 0, 0.0
    while step := _STEP.match(text, at):
        if step[2] not in _UNITS:
            raise ValueError(f"{step[2]!r} is no unit of time")
        seconds += float(step[1]) * _UNITS[step[2]]
        at = step.end()
    if at == 0 or text[at:].strip():
        raise ValueError("expected a span such as 2h 30min")
    return timedelta(seconds=seconds)


def _calendar(text: str, now: datetime) -> datetime:
    found = _CALENDAR.fullmatch(text)
    if found is None or not (found["year"] or found["hour"]):
        raise ValueError("expected such as '2026-11-23 18:15', 'yesterday', '-2h' or '@1795400534'")
    day = _date(found) if found["year"] else now.date()
    clock = time(int(found["hour"] or 0), int(found["minute"] or 0), int(found["second"] or 0), _micro(found["part"]))
    weekday, right = (found["weekday"] or "").lower(), _WEEKDAYS[day.weekday()]
    if weekday not in ("", right, right[:3]):
        raise ValueError(f"{day} is a {right.capitalize()}")
    return _zone(found["zone"], now.tzinfo)(datetime.combine(day, clock))


def _date(found: re.Match[str]) -> date:
    year = int(found["year"])
    if len(found["year"]) == 2:  # noqa: PLR2004 - two digits are two digits
        year += 1900 if year >= _CENTURY_AT else 2000
    return date(year, int(found["month"]), int(found["day"]))


def _micro(digits: str | None) -> int:
    return int((digits or "0").ljust(6, "0"))


def _local(zone: tzinfo | None) -> Callable[[datetime], datetime]:
    """Give a naive time the zone; None stands for the system's, whose offset depends on the time."""
    return (lambda naive: naive.replace(tzinfo=zone)) if zone else lambda naive: naive.astimezone()


def _zone(name: str | None, local: tzinfo | None) -> Callable[[datetime], datetime]:
    if name is None:
        return _local(local)
    if name in ("Z", "UTC"):
        return _local(UTC)
    if name[0] in "+-":
        hours, minutes = int(name[1:3]), int(name[-2:])
        return _local(timezone((1 if name[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes)))
    try:
        return _local(zoneinfo.ZoneInfo(name))
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise ValueError(f"{name!r} is no time zone") from exc
