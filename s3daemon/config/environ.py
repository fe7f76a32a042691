"""Where the text of a variable comes from: the environment, or a systemd credential of its name in lower case.

A credential is a file in $CREDENTIALS_DIRECTORY, such as `aws_secret_access_key`. A variable that is set in both places
is a fault: one of the two would be stale one day.
"""

from __future__ import annotations

import difflib
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from s3daemon.config.values import Variable
from s3daemon.errors import SettingsError, one_line

#: Variables of the original s3daemon that have no use here: they cost a warning, not the start. What is so instead.
RETIRED: Mapping[str, str] = {
    "S3DAEMON_MAX_RETRIES": "a transfer is tried for S3DAEMON_RETRY_FOR, however often that is",
    "S3DAEMON_ACCEPT_WAIT": "clients are accepted at once, up to S3DAEMON_MAX_CLIENTS",
    "S3DAEMON_LOG": "the log is in the systemd journal, and S3DAEMON_LOG_LEVEL chooses what is logged",
}

Read = Callable[[Path], str]
"""The content of a file, or OSError."""


def read_file(file: Path) -> str:
    """Read it as text, bytes that are not UTF-8 as lone surrogates."""
    return file.read_text("utf-8", errors="surrogateescape")


def of_service(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are systemd's to set: what a reload keeps as the running daemon has them."""
    ours = ("CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "STATE_DIRECTORY")
    return {name: environ[name] for name in ours if name in environ}


def text_of(variable: Variable, environ: Mapping[str, str], read: Read) -> str:
    """The text of a variable from the environment or its credential, "" when it is in neither.

    Raises:
        SettingsError: it is in both, or the credential cannot be read.
    """
    text, credential = environ.get(variable.name, ""), ""
    if directory := environ.get("CREDENTIALS_DIRECTORY", ""):
        file = Path(directory, variable.name.lower())
        try:
            credential = read(file).removesuffix("\n")
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise SettingsError([f"{variable.name}: the credential {file} cannot be read: {exc.strerror}"]) from exc
    if text and credential:
        raise SettingsError([f"{variable.name} is set in the environment and as a systemd credential: keep one"])
    if variable.name == "S3DAEMON_STATE_DIR":
        # systemd lists every directory of StateDirectory=; the first is ours.
        return text or credential or environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return text or credential


def check_file(variable: Variable, file: Path, read: Read) -> None:
    """Look whether the file that a variable names can be used.

    Raises:
        SettingsError: it cannot.
    """
    try:
        content = read(file)
        if variable.name == "AWS_CA_BUNDLE":
            # Comments of a bundle are in any script; Python takes ASCII alone.
            ssl.create_default_context(cadata=content.encode("ascii", "ignore").decode() or "\n")
    except ssl.SSLError:
        raise variable.fault(file, "no certificate in PEM form can be read from it") from None
    except OSError as exc:
        raise variable.fault(file, f"it cannot be read: {exc.strerror}") from exc


def unknown(environ: Mapping[str, str], variables: Iterable[Variable]) -> Iterator[str]:
    """A fault for each `S3DAEMON_` name that is none of `variables`."""
    # Without the prefix, which would make all of them look alike.
    known = [v.name.removeprefix("S3DAEMON_") for v in variables if v.name.startswith("S3DAEMON_")]
    for name in sorted(environ):
        word = name.removeprefix("S3DAEMON_")
        if word != name and word not in known and name not in RETIRED:
            close = difflib.get_close_matches(word, known, n=1)
            hint = f": is S3DAEMON_{close[0]} meant?" if close else ""
            yield f"{one_line(name)} is not a variable of s3daemon{hint}"


def retired(environ: Mapping[str, str]) -> list[str]:
    """A warning for each variable of the original s3daemon that is ignored."""
    return [f"{name} is ignored: {instead}; remove it" for name, instead in RETIRED.items() if name in environ]
