"""A program under test: started, waited for, stopped, with its output kept for the report of a failure.

The kernel ends it when the thread that started it is gone (PR_SET_PDEATHSIG, by setpriv), so start programs from the
main thread; a killed test run leaves nothing behind.
"""

import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab.env import clean_env

_KEPT_LINES = 10_000
"""Enough for any test to look through, small enough for a server that logs every request of a benchmark."""

_known: list["Process"] = []
"""What runs, and what has ended since the last ``mark``."""


class ProgramError(AssertionError):
    """A program ended, or did not do in time what a test waits for; the message ends with its last lines."""


class Process:
    """One running program. Made by ``start``."""

    def __init__(
        self, popen: subprocess.Popen[bytes], name: str, notify: socket.socket | None, store: dict[str, int] | None
    ) -> None:
        """Take over a program whose standard output is a pipe."""
        self.name = name
        self.popen = popen
        self.status: dict[str, str] = {}
        """The latest value of every variable that it has sent to its NOTIFY_SOCKET."""
        self._notify = notify
        self._store = store
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._written = 0
        self._marked = 0
        self._changed = threading.Condition()
        self._ended = self._silent = False
        self._reader = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._reader.start()
        if notify is not None:
            sources = notify, os.pidfd_open(popen.pid)
            self._listener = threading.Thread(
                target=self._listen, args=sources, name=f"notifications of {name}", daemon=True
            )
            self._listener.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def lines(self) -> list[str]:
        """What it has written so far, without line ends."""
        with self._changed:
            return list(self._lines)

    def tail(self, count: int = 25) -> str:
        """The last lines of its output, for a person."""
        return "\n".join(f"    {self.name}| {line[:200]}" for line in self.lines()[-count:]) if count else ""

    def mark(self) -> None:
        """Count what it writes from here on as new."""
        with self._changed:
            self._marked = self._written

    def new_tail(self) -> str:
        """The last lines of what is new."""
        with self._changed:
            new = self._written - self._marked
        return self.tail(min(new, 25))

    def wait_line(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """The first match of a regular expression in a line of its output, past or to come."""
        seen: re.Match[str] | None = None

        def found() -> bool:
            nonlocal seen
            seen = next((m for m in (re.search(pattern, line) for line in self._lines) if m), None)
            return seen is not None or self._ended

        with self._changed:
            self._changed.wait_for(found, timeout)
        if seen is None:
            raise self._failed(f"no line like {pattern!r} within {timeout:g} s")
        return seen

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait for READY=1; it must have been started with ``notify=True``."""
        self.wait_status(lambda status: status.get("READY") == "1", "READY=1", timeout)

    def wait_status(self, wanted: Callable[[Mapping[str, str]], bool], what: str, timeout: float = 30.0) -> None:
        """Wait until the variables that it has sent to its NOTIFY_SOCKET are as wanted."""
        if self._notify is None:
            raise ValueError(f"{self.name} was started without notify=True")
        with self._changed:
            self._changed.wait_for(lambda: wanted(self.status) or self._silent, timeout)
            seen = wanted(self.status)
        if not seen:
            raise self._failed(f"no {what} within {timeout:g} s")

    def wait_port(self, port: int, host: str = "127.0.0.1", timeout: float = 60.0) -> None:
        """Wait until something listens on that port."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.popen.poll() is None:
            with suppress(OSError), socket.create_connection((host, port), timeout=1):
                return
            time.sleep(0.05)  # there is no event for a port that opens
        raise self._failed(f"nothing listened on port {port} within {timeout:g} s")

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """Signal it (unless it has ended), wait, and return its exit status; -N for signal N, as subprocess does."""
        if self.popen.poll() is None:
            self.popen.send_signal(sig)
        return self.wait(timeout)

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for its end and return its exit status. One that does not end is killed, and that is a failure."""
        try:
            status = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise self._failed(f"still running after {timeout:g} s; killed") from None
        finally:
            if self.popen.poll() is not None:
                self._release()
        return status

    def _release(self) -> None:
        self._reader.join(2)  # a grandchild may keep the pipe open; its output is ignored
        if self._notify is not None:
            self._listener.join()
            self._notify.close()

    def _listen(self, notify: socket.socket, exited: int) -> None:
        """Receive its notifications while it runs: a sender may block when nobody receives, as a box's systemd does."""
        while self._wait(notify.fileno(), exited):
            message, descriptors, _, _ = socket.recv_fds(notify, 65536, 16)
            variables = dict(line.partition("=")[::2] for line in message.decode(errors="replace").splitlines())
            with self._changed:
                self._keep(variables.pop("FDNAME", ""), descriptors, removed="FDSTOREREMOVE" in variables)
                self.status |= variables
                self._changed.notify_all()
        os.close(exited)
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def _wait(self, notify: int, exited: int) -> bool:
        """Wait for a notification, False: there is no more. What is stored and hung up is dropped, as systemd does."""
        while True:
            poll = select.poll()
            for number in (notify, exited):
                poll.register(number, select.POLLIN)
            for number in (self._store or {}).values():
                poll.register(number, 0)
            ready = dict(poll.poll())
            with self._changed:
                for name in [name for name, number in (self._store or {}).items() if number in ready]:
                    self._keep(name, (), removed=True)
            if notify in ready or exited in ready:
                return notify in ready

    def _keep(self, name: str, descriptors: Sequence[int], *, removed: bool) -> None:
        """Act as systemd's descriptor store; without a store, close what was passed."""
        gone = list(descriptors if self._store is None else ())
        if self._store is not None and (descriptors or removed) and name in self._store:
            gone.append(self._store.pop(name))
        if self._store is not None and descriptors:
            (self._store[name],) = descriptors
        for number in gone:
            os.close(number)

    def _read(self) -> None:
        stdout = self.popen.stdout
        if stdout is not None:
            with stdout:
                for line in stdout:
                    with self._changed:
                        self._lines.append(line.decode(errors="replace").rstrip("\r\n"))
                        self._written += 1
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _failed(self, what: str) -> ProgramError:
        if self._ended or self._silent:  # its output, its notifications and its status do not end at the same moment
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(1)
            self._reader.join(2)
        status = self.popen.poll()
        state = "is running" if status is None else f"ended with status {status}"
        return ProgramError(f"{self.name}: {what}; it {state}. Its last lines:\n{self.tail()}")


@contextmanager
def start(
    *command: str | Path,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    notify: bool = False,
    store: dict[str, int] | None = None,
    pass_fds: Sequence[int] = (),
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Iterator[Process]:
    """Run a program for the time of a ``with`` block; on leaving it gets the stop signal and is waited for.

    ``env`` is its whole environment (``clean_env()`` without one). With ``notify`` it also gets a NOTIFY_SOCKET; what
    it stores there (FDSTORE=1) is kept in ``store`` by name, and is the caller's to pass on and to close.
    """
    environ = dict(clean_env() if env is None else env)
    argv = [str(word) for word in command]
    with ExitStack() as stack:
        receiver: socket.socket | None = None
        if notify:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3daemon-notify-"))
            environ["NOTIFY_SOCKET"] = f"{place}/notify"
            receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            receiver.bind(environ["NOTIFY_SOCKET"])
        popen = subprocess.Popen(
            ["/usr/bin/setpriv", "--pdeathsig", "TERM", "--", *argv],
            env=environ,
            cwd=cwd,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        process = Process(popen, name or Path(argv[0]).name, receiver, store)
        _known.append(process)
        try:
            yield process
        finally:
            process.stop(stop_signal)


def mark() -> None:
    """Start a test's report: what was written before is not part of it."""
    _known[:] = [process for process in _known if process.popen.poll() is None]
    for process in _known:
        process.mark()


def written_since_mark() -> Iterator[tuple[str, str]]:
    """Name and last lines of every program that wrote something since the mark, ended ones included."""
    for process in _known:
        if text := process.new_tail():
            yield process.name, text
