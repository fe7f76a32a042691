"""The environment file's template and s3daemon.env(5) are what packaging/settings-docs makes of the settings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from s3daemon.config.settings import VARIABLES, Settings

TREE = Path(__file__).resolve().parents[2]
REQUIRED = {
    "S3_ENDPOINT_URL": "https://s3.example.org",
    "AWS_ACCESS_KEY_ID": "AKID",
    "AWS_SECRET_ACCESS_KEY": "example",
}


def check(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run the command's check in a tree."""
    command = [sys.executable, str(tree / "packaging/settings-docs"), "--check"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def template() -> dict[str, str]:
    """Return each variable of the template and its value, whether it is commented out or not."""
    text = (TREE / "packaging/s3daemon.env").read_text()
    return dict(re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", text, re.M))


def test_the_documents_agree_with_the_table() -> None:
    """If this fails, run packaging/settings-docs and commit what it writes."""
    done = check(TREE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_difference_is_reported(tmp_path: Path) -> None:
    """The check names the files that a change of the table leaves behind."""
    for name in ("packaging", "s3daemon"):
        shutil.copytree(TREE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "s3daemon/config/settings.py"
    table.write_text(table.read_text().replace('"The access key."', '"Another text."'))
    done = check(tmp_path)
    assert done.returncode == 1
    for name in ("packaging/s3daemon.env", "packaging/man/s3daemon.env.5.rst"):
        assert f"{name} differs from" in done.stdout


def test_the_template_has_every_variable() -> None:
    """The lines that are not comments are those that an operator has to fill in."""
    assert list(template()) == [variable.name for variable in VARIABLES.values()]
    lines = (TREE / "packaging/s3daemon.env").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [f"{name}=" for name in REQUIRED]


def test_the_template_works() -> None:
    """With every line active and the required ones filled in, the settings are the defaults."""
    least = REQUIRED | {"STATE_DIRECTORY": "/var/lib/s3daemon"}
    assert Settings.from_environ(template() | least) == Settings.from_environ(least)


def test_the_manual_marks_what_needs_a_restart() -> None:
    """A variable is marked in template and manual exactly if a reload does not put it in force."""
    manual = (TREE / "packaging/man/s3daemon.env.5.rst").read_text()
    marked = re.findall(r"^\*\*(\w+)\*\*\n    .*(?:\n    .*)?\*\*Takes effect\s+at a\s+restart\.\*\*", manual, re.M)
    wanted = [variable.name for variable in VARIABLES.values() if variable.restart]
    assert marked == wanted
    text = (TREE / "packaging/s3daemon.env").read_text()
    assert re.findall(r"\(restart\)\n#(\w+)=", text) == wanted
