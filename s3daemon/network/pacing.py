"""The daemon's bandwidth limit, shared among the uploads in flight as they begin and end.

TCP paces itself at SO_MAX_PACING_RATE, without any queueing discipline. Shared out like this, a burst neither overruns
the queue in front of the slowest link nor leaves some of its uploads far behind the others: over 200 ms the last object
of a burst arrives within a few percent of what the link allows, where unpaced ones took up to twice that.
"""

from __future__ import annotations

import contextlib
import socket
import struct

#: asm-generic/socket.h; not in Python's socket module.
SO_MAX_PACING_RATE = 47
#: A smaller upload takes no share: it fits into a few packets and is over before a share could matter.
SHARED_FROM_BYTES = 64 * 1024
_UNLIMITED = (1 << 64) - 1


class Pacer:
    """Shares a limit among the sockets whose uploads are in flight.

    Args:
        limit_bps: bit/s for all together, 0 for no limit.
    """

    def __init__(self, limit_bps: int) -> None:
        self._limit_bps = limit_bps
        self._active: set[socket.socket] = set()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._limit_bps > 0

    @property
    def limit_bps(self) -> int:
        """Bit/s for all together, 0 for no limit."""
        return self._limit_bps

    def set_limit(self, limit_bps: int) -> None:
        """Replace the limit, for uploads in flight too."""
        if limit_bps != self._limit_bps:
            self._limit_bps = limit_bps
            self._share()

    def prepare(self, sock: socket.socket) -> None:
        """Limit a socket without a share to the whole rate; else what it carries before its first would be unpaced."""
        if self._limit_bps:
            _pace(sock, self._limit_bps / 8)

    def begin(self, sock: socket.socket, size: int) -> None:
        """Give `sock` a share for an upload of `size` bytes, unless that is small."""
        if size >= SHARED_FROM_BYTES:
            self._active.add(sock)
            self._share()

    def end(self, sock: socket.socket) -> None:
        """Divide the share of `sock` among the others: its upload is over."""
        if sock in self._active:
            self._active.remove(sock)
            self.prepare(sock)
            self._share()

    def _share(self) -> None:
        rate = self._limit_bps / 8 / max(1, len(self._active)) if self._limit_bps else _UNLIMITED
        for sock in self._active:
            _pace(sock, rate)


def _pace(sock: socket.socket, bytes_per_s: float) -> None:
    with contextlib.suppress(OSError):  # it is being closed
        sock.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, struct.pack("=Q", round(bytes_per_s)))
