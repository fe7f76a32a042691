"""Read the host that is checked: its files, its users, and what systemd and the journal have of a unit."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Systemd's own entries about a unit, by MESSAGE_ID: a start that failed, a run that failed, the end of a process.
START_FAILED = "be02cf6855d2428ba40df7e9d022f03d"
RUN_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
PROCESS_ENDED = "98e322203f7a4ed290d09fe03c09fe15"
#: That a step before the program failed; an entry before it may say what of it.
SPAWN_FAILED = "641257651c1b4ec9a8624d7a40a9e1e7"
#: PID 1 answers at once or not at all.
_SYSTEMD_S = 10


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _run(*command: str) -> str | None:
    """Return what a command of systemd prints; None where systemd does not run, or the command fails."""
    if not Path("/run/systemd/system").is_dir():
        return None
    try:
        # Not the caller's input, which may be closed: systemd-run would fail without one.
        done = subprocess.run(  # noqa: S603 - words are ours
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SYSTEMD_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape")


_PROPERTIES = (
    "LoadState,ActiveState,SubState,Result,NRestarts,UnitFileState,Listen,ProtectSystem,StateDirectory,"
    "RuntimeDirectory,ReadWritePaths,StandardOutput,StandardError,PrivateTmp,ProtectHome,User,Group,DynamicUser,"
    "SupplementaryGroups,ConditionResult,ConditionTimestampMonotonic,AssertResult,AssertTimestampMonotonic"
)


def _show(unit: str) -> dict[str, str]:
    shown = _run("systemctl", "show", f"--property={_PROPERTIES}", unit) or ""
    found: dict[str, str] = {}
    for name, _, value in (line.partition("=") for line in shown.splitlines()):
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def _last_error(unit: str) -> str:
    # Errors of Python, as that a library is missing, have the priority info.
    options = ("--quiet", f"--unit={unit}", "--lines=300", "--output=json", "--no-pager")
    return last_reason((_run("journalctl", *options) or "").splitlines())


def last_reason(entries: Iterable[str]) -> str:
    """Return why a unit failed last, as far as these entries say; empty when they do not.

    Args:
        entries: of the unit, as `journalctl -o json` prints them. Those of other runs do not count; systemd's own at
            the end of a run say only that it failed, and what has fields of ours is about a transfer or the store.
    """
    found = [json.loads(entry) for entry in entries]
    failures = [entry for entry in found if entry.get("MESSAGE_ID") == RUN_FAILED]
    if not failures:
        return ""
    run = failures[-1].get("INVOCATION_ID")
    of_run = [entry for entry in found if run in (entry.get("INVOCATION_ID"), entry.get("_SYSTEMD_INVOCATION_ID"))]
    errors = [entry for entry in of_run if entry.get("PRIORITY", "6") <= "3" and not _gives_no_reason(entry)]
    printed = [entry for entry in of_run if entry.get("_TRANSPORT") == "stdout"]
    ended = [entry for entry in of_run if entry.get("MESSAGE_ID") == PROCESS_ENDED]
    last = next((some for some in (errors, printed, ended) if some), [])
    detailed = [entry for entry in last[-2:] if last[-1].get("MESSAGE_ID") == SPAWN_FAILED] or last[-1:]
    return "; ".join(str(entry.get("MESSAGE", "")).strip() for entry in detailed)


def _gives_no_reason(entry: Mapping[str, object]) -> bool:
    """Whether an entry only says that a start failed, or is about a transfer or the store."""
    return entry.get("MESSAGE_ID") == START_FAILED or any(name.startswith("S3DAEMON_") for name in entry)


def _environment(file: Path) -> dict[str, str] | None:
    about = f"--description=s3daemon check reads {file}"
    options = ("--quiet", "--collect", "--pipe", "--wait", "--no-ask-password", about)
    printed = _run("systemd-run", *options, f"--property=EnvironmentFile={file}", "--", "/usr/bin/env", "--null")
    if printed is None:
        return None
    return {name: value for name, _, value in (entry.partition("=") for entry in printed.split("\0")) if name}


def _readable(file: Path, user: str, groups: Sequence[str]) -> bool | None:
    account = _user(user)
    if os.geteuid() or account is None:
        return None
    try:
        ids = [*os.getgrouplist(user, account.pw_gid), *(grp.getgrnam(name).gr_gid for name in groups)]
        command = ("/usr/bin/test", "-r", str(file))
        done = subprocess.run(  # noqa: S603 - words are ours
            command, check=False, timeout=_SYSTEMD_S, user=account.pw_uid, group=account.pw_gid, extra_groups=ids
        )
    except (KeyError, OSError, subprocess.SubprocessError):
        return None
    return done.returncode == 0


@dataclass(frozen=True)
class Host:
    """The host that is checked; a test has one of its own.

    Args:
        root: its file system.
        uid: the user who runs the check.
        user: the account of a name, or None.
        show: some properties of a systemd unit, those that occur more than once joined by a blank; empty where systemd
            does not run.
        last_error: why a systemd unit failed last, as the journal has it; empty when it does not say, or cannot be
            read.
        environment: the environment that systemd makes of an environment file, by starting a short-lived process;
            None where it does not: for others than root, or where it does not run, or of a file that it does not take.
        readable: whether a user with these further groups may read a file; None where that is not known.
    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    user: Callable[[str], pwd.struct_passwd | None] = _user
    show: Callable[[str], Mapping[str, str]] = _show
    last_error: Callable[[str], str] = _last_error
    environment: Callable[[Path], Mapping[str, str] | None] = _environment
    readable: Callable[[Path, str, Sequence[str]], bool | None] = _readable

    def path(self, absolute: str | Path) -> Path:
        """Return where a path of the host is."""
        return self.root / str(absolute).lstrip("/")

    def sysctl(self, name: str) -> str:
        """Return a kernel setting, blanks made single; empty when it cannot be read."""
        try:
            return " ".join(self.path("/proc/sys/" + name.replace(".", "/")).read_text().split())
        except OSError:
            return ""
