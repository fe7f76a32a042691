"""The bandwidth limit is shared among the uploads in flight as they begin and end; rates are read from the kernel."""

import socket
import struct
from collections.abc import Iterator

import pytest

from s3daemon.model.files.source import SMALL_BYTES
from s3daemon.network.rate.pacing import SO_MAX_PACING_RATE, Pacer

LARGE = 8 << 20
FREE = (1 << 64) - 1


@pytest.fixture
def socks() -> Iterator[list[socket.socket]]:
    made = [socket.socket() for _ in range(4)]
    yield made
    for sock in made:
        sock.close()


def rate(sock: socket.socket) -> int:
    """The pacing rate that the kernel has for it, bytes a second."""
    found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
    return found


def test_uploads_share_the_limit_evenly(socks: list[socket.socket]) -> None:
    """One has it all, four have a quarter each, and the last has it all again."""
    pacer = Pacer(8_000_000)
    for sock in socks:
        pacer.prepare(sock)
        assert rate(sock) == 1_000_000
    for count, sock in enumerate(socks, 1):
        pacer.begin(sock, LARGE)
        assert [rate(each) for each in socks[:count]] == [round(1_000_000 / count)] * count
    for sock in socks[:3]:
        pacer.end(sock)
        assert rate(sock) == 1_000_000
    assert rate(socks[3]) == 1_000_000


def test_the_rate_in_force() -> None:
    """That of all uploads together; 0 without a limit."""
    pacer = Pacer(8_000_000)
    assert pacer.limit_bps == 8_000_000
    pacer.set_limit(0)
    assert pacer.limit_bps == 0


def test_a_small_upload_takes_no_share(socks: list[socket.socket]) -> None:
    """It is over before a share could matter."""
    pacer = Pacer(8_000_000)
    pacer.begin(socks[0], LARGE)
    pacer.begin(socks[1], SMALL_BYTES)
    assert rate(socks[0]) == 1_000_000
    pacer.end(socks[1])
    assert rate(socks[0]) == 1_000_000


def test_without_a_limit(socks: list[socket.socket]) -> None:
    """Nothing is limited; a limit that a reload sets or removes applies at once."""
    pacer = Pacer(0)
    for sock in socks:
        pacer.prepare(sock)
        pacer.begin(sock, LARGE)
        assert rate(sock) == FREE
    pacer.set_limit(8_000_000)
    assert rate(socks[0]) == 250_000
    pacer.set_limit(0)
    assert rate(socks[0]) == FREE


def test_a_closed_socket_frees_its_share(socks: list[socket.socket]) -> None:
    """An upload that ended with its connection takes nothing from the others."""
    pacer = Pacer(8_000_000)
    pacer.begin(socks[0], LARGE)
    pacer.begin(socks[1], LARGE)
    socks[0].close()
    pacer.end(socks[0])
    assert rate(socks[1]) == 1_000_000
