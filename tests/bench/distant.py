"""A store that is far away: a sink that answers each PUT with 200 a while after it has read it. A program of its own.

    python -m bench.distant PORT CERTIFICATE KEY SECONDS

What a contender takes beyond these seconds is its own; no link, no congestion window and no emulator take part.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import sys

_ANSWER = b'HTTP/1.1 200 OK\r\nETag: "any"\r\nContent-Length: 0\r\n\r\n'
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Distant(asyncio.Protocol):
    """One connection, whose requests come one after the other."""

    delay_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        if not self._data and b"\r\nexpect: 100" in data.lower():
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        if end and len(body) >= (int(found[1]) if found else 0):
            self._data = b""
            delay_s = self.delay_s if head.startswith(b"PUT") else 0.0
            asyncio.get_running_loop().call_later(delay_s, self._transport.write, _ANSWER)


async def main(port: str, certificate: str, key: str, seconds: str) -> None:
    """Serve for ever."""
    Distant.delay_s = float(seconds)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    server = await asyncio.get_running_loop().create_server(Distant, "127.0.0.1", int(port), ssl=tls, backlog=500)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
