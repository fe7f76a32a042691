"""Sizes and spans of time as text for people."""

from __future__ import annotations

import re
import time
from datetime import UTC, timedelta, timezone, tzinfo

import pytest

from s3daemon.units import (
    END_USEC,
    limit,
    moment,
    rate,
    recent,
    seconds,
    size,
    span,
    zone_name,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (200_000, "2d07h")],
)
def test_a_span_has_two_units_at_most(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_499, "999 kB"), (999_500, "1 MB"), (5 << 40, "5.5 TB")],
)
def test_a_size_has_three_digits_at_most(count: int, text: str) -> None:
    assert size(count) == text
    assert rate(count) == text.replace("B", "bit/s")


@pytest.mark.parametrize(
    ("usec", "text"),
    [(0, "0.000 s"), (241_499, "0.241 s"), (9_999_000, "9.999 s"), (12_345_678, "12.35 s"), (123_456_789, "123.5 s"),
     (604_800_000_000, "604800 s")],
)  # fmt: skip
def test_seconds(usec: int, text: str) -> None:
    """Times have four digits, and no more than milliseconds."""
    assert seconds(usec) == text


@pytest.mark.parametrize("zone", [None, UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))])
@pytest.mark.parametrize("usec", [0, END_USEC - 1])
def test_moments_up_to_the_last(usec: int, zone: tzinfo | None) -> None:
    """From the epoch to the end of the year 2999 every moment has a text in every zone."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", moment(usec, zone))


def test_limit() -> None:
    """A limit is shown as an operator writes it."""
    assert [limit(7_000_000), limit(2_500_000), limit(1_000)] == ["7 s", "2.5 s", "0.001 s"]


def test_what_is_not_of_today_has_its_date() -> None:
    """Today is the reader's: the same moment may be of today in one zone and of yesterday in another."""
    now_usec, tokyo = 1_795_400_000_000_000, timezone(timedelta(hours=9))
    ago = now_usec - 3 * 3600 * 1_000_000
    assert [recent(now_usec, now_usec, zone) for zone in (UTC, tokyo)] == ["02:13:20", "11:13:20"]
    assert [recent(ago, now_usec, zone) for zone in (UTC, tokyo)] == ["2026-11-22 23:13:20", "08:13:20"]


def test_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point in time is shown in the zone that is given, else in the system's; in UTC where that is impossible."""
    usec = 1_795_400_000_000_000
    assert (moment(usec, UTC), zone_name(usec, UTC)) == ("2026-11-23 02:13:20", "UTC")
    found = []
    try:
        for name in ("Asia/Tokyo", "UTC-99"):
            monkeypatch.setenv("TZ", name)
            time.tzset()
            found.append((moment(usec, None), zone_name(usec, None)))
        assert found == [("2026-11-23 11:13:20", "JST"), ("2026-11-23 02:13:20", "UTC")]
    finally:
        monkeypatch.undo()
        time.tzset()
