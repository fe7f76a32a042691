"""Progress of an attempt: acknowledged bytes of all its uploads, never more than the file has, and rates by the clock
that is passed in; what a part lost is not counted."""

from __future__ import annotations

from dataclasses import dataclass

from s3daemon.network.progress import Progress


@dataclass(eq=False)
class Part:
    """An upload of which so much is acknowledged."""

    size: int
    receiver: str = "192.0.2.1"
    got: int = 0

    def acked(self) -> int:
        return self.got


def test_one_upload() -> None:
    """TLS and headers are acknowledged too; the share never passes the whole."""
    progress, part = Progress(), Part(1000)
    assert (progress.acked_bytes, progress.receivers) == (0, [])
    progress.begin(part)
    part.got = 400
    assert (progress.acked_bytes, progress.receivers) == (400, ["192.0.2.1"])
    part.got = 1234
    assert progress.acked_bytes == 1000
    progress.end(part)
    assert (progress.acked_bytes, progress.receivers) == (1000, ["192.0.2.1"])


def test_parts_add_up() -> None:
    """Several at once, to several receivers; one that ended early is sent again and counts once."""
    progress, parts = Progress(), [Part(1000), Part(1000, "192.0.2.2"), Part(500, "192.0.2.2")]
    for part in parts:
        progress.begin(part)
    parts[0].got, parts[1].got = 1100, 900
    assert progress.acked_bytes == 1900
    assert progress.receivers == ["192.0.2.1", "192.0.2.2"]
    progress.end(parts[0])
    progress.end(parts[1])
    assert progress.acked_bytes == 1000
    again = Part(1000, got=1000)
    progress.begin(again)
    progress.end(again)
    progress.end(again)
    assert progress.acked_bytes == 2000


def test_one_that_never_began_is_nothing() -> None:
    progress = Progress()
    progress.end(Part(10, got=10))
    assert progress.acked_bytes == 0


def test_recent_rate() -> None:
    """That since the oldest of the last three samples; None before there is any."""
    progress, part = Progress(), Part(10_000)
    progress.begin(part)
    assert progress.recent_rate(5.0) is None
    progress.sample(10.0)
    assert progress.recent_rate(10.0) is None
    part.got = 1000
    assert progress.recent_rate(12.0) == 500
    for now in (12.0, 14.0, 16.0):
        progress.sample(now)
    assert progress.recent_rate(17.0) == 0
    part.got = 6000
    assert progress.recent_rate(17.0) == 1000


def test_a_part_that_was_lost_makes_no_negative_rate() -> None:
    progress, part = Progress(), Part(1000, got=500)
    progress.begin(part)
    progress.sample(1.0)
    progress.end(part)
    assert progress.recent_rate(2.0) == 0
