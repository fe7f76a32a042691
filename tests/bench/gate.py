"""A receiver that fails in the middle of an upload: in front of the store, at the far end, in a thread of its own.

It passes everything on until `arm` has it spoil one connection: the next that has carried a megabyte. It does not
parse HTTP or TLS.
"""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum

from lab.accepting import next_client
from lab.env import free_ports

_SPOILED_AFTER_BYTES, _CHUNK_BYTES = 1 << 20, 1 << 18
#: Enough for one of 25 uploads over 200 ms, and less than a file: a receiver that stops reading is soon full.
_RECEIVE_BUFFER_BYTES = 2 << 20
_SO_ATTACH_FILTER = 26


class Fault(Enum):
    """How a receiver may fail."""

    STOPS_READING = "stops reading"
    DIES = "dies without a FIN"
    NO_ANSWER = "takes all, answers nothing"
    SILENT = "accepts, sends nothing"


class Gate:
    """Made by ``gate``."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        """Serve `listener`, and connect its clients to `target`."""
        self.spoiled = threading.Event()
        self.victim = 0
        """The near side's port of the connection that was spoiled."""
        self._listener = listener
        self._target = target
        self._fault: Fault | None = None
        self._turn = 0
        self._links: dict[asyncio.Task[None], socket.socket] = {}

    def arm(self, fault: Fault) -> None:
        """Spoil the next connection that carries a megabyte; or, to be silent, the next that is opened."""
        self.spoiled.clear()
        self._turn += 1
        self._fault = fault

    def _strikes(self, client: socket.socket) -> Fault | None:
        fault, self._fault = self._fault, None
        if fault is not None:
            self.victim = client.getpeername()[1]
            self.spoiled.set()
        return fault

    async def serve(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                client = await next_client(self._listener)
                task = loop.create_task(self._link(client))
                self._links[task] = client
                task.add_done_callback(self._links.pop)
        finally:
            for task in self._links:
                task.cancel()
            await asyncio.gather(*self._links, return_exceptions=True)

    def reset_one(self) -> None:
        """Reset the connection that was opened first; call it in the gate's loop."""
        task, client = next(iter(self._links.items()))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        task.cancel()

    async def _link(self, client: socket.socket) -> None:
        with client, socket.socket() as store, suppress(OSError):
            if self._fault is Fault.SILENT and self._strikes(client):
                await asyncio.Event().wait()
            loop = asyncio.get_running_loop()
            client.setblocking(False)
            store.setblocking(False)
            await loop.sock_connect(store, self._target)
            back = asyncio.create_task(self._pass(store, client))
            forth = asyncio.create_task(self._carry(client, store, back))
            try:
                await asyncio.wait({back, forth}, return_when=asyncio.FIRST_COMPLETED)
                if not forth.done() and back.cancelled():
                    await asyncio.wait({forth})
            finally:
                for way in (back, forth):
                    way.cancel()
                await asyncio.gather(back, forth, return_exceptions=True)

    async def _pass(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, _CHUNK_BYTES):
            await loop.sock_sendall(target, data)

    async def _carry(self, client: socket.socket, store: socket.socket, back: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        turn = carried = 0
        while data := await loop.sock_recv(client, _CHUNK_BYTES):
            if turn != self._turn:
                turn, carried = self._turn, 0
            carried += len(data)
            if carried >= _SPOILED_AFTER_BYTES and self._fault is not Fault.SILENT:
                match self._strikes(client):
                    case Fault.NO_ANSWER:
                        back.cancel()
                    case Fault.DIES:
                        _drop_incoming(client)
                        await asyncio.Event().wait()
                    case Fault.STOPS_READING:
                        await asyncio.Event().wait()
            await loop.sock_sendall(store, data)


def _drop_incoming(sock: socket.socket) -> None:
    """Have the kernel drop every segment that comes for it: to the peer this host is unreachable."""
    nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # the filter "return 0"
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


@contextmanager
def gate(host: str, port: int) -> Iterator[tuple[Gate, int, asyncio.AbstractEventLoop]]:
    """A gate before the store at `host` and `port`, on the calling thread's side; also its port and its loop."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        listener.bind((host, free_ports(1)[0]))
        listener.listen(128)
        listener.setblocking(False)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="gate")
        thread.start()
        made = Gate(listener, (host, port))
        serving = asyncio.run_coroutine_threadsafe(made.serve(), loop)
        try:
            yield made, listener.getsockname()[1], loop
        finally:
            serving.cancel()
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0.2), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
