"""Who asks: the user at the other end of a connection, and whether that user may.

At a Unix socket the kernel says it (SO_PEERCRED). At a TCP socket it is the owner of the client's own end: a row of
/proc/self/net/tcp, or of tcp6, where an IPv4 client may be too (`::ffff:127.0.0.1`). A row is believed when

    it is connected     or whoever merely tries to connect from a port that is taken would pass for its owner
    and so are we       or a client could reset its connection, and whoever gets its port next would be found instead
    it has an inode     or it was closed, and kernels before 6.17 show root's 0 as the owner of what was closed

so a TCP client that closed before it was looked up has no user. At a Unix socket it keeps it.

User 65534 is what the kernel shows for users that it cannot name here, under PrivateUsers=yes nearly all: it is never
known, and cannot be allowed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import pwd
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import TypeVar

from s3daemon.errors import Code, RequestError, SettingsError, one_line
from s3daemon.model.record import MessageId
from s3daemon.model.request import Request

_log = logging.getLogger(__name__)

#: The kernel's overflowuid, and the highest uid that there can be: the one above stands for none.
NAMELESS, MAX_UID = 65534, 2**32 - 2
#: The code of every refusal that is about who may what.
NOT_ALLOWED = Code.NOT_ALLOWED

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
#: The kernel gives a page at a time, and a row can be missed when one before it goes away between two pages.
_READ_BYTES, _READINGS = 65536, 2
# As in include/net/tcp_states.h. Ours: ESTABLISHED, CLOSE_WAIT. The client's: ESTABLISHED, FIN_WAIT1, FIN_WAIT2.
_OUR_STATES, _THEIR_STATES = (1, 8), b"0[145]"
# `::ffff:` before an IPv4 address, as the tables have it: words in the host's order.
_MAPPED = "".join(f"{word:08X}" for word in struct.unpack("=3I", bytes(10) + b"\xff\xff"))

Accepted = TypeVar("Accepted")


def uid_of(sock: socket.socket) -> int | None:
    """The user at the other end, None when not known. Blocks, 1 us for each TCP connection of this host."""
    return uids_of([sock]).get(sock)


def uids_of(socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
    """The users at the other ends, all from one look at the kernel's tables; those not known are left out."""
    found: dict[socket.socket, int] = {}
    rows: dict[socket.socket, tuple[bytes, bytes]] = {}
    for sock in socks:
        with suppress(OSError):  # it is gone
            if sock.family == socket.AF_UNIX:
                found[sock] = peer_uid(sock)
            else:
                rows[sock] = _rows(sock)
    for _ in range(_READINGS):
        for at, table in enumerate(_TABLES):
            missing = {pair[at]: sock for sock, pair in rows.items() if pair[at] and sock not in found}
            for row, uid in _owners(table, missing).items():
                if _is_connected(missing[row]):
                    found[missing[row]] = uid
    return {sock: uid for sock, uid in found.items() if uid != NAMELESS}


def peer_uid(sock: socket.socket) -> int:
    """Who connected to a Unix socket."""
    form = "iIi"
    uid: int = struct.unpack(form, sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(form)))[1]
    return uid


def _is_connected(sock: socket.socket) -> bool:
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _OUR_STATES
    except OSError:
        return False


def _rows(sock: socket.socket) -> tuple[bytes, bytes]:
    """Both ends as the client's row has them in either table; empty for the one that cannot have it."""
    theirs, ours = _end(*sock.getpeername()[:2]), _end(*sock.getsockname()[:2])
    short = f"{theirs.removeprefix(_MAPPED)} {ours.removeprefix(_MAPPED)}" if theirs.startswith(_MAPPED) else ""
    return short.encode(), f"{theirs} {ours}".encode()


def _end(host: str, port: int) -> str:
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:  # noqa: PLR2004 - the protocol's
        address = ipaddress.ip_address(f"::ffff:{address}")
    return "".join(f"{word:08X}" for word in struct.unpack("=4I", address.packed)) + f":{port:04X}"


