"""What `s3daemon check` finds, as lines for people; and the host it looks at.

    ok    works
    note  is worth knowing; nothing is wrong
    warn  works, but worse than it could, or not for long
    FAIL  does not work; the line says what to do

A line is told as soon as it is known: a store that does not answer takes its time.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from s3daemon.errors import one_line

_SUBJECT_CHARS = len("credentials")
_INDENT = len("FAIL ") + _SUBJECT_CHARS + 1
#: systemctl asks PID 1 over the bus, which answers at once or not at all.
_SYSTEMCTL_S = 10


class Report:
    """Takes what the checks find and writes it.

    Args:
        out: takes the lines.
        width: lines are folded to this many columns; None for one line a finding.

    Attributes:
        failed: something does not work.
    """

    def __init__(self, out: TextIO, width: int | None = None) -> None:
        self.failed = False
        self._out = out
        self._width = width
        self._secrets: tuple[str, ...] = ()

    def hide(self, secrets: Iterable[str]) -> None:
        """Show these nowhere: the last line of defence, as no check means to."""
        self._secrets = tuple(secrets)

    def ok(self, subject: str, text: str) -> None:
        """It works."""
        self._tell("ok", subject, text)

    def note(self, subject: str, text: str) -> None:
        """It is worth knowing."""
        self._tell("note", subject, text)

    def warn(self, subject: str, text: str) -> None:
        """It works worse than it could."""
        self._tell("warn", subject, text)

    def fail(self, subject: str, text: str) -> None:
        """It does not work; `text` says what to do."""
        self.failed = True
        self._tell("FAIL", subject, text)

    @contextlib.contextmanager
    def guard(self, subject: str) -> Iterator[None]:
        """Let no check end the others."""
        try:
            yield
        except Exception as exc:
            # A bug in one must not hide what the others find. Not its text: nobody knows what that quotes.
            self.fail(subject, f"this check itself is at fault, please report it: {type(exc).__name__}")

    def _tell(self, level: str, subject: str, text: str) -> None:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        line = f"{level:<4} {subject:<{_SUBJECT_CHARS}} {one_line(text, 1000)}"
        if self._width is not None:
            width = max(self._width, 2 * _INDENT)
            line = textwrap.fill(line, width, subsequent_indent=_INDENT * " ", break_on_hyphens=False)
        print(line, file=self._out, flush=True)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _systemctl(*words: str) -> str:
    program = shutil.which("systemctl")
    if program is None or not Path("/run/systemd/system").is_dir():
        return ""
    command = [program, "--no-pager", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_S, check=False)  # noqa: S603 - words are ours
    return done.stdout.strip()


@dataclass(frozen=True)
class Host:
    """The host that is looked at; a test has one of its own.

    Args:
        root: its file system.
        uid: who looks.
        user: the account of a name, or None.
        systemctl: what `systemctl WORDS...` prints; empty where systemd does not run.
    """

    root: Path = Path("/")
    uid: int = field(default_factory=os.geteuid)
    user: Callable[[str], pwd.struct_passwd | None] = _user
    systemctl: Callable[..., str] = _systemctl

    def path(self, absolute: str | Path) -> Path:
        """Where a path of the host is."""
        return self.root / str(absolute).lstrip("/")

    def sysctl(self, name: str) -> str:
        """A kernel setting, blanks made single; empty when it cannot be read."""
        try:
            return " ".join(self.path("/proc/sys/" + name.replace(".", "/")).read_text().split())
        except OSError:
            return ""
