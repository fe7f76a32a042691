"""The daemon as a program: started for a store, asked on the wire and over its control socket, killed, started again.

It runs as `python -m s3daemon serve` out of this checkout, with an environment that holds nothing but its settings.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lab.env import TREE, clean_env, free_ports
from lab.processes import Process, ProgramError, start
from lab.s3 import S3Server

PATIENCE_S = 60.0
"""Longest wait for an answer: the daemon's own limits are half of it."""

# What `S3DAEMON_HOST=127.0.0.1` and a bound port become when the test holds the sockets, as systemd would: descriptors
# from 3 on, and the id of the process that they are meant for. (The first argument lists them as they were passed.)
_ACTIVATE = """
import fcntl, os, sys
passed = [int(number) for number in sys.argv[1].split(",")]
moved = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3 + len(passed)) for number in passed]
for number in passed:
    os.close(number)
for at, number in enumerate(moved, 3):
    os.dup2(number, at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""

_RECORD = re.compile(
    r"\S+ (?:info|error) (?P<start>\d+\.\d{6}) (?P<seconds>\d+\.\d{3}) sec - (?P<bucket>[^/]+)/(?P<key>.*)"
    r" (?P<outcome>stored|failed), (?P<size>\d+) bytes, (?P<attempts>\d+) attempts?(?:, (?P<error>.*))?"
)


class HungUpError(Exception):
    """The daemon ended the connection without an answer: the request's outcome is unknown."""


@dataclass(frozen=True)
class Record:
    """What the daemon wrote of a transfer that was over."""

    start: float
    seconds: float
    bucket: str
    key: str
    outcome: str
    size: int
    attempts: int
    error: str


