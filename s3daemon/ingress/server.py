"""The server of the line protocol: clients' bytes to requests, outcomes to replies.

No client can do more than use its own slot, and that for a bounded time: its line must be complete within
`LINE_LIMIT_S`, its reply is taken within `REPLY_LIMIT_S`.

A waiting client's connection is also stored with systemd, from before its transfer is durable until it has its reply,
so that whichever process finishes the transfer can answer. Its name there is `FORM.TRANSFER.RANDOM`.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.errors import Code, RequestError, S3daemonError
from s3daemon.ingress.access import AccessControl
from s3daemon.ingress.listener import Client, Listener
from s3daemon.ingress.protocol import (
    LineReader,
    given_in,
    http_answer,
    is_extended,
    is_http,
    parse_request,
)
from s3daemon.ingress.refusals import Refusals, refusal_of
from s3daemon.model.reply import Outcome, Reply
from s3daemon.spool.spool import Entry
from s3daemon.systemd.notify import Notifier

#: A line must be complete this long after its connection was accepted, seconds.
LINE_LIMIT_S = 10.0
#: An extended connection may be idle for this long between two requests, seconds.
IDLE_LIMIT_S = 60.0
#: A client must take its reply within this time, and close within as much again, seconds.
REPLY_LIMIT_S = 5.0
_READ_BYTES = 16384


class Server:
    """Serves the line protocol.

    Args:
        settings: number of clients, wait limit.
        intake: takes the requests.
        access: decides who may ask.
        notifier: stores waiting clients' connections with systemd.
        client_notified: called with the id of a transfer whose failure a client has received.
        refusals: takes every request that is refused.
        http_addresses: where HTTP is served, for clients that speak it here.

    Attributes:
        listener: accepts the clients.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        intake: Intake,
        access: AccessControl,
        notifier: Notifier,
        client_notified: Callable[[str], None],
        *,
        refusals: Refusals,
        http_addresses: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._intake = intake
        self._access = access
        self._refusals = refusals
        self._notifier = notifier
        self._client_notified = client_notified
        self._http_answer = http_answer(http_addresses)
        self._loop = asyncio.get_running_loop()
        #: Done when the service leaves its clients; whether no process will follow.
        self._leaving: asyncio.Future[bool] = self._loop.create_future()
        self.listener = Listener(self._serve, settings.current.max_clients)

    @property
    def clients(self) -> int:
        """The number of clients that are being served."""
        return self.listener.clients

    def resume(self, clients: Mapping[str, socket.socket], failures: Mapping[str, Entry]) -> None:
        """Go on serving the clients that an earlier process left.

        Args:
            clients: their connections by the names under which they were stored.
            failures: the transfers that failed for good, by id.
        """
        for name, sock in clients.items():
            id_ = name.partition(".")[2].partition(".")[0]
            self.listener.resume(sock, partial(self._resume, name=name, id_=id_, failure=failures.get(id_)))

    async def leave(self, *, for_good: bool = False) -> None:
        """Leave the clients that still wait to the next process.

        Args:
            for_good: no process will follow: they are told that their transfers are kept.
        """
        if not self._leaving.done():
            self._leaving.set_result(for_good)
        await self.listener.drain()

    async def _serve(self, client: Client) -> None:
        """Serve the requests of a connection; in the plain form that is one."""
        reader = LineReader()
        first = extended = True
        while extended and not self._leaving.done():
            try:
                line = None  # of the request before
                line = await self._line(client, reader, LINE_LIMIT_S if first else IDLE_LIMIT_S)
                if line is not None and not is_extended(line) and not is_http(line):
                    reader.check_nothing_follows()
            except RequestError as exc:  # where the next line would begin is not known
                await self._refusals.add(refusal_of(exc, *given_in(line or reader.rest)), client.sock)
                await self._send(client.sock, Reply.failed(exc).encode(extended=reader.looks_extended))
                await self._close(client.sock)
                return
            if line is None:
                return
            if is_http(line):
                await self._send(client.sock, self._http_answer)
                await self._close(client.sock)
                return
            reply = await self._answer(line, client.sock)
            if reply is None:
                return
            first, extended = False, is_extended(line)
            await self._deliver(client.sock, reply, extended=extended)

    async def _line(self, client: Client, reader: LineReader, limit_s: float) -> bytes | None:
        """The next line, None when the client has no more.

        Raises:
            RequestError: it did not send one.
        """
        client.reading = True
        try:
            async with asyncio.timeout(limit_s):
                while (line := reader.next_line()) is None and not reader.finished:
                    data = await self._loop.sock_recv(client.sock, _READ_BYTES)
                    if data:
                        reader.feed(data)
                    else:
                        reader.end()
                return line
        except TimeoutError as exc:
            raise RequestError(Code.BAD_REQUEST, f"no complete request came within {limit_s:g} s") from exc
        finally:
            client.request_read()

    async def _answer(self, line: bytes, sock: socket.socket) -> Reply | None:
        """The reply to a request; None when the connection is left to the next process."""
        try:
            request = parse_request(line)
            ticket = await self._access.admit(sock, request, self._intake.submit)
            if request.wait:
                form = "extended" if request.extended else "plain"
                return await self._wait(ticket, sock, f"{form}.{ticket.id}.{secrets.token_hex(4)}")
            await ticket.durable
            return Reply(Outcome.ACCEPTED, ticket.id)
        except S3daemonError as exc:
            await self._refusals.add(refusal_of(exc, *given_in(line)), sock)
            return Reply.failed(exc)

    async def _wait(self, ticket: Ticket, sock: socket.socket, name: str) -> Reply | None:
        """The end of a transfer, or `deferred` once it is durable and its client has waited as long as it may.

        Returns:
            None when the service stops and systemd has the connection for the next process.
        """
        stored = self._notifier.store(name, sock)
        try:
            events: set[asyncio.Future[Any]] = {ticket.outcome, self._leaving}
            limit_s = self._settings.current.wait_limit_s
            await asyncio.wait(events, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            # A reply says `kept` only of what is durable; nor `stored` while a crash could bring back an older request.
            await ticket.durable
            if ticket.outcome.done():
                return await ticket.outcome
            if stored and self._leaving.done() and not self._leaving.result():
                stored = False
                return None
            return self._intake.deferral(ticket) or await ticket.outcome
        finally:
            ticket.outcome.cancel()  # unless it is done: this client waits no longer
            if stored:
                self._notifier.forget(name)

    async def _resume(self, client: Client, *, name: str, id_: str, failure: Entry | None) -> None:
        """Answer a client of an earlier process, and serve its further requests."""
        extended = name.startswith("extended.")
        ticket = self._intake.resume(id_)
        if ticket is not None:
            reply = await self._wait(ticket, client.sock, name)
            if reply is None:
                return
        elif failure is not None:
            reply = Reply(Outcome.FAILED, id_, failure.code, failure.text)
        else:  # not accepted when the daemon died; had it been stored, the client would have its answer
            text = f"the daemon was interrupted before it accepted this; see journalctl S3DAEMON_TRANSFER_ID={id_}"
            reply = Reply(Outcome.FAILED, "", Code.INTERRUPTED, text)
            await self._refusals.add(refusal_of(RequestError(reply.code, text)), client.sock)
        self._notifier.forget(name)
        await self._deliver(client.sock, reply, extended=extended)
        if extended:
            await self._serve(client)

    async def _deliver(self, sock: socket.socket, reply: Reply, *, extended: bool) -> None:
        await self._send(sock, reply.encode(extended=extended))
        taken = extended or await self._close(sock)
        if taken and reply.outcome is Outcome.FAILED and reply.id:
            self._client_notified(reply.id)

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(REPLY_LIMIT_S):
            await self._loop.sock_sendall(sock, data)

    async def _close(self, sock: socket.socket) -> bool:
        """Close our side first, and return whether the client closed its own after that: then it has its reply.

        `shutdown` closes our side for every descriptor of the connection, systemd's included. Reading what the client
        may still send keeps the kernel from resetting the connection before the reply was read.
        """
        try:
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(REPLY_LIMIT_S):
                while await self._loop.sock_recv(sock, _READ_BYTES):
                    pass
        except (OSError, TimeoutError):
            return False
        return True
