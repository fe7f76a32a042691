"""The limit in force for all uploads together: set by hand, or found by a controller from the uploads in flight.

Bandwidth   one endpoint's limit and its origin; puts the controller's rate in force
_Meter      TCP_INFO of the uploads in flight, added up to samples for the controller
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from s3daemon.clock import Clock
from s3daemon.network.rate.controller import LEAST_RTT_S, SAMPLE_EVERY_S, Controller, Sample
from s3daemon.network.rate.pacing import Pacer
from s3daemon.network.tcp import TcpInfo

#: A window has room for a rate that rises if it is this many times as wide as its share of the present rate needs.
ROOMY = 1.5

Read = Callable[[socket.socket], TcpInfo]
"""Returns TCP_INFO of a socket."""


class Origin(StrEnum):
    """Where a limit comes from."""

    SET = "set"  # by S3DAEMON_BWLIMIT
    FOUND = "found"  # by this process
    KEPT = "kept"  # found by an earlier process, not yet used by this one
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Limit:
    """The most that all uploads together may send.

    Args:
        rate_bps: bit/s; 0 for no limit.
        origin: where it comes from.
    """

    rate_bps: int
    origin: Origin


class Bandwidth:
    """The limit of the uploads to one endpoint.

    Args:
        pacer: puts it in force.
        clock: monotonic seconds.
        read: returns TCP_INFO of a socket; OSError when that is closed.

    Attributes:
        found_bps: the rate of the narrowest link, bit/s, as far as this process or an earlier one found it; else 0.
    """

    def __init__(self, pacer: Pacer, clock: Clock, *, read: Read = TcpInfo.of) -> None:
        self.found_bps = 0
        self._pacer = pacer
        self._clock = clock
        self._controller: Controller | None = None
        self._meter = _Meter(read)
        self._origin = Origin.NONE
        self._ticking: asyncio.TimerHandle | None = None
        self._pacer.observe(self._begin, self._end)

    @property
    def limit(self) -> Limit:
        """The limit in force."""
        rate = self._pacer.limit_bps
        return Limit(rate, self._origin) if rate else Limit(0, Origin.NONE)

    def use(self, limit_bps: int | None, known_bps: int = 0) -> None:
        """Put a limit in force, for uploads in flight too.

        Args:
            limit_bps: bit/s, 0 for no limit; None: the controller finds it.
            known_bps: the rate that was found before, bit/s; 0: none.
        """
        self.found_bps = self.found_bps or known_bps
        if limit_bps is not None:
            self._controller, self._origin = None, Origin.SET
            self._pacer.set_limit(limit_bps)
        elif self._controller is None:
            self._controller, self._origin = Controller(self.found_bps / 8 if self.found_bps else None), Origin.KEPT
            self._put_in_force(self._controller)

    def close(self) -> None:
        """Stop."""
        if self._ticking is not None:
            self._ticking.cancel()

    def _begin(self, sock: socket.socket) -> None:
        if self._controller is None or not self._meter.begin(sock):
            return
        if self._controller.pace is None:
            self._pacer.smooth(sock)
        if self._ticking is None:
            self._ticking = asyncio.get_running_loop().call_later(SAMPLE_EVERY_S, self._tick)

    def _end(self, sock: socket.socket) -> bool:
        upload, rate = self._meter.end(sock), self._controller.capacity if self._controller else None
        return upload is not None and rate is not None and upload.is_narrowed(rate)

    def _tick(self) -> None:
        self._ticking = None
        controller = self._controller
        if controller is None:
            return
        if not self._meter.is_busy:
            controller.pause()
        elif (sample := self._meter.sample(self._clock())) is not None:
            controller.observe(sample)
            if controller.is_overrun:
                self._meter.note_overrun()
            if controller.is_used:
                self._origin = Origin.FOUND
        self._put_in_force(controller)
        if self._meter.is_busy:
            self._ticking = asyncio.get_running_loop().call_later(SAMPLE_EVERY_S, self._tick)

    def _put_in_force(self, controller: Controller) -> None:
        pace = controller.pace
        self._pacer.set_limit(0 if pace is None else max(1, round(pace * 8)))
        if controller.capacity is not None:
            self.found_bps = round(controller.capacity * 8)


@dataclass(slots=True)
class _MeasuredUpload:
    """An upload in flight, as the kernel shows it.

    Args:
        first, last: TCP_INFO at its start and now.
        overrun: how many were in flight when more was sent over all of them than the link carries; 0: it never was.
    """

    first: TcpInfo
    last: TcpInfo
    overrun: int = 0

    def is_narrowed(self, rate: float) -> bool:
        """Whether losses in an overrun made the window narrow for its share of `rate`, bytes/s."""
        if not self.overrun or self.last.sent_again == self.first.sent_again:
            return False
        return self.last.window < ROOMY * rate * self.last.least_rtt_usec / 1e6 / self.overrun


class _Meter:
    """Adds up what the uploads in flight sent, got delivered and lost. Those over a short path do not count."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._uploads: dict[socket.socket, _MeasuredUpload] = {}
        self._sent = self._delivered = self._lost = 0

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to measure."""
        return bool(self._uploads)

    def begin(self, sock: socket.socket) -> bool:
        """Measure an upload that begins; return False when its path is too short for that, or it is closed."""
        with contextlib.suppress(OSError):  # it is being closed
            info = self._read(sock)
            if info.least_rtt_usec >= LEAST_RTT_S * 1e6:
                self._uploads[sock] = _MeasuredUpload(info, info)
                return True
        return False

    def note_overrun(self) -> None:
        """Note that more is sent over the uploads in flight than the link carries."""
        for upload in self._uploads.values():
            upload.overrun = len(self._uploads)

    def end(self, sock: socket.socket) -> _MeasuredUpload | None:
        """Add up an upload for the last time: it is over. Return it, if it was measured."""
        if sock in self._uploads:
            self._count(sock)
        return self._uploads.pop(sock, None)

    def sample(self, now: float) -> Sample | None:
        """Return the next sample at monotonic time `now`; None when no upload is left to measure."""
        for sock in list(self._uploads):
            self._count(sock)
        if not self._uploads:
            return None
        infos = [upload.last for upload in self._uploads.values()]
        least = statistics.median_low(info.least_rtt_usec for info in infos)
        queued = max(0, statistics.median_low(info.rtt_usec - info.least_rtt_usec for info in infos))
        in_flight = sum(max(0, info.sent - info.delivered) for info in infos)
        packets = sum(info.mss for info in infos)
        return Sample(
            now,
            self._sent,
            self._delivered,
            self._lost,
            in_flight,
            least / 1e6,
            queued / 1e6,
            packets,
            packet=max(1, packets // len(infos)),
            windows=sum(info.window for info in infos),
        )

    def _count(self, sock: socket.socket) -> None:
        try:
            info = self._read(sock)
        except OSError:
            self._uploads.pop(sock)
            return
        upload = self._uploads[sock]
        before, upload.last = upload.last, info
        self._sent += info.sent - before.sent
        self._delivered += info.delivered - before.delivered
        self._lost += info.sent_again - before.sent_again
