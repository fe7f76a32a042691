"""Other daemons that a benchmark measures beside s3daemon: two in Python, and any that answers `POST /upload`.

    bare aiobotocore   what one would write in an afternoon
    raw aiohttp        signs nothing and checks nothing: the floor for Python. For sinks only

A daemon that is given as NAME=COMMAND is told by its environment what it has to know: PORT, where it has to serve HTTP
on 127.0.0.1; S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION; and AWS_CA_BUNDLE, also as
SSL_CERT_FILE, the certificates to trust. It gets forms (`application/x-www-form-urlencoded`) of the fields file, uri
(`s3://bucket/key`) and slug, and answers 200 once the object is stored.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab.env import SYSTEM_PATH, clean_env, free_ports
from lab.processes import Process, start
from lab.s3 import S3Server

Deliver = Callable[[Path, str], Coroutine[Any, Any, None]]
"""Have a file stored as BUCKET/KEY; DeliveryError when it was not."""

#: It sets no more than Ceph and 23 hooks make it set.
_PLAIN = """
import asyncio, sys
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
url, ca, key, secret, port = sys.argv[1:]
async def main():
    config = AioConfig(max_pool_connections=25, s3={"addressing_style": "path"},
                       request_checksum_calculation="when_required")
    made = get_session().create_client("s3", endpoint_url=url, verify=ca or None, aws_access_key_id=key,
                                       aws_secret_access_key=secret, region_name="us-east-1", config=config)
    async with made as client:
        async def serve(reader, writer):
            file, destination = (await reader.readline()).decode().split()
            _, bucket, key = destination.split("/", 2)
            with open(file, "rb") as body:
                await client.put_object(Bucket=bucket, Key=key, Body=body)
            writer.write(b"Success")
            writer.close()
        server = await asyncio.start_server(serve, "127.0.0.1", int(port))
        await server.serve_forever()
asyncio.run(main())
"""

_RAW = """
import asyncio, ssl, sys
import aiohttp
url, ca, key, secret, port = sys.argv[1:]
async def main():
    tls = ssl.create_default_context(cafile=ca) if ca else True
    connector = aiohttp.TCPConnector(limit=25, keepalive_timeout=3600, ssl=tls)
    async with aiohttp.ClientSession(connector=connector) as session:
        async def serve(reader, writer):
            file, destination = (await reader.readline()).decode().split()
            with open(file, "rb") as body:
                content = body.read()
            async with session.put(url + "/" + destination.split("/", 1)[1], data=content) as answer:
                await answer.read()
            writer.write(b"Success" if answer.status == 200 else b"Failed")
            writer.close()
        server = await asyncio.start_server(serve, "127.0.0.1", int(port))
        await server.serve_forever()
asyncio.run(main())
"""


class DeliveryError(Exception):
    """A contender did not deliver; the message is its output."""


def over_the_wire(port: int) -> Deliver:
    """By a daemon on that port, each file asked for on a connection of its own, as hooks do."""

    async def deliver(file: Path, destination: str) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{file} any/{destination}\n".encode())
            answer = await reader.read()
            writer.close()
        except OSError as exc:
            raise DeliveryError(str(exc)) from exc
        if answer != b"Success":
            raise DeliveryError(answer.decode() or "hung up")

    return deliver


def by_form(port: int) -> Deliver:
    """By a daemon that answers `POST /upload` on that port, likewise."""

    async def deliver(file: Path, destination: str) -> None:
        form = urlencode({"file": str(file), "uri": f"s3://{destination}", "slug": "bench"})
        head = f"POST /upload HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((head + form).encode())
            answer = await reader.read()
            writer.close()
        except OSError as exc:
            raise DeliveryError(str(exc)) from exc
        if answer.split(b" ")[1:2] != [b"200"]:
            raise DeliveryError(answer.decode(errors="replace") or "hung up")

    return deliver


@contextmanager
def _python(name: str, program: str, server: S3Server) -> Iterator[tuple[Process, Deliver]]:
    (port,) = free_ports(1)
    words = (server.url, str(server.ca or ""), server.access_key, server.secret_key, str(port))
    with start(sys.executable, "-c", program, *words, name=name) as process:
        process.wait_port(port)
        yield process, over_the_wire(port)


def plain(server: S3Server) -> Any:
    """The aiobotocore daemon: its process, and how to have it deliver."""
    return _python("aiobotocore", _PLAIN, server)


def raw(server: S3Server) -> Any:
    """The aiohttp daemon, likewise."""
    return _python("aiohttp", _RAW, server)


@contextmanager
def given(text: str, server: S3Server) -> Iterator[tuple[Process, Deliver]]:
    """A daemon given as NAME=COMMAND, likewise."""
    name, _, command = text.partition("=")
    (port,) = free_ports(1)
    settings = server.settings()
    if server.ca is not None:
        settings["SSL_CERT_FILE"] = str(server.ca)
    environ = clean_env(PATH=SYSTEM_PATH, PORT=str(port), **settings)
    with start(*shlex.split(command), name=name, env=environ) as process:
        process.wait_port(port)
        yield process, by_form(port)
