"""Faults of a PUT beyond those of `scripted`: each a script, for the proxy in front of a real store."""

from __future__ import annotations

import gzip
import re

from lab.proxy import carried, kept_then
from lab.scripted import Exchange, Script, answering, hang_up_after, refusing, reset_after, silent_after

ENDLESS_BYTES = 200 << 20
"""Of an endless answer; no client may read them all."""
WITHIN = 100_000
"""Bytes; less than the body of the PUTs that these scripts are for."""


async def early_success(exchange: Exchange) -> None:
    """Answer 200 before the body was read, and read no more."""
    await exchange.read(WITHIN)
    await exchange.answer(headers={"ETag": f'"{"0" * 32}"'})
    await exchange.silence()


async def early_refusal(exchange: Exchange) -> None:
    """Refuse before the body was read, and read no more."""
    await exchange.read(WITHIN)
    await exchange.refuse(503, "SlowDown")
    await exchange.silence()


async def early_refusal_closed(exchange: Exchange) -> None:
    """Refuse before the body was read, and close: a reset follows the answer."""
    await exchange.read(WITHIN)
    await exchange.refuse(503, "SlowDown")
    exchange.kept = False


async def continue_only(exchange: Exchange) -> None:
    """Answer 100 Continue, and nothing after it."""
    await exchange.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    await exchange.read()
    await exchange.silence()


async def garbage(exchange: Exchange) -> None:
    """Answer something that is not HTTP."""
    await exchange.read()
    await exchange.write(b"\x00\xff no HTTP at all\r\n\r\n")


async def half_an_answer(exchange: Exchange) -> None:
    """Hang up within the answer."""
    await exchange.read()
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n<?xml")


async def a_byte_a_second(exchange: Exchange) -> None:
    """Answer a byte a second."""
    await exchange.read()
    for byte in b"HTTP/1.1 200 OK\r\n":
        await exchange.write(bytes([byte]))
        await exchange.pause(1)


async def reading_a_byte_a_second(exchange: Exchange) -> None:
    """Take a byte a second."""
    for taken in range(60):
        await exchange.read(taken + 1)
        await exchange.pause(1)


async def late(exchange: Exchange) -> None:
    """Answer success, but after the answer limit (60 s unless set, 3 s here)."""
    status, headers, content = await carried(exchange)
    await exchange.pause(6)
    await exchange.answer(status, content, headers=headers)


async def wrong_etag(exchange: Exchange) -> None:
    """Store it, and answer the ETag of something else."""
    status, headers, content = await carried(exchange)
    await exchange.answer(status, content, headers=headers | {"ETag": f'"{"0" * 32}"'})


async def cut_short(exchange: Exchange) -> None:
    """Store half of it, and answer success."""
    await exchange.read()
    status, headers, content = await carried(exchange, bytes(exchange.body[: exchange.length // 2]))
    await exchange.answer(status, content, headers=headers)


async def cut_short_and_gone(exchange: Exchange) -> None:
    """Store half of it, and hang up."""
    await exchange.read()
    await carried(exchange, bytes(exchange.body[: exchange.length // 2]))


async def endless(exchange: Exchange) -> None:
    """Answer 200, and never come to the end of the answer."""
    await exchange.read()
    await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    for _ in range(ENDLESS_BYTES >> 16):
        await exchange.write(b" " * (1 << 16))


async def another_part_count(exchange: Exchange) -> None:
    """Complete an upload, and answer the ETag of one that has other parts."""
    status, headers, content = await carried(exchange)
    other = re.sub(rb"-\d+(?=&quot;|&#34;|\"|<)", b"-77", content)
    await exchange.answer(status, other, headers=headers | {"Content-Length": str(len(other))})


HTML = b"<html><body>Please log in to the guest network.</body></html>"
COMPRESSED = {"Content_Encoding": "gzip", "Content_Type": "text/html"}
#: Faults of a completion, likewise.
COMPLETING: dict[str, Script] = {
    "complete: another part count": another_part_count,
    "complete: 200 with HTML": answering(200, HTML),
    "complete: empty 200, done": kept_then(answering(200)),
    "complete: hung up on, done": kept_then(hang_up_after()),
    "complete: 500": refusing(500, "InternalError"),
}
#: Faults that pass by themselves, for the soak. Few of them wait for a time limit, since those occupy a connection.
PASSING: dict[str, Script] = {
    "reset before the body": reset_after(0),
    "reset within the body": reset_after(2_000),
    "reset after the body": reset_after(),
    "reset after the body, stored": kept_then(reset_after()),
    "hung up on within the body": hang_up_after(2_000),
    "hung up on after the body": hang_up_after(),
    "hung up on after the body, stored": kept_then(hang_up_after()),
    "500": refusing(500, "InternalError"),
    "500, stored": kept_then(refusing(500, "InternalError")),
    "502": answering(502, b"<html>"),
    "503": answering(503),
    "SlowDown": refusing(503, "SlowDown", Retry_After="2"),
    "429": answering(429),
    "400 RequestTimeout": refusing(400, "RequestTimeout"),
    "307": refusing(307, "TemporaryRedirect", Location="http://127.0.0.1:9/"),
    "wrong ETag": wrong_etag,
    "wrong length": cut_short,
    "wrong length, no answer": cut_short_and_gone,
    "truncated answer": half_an_answer,
    "truncated answer, stored": kept_then(half_an_answer),
    "garbage": garbage,
    "200 too early": early_success,
    "503 too early": early_refusal,
    "503 too early, closed": early_refusal_closed,
    "100-continue only": continue_only,
    "no answer": silent_after(),
    "no answer, stored": kept_then(silent_after()),
    "late answer": late,
    "stops reading": silent_after(2_000),
    "200 without an ETag": answering(200),
    "200 without an ETag, stored": kept_then(answering(200)),
    "200 with HTML": answering(200, HTML),
    "200 with compressed HTML": answering(200, gzip.compress(HTML), **COMPRESSED),
    "201": answering(201),
    "204": answering(204),
    "204, stored": kept_then(answering(204)),
    "endless answer": endless,
}
