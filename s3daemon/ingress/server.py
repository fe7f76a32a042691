"""The listener: clients' bytes to requests, outcomes to replies.

No client can do more than hold its own slot, and that for a bounded time: its line must come whole within
`LINE_LIMIT_S`, its reply is taken within `REPLY_LIMIT_S`. There is no `asyncio.start_server` here: that would call
`listen` on systemd's socket and so shrink its backlog for good, and would take in more clients than there are slots.

A waiting client's connection is given to systemd as well, from before its transfer is durable until it has its
reply, so that whichever process finishes the transfer can answer. Its name there is `FORM.TRANSFER.RANDOM`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from s3daemon.config.settings import Settings
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.errors import Code, RequestError, S3daemonError
from s3daemon.ingress.listener import serve_clients
from s3daemon.ingress.peer import AccessControl
from s3daemon.ingress.protocol import LineReader, is_extended, parse_request
from s3daemon.model.reply import Outcome, Reply
from s3daemon.spool.spool import Entry
from s3daemon.systemd.notify import Notifier

_log = logging.getLogger(__name__)

#: A line must be complete this long after its connection was accepted, seconds.
LINE_LIMIT_S = 10.0
#: An extended connection may be silent for this long between two requests, seconds.
IDLE_LIMIT_S = 60.0
#: A client takes its reply, and closes, within this time, seconds.
REPLY_LIMIT_S = 5.0
#: When the service stops, a client that was accepted has this long to have its line there, seconds.
STOP_READ_TIMEOUT_S = 2.0
STOP_POLLS = 20
_READ_BYTES = 16384


class HandedOver(Exception):
    """This process stops; the client is another's now."""


