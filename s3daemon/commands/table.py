"""Draw tables and bars for every command: one layout, for terminals of any width, pipes and files.

    table = Table([Column("SIZE", align="right"), Column("DESTINATION", place="fold")], rows)
    for line in lines(table, width_of(console_of(out))):
        print(line, file=out)

On a terminal a table that is too wide gives way in this order: columns with a `least` are cut, the last one first;
columns with `place="drop"` are left out, the last one first; columns with `place="fold"` move to lines of their own
beneath their row, the first one first, and are whole there. In a pipe or a file every cell is whole, in its row.

Every cell is made printable here, so no control character reaches a terminal, and no text is read as markup. rich
measures characters, knows the terminal and its colours (NO_COLOR turns them off), and draws what is watched. Its own
Table is not used: 54 000 rows of nine columns take it 26 s, this layout 0.1 to 0.4 s.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from s3daemon.errors import one_line

BAR_CHARS = 20
FULL, BEYOND, EMPTY, CUT = "█", "▒", "·", "…"

_GAP, _INDENT = "  ", "    "
#: Longer than any path or key, each of whose bytes may take four characters here.
_MOST_CHARS = 1 << 15


@dataclass(frozen=True, slots=True)
class Bar:
    """A cell that is a bar; where its column has a `least`, it may be drawn that much shorter.

    Args:
        fraction: filled, 0 to 1.
        beyond: it stands for something past its limit, and is hatched.
    """

    fraction: float
    beyond: bool = False


Cell = str | Bar


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        name: its heading.
        align: of its cells and heading.
        least: characters that it may be cut down to where the terminal is narrow; None: it is never cut.
        place: `row`: always in the row; `fold`: beneath the row where the terminal is too narrow; `drop`: left out
            there; `below`: always beneath the row.
        optional: it is left out when no row has anything in it.
        style: gives the rich style of a cell, or ""; it may only repeat what the words say.
    """

    name: str
    align: Literal["left", "right"] = "left"
    least: int | None = None
    place: Literal["row", "fold", "drop", "below"] = "row"
    optional: bool = False
    style: Callable[[Cell], str] | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        columns: at least one.
        rows: a cell for each column.
        title: a line above the headings; "" for none.
        indent: blanks before each line, the title's excepted.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    indent: int = 0


def console_of(out: TextIO, width: int | None = None) -> Console:
    """The console for an output, on which no text is read as markup.

    Args:
        out: a terminal, a pipe or a file.
        width: of the terminal, where it is known better.
    """
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    return console if console.width > 0 else console_of(out, 80)  # some consoles export COLUMNS=0


def width_of(console: Console) -> int | None:
    """The columns of its terminal; None for a pipe or a file, whose lines may be of any length."""
    return console.width if console.file.isatty() else None


def lines(table: Table, width: int | None) -> Iterator[str]:
    """The table in plain characters, a line each.

    Args:
        table: what is shown.
        width: of the terminal; None leaves every cell whole.
    """
    return _Layout(table, width).lines()


def texts(table: Table, width: int | None) -> Iterator[Text]:
    """The table in colours, a line each, for something that rich draws; arguments as of `lines`."""
    return _Layout(table, width).texts()


def bar(fraction: float, width: int = BAR_CHARS, *, beyond: bool = False) -> str:
    """A bar of `width` characters, `fraction` of them filled; hatched where it is `beyond` its limit."""
    filled = round(min(max(fraction, 0.0), 1.0) * width)
    return (BEYOND if beyond else FULL) * filled + EMPTY * (width - filled)


def cut(text: str, width: int) -> str:
    """The end of a printable text, in at most `width` characters with an ellipsis: names differ at their ends."""
    if cell_len(text) <= width:
        return text
    while cell_len(text) >= width:
        text = text[max(1, len(text) - width) :]
    return CUT + text


