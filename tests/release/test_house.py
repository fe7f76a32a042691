"""House law: rooms import downward by the table of levels, functions stay simple, ruff and mypy find nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lab
import pytest
from shape import PACKAGE, arrows, floors, folders, imports, modules, room

import s3daemon

TOP = Path(__file__).resolve().parents[2]
#: The level of each room; a room imports only rooms of lower levels.
LEVELS = {
    "errors": 0, "clock": 0, "units": 0,
    "config": 1, "model": 1, "systemd": 1,
    "journal": 2, "spool": 2, "network": 2,
    "s3": 3,
    "delivery": 4,
    "ingress": 5,
    "control": 6,
    "http": 7, "commands": 7,
    "service": 8,
    "cli": 9,
    "__main__": 10,
}  # fmt: skip
#: A room holds so many modules at most, a folder of commands included.
MODULES_IN_A_FOLDER = 8
#: Libraries that one room alone may import, with the reason.
ONE_ROOM_LIBRARIES = {
    "aiobotocore": {"s3"},  # S3's protocol
    "botocore": {"s3"},
    "sqlite3": {"spool"},  # what is kept
    "rich": {"commands"},  # the terminal
    "prometheus_client": {"http"},
    "matplotlib": {"commands"},
}
#: ruff reads no setup.cfg, so its configuration is here. Each rule left out has its reason.
RULES = (
    "C901,E,F,W,I,UP,B,A,C4,SIM,PTH,RUF,ASYNC,S,PL,PT,N,D,PERF,RET,TRY,LOG,G",
    ",".join(
        (
            "D105,D107",  # special methods are described in the class's docstring
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
#: Complexity by function: 10 is the limit that McCabe (1976) proposes; more than five ways out are read as two
#: functions; ten branches are what one `match` over the changes of the spool takes; and 36 statements what sends a
#: large file in parts, from its first part to the store's answer.
COMPLEXITY = (
    "lint.mccabe.max-complexity=10",
    "lint.pylint.max-returns=5",
    "lint.pylint.max-branches=10",
    "lint.pylint.max-statements=36",
)
TEST_RULES = (
    "C901,E,F,W,I,UP,B,C4,SIM,RUF,ASYNC,PT",
    "RUF001,RUF002,RUF003,ASYNC110",  # as above; and a test may poll what has no event
)


def test_every_room_has_a_level_and_a_place_on_the_map() -> None:
    """The table above and the map in the package's docstring name every room, and nothing that does not exist."""
    rooms = {room(name) for name in modules()}
    assert rooms == LEVELS.keys()
    entries = re.findall(r"^ {4}([\w/, ]+?)(?: {2,}|: )\S", s3daemon.__doc__ or "", re.M)
    named = {word.rstrip("/") for entry in entries for word in entry.split(", ")}
    assert named == rooms - {"__main__"}


def test_every_module_of_the_lab_is_on_its_map() -> None:
    """In its docstring."""
    names = {file.stem for file in Path(lab.__file__).parent.glob("*.py")} - {"__init__"}
    assert names <= set(re.findall(r"\w+", lab.__doc__ or ""))


@pytest.mark.parametrize("arrow", sorted(arrows()), ids="->".join)
def test_rooms_import_downward(arrow: tuple[str, str]) -> None:
    """A room imports only rooms of lower levels."""
    importer, imported = arrow
    found = sorted({pair for pair in imports() if (room(pair.importer), room(pair.imported)) == arrow})
    assert LEVELS[imported] < LEVELS[importer], found


def test_no_circle_within_a_room() -> None:
    """No modules import each other in a circle, within a room either."""
    below: dict[str, set[str]] = {name: set() for name in modules()}
    for one, other in imports():
        below[one].add(other)
    floor: dict[str, int] = {}
    while len(floor) < len(below):
        ready = [name for name, imported in below.items() if name not in floor and imported <= floor.keys()]
        assert ready, f"in a circle: {sorted(below.keys() - floor.keys())}"
        floor.update(dict.fromkeys(ready, len(floor)))


def test_rooms_are_few_and_not_crowded() -> None:
    """About ten floors, and no folder with more modules than one sees at a glance."""
    assert max(floors().values()) <= 12
    assert {folder: count for folder, count in folders().items() if count > MODULES_IN_A_FOLDER} == {}


def test_one_loop_accepts_all_clients() -> None:
    """No server of asyncio's or aiohttp's accepts: without a free descriptor it floods the journal (`listener`)."""
    servers = {"start_server", "start_unix_server", "create_server", "create_unix_server", "sock_accept"}
    servers |= {"TCPSite", "UnixSite", "SockSite", "AppRunner", "run_app"}
    for path in modules().values():
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not servers & {node.attr for node in nodes if isinstance(node, ast.Attribute)}, path


def test_s3_takes_only_open_uploads_of_the_spool() -> None:
    """What is in the spool is delivery's business; a multipart upload that the store may hold is also the store's."""
    taken = {pair.imported for pair in imports() if room(pair.importer) == "s3" and room(pair.imported) == "spool"}
    assert taken <= {"spool.open_uploads", "spool.rows"}


@pytest.mark.parametrize("library", ONE_ROOM_LIBRARIES)
def test_a_library_is_used_in_one_room(library: str) -> None:
    """A library that only one room imports can be replaced there."""
    users = set()
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if any(found.partition(".")[0] == library for found in names):
                users.add(room(name))
    assert users <= ONE_ROOM_LIBRARIES[library]


def test_rooms_introduce_themselves() -> None:
    """Each room's `__init__` is a docstring of a few lines with the room's purpose, and nothing else."""
    for path in PACKAGE.rglob("*/__init__.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == 1, path
        assert len((ast.get_docstring(tree) or "").splitlines()) >= 3, path


def test_rooms_name_each_of_their_modules() -> None:
    """Between backquotes, as do folders within a room: a reader of its `__init__` learns where to go."""
    for path in PACKAGE.rglob("*/__init__.py"):
        quoted = re.findall(r"`([\w./]+)`", ast.get_docstring(ast.parse(path.read_text())) or "")
        named = {word for name in quoted for word in re.split(r"[./]", name)}
        inside = {module.stem for module in path.parent.glob("*.py")} | {
            it.parent.name for it in path.parent.glob("*/*.py")
        }
        assert inside - {"__init__"} <= named, path


def test_the_map_names_only_modules_that_exist() -> None:
    """Each of its `room.module` is one."""
    named = set(re.findall(r"`([a-z0-9_]+(?:\.[a-z0-9_]+)+)`", s3daemon.__doc__ or ""))
    assert named
    assert named <= modules().keys()


def _run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff() -> None:
    """The linter finds nothing in the package, and with fewer rules nothing in the tests."""
    common = "check --no-cache --line-length 120 --target-version py311 --config lint.pydocstyle.convention='google'"
    limits = [word for limit in COMPLEXITY for word in ("--config", limit)]
    _run("ruff", *common.split(), *limits, "--select", RULES[0], "--ignore", RULES[1], "s3daemon")
    _run("ruff", *common.split(), "--select", TEST_RULES[0], "--ignore", TEST_RULES[1], "tests")


def test_mypy() -> None:
    """Types are strict in the package, and in all tests and benchmarks, where an outdated call shows.

    A fake is of its real class, so that a method that has changed shows too.
    """
    _run("mypy", "--cache-dir", "/dev/null", "s3daemon", "tests")
