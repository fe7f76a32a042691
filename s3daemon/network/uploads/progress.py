"""How far uploads have come, counted in bytes that the peer's TCP acknowledged; and when one is stalled.

    Upload      one body over one connection: an object, or a part of a large one
    Progress    all uploads of one attempt together, and their rate
    StallWatch  decides when an upload makes no progress any more

An attempt has one upload, or one for each part of a large object, several at a time; each joins the attempt's
`Progress` as its body begins and leaves as it ends. An error does not tell whether the object arrived; TCP does: while
not all of the body has left this host, it cannot have; nor, if the store closed the connection or answered, while not
all is acknowledged. If the path is silent, acknowledgements may be lost on their way back.

aiohttp's `sock_read` timeout does not cover writing, so a store that stops reading would hang a PUT for ever; and a
time limit on the whole upload would end one that is only slow. `StallWatch` looks at acknowledged bytes instead.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque

from s3daemon.network.connection import Connection
from s3daemon.network.tcp import TcpInfo, reset_on_close
from s3daemon.network.uploads.straggler import MoveHistory

#: How often an upload is looked at: fine enough to see within half a second that one is far slower than others.
TICK_S = 0.125
#: Linux hands a paced socket's data on in bursts of up to this size, bytes: at a low rate it then sends nothing for a
#: while (tcp_tso_autosize; the nearer the peer, the larger). That is not the store's doing, so it is no stall.
_BURST_BYTES = 1 << 16
#: Samples kept for the recent rate; with one each 2 s it is that of the last 4 to 6 s.
_SAMPLES = 3


class Upload:
    """What was acknowledged of one body since it began, known even after the connection is closed.

    Args:
        connection: carries it.
        size: of the body, bytes.
        progress: of the attempt that this is a part of.

    Attributes:
        connection_state: `warm` when the connection was open before, or `new`.
        address: where the body goes; empty until it begins.
        is_aborted: it was ended, whatever was acknowledged.
    """

    def __init__(self, connection: Connection, size: int, progress: Progress) -> None:
        self.connection_state = "warm" if connection.is_open else "new"
        self.size = size
        self.address = ""
        self._progress = progress
        self._connection = connection
        self._sock: socket.socket | None = None
        self._before: TcpInfo | None = None
        self.is_aborted = False

    def begin(self, transport: asyncio.BaseTransport) -> None:
        """Start to count: the body is about to be written to `transport`.

        A descriptor of our own outlives the transport's, so that the kernel can still be asked when that is closed.
        """
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._sock = socket.socket(fileno=os.dup(sock.fileno()))
            reset_on_close(self._sock)  # however it ends, a crash of ours included, nothing arrives after the end
            self._before = TcpInfo.of(self._sock)
            self._connection.pacer.begin(self._sock, self.size)
            self.address = self._connection.address
            self._progress.begin(self)

    def info(self) -> TcpInfo | None:
        """Return TCP_INFO now; None before anything was written."""
        return TcpInfo.of(self._sock) if self._sock is not None else None

    def acked(self) -> int:
        """Return the bytes acknowledged since the body began, headers and TLS's share included."""
        now = self.info()
        return now.acked - self._before.acked if now and self._before else 0

    @property
    def may_have_arrived(self) -> bool:
        """Whether as many bytes as the body has were acknowledged.

        Or all were sent, and then came a reset: that acknowledges nothing of what the peer read last, which of a small
        body can be all of it.
        """
        now = self.info()
        if now is None or self._before is None:
            return False
        acked, sent = now.acked - self._before.acked, now.sent - self._before.sent
        return acked >= self.size or (now.closed and sent >= self.size)

    @property
    def was_sent(self) -> bool:
        """Whether the whole body has left this host. If not, it cannot arrive, however long the way is.

        While bytes of a body are still acknowledged, what is not acknowledged may arrive at this moment.
        """
        now = self.info()
        return now is not None and self._before is not None and now.sent - self._before.sent >= self.size

    @property
    def was_stale(self) -> bool:
        """Whether the connection may have been closed while it was idle, if the upload fails by a close.

        It was open before, no more was acknowledged than could be in flight at first, which a close may have met on its
        way, and what was acknowledged is not all.
        """
        acked = self.acked()
        met = self.connection_state == "warm" and (self._before is None or acked <= self._before.window)
        return met and acked < self.size and not (acked and self.may_have_arrived)

    def retransmits(self, now: TcpInfo) -> int:
        """Return the segments sent again since the body began."""
        return now.retransmits - self._before.retransmits if self._before else 0

    def abort(self, transport: asyncio.BaseTransport | None) -> None:
        """End the connection with a reset, so that a server which is still at work on the request may give it up.

        Its kernel hands it what was acknowledged all the same (Linux 6), so the object can still be stored.

        Args:
            transport: that of the request to end; None when it never got as far as writing.
        """
        self.is_aborted = True
        self._connection.abort(transport)

    def close(self) -> None:
        """Close the descriptor; only now can the kernel tell the peer that the connection is over."""
        if self._sock is not None:
            self._progress.end(self)
            if self._connection.pacer.end(self._sock):
                self._connection.narrowed = True
            if not self.is_aborted and TcpInfo.of(self._sock).outstanding == 0:
                reset_on_close(self._sock, enabled=False)  # the connection may be kept, and later end without a reset
            self._sock.close()