class Server:
    """Serves the wire.

    Args:
        settings: number of clients, wait limit.
        intake: takes the requests.
        notifier: keeps waiting clients' connections.
        told: called with the id of a transfer whose failure a client has received.
    """

    def __init__(self, settings: Settings, intake: Intake, notifier: Notifier, told: Callable[[str], None]) -> None:
        self.settings = settings
        self.door = AccessControl()  #: lets everybody in, until the service says whom
        self._intake = intake
        self._notifier = notifier
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(settings.max_clients)
        self._clients = set[asyncio.Task[None]]()
        self._reading: dict[asyncio.Task[None], tuple[socket.socket, bool]] = {}  # and whether it is its first request
        self._leaving: asyncio.Future[bool] = self._loop.create_future()

    @property
    def clients(self) -> int:
        """How many are being served."""
        return len(self._clients)

    async def accept(self, listener: socket.socket) -> None:
        """Serve the clients of a listening, non-blocking socket until cancelled; the socket stays as it is."""
        await serve_clients(listener, self._slots, lambda sock: self._serve(sock, self._converse(sock)))

    def resume(self, clients: Mapping[str, socket.socket], failures: Mapping[str, Entry]) -> None:
        """Go on serving the clients that an earlier process left.

        Args:
            clients: their connections by the names under which they were kept.
            failures: the transfers that failed for good, by id.
        """
        for name, sock in clients.items():
            form, _, rest = name.partition(".")
            id_ = rest.partition(".")[0]
            self._serve(sock, self._conclude(sock, name, id_, failures.get(id_), extended=form == "extended"))

    async def stop_reading(self) -> None:
        """Let the clients that were accepted say what they have to say; those who say nothing are hung up on."""
        for _ in range(STOP_POLLS):
            if not any(first for _, first in self._reading.values()):
                break
            await asyncio.sleep(STOP_READ_TIMEOUT_S / STOP_POLLS)
        for task, (sock, _) in list(self._reading.items()):
            if not _has_spoken(sock):  # this process may have been too busy to hear it
                task.cancel()

    async def leave(self, *, for_good: bool = False) -> None:
        """Leave every client that still waits to the next process; without one, tell it that its transfer is kept."""
        if not self._leaving.done():
            self._leaving.set_result(for_good)
        if self._clients:
            await asyncio.wait(self._clients, timeout=2 * REPLY_LIMIT_S)

    def _serve(self, sock: socket.socket, conversation: Coroutine[object, object, None]) -> asyncio.Task[None]:
        sock.setblocking(False)

        async def guarded() -> None:
            try:
                await conversation
            except (OSError, TimeoutError, HandedOver) as exc:
                _log.debug("a client is gone: %r", exc)
            except Exception:
                _log.exception("a bug while serving a client")
            finally:
                sock.close()

        task = self._loop.create_task(guarded())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        return task

    async def _converse(self, sock: socket.socket) -> None:
        reader = LineReader()
        first = extended = True
        while extended and not self._leaving.done():
            try:
                line = await self._line(sock, reader, first=first)
            except RequestError as exc:  # where the next line would begin is lost
                await self._send(sock, Reply.failed(exc).encode(extended=reader.looks_extended))
                await self._close(sock)
                return
            if line is None:
                return
            extended = is_extended(line)
            reply = await self._answer(line, sock)
            await self._deliver(sock, reply, extended=extended)
            first = False

    async def _line(self, sock: socket.socket, reader: LineReader, *, first: bool) -> bytes | None:
        """The next line, None when the client has no more.

        Raises:
            RequestError: it did not send one.
        """
        task = asyncio.current_task()
        assert task is not None
        self._reading[task] = sock, first
        limit = LINE_LIMIT_S if first else IDLE_LIMIT_S
        try:
            async with asyncio.timeout(limit):
                while (line := reader.next_line()) is None and not reader.finished:
                    data = await self._loop.sock_recv(sock, _READ_BYTES)
                    if data:
                        reader.feed(data)
                    else:
                        reader.end()
                return line
        except TimeoutError as exc:
            raise RequestError(Code.BAD_REQUEST, f"no complete request came within {limit:g} s") from exc
        finally:
            del self._reading[task]

    async def _answer(self, line: bytes, sock: socket.socket) -> Reply:
        try:
            request = parse_request(line)
            ticket = await self.door.admit(sock, request, self._intake.submit)
            if request.wait:
                form = "extended" if request.extended else "plain"
                return await self._wait(ticket, sock, f"{form}.{ticket.id}.{secrets.token_hex(4)}")
            await ticket.durable
            return Reply(Outcome.ACCEPTED, ticket.id)
        except S3daemonError as exc:
            return Reply.failed(exc)

    async def _wait(self, ticket: Ticket, sock: socket.socket, name: str) -> Reply:
        """The reply once there is one: the end, or `deferred` once the transfer is durable and the client waited.

        Raises:
            _LeftError: the service stops, and the connection is kept for the next process.
        """
        kept = self._notifier.store(name, sock)
        try:
            events: set[asyncio.Future[Any]] = {ticket.outcome, self._leaving}
            await asyncio.wait(events, timeout=self.settings.wait_limit_s, return_when=asyncio.FIRST_COMPLETED)
            # Nothing is said to be kept before it is; nor to be stored while a crash could bring back what is older.
            await ticket.durable
            if kept and self._leaving.done() and not (self._leaving.result() or ticket.outcome.done()):
                kept = False
                raise HandedOver
            if not ticket.outcome.done() and (reply := self._intake.deferral(ticket)):
                return reply
            return await ticket.outcome
        finally:
            if kept:
                self._notifier.forget(name)

    async def _conclude(
        self, sock: socket.socket, name: str, id_: str, failure: Entry | None, *, extended: bool
    ) -> None:
        """Answer a client of an earlier process."""
        ticket = self._intake.resume(id_)
        if ticket is not None:
            reply = await self._wait(ticket, sock, name)
        elif failure is not None:
            reply = Reply(Outcome.FAILED, id_, failure.code, failure.text)
        else:  # not accepted when the daemon died; had it been stored, the client would have its answer
            text = f"the daemon was interrupted before it accepted this; see journalctl S3DAEMON_TRANSFER_ID={id_}"
            reply = Reply(Outcome.FAILED, "", Code.INTERRUPTED, text)
        self._notifier.forget(name)
        await self._deliver(sock, reply, extended=extended)
        if extended:
            await self._converse(sock)

    async def _deliver(self, sock: socket.socket, reply: Reply, *, extended: bool) -> None:
        await self._send(sock, reply.encode(extended=extended))
        taken = extended or await self._close(sock)
        if taken and reply.outcome is Outcome.FAILED and reply.id:
            self._told(reply.id)

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        async with asyncio.timeout(REPLY_LIMIT_S):
            await self._loop.sock_sendall(sock, data)

    async def _close(self, sock: socket.socket) -> bool:
        """Close our side first; the client has its reply when it closes its own after that. Whether it did.

        `shutdown` closes it for every descriptor of the connection, systemd's included. Reading what the client may
        still send keeps the kernel from resetting the connection before the reply was read.
        """
        try:
            sock.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(REPLY_LIMIT_S):
                while await self._loop.sock_recv(sock, _READ_BYTES):
                    pass
        except (OSError, TimeoutError):
            return False
        return True


def _has_spoken(sock: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return bool(sock.recv(1, socket.MSG_PEEK))
    return False
