"""Clients of both servers that wait for their transfer; after a stop or a crash the next process answers them.

A copy of a waiting client's connection is stored with systemd, from before the transfer is durable until the client has
its reply, so that the process that finishes the transfer can answer. Its name there is `FORM.TRANSFER.RANDOM`, where
FORM is the form of the reply:

    plain, extended     of the line protocol (`server`)
    http                a whole HTTP answer, after which the connection ends (`http.server`)
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.errors import Code
from s3daemon.model.reply import Outcome, Reply
from s3daemon.network.tcp import TcpInfo
from s3daemon.spool.spool import Entry
from s3daemon.systemd.notify import Notifier


def name_for(form: str, ticket: Ticket) -> str:
    """Return a name for a connection that waits for a transfer."""
    return f"{form}.{ticket.id}.{secrets.token_hex(4)}"


def form_of(name: str) -> str:
    """Return the form of the reply to a stored connection."""
    return name.partition(".")[0]


def transfer_of(name: str) -> str:
    """Return the id of the transfer that a stored connection waits for."""
    return name.partition(".")[2].partition(".")[0]


def _has_sent(sock: socket.socket) -> bool:
    """Whether anything was ever sent over a connection; False for a Unix socket, which cannot tell."""
    return sock.family != socket.AF_UNIX and TcpInfo.of(sock).sent > 0


class WaitingClients:
    """Has clients wait, and returns the reply of each. Belongs to the running event loop.

    Args:
        settings: the wait limit.
        intake: has the transfers.
        notifier: stores the connections with systemd.
        ended: the replies to clients of transfers that had ended before this process started, by id.
        failures: those of them that had failed permanently.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        intake: Intake,
        notifier: Notifier,
        ended: Mapping[str, Reply],
        failures: Mapping[str, Entry],
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._notifier = notifier
        self._ended = ended
        self._failures = failures
        self._with_systemd: set[str] = set()  # names of the connections that are stored with systemd
        #: Done when the service leaves its clients; the result is whether no process will follow.
        self._left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> bool:
        """Whether the service leaves its clients."""
        return self._left.done()

    def leave(self, *, for_good: bool) -> None:
        """Leave the clients to the next process.

        Args:
            for_good: no process will follow, so the clients are answered that their transfers are kept.
        """
        if not self._left.done():
            self._left.set_result(for_good)

    async def wait(self, ticket: Ticket, sock: socket.socket, name: str) -> Reply | None:
        """Wait until a transfer has ended, or until it is durable and its client has waited as long as it may.

        Returns:
            the reply, in the second case `deferred`: call `forget` as soon as the client has it, or cannot get it. None
            when the service stops and systemd has the connection for the next process.

        Raises:
            SpoolError: the spool refused the transfer.
        """
        if sock.fileno() >= 0 and self._notifier.store(name, sock):
            self._with_systemd.add(name)
        try:
            events: set[asyncio.Future[Any]] = {ticket.outcome, self._left}
            limit_s = self._settings.current.wait_limit_s
            await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            # A reply must not say `kept` before that is durable, nor `stored` while a crash could bring back an older
            # request.
            await ticket.durable
            if ticket.outcome.done():
                return await ticket.outcome
            if name in self._with_systemd and self._left.done() and not self._left.result():
                return None
            return self._intake.deferral(ticket) or await ticket.outcome
        except BaseException:
            self.forget(name)
            raise
        finally:
            ticket.outcome.cancel()  # unless it is done: this client waits no longer

    def forget(self, name: str, *, is_closed: bool = False) -> None:
        """Have systemd drop its copy of a connection, so that the next process does not answer it.

        Args:
            name: of the connection.
            is_closed: by both sides, which systemd notices: it drops its copy without being told.
        """
        if name in self._with_systemd:
            self._with_systemd.discard(name)
            if not is_closed:
                self._notifier.forget(name)

    async def resume(self, name: str, sock: socket.socket) -> tuple[Reply | None, Ticket | None]:
        """Wait on behalf of a client whose connection an earlier process stored with systemd.

        Returns:
            the reply, as `wait` returns it, or None when the client has it already; and the ticket, None when the
            transfer had ended before.
        """
        self._with_systemd.add(name)
        if form_of(name) == "plain" and _has_sent(sock):  # the reply: the earlier process was killed after it
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            self.forget(name)
            return None, None
        id_ = transfer_of(name)
        if (ticket := self._intake.resume(id_)) is not None:
            return await self.wait(ticket, sock, name), ticket
        if (reply := self._ended.get(id_)) is not None:
            return reply, None
        text = "the daemon was interrupted, and it is unknown whether it had accepted or stored this transfer"
        return Reply(Outcome.FAILED, "", Code.INTERRUPTED, f"{text}; see journalctl S3DAEMON_TRANSFER_ID={id_}"), None

    def failure(self, name: str) -> Entry | None:
        """Return the transfer that a stored connection waits for, if it had failed when this process started."""
        return self._failures.get(transfer_of(name))
