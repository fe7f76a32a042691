"""TCP: the stall watch against tables of ticks, the rest against the kernel itself on a loopback pair."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.loopback import connected_pair, read_to_the_end

from s3daemon.network.pacing import SO_MAX_PACING_RATE
from s3daemon.network.tcp import UNPACED_PACKETS, StallWatch, TcpInfo, choose_congestion, forget_unsent, prepare

#: More than the receiver of `pair` takes in before it reads.
MUCH = 512 * 1024


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection over loopback; the second has a small receive buffer."""
    with connected_pair() as pair:
        yield pair


def ticks_until_end(watch: StallWatch, acked: int, *, arrived: bool) -> int:
    """How many ticks with nothing new it takes."""
    return next(n for n in range(1, 10_000) if watch.tick(acked, arrived=arrived))


def test_a_stall_ends_after_its_limit() -> None:
    """Nothing acknowledged for ten seconds, seen each quarter of a second, is a stall; the first look takes note."""
    assert ticks_until_end(StallWatch(10, 60, 0.25), 5, arrived=False) == 41


def test_an_answer_has_its_own_limit() -> None:
    """Once all has arrived, the store may think for as long as the answer's limit says, however long or short."""
    assert ticks_until_end(StallWatch(10, 60, 0.25), 5, arrived=True) == 241
    assert ticks_until_end(StallWatch(10, 1, 0.25), 5, arrived=True) == 5


def test_the_answers_time_begins_with_the_arrival() -> None:
    """Waiting for the last acknowledgement is not counted as waiting for the answer."""
    watch = StallWatch(10, 60, 0.25)
    assert not any(watch.tick(5, arrived=False) for _ in range(40))
    assert ticks_until_end(watch, 5, arrived=True) == 241


def test_a_limit_below_a_tick_is_a_tick() -> None:
    """There is always a second look."""
    assert ticks_until_end(StallWatch(0.01, 0.01, 0.25), 5, arrived=False) == 2


@given(st.lists(st.integers(0, 39), min_size=1, max_size=20))
def test_what_moves_is_never_a_stall(pauses: list[int]) -> None:
    """One byte acknowledged within every limit is enough, for as long as it takes."""
    watch = StallWatch(10, 60, 0.25)
    for acked, pause in enumerate(pauses):
        assert not any(watch.tick(acked, arrived=False) for _ in range(1 + pause))


def test_acknowledged_bytes_are_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    """What the peer's kernel took is acknowledged; when it has all, nothing is due."""
    here, there = pair
    before = TcpInfo.of(here)
    here.sendall(b"x" * 1000)
    assert there.recv(1000) == b"x" * 1000
    there.sendall(b"y")
    assert here.recv(1) == b"y"  # the answer carries the acknowledgement
    after = TcpInfo.of(here)
    assert (after.acked - before.acked, after.packets - before.packets, after.due) == (1000, 1, 0)
    assert after.rtt_usec > 0
    assert after.retransmits == 0


def test_the_first_packets_are_not_paced(pair: tuple[socket.socket, socket.socket]) -> None:
    """At a byte a second, so many and no more arrive: the kernel's own word for `UNPACED_PACKETS`."""
    here, there = pair
    prepare(here, user_timeout_s=60)
    size = 1000
    here.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", 1))
    for _ in range(2 * UNPACED_PACKETS):
        here.sendall(b"x" * size)
    got = 0
    there.settimeout(1)
    with contextlib.suppress(TimeoutError):
        while part := there.recv(65536):
            got += len(part)
    assert (got, TcpInfo.of(here).packets) == (UNPACED_PACKETS * size, UNPACED_PACKETS)


def test_what_the_peer_does_not_take_is_due(pair: tuple[socket.socket, socket.socket]) -> None:
    """A receiver that does not read leaves bytes due, and fewer acknowledged than were sent."""
    here, _ = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    info = TcpInfo.of(here)
    assert info.due > 0
    assert info.acked < sent


def test_a_closed_socket_tells_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """There is no TCP_INFO of what is closed."""
    here, _ = pair
    here.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        TcpInfo.of(here)


def test_unsent_bytes_are_forgotten(pair: tuple[socket.socket, socket.socket]) -> None:
    """After `forget_unsent` a close takes back what was not acknowledged, and the peer sees a reset."""
    here, there = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    forget_unsent(here)
    here.close()
    count, was_reset = read_to_the_end(there)
    assert was_reset
    assert count < sent


def test_without_it_they_still_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    """The counterpart: a plain close goes on delivering, which is why `forget_unsent` is there."""
    here, there = pair
    here.setblocking(False)
    sent = here.send(b"x" * MUCH)
    here.close()
    assert read_to_the_end(there) == (sent, False)


def test_options_of_a_connection() -> None:
    """Keep-alive with its three timers and the user timeout are set, and the send buffer is left to the kernel."""
    with socket.socket() as plain, socket.socket() as sock:
        prepare(sock, user_timeout_s=30)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        tcp = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in tcp] == [15, 5, 6, 30_000]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        buffers = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (plain, sock)]
        assert buffers[0] == buffers[1]


def test_congestion_control() -> None:
    """A name that the kernel has is set; without one the system's stays."""
    with socket.socket() as sock:
        assert choose_congestion(sock, "reno") == ""
        assert choose_congestion(sock, "") == ""
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"


def test_a_congestion_control_that_is_not_there() -> None:
    """One that the kernel refuses is told with what to do, and never costs the connection."""
    with socket.socket() as sock:
        message = choose_congestion(sock, "nosuch")
    assert "nosuch" in message
    assert "modprobe tcp_nosuch" in message or (os.geteuid() != 0 and "tcp_allowed_congestion_control" in message)
