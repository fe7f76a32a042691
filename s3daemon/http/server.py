"""The HTTP server: aiohttp's protocol over sockets of systemd's, with one request a connection.

No client can do more than use its own slot, and that for a bounded time: its request must come whole within
`READ_LIMIT_S`, a handler's time is its own, and the answer is taken within `REPLY_LIMIT_S`. One request a connection
makes that simple, and costs a local client nothing: a slot never waits for what a client may still want to send, and
a client that comes while the service restarts waits in the backlog, not on a connection that dies.

No connection is kept for the next process, as the line protocol's are: half of an HTTP exchange cannot be continued.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web

from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.errors import one_line
from s3daemon.http.guard import HEADERS, page_policy, refusal
from s3daemon.http.upload import MAX_FORM, Answer, Form
from s3daemon.ingress.listener import Client, Listener

_log = logging.getLogger(__name__)
#: aiohttp's own, to which it writes every client that does not speak HTTP as an error of ours, with a traceback.
_aiohttp_log = logging.getLogger(f"{__name__}.aiohttp")

#: A request must be there, headers and body, this long after its connection was accepted, seconds.
READ_LIMIT_S = 10.0
#: A client must take its answer within this time, seconds.
REPLY_LIMIT_S = 5.0
#: Refusals of requests of other sites' pages are logged this often at most, seconds.
WARN_EVERY_S = 60.0

#: Answers GET and HEAD.
Page = Callable[[web.BaseRequest], Awaitable[web.Response]]
#: Answers POST.
Action = Callable[[Form], Awaitable[Answer]]


class _Exchange:
    """The state of one connection: one request and its answer."""

    def __init__(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        self.client = client
        #: The answer is made; the result is whether the client was still connected.
        self.answered: asyncio.Future[bool] = loop.create_future()
        #: The connection is over; the result is whether it ended without an error.
        self.closed: asyncio.Future[bool] = loop.create_future()
        #: To be called once the client has its answer.
        self.taken: Callable[[], None] = lambda: None

    async def reaches(self, stage: asyncio.Future[Any], limit_s: float) -> bool:
        """Wait for a stage, at most `limit_s` seconds and only while connected; return whether it was reached."""
        await asyncio.wait({stage, self.closed}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return stage.done()


class _Protocols(web.Server):
    """Makes aiohttp's protocol for each connection, and reports when the connection is over."""

    def __init__(self, handler: Page, lost: Callable[[asyncio.BaseProtocol, BaseException | None], None]) -> None:
        super().__init__(
            handler, request_factory=self._request, access_log=None, logger=_aiohttp_log, auto_decompress=False
        )
        self._lost = lost

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_FORM)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._lost(handler, exc)


class HttpServer:
    """Serves HTTP.

    Args:
        settings: number of clients, names of the server.
        pages: the handlers of GET and HEAD by path.
        actions: the handlers of POST by path.
        clock: monotonic seconds.

    Attributes:
        listener: accepts the clients.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        pages: Mapping[str, Page],
        actions: Mapping[str, Action],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pages, self._actions = pages, actions
        self._clock = clock
        self._warned_at = -math.inf
        self._protocols = _Protocols(self._handle, self._connection_lost)
        self._exchanges: dict[asyncio.BaseProtocol, _Exchange] = {}
        self.listener = Listener(self._serve, settings.current.max_clients)
        _aiohttp_log.disabled = True

    async def _serve(self, client: Client) -> None:
        """Serve one exchange. However it ends, its connection ends too."""
        protocol, exchange = self._protocols(), _Exchange(client)
        self._exchanges[protocol] = exchange
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, client.sock)
            if await exchange.reaches(client.first_read, READ_LIMIT_S):
                connected = await exchange.answered  # a client that is gone keeps its slot until its request is done
                if connected and await exchange.reaches(exchange.closed, REPLY_LIMIT_S) and exchange.closed.result():
                    exchange.taken()
        finally:
            del self._exchanges[protocol]
            if isinstance(protocol.transport, asyncio.WriteTransport):
                protocol.transport.abort()

    def _connection_lost(self, protocol: asyncio.BaseProtocol, exc: BaseException | None) -> None:
        if (exchange := self._exchanges.get(protocol)) and not exchange.closed.done():
            exchange.closed.set_result(exc is None)

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if (exchange := self._exchanges.get(request.protocol)) is None:
            raise ConnectionResetError
        try:
            response = await self._respond(request, exchange)
        except OSError:  # the client disconnected within its request
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
        exchange.client.request_read()
        if not exchange.answered.done():
            exchange.answered.set_result(not exchange.closed.done())
        return response

    async def _respond(self, request: web.BaseRequest, exchange: _Exchange) -> web.Response:
        if refused := self._refusal(request, exchange.client.sock):
            return refused
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            text = f"BadRequest: a form has at most {MAX_FORM} bytes; a file's path is wanted, not its content"
            return _rendered(Answer(HTTPStatus.BAD_REQUEST, text))
        except web.RequestPayloadError as exc:
            return _rendered(Answer(HTTPStatus.BAD_REQUEST, f"BadRequest: {exc}"))
        request.protocol.close()  # takes no further request
        exchange.client.request_read()
        if request.method != "POST":
            return await self._pages[request.path](request)
        content_type = request.headers.get("Content-Type", "")
        answer = await self._actions[request.path](Form(content_type, body, exchange.client.sock))
        exchange.taken = answer.taken
        return _rendered(answer)

    def _refusal(self, request: web.BaseRequest, sock: socket.socket) -> web.Response | None:
        """The response to what is not served: another site's requests, an unknown path, a method that it has not."""
        method, path = request.method, request.path
        if reason := refusal(request.headers, _own_address(sock), self._settings.current.http_names):
            self._warn(f"{method} {path}", reason)
            return _rendered(Answer(HTTPStatus.FORBIDDEN, f"NotAllowed: {reason}"))
        methods = ["GET", "HEAD"] if path in self._pages else ["POST"] if path in self._actions else []
        if method in methods:
            return None
        status = HTTPStatus.METHOD_NOT_ALLOWED if methods else HTTPStatus.NOT_FOUND
        response = _rendered(Answer(status, f"BadRequest: there is no {method} {one_line(path, 100)}"))
        if methods:
            response.headers["Allow"] = ", ".join(methods)
        return response

    def _warn(self, what: str, reason: str) -> None:
        """Log a refusal, but not each of a page that asks a thousand times a second."""
        if self._clock() - self._warned_at >= WARN_EVERY_S:
            self._warned_at = self._clock()
            _log.warning("refused %s over HTTP: %s", one_line(what, 100), reason)


def _rendered(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status, body=answer.encode(), content_type="application/json", headers=answer.headers()
    )


def _own_address(sock: socket.socket) -> str:
    """Our end of a connection; empty for a Unix socket."""
    name = sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else ""
