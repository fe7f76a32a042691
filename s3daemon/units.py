"""Sizes and spans of time as text for people."""

from __future__ import annotations

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
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # noqa: PLR2004 - from here on three digits read 1e+03
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
