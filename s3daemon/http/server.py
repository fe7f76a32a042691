"""The HTTP server: aiohttp's protocol over sockets that systemd passes.

No client can do more than use its own slot, and that for a bounded time: its request must come whole within
`READ_LIMIT_S`, a handler's time is its own, and the answer is taken within `REPLY_LIMIT_S`. A form that does not come
whole goes to its handler as well, which refuses it as it refuses others: counted and logged. What has no whole header,
so that nothing tells whether it is a form, is only logged. A client may keep its connection for another request, but
only while half of the slots are free, and for `IDLE_LIMIT_S`: it never keeps others out. A stop closes the connections
that wait for a request.

A client that waits for its transfer is left to the next process, as the line protocol's are: its request has been read
whole, and the answer ends the connection, so nothing else of the exchange needs to be known. Other connections end.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion11, StreamReader, web

from s3daemon.clock import Clock
from s3daemon.config.settings import SettingsHolder
from s3daemon.errors import Code, RequestError, one_line
from s3daemon.http.guard import HEADERS, page_policy, refusal
from s3daemon.http.upload import MAX_FORM, Answer, Form, message_of
from s3daemon.ingress.listener import Client, Listener, close_after_reply
from s3daemon.journal import LogLimit

_log = logging.getLogger(__name__)
#: aiohttp's own, to which it writes every client that does not speak HTTP as an error of ours, with a traceback.
_aiohttp_log = logging.getLogger(f"{__name__}.aiohttp")

#: A request must be there, headers and body, this long after its connection was accepted or it began, seconds.
READ_LIMIT_S = 10.0
#: A client must take its answer within this time, seconds.
REPLY_LIMIT_S = 5.0
#: A connection may be idle for this long between two requests, seconds; as in the line protocol.
IDLE_LIMIT_S = 60.0
#: Refusals of requests of other sites' pages, of forms to paths that take none, and of what is not HTTP are each logged
#: this often at most, seconds.
WARN_EVERY_S = 60.0
#: The methods of a form. Clients that update rather than create use the others; all mean the same here.
FORM_METHODS = ("POST", "PUT", "PATCH")

#: Answers GET and HEAD.
Page = Callable[[web.BaseRequest], Awaitable[web.Response]]
#: Answers `FORM_METHODS`; with None the client is left to the next process.
Action = Callable[[Form], Awaitable[Answer | None]]


class _ClientConnection:
    """The state of one connection: whether a request of it is read or handled, and for how long it may stay so.

    Args:
        client: the connection.
        warn: called with the reason when no request could be read from what came.
    """

    def __init__(self, client: Client, warn: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._warn = warn
        #: A part of a header has come.
        self._in_header = False
        self.client = client
        #: Done when the connection is over.
        self.closed: asyncio.Future[None] = self._loop.create_future()
        #: Set while no request is being handled.
        self.idle = asyncio.Event()
        self.idle.set()
        #: The client has shut down its sending side, or is gone.
        self.sends_no_more = False
        #: Of the request that is read now.
        self.body: StreamReader | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, transport: asyncio.Transport) -> None:
        """Note that the connection can be used; the first request is awaited."""
        transport.set_write_buffer_limits(0)  # so that an answer counts as written when the kernel has all of it
        self._transport = transport
        self.limit(READ_LIMIT_S)

    def over(self) -> None:
        """Note that the connection is over."""
        self.limit(None)
        if self._in_header:
            self.not_http("its header did not come whole")
        if not self.closed.done():
            self.closed.set_result(None)

    def limit(self, seconds: float | None) -> None:
        """Abort the connection after `seconds`, in place of any limit set before; None sets none."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self.abort)

    def take_limit(self) -> float:
        """Lift the limit, which the caller keeps to instead; return when it is over, in the loop's time."""
        until = self._loop.time() if self._timer is None else self._timer.when()
        self.limit(None)
        return until

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def not_http(self, reason: str) -> None:
        """Log that no request can be read from what came."""
        self._in_header = False
        self._warn(reason)

    def ended(self) -> None:
        """Note that the client sends no more: a body that is being read ends early."""
        self.sends_no_more = True
        if self.body is not None and not self.body.is_eof():
            self.body.set_exception(ConnectionResetError())

    def begin(self) -> None:
        """Note that a request has begun to come. A stop no longer disconnects it, unless it is the first one.

        Its time begins once, with its first byte; that of the first request began when the client was accepted.
        """
        if self.client.reading and self.idle.is_set():  # else it is the rest of a body that is not read
            self._in_header = True
        if self.client.reading and self.client.first_read.done():
            self.client.request_read()
            self.limit(READ_LIMIT_S)

    def request_read(self) -> None:
        """Note that a request has been read, or that no more of it will be."""
        self.client.request_read()
        self.limit(None)

    def await_request(self) -> None:
        """Wait for another request."""
        self.client.reading = True
        self.limit(IDLE_LIMIT_S)

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Handle a request in the block; the connection keeps its slot meanwhile, even when its client is gone."""
        self.begin()
        self._in_header = False
        self.idle.clear()
        try:
            yield
        finally:
            self.idle.set()


class _Protocol(web.RequestHandler):
    """aiohttp's protocol, which tells the connection what happens to it."""

    def __init__(self, manager: web.Server, connection: _ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(manager, loop=loop, access_log=None, logger=_aiohttp_log, auto_decompress=False)  # type: ignore[arg-type]  # None is for "no log"
        self.connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if isinstance(transport, asyncio.Transport):
            self.connection.opened(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.connection.over()

    async def start(self) -> None:
        """Serve the requests, and end the connection: aiohttp's leaves it open if it is closed between two of them."""
        try:
            await super().start()
        finally:
            if self.transport is not None:
                self.transport.close()

    def data_received(self, data: bytes) -> None:
        if data.strip():  # some clients end a body by a line break that is no part of it
            self.connection.begin()
        super().data_received(data)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Refuse what is not HTTP in the form of all answers; aiohttp's own would show its version."""
        if status != HTTPStatus.BAD_REQUEST:
            return super().handle_error(request, status, exc, message)
        reason = "it is not HTTP, or its header is too long"
        self.connection.not_http(reason)
        response = _last(_rendered(Answer(HTTPStatus.BAD_REQUEST, f"bad request: {reason}")))
        response.headers.update(HEADERS)
        return response

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's ends the connection
        """Let a client that shuts down its sending side have the answer to its request; then the connection ends.

        It may also have closed the connection: nothing tells, so its answer does not count as taken.
        """
        self.connection.ended()
        self.close()
        return True


def _make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_FORM)


class HttpServer:
    """Serves HTTP.

    Args:
        settings: names of the server.
        max_clients: how many are served at a time.
        pages: the handlers of GET and HEAD by path; `/*` at its end stands for any name.
        actions: the handlers of `FORM_METHODS` by path.
        clock: monotonic seconds.

    Attributes:
        listener: accepts the clients.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        max_clients: int,
        pages: Mapping[str, Page],
        actions: Mapping[str, Action],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._pages, self._actions = pages, actions
        self._clock = clock
        self._warnings = LogLimit(1, WARN_EVERY_S)
        self._manager = web.Server(self._handle, request_factory=_make_request)
        self.listener = Listener(self._serve, max_clients)
        _aiohttp_log.disabled = True

    def resume(self, sock: socket.socket, answer: Callable[[], Awaitable[Answer | None]]) -> None:
        """Answer a client of an earlier process, and end its connection.

        Args:
            sock: the connection.
            answer: returns what it gets; None when it is left to the next process.
        """
        self.listener.resume(sock, partial(self._resume, answer=answer))

    async def _resume(self, client: Client, *, answer: Callable[[], Awaitable[Answer | None]]) -> None:
        given = await answer()
        if given is None:
            return
        response = _last(_rendered(given))
        headers = {**response.headers, **HEADERS, "Content-Length": str(response.content_length), "Connection": "close"}
        status = f"HTTP/1.1 {given.status.value} {given.status.phrase}"
        head = "\r\n".join([status, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            async with asyncio.timeout(REPLY_LIMIT_S):
                await asyncio.get_running_loop().sock_sendall(client.sock, head.encode() + given.encode())
            taken = await close_after_reply(client.sock)
        finally:
            given.sent()
        if taken:
            given.taken()

    async def _serve(self, client: Client) -> None:
        """Serve a connection to its end."""
        connection = _ClientConnection(client, partial(self._warn, "header", "a request"))
        protocol = _Protocol(self._manager, connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, client.sock)
            await connection.closed
            await connection.idle.wait()  # a client that is gone keeps its slot until its request is done
        finally:
            connection.limit(None)
            connection.abort()

    async def _handle(self, request: web.BaseRequest) -> web.Response:
        if not isinstance(request.protocol, _Protocol):
            raise TypeError(request.protocol)
        connection = request.protocol.connection
        with connection.handling():
            found = await self._response(request, connection)
            if found is None:
                connection.abort()  # for us alone: systemd has it too
                return web.Response()
            response, answer = found
            if response.content_type == "text/html":
                response.headers["Content-Security-Policy"] = page_policy(response.text or "")
            for name, value in HEADERS.items():
                response.headers.setdefault(name, value)
            if not self.listener.may_keep:
                response.force_close()
            connection.request_read()
            connection.limit(REPLY_LIMIT_S)
            try:
                await response.prepare(request)
                await response.write_eof()
            except OSError:
                return response  # the client is gone
            finally:
                answer.sent()
            if not (connection.closed.done() or connection.sends_no_more):
                answer.taken()
                if response.keep_alive:
                    connection.await_request()
        return response

    async def _response(
        self, request: web.BaseRequest, connection: _ClientConnection
    ) -> tuple[web.Response, Answer] | None:
        """The response, and the answer that it renders. It ends the connection if the body was not read.

        None: the client is left to the next process.
        """
        if refused := self._refusal(request, connection.client.sock):
            return _last(refused), _PAGE
        try:
            return await self._served(request, connection)
        except Exception as exc:
            _log.exception("a bug while answering %s", one_line(request.path, 100))
            text = f"Internal: a bug in the daemon: {type(exc).__name__}; its journal says where"
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, text)
        return _last(_rendered(answer)), answer

    async def _served(
        self, request: web.BaseRequest, connection: _ClientConnection
    ) -> tuple[web.Response, Answer] | None:
        """The response of a page or an action, and the answer that it renders."""
        body, fault = b"", None
        try:
            body = await self._read(request, connection)
        except RequestError as exc:
            fault = exc
        connection.request_read()
        answer: Answer | None
        if request.method in FORM_METHODS:
            form = Form(request.headers.get("Content-Type", ""), body, connection.client.sock, fault)
            answer = await self._actions[request.path](form)
        elif fault is None:
            page = self._page(request.path)
            assert page, "see _refusal"
            return await page(request), _PAGE
        else:
            answer = Answer(HTTPStatus.BAD_REQUEST, message_of(fault))
        if answer is None:
            return None
        return _rendered(answer) if fault is None else _last(_rendered(answer)), answer

    async def _read(self, request: web.BaseRequest, connection: _ClientConnection) -> bytes:
        """The body. A client that asks first whether it may send it, as curl does with a large form, may.

        Raises:
            RequestError: `BadRequest`: the body is too long, compressed, not as HTTP has it, or not there in time.
        """
        asks = request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11
        if asks and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.body = request.content
        if connection.sends_no_more:
            connection.ended()
        try:
            async with asyncio.timeout_at(connection.take_limit()):
                body = await request.read()
            encoding = request.headers.get("Content-Encoding", "")
            if not body or encoding.lower() in ("", "identity"):
                return body
            text = f"the form is encoded (Content-Encoding: {one_line(encoding, 100)}); send it as it is"
        except web.HTTPRequestEntityTooLarge:
            text = f"a form has at most {MAX_FORM} bytes; send a file's path, not its content"
        except web.RequestPayloadError as exc:
            text = str(exc)
        except TimeoutError:
            text = f"no complete request came within {READ_LIMIT_S:g} s"
        except OSError:  # the client disconnected within its request
            text = "the request ended early"
        finally:
            connection.body = None
        raise RequestError(Code.BAD_REQUEST, text)

    def _refusal(self, request: web.BaseRequest, sock: socket.socket) -> web.Response | None:
        """The response to what is not served: another site's requests, an unknown path, a method that it has not."""
        method, path = request.method, request.path
        reads = method in ("GET", "HEAD")
        if reason := refusal(request.headers, _own_address(sock), self._settings.current.http_names, reads=reads):
            self._warn("site", f"{method} {path}", reason)
            return _rendered(Answer(HTTPStatus.FORBIDDEN, f"NotAllowed: {reason}"))
        methods = ("GET", "HEAD") if self._page(path) else FORM_METHODS if path in self._actions else ()
        if method in methods:
            return None
        status = HTTPStatus.METHOD_NOT_ALLOWED if methods else HTTPStatus.NOT_FOUND
        reason = f"there is no {method} {one_line(path, 100)}"
        if method in FORM_METHODS:  # perhaps of a hook, whose file is not delivered
            reason += f"; forms go to {' and '.join(self._actions)}"
            self._warn("form", f"{method} {path}", reason)
        response = _rendered(Answer(status, f"BadRequest: {reason}"))
        if methods:
            response.headers["Allow"] = ", ".join(methods)
        return response

    def _page(self, path: str) -> Page | None:
        return self._pages.get(path) or self._pages.get(path.rpartition("/")[0] + "/*")

    def _warn(self, kind: str, what: str, reason: str) -> None:
        """Log a refusal of a kind, but not each of a page that asks a thousand times a second."""
        skipped = self._warnings.admit(kind, self._clock())
        if skipped is not None:
            more = f" ({skipped} more like this not logged)" if skipped else ""
            _log.warning("refused %s over HTTP: %s%s", one_line(what, 100), reason, more)


#: Stands for a page's answer: nothing is to be called once the client has it.
_PAGE = Answer(HTTPStatus.OK, "")


def _last(response: web.Response) -> web.Response:
    """The response, which ends its connection."""
    response.force_close()
    return response


def _rendered(answer: Answer) -> web.Response:
    return web.Response(
        status=answer.status, body=answer.encode(), content_type="application/json", headers=answer.headers()
    )


def _own_address(sock: socket.socket) -> str:
    """Our end of a connection; empty for a Unix socket."""
    name = sock.getsockname()
    return str(name[0]) if isinstance(name, tuple) else ""
