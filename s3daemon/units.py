"""Sizes, spans of time and points in time as text for people; and numbers from text."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

#: The beginning of the year 3000, microseconds since the epoch. What claims to be later is no time: Python has no date
#: from the year 10000 on, and an axis of a picture goes beyond its last one.
END_USEC = 32_503_680_000_000_000
#: The beginning of the year 2000, likewise. What claims to be earlier is no time: a clock that was never set.
BEGIN_USEC = 946_684_800_000_000

_SPANS = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def span(seconds: float) -> str:
    """Seconds for people, in at most six characters up to a thousand days."""
    whole = int(seconds)
    for unit, name, lesser, lesser_name in _SPANS:
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // lesser:02}{lesser_name}"
    return f"{whole}s"


def size(count: float) -> str:
    """Bytes for people, decimal as links and disks are sold."""
    return _prefixed(count, "B")


def _prefixed(number: float, unit: str) -> str:
    """Return a number in three digits, with the prefix that takes."""
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:  # noqa: PLR2004 - from here on three digits read 1e+03
            return f"{number:.3g} {prefix}{unit}"
        number /= 1000
    return f"{number:.3g} T{unit}"


def whole(text: str) -> int:
    """Return the number that a text of ASCII digits stands for.

    Raises:
        ValueError: it has anything else, as a sign, a space or another script's digits, or far too many.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def plural(count: int, noun: str) -> str:
    """A number of things: `1 file`, `2 files`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def rate(bits_per_s: float) -> str:
    """Return a bandwidth for people, such as "994 Mbit/s"."""
    return _prefixed(bits_per_s, "bit/s")


def seconds(usec: float) -> str:
    """Return microseconds as seconds with four digits, milliseconds at most: `0.241 s`, `123.5 s`."""
    value = usec / 1e6
    for below, digits in ((10, 3), (100, 2), (1000, 1)):
        if value < below:
            return f"{value:.{digits}f} s"
    return f"{value:.0f} s"


def limit(usec: int) -> str:
    """Return a limit in microseconds as an operator would write it: `7 s`."""
    return f"{usec / 1e6:g} s"


def moment(usec: int, zone: tzinfo | None) -> str:
    """Return a point in time, to the second, in a zone; None for the system's.

    Args:
        usec: microseconds since the epoch, from 0 to before `END_USEC`; likewise below.
        zone: None for the system's.
    """
    return f"{datetime_of(usec, zone):%Y-%m-%d %H:%M:%S}"


def clock_time(usec: int, zone: tzinfo | None = None) -> str:
    """Return the time of day of a point in time, to the second, in a zone; None for the system's."""
    return f"{datetime_of(usec, zone):%H:%M:%S}"


def recent(usec: int, now_usec: int, zone: tzinfo | None) -> str:
    """Return a point in time as `clock_time` does, after its date where that is not the one of `now_usec`."""
    today, _, _ = moment(now_usec, zone).partition(" ")
    return moment(usec, zone).removeprefix(f"{today} ")


def zone_name(usec: int, zone: tzinfo | None) -> str:
    """Return what the zone is called at that time."""
    return f"{datetime_of(usec, zone):%Z}"


def datetime_of(usec: int, zone: tzinfo | None) -> datetime:
    """Return a point in time, in microseconds since the epoch, with its zone; None for the system's.

    In UTC where the environment's TZ is a day or more away from it, which is no zone to Python.
    """
    moment = datetime.fromtimestamp(usec / 1e6, UTC)
    try:
        return moment.astimezone(zone)
    except ValueError:
        return moment
