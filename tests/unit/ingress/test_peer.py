"""Who asks: users are told apart by the kernel's own word, whatever a client does to pass for somebody else."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from s3daemon.errors import FileError, RequestError, SettingsError, SpoolError
from s3daemon.ingress.peer import AccessControl, _owners, uid_of, uids_of
from s3daemon.model.record import MessageId
from s3daemon.model.request import Destination, Request

OTHER = 23456
REQUEST = Request("/data/f", Destination("bucket", "k"))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="being somebody else takes root")


@contextmanager
def somebody_else() -> Iterator[None]:
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
    stack: ExitStack, listener: socket.socket, host: str, port: int = 0
) -> tuple[socket.socket, socket.socket]:
    """The client's end and ours; from `port` when that is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    client = stack.enter_context(socket.socket(family))
    if port:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((host, port))
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
def test_a_tcp_client(stack: ExitStack, ours: str, theirs: str) -> None:
    """Its user is found by either family of addresses, and still when it has said all and waits."""
    client, sock = connection(stack, listening(stack, ours), theirs)
    assert uid_of(sock) == os.geteuid()
    client.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b""
    assert uid_of(sock) == os.geteuid()


@as_root
@pytest.mark.parametrize(("ours", "theirs"), PATHS)
def test_another_tcp_client(stack: ExitStack, ours: str, theirs: str) -> None:
    """Two users at one port are told apart."""
    listener = listening(stack, ours)
    _, root = connection(stack, listener, theirs)
    with somebody_else():
        _, other = connection(stack, listener, theirs)
    assert uids_of([root, other]) == {root: 0, other: OTHER}


@as_root
def test_a_unix_client(stack: ExitStack, tmp_path: Path) -> None:
    """Its user is known, and still when it is gone."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(tmp_path / "door"))
    listener.listen()
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "door").chmod(0o666)
    with somebody_else(), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "door"))
    sock = stack.enter_context(listener.accept()[0])
    assert uid_of(sock) == OTHER


def test_a_client_that_hung_up(stack: ExitStack) -> None:
    """It has its own user or none, by the kernel's age: never root's 0 that older ones show for what was closed."""
    listener = listening(stack, "127.0.0.1")
    with somebody_else() if os.geteuid() == 0 else ExitStack():
        client, sock = connection(stack, listener, "127.0.0.1")
    client.close()
    assert uid_of(sock) in (None, OTHER if os.geteuid() == 0 else os.geteuid())


@as_root
@pytest.mark.parametrize("during", [False, True], ids=["before the look", "during the look"])
def test_a_client_that_gives_its_port_away(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, during: bool) -> None:
    """Who resets a connection after its request is not taken for whoever has its port next."""
    listener = listening(stack, "127.0.0.1")
    with somebody_else():
        thief, stolen = connection(stack, listener, "127.0.0.1")
        thief.sendall(b"/etc/passwd a/b/k\n")
        port = thief.getsockname()[1]
    accepted: list[socket.socket] = []

    def give_away() -> None:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        thief.close()
        accepted.extend(connection(stack, listener, "127.0.0.1", port))

    def owners_after_that(table: str, rows: Collection[bytes]) -> dict[bytes, int]:
        if not accepted:
            give_away()
        found.append(_owners(table, rows))
        return found[-1]

    found: list[dict[bytes, int]] = []
    if during:
        monkeypatch.setattr("s3daemon.ingress.peer._owners", owners_after_that)
    else:
        give_away()
    assert uids_of([stolen]) == {}
    assert stolen.recv(5) == b"/etc/"  # the request can still be read
    assert uids_of([stolen, accepted[1]]) == {accepted[1]: 0}
    if during:
        assert list(found[0].values()) == [0]  # so it was the other's row that was seen


def test_gone_or_not_a_client() -> None:
    """A socket that is closed, or that nobody is connected to, has no user; the others have theirs all the same."""
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
def test_which_rows_are_believed(tmp_path: Path, state: str, uid: int, inode: int, owner: int | None) -> None:
    """An owner is who holds a connected socket, nobody else whose row has the same addresses."""
    row = b"0100007F:9C40 0100007F:3CC3"
    found = _owners(table(tmp_path / "tcp", ("3CC4", "01", 1, 1), ("3CC3", state, uid, inode)), [row])
    assert found == ({} if owner is None else {row: owner})


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    """Without IPv6 there is no tcp6, and nobody in it."""
    assert _owners(str(tmp_path / "tcp6"), [b"a b"]) == {}


class Looking:
    """Stands in for the kernel: everybody is `uid`; counts the looks, and waits in each until it may go on."""

    def __init__(self, uid: int | None = 1000) -> None:
        self.uid = uid
        self.looks: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __call__(self, socks: Iterable[socket.socket]) -> dict[socket.socket, int]:
        asked = list(socks)
        self.looks.append(len(asked))
        self.begun.set()
        assert self.go_on.wait(20)
        return {} if self.uid is None else dict.fromkeys(asked, self.uid)


def refusal(keeper: AccessControl, sock: socket.socket) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asyncio.run(keeper.check(sock))
    assert caught.value.code == "NotAllowed"
    return caught.value


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def test_names_and_numbers(sock: socket.socket) -> None:
    """Both say who may come in; who is neither is refused by number, who is not known is told what to do."""
    look = Looking()
    asyncio.run(AccessControl(("5", "ccs"), uid={"ccs": 1000}.__getitem__, look=look).check(sock))
    asyncio.run(AccessControl(("1000",), look=look).check(sock))
    assert "user 1000 is not in S3DAEMON_ALLOWED_USERS" in refusal(AccessControl(("root", "5"), look=look), sock).text
    assert "stay for the answer" in refusal(AccessControl(("root",), look=Looking(None)), sock).text


def test_names_that_cannot_be() -> None:
    """Nobody's names, and numbers that are no user's, are faults, told together."""
    with pytest.raises(SettingsError) as caught:
        AccessControl(("typo", "root", "65534", "4294967295", "nosuch"), uid={"root": 0}.__getitem__)
    assert [fault.split()[2].strip(",") for fault in caught.value.faults] == ["typo", "65534", "4294967295", "nosuch"]


def test_the_nameless_are_unknown(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """User 65534 may be anybody, so it is nobody."""
    ours, theirs = (stack.enter_context(sock) for sock in socket.socketpair())
    assert uids_of([ours]) != {}
    monkeypatch.setattr("s3daemon.ingress.peer.NAMELESS", os.geteuid())
    assert uids_of([ours, theirs]) == {}


def test_no_list_no_look(sock: socket.socket) -> None:
    """Where everybody may come in, nobody is looked up."""
    look = Looking(None)
    asyncio.run(AccessControl(look=look).check(sock))
    assert look.looks == []


def test_one_look_for_all(stack: ExitStack) -> None:
    """Those who come during a look share the next one; a client that goes away takes nobody's answer with it."""
    look = Looking()
    look.go_on.clear()

    async def test() -> None:
        keeper = AccessControl(("1000",), look=look)
        socks = [stack.enter_context(socket.socket()) for _ in range(50)]
        checks = [asyncio.create_task(keeper.check(socks[0]))]
        assert await asyncio.to_thread(look.begun.wait, 20)
        checks += [asyncio.create_task(keeper.check(sock)) for sock in socks[1:]]
        await asyncio.sleep(0)
        checks[1].cancel()
        look.go_on.set()
        results = await asyncio.gather(*checks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), asyncio.CancelledError, *[type(None)] * 48]

    asyncio.run(test())
    assert look.looks == [1, 49]


