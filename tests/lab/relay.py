"""The network between the daemon and a store, controlled by a test: it forwards, stops within a file, or is down.

It knows nothing of HTTP or TLS; a certificate for localhost is valid at any port.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from lab.accepting import loop_in_thread, serve_each
from lab.env import free_ports
from lab.s3 import S3Server

_CHUNK_BYTES = 1 << 16


class Relay:
    """A TCP port of 127.0.0.1 that forwards to another one. Made by ``relay``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, target: int) -> None:
        """Prepare it; it listens from ``open`` on."""
        self.blocked = threading.Event()
        """Set while the daemon has sent what ``hold`` does not let through."""
        self.passed = 0
        """Bytes forwarded to the store, over all connections."""
        self._loop = loop
        self._port = port
        self._target = target
        self._listening: asyncio.Task[None] | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._quota: int | None = None
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Listen, and forward everything."""
        self._do(self._open(None))

    def hold(self, after: int = 0) -> None:
        """Listen, but forward at most so many bytes to the store from now on, over all connections."""
        self._do(self._open(after))

    def refuse(self) -> None:
        """Stop to listen, and close all connections."""
        self._do(self._refuse())

    def _do(self, action: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _open(self, quota: int | None) -> None:
        self._quota = quota
        self.blocked.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        if self._listening is None:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
            self._listening = asyncio.create_task(serve_each(listener, self._link, self._links))

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        # By now each link's task has begun, and will close its sockets.
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _link(self, client: socket.socket) -> None:
        with client, socket.socket() as store, suppress(OSError):
            for sock in (client, store):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(store, ("127.0.0.1", self._target))
            ways = {
                asyncio.create_task(self._pass(client, store, held=True)),
                asyncio.create_task(self._pass(store, client, held=False)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, source: socket.socket, target: socket.socket, *, held: bool) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK_BYTES):
            while held and self._quota is not None and self._quota < len(data):
                self.blocked.set()
                await self._changed.wait()
            if held and self._quota is not None:
                self._quota -= len(data)
            if held:
                self.passed += len(data)
            await self._loop.sock_sendall(target, data)


@contextmanager
def relay(server: S3Server) -> Iterator[tuple[Relay, S3Server]]:
    """Run an open relay in front of a store; yield it, and the store as it is reached through it."""
    target = urlsplit(server.url)
    (port,) = free_ports(1)
    with loop_in_thread("relay") as loop:
        made = Relay(loop, port, target.port or 443)
        try:
            made.open()
            through = S3Server(
                f"{target.scheme}://{target.hostname}:{port}", server.access_key, server.secret_key, server.ca
            )
            yield made, through
        finally:
            made.refuse()
