"""Print the findings of `s3daemon check` as lines for people.

    ok    works
    note  is worth knowing; nothing is wrong
    warn  works, but worse than it could, or not for long
    FAIL  does not work; the line says what to do

Each line is printed at once, because a store that does not answer delays those that follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TextIO

from rich.table import Table
from rich.text import Text

from s3daemon.commands.table import console_of, width_of
from s3daemon.errors import one_line, to_redact

_SUBJECT_CHARS = len("credentials")
_STYLES = {"FAIL": "bold red", "warn": "yellow", "ok": "green", "note": ""}


class Findings:
    """Takes what the checks find and prints it.

    Args:
        out: takes the lines; they are folded where it is a terminal.

    Attributes:
        failed: something does not work.
    """

    def __init__(self, out: TextIO) -> None:
        self.failed = False
        self._console = console_of(out)
        self._secrets: list[str] = []

    def hide(self, secrets: Iterable[str]) -> None:
        """Replace these texts wherever they occur: the last line of defence, as no check means to show one."""
        self._secrets = to_redact(secrets)

    def ok(self, subject: str, text: str) -> None:
        """Say that something works."""
        self._print("ok", subject, text)

    def note(self, subject: str, text: str) -> None:
        """Say what is worth knowing."""
        self._print("note", subject, text)

    def warn(self, subject: str, text: str) -> None:
        """Say what works worse than it could."""
        self._print("warn", subject, text)

    def fail(self, subject: str, text: str) -> None:
        """Say what does not work, and what to do."""
        self.failed = True
        self._print("FAIL", subject, text)

    @contextlib.contextmanager
    def guard(self, subject: str) -> Iterator[None]:
        """Turn an unexpected exception of one check into a finding, so that the other checks run."""
        try:
            yield
        except Exception as exc:
            # Without its text, which may quote anything.
            self.fail(subject, f"a bug in this check, please report it: {type(exc).__name__}")

    def _print(self, level: str, subject: str, text: str) -> None:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = one_line(text, 1000)
        if width_of(self._console) is None:
            print(f"{level:<4} {subject:<{_SUBJECT_CHARS}} {text}", file=self._console.file, flush=True)
            return
        line = Table.grid(padding=(0, 1))
        line.add_column(width=len("FAIL"))
        line.add_column(width=_SUBJECT_CHARS)
        line.add_row(Text(level, _STYLES[level]), subject, Text(text))
        self._console.print(line)
