"""The server of the line protocol: turns clients' bytes into requests, and outcomes into replies.

No client can do more than use its own slot, and that for a bounded time: its line must be complete within
`LINE_LIMIT_S`, its reply is taken within `REPLY_LIMIT_S`.

From a connection no more is taken than the request that is served next: what else a client has sent stays in the
kernel. So a process that is killed while a client waits (`waiting`) takes no further request of that client with it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from s3daemon.delivery.intake import Intake
from s3daemon.errors import Code, RequestError, S3daemonError
from s3daemon.ingress.access import AccessControl
from s3daemon.ingress.listener import (
    Client,
    Listener,
    close_after_reply,
    until_readable,
)
from s3daemon.ingress.protocol import (
    LineReader,
    given_in,
    http_answer,
    http_fault,
    is_extended,
    is_http,
    parse_request,
    question_in,
)
from s3daemon.ingress.questions import Questions
from s3daemon.ingress.refusals import Refusals, describe_refusal
from s3daemon.ingress.waiting import WaitingClients, form_of, name_for
from s3daemon.model.reply import Outcome, Reply

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
        max_clients: how many are served at a time.
        intake: takes the requests.
        access: decides who may ask.
        waiting: has them wait for their transfers.
        client_notified: called with the id of a transfer whose failure a client has received.
        refusals: takes every request that is refused.
        questions: answers the questions about tags.
        http_addresses: where HTTP is served, for clients that speak it here.

    Attributes:
        listener: accepts the clients.
    """

    def __init__(
        self,
        max_clients: int,
        intake: Intake,
        access: AccessControl,
        waiting: WaitingClients,
        client_notified: Callable[[str], None],
        *,
        refusals: Refusals,
        questions: Questions,
        http_addresses: Sequence[str] = (),
    ) -> None:
        self._intake = intake
        self._access = access
        self._refusals = refusals
        self._questions = questions
        self._waiting = waiting
        self._client_notified = client_notified
        self._http_answer = http_answer(http_addresses)
        self._loop = asyncio.get_running_loop()
        self.listener = Listener(self._serve, max_clients)

    def resume(self, name: str, sock: socket.socket) -> None:
        """Go on serving a client that an earlier process left.

        Args:
            name: under which its connection was stored.
            sock: the connection.
        """
        self.listener.resume(sock, partial(self._resume, name=name))

    async def _serve(self, client: Client, *, first: bool = True) -> None:
        """Serve the requests of a connection, the first one or further ones; in the plain form that is one."""
        reader = LineReader()
        extended = keeps = True
        while keeps and not self._waiting.left:
            try:
                line = None  # of the request before
                line = await self._line(client, reader, first=first)
                if line is not None and not is_extended(line) and not is_http(line):
                    with suppress(OSError):  # nothing more has come, or the client is gone
                        reader.feed(client.sock.recv(_READ_BYTES))
                    reader.check_nothing_follows()
            except RequestError as exc:  # where the next line would begin is not known
                allowed = await self._access.allows(client.sock)
                refusal = describe_refusal(exc, *given_in(line or reader.rest))
                await self._refusals.add(refusal, client.sock, allowed=allowed)
                await self._send(client.sock, Reply.failed(exc).encode(extended=is_extended(reader.rest)))
                await close_after_reply(client.sock)
                return
            if line is None:
                return
            if is_http(line):
                if fault := http_fault(line):
                    await self._refusals.add(describe_refusal(fault), client.sock, allowed=False)
                await self._send(client.sock, self._http_answer)
                await close_after_reply(client.sock)
                return
            reply, name = await self._answer(line, client.sock)
            if reply is None:
                return
            first, extended = False, is_extended(line)
            await self._deliver(client.sock, reply, name, extended=extended)
            keeps = extended and (self.listener.may_keep or client.has_unread_data)
        if extended:  # a further request may be there already; a reset would take the last reply with it
            await close_after_reply(client.sock)

    async def _line(self, client: Client, reader: LineReader, *, first: bool) -> bytes | None:
        """The next line, None when the client has no more, or after the first one was idle for as long as it may be.

        Raises:
            RequestError: it did not send one.
        """
        client.reading = True
        limit_s = LINE_LIMIT_S if first else IDLE_LIMIT_S
        try:
            async with asyncio.timeout(limit_s):
                while (line := reader.next_line()) is None and not reader.finished:
                    data = await _receive_line(client.sock)
                    if data:
                        reader.feed(data)
                    else:
                        reader.end()
                return line
        except TimeoutError as exc:
            if not first and not reader.rest:
                return None
            raise RequestError(Code.BAD_REQUEST, f"no complete request came within {limit_s:g} s") from exc
        finally:
            client.request_read()

    async def _answer(self, line: bytes, sock: socket.socket) -> tuple[Reply | None, str]:
        """The reply to a request, None when the connection is left to the next process; and its name with systemd."""
        allowed = False
        try:
            await self._access.check(sock)
            allowed = True
            if question := question_in(line):
                return await self._questions.about_tag(question), ""
            request = parse_request(line)
            ticket = await self._intake.submit(request)
            if request.wait:
                form = "extended" if request.extended else "plain"
                name = name_for(form, ticket)
                return await self._waiting.wait(ticket, sock, name), name
            await ticket.durable
            return Reply(Outcome.ACCEPTED, ticket.id), ""
        except S3daemonError as exc:
            await self._refusals.add(describe_refusal(exc, *given_in(line)), sock, allowed=allowed)
            return Reply.failed(exc), ""

    async def _resume(self, client: Client, *, name: str) -> None:
        """Answer a client of an earlier process, and serve its further requests."""
        reply, _ = await self._waiting.resume(name, client.sock)
        if reply is None:
            return
        extended = form_of(name) == "extended"
        await self._deliver(client.sock, reply, name, extended=extended)
        if extended:
            await self._serve(client, first=False)

    async def _deliver(self, sock: socket.socket, reply: Reply, name: str, *, extended: bool) -> None:
        """Send a reply.

        After a kill between two steps here, the client of a plain request, whose connection ends with the reply, still
        gets it; the client of an extended request gets none rather than two.
        """
        data = reply.encode(extended=extended)
        if extended:
            self._waiting.forget(name)
        taken = False
        try:
            await self._send(sock, data)
            taken = extended or await close_after_reply(sock)
        finally:
            self._waiting.forget(name, is_closed=taken)
        if taken and reply.outcome is Outcome.FAILED and reply.id:
            self._client_notified(reply.id)

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(REPLY_LIMIT_S):
            await self._loop.sock_sendall(sock, data)


async def _receive_line(sock: socket.socket) -> bytes:
    """Receive a line, or the part of one that is there, and nothing behind it; empty at the end of the input."""
    while True:
        try:
            found = sock.recv(_READ_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            await until_readable(sock)
        else:
            return sock.recv(found.find(b"\n") + 1 or len(found)) if found else b""