class Progress:
    """How far one attempt has come. It never reads a clock: the time is passed in.

    Attributes:
        histories: of the bodies that were moved to another connection, by their offset in the file.
        slow_addresses: the addresses where these were too slow.
    """

    def __init__(self) -> None:
        self._uploads: list[Upload] = []
        self._arrived = 0
        self._last_address = ""
        self.histories: dict[int, MoveHistory] = {}
        self.slow_addresses: set[str] = set()
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def add_stored(self, count: int) -> None:
        """Count bytes that an earlier attempt already stored, of a file that goes in parts."""
        self._arrived += count

    def begin(self, upload: Upload) -> None:
        """Add an upload whose body is about to be sent."""
        self._uploads.append(upload)
        self._last_address = upload.address

    def end(self, upload: Upload) -> None:
        """Remove an upload before it is closed. One that did not arrive whole has to be sent again and counts 0."""
        if upload in self._uploads:
            self._uploads.remove(upload)
            self._arrived += upload.size if upload.acked() >= upload.size and not upload.is_aborted else 0

    @property
    def moves(self) -> int:
        """How often a body of this attempt was moved to another connection."""
        return sum(history.count for history in self.histories.values())

    @property
    def acked_bytes(self) -> int:
        """How much of the file is acknowledged."""
        return self._arrived + sum(min(upload.acked(), upload.size) for upload in self._uploads)

    @property
    def addresses(self) -> list[str]:
        """The addresses that it goes to now; once all is sent, the last one."""
        now = dict.fromkeys(upload.address for upload in self._uploads) or dict.fromkeys([self._last_address])
        return [address for address in now if address]

    def sample(self, now: float) -> None:
        """Remember how far it is at monotonic time `now`, for `recent_rate`."""
        self._samples.append((now, self.acked_bytes))

    def recent_rate(self, now: float) -> float | None:
        """Return bytes per second since the oldest sample; None when there is none, or no time has passed."""
        if not self._samples or now <= self._samples[0][0]:
            return None
        then, acked = self._samples[0]
        return max(0, self.acked_bytes - acked) / (now - then)

    def is_unanswered(self, size: int, now: float) -> bool:
        """Return whether all of a file of `size` bytes is acknowledged, not only just now, and has no answer yet."""
        return self.acked_bytes >= size and not self.recent_rate(now)


class StallWatch:
    """Decides when an upload makes no progress any more, from what it is given once a tick.

    Ticks are counted, not seconds, so a process that was stopped for an hour finds nothing stalled when it resumes.

    Args:
        stall_s: no byte was acknowledged for this long although some are outstanding, seconds; beyond the time that
            this host itself held them back to keep to its limit.
        answer_s: everything was acknowledged and no answer came for this long, seconds.
        tick_s: seconds between two calls of `tick`.
    """

    def __init__(self, stall_s: float, answer_s: float, tick_s: float = TICK_S) -> None:
        self._stall_ticks = max(1, round(stall_s / tick_s))
        self._answer_ticks = max(1, round(answer_s / tick_s))
        self._tick_s = tick_s
        self._unchanged_ticks = 0
        self._burst_ticks = 0  # what pacing may have added since the last change
        self._last: tuple[int, bool] = (-1, False)

    def tick(self, acked: int, *, arrived: bool, pacing_limit: int = 0) -> bool:
        """Return whether the attempt should end now.

        Args:
            acked: bytes acknowledged so far.
            arrived: the whole body was acknowledged.
            pacing_limit: the rate to which this host limits the upload, bytes/s; 0 for none.
        """
        now = (acked, arrived)
        if now != self._last:
            self._unchanged_ticks = self._burst_ticks = 0
        else:
            self._unchanged_ticks += 1
        if pacing_limit:
            self._burst_ticks = max(self._burst_ticks, round(_BURST_BYTES / pacing_limit / self._tick_s))
        self._last = now
        return self._unchanged_ticks >= (self._answer_ticks if arrived else self._stall_ticks + self._burst_ticks)
