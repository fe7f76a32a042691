"""The state directory: who may use it, what lies in it, and what its disk's errors mean. Synchronous.

    0700 STATE_DIRECTORY/
        lock                the daemon or tool that uses the directory holds a flock on it; the file contains its pid
        spool.db, -wal      the rows (`database`); no -shm, since the file is locked exclusively
        ballast             256 KiB of real blocks, released when the disk is full, so that removals can still commit
        spool.db.new        a replacement being built (`recovery`)
        spool.db.rescued    a complete replacement, about to become spool.db
        control             the operators' socket (`control.server`), only where there is no runtime directory
        spool.db.corrupt-YYYYmmddTHHMMSSZ, its -wal and -shm
                            a damaged spool, or what others put in its place, renamed for people to look at; never
                            read again, never removed

What opening does with what a crash or a failing disk left behind:

    lock of a dead process  nothing: the kernel released it
    spool.db-wal            SQLite takes what was committed from it, and nothing else
    spool.db without a byte it is used as a new one, and the journal says so; operators' tools leave it to the daemon
    spool.db damaged        rows that can be read go to spool.db.new, committed; that becomes spool.db.rescued; what
                            there is of spool.db becomes spool.db.corrupt-...; spool.db.rescued becomes spool.db
    spool.db.rescued        the last two of these steps again
    spool.db.new            removed
    ballast short or gone   created again; while it cannot be, acceptances are refused
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import stat
from pathlib import Path

from s3daemon.errors import Code, SpoolError, StartError, one_line
from s3daemon.spool.database import primary_code

#: How the names of the files above begin; what else lies there is not the daemon's, such as lost+found.
NAMES = ("lock", "spool.db", "ballast", "control")
#: Twice the WAL (`database`), so that it can be written back and filled once more with removals.
RESERVED_BYTES = 256 * 1024
#: What to say of a spool's file without a byte, which SQLite takes for a new database. The daemon never leaves one; a
#: file system does that was full, or crashed.
EMPTY_SPOOL = "is empty; if it held transfers, they are lost: send their files again"
#: What to say of a directory such as /data or /tmp: to close it to others would cut everybody off from it.
SHARED_DIRECTORY = "is open to other users and has files of others: name a directory of the daemon's own"
#: What to say of a spool in systemd's state directory where a setting or a drop-in names another: nothing else would.
UNUSED_SPOOL = (
    "is not used, as the service has another state directory, and transfers in it are not delivered: to deliver them, "
    "take S3DAEMON_STATE_DIR or the drop-in out and restart the service; then remove the file"
)


def has_unused_spool(directory: Path, in_use: Path) -> bool:
    """Return whether a directory has a spool, and is not the one `in_use` by another name, as a mount or a link is."""
    file, used = directory / "spool.db", in_use / "spool.db"
    with contextlib.suppress(OSError):
        return file.exists() and not (used.exists() and file.samefile(used))
    return False


def denied(path: Path, error: OSError) -> StartError:
    """Return the error for people that `error`, raised while a file of the spool was opened, means; with its cure."""
    directory = path.parent
    try:
        found, owner = path.stat(), directory.stat().st_uid
        own = owner == os.geteuid()
    except OSError:
        found, own = None, False
    if found and not stat.S_ISREG(found.st_mode):
        return StartError(Code.SPOOL_DENIED, f"{path} is not a regular file: rename or remove it")
    if isinstance(error, PermissionError):
        ours = f"chown -R --reference={directory} {directory}; chmod u+rw {path}"
        cure = ours if own else "run as root or as the service's user"
    elif error.errno == errno.EROFS:
        cure = "its file system must be writable"
    else:
        cure = f"examine {directory} and its file system"
    return StartError(Code.SPOOL_DENIED, f"{path} cannot be opened: {error.strerror}: {cure}")


def obstacle(path: Path) -> StartError | None:
    """Return what keeps this process from writing the spool's file `path` or its WAL; None if nothing is known."""
    for each in (path, path.with_name(f"{path.name}-wal")):
        try:
            os.close(os.open(each, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
        except OSError as exc:
            return denied(each, exc)
        if not each.is_file():
            return denied(each, OSError())
    return None


class Lock:
    """The right to use the directory, held until `release`.

    Args:
        directory: the state directory.
        create: create the lock file when it does not exist.

    Raises:
        StartError: `SpoolLocked`, another process holds it; `NoSpool`; `SpoolDenied`.
    """

    def __init__(self, directory: Path, *, create: bool) -> None:
        path = directory / "lock"
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError as exc:
            text = f"there is no spool in {directory}: the daemon's first start makes it"
            raise StartError(Code.NO_SPOOL, f"{text}; --instance or --state-dir name others") from exc
        except OSError as exc:
            raise denied(path, exc) from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            pid = os.pread(self._fd, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise StartError(Code.SPOOL_LOCKED, f"{directory} is in use: process {pid} holds its lock") from exc
        # Always the same length, so that a full disk needs no new block for it; if it does, the lock is what counts.
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, f"{os.getpid():<19}\n".encode(), 0)

    def release(self) -> None:
        """Let other processes take it."""
        os.close(self._fd)


class ReservedSpace:
    """Space on the disk that is reserved, so that removals can still commit when the disk is full.

    Args:
        path: of the file.
        create: False where it may be released, but not created.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path, self._create = path, create

    def ensure(self) -> None:
        """Create the file where it is missing or short, if it may be created.

        Raises:
            OSError: there is no space; no part of the file is left.
        """
        if not self._create:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_blocks * 512 >= RESERVED_BYTES:
                return
        try:
            self._path.unlink(missing_ok=True)
            with self._path.open("xb") as file:  # a new one: a pipe of that name would block
                # Random: a file system that compresses would reserve nothing for zeros.
                file.write(os.urandom(RESERVED_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Remove the file, if the disk allows it."""
        with contextlib.suppress(OSError):
            self._path.unlink()


def is_shared(directory: Path) -> bool:
    """Whether other users may enter a directory that has files of others.

    Raises:
        OSError: it cannot be read.
    """
    is_open = bool(directory.stat().st_mode & 0o077)
    return is_open and any(not path.name.startswith((*NAMES, "lost+found")) for path in directory.iterdir())


def prepare(directory: Path) -> None:
    """Create the directory, or take other users' access to it away, unless it has files of others too.

    Raises:
        StartError: `BadStateDirectory`.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & 0o077:
            # A setting that names /data or /tmp would cut everybody off from that.
            if is_shared(directory):
                raise StartError(Code.BAD_STATE_DIRECTORY, f"{directory} {SHARED_DIRECTORY}, or chmod 700 it")
            directory.chmod(0o700)
    except OSError as exc:
        text = f"{directory} must be a directory of this user with mode 0700: {exc.strerror}"
        raise StartError(Code.BAD_STATE_DIRECTORY, text) from exc


def disk_error(directory: Path, error: Exception) -> SpoolError:
    """Return the error for people that `error`, raised while writing in `directory`, means: full, read-only or broken.

    SQLite tells only the plainest cases apart, so the file system itself is asked too.
    """
    read_only, full, reason = False, False, ""
    try:
        disk = os.statvfs(directory)
        read_only, full = bool(disk.f_flag & os.ST_RDONLY), not disk.f_bavail
    except FileNotFoundError:
        reason = "it is gone; put it back"
    except PermissionError:
        reason = "this user may not enter a directory above it; chmod a+x that"
    except OSError:
        pass
    code = primary_code(error)
    number = error.errno if isinstance(error, OSError) else 0
    if read_only or code == sqlite3.SQLITE_READONLY or number == errno.EROFS:
        return SpoolError(Code.SPOOL_READ_ONLY, f"nothing is accepted: {directory} is read-only; mount it writable")
    if number == errno.EDQUOT:
        text = f"nothing is accepted: this user's quota on the disk of {directory} is used up; raise it"
        return SpoolError(Code.SPOOL_FULL, text)
    if full or code == sqlite3.SQLITE_FULL or number == errno.ENOSPC:
        return SpoolError(Code.SPOOL_FULL, f"nothing is accepted: the disk of {directory} is full; free some of it")
    if not reason and isinstance(error, PermissionError):
        reason = f"{error.strerror}; chown -R {os.geteuid()}: {directory}, and chmod 700 {directory}"
    reason = reason or one_line(str(error))
    if code == sqlite3.SQLITE_IOERR:  # which a quota is, too
        reason += "; examine the disk (dmesg), and this user's quota on it"
    return SpoolError(Code.SPOOL_BROKEN, f"nothing is accepted: {directory} cannot be written: {reason}")
