"""The benchmarks start, measure and print every figure; whether the figures are good is not tested here.

By hand, with numbers that mean something: tests/bench/local, tests/bench/load, tests/bench/wan.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab.env import TREE, UnavailableError, clean_env, program

#: Takes each form for stored, if it has all that it needs.
OTHER = """
import http.server, os, urllib.parse
assert os.environ["S3_ENDPOINT_URL"].startswith("https://") and os.environ["AWS_CA_BUNDLE"]
assert os.environ["AWS_ACCESS_KEY_ID"] and os.environ["AWS_SECRET_ACCESS_KEY"]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        form = dict(urllib.parse.parse_qsl(self.rfile.read(int(self.headers["Content-Length"])).decode()))
        good = self.path == "/upload" and os.path.isfile(form["file"]) and form["uri"].startswith("s3://bucket/")
        self.send_response(200 if good and form["slug"] else 400)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


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
    few = ("local.py", "--store", "seaweed", "--rounds", "1", "--small", "5", "--large", "1")
    lines = [line for part in ("small", "large") for line in run(*few, "--only", part)]  # "sidecars": below
    figures = ["small", "cpu", "durable", "send", "accept", "large", "curl", "verified"]
    assert [line.split()[0] for line in lines] == figures


def test_a_daemon_that_answers_forms_is_a_contender(tmp_path: Path) -> None:
    """It gets its port, endpoint, keys and certificates from the environment, and its figures are beside ours."""
    program = tmp_path / "other.py"
    program.write_text(OTHER)
    lines = run("local.py", "--only", "sidecars", "--rounds", "1", "--daemon", f"other={sys.executable} {program}")
    assert [line.split()[0] for line in lines] == ["sidecars", "late"]
    assert all(re.search(r"\bother [0-9.-]+", line) for line in lines)


def test_load_serves_every_client_and_transfer() -> None:
    lines = run("load.py", "--clients", "50", "--crowds", "1", "--transfers", "100")
    assert lines[-1] == "all served, none lost, no descriptor kept"


def test_wan_describes_itself() -> None:
    """It starts and knows its options; a run takes root, a C compiler and an idle machine."""
    assert any("--only" in line for line in run("wan.py", "--help"))
