"""shape.py finds the imports between modules however they are written, and computes floors from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import shape

TREE = {
    "errors.py": "",
    "spool/__init__.py": "",
    "spool/rows.py": "from s3daemon.errors import SpoolError",
    "spool/spool.py": "import sqlite3\nfrom s3daemon.spool import rows",
    "cli.py": "def main():\n    import s3daemon.spool.spool as spool",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with one room and two modules beside it."""
    package = tmp_path / "s3daemon"
    for name, text in TREE.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_modules_have_dotted_names_and_packages_are_left_out(package: Path) -> None:
    assert list(shape.modules(package)) == ["cli", "errors", "spool.rows", "spool.spool"]
    assert shape.folders(package) == {"s3daemon": 2, "s3daemon/spool": 2}


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("from s3daemon.errors import SpoolError", {"errors"}),
        ("from s3daemon import errors, __version__", {"errors"}),
        ("from s3daemon.spool import rows, spool", {"spool.rows", "spool.spool"}),
        ("import s3daemon.spool.rows", {"spool.rows"}),
        ("from .errors import SpoolError", {"errors"}),
        ("from . import errors", {"errors"}),
        ("if TYPE_CHECKING:\n    from s3daemon.errors import SpoolError", {"errors"}),
        ("import errors, s3daemonic.errors", set()),
    ],
)
def test_every_form_of_import_is_found(package: Path, line: str, imported: set[str]) -> None:
    (package / "cli.py").write_text(line)
    assert {pair.imported for pair in shape.imports(package) if pair.importer == "cli"} == imported


def test_arrows_lead_between_rooms_only(package: Path) -> None:
    assert shape.arrows(package) == {("spool", "errors"), ("cli", "spool")}


def test_a_floor_is_one_above_the_highest_that_is_imported(package: Path) -> None:
    assert shape.floors(package) == {"errors": 1, "spool": 2, "cli": 3}


def test_a_circle_has_no_floors(package: Path) -> None:
    (package / "errors.py").write_text("from s3daemon.cli import main")
    with pytest.raises(RecursionError):
        shape.floors(package)