def test_a_table_that_cannot_be_read(sock: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    """Who cannot be looked up is not let in, and the journal says why."""

    def look(_: object) -> dict[socket.socket, int]:
        raise OSError(24, "Too many open files")

    assert "not known" in refusal(AccessControl(("1000",), look=look), sock).text
    assert "Too many open files" in caplog.text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "user 1000 is not in"),
        (RequestError("NotAllowed", "the bucket bucket is not in S3DAEMON_ALLOWED_BUCKETS"), "the bucket"),
        (FileError("NotAllowed", "/data/f: /etc/f is not under S3DAEMON_ALLOWED_ROOTS"), "/etc/f is not under"),
        (FileError("NoSuchFile", "/data/f: no such file"), ""),
        (SpoolError("SpoolFull", "no space"), ""),
    ],
)
def test_every_refusal_is_one_warning(
    sock: socket.socket, caplog: pytest.LogCaptureFixture, error: Exception | None, told: str
) -> None:
    """Of users, roots and buckets alike, with the user and the path; what is merely wrong is not one."""

    async def accept(_: Request) -> None:
        assert error
        raise error

    keeper = AccessControl(("5",) if error is None else (), look=Looking())
    with caplog.at_level(logging.DEBUG), pytest.raises((RequestError, SpoolError)):
        asyncio.run(keeper.admit(sock, REQUEST, accept))
    logged = [record for record in caplog.records if record.name == "s3daemon.ingress.peer"]
    assert len(logged) == bool(told)
    for record in logged:
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith("refused /data/f to bucket/k, asked by user 1000: ")
        assert told in record.getMessage()
        assert record.journal == {  # type: ignore[attr-defined]
            "MESSAGE_ID": MessageId.REFUSED,
            "S3DAEMON_PEER_UID": 1000, "S3DAEMON_FILE": "/data/f", "S3DAEMON_BUCKET": "bucket", "S3DAEMON_KEY": "k",
        }  # fmt: skip
