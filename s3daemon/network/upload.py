"""The TCP side of one upload: what was acknowledged since its body began, even after the connection is closed.

What the error was does not tell whether the object arrived; TCP does: while fewer bytes than the body has were
acknowledged, it cannot have.
"""

from __future__ import annotations

import asyncio
import os
import socket

from s3daemon.network.connection import Connection
from s3daemon.network.progress import Progress
from s3daemon.network.tcp import TcpInfo, forget_unsent


class Upload:
    """The TCP side of one attempt: what was acknowledged since its body began, even after the connection is closed.

    Args:
        lane: the connection.
        size: of the body, bytes.
        progress: of the attempt that this is a part of.
    """

    def __init__(self, lane: Connection, size: int, progress: Progress | None = None) -> None:
        self.connection = "warm" if lane.is_open else "new"
        self.size = size
        self.receiver = ""  #: where the body goes, once it began
        self._progress = Progress() if progress is None else progress
        self._lane = lane
        self._witness: socket.socket | None = None
        self._before: TcpInfo | None = None

    def begin(self, transport: asyncio.BaseTransport) -> None:
        """The body is about to be written: keep a descriptor of our own, which outlives the transport's."""
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self._witness = socket.socket(fileno=os.dup(sock.fileno()))
            forget_unsent(self._witness)  # however it ends, a crash of ours included, nothing arrives after the end
            self._before = TcpInfo.of(self._witness)
            self._lane.pacer.begin(self._witness, self.size)
            self.receiver = self._lane.receiver
            self._progress.begin(self)

    def info(self) -> TcpInfo | None:
        """TCP_INFO now; None before anything was written."""
        return TcpInfo.of(self._witness) if self._witness is not None else None

    def acked(self) -> int:
        """Bytes acknowledged since the body began, headers and TLS's share included."""
        now = self.info()
        return now.acked - self._before.acked if now and self._before else 0

    @property
    def may_have_arrived(self) -> bool:
        """As many bytes as the body has were acknowledged.

        Or some were, all were sent, and then came a reset: that acknowledges nothing of what the peer read last.
        """
        now = self.info()
        if now is None or self._before is None:
            return False
        acked, sent = now.acked - self._before.acked, now.sent - self._before.sent
        return acked >= self.size or (now.over and acked > 0 and sent >= self.size)

    def retransmits(self, now: TcpInfo) -> int:
        """Segments sent again since the body began."""
        return now.retransmits - self._before.retransmits if self._before else 0

    def close(self) -> None:
        """Let go of the descriptor; only now can the kernel tell the peer that the connection is over."""
        if self._witness is not None:
            self._progress.end(self)
            self._lane.pacer.end(self._witness)
            if TcpInfo.of(self._witness).due == 0:
                forget_unsent(self._witness, forget=False)  # a connection that is kept may end politely one day
            self._witness.close()
