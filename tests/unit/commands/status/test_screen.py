"""The status by rich: the same words as without it, no name read as markup, and a watched terminal is given back."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("rich")

from lab.statuses import busy, upload

from s3daemon.commands.status.screen import Screen
from s3daemon.commands.status.view import View, view_of


class Terminal(io.StringIO):
    """A terminal, as far as rich looks."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(view: View, width: int) -> list[str]:
    out = Terminal()
    Screen(out, width).show(view)
    return out.getvalue().splitlines()


def test_says_what_the_text_says() -> None:
    found = "\n".join(shown(view_of(busy()), 160))
    assert " OK " in found
    for word in ("IN FLIGHT", "12.5 MB/s", "MC_O_000123_R01.fits", "left aside", "never", "NoSuchBucket"):
        assert word in found
    assert "━" in found


def test_narrow_keeps_the_ends_of_names() -> None:
    found = shown(view_of(busy()), 100)
    (line,) = (line for line in found if "27%" in line)
    assert line.rstrip().endswith("R01.fits")
    assert "…" in line


def test_no_markup() -> None:
    """Square brackets in a key are square brackets."""
    answer = busy() | {"uploads": [upload(1, key="[bold]x[/bold][link=y]:smile:")]}
    assert any("[bold]x[/bold][link=y]:smile:" in line for line in shown(view_of(answer), 160))


def test_watching_gives_the_terminal_back() -> None:
    out = Terminal()
    screen = Screen(out, 100)
    screen.replace(view_of(busy()))
    assert "\x1b[?1049h" in out.getvalue()
    screen.replace(view_of(busy()))
    screen.close()
    assert out.getvalue().count("\x1b[?1049h") == out.getvalue().count("\x1b[?1049l") == 1
    Screen(out).close()
