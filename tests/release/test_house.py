"""House law: imports point only towards the top of the map in the package's docstring, modules stay small, and ruff and
mypy have nothing to say."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import s3daemon

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "s3daemon"
MAP = re.findall(r"^    (\w+) {2,}\S", s3daemon.__doc__ or "", re.M)
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
#: ruff reads no setup.cfg, so its configuration is here. Each rule left out has its reason.
RULES = (
    "E,F,W,I,UP,B,A,C4,SIM,PTH,RUF,ASYNC,S,PL,PT,N,D,PERF,RET,TRY,LOG,G",
    ",".join(
        (
            "D105,D107",  # the class's docstring says what its special methods take
            "D203,D213,D406,D407,D413",  # one of two styles each
            "D205,D400,D415",  # a first line may go on in the next
            "PLR0913",  # collaborators are passed in, and there may be many
            "S101",  # asserts tell mypy what is known
            "TRY003,TRY301",  # messages belong where they are raised
            "RUF001,RUF002,RUF003",  # × and → are meant
            "PLC0415",  # what only one command needs is imported there
        )
    ),
)
TEST_RULES = (
    "E,F,W,I,UP,B,C4,SIM,RUF,ASYNC,PT",
    "RUF001,RUF002,RUF003,ASYNC110",  # as above; and a test may poll what has no event
)


def test_map_names_every_module() -> None:
    """The map in the package's docstring is complete, and names nothing that is not there."""
    assert sorted(MAP) == MODULES


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_up(name: str) -> None:
    """A module imports only what stands above it on the map."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    names = {part for node in imports for part in ([node.module] if node.module else [a.name for a in node.names])}
    below = {part for part in names if part in MAP and MAP.index(part) >= MAP.index(name)}
    assert not below, f"{name} imports {below}, which stand below it"


@pytest.mark.parametrize("path", [*PACKAGE.glob("*.py"), TOP / "send"], ids=lambda path: path.name)
def test_modules_are_small(path: Path) -> None:
    """No module is past 250 lines."""
    assert len(path.read_text().splitlines()) <= 250


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    """The linter has nothing to say about the package, and little is left out for the tests."""
    common = "check --no-cache --line-length 120 --target-version py311 --config lint.pydocstyle.convention='google'"
    _run("ruff", *common.split(), "--select", RULES[0], "--ignore", RULES[1], "s3daemon")
    _run("ruff", *common.split(), "--select", TEST_RULES[0], "--ignore", TEST_RULES[1], "tests")


def test_mypy() -> None:
    """Types are strict."""
    _run("mypy", "--strict", "--cache-dir", "/dev/null", "s3daemon")
