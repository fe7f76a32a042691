"""What systemd makes of an environment file, compared with what its lines say. Pure.

Systemd never refuses such a file: it ignores a line that it does not understand, and may log it with the secret in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from s3daemon.config.settings import VARIABLES

#: Whether a variable of ours has a secret for its value, by name.
_IS_SECRET = {name: v.secret for v in VARIABLES.values() for name in (v.name, v.fallback) if name}
#: A line that names a variable of ours, in whatever form: the name, and what follows.
_NAMING = re.compile(rf"[^#;=]*?(?<!\w)({'|'.join(_IS_SECRET)})\b\s*[=:]?(.*)", re.IGNORECASE)
_VARIABLE_NAME = re.compile("[A-Z_][A-Z0-9_]*", re.IGNORECASE)


def not_set_by_file(text: str, environ: Mapping[str, str]) -> list[str]:
    """Return a fault for each variable of ours that an environment file names and systemd does not set as it says.

    Systemd ignores a line that is not NAME=value, and some that are, and goes on. Its rules differ from version to
    version, so they are not repeated here: its result is compared.

    Args:
        text: the file's content, with LF at the end of each line.
        environ: what systemd makes of the file.
    """
    last: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if match := _NAMING.match(line):
            last[match[1].upper()] = number, match[2]
    cause = "systemd ignores export, NAME: value, a byte order mark, and what follows a backslash or an open quote"
    return [
        f"line {number} does not set {name}: {cause}"
        for name, (number, value) in last.items()
        if name not in environ or not _says(value, environ[name])
    ]


def logged_by_systemd(text: str) -> list[str]:
    """Return a fault for each line of an environment file that systemd would log with what may be a secret in it.

    It logs a line whose name is not a variable's, such as one with export, whenever a unit with that file starts or
    reloads; and a value that is not UTF-8. A secret may be there under any name, as it is ignored, except under that of
    a variable of ours which has none, in a line that the next one does not continue.

    Args:
        text: the file's content, with LF at the end of each line, and lone surrogates for bytes that are not UTF-8.
    """
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        name, equals, value = line.lstrip().partition("=")
        if not equals or name[:1] in ("#", ";"):
            continue
        named = _NAMING.match(line)
        if named and not _IS_SECRET[named[1].upper()] and not line.endswith("\\"):
            continue
        if not _VARIABLE_NAME.fullmatch(name.rstrip()) or any("\ud800" <= char < "\ue000" for char in value):
            found.append(
                f"systemd writes all of line {number}, with any secret in it, to the journal at each start and reload: "
                "write NAME=value, and replace the key if the service has been started or reloaded with this line"
            )
    return found


def _says(text: str, value: str) -> bool:
    """Whether the text after an equals sign stands for a value; quotes, blanks and backslashes are not compared."""
    said, read = (re.sub(r"[\s'\"\\]", "", each) for each in (text, value))
    return read.startswith(said) if text.endswith("\\") else read == said