def _owners(table: str, rows: Collection[bytes]) -> dict[bytes, int]:
    """The owners of those of `rows` that are connected and open."""
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


def _uid_of_name(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


class AccessControl:
    """Lets in whom it was told to, and tells the journal whom it did not.

    Args:
        allowed: names and numbers of users; empty for everybody, and then nobody is looked up. Names are resolved here,
            which may block.
        uid: a name's number, or KeyError.
        look: `uids_of`, or a stand-in; called in a thread.

    Raises:
        SettingsError: a name that is nobody's. To go on without it would refuse its requests, and no caller repeats
            one; a service that does not start lets them wait.
    """

    def __init__(
        self,
        allowed: Iterable[str] = (),
        *,
        uid: Callable[[str], int] = _uid_of_name,
        look: Callable[[Iterable[socket.socket]], dict[socket.socket, int]] = uids_of,
    ) -> None:
        self._look = look
        self._asked: list[socket.socket] = []
        self._next: asyncio.Task[dict[socket.socket, int]] | None = None
        self._looking = asyncio.Lock()
        faults, self._uids = [], set()
        for name in allowed:
            try:
                number = int(name) if name.isdecimal() else uid(name)
            except KeyError:
                faults.append(f"S3DAEMON_ALLOWED_USERS names {one_line(name)}, who is no user here")
                continue
            if number > MAX_UID or number == NAMELESS:
                faults.append(f"S3DAEMON_ALLOWED_USERS names {one_line(name)}, and {number} is nobody's number")
            self._uids.add(number)
        if faults:
            raise SettingsError(faults)

    async def check(self, sock: socket.socket) -> None:
        """Let the user at the other end pass.

        Raises:
            RequestError: `NotAllowed`.
        """
        if not self._uids:
            return
        uid = await self.uid_of(sock)
        if uid is None:
            text = "your user is not known: ask from this host, and stay for the answer"
            raise RequestError(NOT_ALLOWED, f"S3DAEMON_ALLOWED_USERS is set, and {text}")
        if uid not in self._uids:
            raise RequestError(NOT_ALLOWED, f"user {uid} is not in S3DAEMON_ALLOWED_USERS")

    async def admit(
        self, sock: socket.socket, request: Request, accept: Callable[[Request], Awaitable[Accepted]]
    ) -> Accepted:
        """Have a request accepted that came over `sock`; a refusal, ours or that of its file or bucket, is logged.

        Raises:
            RequestError: `NotAllowed`, and whatever `accept` raises.
        """
        try:
            await self.check(sock)
            return await accept(request)
        except RequestError as exc:
            if exc.code == NOT_ALLOWED:
                await self._tell(sock, request, exc)
            raise

    async def uid_of(self, sock: socket.socket) -> int | None:
        """The user at the other end, None when not known.

        One look at a time, in a thread, for all who asked before it began: 70 ms for 1 024 of 10 000 clients.
        """
        if sock.family == socket.AF_UNIX:
            return self._look([sock]).get(sock)
        self._asked.append(sock)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._look_for_all())
        return (await asyncio.shield(self._next)).get(sock)

    async def _look_for_all(self) -> dict[socket.socket, int]:
        async with self._looking:
            asked, self._asked, self._next = self._asked, [], None
            try:
                return await asyncio.to_thread(self._look, asked)
            except OSError as exc:
                _log.warning("cannot look up who asks: %s", exc.strerror)
                return {}

    async def _tell(self, sock: socket.socket, request: Request, exc: RequestError) -> None:
        uid = await self.uid_of(sock)
        destination = request.destination
        _log.warning(
            "refused %s to %s, asked by %s: %s",
            one_line(request.file),
            destination,
            "somebody unknown" if uid is None else f"user {uid}",
            one_line(exc.text),
            extra={
                "journal": {
                    "MESSAGE_ID": MessageId.REFUSED.value,
                    "S3DAEMON_PEER_UID": "" if uid is None else uid,
                    "S3DAEMON_FILE": request.file,
                    "S3DAEMON_BUCKET": destination.bucket,
                    "S3DAEMON_KEY": destination.key,
                }
            },
        )