class _Drawn:
    """A column with its cells, measured; `width` shrinks where it has to."""

    def __init__(self, column: Column, cells: Sequence[Cell]) -> None:
        self.column = column
        self.cells = cells
        words = [cell for cell in cells if isinstance(cell, str)]
        joined = column.name + "".join(words)
        if not joined.isprintable():
            self.cells = [_printable(cell) if isinstance(cell, str) else cell for cell in cells]
            words = [cell for cell in self.cells if isinstance(cell, str)]
            joined = column.name + "".join(words)
        self.plain = joined.isascii() and len(words) == len(cells)
        measure = len if self.plain else cell_len
        bars = BAR_CHARS if len(words) < len(cells) else 0
        self.width = self.natural = max(measure(column.name), max(map(measure, words), default=0), bars)

    @property
    def least(self) -> int:
        """The width that the column can be cut down to."""
        return self.natural if self.column.least is None else min(self.natural, self.column.least)

    def head(self) -> str:
        """The heading of the column, padded."""
        return self._padded(cut(self.column.name, self.width))

    def padded(self) -> Iterator[str]:
        """The cells of the column, each as wide as the column."""
        if not self.plain or self.width < self.natural:
            return (self._padded(self._fitted(cell)) for cell in self.cells)
        pad = str.rjust if self.column.align == "right" else str.ljust
        return map(pad, self.words(), itertools.repeat(self.width))

    def words(self) -> Iterator[str]:
        """The cells of the column, whole."""
        return (cell if isinstance(cell, str) else bar(cell.fraction, beyond=cell.beyond) for cell in self.cells)

    def styles(self) -> Iterator[str]:
        """The style of each cell."""
        style = self.column.style
        return itertools.repeat("") if style is None else map(style, self.cells)

    def _fitted(self, cell: Cell) -> str:
        return bar(cell.fraction, self.width, beyond=cell.beyond) if isinstance(cell, Bar) else cut(cell, self.width)

    def _padded(self, text: str) -> str:
        blanks = " " * (self.width - cell_len(text))
        return blanks + text if self.column.align == "right" else text + blanks


def _printable(text: str) -> str:
    return text if text.isprintable() else one_line(text, _MOST_CHARS)


class _Layout:
    """Which columns stand in the row, how wide, and which beneath it."""

    def __init__(self, table: Table, width: int | None) -> None:
        cells: Iterator[Sequence[Cell]] = zip(*table.rows, strict=True) if table.rows else itertools.repeat(())
        drawn = [_Drawn(column, of) for column, of in zip(table.columns, cells)]  # noqa: B905 - one may be endless
        drawn = [one for one in drawn if not one.column.optional or any(one.cells)]
        self._title = _printable(table.title)
        self._indent = " " * table.indent
        self._row = [one for one in drawn if one.column.place != "below"]
        self._beneath = [one for one in drawn if one.column.place == "below"]
        if width is not None:
            self._fold(width - table.indent)
            self._shrink(width - table.indent)
            self._beneath.sort(key=drawn.index)

    def _fold(self, width: int) -> None:
        """Take columns out of the row until the rest can be cut to fit."""
        dropped = [one for one in reversed(self._row) if one.column.place == "drop"]
        folded = [one for one in self._row if one.column.place == "fold"]
        for one in [*dropped, *folded]:
            if _total(each.least for each in self._row) <= width:
                return
            self._row.remove(one)
            if one.column.place == "fold":
                self._beneath.append(one)

    def _shrink(self, width: int) -> None:
        """Cut columns, the last ones first, until the row fits."""
        for one in reversed(self._row):
            excess = _total(each.width for each in self._row) - width
            one.width = max(one.least, one.width - max(0, excess))

    def lines(self) -> Iterator[str]:
        """Yield the table in plain characters, a line each."""
        yield from ([self._title] if self._title else [])
        yield self._head()
        for cells, beneath in self._rows():
            yield (self._indent + _GAP.join(cells)).rstrip()
            yield from beneath

    def texts(self) -> Iterator[Text]:
        """Yield the table in colours, a line each."""
        if self._title:
            yield Text(self._title, style="bold")
        yield Text(self._head(), style="dim")
        styles = zip(*map(_Drawn.styles, self._row), strict=False)  # those of a column without any are endless
        for (cells, beneath), styled in zip(self._rows(), styles, strict=False):
            parts = [part for pair in zip(cells, styled, strict=True) for part in (pair, _GAP)]
            text = Text.assemble(self._indent, *parts[:-1])
            text.rstrip()
            yield text
            yield from map(Text, beneath)

    def _rows(self) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
        """Yield the cells of each row, and the lines beneath it."""
        rows = zip(*map(_Drawn.padded, self._row), strict=True)
        below = zip(*map(_Drawn.words, self._beneath), strict=True) if self._beneath else itertools.repeat(())
        for cells, words in zip(rows, below, strict=False):
            yield cells, [self._indent + _INDENT + word for word in words if word]

    def _head(self) -> str:
        return self._indent + _GAP.join(one.head() for one in self._row).rstrip()


def _total(widths: Iterator[int]) -> int:
    """The width of a row, gaps included."""
    return sum(width + len(_GAP) for width in widths) - len(_GAP)