class Daemon:
    """One daemon, alive or not; its state directory and its port outlive the process. Made by ``daemon``."""

    def __init__(
        self,
        state_dir: Path,
        server: S3Server,
        settings: dict[str, str],
        prefix: Sequence[str | Path],
        listeners: dict[str, socket.socket],
        keeping: bool,
        module: str = "s3daemon",
        tree: Path = TREE,
    ) -> None:
        """Describe it; nothing runs before ``start``."""
        self.state_dir = state_dir
        ports = {name: int(listener.getsockname()[1]) for name, listener in listeners.items()}
        self.port = ports.get("wire") or free_ports(1)[0]
        self.http_port = ports.get("http", 0)
        self.environ = clean_env(
            PYTHONPATH=str(tree),
            **server.settings(),
            S3DAEMON_HOST="127.0.0.1",
            S3DAEMON_PORT=str(self.port),
            S3DAEMON_STATE_DIR=str(state_dir),
        )
        self.set(**settings)
        self._prefix = prefix
        self._module = module
        self._tree = tree
        self._listeners = listeners
        self.kept: dict[str, int] | None = {} if keeping else None
        self._running: AbstractContextManager[Process] | None = None
        self._processes: list[Process] = []

    def set(self, **settings: str) -> None:
        """Change variables for the next start; a name in lower case goes without its S3DAEMON_."""
        for name, text in settings.items():
            self.environ[name if name.isupper() else f"S3DAEMON_{name.upper()}"] = text

    @property
    def process(self) -> Process:
        """The one that was started last."""
        return self._processes[-1]

    def start(self, *, wait: bool = True) -> None:
        """Start it; without ``wait`` it may be anywhere in its start-up when this returns."""
        command = [sys.executable, "-m", self._module, "serve"]
        environ, descriptors = self.environ, list[int]()
        if self._listeners:
            kept = dict(self.kept or {})
            descriptors = [*(listener.fileno() for listener in self._listeners.values()), *kept.values()]
            command = [sys.executable, "-ISc", _ACTIVATE, ",".join(map(str, descriptors)), *command]
            names = ":".join([*self._listeners, *kept])
            environ = environ | {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": names}
        running = start(
            *self._prefix,
            *command,
            name="s3daemon",
            env=environ,
            cwd=self._tree,  # where `python -m` looks first
            notify=True,
            store=self.kept,
            pass_fds=descriptors,
        )
        self._processes.append(running.__enter__())
        self._running = running
        if wait:
            self.wait_serving()

    def wait_serving(self) -> None:
        """Wait for its READY=1."""
        self.process.wait_ready()

    def kill(self) -> None:
        """SIGKILL it, and wait until it is gone."""
        self._end(signal.SIGKILL)

    def terminate(self, timeout: float = PATIENCE_S) -> int:
        """SIGTERM it, wait until it is gone, and return its exit status."""
        return self._end(signal.SIGTERM, timeout)

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def _end(self, sig: signal.Signals, timeout: float = PATIENCE_S) -> int:
        status = self.process.stop(sig, timeout)
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None
        return status

    def connect(self, timeout: float = PATIENCE_S) -> socket.socket:
        """A connection to the wire; the caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def plain(self, file: Path | str, destination: str, timeout: float = PATIENCE_S) -> bytes:
        """Send a plain request; the whole reply.

        Raises:
            HungUpError: there was none.
            ConnectionRefusedError: nothing listens, so nothing was sent.
        """
        with self.connect(timeout) as sock:
            return _exchange(sock, f"{file} {destination}\n".encode(), lambda data: False)

    def extended(
        self, file: Path | str, destination: str, *, wait: bool = True, tag: str = "", timeout: float = PATIENCE_S
    ) -> dict[str, str]:
        """Send an extended request; the reply's members. Raises as ``plain`` does."""
        members = {"file": str(file), "destination": destination, "wait": wait, "tag": tag}
        with self.connect(timeout) as sock:
            return parsed(_exchange(sock, json.dumps(members).encode() + b"\n", lambda data: data.endswith(b"\n")))

    def send(self, *args: Path | str) -> subprocess.CompletedProcess[str]:
        """Run the client, ``send``."""
        environ = {name: self.environ[name] for name in ("PATH", "LANG", "S3DAEMON_HOST", "S3DAEMON_PORT")}
        return _run([sys.executable, "-IS", TREE / "send", *args], environ)

    def command(self, *args: Path | str) -> subprocess.CompletedProcess[str]:
        """Run an operator's command, such as ``queue --json``, with the daemon's own environment."""
        return _run([sys.executable, "-m", "s3daemon", *args], self.environ)

    def queue(self) -> list[dict[str, Any]]:
        """What ``s3daemon queue --json`` lists, asked without that program."""
        rows: list[dict[str, Any]] = self.ask("queue", failed=False)["transfers"]
        return rows

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Ask it over its control socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect(str(self.state_dir / "control"))
            line = json.dumps({"command": command, **arguments}).encode() + b"\n"
            return parsed(_exchange(sock, line, lambda data: data.endswith(b"\n")))

    def wait_status(self, wanted: Callable[[dict[str, Any]], bool], what: str, timeout: float = PATIENCE_S) -> float:
        """Wait until its status is as wanted; the monotonic time at which it was."""
        until = time.monotonic() + timeout
        while not wanted(status := self.ask("status")):
            if time.monotonic() > until:
                raise ProgramError(f"not {what} within {timeout:g} s: {status}\n{self.process.tail()}")
            time.sleep(0.02)  # there is no event for it
        return time.monotonic()

    def wait_idle(self, timeout: float = PATIENCE_S) -> float:
        """Wait until every transfer that it has is over."""
        return self.wait_status(lambda now: now["pending"] == now["in_flight"] == 0, "idle", timeout)

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def lines(self) -> list[str]:
        """What its processes wrote, from the first one's on."""
        return [line for process in self._processes for line in process.lines()]

    def records(self, count: int = 0) -> list[Record]:
        """The records among these lines, once there are so many: each comes after its client's answer."""
        until = time.monotonic() + PATIENCE_S
        while len(records := self._recorded()) < count:
            if time.monotonic() > until:
                raise ProgramError(f"{len(records)} of {count} records within {PATIENCE_S:g} s\n{self.process.tail()}")
            time.sleep(0.02)  # there is no event for it
        return records

    def _recorded(self) -> list[Record]:
        found = (_RECORD.fullmatch(line) for line in self.lines())
        return [
            Record(
                float(m["start"]), float(m["seconds"]), m["bucket"], m["key"], m["outcome"], int(m["size"]),
                int(m["attempts"]), m["error"] or "",
            )
            for m in found
            if m
        ]  # fmt: skip


def parsed(answer: bytes) -> dict[str, Any]:
    """The members of an answer that is a JSON object in a line."""
    members: dict[str, Any] = json.loads(answer)
    return members


def _exchange(sock: socket.socket, line: bytes, whole: Callable[[bytes], bool]) -> bytes:
    answer = b""
    try:
        sock.sendall(line)
        while not whole(answer) and (data := sock.recv(1 << 16)):
            answer += data
    except (ConnectionResetError, BrokenPipeError):
        pass
    if not answer or (not whole(answer) and line.startswith(b"{")):
        raise HungUpError(f"{line!r} was answered {answer!r}")
    return answer


def _run(command: Sequence[str | Path], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


@contextmanager
def daemon(
    state_dir: Path,
    server: S3Server,
    common: Mapping[str, str] = MappingProxyType({}),
    *,
    prefix: Sequence[str | Path] = (),
    activated: bool = False,
    http: bool = False,
    running: bool = True,
    keeping: bool = False,
    module: str = "s3daemon",
    tree: Path = TREE,
    **settings: str,
) -> Iterator[Daemon]:
    """A daemon for the time of a ``with`` block; at the end it is killed if it is still there.

    Args:
        state_dir: made by the daemon when it is not there.
        server: its store.
        common: settings that several daemons have, or whose names are not known; `settings` go before them.
        prefix: a command that runs the daemon's, such as ``unshare``.
        activated: the listening socket is made here and passed to each process, so that clients wait in its backlog
            while there is none.
        http: likewise with the HTTP server's, which does not run otherwise.
        running: start it.
        keeping: waiting clients' connections are kept from one process to the next, as systemd's descriptor store does
            it; takes `activated`.
        module: the program that runs, such as a benchmark's variant of the daemon.
        tree: the checkout that it is of.
        settings: as for ``Daemon.set``.
    """
    names = [name for name, wanted in (("wire", activated), ("http", http)) if wanted]
    listeners = {name: socket.create_server(("127.0.0.1", free_ports(1)[0]), backlog=4096) for name in names}
    made = Daemon(state_dir, server, {**common, **settings}, prefix, listeners, keeping, module, tree)
    try:
        if running:
            made.start()
        yield made
    finally:
        if made._running is not None and "COVERAGE_RUN" in os.environ:
            made.terminate()  # a killed process writes no coverage data
        elif made._running is not None:
            made.kill()
        for number in (made.kept or {}).values():
            os.close(number)
        for listener in listeners.values():
            listener.close()
