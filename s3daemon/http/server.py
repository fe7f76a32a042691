"""The HTTP door: aiohttp's server over sockets of systemd's, with one request a connection.

No client can do more than hold its own slot, and that for a bounded time: its request must come whole within
`READ_LIMIT_S`, a handler's time is its own, and the answer is taken within `REPLY_LIMIT_S`. One request a connection
makes that simple, and costs a local client nothing: a slot never waits for what a client may still want to say, and
whoever comes while the service restarts waits in the backlog, not on a connection that dies.

What this module does not do: it keeps no connection for the next process, as the wire's server does. Half of an HTTP
exchange cannot be gone on with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from aiohttp import web

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.errors import one_line
from s3daemon.http.form import MAX_FORM, Answer, Form
from s3daemon.http.guard import HEADERS, page_policy, refusal
from s3daemon.ingress.listener import serve_clients

_log = logging.getLogger(__name__)
#: aiohttp's own, which tells of every client that speaks no HTTP as of an error of ours, with a traceback.
_garbage = logging.getLogger(f"{__name__}.garbage")

#: A request must be there, headers and body, this long after its connection was accepted, seconds.
READ_LIMIT_S = 10.0
#: A client takes its answer within this time, seconds.
REPLY_LIMIT_S = 5.0
#: When the service stops, a client that was accepted has this long to have its request there, seconds.
STOP_READ_TIMEOUT_S = 2.0
STOP_POLLS = 20
#: Refusals of pages are told in the log this often at most, seconds.
WARN_EVERY_S = 60.0

T = TypeVar("T")
#: Answers GET and HEAD.
Page = Callable[[web.BaseRequest], Awaitable[web.Response]]
#: Answers POST.
Action = Callable[[Form], Awaitable[Answer]]


class _Client:
    """One connection, and how far it has come."""

    def __init__(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.sock = sock
        self.heard: asyncio.Future[None] = loop.create_future()  #: its request is there, whole or refused
        self.answered: asyncio.Future[bool] = loop.create_future()  #: the answer is made; whether it was still there
        self.gone: asyncio.Future[bool] = loop.create_future()  #: the connection is over; whether in good order
        self.taken: Callable[[], None] = lambda: None

    async def reach(self, point: asyncio.Future[Any], limit_s: float) -> bool:
        """Wait for a point on its way, no longer than `limit_s` seconds and not once it is gone; whether it came."""
        await asyncio.wait({point, self.gone}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return point.done()


class _Protocols(web.Server):
    """Makes aiohttp's protocol for each connection, and tells when that is over."""

    def __init__(self, handler: Page, lost: Callable[[asyncio.BaseProtocol, BaseException | None], None]) -> None:
        super().__init__(
            handler, request_factory=self._request, access_log=None, logger=_garbage, auto_decompress=False
        )
        self._lost = lost

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_FORM)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._lost(handler, exc)


