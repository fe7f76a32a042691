"""A point in time means to us what it means to journalctl: the manual's forms, and systemd itself where it is there."""

import re
import subprocess
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from lab.env import UnavailableError, clean_env, program

from s3daemon.commands.report.when import usec_of

NOW = datetime(2026, 11, 23, 18, 15, 22, 500_000, tzinfo=UTC)
HOUR = 3_600_000_000


def at(*parts: int) -> int:
    return round(datetime(*parts, tzinfo=UTC).timestamp() * 1e6)  # type: ignore[misc, arg-type] # year, month, day, ...


@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("now", at(2026, 11, 23, 18, 15, 22, 500_000)),
        ("today", at(2026, 11, 23)),
        ("yesterday", at(2026, 11, 22)),
        ("tomorrow", at(2026, 11, 24)),
        ("2026-11-23", at(2026, 11, 23)),
        ("26-11-23 01:02", at(2026, 11, 23, 1, 2)),
        ("99-01-02", at(1999, 1, 2)),
        ("2026-11-23 01:02:03.25", at(2026, 11, 23, 1, 2, 3, 250_000)),
        ("2026-11-23T01:02:03Z", at(2026, 11, 23, 1, 2, 3)),
        ("2026-11-23 01:02 +01:00", at(2026, 11, 23, 0, 2)),
        ("2026-11-23 01:02 Asia/Tokyo", at(2026, 11, 22, 16, 2)),
        ("Mon 2026-11-23", at(2026, 11, 23)),
        ("monday 2026-11-23 12:00", at(2026, 11, 23, 12)),
        ("11:12", at(2026, 11, 23, 11, 12)),
        ("  11:12:13 ", at(2026, 11, 23, 11, 12, 13)),
        ("-2", at(2026, 11, 23, 18, 15, 20, 500_000)),
        ("-2h", at(2026, 11, 23, 16, 15, 22, 500_000)),
        ("-2h 30min", at(2026, 11, 23, 15, 45, 22, 500_000)),
        ("+1d2h", at(2026, 11, 24, 20, 15, 22, 500_000)),
        ("90 ago", at(2026, 11, 23, 18, 13, 52, 500_000)),
        ("1.5 hours ago", at(2026, 11, 23, 16, 45, 22, 500_000)),
        ("3h left", at(2026, 11, 23, 21, 15, 22, 500_000)),
        ("@1795400534.761688", 1_795_400_534_761_688),
    ],
)
def test_each_form(text: str, usec: int) -> None:
    """Every form of the manual is taken and means what it says there."""
    assert usec_of(text, NOW) == usec


@pytest.mark.parametrize(
    "text",
    ["", "soon", "2h", "-", "2026-13-01", "25:00", "Tue 2026-11-23", "Monday", "11:12 Nowhere/Land", "@x",
     "-3 fortnights", "1h ago ago", "2026-11-23 11", "@1e99", "-99999999999999d"],
)  # fmt: skip
def test_what_is_no_time_is_refused(text: str) -> None:
    """What names no point in time is an error that shows the text, never another time."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        usec_of(text, NOW)


def test_a_zone_counts_at_its_own_time_of_year() -> None:
    """A day begins by the zone of now, with the offset that the zone has on that day."""
    zone = ZoneInfo("Europe/Berlin")
    now = datetime(2026, 10, 25, 12, tzinfo=zone)  # the night before ended summer time
    assert usec_of("today", now) == at(2026, 10, 24, 22)
    assert usec_of("now", now) - usec_of("today", now) == 13 * HOUR
    assert usec_of("2026-07-01 12:00", now) == at(2026, 7, 1, 10)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-23 18:15:16.5",
        "2026-11-23",
        "26-11-23 18:15",
        "Mon 2026-11-23 00:01",
        "2026-11-23 18:15 UTC",
        "@1795400534.25",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_systemd_agrees(text: str, zone: str) -> None:
    """`systemd-analyze timestamp`, which is journalctl's own parser, finds the same time."""
    try:
        command = [program("systemd-analyze"), "timestamp", text]
    except UnavailableError as missing:
        pytest.skip(str(missing))
    said = subprocess.run(command, env=clean_env(TZ=zone), capture_output=True, text=True, check=True).stdout
    found = re.search(r"UNIX seconds: @([0-9.]+)", said)
    assert found, said
    now = NOW.astimezone(ZoneInfo(zone))
    assert timedelta(microseconds=usec_of(text, now)) == timedelta(seconds=float(found[1]))
