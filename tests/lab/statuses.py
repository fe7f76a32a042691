"""Answers to `status`: of a busy night after all kinds of trouble, and just after a start."""

from typing import Any

NOW_USEC = 1_795_400_000_000_000
"""2026-11-23 02:13:20 UTC."""


def upload(number: int, **changes: Any) -> dict[str, Any]:
    """One in flight."""
    size = 8_388_608 if number % 2 else 3_012
    acked = size * (17 + 10 * number) // 100
    made = {
        "id": f"{number:016x}", "bucket": "raw", "key": f"camera/20261123/MC_O_000123/MC_O_000123_R{number:02}.fits",
        "file": f"/data/R{number:02}.fits", "tags": ["MC_O_20261123_000123"], "attempt": 1 + (number == 3),
        "seconds": 0.4 * number, "size_bytes": size, "acked_bytes": acked, "rate_bytes_per_s": 9_100_000,
        "recent_bytes_per_s": 12_500_000, "receivers": [f"192.0.2.{1 + number % 3}"],
    }  # fmt: skip
    return made | changes


def transfer(number: int, state: str, **changes: Any) -> dict[str, Any]:
    """A row of the queue."""
    made = {
        "id": f"{number:016x}", "state": state, "age_s": 60 * number, "attempts": 0, "code": "", "text": "",
        "next_in_s": 0.0, "size_bytes": 8_388_608, "destination": f"raw/camera/20261123/MC_O_000123_R{number:02}.fits",
        "file": f"/data/R{number:02}.fits", "told": True,
    }  # fmt: skip
    return made | changes


def exposure(number: int, seconds: float | None = 2.1, **changes: Any) -> dict[str, Any]:
    """One exposure, asked for so many minutes before the last one, the thirtieth."""
    first_usec = NOW_USEC - (31 - number) * 60_000_000
    made = {
        "name": f"MC_O_20261123_{94 + number:06}", "tagged": True, "first_usec": first_usec,
        "last_usec": None if seconds is None else first_usec + round(seconds * 1e6), "seconds": seconds,
        "verdict": "lost" if (seconds or 0) > 30 else "late" if (seconds or 0) > 10 else "in time",
        "stored": 46, "failed": 0, "refused": 0, "pending": 0, "size_bytes": 193_000_000, "reason": "",
    }  # fmt: skip
    return made | changes


def empty() -> dict[str, Any]:
    """Just started."""
    return {
        "state": "ok", "status": "0 in flight; 0 pending; 25 of 25 connections open", "version": "1.0.0",
        "host": "camera-3", "endpoint": "https://s3.example.org", "now_usec": NOW_USEC,
        "started_usec": NOW_USEC - 60_000_000, "in_flight": 0, "pending": 0, "oldest_s": None, "failed": 0,
        "held": "", "away": False, "away_reason": "", "since_usec": None, "next_probe_s": None,
        "unreachable": "", "failing": "",
        "spool": "", "refused": "", "clients": 0,
        "connections": {"open": 25, "opened": 25, "limit": 25},
        "limit": {"rate_bps": 0, "origin": "none"}, "receivers": [], "uploads": [], "waiting": [],
        "failures": [], "exposures": [], "late_s": 10.0, "lost_s": 30.0,
    }  # fmt: skip


def receiver(address: str, connections: int, uploads: int, **changes: object) -> dict[str, Any]:
    """An address of the store, not disabled unless that is among the changes."""
    members = {"address": address, "connections": connections, "uploads": uploads, "disabled": False}
    return members | {"on_trial": False, "reason": "", "limited_s": None, "next_probe_s": None} | changes


def busy() -> dict[str, Any]:
    """A night after an hour of trouble."""
    times = {n: 2.0 + 0.3 * (n * 7 % 5) for n in range(1, 31)} | {11: 12.5, 12: 741.0, 13: 95.0, 14: 31.0, 15: 14.2}
    exposures = [exposure(n, seconds) for n, seconds in times.items()]
    exposures[8] |= {"failed": 1, "stored": 45, "verdict": "incomplete", "reason": "NoSuchBucket: it is not there"}
    exposures[9] |= {"refused": 2, "stored": 44, "verdict": "incomplete", "reason": "NotReadable: /data/f: denied"}
    exposures[19] |= {"failed": 46, "stored": 0, "verdict": "incomplete", "seconds": None, "last_usec": None}
    exposures[-1] |= {"pending": 16, "stored": 30, "seconds": 1.4, "last_usec": exposures[-1]["first_usec"] + 1_100_000}
    error = {"code": "NoSuchBucket", "text": "there is no bucket old-raw", "attempts": 1}
    slow = {"code": "SlowDown", "text": "the store answered 503: reduce your request rate", "attempts": 3}
    return empty() | {
        "status": "4 in flight; 12 pending; the oldest is 4m02s old; 3 failed (s3daemon queue); "
        "25 of 25 connections open",
        "in_flight": 4, "pending": 12, "oldest_s": 242.0, "failed": 3, "clients": 18,
        "connections": {"open": 25, "opened": 61, "limit": 25},
        "limit": {"rate_bps": 994_000_000, "origin": "found"},
        "uploads": [upload(number) for number in range(1, 5)],
        "waiting": [transfer(4, "pending", next_in_s=17.0, **slow), transfer(2, "behind"), transfer(1, "pending")],
        "failures": [transfer(number, "failed", **error, next_in_s=None) for number in (47, 46, 45)],
        "receivers": [
            receiver("192.0.2.1", 9, 1), receiver("192.0.2.2", 16, 3),
            receiver("192.0.2.3", 0, 0, disabled=True, reason="no connection", limited_s=65.0, next_probe_s=15.0),
            receiver("192.0.2.4", 1, 0, on_trial=True, reason="answered 503", limited_s=7.0),
        ],
        "exposures": exposures,
    }  # fmt: skip
