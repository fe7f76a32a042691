"""The status in characters, for any terminal and for pipes."""

from __future__ import annotations

from collections.abc import Iterator

from s3daemon.commands.status.view import Bar, Cell, Table, View

_BAR_CHARS = 20
_LEAST_ELASTIC = 12
FULL, BEYOND, EMPTY = "█", "▒", "·"
_ASCII = str.maketrans({FULL: "#", BEYOND: ":", EMPTY: ".", "…": "~"})


def lines(view: View, width: int | None, encoding: str = "utf-8") -> Iterator[str]:
    """Draw it.

    Args:
        view: what is shown.
        width: of the terminal; None leaves every column as wide as it needs.
        encoding: of the output; where it lacks block characters, ASCII stands for them.
    """
    try:
        (FULL + BEYOND + EMPTY + "…").encode(encoding)
        table = {}
    except UnicodeEncodeError:
        table = _ASCII
    for line in _lines(view, width):
        yield line.translate(table).encode(encoding, "backslashreplace").decode(encoding)


def _lines(view: View, width: int | None) -> Iterator[str]:
    yield view.about
    yield f"{view.state.upper()}: {view.status}"
    for table in view.tables:
        yield ""
        yield table.title[:width]
        yield from _rows(table, width)


def _rows(table: Table, width: int | None) -> Iterator[str]:
    head = [name.removeprefix(">") for name in table.head]
    rows = [head, *([_drawn(cell) for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        excess = sum(widths) + 2 * len(widths) - width  # two blanks before each column
        at = table.elastic
        widths[at] = max(min(widths[at], _LEAST_ELASTIC), widths[at] - max(0, excess))
    right = [name.startswith(">") for name in table.head]
    for row in rows:
        cells = list(row)
        if len(cells[table.elastic]) > widths[table.elastic]:
            cells[table.elastic] = "…" + cells[table.elastic][1 - widths[table.elastic] :]
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        yield ("  " + "  ".join(padded)).rstrip()[:width]


def _drawn(cell: Cell) -> str:
    if isinstance(cell, Bar):
        return ((BEYOND if cell.beyond else FULL) * round(cell.share * _BAR_CHARS)).ljust(_BAR_CHARS, EMPTY)
    return cell
