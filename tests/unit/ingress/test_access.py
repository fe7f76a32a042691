"""Who may ask: the listed users, or all."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Iterator

import pytest

from s3daemon.errors import RequestError, SettingsError
from s3daemon.ingress.access import AccessControl, resolve_users
from s3daemon.ingress.peer import PeerLookup
from s3daemon.model.request import Destination, Request

REQUEST = Request("/data/f", Destination("bucket", "k"))


class Lookup:
    """Stands in for the kernel: every user is `uid`, or not known; counts the look-ups."""

    def __init__(self, uid: int | None = 1000) -> None:
        self.uid = uid
        self.looks = 0

    def __call__(self, socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
        self.looks += 1
        return {} if self.uid is None else dict.fromkeys(socks, self.uid)


def access(*allowed: int, lookup: Lookup | None = None) -> AccessControl:
    return AccessControl(allowed, PeerLookup(lookup or Lookup()))


def refusal(control: AccessControl, sock: socket.socket) -> str:
    with pytest.raises(RequestError) as caught:
        asyncio.run(control.check(sock))
    assert caught.value.code == "NotAllowed"
    return caught.value.text


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def test_users_are_named_or_numbered() -> None:
    assert resolve_users(("5", "ccs"), {"ccs": 1000}.__getitem__) == {5, 1000}
    assert resolve_users(("root",)) == {0}


def test_names_without_a_user_are_faults() -> None:
    """Unknown names, and numbers that no user can have, are reported together."""
    with pytest.raises(SettingsError) as caught:
        resolve_users(("typo", "root", "65534", "4294967295", "nosuch"), {"root": 0}.__getitem__)
    assert [fault.split()[2].strip(",") for fault in caught.value.faults] == ["typo", "65534", "4294967295", "nosuch"]


def test_a_key_in_place_of_a_name_is_not_shown() -> None:
    key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"  # the documentation's example, nobody's key
    with pytest.raises(SettingsError) as caught:
        resolve_users((key,), dict[str, int]().__getitem__)
    assert caught.value.faults == ("S3DAEMON_ALLOWED_USERS has a name that is not a user's here",)


def test_only_listed_users_may_ask(sock: socket.socket) -> None:
    """One that is not listed is refused by number; one that is not known is told what to do."""
    asyncio.run(access(5, 1000).check(sock))
    assert "user 1000 is not in S3DAEMON_ALLOWED_USERS" in refusal(access(0, 5), sock)
    assert "keep the connection open until the answer" in refusal(access(0, lookup=Lookup(None)), sock)


def test_a_user_is_looked_up_again_while_this_host_has_no_descriptor(sock: socket.socket) -> None:
    """It passes, and a client that may ask is not refused for it."""
    lookup = Lookup()
    answer, left = lookup.__call__, [OSError(errno.EMFILE, "Too many open files")] * 2

    def failing(socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
        if left:
            raise left.pop()
        return answer(socks)

    asyncio.run(AccessControl([1000], PeerLookup(failing)).check(sock))
    assert (left, lookup.looks) == ([], 1)


def test_without_a_list_no_user_is_looked_up(sock: socket.socket) -> None:
    lookup = Lookup(None)
    asyncio.run(access(lookup=lookup).check(sock))
    assert lookup.looks == 0


def test_a_reload_changes_the_list(sock: socket.socket) -> None:
    """From the next request on."""
    control = access(5)
    refusal(control, sock)
    control.allow({1000})
    asyncio.run(control.check(sock))
    control.allow({7})
    refusal(control, sock)
