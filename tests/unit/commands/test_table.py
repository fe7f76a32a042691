"""Tables: aligned, as narrow as the terminal without losing what matters, whole in a pipe, and only printable text."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.terminal import Terminal
from rich.cells import cell_len

from s3daemon.commands.table import (
    Bar,
    Cell,
    Column,
    Table,
    bar,
    console_of,
    cut,
    lines,
    texts,
    width_of,
)

ROWS = [
    ("a1", "8 MB", "raw/night/exposure-1.fits", "SlowDown: busy", "/data/1"),
    ("b2", "12 MB", "raw/x", "", "/data/2"),
]
COLUMNS = [
    Column("ID"),
    Column("SIZE", align="right"),
    Column("DESTINATION", place="fold"),
    Column("ERROR", least=8, place="fold"),
    Column("FILE", least=4, place="drop"),
]
TABLE = Table(COLUMNS, ROWS)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_without_a_width_every_cell_is_whole() -> None:
    assert list(lines(TABLE, None)) == [
        "ID   SIZE  DESTINATION                ERROR           FILE",
        "a1   8 MB  raw/night/exposure-1.fits  SlowDown: busy  /data/1",
        "b2  12 MB  raw/x                                      /data/2",
    ]


def test_columns_are_cut_from_the_last_to_the_first() -> None:
    assert list(lines(TABLE, 58))[1] == "a1   8 MB  raw/night/exposure-1.fits  SlowDown: busy  …a/1"
    assert list(lines(TABLE, 52))[1] == "a1   8 MB  raw/night/exposure-1.fits  …n: busy  …a/1"


def test_a_column_is_left_out_before_one_is_moved_beneath() -> None:
    assert list(lines(TABLE, 51))[1] == "a1   8 MB  raw/night/exposure-1.fits  …owDown: busy"
    assert list(lines(TABLE, 45)) == [
        "ID   SIZE  ERROR",
        "a1   8 MB  SlowDown: busy",
        "    raw/night/exposure-1.fits",
        "b2  12 MB",
        "    raw/x",
    ]


def test_columns_moved_below_a_row_are_never_cut() -> None:
    assert list(lines(TABLE, 15)) == [
        "ID   SIZE",
        "a1   8 MB",
        "    raw/night/exposure-1.fits",
        "    SlowDown: busy",
        "b2  12 MB",
        "    raw/x",
    ]


def test_a_column_below_is_beneath_its_row_at_any_width() -> None:
    table = Table([Column("N", align="right"), Column("WHY", place="below")], [("1", "because"), ("10", "")], indent=2)
    assert list(lines(table, None)) == ["   N", "   1", "      because", "  10"]


def test_optional_columns_are_left_out_when_empty() -> None:
    columns = [Column("A"), Column("B", optional=True), Column("C", optional=True)]
    assert list(lines(Table(columns, [("1", "", "x"), ("2", "", "")]), None)) == ["A  C", "1  x", "2"]


def test_a_table_without_rows_is_its_headings() -> None:
    assert list(lines(Table([Column("A"), Column("B", optional=True)], [], title="THINGS"), 80)) == ["THINGS", "A"]


def test_control_characters_are_shown_as_text() -> None:
    table = Table([Column("A"), Column("B", place="below")], [("\x1b[2J", "x\ny")], title="\x07")
    assert list(lines(table, None)) == ["\\x07", "A", "\\x1b[2J", "    x\\ny"]


def test_wide_characters_take_two_columns() -> None:
    table = Table([Column("NAME", least=6), Column("N", align="right")], [("日本語の名前", "1"), ("é", "22")])
    assert list(lines(table, None)) == ["NAME           N", "日本語の名前   1", "é             22"]
    assert all(cell_len(line) <= 10 for line in lines(table, 10))


def test_bars() -> None:
    assert bar(0.5, 4) == "██··"
    assert bar(2.0, 4, beyond=True) == "▒▒▒▒"
    assert bar(-1.0, 4) == "····"
    rows: list[tuple[Cell, ...]] = [(Bar(0.25), "a"), (Bar(1.0, beyond=True), "b")]
    table = Table([Column("", least=8), Column("NAME")], rows)
    assert list(lines(table, 80))[1:] == ["█████···············  a", "▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  b"]
    assert list(lines(table, 14))[1:] == ["██······  a", "▒▒▒▒▒▒▒▒  b"]


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("abcdef", 6, "abcdef"), ("abcdef", 4, "…def"), ("日本語", 4, "…語"), ("日本語", 5, "…本語")],
)
def test_a_cut_text_keeps_its_end(text: str, width: int, shown: str) -> None:
    assert cut(text, width) == shown


words = st.text(max_size=40)


@given(st.lists(st.tuples(words, words, words, words, words), max_size=5), st.integers(20, 200))
def test_no_line_of_any_text_is_wider_than_the_terminal(rows: list[tuple[str, ...]], width: int) -> None:
    """Except what is beneath a row, which is whole; and all of it is printable."""
    columns = [Column("A", least=4), Column("B", align="right", least=4), *COLUMNS[2:]]
    for line in lines(Table(columns, rows), width):
        assert line.isprintable()
        assert line.startswith("    ") or cell_len(line) <= width


@given(st.lists(st.tuples(words, words, words, words, words), max_size=5), st.none() | st.integers(20, 200))
def test_colours_change_no_word(rows: list[tuple[str, ...]], width: int | None) -> None:
    table = Table(COLUMNS, rows, title="TITLE", indent=2)
    assert [text.plain for text in texts(table, width)] == list(lines(table, width))


STYLED = Table([Column("STATE", style=lambda cell: "red" if cell == "late" else "")], [("late",), ("[bold]:smile:",)])


def printed(out: io.StringIO, width: int | None = None) -> list[str]:
    console = console_of(out, width)
    for text in texts(STYLED, width_of(console)):
        console.print(text, soft_wrap=True)
    return out.getvalue().splitlines()


def test_a_pipe_gets_whole_lines_without_colours(colours: None) -> None:
    assert width_of(console_of(io.StringIO(), 5)) is None
    assert printed(io.StringIO(), 5) == list(lines(STYLED, None)) == ["STATE", "late", "[bold]:smile:"]


def test_a_terminal_gets_colours_and_no_markup(colours: None) -> None:
    assert printed(Terminal(), 80) == ["\x1b[2mSTATE\x1b[0m", "\x1b[31mlate\x1b[0m", "[bold]:smile:"]


def test_no_colours_where_none_are_wanted(colours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "31m" not in "".join(printed(Terminal(), 80))


def test_a_terminal_of_no_width_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some consoles export COLUMNS=0."""
    monkeypatch.setenv("COLUMNS", "0")
    assert console_of(io.StringIO()).width == 80
