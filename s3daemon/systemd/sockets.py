"""The listening sockets, passed by systemd or our own, and the signals that stop the daemon.

systemd-python finds out what systemd passed (`listen_fds_with_names`, which implements sd_listen_fds_with_names(3));
each descriptor is checked here before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field

from systemd.daemon import listen_fds_with_names

from s3daemon.errors import Code, StartError

_log = logging.getLogger(__name__)

#: FileDescriptorName= of the socket units: the line protocol, HTTP, the line protocol on a Unix socket.
SOCKET_NAMES = ("wire", "http", "unix")
#: More than will ever come at once. The kernel clamps it to net.core.somaxconn, 4096 by default; the package raises
#: that, since a client that finds the backlog full is not refused but, once its kernel gives up, reset.
BACKLOG = 16384


@dataclass(frozen=True, slots=True)
class PassedSockets:
    """What systemd passed to this process. The caller owns the sockets; they do not block and are not inherited.

    Args:
        listening: listening sockets by name, see `SOCKET_NAMES`.
        clients: connections that an earlier process stored, by the names it chose; without those whose client is gone.
    """

    listening: dict[str, list[socket.socket]] = field(default_factory=dict)
    clients: dict[str, socket.socket] = field(default_factory=dict)


def passed_sockets(
    environ: MutableMapping[str, str], descriptors: Callable[[], Mapping[int, str]] = listen_fds_with_names
) -> PassedSockets:
    """Take what systemd passed, and LISTEN_* out of the environment.

    Args:
        environ: the process's environment.
        descriptors: returns the descriptors and their names, or raises OSError when LISTEN_* contradict each other.

    Raises:
        StartError: `BadDescriptor`, with what was passed that cannot be used.
    """
    passed = {name: environ.get(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES", "PIDFDID")}
    try:
        names = descriptors()
    except OSError as exc:
        what = f"LISTEN_FDS is {passed['FDS']!r} with the names {passed['FDNAMES']!r}"
        raise _bad_descriptor(f"{what}: {exc.strerror}") from exc
    finally:
        for name in passed:
            environ.pop(f"LISTEN_{name}", None)
    with contextlib.ExitStack() as undo:
        sockets = [(name, undo.enter_context(_as_stream(number, name))) for number, name in names.items()]
        found = _by_name(sockets)
        undo.pop_all()
    return found


def _bad_descriptor(text: str) -> StartError:
    return StartError(Code.BAD_DESCRIPTOR, text)


def _as_stream(descriptor: int, name: str) -> socket.socket:
    what = f"descriptor {descriptor} ({name!r}) from systemd"
    try:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    except OSError as exc:
        raise _bad_descriptor(f"{what} is not open") from exc
    if kind != stat.S_IFSOCK:
        found = {stat.S_IFIFO: "a pipe", stat.S_IFREG: "a regular file"}.get(kind, "not a socket")
        raise _bad_descriptor(f"{what} is {found}; a stream socket is needed")
    sock = socket.socket(fileno=descriptor)
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        sock.close()
        raise _bad_descriptor(
            f"{what} is {sock.family!r} {sock.type!r}; a stream socket is needed: its unit must have ListenStream="
        )
    sock.setblocking(False)
    return sock


def _by_name(sockets: list[tuple[str, socket.socket]]) -> PassedSockets:
    found = PassedSockets()
    listening = [sock for _, sock in sockets if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
    for name, sock in sockets:
        if sock in listening:
            # `systemd-socket-activate` without --fdname passes an empty name; a unit that sets none passes its own
            # name.
            if name not in SOCKET_NAMES and len(listening) > 1:
                raise _bad_descriptor(
                    f"systemd passed {len(listening)} listening sockets, one of them named {name!r}:"
                    f" FileDescriptorName= of its socket unit must be one of {', '.join(SOCKET_NAMES)}"
                )
            found.listening.setdefault(name if name in SOCKET_NAMES else "wire", []).append(sock)
        elif name in (*SOCKET_NAMES, "connection"):
            what = f"the socket {name!r} from systemd does not listen"
            raise _bad_descriptor(f"{what}: its unit must not have Accept=yes")
        else:
            try:
                sock.getpeername()
                found.clients[name] = sock
            except OSError:
                sock.close()
    return found


_OTHERS = "S3DAEMON_HOST and S3DAEMON_PORT name another address"


def bind(host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of `host`, for when systemd passed no socket.

    Raises:
        StartError: `CannotListen`, with the reason.
    """
    where = f"{host or '*'}:{port}"
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise StartError(Code.CANNOT_LISTEN, f"cannot listen on {where}: {reason}: {_OTHERS}") from exc
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
                    text = f"cannot listen on {where}: {exc.strerror}: {_OTHERS}"
                    raise StartError(Code.CANNOT_LISTEN, text) from exc
        undo.pop_all()
    return listening


def stop_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set; SIGHUP is ignored, with a line in the log.

    A second signal changes nothing: draining ends by itself, or by systemd's SIGKILL. SIGHUP, by which other daemons
    reload, cannot do so here: only systemd can read the environment file, and does for the reload command.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reload_instead = "SIGHUP is ignored: to put edited settings in force, run systemctl reload s3daemon"
    loop.add_signal_handler(signal.SIGHUP, _log.warning, reload_instead)
    return stop
