"""TCP options and TCP_INFO, checked against the kernel itself on a loopback pair."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator

import pytest
from lab.certs import Authority
from lab.loopback import SLOW_S, connected_pair, read_to_the_end
from lab.schemes import tls_with
from lab.sending import in_loop

from s3daemon.network.rate.pacing import SO_MAX_PACING_RATE
from s3daemon.network.tcp import (
    UNPACED_PACKETS,
    UNSENT_BYTES,
    StoreSocket,
    TcpInfo,
    choose_congestion,
    prepare,
    reset_on_close,
    tcp_transport_of,
)

#: More than the receiver of `pair` takes in before it reads.
MUCH = 512 * 1024


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection over loopback; the second has a small receive buffer."""
    with connected_pair() as pair:
        yield pair


def test_acknowledged_bytes_are_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    """What the peer's kernel took is acknowledged; when it has all, nothing is outstanding."""
    here, there = pair
    before = TcpInfo.of(here)
    here.sendall(b"x" * 1000)
    assert there.recv(1000) == b"x" * 1000
    there.sendall(b"y")
    assert here.recv(1) == b"y"  # the answer carries the acknowledgement
    after = TcpInfo.of(here)
    assert (after.acked - before.acked, after.packets - before.packets, after.outstanding) == (1000, 1, 0)
    assert after.rtt_usec > 0
    assert after.retransmits == 0


def test_the_first_packets_are_not_paced(pair: tuple[socket.socket, socket.socket]) -> None:
    """At a byte a second, so many and no more arrive: this is where `UNPACED_PACKETS` comes from."""
    here, there = pair
    prepare(here, user_timeout_s=60)
    size = 1000
    here.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", 1))
    for _ in range(2 * UNPACED_PACKETS):
        here.sendall(b"x" * size)
    got = 0
    there.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while part := there.recv(65536):
            got += len(part)
    assert (got, TcpInfo.of(here).packets) == (UNPACED_PACKETS * size, UNPACED_PACKETS)


def test_what_the_peer_does_not_take_is_outstanding(pair: tuple[socket.socket, socket.socket]) -> None:
    """A peer that does not read leaves bytes outstanding, and fewer acknowledged than were sent."""
    here, _ = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    info = TcpInfo.of(here)
    assert info.outstanding > 0
    assert info.acked < sent


def test_round_trip_time_and_pacing_limit(pair: tuple[socket.socket, socket.socket]) -> None:
    """The limit is that of SO_MAX_PACING_RATE (47); by default there is none."""
    here, _ = pair
    info = TcpInfo.of(here)
    assert 0 < info.least_rtt_usec < 1_000_000
    assert info.pacing_limit == 0
    here.setsockopt(socket.SOL_SOCKET, 47, struct.pack("=Q", 125_000))
    assert TcpInfo.of(here).pacing_limit == 125_000
    with socket.socket() as sock:
        assert TcpInfo.of(sock).least_rtt_usec == 0


def test_a_closed_socket_has_no_tcp_info(pair: tuple[socket.socket, socket.socket]) -> None:
    """Asking for it is an OSError."""
    here, _ = pair
    here.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        TcpInfo.of(here)


def test_a_reset_drops_what_was_not_acknowledged(pair: tuple[socket.socket, socket.socket]) -> None:
    """After `reset_on_close` a close takes back unacknowledged bytes, and the peer sees a reset."""
    here, there = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    reset_on_close(here)
    here.close()
    count, was_reset = read_to_the_end(there)
    assert was_reset
    assert count < sent


def test_a_plain_close_still_delivers(pair: tuple[socket.socket, socket.socket]) -> None:
    """The kernel goes on delivering after a plain close, which is why there is `reset_on_close`."""
    here, there = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    here.close()
    assert read_to_the_end(there) == (sent, False)


def test_options_of_a_connection() -> None:
    """Keep-alive with its timers, the user timeout, and what may be unsent; the kernel chooses the send buffer."""
    with socket.socket() as plain, socket.socket() as sock:
        prepare(sock, user_timeout_s=30)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp] == [15, 5, 6, 30_000]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT_BYTES
        buffers = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (plain, sock)]
        assert buffers[0] == buffers[1]


def test_congestion_control() -> None:
    """A name that the kernel has is set; without one the system's stays."""
    with socket.socket() as sock:
        assert choose_congestion(sock, "reno") == ""
        assert choose_congestion(sock, "") == ""
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_a_missing_congestion_control() -> None:
    """The message on one that the kernel refuses says what to do, and the connection goes on without it."""
    with socket.socket() as sock:
        message = choose_congestion(sock, "nosuch")
    assert "nosuch" in message
    assert "modprobe tcp_nosuch" in message or (os.geteuid() != 0 and "tcp_allowed_congestion_control" in message)


@in_loop
async def test_the_transport_below_tls(certs: Authority) -> None:
    """It is found in the asyncio that runs, and its `abort` ends the connection; without TLS there is none below."""
    certificate = certs.issue("below")
    async with tls_with(certificate, certs.ca).store() as (server, _):
        host, port = server.url.removeprefix("https://").split(":")
        trusted = ssl.create_default_context(cafile=str(certs.ca))
        reader, writer = await asyncio.open_connection(host, int(port), ssl=trusted)
        above = writer.transport
        assert isinstance(above, asyncio.Transport)
        below = tcp_transport_of(above)
        assert below is not above
        assert tcp_transport_of(below) is below
        below.abort()
        assert await reader.read() == b""
        assert below.is_closing()


@pytest.fixture
def refused(pair: tuple[socket.socket, socket.socket]) -> Iterator[StoreSocket]:
    """A connection whose peer answered 100 bytes and reset it, with an answer to be read."""
    here, there = pair
    here.sendall(b"x")
    there.sendall(bytes(100))
    there.close()  # with something unread: a reset
    with StoreSocket(fileno=here.detach()) as sock:
        sock.setblocking(False)
        over = select.poll()
        over.register(sock, select.POLLHUP)
        assert over.poll(SLOW_S * 1000)
        yield sock


@pytest.mark.parametrize("send", [lambda sock: sock.send(b"y"), lambda sock: sock.sendmsg([b"y"])], ids=["send", "msg"])
def test_a_send_fails_once_all_that_came_was_read(refused: StoreSocket, send: Callable[[socket.socket], int]) -> None:
    """Before, it would block: asyncio reads then."""
    for left in (40, 60):
        with pytest.raises(BlockingIOError):
            send(refused)
        assert len(refused.recv(left)) == left
    with pytest.raises(ConnectionError):
        send(refused)


def test_a_send_fails_where_nobody_reads(refused: StoreSocket) -> None:
    """Otherwise a transport that has stopped reading would try it for ever."""
    with pytest.raises(BlockingIOError):
        refused.send(b"y")
    with pytest.raises(ConnectionError):
        refused.send(b"y")
