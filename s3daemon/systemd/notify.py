"""Notifications to systemd, connections stored with it, its watchdog, and whether the service stops without a restart.

The protocol, sd_notify(3), is spoken directly and not by systemd-python; the reason is in `journal`, which does so too.

A PID 1 that does not read costs this daemon `QUEUE_WAIT_S` once: a notification that must arrive is kept until it can
be sent; a status, a ping of the watchdog or the handing over of a client's connection is given up for this time.
"""

from __future__ import annotations

import array
import asyncio
import os
import re
import select
import shutil
import socket
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path

from s3daemon.errors import Code, StartError, one_line

#: Seconds to wait for room in the queue when it is full. PID 1 reads some 30 000 notifications a second.
QUEUE_WAIT_S = 0.05
#: Seconds to wait for `systemctl`: PID 1 answers at once, or not at all, and the clients are not worth a longer wait.
_SYSTEMCTL_TIMEOUT_S = 2.0
Sleep = Callable[[float], Awaitable[None]]

_FDNAME = re.compile(r"[ -9;-~]{1,255}")  # what sd_pid_notify_with_fds(3) takes
_MICROSECONDS = 1_000_000


class Notifier:
    """Sends notifications to systemd; without systemd, or without its watchdog, the methods do nothing.

    Args:
        environ: the process's environment; NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of it.
        queue_wait_s: longest wait for room in systemd's queue, once until there is room again.

    Raises:
        StartError: `BadNotifySocket`, NOTIFY_SOCKET is not the address of a Unix socket.
    """

    def __init__(self, environ: MutableMapping[str, str], *, queue_wait_s: float = QUEUE_WAIT_S) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._channel = _Channel(address, queue_wait_s) if address else None
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._watchdog_s = int(usec) / _MICROSECONDS if usec and pid in ("", str(os.getpid())) else 0.0
        self._unsent: deque[bytes] = deque()
        self._status = ""

    def ready(self, status: str) -> None:
        """Say that requests are served from now on."""
        self._notify(f"READY=1\nSTATUS={one_line(status)}", must_arrive=True)

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`; it is sent when it changed."""
        if text != self._status and self._notify(f"STATUS={one_line(text)}"):
            self._status = text

    def stopping(self, status: str) -> None:
        """Say that no more requests are taken."""
        self._notify(f"STOPPING=1\nSTATUS={one_line(status)}", must_arrive=True)

    def extend(self, seconds: float) -> None:
        """Let the present start or stop take `seconds` from now, whatever the unit's timeout."""
        self._notify(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}")

    def store(self, name: str, sock: socket.socket) -> bool:
        """Keep a copy of `sock` with systemd until `forget`, or until its client is gone: the next process gets it.

        While systemd has the copy, `sock.close()` does not end the connection: shut it down. A socket that is stored
        already keeps its first name: forget that one first.

        Args:
            name: unique among what is stored; printable ASCII without a colon.
            sock: the connection.

        Returns:
            False when systemd did not get it. True means that it did, not that FileDescriptorStoreMax= had room.

        Raises:
            ValueError: systemd would not take the name.
        """
        if not _FDNAME.fullmatch(name):
            raise ValueError(f"systemd takes no descriptor of the name {name!r}")
        return self._notify(f"FDSTORE=1\nFDNAME={name}", (sock.fileno(),))

    def forget(self, name: str) -> None:
        """Drop the copy that `store`, or an earlier process, left with systemd."""
        self._notify(f"FDSTOREREMOVE=1\nFDNAME={name}", must_arrive=True)

    async def watchdog(self, sleep: Sleep = asyncio.sleep) -> None:
        """Ping systemd twice within WatchdogSec=, from the event loop: it detects an event loop that is stuck."""
        while self._watchdog_s:
            self._notify("WATCHDOG=1")
            await sleep(self._watchdog_s / 2)

    def _notify(self, text: str, descriptors: Sequence[int] = (), *, must_arrive: bool = False) -> bool:
        if self._channel is None:
            return False
        while self._unsent and self._channel.send(self._unsent[0], ()):
            self._unsent.popleft()
        sent = not self._unsent and self._channel.send(text.encode(), descriptors)
        if must_arrive and not sent:
            self._unsent.append(text.encode())
        return sent


class _Channel:
    """The socket to systemd: connected when it is first needed, and anew when it has failed.

    Args:
        address: NOTIFY_SOCKET.
        queue_wait_s: longest wait for room in systemd's queue, once until there is room again.
    """

    def __init__(self, address: str, queue_wait_s: float) -> None:
        self._sock: socket.socket | None = None
        if address[0] not in "/@":
            text = f"NOTIFY_SOCKET is {address!r}, neither a path nor an abstract name"
            raise StartError(Code.BAD_NOTIFY_SOCKET, text)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._queue_wait_s = self._wait_s = queue_wait_s

    def send(self, data: bytes, descriptors: Sequence[int]) -> bool:
        """Send one datagram with these descriptors; return False when it cannot be sent now."""
        reused = self._sock is not None
        try:
            self._try(data, descriptors)
        except BlockingIOError:
            self._wait_s = 0.0
            return False
        except OSError:  # systemd has another socket by now, or we have no descriptor left
            self.close()
            if reused:
                return self.send(data, descriptors)
            self._wait_s = 0.0
            return False
        self._wait_s = self._queue_wait_s
        return True

    def _try(self, data: bytes, descriptors: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        if self._sock is None:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            # poll() reports no room in the queue of a socket that this one is not connected to.
            self._sock.connect(self._address)
        # A time limit of the socket would cost two more calls to the system for each datagram.
        try:
            self._sock.sendmsg([data], rights, socket.MSG_DONTWAIT)
        except BlockingIOError:
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            if not poll.poll(self._wait_s * 1000):
                raise
            self._sock.sendmsg([data], rights, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Close the socket; the next datagram opens another."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def __del__(self) -> None:
        """Close the socket of a notifier that nothing uses any more."""
        self.close()


def is_stopped_for_good() -> bool:
    """Whether systemd is stopping this service without starting it again; False also where that is not known.

    SIGTERM does not tell. In a restart systemd passes the stored connections to the next process; after a stop it drops
    them, and the clients that still wait are disconnected. Its queue of jobs tells the two apart.
    """
    try:
        unit = own_unit(Path("/proc/self/cgroup").read_text())
        program = shutil.which("systemctl")
        if not unit or program is None:
            return False
        command = [program, "--no-pager", "--plain", "--no-legend", "list-jobs", unit]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SYSTEMCTL_TIMEOUT_S, check=False)  # noqa: S603 - words are ours
    except (OSError, subprocess.SubprocessError):
        return False
    return has_stop_job(done.stdout, unit)


def own_unit(cgroups: str) -> str:
    """The service that a process runs in; "" outside of any.

    Args:
        cgroups: the text of its /proc/PID/cgroup.
    """
    names = (line.rpartition("/")[2] for line in cgroups.splitlines())
    return next((name for name in names if name.endswith(".service")), "")


def has_stop_job(jobs: str, unit: str) -> bool:
    """Whether a unit is being stopped: a restart is listed as `restart` until the process has ended, then as `start`.

    Args:
        jobs: what `systemctl list-jobs` prints: number, unit, type and state of each.
        unit: its name.
    """
    return any(words[1:3] == [unit, "stop"] for words in map(str.split, jobs.splitlines()))
