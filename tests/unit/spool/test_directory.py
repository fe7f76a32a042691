"""The state directory: one user at a time, closed to others, and the reserved space is real."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from s3daemon.errors import StartError
from s3daemon.spool.directory import (
    RESERVED_BYTES,
    Lock,
    ReservedSpace,
    disk_error,
    prepare,
)


def test_the_directory_is_made_or_closed_to_others(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    prepare(made)
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    prepare(made)
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StartError, match="must be a directory"):
        prepare(tmp_path / "state")


TOP = Path(__file__).resolve().parents[3]
HOLD = """
import sys; from pathlib import Path; from s3daemon.spool.directory import Lock
lock = Lock(Path(sys.argv[1]), create=True); print("held", flush=True); sys.stdin.read()
"""


def test_a_second_daemon_gets_the_pid_of_the_first_until_that_ends(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("4711, as a longer one left it\n")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": os.fspath(TOP)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StartError) as caught:
            Lock(tmp_path, create=True)
        assert caught.value.code == "SpoolLocked"
        assert caught.value.text == f"{tmp_path} is in use: process {holder.pid} holds its lock"
        holder.kill()
    lock = Lock(tmp_path, create=True)
    lock.release()


def test_a_tool_makes_no_lock(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        Lock(tmp_path, create=False)
    assert caught.value.code == "NoSpool"
    assert list(tmp_path.iterdir()) == []


def test_no_right_to_the_lock_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StartError, match="run as root or as the service's user"):
        Lock(tmp_path, create=False)


def test_the_reserved_space_has_real_blocks_and_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "ballast"
    reserved = ReservedSpace(path)
    reserved.ensure()
    first = path.stat()
    assert first.st_blocks * 512 >= RESERVED_BYTES
    reserved.ensure()
    assert path.stat().st_mtime_ns == first.st_mtime_ns
    os.truncate(path, 0)
    os.truncate(path, RESERVED_BYTES)  # as long, but a hole
    reserved.ensure()
    assert path.stat().st_blocks * 512 >= RESERVED_BYTES
    reserved.release()
    reserved.release()
    assert not path.exists()


def test_a_pipe_in_place_of_the_reserved_space_is_replaced(tmp_path: Path) -> None:
    """It is not opened, which would wait for another end."""
    path = tmp_path / "ballast"
    os.mkfifo(path)
    made = threading.Thread(target=ReservedSpace(path).ensure, daemon=True)
    made.start()
    made.join(5)
    assert not made.is_alive()
    assert path.stat().st_blocks * 512 >= RESERVED_BYTES


def sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("words")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (sqlite_error(sqlite3.SQLITE_FULL), "SpoolFull"),
        (OSError(errno.ENOSPC, "no space"), "SpoolFull"),
        (OSError(errno.EDQUOT, "quota"), "SpoolFull"),
        (sqlite_error(sqlite3.SQLITE_READONLY), "SpoolReadOnly"),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED), "SpoolReadOnly"),
        (OSError(errno.EROFS, "read-only"), "SpoolReadOnly"),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC), "SpoolBroken"),
        (OSError(errno.EIO, "I/O error"), "SpoolBroken"),
    ],
)
def test_the_disks_errors_have_names(tmp_path: Path, error: Exception, code: str) -> None:
    trouble = disk_error(tmp_path, error)
    assert trouble.code == code
    assert str(tmp_path) in trouble.text
