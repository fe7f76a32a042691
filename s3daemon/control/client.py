"""The operator's end of the control socket: where a daemon is found, how it is asked and told to reload.

It blocks, up to a limit, and is for commands; nothing of it runs in the daemon.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from s3daemon.config.settings import of_operator
from s3daemon.control.server import MAX_REQUEST, control_path
from s3daemon.errors import Code, S3daemonError, SettingsError

#: A daemon answers at once; longer than its event loop is ever busy, shorter than systemd waits for ExecReload=.
_PATIENCE_S = 30.0


class NoDaemonError(S3daemonError):
    """Nobody listens on the control socket."""


@dataclass(frozen=True, slots=True)
class Instance:
    """Where one daemon keeps its things, as its operator's commands find them.

    Args:
        state_dir: the state directory.
        sockets: where the control socket may be; at most one of them has somebody behind it.
    """

    state_dir: Path
    sockets: tuple[Path, ...]

    @classmethod
    def find(cls, environ: Mapping[str, str], *, state_dir: str = "", instance: str = "") -> Instance:
        """Find it from the options, else the environment, else where systemd puts the plain service's.

        Args:
            environ: S3DAEMON_STATE_DIR, and what systemd sets for a service: STATE_DIRECTORY, RUNTIME_DIRECTORY.
            state_dir: the option; the directory.
            instance: the option; the PORT of s3daemon@PORT.
        """
        if instance or state_dir:
            state, environ = Path(state_dir or f"/var/lib/s3daemon@{instance}"), {}
        else:
            directory = environ.get("S3DAEMON_STATE_DIR") or environ.get("STATE_DIRECTORY", "").partition(":")[0]
            state = Path(directory or "/var/lib/s3daemon")
        usual = [Path("/run", state.name, "control")] if state.parent == Path("/var/lib") else []
        return cls(state, tuple(dict.fromkeys((control_path(environ, state), *usual, state / "control"))))

    def ask(self, command: str, **arguments: Any) -> dict[str, object]:
        """Ask the daemon, wherever it listens; as the function `ask`."""
        for path in self.sockets[:-1]:
            with suppress(NoDaemonError):
                return ask(path, command, **arguments)
        return ask(self.sockets[-1], command, **arguments)


def ask(path: Path, command: str, *, timeout_s: float = _PATIENCE_S, **arguments: Any) -> dict[str, object]:
    """Ask the daemon at `path`, and wait.

    Args:
        path: its control socket.
        command: what is wanted.
        timeout_s: longest time without a byte from it.
        arguments: of the command; JSON's types.

    Raises:
        NoDaemonError: nobody listens there.
        SettingsError: a reload was refused, with each fault.
        S3daemonError: the daemon's refusal, `NotPermitted`, or `NoAnswer`.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise S3daemonError(Code.BAD_REQUEST, "that is more than fits in one request; give fewer at a time")
    pieces: list[bytes] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            # The kernel's own limits, not settimeout(): a connect() that cannot wait fails when the backlog is full.
            limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.connect(os.fspath(path))
            with suppress(BrokenPipeError):  # refused before it was read; the refusal is there to be read
                sock.sendall(request)
            while not (pieces and pieces[-1].endswith(b"\n")) and (piece := sock.recv(1 << 18)):
                pieces.append(piece)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
        raise NoDaemonError(Code.NO_DAEMON, f"no daemon listens on {path}") from exc
    except PermissionError as exc:
        raise S3daemonError(
            Code.NOT_PERMITTED, f"{path} is not yours: run it as root or as the service's user"
        ) from exc
    except BlockingIOError as exc:
        raise S3daemonError(Code.NO_ANSWER, f"the daemon on {path} said nothing for {timeout_s:g} s") from exc
    except OSError as exc:
        raise S3daemonError(Code.NO_ANSWER, f"cannot ask the daemon on {path}: {exc.strerror or exc}") from exc
    return _parse_reply(b"".join(pieces), path)


def _parse_reply(line: bytes, path: Path) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise S3daemonError(Code.NO_ANSWER, f"the daemon on {path} hung up without an answer; is it being restarted?")
    if answer.pop("ok", False) is True:
        return answer
    faults = answer.get("faults")
    if isinstance(faults, list):
        raise SettingsError([str(fault) for fault in faults])
    raise S3daemonError(str(answer.get("code", "Refused")), str(answer.get("text", "")))


def reload(environ: Mapping[str, str], out: TextIO, err: TextIO) -> int:
    """`s3daemon reload`: hand the operator's variables to the running daemon.

    Args:
        environ: freshly read by systemd for ExecReload=.
        out: takes what changed, one line.
        err: takes why it was refused, a line for each fault.

    Returns:
        The exit status; other than 0, the settings before stay in force.
    """
    try:
        answer = Instance.find(environ).ask("reload", environ=of_operator(environ))
    except SettingsError as exc:
        print(*exc.faults, "refused: the settings before stay in force", sep="\n", file=err)
        return 1
    except S3daemonError as exc:
        print(f"{exc.code}: {exc.text}", file=err)
        return 1
    applied, restart = answer.get("applied"), answer.get("restart")
    if isinstance(applied, list) and applied:
        print("in force from the next attempt on:", ", ".join(map(str, applied)), file=out)
    if isinstance(restart, list) and restart:
        print("takes a restart of the service:", ", ".join(map(str, restart)), file=out)
    if not applied and not restart:
        print("nothing changed", file=out)
    return 0


def add_instance(parser: argparse.ArgumentParser) -> None:
    """Give a command the options that say which daemon is meant, for `instance_of`."""
    # No default: a subcommand's would overwrite what was given before the subcommand.
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--instance", metavar="PORT", default=argparse.SUPPRESS, help="that of s3daemon@PORT")
    which.add_argument("--state-dir", metavar="DIR", default=argparse.SUPPRESS, help="that whose state is in DIR")


def instance_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Instance:
    """The daemon that the options name."""
    return Instance.find(environ, state_dir=getattr(args, "state_dir", ""), instance=getattr(args, "instance", ""))
