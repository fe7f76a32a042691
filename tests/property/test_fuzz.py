"""No input makes a parser break its promises: the corpus, hypothesis's texts, and a short run of the fuzzer.

By hand, for millions: tests/property/fuzz --runs 10000000, each with a chance of its own. Here the chance is always the
same, so that a tree that passed is likely to pass again.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lab.env import TREE, clean_env
from lab.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
RUNS = 10_000 if os.environ.get("CI") == "true" else 4_000
#: Pieces of valid input, so that hypothesis's texts come near to it.
PIECES = st.sampled_from(
    ["/f", " ", "alias/bucket/key", "\n", "{", "}", '"file"', '"destination"', ": ", ", ", "true", "=", "'", '"', "\\",
     "#", "\r", "\0", "\udcff", "\u0301", "5", "min", "KiB", "é", "[" * 2000, "9" * 5000, "-- ", "::1", "S3DAEMON_PORT"]
)  # fmt: skip


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_of_the_corpus_fails(name: str) -> None:
    """Inputs that once covered something new, or failed."""
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


def test_the_corpus_is_small() -> None:
    """It takes little time, and has an input for each target and no others."""
    inputs = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in inputs} == set(TARGETS)
    assert sum(path.stat().st_size for path in inputs) < 256 << 10


@pytest.mark.parametrize("name", TARGETS)
@given(text=st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_no_generated_text_fails(name: str, text: str) -> None:
    """Texts made of pieces of valid input."""
    TARGETS[name](text.encode(errors="surrogatepass"))
    TARGETS[name](text.encode(errors="surrogatepass").replace(b"\xed\xb3\xbf", b"\xff"))


def test_the_fuzzer_finds_nothing(tmp_path: Path) -> None:
    """A short run over all targets, guided by coverage."""
    pytest.importorskip("atheris")
    command = [sys.executable, str(TREE / "tests/property/fuzz.py"), "--runs", str(RUNS), "--seed", "1"]
    environ = clean_env(PYTHONPATH=f"{TREE}:{TREE / 'tests'}")
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    made = re.search(r"^(\d+) executions of (\d+) targets", done.stdout, re.M)
    assert made is not None
    assert int(made[1]) >= RUNS
    assert int(made[2]) == len(TARGETS)


def test_the_fuzzer_finds_a_flaw(tmp_path: Path) -> None:
    """A parser with a flaw ends the run with exit status 1, the traceback and the input."""
    pytest.importorskip("atheris")
    flawed = tmp_path / "lab"
    flawed.mkdir()
    (flawed / "__init__.py").touch()
    (flawed / "targets.py").write_text("def flawed(data):\n    assert b'x' not in data\nTARGETS = {'flawed': flawed}\n")
    command = [sys.executable, str(tmp_path / "fuzz.py"), "--runs", "100000"]
    (tmp_path / "fuzz.py").write_text((TREE / "tests/property/fuzz.py").read_text())
    environ = clean_env(PYTHONPATH=f"{TREE}:{tmp_path}")
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "AssertionError" in done.stdout
    assert [path for path in tmp_path.glob("crash-*") if b"x" in path.read_bytes()]
