"""The daemon laid out as on an installed system: /usr/lib/s3daemon, a virtual environment without pip.

The libraries are copied from the environment that the tests run in, so what is tried in the box is what the other
tests ran, and no network is needed. That asks for the same Python there as here: the box is of the host's own release.
"""

import compileall
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from lab.env import TREE

HOME = "/usr/lib/s3daemon"
_SCRIPT = f"""\
#!{HOME}/bin/python3
import sys

from s3daemon.cli import main

sys.exit(main())
"""


def lay_out(root: Path) -> None:
    """Put the daemon with its libraries, /usr/bin/s3daemon and /usr/bin/send into a root file system."""
    home = root / HOME.lstrip("/")
    shutil.rmtree(home, ignore_errors=True)
    libraries = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    libraries.mkdir(parents=True)
    for needed in _needs("s3daemon"):
        _copy(needed, libraries)
    shutil.copytree(TREE / "s3daemon", libraries / "s3daemon", ignore=shutil.ignore_patterns("__pycache__"))
    # Compiled here: the service's user may not write there, and would compile at every start.
    compileall.compile_dir(libraries / "s3daemon", quiet=1, stripdir=root, prependdir="/")
    binaries = home / "bin"
    binaries.mkdir()
    (binaries / "python3").symlink_to("/usr/bin/python3")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (binaries / "s3daemon").write_text(_SCRIPT)
    shutil.copy(TREE / "send", binaries / "send")
    for name in ("s3daemon", "send"):
        (binaries / name).chmod(0o755)
        link = root / "usr" / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"{HOME}/bin/{name}")


def _needs(name: str) -> Iterator[Distribution]:
    """Every distribution that the named one needs at run time, itself not included."""
    seen = {name}
    waiting = [name]
    while waiting:
        for text in distribution(waiting.pop()).requires or ():
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and requirement.name not in seen:
                seen.add(requirement.name)
                waiting.append(requirement.name)
                yield distribution(requirement.name)


def _copy(needed: Distribution, libraries: Path) -> None:
    for entry in needed.files or ():
        source = Path(str(entry.locate()))
        # Not: scripts outside of site-packages; stray files that two distributions claim and one has removed.
        if ".." in entry.parts or not source.is_file():
            continue
        target = libraries / entry
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
