"""Plain sockets over loopback, whose receiver takes little before it reads."""

from __future__ import annotations

import fcntl
import gc
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_S = 20.0
"""Longest that any of these waits for what should come at once."""


@contextmanager
def listening() -> Iterator[socket.socket]:
    """A listener whose connections take in some 100 KiB before they read."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(SLOW_S)
        yield listener


@contextmanager
def connected_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection's two ends; the second is the slow receiver."""
    with (
        listening() as listener,
        socket.create_connection(listener.getsockname(), SLOW_S) as here,
        listener.accept()[0] as there,
    ):
        there.settimeout(SLOW_S)
        yield here, there


def read_to_the_end(sock: socket.socket) -> tuple[int, bool]:
    """How many bytes came, and whether they ended with a reset."""
    sock.settimeout(SLOW_S)
    count = 0
    try:
        while part := sock.recv(65536):
            count += len(part)
    except ConnectionResetError:
        return count, True
    return count, False


def socket_of(name: object) -> socket.socket:
    """The socket of this process that has this local address."""
    found = [each for each in gc.get_objects() if isinstance(each, socket.socket) and each.fileno() >= 0]
    return next(sock for sock in found if sock.family == socket.AF_INET and sock.getsockname() == name)


def handed_over(sock: socket.socket) -> int:
    """Bytes that the kernel was given to send on a connection since it was opened: acknowledged and queued ones."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
    (acked,) = struct.unpack_from("=Q", raw, 120)
    (queued,) = struct.unpack("=i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(acked + queued)
