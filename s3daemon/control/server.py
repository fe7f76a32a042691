"""The control socket: how the operator's commands reach the running daemon.

    request = a JSON object, LF     {"command": "queue", ...arguments}; at most 1 MiB
    answer  = a JSON object, LF     {"ok": true, ...} or {"ok": false, "code": ..., "text": ..., "faults": [...]}

A connection serves one request after another. The commands and what they answer:

    queue   {"failed": bool}                    -> {"transfers": [a `rows.Row`, ...]}
    retry   {"ids": [...]} or {"all": true}     -> {"ids": [the ones that were found]}
    drop    {"ids": [...]}                      -> {"ids": [the ones that were found]}
    status  {}                                  -> a `status.Status`
    reload  {"environ": {...}, "invocation": id} -> {"applied": [variables], "restart": [variables that need a restart]}

The socket `control` lies in the runtime directory, or in the state directory of a daemon without one. It has mode 0600,
and the peer is checked too: root or the service's own user. A reload carries secrets: no request is ever logged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from itertools import islice
from pathlib import Path

from s3daemon.control.client import MAX_REQUEST
from s3daemon.errors import Code, S3daemonError, SettingsError, StartError, one_line
from s3daemon.ingress.listener import Client, Listener
from s3daemon.ingress.peer import peer_uid

_log = logging.getLogger(__name__)

#: A client sends its request at once; a command that hangs must not keep its connection for ever.
_IDLE_S = 30.0
#: Commands that are answered at a time; `systemd.descriptors` reserves their descriptors. Further ones wait.
MAX_COMMANDS = 16
#: Commands that may wait, as asyncio's servers have it.
_BACKLOG = 100
#: Rows that are encoded in one go: about 2 ms in which the event loop does nothing else.
_SLICE = 256

Handler = Callable[[Mapping[str, object]], Awaitable[Mapping[str, object]]]


class ControlServer:
    """Listens on the control socket.

    Args:
        path: the socket; the spool's lock has made sure that no other daemon uses it.
        handlers: what each command does. A value of an answer that is an iterator is sent as an array, in slices
            between which the event loop runs.
        peer: gives the user at the other end.
        idle_s: the longest wait for a request, and for the client to take more of the answer.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        *,
        peer: Callable[[socket.socket], int] = peer_uid,
        idle_s: float = _IDLE_S,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._peer = peer
        self._idle_s = idle_s
        self._listener = Listener(self._serve, MAX_COMMANDS)
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self, run: Callable[[Coroutine[object, object, None]], asyncio.Task[None]] = asyncio.create_task) -> None:
        """Listen; a socket that a crashed daemon left behind is replaced.

        Args:
            run: runs the accepting of clients in a task.

        Raises:
            StartError: `ControlSocket`, the path cannot be used.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            if self._path.is_socket():
                self._path.unlink()
            sock.bind(os.fspath(self._path))
            # Before listen(): until then nobody can connect, so the mode was never too wide.
            self._path.chmod(0o600)
            sock.listen(_BACKLOG)
        except OSError as exc:
            sock.close()
            raise StartError(Code.CONTROL_SOCKET, f"cannot listen on {self._path}: {exc.strerror or exc}") from exc
        self._listening, self._accepting = sock, run(self._listener.accept(sock))

    async def close(self) -> None:
        """Stop listening, end what is being answered, remove the socket; to be called before the spool is unlocked."""
        if self._listening is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listening.close()
        self._listening = None
        await self._listener.disconnect()
        self._path.unlink(missing_ok=True)

    async def _serve(self, client: Client) -> None:
        uid = self._peer(client.sock)
        reader, writer = await asyncio.open_unix_connection(sock=client.sock, limit=MAX_REQUEST)
        try:
            if uid in (0, os.geteuid()):
                while line := await self._line(reader):
                    await self._send(writer, await self._answer(line))
            else:
                await self._send(
                    writer, _refusal(Code.NOT_PERMITTED, f"user {uid} is neither root nor the service's user")
                )
            writer.close()
            async with asyncio.timeout(self._idle_s):
                await writer.wait_closed()
        except OSError:
            pass  # the client went away or stopped reading, so no answer reaches it
        except Exception as exc:  # an answer that cannot be encoded is a bug, but must not end an upload
            _log_bug("the encoding of an answer", exc)
        finally:
            writer.transport.abort()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(self._idle_s):
                return await reader.readline()
        except ValueError:
            return b"too long"  # without an LF, so it is refused; what follows is the rest of it

    async def _send(self, writer: asyncio.StreamWriter, answer: Mapping[str, object]) -> None:
        for piece in _encode(answer):
            writer.write(piece)
            async with asyncio.timeout(self._idle_s):
                await writer.drain()
            await asyncio.sleep(0)  # drain() yields only when the buffer is full

    async def _answer(self, line: bytes) -> Mapping[str, object]:
        try:
            request = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            return _refusal(Code.BAD_REQUEST, f"the request is not a JSON object and LF, at most {MAX_REQUEST} bytes")
        command = str(request.pop("command", ""))
        handler = self._handlers.get(command)
        if handler is None:
            return _refusal(Code.BAD_REQUEST, f"this daemon does not know the command '{one_line(command, 40)}'")
        try:
            return {"ok": True, **await handler(request)}
        except S3daemonError as exc:
            faults = {"faults": list(exc.faults)} if isinstance(exc, SettingsError) else {}
            return {**_refusal(exc.code, one_line(exc.text, 10_000)), **faults}
        except Exception as exc:  # a bug in a command for operators must not end the daemon
            _log_bug(f"the command {command}", exc)
            return _refusal(Code.INTERNAL, f"a bug in the daemon: {type(exc).__name__}; its journal says where")


def _log_bug(what: str, exc: Exception) -> None:
    # Where, not what: the text of an exception may quote the request, and a reload's has secrets in it.
    _log.error("bug in %s: %s\n%s", what, type(exc).__name__, "".join(traceback.format_tb(exc.__traceback__)))


def _refusal(code: str, text: str) -> dict[str, object]:
    return {"ok": False, "code": code, "text": text}


def _encode(answer: Mapping[str, object]) -> Iterator[bytes]:
    """Encode an answer as one line, in pieces."""
    lead = "{"
    for name, value in answer.items():
        yield f"{lead}{json.dumps(name)}: ".encode()
        lead = ", "
        if isinstance(value, Iterator):
            bracket = b"["
            while rows := list(islice(value, _SLICE)):
                yield bracket + json.dumps(rows).encode()[1:-1]
                bracket = b", "
            yield b"[]" if bracket == b"[" else b"]"
        else:
            yield json.dumps(value).encode()
    yield b"}\n"
