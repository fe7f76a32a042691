"""The shape of the package: rooms, the arrows between them, and the floors that the arrows make.

    python tests/release/shape.py [DIRECTORY]     # of s3daemon/, by default this tree's

A *room* is a package of `s3daemon/` or a module beside them. An *arrow* is a pair of rooms of which one imports the
other. A room's *floor* is one above the highest floor that it imports.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "s3daemon"


class Import(NamedTuple):
    """One module imports another; both by their dotted names without the package's."""

    importer: str
    imported: str


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """The modules by dotted name, such as `spool.writer`; the docstring-only `__init__` of a room is none."""
    paths = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in sorted(paths)}


@cache
def imports(package: Path = PACKAGE) -> tuple[Import, ...]:
    """Every import of one module by another, wherever in the file it is written; read once."""
    return tuple(_imports(modules(package)))


def _imports(known: Mapping[str, Path]) -> Iterator[Import]:
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            yield from (Import(name, found) for found in sorted(_imported(node) & known.keys()))


def _imported(node: ast.AST) -> set[str]:
    """The names that may be modules of the package, without its own name."""
    match node:
        case ast.Import():
            full = {alias.name for alias in node.names}
        case ast.ImportFrom(level=0):
            full = {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        case ast.ImportFrom():  # relative, as in a flat package
            base = ".".join(filter(None, (PACKAGE.name, node.module)))
            full = {base, *(f"{base}.{alias.name}" for alias in node.names)}
        case _:
            return set()
    prefix = f"{PACKAGE.name}."
    return {name.removeprefix(prefix) for name in full if name.startswith(prefix)}


def room(module: str) -> str:
    """The room of a module."""
    return module.partition(".")[0]


def arrows(package: Path = PACKAGE) -> set[tuple[str, str]]:
    """The pairs of different rooms of which the first imports the second."""
    pairs = {(room(one), room(other)) for one, other in imports(package)}
    return {(one, other) for one, other in pairs if one != other}


def floors(package: Path = PACKAGE) -> dict[str, int]:
    """The floor of each room, from 1.

    Raises:
        RecursionError: the rooms import each other in a circle.
    """
    below: dict[str, set[str]] = {room(name): set() for name in modules(package)}
    for one, other in arrows(package):
        below[one].add(other)

    @cache
    def floor(name: str) -> int:
        return 1 + max(map(floor, below[name]), default=0)

    return {name: floor(name) for name in below}


def folders(package: Path = PACKAGE) -> Counter[str]:
    """How many modules each folder holds."""
    return Counter(str(path.parent.relative_to(package.parent)) for path in modules(package).values())


def main() -> None:
    """Print the figures."""
    package = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else PACKAGE
    by_floor = floors(package)
    lines = sum(len(path.read_text().splitlines()) for path in package.rglob("*.py"))
    print(f"{max(by_floor.values())} floors, {len(arrows(package))} arrows")
    print(f"{len(modules(package))} modules, {lines} lines")
    for folder, count in sorted(folders(package).items()):
        print(f"{count:4} modules in {folder}")


if __name__ == "__main__":
    main()
