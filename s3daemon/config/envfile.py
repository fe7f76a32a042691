r"""systemd's environment file, read as systemd reads it: bytes in; variables, and what it passes over, out. Pure.

To systemd hardly anything in such a file is an error (systemd.exec(5), EnvironmentFile=): an open quote swallows the
lines below it, a line without an equals sign is passed over, and so is a name that no shell would take, `export NAME`
among them. So nothing here is an error either; the values are for `Settings` to judge.

    line    = [blanks] ("#" | ";") comment | name [blanks] "=" value | anything else, passed over
    value   = {'quoted' | "quoted"} [rest of line]; in double quotes a backslash escapes " ` $ and itself
    rest    = unquoted, a backslash before any character; blanks around it are dropped, quotes inside it are kept

A backslash at the end of a line joins the next line to it. At the end of a comment it does so up to systemd 253, which
is what Enterprise Linux 9 has, and is read that way here; the newer ones read on.

Not done: a name's pattern in EnvironmentFile= (it may be a glob), and limits on the size of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_SKIP = re.compile(r"[ \t\r\n]*")
_COMMENT = re.compile(r"[#;](?:[^\\\r\n]|\\(?:.|\Z))*", re.DOTALL)
#: An equals sign that comes first belongs to the name.
_NAME = re.compile(r"([^\r\n][^=\r\n]*)(=?)")
_QUOTED = re.compile(r"""[ \t]*(?:'([^']*)(?:'|\Z)|"((?:[^"\\]|\\.)*)(?:"|\\?\Z))""", re.DOTALL)
#: Blanks count where something follows them; an escaped blank is something, and so is the end of the file.
_REST = re.compile(r"[ \t]*((?:[ \t]*(?:[^\\ \t\r\n]|\\(?:.|\Z)))*)[ \t]*", re.DOTALL)
_ESCAPED = re.compile(r"\\(.|\Z)", re.DOTALL)
_VALID_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class EnvFile:
    """What a service gets of its environment file.

    Args:
        variables: the last value of each name.
        passed_over: one line on each thing that systemd does not take, or that newer and older ones read differently;
            without the text of the file, which may be a secret.
    """

    variables: dict[str, str] = field(default_factory=dict, repr=False)
    passed_over: tuple[str, ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> EnvFile:
        """Read the content of a file."""
        if b"\0" in content:
            return cls(passed_over=("there is a NUL byte in it: systemd takes nothing of the file",))
        variables: dict[str, str] = {}
        passed_over: list[str] = []
        for line, kind, name, value in _entries(content.decode(errors="surrogateescape")):
            if kind == "comment":
                text = "a comment ends in a backslash: systemd before 254 takes the next line as part of it"
                passed_over.append(f"line {line}: {text}")
            elif kind == "words":
                passed_over.append(f"line {line}: there is no equals sign in it: it is passed over")
            elif _undecodable(name + value):
                return cls(passed_over=(f"line {line}: it is not UTF-8: systemd takes nothing of the file",))
            elif not _VALID_NAME.fullmatch(name):
                hint = "write NAME=value, without export" if name.startswith("export ") else "it is passed over"
                passed_over.append(f"line {line}: what stands before the equals sign is no name of a variable: {hint}")
            else:
                variables[name] = value
        return cls(variables, tuple(passed_over))


class _Entry(NamedTuple):
    line: int
    kind: str  # "comment", with a backslash at the end; "words", without an equals sign; "assignment"
    name: str = ""
    value: str = ""


def _entries(text: str) -> Iterator[_Entry]:
    at = _end(_SKIP, text, 0)
    while at < len(text):
        line = len(re.findall(r"\r\n|\r|\n", text[:at])) + 1
        if text[at] in "#;":
            start, at = at, _end(_COMMENT, text, at)
            if re.search(r"\\[\r\n]", text[start:at]):
                yield _Entry(line, "comment")
        else:
            match = _NAME.match(text, at)
            assert match is not None, "the character here is no line break"
            at = match.end()
            if match[2]:
                value, at = _value(text, at)
                yield _Entry(line, "assignment", match[1].rstrip(" \t"), value)
            else:
                yield _Entry(line, "words")
        at = _end(_SKIP, text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None, "what it is used for is known to be there"
    return match.end()


def _value(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`, and where it ends."""
    pieces: list[str] = []
    while match := _QUOTED.match(text, at):
        pieces.append(match[1] if match[1] is not None else _ESCAPED.sub(_in_quotes, match[2]))
        at = match.end()
    rest = _REST.match(text, at)
    assert rest is not None, "it matches the empty text too"
    pieces.append(_ESCAPED.sub(lambda found: "" if found[1] in "\r\n" else found[1], rest[1]))
    return "".join(pieces), rest.end()


def _in_quotes(found: re.Match[str]) -> str:
    if found[1] in '"\\`$':
        return found[1]
    return "" if found[1] == "\n" else found[0]


def _undecodable(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)
