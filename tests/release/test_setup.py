"""What pip installs is whole: it builds from setup.cfg, where the RPM copies the tree."""

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def test_a_build_holds_every_file_of_the_package_and_no_other(tmp_path: Path) -> None:
    """Each module, the page of the HTTP server, and no folder of the tree beside the package."""
    command = ["egg_info", f"--egg-base={tmp_path}", "build_py", f"--build-lib={tmp_path / 'built'}"]
    script = "import setuptools; setuptools.setup()"
    done = subprocess.run([sys.executable, "-c", script, "-q", *command], cwd=TOP, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

    def files(below: Path) -> set[str]:
        paths = (path for path in below.rglob("*") if path.is_file() and path.suffix != ".pyc")
        return {str(path.relative_to(below)) for path in paths}

    assert files(tmp_path / "built") == {f"s3daemon/{name}" for name in files(TOP / "s3daemon")}
