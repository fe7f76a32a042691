"""What the kernel knows of a TCP connection, and what we ask of it: options, TCP_INFO, and when an upload is stalled.

aiohttp's `sock_read` timeout does not cover writing, so a receiver that stops reading would hang a PUT for ever; and a
stopwatch over the whole upload would end a slow but moving one. `StallWatch` looks at acknowledged bytes instead.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

#: Idle for this long, the kernel asks whether the peer is alive; six unanswered questions end the connection.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 6
#: How often an upload is looked at. A quarter of a second is fine enough for limits of seconds and costs nothing.
TICK_S = 0.25

# Offsets in struct tcp_info, include/uapi/linux/tcp.h; the structure only ever grows at its end.
_MSS, _UNACKED, _RTT, _CWND, _RETRANS, _ACKED, _NOTSENT, _PACKETS, _SENT = 16, 24, 68, 80, 100, 120, 144, 156, 200
_TCP_INFO_BYTES = 216
#: Linux paces a connection once it has sent so many packets with data, net/ipv4/tcp_output.c,
#: tcp_update_skb_after_send; all before them leave at once.
UNPACED_PACKETS = 10
#: A connection's state after a reset, include/net/tcp_states.h.
_TCP_CLOSE = 7


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """What the kernel says of a connection.

    Args:
        acked: bytes that the peer acknowledged since it was opened.
        due: packets not acknowledged plus bytes not sent yet; 0 when the peer has all that the kernel was given.
        rtt_usec: smoothed round-trip time, microseconds.
        retransmits: packets sent again since it was opened.
        sent: bytes that were sent at least once since it was opened.
        over: the connection was reset, by either side, or given up.
        window: bytes that the congestion window lets be in flight.
        packets: with data, sent since it was opened.
    """

    acked: int
    due: int
    rtt_usec: int
    retransmits: int
    sent: int
    over: bool
    window: int = 0
    packets: int = 0

    @classmethod
    def of(cls, sock: socket.socket) -> TcpInfo:
        """Read it.

        Raises:
            OSError: the socket is closed.
        """
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES).ljust(_TCP_INFO_BYTES, b"\0")
        (unacked,) = struct.unpack_from("=I", raw, _UNACKED)
        (notsent,) = struct.unpack_from("=I", raw, _NOTSENT)
        (mss,) = struct.unpack_from("=I", raw, _MSS)
        (cwnd,) = struct.unpack_from("=I", raw, _CWND)
        (rtt,) = struct.unpack_from("=I", raw, _RTT)
        (retransmits,) = struct.unpack_from("=I", raw, _RETRANS)
        (acked,) = struct.unpack_from("=Q", raw, _ACKED)
        (packets,) = struct.unpack_from("=I", raw, _PACKETS)
        sent, again = struct.unpack_from("=QQ", raw, _SENT)
        over, window = raw[0] == _TCP_CLOSE, cwnd * mss
        return cls(acked, unacked + notsent, rtt, retransmits, sent - again, over, window, packets)


def prepare(sock: socket.socket, *, user_timeout_s: float) -> None:
    """Set what every connection to the store needs, before it connects.

    SO_SNDBUF is left alone on purpose: setting it turns the kernel's autotuning off, and with it the long fat network.

    Args:
        sock: not yet connected.
        user_timeout_s: sent data unacknowledged for this long ends the connection, seconds.
    """
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(user_timeout_s * 1000)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        sock.setsockopt(level, option, value)


def choose_congestion(sock: socket.socket, name: str) -> str:
    """Have `sock` use the congestion control `name`; nothing when that is empty.

    Returns:
        why the kernel refuses and what to do, one line; empty when it does not.
    """
    try:
        if name:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except PermissionError:
        return f"congestion control {name}: add it to net.ipv4.tcp_allowed_congestion_control; the system's is used"
    except OSError:
        return f"congestion control {name} is not loaded: modprobe tcp_{name}; the system's is used"
    return ""


def forget_unsent(sock: socket.socket, *, forget: bool = True) -> None:
    """Make the coming close drop what was not acknowledged, with a reset; else the kernel goes on delivering it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", forget, 0))


def beneath(transport: asyncio.Transport) -> asyncio.Transport:
    """The TCP transport below a TLS one, or `transport` itself: the one whose `abort` ends the connection.

    Python 3.11.2, Debian 12's, loses it when a TLS transport is closed twice, which aiohttp does, and then can neither
    abort nor know; so it is looked up while it is there. asyncio has no public name for it.
    """
    found = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return found if isinstance(found, asyncio.Transport) else transport


class StallWatch:
    """Tells when an upload no longer moves. Pure: told what is, once a tick.

    Ticks are counted, not seconds, so a process that was stopped for an hour finds nothing stalled when it wakes.

    Args:
        stall_s: no byte was acknowledged for this long although some are due, seconds.
        answer_s: everything was acknowledged and no answer came for this long, seconds.
        tick_s: seconds between two calls of `tick`.
    """

    def __init__(self, stall_s: float, answer_s: float, tick_s: float = TICK_S) -> None:
        self._stall_ticks = max(1, round(stall_s / tick_s))
        self._answer_ticks = max(1, round(answer_s / tick_s))
        self._still = 0
        self._last: tuple[int, bool] = (-1, False)

    def tick(self, acked: int, *, arrived: bool) -> bool:
        """Whether the attempt should end now.

        Args:
            acked: bytes acknowledged so far.
            arrived: the whole body was acknowledged.
        """
        now = (acked, arrived)
        self._still = self._still + 1 if now == self._last else 0
        self._last = now
        return self._still >= (self._answer_ticks if arrived else self._stall_ticks)
