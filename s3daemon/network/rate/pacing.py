"""The daemon's bandwidth limit, shared among the uploads in flight as they begin and end.

The kernel paces each socket at its SO_MAX_PACING_RATE, whatever the queueing discipline. With even shares a burst of
uploads does not overrun the queue in front of the slowest link, and none falls far behind the others: over 200 ms the
last object of a burst arrives within a few percent of what the link allows; without pacing it took up to twice as long.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable

from s3daemon.model.files.source import SMALL_BYTES

#: asm-generic/socket.h; not in Python's socket module.
SO_MAX_PACING_RATE = 47
_UNLIMITED = (1 << 64) - 1
#: A rate too high to limit anything, bytes/s. With any rate but the kernel's default a connection spreads its packets
#: over the round trip, instead of sending a whole window at once (Linux, tcp_update_pacing_rate).
_SMOOTH = 1 << 40
#: Cubic ends slow start as soon as packets queue (HyStart), which leaves some connections of a burst with a narrow
#: window for the next minutes. While no rate is known, reno is used in its place; `controller` watches the queue.
_CUBIC, _RENO = b"cubic", b"reno"

OnBegin = Callable[[socket.socket], None]
"""Called with the socket of an upload."""
OnEnd = Callable[[socket.socket], bool]
"""Called with the socket of an upload; returns whether losses made its window narrow."""


class Pacer:
    """Shares a limit among the sockets whose uploads are in flight.

    Args:
        limit_bps: bit/s for all together, 0 for no limit.
    """

    def __init__(self, limit_bps: int) -> None:
        self._limit_bps = limit_bps
        self._active: set[socket.socket] = set()
        self._steady: set[socket.socket] = set()  # with another congestion control than usual
        self._on_begin: OnBegin = lambda sock: None
        self._on_end: OnEnd = lambda sock: False

    def observe(self, on_begin: OnBegin, on_end: OnEnd) -> None:
        """Have functions called as an upload that takes a share begins and ends."""
        self._on_begin, self._on_end = on_begin, on_end

    @property
    def limit_bps(self) -> int:
        """Bit/s for all together, 0 for no limit."""
        return self._limit_bps

    def set_limit(self, limit_bps: int) -> None:
        """Replace the limit, for uploads in flight too."""
        if limit_bps != self._limit_bps:
            self._limit_bps = limit_bps
            self._share()
        if limit_bps:
            self._restore(*self._steady)

    def smooth(self, sock: socket.socket) -> None:
        """Let an upload without a limit speed up fast and without bursts, until it ends or there is a limit."""
        _pace(sock, _SMOOTH)
        with contextlib.suppress(OSError):
            name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            if name.rstrip(b"\0") == _CUBIC:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _RENO)
                self._steady.add(sock)

    def _restore(self, *socks: socket.socket) -> None:
        for sock in self._steady.intersection(socks):
            self._steady.remove(sock)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CUBIC)

    def prepare(self, sock: socket.socket) -> None:
        """Limit a socket that has no share to the whole limit: what it sends before its first upload is paced too."""
        if self._limit_bps:
            _pace(sock, self._limit_bps / 8)

    def begin(self, sock: socket.socket, size: int) -> None:
        """Give `sock` a share for an upload of `size` bytes, unless that is small, and over before it could matter."""
        if size > SMALL_BYTES:
            self._active.add(sock)
            self._share()
            self._on_begin(sock)

    def end(self, sock: socket.socket) -> bool:
        """End the share of `sock`, whose upload is over; the others get it.

        Returns:
            Too much was sent over all of them, and losses made its window narrow.
        """
        if sock not in self._active:
            return False
        self._active.remove(sock)
        is_narrowed = self._on_end(sock)
        self._restore(sock)
        self.prepare(sock)
        self._share()
        return is_narrowed

    def _share(self) -> None:
        rate = self._limit_bps / 8 / max(1, len(self._active)) if self._limit_bps else _UNLIMITED
        for sock in self._active:
            _pace(sock, rate)


def _pace(sock: socket.socket, bytes_per_s: float) -> None:
    with contextlib.suppress(OSError):  # it is being closed
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", round(bytes_per_s)))
