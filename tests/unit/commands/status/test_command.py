"""The status on a terminal and in a pipe: the same words, no name read as markup, and the terminal given back."""

from __future__ import annotations

import argparse
import io
import signal
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from lab.statuses import busy, upload
from lab.terminal import Terminal

from s3daemon.commands.status.command import Screen, configure, main
from s3daemon.commands.status.view import View, view_of
from s3daemon.control.status import Status


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def view(answer: dict[str, Any]) -> View:
    return view_of(Status.from_dict(answer), UTC)


def shown(view: View, out: io.StringIO, width: int | None = None) -> str:
    Screen(out, width).show(view)
    return out.getvalue()


def test_a_pipe_gets_plain_text() -> None:
    head, state, blank, title, *rest = shown(view(busy()), io.StringIO()).splitlines()
    assert head == "s3daemon 1.0.0 on camera-3, to https://s3.example.org, at 994 Mbit/s (found)"
    assert state.startswith("OK: 4 in flight; 12 pending")
    assert (blank, title) == ("", "IN FLIGHT")
    assert rest[1].endswith("  192.0.2.2  raw/camera/20261123/MC_O_000123/MC_O_000123_R01.fits")
    assert "\x1b" not in "".join(rest)


def test_a_terminal_gets_the_same_words_in_colours() -> None:
    text = shown(view(busy()), Terminal(), 160)
    assert "\x1b[1;37;" in text
    for word in (
        "OK:",
        "IN FLIGHT",
        "12.5 MB/s",
        "MC_O_000123_R01.fits",
        "disabled",
        "never",
        "NoSuchBucket",
    ):
        assert word in text
    assert "█" in text


def test_no_colours_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown(view(busy()), Terminal(), 160)
    assert "OK:" in text
    assert ";37;" not in text
    assert "\x1b[36m" not in text


def test_a_name_is_not_read_as_markup() -> None:
    answer = busy() | {"uploads": [upload(1, key="[bold]x[/bold][link=y]:smile:")]}
    assert "[bold]x[/bold][link=y]:smile:" in shown(view(answer), Terminal(), 160)


def test_watching_draws_in_place_and_gives_the_terminal_back() -> None:
    out = Terminal()
    screen = Screen(out, 100)
    screen.replace(view(busy()))
    assert "\x1b[?1049h" in out.getvalue()
    screen.replace(view(busy()))
    screen.close()
    assert out.getvalue().count("\x1b[?1049h") == out.getvalue().count("\x1b[?1049l") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_watching_and_gives_the_terminal_back(number: signal.Signals, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    configure(parser)
    args = parser.parse_args(["--watch", "--state-dir", str(tmp_path)])
    out, before = Terminal(), signal.getsignal(signal.SIGTERM)
    assert main(args, {}, out=out, err=io.StringIO(), sleep=lambda _: signal.raise_signal(number)) == 0
    assert signal.getsignal(signal.SIGTERM) == before
    assert out.getvalue().count("\x1b[?1049h") == out.getvalue().count("\x1b[?1049l") == 1


@pytest.mark.parametrize(("height", "said"), [("3", "2 more lines: make the terminal higher"), ("4", "word 19")])
def test_watching_says_how_many_lines_the_terminal_hides(
    height: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted as they are wrapped: these two take four."""
    monkeypatch.setenv("LINES", height)
    out = Terminal()
    screen = Screen(out, 60)
    screen.replace(View("OK", "about", ", ".join(f"word {number}" for number in range(20))))
    screen.close()
    assert said in out.getvalue()
    assert ("more line" in out.getvalue()) is ("more line" in said)


def test_watching_into_a_pipe_writes_one_below_the_other() -> None:
    out = io.StringIO()
    screen = Screen(out)
    for head in ("OK", "HELD"):
        screen.replace(View(head, "about", "line"))
    screen.close()
    assert out.getvalue() == "about\nOK: line\n\nabout\nHELD: line\n\n"
