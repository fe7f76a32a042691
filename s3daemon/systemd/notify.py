"""systemd's side: the sockets that it passes, the descriptors that it stores, notifications, the watchdog, signals.

Nobody else reads LISTEN_*, NOTIFY_SOCKET or WATCHDOG_*; they leave the environment here: no child shall speak for us.
The notification protocol is spoken directly (sd_notify(3) calls it stable): systemd-python's `notify` keeps Python's
global lock and blocks while PID 1 stands still, in a reload or frozen for good. Here that costs `PATIENCE_S` once: what
must arrive is owed until it can be sent; a status, a ping or a descriptor to store is given up for this time.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
import stat
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

from s3daemon.errors import Code, StartError, one_line

#: FileDescriptorName= of the socket units: the line protocol, HTTP, the line protocol on a Unix socket.
DOORS = ("wire", "http", "unix")
#: More than will ever come at once. The kernel clamps it to net.core.somaxconn, 4096 by default; the package raises
#: that, for who finds no room is not refused but, once the kernel tires of asking, reset.
BACKLOG = 16384
#: Seconds for PID 1, which takes some 30 000 notifications a second, to have its turn when the queue is full.
PATIENCE_S = 0.05
#: Sends one datagram with these descriptors; False when it cannot be sent now.
Send = Callable[[bytes, Sequence[int]], bool]
Sleep = Callable[[float], Awaitable[None]]

_FDNAME = re.compile(r"[ -9;-~]{1,255}")  # what sd_pid_notify_with_fds(3) takes
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Inherited:
    """What systemd passed to this process. The caller owns the sockets; they do not block and are not inherited.

    Args:
        doors: listening sockets by name, see `DOORS`.
        clients: connections that a process before us stored, by the name it chose, those left out whose client is gone.
    """

    doors: dict[str, list[socket.socket]] = field(default_factory=dict)
    clients: dict[str, socket.socket] = field(default_factory=dict)


def inherited(environ: MutableMapping[str, str], *, first: int = 3) -> Inherited:
    """Take what systemd passed, and LISTEN_* out of the environment.

    Args:
        environ: the process's environment.
        first: the lowest descriptor passed, 3 by sd_listen_fds(3).

    Raises:
        StartError: `BadDescriptor`, with what was passed that cannot be used.
    """
    passed = {name: environ.pop("LISTEN_" + name, "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID")}
    if passed["PID"] != str(os.getpid()):
        return Inherited()
    count = int(passed["FDS"]) if passed["FDS"].isdecimal() else 0
    names = passed["FDNAMES"].split(":") if passed["FDNAMES"] else [""] * count
    if not 0 < count == len(names):
        raise _bad(f"LISTEN_FDS is {passed['FDS']!r} with the names {passed['FDNAMES']!r}")
    with contextlib.ExitStack() as undo:
        found = _sorted([(name, undo.enter_context(_as_stream(first + at, name))) for at, name in enumerate(names)])
        undo.pop_all()
    return found


def _bad(text: str) -> StartError:
    return StartError(Code.BAD_DESCRIPTOR, text)


def _as_stream(descriptor: int, name: str) -> socket.socket:
    what = f"descriptor {descriptor} ({name!r}) from systemd"
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    except OSError as exc:
        raise _bad(f"{what} is not open") from exc
    if kind != stat.S_IFSOCK:
        found = {stat.S_IFIFO: "a pipe", stat.S_IFREG: "a regular file"}.get(kind, "no socket")
        raise _bad(f"{what} is {found}, not a stream socket")
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        sock.close()
        raise _bad(f"{what} is {sock.family!r} {sock.type!r}, not a stream socket: its unit needs ListenStream=")
    sock.setblocking(False)
    return sock


def _sorted(sockets: Sequence[tuple[str, socket.socket]]) -> Inherited:
    found = Inherited()
    listening = [sock for _, sock in sockets if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
    for name, sock in sockets:
        if sock in listening:
            # `systemd-socket-activate` without --fdname passes an empty name, a unit that sets none its own.
            if name not in DOORS and len(listening) > 1:
                raise _bad(
                    f"systemd passed {len(listening)} listening sockets, one of them named {name!r}:"
                    f" FileDescriptorName= of its socket unit must be one of {', '.join(DOORS)}"
                )
            found.doors.setdefault(name if name in DOORS else "wire", []).append(sock)
        elif name in (*DOORS, "connection"):
            raise _bad(f"the socket {name!r} from systemd does not listen: its unit must not have Accept=yes")
        else:
            try:
                sock.getpeername()
                found.clients[name] = sock
            except OSError:
                sock.close()
    return found


def bind(host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of `host`, for when systemd passed no socket; StartError `CannotListen` says why not."""
    where = f"{host or '*'}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise StartError(Code.CANNOT_LISTEN, f"cannot listen on {where}: {exc}") from exc
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    listening = []
    with contextlib.ExitStack() as undo:
        for family, address in addresses:
            try:
                sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
                sock.listen(BACKLOG)
                sock.setblocking(False)
                listening.append(sock)
            except OSError as exc:
                # A host without IPv6 may still have ::1 in its hosts file.
                absent = exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if not absent or (not listening and (family, address) == addresses[-1]):
                    raise StartError(Code.CANNOT_LISTEN, f"cannot listen on {where}: {exc.strerror}") from exc
        undo.pop_all()
    return listening


