"""Whatever a store says and does, *stored* is said only of an object that the store has, as it was sent; and an object
that the store has is looked up before it is sent again.

The store lies as hypothesis tells it to; its own memory is the judge. Only lies that nothing on the wire can tell from
the truth are left out: that an object is there, whole, with the right ETag, when it is not.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import tempfile
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from lab.scripted import Exchange, etag_of, scripted
from lab.sending import sending, settings_for, transfer_of

from s3daemon.errors import AttemptError
from s3daemon.model.source import Source
from s3daemon.s3.store import Stored

#: Attempts of a transfer in one history; the store tells the truth from then on.
ATTEMPTS = 4
#: CI takes about a minute; by hand `S3DAEMON_TEST_HISTORIES=100000`.
HISTORIES = int(os.environ.get("S3DAEMON_TEST_HISTORIES", "1000"))
CAPTIVE = b"<html><body>Please log in to the guest network.</body></html>"


class Take(Enum):
    """How much of a body is read."""

    NOTHING = auto()
    SOME = auto()
    ALL = auto()


class Keep(Enum):
    """What is stored of it."""

    NOTHING = auto()
    FLIPPED = auto()  # with one bit of it wrong
    WHOLE = auto()


class Tag(Enum):
    """The ETag of an answer."""

    NONE = auto()
    OF_WHAT_IS_KEPT = auto()
    ANOTHER_MD5 = auto()
    EMPTY = auto()


class End(Enum):
    """How an exchange ends."""

    ANSWER = auto()
    ANSWER_AND_CLOSE = auto()
    HALF_AN_ANSWER = auto()
    NO_ANSWER = auto()
    RESET = auto()


@dataclass(frozen=True)
class Behaviour:
    """What the store does with one request."""

    take: Take = Take.ALL
    keep: Keep = Keep.WHOLE
    status: int = 200
    tag: Tag = Tag.OF_WHAT_IS_KEPT
    body: bytes = b""
    compressed: bool = False
    end: End = End.ANSWER

    def possible(self) -> Behaviour:
        """The same, as far as a store can: it keeps only what it took, and has no ETag of what it does not keep."""
        keep = self.keep if self.take is Take.ALL else Keep.NOTHING
        tag = Tag.NONE if keep is Keep.NOTHING and self.tag is Tag.OF_WHAT_IS_KEPT else self.tag
        return replace(self, keep=keep, tag=tag)


def errors(*codes: str) -> st.SearchStrategy[bytes]:
    """Bodies of S3's form, of other forms, and none."""
    xml = [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode() for code in codes]
    return st.sampled_from([b"", CAPTIVE, b"\x00\xff garbage", *xml])


BEHAVIOURS = st.builds(
    Behaviour,
    take=st.sampled_from([Take.ALL, Take.ALL, Take.ALL, Take.SOME, Take.NOTHING]),
    keep=st.sampled_from(Keep),
    status=st.sampled_from([200, 200, 200, 201, 202, 204, 206, 302, 400, 403, 404, 408, 429, 500, 502, 503, 504]),
    tag=st.sampled_from(Tag),
    body=errors("SlowDown", "InternalError", "AccessDenied", "NoSuchBucket", "SignatureDoesNotMatch", "Strange"),
    compressed=st.booleans(),
    end=st.sampled_from([End.ANSWER, End.ANSWER, End.ANSWER, *End]),
).map(Behaviour.possible)


