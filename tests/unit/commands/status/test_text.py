"""The status in characters: aligned, no wider than the terminal, the ends of names kept, ASCII where it must be."""

from __future__ import annotations

from lab.statuses import busy

from s3daemon.commands.status.text import lines
from s3daemon.commands.status.view import Bar, Table, View, view_of

ROWS = [[Bar(0.5), "1 B", "a" * 30 + "end"], [Bar(1.0, beyond=True), "10 B", "é"]]
TABLE = Table("THINGS", ["", ">SIZE", "NAME"], ROWS, 2)
VIEW = View("held", "about", "HELD", [TABLE])


def test_whole() -> None:
    assert list(lines(VIEW, None)) == [
        "about",
        "HELD: HELD",
        "",
        "THINGS",
        "                        SIZE  NAME",
        "  ██████████··········   1 B  " + "a" * 30 + "end",
        "  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  10 B  é",
    ]


def test_narrow() -> None:
    assert list(lines(VIEW, 46))[5] == "  ██████████··········   1 B  …" + "a" * 12 + "end"
    for width in (20, 40, 80, 120):
        assert max(map(len, list(lines(view_of(busy()), width))[2:])) <= width


def test_ascii() -> None:
    found = "\n".join(lines(VIEW, 46, "ascii"))
    assert "##########..........   1 B  ~aaa" in found
    assert found.endswith("  ::::::::::::::::::::  10 B  \\xe9")
