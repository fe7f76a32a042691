"""Clients that wait for their transfer's end, of both servers; a stop or a crash leaves them to the next process.

A waiting client's connection is also stored with systemd, from before its transfer is durable until it has its reply,
so that whichever process finishes the transfer can answer. Its name there is `FORM.TRANSFER.RANDOM`; the form says in
which one the reply is written:

    plain, extended     the line protocol's (`server`)
    http                an answer to a form, complete in itself; the connection then ends (`http.server`)
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Collection, Mapping
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
    """Waits for them. Belongs to the running event loop.

    Args:
        settings: wait limit.
        intake: has the transfers.
        notifier: stores the connections with systemd.
        failures: the transfers that had failed for good when this process started, by id.
        stored: ids of transfers that were stored before it started.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        intake: Intake,
        notifier: Notifier,
        failures: Mapping[str, Entry] | None = None,
        stored: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._notifier = notifier
        self._failures = failures or {}
        self._ended = stored
        self._stored: set[str] = set()  # names of connections with systemd
        #: Done when the service leaves its clients; whether no process will follow.
        self._left: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> bool:
        """Whether the service leaves its clients."""
        return self._left.done()

    def leave(self, *, for_good: bool) -> None:
        """Leave the clients to the next process.

        Args:
            for_good: no process will follow: they are told that their transfers are kept.
        """
        if not self._left.done():
            self._left.set_result(for_good)

    async def wait(self, ticket: Ticket, sock: socket.socket, name: str) -> Reply | None:
        """Return the end of a transfer, or `deferred` once it is durable and its client has waited as long as it may.

        Returns:
            the reply: call `forget` as soon as the client has it, or cannot get it. None when the service stops and
            systemd has the connection for the next process.

        Raises:
            SpoolError: the spool refused the transfer.
        """
        if sock.fileno() >= 0 and self._notifier.store(name, sock):
            self._stored.add(name)
        try:
            events: set[asyncio.Future[Any]] = {ticket.outcome, self._left}
            limit_s = self._settings.current.wait_limit_s
            await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            # A reply says `kept` only of what is durable; nor `stored` while a crash could bring back an older request.
            await ticket.durable
            if ticket.outcome.done():
                return await ticket.outcome
            if name in self._stored and self._left.done() and not self._left.result():
                return None
            return self._intake.deferral(ticket) or await ticket.outcome
        except BaseException:
            self.forget(name)
            raise
        finally:
            ticket.outcome.cancel()  # unless it is done: this client waits no longer

    def forget(self, name: str) -> None:
        """Have systemd forget a connection: the next process shall not answer it."""
        if name in self._stored:
            self._stored.discard(name)
            self._notifier.forget(name)

    async def resume(self, name: str, sock: socket.socket) -> tuple[Reply | None, Ticket | None]:
        """Go on for a client of an earlier process.

        Returns:
            the reply, as `wait` returns it, None also when the client has it; and the ticket, None when the transfer
            was over already.
        """
        self._stored.add(name)
        if form_of(name) == "plain" and _has_sent(sock):  # its reply; the process before was killed right then
            with suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            self.forget(name)
            return None, None
        id_ = transfer_of(name)
        ticket, failure = self._intake.resume(id_), self._failures.get(id_)
        if ticket is not None:
            return await self.wait(ticket, sock, name), ticket
        if failure is not None:
            return Reply(Outcome.FAILED, id_, failure.code, failure.text), None
        if id_ in self._ended:
            return Reply(Outcome.STORED, id_), None
        text = "the daemon was interrupted, and it is not known here whether it had accepted or stored this"
        return Reply(Outcome.FAILED, "", Code.INTERRUPTED, f"{text}; see journalctl S3DAEMON_TRANSFER_ID={id_}"), None

    def failure(self, name: str) -> Entry | None:
        """Return the transfer that a stored connection waits for, if it had failed when this process started."""
        return self._failures.get(transfer_of(name))
