"""The client of the control socket: finds the daemon and sends it a command.

Calls block, up to a limit, and are for commands; the daemon itself uses only the shared constants: the path of the
socket and the largest request. Importing this module is cheap, since every `ExecReload=` waits for it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s3daemon.config.directories import own_directory
from s3daemon.errors import Code, S3daemonError, SettingsError

#: A whole environment fits (ARG_MAX bounds one string of it to 128 KiB), and some 50 000 ids.
MAX_REQUEST = 1 << 20
#: A daemon answers at once; longer than its event loop is ever busy, shorter than systemd waits for ExecReload=.
_ANSWER_TIMEOUT_S = 30.0


class NoDaemonError(S3daemonError):
    """No daemon listens on the control socket."""


def control_path(environ: Mapping[str, str], state_dir: Path) -> Path:
    """Return where the daemon listens: in the runtime directory that systemd made, else in the state directory."""
    runtime = own_directory(environ.get("RUNTIME_DIRECTORY", ""))
    return Path(runtime or state_dir, "control")


@dataclass(frozen=True, slots=True)
class Instance:
    """Where one daemon keeps its state, and where it may be asked.

    Args:
        state_dir: the state directory.
        sockets: where the control socket may be; a daemon listens on at most one of them.
    """

    state_dir: Path
    sockets: tuple[Path, ...]

    @classmethod
    def find(cls, environ: Mapping[str, str], *, state_dir: str = "", instance: int = 0) -> Instance:
        """Find an instance by the options, else by the environment, else where systemd puts s3daemon.service.

        Args:
            environ: has S3DAEMON_STATE_DIR, or what systemd sets for a service: STATE_DIRECTORY, RUNTIME_DIRECTORY.
            state_dir: the directory of `--state-dir`.
            instance: the PORT of s3daemon@PORT, that of `--instance`.
        """
        if instance or state_dir:
            state, environ = Path(state_dir or f"/var/lib/s3daemon@{instance}"), {}
        else:
            directory = environ.get("S3DAEMON_STATE_DIR") or own_directory(environ.get("STATE_DIRECTORY", ""))
            state = Path(directory or "/var/lib/s3daemon")
        usual = [Path("/run", state.name, "control")] if state.parent == Path("/var/lib") else []
        return cls(state, tuple(dict.fromkeys((control_path(environ, state), *usual, state / "control"))))

    def ask(self, command: str, **arguments: Any) -> dict[str, object]:
        """Ask the daemon, wherever it listens; arguments and errors are those of the function `ask`."""
        for path in self.sockets[:-1]:
            with suppress(NoDaemonError):
                return ask(path, command, **arguments)
        return ask(self.sockets[-1], command, **arguments)


def ask(path: Path, command: str, *, timeout_s: float = _ANSWER_TIMEOUT_S, **arguments: Any) -> dict[str, object]:
    """Ask the daemon at `path`, and wait for its answer.

    Args:
        path: its control socket.
        command: as the protocol of `server` names it.
        timeout_s: the longest wait for any byte.
        arguments: of the command; JSON's types.

    Returns:
        The answer's members, without its "ok".

    Raises:
        NoDaemonError: no daemon listens there.
        SettingsError: a reload was refused, with each fault.
        S3daemonError: the daemon's refusal, `NotPermitted`, or `NoAnswer`.
    """
    request = json.dumps({"command": command, **arguments}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise S3daemonError(Code.BAD_REQUEST, "the request is too long; give fewer ids at a time")
    try:
        line = _exchange(path, request, timeout_s)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
        port = path.parent.name.partition("s3daemon@")[2]
        check = f"s3daemon check --instance {port}" if port else "s3daemon check"
        text = f"no daemon listens on {path}: start it; {check} says why it does not start"
        raise NoDaemonError(Code.NO_DAEMON, text) from exc
    except PermissionError as exc:
        # Not the path: there are several, and the first one that this user may not look at need not be the daemon's.
        text = "the daemon answers root and its own user only: run it as root"
        raise S3daemonError(Code.NOT_PERMITTED, text) from exc
    except BlockingIOError as exc:
        raise S3daemonError(Code.NO_ANSWER, f"the daemon on {path} did not answer within {timeout_s:g} s") from exc
    except OSError as exc:
        raise S3daemonError(Code.NO_ANSWER, f"cannot ask the daemon on {path}: {exc.strerror or exc}") from exc
    return _parse_reply(line, path)


def _exchange(path: Path, request: bytes, timeout_s: float) -> bytes:
    pieces: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        # The kernel's own limits, not settimeout(): a connect() that cannot wait fails when the backlog is full.
        limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        sock.connect(os.fspath(path))
        with suppress(BrokenPipeError):  # refused before it was read; the refusal can still be received
            sock.sendall(request)
        while not (pieces and pieces[-1].endswith(b"\n")) and (piece := sock.recv(1 << 18)):
            pieces.append(piece)
    return b"".join(pieces)


def _parse_reply(line: bytes, path: Path) -> dict[str, object]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise S3daemonError(
            Code.NO_ANSWER, f"the daemon on {path} closed the connection without an answer; is it being restarted?"
        )
    if answer.pop("ok", False) is True:
        return answer
    faults = answer.get("faults")
    if isinstance(faults, list):
        raise SettingsError([str(fault) for fault in faults])
    raise S3daemonError(str(answer.get("code", "Refused")), str(answer.get("text", "")))
