"""The status by rich, where it is installed: colours, bars, and a display that stands still while it is watched.

No text is read as markup. Colours repeat what words say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from s3daemon.commands.status.view import Bar, Cell, Table, View

_BAR_CHARS, _LEAST_ELASTIC = 20, 12
_STATES = {"ok": "bold white on dark_cyan", "away": "bold black on orange3"}
_ALARM = "bold white on dark_red"
_WORDS = {"in time": "cyan", "late": "orange3", "incomplete": "bold red", "lost": "bold red"}


class Screen:
    """Shows views on a terminal, one in place of another.

    Args:
        out: the terminal.
        width: characters; None for the terminal's own.
    """

    def __init__(self, out: TextIO, width: int | None = None) -> None:
        self._console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None

    def show(self, view: View) -> None:
        """Print it below what is there."""
        self._console.print(drawn(view))

    def replace(self, view: View) -> None:
        """Put it in the place of the one before."""
        if self._live is None:
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        self._live.update(drawn(view), refresh=True)

    def close(self) -> None:
        """Give the terminal back as it was."""
        if self._live is not None:
            self._live.stop()


def drawn(view: View) -> RenderableType:
    """The view as something that rich prints."""
    state = Text(f" {view.state.upper()} ", style=_STATES.get(view.state, _ALARM))
    return Group(Text(view.about, style="dim"), Text.assemble(state, " ", view.status), *map(_grid, view.tables))


def _grid(table: Table) -> RenderableType:
    title = Text("\n" + table.title, style="bold")
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for at, name in enumerate(table.head):
        justify: JustifyMethod = "right" if name.startswith(">") else "left"
        grid.add_column(Text(name.removeprefix(">")), justify=justify, no_wrap=at != table.elastic)
    for row in table.rows:
        cells = [_cell(cell) for cell in row]
        cells[table.elastic] = _Tail(str(row[table.elastic]))
        grid.add_row(*cells)
    return Group(title, grid)


class _Tail:
    """Text of which the end is shown where there is no room for all; rich's own ellipsis shows the beginning."""

    def __init__(self, text: str) -> None:
        self._text = Text(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(_LEAST_ELASTIC, self._text.cell_len), self._text.cell_len)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        cut = self._text.cell_len > options.max_width
        yield Text("…").append_text(self._text[1 - options.max_width :]) if cut else self._text


def _cell(cell: Cell) -> RenderableType:
    if isinstance(cell, Bar):
        style = "orange3" if cell.beyond else "cyan"
        return ProgressBar(1.0, cell.share, width=_BAR_CHARS, complete_style=style, finished_style=style)
    return Text(cell, style=_WORDS.get(cell.partition(",")[0], ""))
