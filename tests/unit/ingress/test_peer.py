"""Whose connection it is: the kernel distinguishes users, whatever a client does to pass for another."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from lab.sending import in_loop

from s3daemon.ingress.peer import PeerLookup, owners_in, uids_of

OTHER = 23456
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@contextmanager
def another_user() -> Iterator[None]:
    """What is made in this block belongs to OTHER."""
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def listening(stack: ExitStack, host: str) -> socket.socket:
    """A listening socket; `::` takes IPv4 clients too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return stack.enter_context(socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::"))
    except (OSError, ValueError) as exc:
        pytest.skip(f"no IPv6 here: {exc}")


def connection(
    stack: ExitStack, listener: socket.socket, host: str, source: tuple[str, int] | None = None
) -> tuple[socket.socket, socket.socket]:
    """Returns the client's end and ours; the client's end has the address `source` if that is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    client = stack.enter_context(socket.socket(family))
    if source:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(source)
    client.connect((host, listener.getsockname()[1]))
    return client, stack.enter_context(listener.accept()[0])


PATHS = [
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1", "::ffff:127.0.0.1"),
    ("::1", "::1"),
    ("::", "127.0.0.1"),
    ("::", "::ffff:127.0.0.1"),
    ("::", "::1"),
]


@pytest.mark.parametrize(("ours", "theirs"), PATHS)
def test_the_user_of_a_tcp_client_is_found(stack: ExitStack, ours: str, theirs: str) -> None:
    """By either family of addresses, and still when the client has closed its sending side and waits."""
    client, sock = connection(stack, listening(stack, ours), theirs)
    assert uids_of([sock]).get(sock) == os.geteuid()
    client.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    assert uids_of([sock]).get(sock) == os.geteuid()


@as_root
@pytest.mark.parametrize(("ours", "theirs"), PATHS)
def test_two_users_at_one_port_are_distinguished(stack: ExitStack, ours: str, theirs: str) -> None:
    listener = listening(stack, ours)
    _, root = connection(stack, listener, theirs)
    with another_user():
        _, other = connection(stack, listener, theirs)
    assert uids_of([root, other]) == {root: 0, other: OTHER}


@as_root
def test_the_user_of_a_unix_client_is_found(stack: ExitStack, tmp_path: Path) -> None:
    """And still when the client is gone."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "socket"))
    listener.listen()
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "socket").chmod(0o666)
    with another_user(), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "socket"))
    sock = stack.enter_context(listener.accept()[0])
    assert uids_of([sock]).get(sock) == OTHER


def test_a_client_that_closed_has_its_user_or_none(stack: ExitStack) -> None:
    """Depending on the kernel; never root's 0, which older kernels show for closed sockets."""
    listener = listening(stack, "127.0.0.1")
    with another_user() if os.geteuid() == 0 else ExitStack():
        client, sock = connection(stack, listener, "127.0.0.1")
    client.close()
    assert uids_of([sock]).get(sock) in (None, OTHER if os.geteuid() == 0 else os.geteuid())


@as_root
@pytest.mark.parametrize("during", [False, True], ids=["before the look-up", "during the look-up"])
def test_a_connection_that_was_reset_does_not_get_the_next_user_of_its_port(stack: ExitStack, during: bool) -> None:
    listener = listening(stack, "127.0.0.1")
    with another_user():
        thief, stolen = connection(stack, listener, "127.0.0.1", ("127.0.0.77", 0))  # no other program's address
        thief.sendall(b"/etc/passwd a/b/k\n")
        source = thief.getsockname()
    accepted: list[socket.socket] = []

    def give_away() -> None:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        thief.close()
        accepted.extend(connection(stack, listener, "127.0.0.1", source))

    def owners_after_that(table: str, rows: Collection[bytes]) -> dict[bytes, int]:
        if not accepted:
            give_away()
        found.append(owners_in(table, rows))
        return found[-1]

    found: list[dict[bytes, int]] = []
    if not during:
        give_away()
    assert uids_of([stolen], owners_after_that if during else owners_in) == {}
    assert stolen.recv(5) == b"/etc/"  # the request can still be read
    assert uids_of([stolen, accepted[1]]) == {accepted[1]: 0}
    if during:
        assert list(found[0].values()) == [0]  # so the row that was seen was the other's