class HttpDoor:
    """Serves HTTP.

    Args:
        settings: number of clients, names of the door.
        pages: what answers GET and HEAD, by path. May grow.
        actions: what answers POST, by path.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: Settings,
        pages: Mapping[str, Page],
        actions: Mapping[str, Action],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.settings = settings
        self._pages, self._actions = pages, actions
        self._clock = clock
        self._warned_at = -math.inf
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(settings.max_clients)
        self._protocols = _Protocols(self._handle, self._lost)
        self._clients: dict[asyncio.BaseProtocol, _Client] = {}
        self._reading: dict[_Client, asyncio.Task[None]] = {}
        self._tasks = set[asyncio.Task[None]]()
        _garbage.disabled = True

    @property
    def clients(self) -> int:
        """How many are being served."""
        return len(self._tasks)

    async def accept(self, listener: socket.socket) -> None:
        """Serve the clients of a listening, non-blocking socket until cancelled; the socket stays as it is."""
        await serve_clients(listener, self._slots, self._serve)

    async def stop_reading(self) -> None:
        """Let the clients that were accepted say what they have to say; those who say nothing are hung up on."""
        for _ in range(STOP_POLLS):
            if not self._reading:
                break
            await asyncio.sleep(STOP_READ_TIMEOUT_S / STOP_POLLS)
        for client, task in list(self._reading.items()):
            if not client.heard.done():
                task.cancel()

    async def leave(self) -> None:
        """See all clients out; those that wait for something must have been told to wait no longer."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * REPLY_LIMIT_S)

    def _serve(self, sock: socket.socket) -> asyncio.Task[None]:
        sock.setblocking(False)
        task = self._loop.create_task(self._attend(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _attend(self, sock: socket.socket) -> None:
        """See a client through. However that ends, its connection ends too."""
        protocol, client = self._protocols(), _Client(sock)
        self._clients[protocol] = client
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock)
            if await self._heard(client):
                there = await client.answered  # one that is gone keeps its slot until its request is dealt with
                if there and await client.reach(client.gone, REPLY_LIMIT_S) and client.gone.result():
                    client.taken()
        except OSError as exc:
            _log.debug("a client is gone: %r", exc)
        finally:
            del self._clients[protocol]
            if isinstance(protocol.transport, asyncio.WriteTransport):
                protocol.transport.abort()
            sock.close()

    async def _heard(self, client: _Client) -> bool:
        task = asyncio.current_task()
        assert task is not None
        self._reading[client] = task
        try:
            return await client.reach(client.heard, READ_LIMIT_S)
        finally:
            del self._reading[client]

    def _lost(self, protocol: asyncio.BaseProtocol, exc: BaseException | None) -> None:
        if (client := self._clients.get(protocol)) and not client.gone.done():
            client.gone.set_result(exc is None)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if (client := self._clients.get(request.protocol)) is None:
            raise ConnectionResetError
        try:
            response = await self._respond(request, client)
        except OSError:  # it went away in the midst of its request
            response = _rendered(Answer(HTTPStatus.BAD_REQUEST, "BadRequest: the request ended early"))
        except Exception as exc:
            _log.exception("a bug while answering %s", one_line(request.path, 100))
            text = f"Internal: a bug in the daemon: {type(exc).__name__}; its journal says where"
            response = _rendered(Answer(HTTPStatus.INTERNAL_SERVER_ERROR, text))
        if response.content_type == "text/html":
            response.headers["Content-Security-Policy"] = page_policy(response.text or "")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.force_close()
        _pass(client.heard, None)
        _pass(client.answered, not client.gone.done())
        return response

    async def _respond(self, request: web.BaseRequest, client: _Client) -> web.Response:
        method, path = request.method, request.path
        if why := refusal(request.headers, _address(client.sock), self.settings.http_names):
            self._warn(f"{method} {path}", why)
            return _rendered(Answer(HTTPStatus.FORBIDDEN, f"NotAllowed: {why}"))
        methods = ["GET", "HEAD"] if path in self._pages else ["POST"] if path in self._actions else []
        if method not in methods:
            status = HTTPStatus.METHOD_NOT_ALLOWED if methods else HTTPStatus.NOT_FOUND
            response = _rendered(Answer(status, f"BadRequest: there is no {method} {one_line(path, 100)}"))
            if methods:
                response.headers["Allow"] = ", ".join(methods)
            return response
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            text = f"BadRequest: a form has at most {MAX_FORM} bytes; a file's path is wanted, not its content"
            return _rendered(Answer(HTTPStatus.BAD_REQUEST, text))
        except web.RequestPayloadError as exc:
            return _rendered(Answer(HTTPStatus.BAD_REQUEST, f"BadRequest: {exc}"))
        request.protocol.close()  # takes no further request
        _pass(client.heard, None)
        if method != "POST":
            return await self._pages[path](request)
        answer = await self._actions[path](Form(request.headers.get("Content-Type", ""), body, client.sock))
        client.taken = answer.taken
        return _rendered(answer)

    def _warn(self, what: str, why: str) -> None:
        """A page may ask a thousand times a second."""
        if self._clock() - self._warned_at >= WARN_EVERY_S:
            self._warned_at = self._clock()
            _log.warning("refused %s over HTTP: %s", one_line(what, 100), why)


def _pass(point: asyncio.Future[T], result: T) -> None:
    if not point.done():
        point.set_result(result)


def _rendered(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status, body=answer.encode(), content_type="application/json", headers=answer.headers()
    )


def _address(sock: socket.socket) -> str:
    """Our own end of a connection; empty for a Unix socket."""
    name = sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else ""