@dataclass
class Liar:
    """A store that follows a script, then tells the truth.

    Args:
        puts: what to do with each PUT in turn.
        heads: what to do with each look-up in turn: True to answer it truthfully, else a lie.
    """

    puts: list[Behaviour]
    heads: list[Behaviour]
    kept: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    whole: int = 0  #: PUTs after which the object was there as it was sent

    async def put(self, exchange: Exchange) -> None:
        """Treat a PUT."""
        lie = self.puts.pop(0) if self.puts else Behaviour()
        if lie.take is not Take.NOTHING:
            await exchange.read(None if lie.take is Take.ALL else exchange.length // 2)
        body = bytes(exchange.body)
        if lie.keep is not Keep.NOTHING:
            content = body if lie.keep is Keep.WHOLE else bytes([body[0] ^ 1]) + body[1:]
            marks = {name: value for name, value in exchange.headers.items() if name.startswith("x-amz-meta-")}
            self.kept[exchange.target] = content, marks
            self.whole += lie.keep is Keep.WHOLE
        await self._end(exchange, lie, self._headers(exchange, lie))

    async def other(self, exchange: Exchange) -> None:
        """Treat a look-up."""
        if exchange.method == "HEAD" and self.heads:
            lie = self.heads.pop(0)
            await self._end(exchange, lie, {} if lie.tag is Tag.NONE else {"ETag": f'"{"0" * 32}"'})
        elif exchange.method == "HEAD" and exchange.target in self.kept:
            content, marks = self.kept[exchange.target]
            await exchange.answer(headers={"ETag": etag_of(content), "Content-Length": str(len(content)), **marks})
        else:
            await exchange.answer(404)

    def _headers(self, exchange: Exchange, lie: Behaviour) -> dict[str, str]:
        match lie.tag:
            case Tag.NONE:
                return {}
            case Tag.EMPTY:
                return {"ETag": '""'}
            case Tag.ANOTHER_MD5:
                return {"ETag": f'"{"0123456789abcdef" * 2}"'}
            case Tag.OF_WHAT_IS_KEPT:
                return {"ETag": etag_of(self.kept[exchange.target][0])}

    async def _end(self, exchange: Exchange, lie: Behaviour, headers: dict[str, str]) -> None:
        if lie.end is End.RESET:
            exchange.connection.reset()
        elif lie.end is End.HALF_AN_ANSWER:
            await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nETag: ")
        elif lie.end is not End.NO_ANSWER:
            body = b"" if lie.status == 204 else lie.body
            if lie.compressed and body:
                body, headers = gzip.compress(body), headers | {"Content-Encoding": "gzip"}
            if lie.end is End.ANSWER_AND_CLOSE:
                headers = headers | {"Connection": "close"}
            if lie.status == 302:
                headers = headers | {"Location": exchange.server.url}
            await exchange.answer(lie.status, body, headers=headers)


@dataclass
class Told:
    """What the attempts of one transfer came to."""

    stored: bool = False
    needless: int = 0  #: PUTs that were sent though the object was there, and its loss was never suggested


async def history(liar: Liar, size: int, directory: Path) -> Told:
    """One transfer, tried as the daemon does: looked up first when an attempt before may have stored it."""
    told = Told()
    file = directory / "file"
    file.write_bytes(os.urandom(size))
    async with scripted(liar.put, liar.other) as server:
        async with sending(settings_for(server.url)) as sender:
            source = Source.open(os.fspath(file))
            transfer = transfer_of(source)
            unknown = False
            for _ in range(ATTEMPTS):
                try:
                    if unknown and isinstance(await sender.store.find(transfer), Stored):
                        told.stored = True
                        break
                    there = liar.whole
                    await sender.store.put(transfer, source)
                    told.stored = True
                    break
                except AttemptError as exc:
                    note(f"{exc.code}: {exc.text}; ambiguous={exc.ambiguous}")
                    lost = liar.whole > there if not unknown else False
                    told.needless += lost and not exc.ambiguous and exc.status not in range(400, 500)
                    unknown = unknown or exc.ambiguous
            source.close()
    if told.stored:
        kept = [content for content, _ in liar.kept.values()]
        assert kept == [file.read_bytes()], f"told stored; the store has {len(kept)} objects, and not this one"
    return told


@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(BEHAVIOURS, min_size=1, max_size=3),
    st.lists(BEHAVIOURS, max_size=2),
    st.sampled_from([1, 3_000, 200_000]),
)
def test_stored_is_the_truth(puts: list[Behaviour], heads: list[Behaviour], size: int) -> None:
    """Every history ends with what was told being so."""
    with tempfile.TemporaryDirectory() as directory:
        told = asyncio.run(history(Liar(list(puts), list(heads)), size, Path(directory)))
    assert not told.needless