class Manager:
    """Notifications to systemd; without it, or without its watchdog, the methods do nothing.

    Args:
        environ: the process's environment; NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID are taken out of it.
        send: in place of NOTIFY_SOCKET, which is a StartError, `BadNotifySocket`, when it is no Unix socket's address.
    """

    def __init__(self, environ: MutableMapping[str, str], send: Send | None = None) -> None:
        self._send = send or _sender(environ.pop("NOTIFY_SOCKET", ""))
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._watchdog_s = int(usec) / _MICROSECONDS if usec and pid in ("", str(os.getpid())) else 0.0
        self._owed: deque[bytes] = deque()
        self._status = ""

    def ready(self, status: str) -> None:
        """Requests are served from now on."""
        self._say(f"READY=1\nSTATUS={one_line(status)}", owed=True)

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`; sent when it changed."""
        if text != self._status and self._say(f"STATUS={one_line(text)}"):
            self._status = text

    def stopping(self, status: str) -> None:
        """No more requests are taken."""
        self._say(f"STOPPING=1\nSTATUS={one_line(status)}", owed=True)

    def extend(self, seconds: float) -> None:
        """The start or stop that is under way may take `seconds` from now, whatever the unit's timeout."""
        self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * _MICROSECONDS)}")

    def store(self, name: str, sock: socket.socket) -> bool:
        """Keep a copy of `sock` with systemd until `forget`, or until its client is gone: the next process gets it.

        While the copy is there, `sock.close()` ends nothing for the client: shut it down. A socket that is stored
        already keeps its first name: forget that one first.

        Args:
            name: unique among what is stored; printable ASCII without a colon.
            sock: the connection.

        Returns:
            False when systemd did not get it. True says that it did, not that FileDescriptorStoreMax= had room.
        """
        if not _FDNAME.fullmatch(name):
            raise ValueError(f"systemd takes no descriptor of the name {name!r}")
        return self._say(f"FDSTORE=1\nFDNAME={name}", (sock.fileno(),))

    def forget(self, name: str) -> None:
        """Drop the copy that `store`, or a process before us, left."""
        self._say(f"FDSTOREREMOVE=1\nFDNAME={name}", owed=True)

    async def watchdog(self, alive: Callable[[], bool], sleep: Sleep = asyncio.sleep) -> None:
        """Ping systemd at half of WatchdogSec= while `alive()`; from the event loop: a stuck one is what it notices."""
        while self._watchdog_s:
            if alive():
                self._say("WATCHDOG=1")
            await sleep(self._watchdog_s / 2)

    def _say(self, text: str, descriptors: Sequence[int] = (), *, owed: bool = False) -> bool:
        if self._send is None:
            return False
        while self._owed and self._send(self._owed[0], ()):
            self._owed.popleft()
        sent = not self._owed and self._send(text.encode(), descriptors)
        if owed and not sent:
            self._owed.append(text.encode())
        return sent


def _sender(address: str) -> Send | None:
    if address and address[0] not in "/@":
        raise StartError(Code.BAD_NOTIFY_SOCKET, f"NOTIFY_SOCKET is {address!r}, neither a path nor an abstract name")
    target = "\0" + address[1:] if address.startswith("@") else address
    patience = PATIENCE_S

    def send(data: bytes, descriptors: Sequence[int]) -> bool:
        nonlocal patience
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patience)
            try:
                sock.connect(target)  # poll() tells nothing of a queue that the socket is not connected to
                sock.sendmsg([data], rights)
                patience = PATIENCE_S
            except OSError:
                patience = 0.0
        return patience > 0

    return send if address else None


def stop_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set. A second one changes nothing: draining ends by itself, else by SIGKILL."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
