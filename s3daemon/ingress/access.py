"""Access control: which users may make requests, by S3DAEMON_ALLOWED_USERS."""

from __future__ import annotations

import pwd
import socket
from collections.abc import Callable, Collection, Iterable

from s3daemon.config.values import may_hold_key
from s3daemon.errors import HOST_LIMIT_TEXT, Code, RequestError, SettingsError, one_line
from s3daemon.ingress.peer import MAX_UID, NAMELESS, PeerLookup
from s3daemon.model.files.calls import outlast


def _uid_of_name(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def resolve_users(names: Iterable[str], uid: Callable[[str], int] = _uid_of_name) -> frozenset[int]:
    """The numbers of users. May block: the user database can be on the network.

    Args:
        names: names and numbers.
        uid: returns the number of a name, or raises KeyError.

    Raises:
        SettingsError: a name that no user has. Without that user the service would refuse its requests, and clients
            do not repeat a request; while a service does not start, they wait.
    """
    faults, found = [], set[int]()
    for name in names:
        try:
            number = int(name) if name.isdecimal() else uid(name)
        except KeyError:
            if may_hold_key(name):  # in the wrong line of the environment file
                faults.append("S3DAEMON_ALLOWED_USERS has a name that is not a user's here")
            else:
                faults.append(f"S3DAEMON_ALLOWED_USERS names {one_line(name)}, which is not a user here")
            continue
        if number > MAX_UID or number == NAMELESS:
            faults.append(f"S3DAEMON_ALLOWED_USERS names {one_line(name)}, and {number} is not the number of a user")
        found.add(number)
    if faults:
        raise SettingsError(faults)
    return frozenset(found)


class AccessControl:
    """Says whose requests are accepted: those of the allowed users.

    Args:
        allowed: numbers of users, see `resolve_users`; empty for all users, and then none is looked up.
        peers: looks up whose connection one is.
    """

    def __init__(self, allowed: Collection[int], peers: PeerLookup) -> None:
        self._allowed = allowed
        self._peers = peers

    def allow(self, allowed: Collection[int]) -> None:
        """Allow these users instead, from the next request on."""
        self._allowed = allowed

    async def check(self, sock: socket.socket) -> None:
        """Check that the user at the other end is allowed.

        Raises:
            RequestError: `NotAllowed`, or `HostLimit` when nobody can be looked up.
        """
        if not self._allowed:
            return
        try:
            uid = await outlast(lambda: self._peers.uid_of(sock))
        except OSError as exc:
            raise RequestError(Code.HOST_LIMIT, HOST_LIMIT_TEXT) from exc
        if uid is None:
            text = "your user is unknown: connect from this host, and keep the connection open until the answer"
            raise RequestError(Code.NOT_ALLOWED, f"S3DAEMON_ALLOWED_USERS is set, and {text}")
        if uid not in self._allowed:
            raise RequestError(Code.NOT_ALLOWED, f"user {uid} is not in S3DAEMON_ALLOWED_USERS")

    async def allows(self, sock: socket.socket) -> bool:
        """Return whether the user at the other end is allowed; False when nobody can be looked up."""
        try:
            await self.check(sock)
        except RequestError:
            return False
        return True