def test_a_socket_without_a_client_has_no_user() -> None:
    """One that is closed or not connected; the others in the same look-up have theirs."""
    ours, theirs = socket.socketpair()
    closed = socket.socket()
    closed.close()
    with ours, theirs, socket.socket() as alone:
        assert uids_of([closed, alone, ours]) == {ours: os.geteuid()}


ZEROES = "00000000:00000000 00:00000000 00000000"
ROW = "{n:4}: 0100007F:9C40 0100007F:{port} {state} " + ZEROES + " {uid:5}        0 {inode} 1 0 20 4 30 10 -1"


def table(path: Path, *rows: tuple[str, str, int, int]) -> str:
    """A file such as /proc/self/net/tcp, of (our port, state, uid, inode)."""
    lines = [
        ROW.format(n=n, port=port, state=state, uid=uid, inode=inode)
        for n, (port, state, uid, inode) in enumerate(rows)
    ]
    path.write_text("\n".join(["  sl  local_address rem_address   st", *lines, ""]))
    return str(path)


@pytest.mark.parametrize(
    ("state", "uid", "inode", "owner"),
    [
        ("01", 1000, 5, 1000),
        ("04", 1000, 5, 1000),
        ("05", 0, 5, 0),
        ("04", 1000, 0, 1000),  # closed, on a kernel that remembers
        ("04", 0, 0, None),  # closed, on one that does not
        ("06", 0, 0, None),
        ("02", 1000, 5, None),  # an attempt to connect
        ("08", 1000, 5, None),
        ("0A", 1000, 5, None),
        ("0B", 1000, 5, None),
    ],
)
def test_only_rows_of_connected_sockets_are_believed(
    tmp_path: Path, state: str, uid: int, inode: int, owner: int | None
) -> None:
    """Another row may have the same addresses."""
    row = b"0100007F:9C40 0100007F:3CC3"
    found = owners_in(table(tmp_path / "tcp", ("3CC4", "01", 1, 1), ("3CC3", state, uid, inode)), [row])
    assert found == ({} if owner is None else {row: owner})


def test_a_missing_table_is_empty(tmp_path: Path) -> None:
    """Without IPv6 there is no tcp6."""
    assert owners_in(str(tmp_path / "tcp6"), [b"a b"]) == {}


def test_a_user_that_cannot_be_mapped_is_unknown(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """User 65534 may be any user."""
    ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
    assert uids_of([ours]) != {}
    monkeypatch.setattr("s3daemon.ingress.peer.NAMELESS", os.geteuid())
    assert uids_of([ours, theirs]) == {}


class Lookup:
    """Stands in for the kernel: every user is 1000. Counts the sockets of each look-up, and waits until released."""

    def __init__(self) -> None:
        self.looks: list[int] = []
        self.started, self.released = threading.Event(), threading.Event()

    def __call__(self, socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
        asked = list(socks)
        self.looks.append(len(asked))
        self.started.set()
        assert self.released.wait(20)
        return dict.fromkeys(asked, 1000)


@in_loop
async def test_one_look_up_serves_all_that_wait(stack: ExitStack) -> None:
    """Clients that come during a look-up share the next one; one that is cancelled does not cancel the others'."""
    lookup = Lookup()
    peers = PeerLookup(lookup)
    socks = [stack.enter_context(socket.socket()) for _ in range(50)]
    asking = [asyncio.create_task(peers.uid_of(socks[0]))]
    assert await asyncio.to_thread(lookup.started.wait, 20)
    asking += [asyncio.create_task(peers.uid_of(sock)) for sock in socks[1:]]
    await asyncio.sleep(0)
    asking[1].cancel()
    lookup.released.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(result) for result in results] == ["1000", "", *["1000"] * 48]
    assert lookup.looks == [1, 49]


@in_loop
async def test_a_table_that_cannot_be_read_is_logged(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    """The user is then not known."""

    def lookup(_: object) -> dict[socket.socket, int]:
        raise OSError(errno.EACCES, "Permission denied")

    assert await PeerLookup(lookup).uid_of(stack.enter_context(socket.socket())) is None
    assert "Permission denied" in caplog.text
