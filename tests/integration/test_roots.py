"""Whatever is done to a path, the opened file lies under a root and is not one of the daemon's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3daemon.config.settings import Settings
from s3daemon.errors import FileError
from s3daemon.model.files.source import Source, open_file

#: How often each race is run, unless TEST_RACES says otherwise. A check of the path, instead of the file that is open,
#: is found wrong after some 70 times, and never took more than 2 300.
TIMES = int(os.environ.get("TEST_RACES") or 20_000)

#: What is done to data/night/f, over and over.
SWAPS = {
    "the file is one inside, then a link to one outside": """
    os.symlink("../../outside/f", "made"); os.rename("made", "night/f")
    time.sleep(1e-5)  # or openings only wait for its locks
    os.link("allowed", "made"); os.rename("made", "night/f")
""",
    "the directory is one inside, then a link to one outside": """
    os.rename("night", "kept"); os.symlink("../outside", "night")
    os.unlink("night"); os.rename("kept", "night")
""",
    "the directory is moved out of the root and back, a link in its place": """
    os.rename("night", "../outside/night"); os.symlink("../outside/night", "night")
    os.unlink("night"); os.rename("../outside/night", "night")
""",
}


@contextmanager
def swapping(code: str, directory: Path) -> Iterator[None]:
    """Run the code over and over in another process, so that it is truly parallel."""
    swapper = subprocess.Popen([sys.executable, "-ISc", f"import os, time\nwhile True:\n{code}"], cwd=directory)
    try:
        yield
        assert swapper.poll() is None
    finally:
        swapper.kill()
        swapper.wait()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A root with a file in a directory; outside of it, another file of the same name."""
    data = tmp_path / "data"
    (data / "night").mkdir(parents=True)
    (data / "allowed").write_bytes(b"allowed")
    os.link(data / "allowed", data / "night/f")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_bytes(b"secret")
    return data


def content(path: Path | str, *roots: Path, closed: tuple[Path, ...] = ()) -> str:
    """The content of the file that is opened, or the error's code."""
    try:
        source = Source.open(str(path), [str(root) for root in roots], [str(place) for place in closed])
    except FileError as exc:
        return exc.code
    found = source.read_piece(0)
    source.close()
    return found.decode()


@pytest.mark.parametrize("code", list(SWAPS.values()), ids=list(SWAPS))
def test_no_race_leads_out_of_the_root(data: Path, code: str) -> None:
    """While the path changes, only the file under the root is opened, or there is an error."""
    seen = Counter[str]()
    with swapping(code, data):
        until = time.monotonic() + 120
        while seen.total() < TIMES or (len(seen) < 2 and time.monotonic() < until):
            seen[content(data / "night/f", data)] += 1
    print(*(f"{what}: {count}" for what, count in sorted(seen.items())), sep=", ")
    assert seen.keys() <= {"allowed", "NotAllowed", "NoSuchFile"}
    assert {"allowed", "NotAllowed"} <= seen.keys()


def test_a_root_may_be_a_link(data: Path, tmp_path: Path) -> None:
    """A link counts as its target, also after the target was changed."""
    link = tmp_path / "link"
    link.symlink_to(data)
    assert content(link / "night/f", link) == content(data / "night/f", link) == "allowed"
    assert content(tmp_path / "outside/f", link) == "NotAllowed"
    link.unlink()
    link.symlink_to(tmp_path / "outside")
    assert content(link / "f", link) == "secret"
    assert content(data / "night/f", link) == "NotAllowed"


def test_a_root_that_does_not_exist(data: Path, tmp_path: Path) -> None:
    """No file lies under it; other roots are not affected."""
    assert content(data / "night/f", tmp_path / "late") == "NotAllowed"
    assert content(data / "night/f", tmp_path / "late", data) == "allowed"


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace takes root")
def test_a_mount_in_another_namespace(data: Path, tmp_path: Path) -> None:
    """A file that another process mounted at a root's path lies under no root, though its path says so."""
    script = 'mount --bind "$1" "$2" && echo ready && read'
    command = ["unshare", "--mount", "bash", "-c", script, "mount", str(tmp_path / "outside"), str(data / "night")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        if other.stdout.readline() != "ready\n":
            pytest.skip("mounting is not allowed here")
        theirs = Path(f"/proc/{other.pid}/root{data}/night/f")
        assert theirs.read_bytes() == b"secret"
        assert content(theirs, data) == "NotAllowed"
        assert content(theirs) == "secret"
        assert content(data / "night/f", data) == "allowed"
        other.stdin.close()


def test_the_daemons_own_files_are_refused(data: Path, tmp_path: Path) -> None:
    """Its spool and its keys, by whatever name, also where all files are allowed."""
    state, keys = tmp_path / "state", tmp_path / "keys"
    state.mkdir()
    (state / "spool.db").write_bytes(b"spool")
    keys.write_bytes(b"secret")
    (data / "link").symlink_to(state)
    settings = Settings(endpoint_url="http://store", shared_credentials_file=str(keys), state_dir=str(data / "link"))

    def opened(path: Path | str) -> Source:
        return asyncio.run(open_file(str(path), settings.allowed_roots, settings.private_paths(), 10.0))

    def code(path: Path | str) -> str:
        with pytest.raises(FileError) as caught:
            opened(path)
        return caught.value.code

    descriptor = os.open(keys, os.O_RDONLY)
    try:
        for path in (state / "spool.db", data / "link/spool.db", keys, f"/proc/{os.getpid()}/fd/{descriptor}"):
            assert code(path) == "NotAllowed"
    finally:
        os.close(descriptor)
    opened(data / "night/f").close()
    # Other files of /proc, such as the environment, claim to be empty and are not: that is an error too.
    assert code("/proc/self/environ") == "NotRegularFile"


def test_systemds_credentials_are_refused(tmp_path: Path) -> None:
    """A closed directory covers all below it, and nothing beside it."""
    (tmp_path / "credentials/s3daemon.service").mkdir(parents=True)
    for name in ("credentials/s3daemon.service/aws_secret_access_key", "credentials.md"):
        (tmp_path / name).write_text("text")
    closed = (tmp_path / "credentials",)
    assert content(tmp_path / "credentials/s3daemon.service/aws_secret_access_key", closed=closed) == "NotAllowed"
    assert content(tmp_path / "credentials.md", closed=closed) == "text"
