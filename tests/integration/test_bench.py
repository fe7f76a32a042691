"""The benchmarks start, measure and print every figure; whether the figures are good is not tested here.

By hand, with numbers that mean something: tests/bench/local, tests/bench/load, tests/bench/wan.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from lab.env import TREE, UnavailableError, clean_env, program


def run(name: str, *arguments: str) -> list[str]:
    """The lines that a benchmark prints."""
    environ = clean_env(PYTHONPATH=f"{TREE / 'tests'}:{TREE}")
    done = subprocess.run(
        [sys.executable, TREE / "tests/bench" / name, *arguments],
        env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_local_prints_a_line_for_each_figure() -> None:
    for needed in ("weed", "nginx", "curl"):
        try:
            program(needed)
        except UnavailableError as missing:
            pytest.skip(str(missing))
    lines = run("local.py", "--store", "seaweed", "--rounds", "1", "--small", "5", "--large", "1")
    assert [line.split()[0] for line in lines] == ["small", "durable", "send", "accept", "large", "curl", "verified"]


def test_load_serves_every_client_and_transfer() -> None:
    lines = run("load.py", "--clients", "50", "--crowds", "1", "--transfers", "100")
    assert lines[-1] == "all served, none lost, no descriptor kept"


def test_wan_describes_itself() -> None:
    """It starts and knows its options; a run takes root, a C compiler and an idle machine."""
    assert any("--only" in line for line in run("wan.py", "--help"))
