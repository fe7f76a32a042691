"""The limit in force: by hand, found from uploads whose TCP_INFO is given here, kept, and where it comes from."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from fakes import flying

from s3daemon.network.rate.bandwidth import Bandwidth, Limit, Origin
from s3daemon.network.rate.controller import SAMPLE_EVERY_S
from s3daemon.network.rate.pacing import SO_MAX_PACING_RATE, Pacer
from s3daemon.network.tcp import TcpInfo

IDLE = TcpInfo(
    acked=0,
    outstanding=0,
    rtt_usec=200_000,
    retransmits=0,
    sent=0,
    closed=False,
    window=40_000_000,
    least_rtt_usec=200_000,
)


class Upload:
    """One upload whose TCP_INFO is as it is told, and the limit that it is under.

    Args:
        info: at first.
    """

    def __init__(self, info: TcpInfo = IDLE) -> None:
        self.info = info
        self.sock = socket.socket()
        self.pacer = Pacer(0)
        self.bandwidth = Bandwidth(self.pacer, asyncio.get_running_loop().time, read=lambda sock: self.info)

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.pacer.end(self.sock)
        self.sock.close()

    async def begin(self) -> None:
        """Let the upload begin, half a tick ago."""
        self.pacer.begin(self.sock, 8 << 20)
        await asyncio.sleep(SAMPLE_EVERY_S / 2)

    async def tick(self, *, megabytes: float = 0.0, queued_s: float = 0.0, lost: float = 0.0) -> None:
        """Let a tick pass in which so much was sent and delivered."""
        count = round(megabytes * 1e6)
        sent, delivered = self.info.sent + count, self.info.delivered + count
        self.info = self.info._replace(
            sent=sent,
            delivered=delivered,
            sent_again=self.info.sent_again + round(lost * count),
            rtt_usec=round(200_000 + queued_s * 1e6),
        )
        await asyncio.sleep(SAMPLE_EVERY_S)

    async def fill(self) -> None:
        """Deliver 100 MB/s until a queue builds and goes again."""
        for queued in [0.0] * 12 + [0.05] * 12 + [0.0] * 36:
            await self.tick(megabytes=100 * SAMPLE_EVERY_S, queued_s=queued)

    def pacing(self) -> int:
        found: int = struct.unpack("=Q", self.sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
        return found

    def congestion(self) -> bytes:
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@flying
async def test_a_number_is_the_limit() -> None:
    """Uploads are not measured, and nothing is kept; off and 0 are none."""
    with Upload() as upload:
        upload.bandwidth.use(8_000_000)
        await upload.begin()
        await upload.fill()
        assert upload.bandwidth.limit == Limit(8_000_000, Origin.SET)
        assert upload.pacing() == 1_000_000
        upload.bandwidth.use(0)
        assert upload.bandwidth.limit == Limit(0, Origin.NONE)
        assert upload.bandwidth.found_bps == 0
        upload.bandwidth.use(8_000_000, 994_000_000)
        assert upload.bandwidth.limit == Limit(8_000_000, Origin.SET)
        assert upload.bandwidth.found_bps == 994_000_000, "what was found before is kept for later"


@flying
async def test_a_found_rate_is_put_in_force_and_kept() -> None:
    """Nothing is limited before; afterwards 99 % of what was delivered; the next process begins with it."""
    with Upload() as upload:
        upload.bandwidth.use(None)
        usual = upload.congestion()
        await upload.begin()
        assert upload.bandwidth.limit == Limit(0, Origin.NONE)
        assert upload.congestion() == (b"reno" if usual == b"cubic" else usual)
        assert 1e11 < upload.pacing() < (1 << 64) - 1, "no limit, and yet not the kernel's default, which makes bursts"
        await upload.fill()
        assert upload.bandwidth.limit.origin is Origin.FOUND
        assert abs(upload.bandwidth.limit.rate_bps / 792e6 - 1) < 0.02
        assert abs(upload.pacing() / 99e6 - 1) < 0.02
        assert upload.congestion() == usual
        found_bps = upload.bandwidth.found_bps
        assert abs(found_bps / 800e6 - 1) < 0.02
    with Upload() as after:
        after.bandwidth.use(None, found_bps)
        assert after.bandwidth.found_bps == found_bps
        assert after.bandwidth.limit.origin is Origin.KEPT
        assert abs(after.bandwidth.limit.rate_bps / 792e6 - 1) < 0.02


@pytest.mark.parametrize(
    ("lost", "window_mb", "narrowed"),
    [(0.05, 20, True), (0.05, 40, False), (0.01, 20, False), (0.0, 20, False)],
    ids=["too much lost", "a window with room all the same", "lost by chance", "nothing lost"],
)
@flying
async def test_a_window_that_an_overrun_made_narrow_is_named(lost: float, window_mb: int, narrowed: bool) -> None:
    """Its share of a way that holds 20 MB is all of it here."""
    with Upload(IDLE._replace(window=window_mb * 1_000_000)) as upload:
        upload.bandwidth.use(None)
        await upload.begin()
        for _ in range(12):
            await upload.tick(megabytes=100 * SAMPLE_EVERY_S)
        for _ in range(12):
            await upload.tick(megabytes=100 * SAMPLE_EVERY_S, lost=lost)
        for _ in range(36):
            await upload.tick(megabytes=100 * SAMPLE_EVERY_S)
        assert upload.pacer.end(upload.sock) is narrowed


@flying
async def test_a_short_path_is_left_alone() -> None:
    """On loopback nothing is measured, and sockets stay as they are."""
    with Upload(IDLE._replace(rtt_usec=900, least_rtt_usec=100)) as upload:
        upload.bandwidth.use(None)
        before = upload.pacing(), upload.congestion()
        await upload.begin()
        await upload.fill()
        assert upload.bandwidth.limit == Limit(0, Origin.NONE)
        assert before == (upload.pacing(), upload.congestion()) == ((1 << 64) - 1, before[1])


@flying
async def test_the_congestion_control_returns_with_the_end_of_an_upload() -> None:
    """Also when no rate was found."""
    with Upload() as upload:
        upload.bandwidth.use(None)
        usual = upload.congestion()
        await upload.begin()
        upload.pacer.end(upload.sock)
        assert upload.congestion() == usual


@flying
async def test_a_socket_that_was_closed_does_not_disturb_the_others() -> None:
    """Nor does it stay with the limit."""
    with Upload() as upload:

        def read(sock: socket.socket) -> TcpInfo:
            raise OSError

        upload.bandwidth.use(None)
        await upload.begin()
        closed = Bandwidth(pacer := Pacer(0), asyncio.get_running_loop().time, read=read)
        closed.use(None)
        pacer.begin(upload.sock, 8 << 20)
        await upload.tick()
        assert closed.limit == Limit(0, Origin.NONE)
