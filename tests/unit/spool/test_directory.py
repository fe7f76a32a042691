"""The state directory: one user at a time, closed to others, and the reserved space is real."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from lab.env import not_as_root

from s3daemon.errors import StartError
from s3daemon.spool.directory import (
    RESERVED_BYTES,
    Lock,
    ReservedSpace,
    denied,
    disk_error,
    has_unused_spool,
    obstacle,
    prepare,
)
from s3daemon.spool.spool import Spool


def test_the_directory_is_made_or_closed_to_others(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    prepare(made)
    assert made.stat().st_mode & 0o777 == 0o700
    made.chmod(0o755)
    prepare(made)
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_use_is_not_closed_to_them(tmp_path: Path) -> None:
    """As where S3DAEMON_STATE_DIR is /data: that is refused, unless it is closed to others anyway."""
    for name in ("spool.db", "spool.db-wal", "lock", "lost+found"):
        (tmp_path / name).touch()
    tmp_path.chmod(0o755)
    prepare(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    (tmp_path / "image.fits").touch()
    prepare(tmp_path)
    tmp_path.chmod(0o755)
    with pytest.raises(StartError, match="has files of others: name a directory of the daemon's own"):
        prepare(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StartError, match="must be a directory"):
        prepare(tmp_path / "state")


def test_a_spool_that_is_not_used(tmp_path: Path) -> None:
    """Not the one in use by another name: to remove it would lose transfers."""
    usual, moved, link = tmp_path / "usual", tmp_path / "moved", tmp_path / "link"
    usual.mkdir()
    link.symlink_to(usual)
    assert not has_unused_spool(usual, moved)
    (usual / "spool.db").touch()
    assert has_unused_spool(usual, moved)
    assert not has_unused_spool(usual, usual)
    assert not has_unused_spool(link, usual)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errno.EACCES, "Permission denied: chown -R --reference={0} {0}; chmod u+rw {0}/spool.db"),
        (errno.EROFS, "Read-only file system: its file system must be writable"),
        (errno.EIO, "Input/output error: examine {0} and its file system"),
    ],
)
def test_a_file_that_cannot_be_opened_has_a_cure(tmp_path: Path, error: int, text: str) -> None:
    file = tmp_path / "spool.db"
    file.touch()
    found = denied(file, OSError(error, os.strerror(error)))
    assert (found.code, found.text) == ("SpoolDenied", f"{file} cannot be opened: {text.format(tmp_path)}")


def test_another_user_is_told_who_may(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied")
    text = f"{tmp_path}/none/lock cannot be opened: Permission denied: run as root or as the service's user"
    assert denied(tmp_path / "none/lock", error).text == text


@pytest.mark.parametrize("name", ["spool.db", "spool.db-wal"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_in_the_way(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    assert obstacle(tmp_path / "spool.db") is None
    make(tmp_path / name)
    found = obstacle(tmp_path / "spool.db")
    assert found is not None
    assert found.text == f"{tmp_path / name} is not a regular file: rename or remove it"


def test_a_spool_that_cannot_be_opened_names_the_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "spool.db-wal").mkdir(parents=True)
    with pytest.raises(StartError, match=r"spool\.db-wal is not a regular file"):
        Spool.open(tmp_path)


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


def test_a_lock_that_cannot_be_opened_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(StartError, match="lock is not a regular file: rename or remove it") as caught:
        Lock(tmp_path, create=False)
    assert caught.value.code == "SpoolDenied"


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


def test_a_disk_that_cannot_be_written_has_a_cure(tmp_path: Path) -> None:
    error = sqlite_error(sqlite3.SQLITE_CANTOPEN)
    assert disk_error(tmp_path / "gone", error).text.endswith("gone cannot be written: it is gone; put it back")
    denied_here = PermissionError(errno.EACCES, "Permission denied", os.fspath(tmp_path / "spool.db"))
    cure = f"chown -R {os.geteuid()}: {tmp_path}, and chmod 700 {tmp_path}"
    assert disk_error(tmp_path, denied_here).text.endswith(f"cannot be written: Permission denied; {cure}")
    failed = sqlite_error(sqlite3.SQLITE_IOERR_WRITE)
    assert disk_error(tmp_path, failed).text.endswith("words; examine the disk (dmesg), and this user's quota on it")
    quota = f"this user's quota on the disk of {tmp_path} is used up; raise it"
    assert disk_error(tmp_path, OSError(errno.EDQUOT, "quota")).text.endswith(quota)
    tmp_path.chmod(0)
    with not_as_root():
        assert disk_error(tmp_path / "state", error).text.endswith(
            "this user may not enter a directory above it; chmod a+x that"
        )
    tmp_path.chmod(0o700)
