"""Sizes and spans of time as text for people."""

from __future__ import annotations

import pytest

from s3daemon.units import size, span


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
