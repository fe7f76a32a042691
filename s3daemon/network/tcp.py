"""A TCP connection as the kernel sees it: socket options, TCP_INFO, and how to reset it."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from typing import Any, NamedTuple

#: Idle for this long, the kernel asks whether the peer is alive; six unanswered probes end the connection.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 15, 5, 6
#: The kernel takes more of a body only while less than this is unsent, bytes. Without this limit each image fills its
#: socket's buffer as it begins, some megabytes, of which a narrow window lets 14 kB out in the first round trip; the
#: event loop then encrypts for 0.2 s while the other sidecars' answers wait. Less costs more system calls.
UNSENT_BYTES = 256 * 1024
#: Linux paces a connection once it has sent this many packets with data, net/ipv4/tcp_output.c,
#: tcp_update_skb_after_send; all packets before leave at once.
UNPACED_PACKETS = 10

#: struct tcp_info, include/uapi/linux/tcp.h, as far as `TcpInfo` has it: state 0, snd_mss 16, unacked 24, sacked 28,
#: rtt 68, snd_cwnd 80, total_retrans 100, max_pacing_rate 112, bytes_acked 120, notsent_bytes 144, min_rtt 148,
#: data_segs_out 156, bytes_sent 200, bytes_retrans 208. The structure only ever grows at its end.
_TCP_INFO = struct.Struct("=B15xI4xII36xI8xI16xI8xQQ16xII4xI40xQQ")
#: The least round-trip time before any was measured, net/ipv4/tcp.c, tcp_init_sock.
_NO_RTT = (1 << 32) - 1
#: A pacing rate from here on is none: without a limit all bits are set, of 32 or of 64.
_NO_LIMIT = (1 << 32) - 1
#: A connection's state after a reset, include/net/tcp_states.h.
_TCP_CLOSE = 7


class TcpInfo(NamedTuple):
    """What the kernel says of a connection.

    Args:
        acked: bytes that the peer acknowledged since it was opened.
        outstanding: packets not acknowledged plus bytes not sent; 0 when the peer has all that the kernel was given.
        rtt_usec: smoothed round-trip time, microseconds.
        retransmits: packets sent again since it was opened.
        sent: bytes that were sent at least once since it was opened.
        closed: the connection was reset, by either side, or timed out.
        window: bytes that the congestion window allows in flight.
        packets: packets with data, sent since it was opened.
        least_rtt_usec: the least round-trip time of the last five minutes, microseconds; 0 when none was measured.
        pacing_limit: SO_MAX_PACING_RATE, bytes/s; 0 without one.
        sent_again: bytes of packets that were sent again.
        delivered: bytes that arrived: what is acknowledged, and what was received after a gap.
        mss: bytes of a full packet's data.
    """

    acked: int
    outstanding: int
    rtt_usec: int
    retransmits: int
    sent: int
    closed: bool
    window: int = 0
    packets: int = 0
    least_rtt_usec: int = 0
    pacing_limit: int = 0
    sent_again: int = 0
    delivered: int = 0
    mss: int = 0

    @classmethod
    def of(cls, sock: socket.socket) -> TcpInfo:
        """Read TCP_INFO.

        Raises:
            OSError: the socket is closed.
        """
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size).ljust(_TCP_INFO.size, b"\0")
        (
            state, mss, unacked, sacked, rtt, cwnd, retransmits, pacing_limit, acked, notsent, least_rtt, packets,
            sent, sent_again,
        ) = _TCP_INFO.unpack(raw)  # fmt: skip
        return cls(
            acked=acked,
            outstanding=unacked + notsent,
            rtt_usec=rtt,
            retransmits=retransmits,
            sent=sent - sent_again,
            closed=state == _TCP_CLOSE,
            window=cwnd * mss,
            packets=packets,
            least_rtt_usec=0 if least_rtt == _NO_RTT else least_rtt,
            pacing_limit=0 if pacing_limit >= _NO_LIMIT else pacing_limit,
            sent_again=sent_again,
            delivered=acked + sacked * mss,
            mss=mss,
        )


class StoreSocket(socket.socket):
    """A socket that fails to send only once all that it received was read.

    A server may refuse a request that it has not read, and close: its answer arrives, then a reset, and a send fails
    while the answer waits to be read. asyncio drops what waits when a send fails. Here the send that fails would have
    blocked instead, and asyncio, which reads before it writes, tries it again after it has read. If nothing was read
    since the last try, nobody reads any more, and it fails.
    """

    _unread = 0

    def send(self, *args: Any) -> int:
        """Send as `socket.send` does."""
        return self._reading_first(super().send, *args)

    def sendmsg(self, *args: Any) -> int:
        """Send as `socket.sendmsg` does; what asyncio calls from Python 3.12 on."""
        return self._reading_first(super().sendmsg, *args)

    def _reading_first(self, send: Callable[..., int], *args: Any) -> int:
        try:
            return send(*args)
        except ConnectionError as exc:
            unread = struct.unpack("i", fcntl.ioctl(self, termios.FIONREAD, bytes(4)))[0]
            if unread in {0, self._unread}:
                raise
            self._unread = unread
            raise BlockingIOError(exc.errno, exc.strerror) from exc


def prepare(sock: socket.socket, *, user_timeout_s: float) -> None:
    """Set the options that every connection to the store needs, before it connects.

    SO_SNDBUF is left alone on purpose: setting it turns off the kernel's autotuning, without which a long fat network
    cannot be filled.

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
        (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES),
    ):
        sock.setsockopt(level, option, value)


def choose_congestion(sock: socket.socket, name: str) -> str:
    """Have `sock` use the congestion control `name`, or the system's when that is empty.

    Returns:
        Why the kernel refuses and what to do, one line; empty when it does not.
    """
    try:
        if name:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
    except PermissionError:
        return f"congestion control {name}: add it to net.ipv4.tcp_allowed_congestion_control; the system's is used"
    except OSError:
        return f"congestion control {name} is not loaded: modprobe tcp_{name}; the system's is used"
    return ""


def reset_on_close(sock: socket.socket, *, enabled: bool = True) -> None:
    """Choose how a close ends the connection.

    Args:
        sock: connected.
        enabled: with a reset, and what was not acknowledged is dropped; else the kernel goes on delivering it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", enabled, 0))


def tcp_transport_of(transport: asyncio.Transport) -> asyncio.Transport:
    """Return the TCP transport below a TLS one, or `transport` itself: the one whose `abort` ends the connection.

    Python 3.11.2, Debian 12's, loses it when a TLS transport is closed twice, which aiohttp does, and can then neither
    abort nor report that it is closed; so look it up while it is there. asyncio has no public name for it: this is the
    one place that uses `_ssl_protocol` and `_transport`, tried with Python 3.11.2. Where they are missing the caller
    gets the TLS transport, whose `abort` does the same in Python versions without that bug.
    """
    found = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return found if isinstance(found, asyncio.Transport) else transport
