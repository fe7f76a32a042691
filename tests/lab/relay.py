"""The network between the daemon and a store, in a test's hands: it passes, stands still in mid-file, or is away.

It knows nothing of HTTP or TLS; a certificate for localhost is good at any port.
"""

import asyncio
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from lab.accepting import next_client
from lab.env import free_ports
from lab.s3 import S3Server

_CHUNK_BYTES = 1 << 16


class Relay:
    """A TCP port of 127.0.0.1 that leads to another one. Made by ``relay``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: int, target: int) -> None:
        """Describe it; nothing listens before ``open``."""
        self.standing = threading.Event()
        """Set while the daemon wants to send what ``hold`` does not let through."""
        self.passed = 0
        """Bytes that went towards the store, all connections together."""
        self._loop = loop
        self._port = port
        self._target = target
        self._listening: asyncio.Task[None] | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._quota: int | None = None
        self._changed = asyncio.Event()

    def open(self) -> None:
        """Listen, and let everything through."""
        self._do(self._open(None))

    def hold(self, after: int = 0) -> None:
        """Listen, but let no more than so many bytes towards the store from now on, all connections together."""
        self._do(self._open(after))

    def refuse(self) -> None:
        """Be away: break all connections and take no more."""
        self._do(self._refuse())

    def _do(self, action: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result(10)

    async def _open(self, quota: int | None) -> None:
        self._quota = quota
        self.standing.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        if self._listening is None:
            listener = socket.create_server(("127.0.0.1", self._port), backlog=1024)
            listener.setblocking(False)
            self._listening = asyncio.create_task(self._listen(listener))

    async def _refuse(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        # By now each link's task has begun, and closes what it was given.
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _listen(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client = await next_client(listener)
                task = asyncio.create_task(self._link(client))
                self._links.add(task)
                task.add_done_callback(self._links.discard)

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
                self.standing.set()
                await self._changed.wait()
            if held and self._quota is not None:
                self._quota -= len(data)
            if held:
                self.passed += len(data)
            await self._loop.sock_sendall(target, data)


@contextmanager
def relay(server: S3Server) -> Iterator[tuple[Relay, S3Server]]:
    """Put an open relay before a store; yields it, and the store as it is reached through it."""
    target = urlsplit(server.url)
    (port,) = free_ports(1)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay")
    thread.start()
    made = Relay(loop, port, target.port or 443)
    try:
        made.open()
        through = S3Server(
            f"{target.scheme}://{target.hostname}:{port}", server.access_key, server.secret_key, server.ca
        )
        yield made, through
    finally:
        made.refuse()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
