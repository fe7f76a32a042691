"""Find the user at the other end of a connection.

For a Unix socket the kernel says so (SO_PEERCRED). For a TCP socket it is the owner of the client's own end: a row of
/proc/self/net/tcp, or of tcp6, where an IPv4 client may be too (`::ffff:127.0.0.1`). A row is believed only when

    it is connected     otherwise a program that tries to connect from a port in use would pass for the port's owner
    our end is too      otherwise a client could reset its connection, and the next user of its port would be found
    it has an inode     without one it was closed, and kernels before 6.17 show root's 0 as the owner of closed sockets

so a TCP client that closed before the look-up has no user. On a Unix socket it keeps its user.

User 65534 is what the kernel shows for users that it cannot map here, under PrivateUsers=yes nearly all: it counts as
not known, and cannot be allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from s3daemon.errors import is_host_limit

_log = logging.getLogger(__name__)

#: The kernel's overflowuid, and the highest possible uid: the one above it means "none".
NAMELESS, MAX_UID = 65534, 2**32 - 2
#: `owners_in`, or a stand-in: table and rows to the owners of rows.
Owners = Callable[[str, Collection[bytes]], dict[bytes, int]]

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
#: The kernel returns a page at a time; a row can be missed when one before it disappears between two pages.
_READ_BYTES, _READINGS = 65536, 2
# As in include/net/tcp_states.h. Ours: ESTABLISHED, CLOSE_WAIT. The client's: ESTABLISHED, FIN_WAIT1, FIN_WAIT2.
_OUR_STATES, _THEIR_STATES = (1, 8), b"0[145]"
# `::ffff:` before an IPv4 address, as the tables have it: words in the host's order.
_MAPPED = "".join(f"{word:08X}" for word in struct.unpack("=3I", bytes(10) + b"\xff\xff"))


def uids_of(socks: Iterable[socket.socket], owners: Owners | None = None) -> dict[socket.socket, int]:
    """The users at the other ends, all from one read of the kernel's tables; those not known are left out.

    Blocks, 1 us for each TCP connection of this host.

    Args:
        socks: our ends.
        owners: `owners_in`, or a stand-in.
    """
    owners = owners or owners_in
    found: dict[socket.socket, int] = {}
    rows: dict[socket.socket, tuple[bytes, bytes]] = {}
    for sock in socks:
        with suppress(OSError):  # the client is gone
            if sock.family == socket.AF_UNIX:
                found[sock] = peer_uid(sock)
            else:
                rows[sock] = _rows(sock)
    for _ in range(_READINGS):
        for at, table in enumerate(_TABLES):
            missing = {pair[at]: sock for sock, pair in rows.items() if pair[at] and sock not in found}
            for row, uid in owners(table, missing).items():
                if _is_connected(missing[row]):
                    found[missing[row]] = uid
    return {sock: uid for sock, uid in found.items() if uid != NAMELESS}


def peer_uid(sock: socket.socket) -> int:
    """The user that connected to a Unix socket."""
    form = "iIi"
    uid: int = struct.unpack(form, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form)))[1]
    return uid


def _is_connected(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _OUR_STATES
    except OSError:
        return False


def _rows(sock: socket.socket) -> tuple[bytes, bytes]:
    """Both ends as the client's row in either table has them; empty for a table that cannot have the row."""
    theirs, ours = _end(*sock.getpeername()[:2]), _end(*sock.getsockname()[:2])
    short = f"{theirs.removeprefix(_MAPPED)} {ours.removeprefix(_MAPPED)}" if theirs.startswith(_MAPPED) else ""
    return short.encode(), f"{theirs} {ours}".encode()


def _end(host: str, port: int) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:  # noqa: PLR2004 - the protocol's
        address = ipaddress.ip_address(f"::ffff:{address}")
    return "".join(f"{word:08X}" for word in struct.unpack("=4I", address.packed)) + f":{port:04X}"


def owners_in(table: str, rows: Collection[bytes]) -> dict[bytes, int]:
    """The owners of those of `rows` that are connected and open.

    Args:
        table: path of the kernel's table, or of one like it.
        rows: pairs of addresses as the table writes them, the client's end first.
    """
    found: dict[bytes, int] = {}
    if not rows:
        return found
    ours = b"|".join({row.partition(b" ")[2] for row in rows})
    pattern = re.compile(rb": (\w+:\w+ (?:%s)) %s(?: \S+){3} +(\d+) +\d+ (\d+) " % (ours, _THEIR_STATES))
    try:
        descriptor = os.open(table, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a kernel without IPv6
        return found
    try:
        while len(found) < len(rows) and (page := os.read(descriptor, _READ_BYTES)):
            for row, uid, inode in pattern.findall(page):
                if row in rows and (uid, inode) != (b"0", b"0"):
                    found[row] = int(uid)
    finally:
        os.close(descriptor)
    return found


class PeerLookup:
    """Looks up users for tasks of the event loop.

    Args:
        lookup: `uids_of`, or a stand-in; called in a thread.
    """

    def __init__(self, lookup: Callable[[Iterable[socket.socket]], dict[socket.socket, int]] = uids_of) -> None:
        self._lookup = lookup
        self._waiting: list[socket.socket] = []
        self._next: asyncio.Task[dict[socket.socket, int]] | None = None
        self._running = asyncio.Lock()

    async def uid_of(self, sock: socket.socket) -> int | None:
        """The user at the other end of `sock`, None when not known.

        One look-up at a time, for all who asked before it began: 70 ms for 1 024 of 10 000 clients.

        Raises:
            OSError: this host has no descriptor left.
        """
        if sock.family == socket.AF_UNIX:
            return self._lookup([sock]).get(sock)
        self._waiting.append(sock)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._look_up_all())
        return (await asyncio.shield(self._next)).get(sock)

    async def _look_up_all(self) -> dict[socket.socket, int]:
        async with self._running:
            asked, self._waiting, self._next = self._waiting, [], None
            try:
                return await asyncio.to_thread(self._lookup, asked)
            except OSError as exc:
                if is_host_limit(exc):
                    raise
                _log.warning("cannot look up the users of connections: %s", exc.strerror)
                return {}
