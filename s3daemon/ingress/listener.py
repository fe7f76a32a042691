"""Accepts the clients of listening sockets while there are slots, tracks them, and lets them finish at a stop.

Every server, of the line protocol, of HTTP and of commands, has a `Listener` of its own, which may accept from several
sockets. Not `loop.create_server`, for three reasons: it accepts every client at once, while those without a slot must
wait in the backlog; closing it while clients come loses those that it has accepted but not begun to serve;
and without a free descriptor it logs each failed attempt with its traceback, a thousand a second and more, since what
it schedules to try later adds up (cpython#151615). (It also calls `listen` with its own backlog, 100 by default, and so
shrinks that of systemd's socket for good; a large `backlog=` would avoid this.) Not `loop.sock_accept` either:
cancelled in the moment in which it has accepted a client, it drops that client, and some restarts would disconnect one.
Here nothing can be cancelled between `accept` and the task that serves the client.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from s3daemon.journal import LogLimit

_log = logging.getLogger(__name__)

#: After accept failed, for example for want of descriptors, seconds until it is tried again.
ACCEPT_PAUSE_S = 0.1
#: After this many clients at once the event loop serves what it has: else the first of a burst's bodies would leave as
#: late as its last.
ACCEPTS_A_TURN = 4
#: The least seconds between two warnings of that.
WARN_EVERY_S = 60.0
#: When the service stops, an accepted client may take this long to finish sending its first request, seconds.
STOP_READ_TIMEOUT_S = 2.0
#: A client must close within this time after it could take its last reply, seconds.
CLOSE_LIMIT_S = 5.0
_READ_BYTES = 16384
#: At the end all clients have this long to take their replies and close, seconds; each has 5 s for either.
DRAIN_TIMEOUT_S = 10.0


class Client:
    """An accepted connection, and whether a request of it is being read.

    Args:
        sock: the connection. It is made not to block, and closed when the client has been served.

    Attributes:
        reading: a request is awaited or being read; a stop disconnects the client if none comes.
        first_read: done once the first request has been read, well or badly formed.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.reading = True
        self.first_read: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def request_read(self) -> None:
        """Note that a request has been read, or that none will be."""
        self.reading = False
        if not self.first_read.done():
            self.first_read.set_result(None)

    @property
    def has_unread_data(self) -> bool:
        """Whether the kernel holds data of the client: a busy process may not have come to read it."""
        with suppress(OSError):
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        return False


#: Serves one client until it is over. An OSError, such as TimeoutError, means that the client is gone.
Serve = Callable[[Client], Coroutine[Any, Any, None]]


class Listener:
    """Accepts clients and runs a task for each.

    Args:
        serve: serves a client.
        max_clients: the number of slots; a client has one from before it is accepted until its task is over.
    """

    def __init__(self, serve: Serve, max_clients: int) -> None:
        self._serve = serve
        self._slots = _Slots(max_clients)
        self._tasks: dict[Client, asyncio.Task[None]] = {}
        self._stopping = False
        self._warnings = LogLimit(1, WARN_EVERY_S)

    @property
    def clients(self) -> int:
        """The number of clients that are being served."""
        return len(self._tasks)

    @property
    def may_keep(self) -> bool:
        """Whether a client may stay connected for a further request: half of the slots are free, and no stop began."""
        return not self._stopping and self._slots.half_free

    def resize(self, max_clients: int) -> None:
        """Change the number of slots. When it shrinks, no client is disconnected; new ones wait until it is kept."""
        self._slots.resize(max_clients)

    async def accept(self, listening: socket.socket) -> None:
        """Serve the clients of a listening, non-blocking socket until cancelled; the socket stays as it is."""
        accepted = 0
        while True:
            await self._slots.acquire()
            try:
                client = Client(listening.accept()[0])
            except BlockingIOError:  # no client; another socket may use the slot meanwhile
                accepted = 0
                self._slots.release()
                await until_readable(listening)
            except OSError as exc:  # out of descriptors, or the client is gone already
                self._slots.release()
                if self._warnings.admit("accept", asyncio.get_running_loop().time()) is not None:
                    _log.warning("cannot accept a client, which has to wait: %s", exc.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)
            else:
                self._start(client, self._serve).add_done_callback(lambda _: self._slots.release())
                accepted += 1
                if accepted % ACCEPTS_A_TURN == 0:
                    await asyncio.sleep(0)

    def resume(self, sock: socket.socket, serve: Serve) -> None:
        """Serve a client that an earlier process accepted. It takes no slot: it must not wait behind new clients."""
        client = Client(sock)
        client.request_read()
        self._start(client, serve)

    async def stop_reading(self) -> None:
        """Let the clients that were accepted finish their first request; disconnect those that send none."""
        self._stopping = True
        if unread := [client.first_read for client in self._tasks if not client.first_read.done()]:
            await asyncio.wait(unread, timeout=STOP_READ_TIMEOUT_S)
        for client, task in list(self._tasks.items()):
            if client.reading and not client.has_unread_data:
                task.cancel()

    async def drain(self) -> None:
        """Wait until all clients have been served; a client that waits for its transfer must have been released."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=DRAIN_TIMEOUT_S)

    async def disconnect(self) -> None:
        """End the service of all clients at once, whatever is being answered."""
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, client: Client, serve: Serve) -> asyncio.Task[None]:
        async def serve_it() -> None:
            try:
                await serve(client)
            except OSError as exc:
                _log.debug("a client is gone: %r", exc)
            except Exception:
                _log.exception("a bug while serving a client")

        task = self._tasks[client] = asyncio.get_running_loop().create_task(serve_it())
        # A task that is cancelled before its first step runs no `finally`, but this.
        task.add_done_callback(partial(self._end, client))
        return task

    def _end(self, client: Client, _: asyncio.Task[None]) -> None:
        del self._tasks[client]
        client.request_read()
        client.sock.close()


class _Slots:
    """A semaphore whose size can be changed. Who waits longest comes first, so no socket is starved by another."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._in_use = 0
        self._changed = asyncio.Event()

    @property
    def half_free(self) -> bool:
        return self._in_use * 2 <= self._size

    async def acquire(self) -> None:
        while self._in_use >= self._size:
            self._changed.clear()
            await self._changed.wait()
        self._in_use += 1

    def release(self) -> None:
        self._in_use -= 1
        self._changed.set()

    def resize(self, size: int) -> None:
        self._size = size
        self._changed.set()


async def until_readable(sock: socket.socket) -> None:
    """Wait until there is something to accept or to receive."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(sock, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(sock)


async def close_after_reply(sock: socket.socket) -> bool:
    """Close our side first, and return whether the client closed its own after that: then it has its reply.

    `shutdown` closes our side for every descriptor of the connection, systemd's included. Reading what the client may
    still send keeps the kernel from resetting the connection before the reply was read.
    """
    loop = asyncio.get_running_loop()
    try:
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(CLOSE_LIMIT_S):
            while await loop.sock_recv(sock, _READ_BYTES):
                pass
    except OSError:
        return False
    return True


def name_of(listening: socket.socket) -> str:
    """The address of a listening socket as text."""
    address = listening.getsockname()
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
