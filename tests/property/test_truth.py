"""Whatever a store answers and does, a transfer is reported as stored only if the store has its object as it was sent;
and an object that may be in the store is looked up before it is sent again.

Hypothesis decides how the store misbehaves; what the store has kept is compared in the end. Left out is only what
nothing on the wire tells from the truth: an answer that claims the object with the right ETag when it is not there.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import tempfile
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

from fakes import FakeSpool
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from lab.assembly import Assembly
from lab.scripted import Exchange, etag_of, scripted
from lab.sending import OpenStore, sending, settings_for, transfer_of

from s3daemon.config.settings import SettingsHolder
from s3daemon.delivery.attempt import Attempts
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import AttemptError
from s3daemon.model.files.source import Source
from s3daemon.network.uploads.progress import Progress

#: Attempts of a transfer in one history; the store tells the truth from then on.
ATTEMPTS = 4
#: About a minute in CI; by hand `S3DAEMON_TEST_HISTORIES=100000`.
HISTORIES = int(os.environ.get("S3DAEMON_TEST_HISTORIES", "1000"))
#: Histories that run side by side: those without an answer wait for a limit of a second.
AT_ONCE = 20
#: The least that the settings allow.
PART_BYTES = 5 << 20
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
        heads: what to do with each look-up in turn.
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
class Result:
    """What the attempts of one transfer came to."""

    stored: bool = False
    lost: int = 0  #: attempts that made the object and failed in a way that says that they cannot have


async def history(liar: Liar, size: int, directory: Path, sender: OpenStore, key: str) -> Result:
    """Try one transfer as the daemon does."""
    result = Result()
    file = directory / key
    file.write_bytes(os.urandom(size))
    spool: Any = FakeSpool()
    attempts = Attempts(SettingsHolder(sender.store.sender.settings), spool, lambda: sender.store)
    source = Source.open(os.fspath(file))
    queued = QueuedTransfer(1, transfer_of(source, key), 0.0, 0.0, attempt_started=True)
    source.close()
    for _ in range(ATTEMPTS):
        before = liar.whole
        try:
            await attempts.make(queued, Progress())
            result.stored = True
            break
        except AttemptError as exc:
            note(f"{key}: {exc.code}: {exc.text}; ambiguous={exc.ambiguous}")
            clear = exc.status in range(400, 500) or exc.code == "ETagMismatch"
            result.lost += liar.whole > before and not exc.ambiguous and not clear
    if result.stored:
        kept = [content for content, _ in liar.kept.values()]
        assert kept == [file.read_bytes()], f"reported as stored; the store has {len(kept)} objects, and not this one"
    return result


Case = tuple[list[Behaviour], list[Behaviour], int]
CASES = st.tuples(
    st.lists(BEHAVIOURS, min_size=1, max_size=3),
    st.lists(BEHAVIOURS, max_size=5),
    st.sampled_from([1, 3_000, 200_000]),
)


@settings(max_examples=HISTORIES // AT_ONCE, suppress_health_check=list(HealthCheck))
@given(st.lists(CASES, min_size=AT_ONCE, max_size=AT_ONCE))
def test_stored_is_the_truth(cases: list[Case]) -> None:
    """What is reported as stored is stored; and what was stored is never taken for certainly lost."""
    liars = {f"/bucket/{number}": Liar(list(puts), list(heads)) for number, (puts, heads, _) in enumerate(cases)}

    async def put(exchange: Exchange) -> None:
        await liars[exchange.target].put(exchange)

    async def other(exchange: Exchange) -> None:
        await liars[exchange.target].other(exchange)

    async def all_of_them(directory: Path) -> list[Result]:
        async with (
            scripted(put, other) as server,
            sending(settings_for(server.url, max_connections=2 * AT_ONCE)) as sender,
        ):
            each = enumerate(zip(liars.values(), cases, strict=True))
            made = [history(liar, case[2], directory, sender, str(number)) for number, (liar, case) in each]
            return await asyncio.gather(*made)

    with tempfile.TemporaryDirectory() as directory:
        results = asyncio.run(all_of_them(Path(directory)))
    assert not any(result.lost for result in results)


@dataclass
class PartsLiar(Liar):
    """The same for a file that goes in parts: `puts` are the parts.

    Args:
        creations: what to do with each creation in turn.
        completions: what to do with each completion in turn.
        lists: what to do with each list of parts in turn.
    """

    creations: list[Behaviour] = field(default_factory=list)
    completions: list[Behaviour] = field(default_factory=list)
    lists: list[Behaviour] = field(default_factory=list)
    assembly: Assembly = field(init=False)
    etags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.assembly = Assembly(self._completed)

    def _completed(self, name: str, content: bytes, marks: dict[str, str], etag: str) -> None:
        self.kept[name], self.etags[name] = (content, marks), etag

    async def put(self, exchange: Exchange) -> None:
        """Treat a part."""
        lie = self.puts.pop(0) if self.puts else Behaviour()
        if lie.take is not Take.NOTHING:
            await exchange.read(None if lie.take is Take.ALL else exchange.length // 2)
        body, etag = bytes(exchange.body), ""
        if lie.keep is not Keep.NOTHING:
            content = body if lie.keep is Keep.WHOLE else bytes([body[0] ^ 1]) + body[1:]
            _, headers, _ = self._answer(exchange, content)
            etag = headers.get("ETag", "")
        tags = {Tag.NONE: "", Tag.EMPTY: '""', Tag.ANOTHER_MD5: f'"{"0" * 32}"', Tag.OF_WHAT_IS_KEPT: etag}
        await self._end(exchange, lie, {"ETag": tags[lie.tag]} if tags[lie.tag] else {})

    async def other(self, exchange: Exchange) -> None:
        """Treat anything else."""
        await exchange.read()
        posts = self.completions if "uploadId" in exchange.target else self.creations
        script = {"POST": posts, "GET": self.lists}.get(exchange.method, [])
        if exchange.method == "HEAD":
            await self._head(exchange)
        elif not script:
            status, headers, content = self._answer(exchange, bytes(exchange.body))
            await exchange.answer(status, content, headers=headers)
        else:
            lie, content = script.pop(0), b""
            if lie.keep is not Keep.NOTHING:
                _, _, content = self._answer(exchange, bytes(exchange.body))
                name = exchange.target.partition("?")[0]
                if lie.keep is Keep.FLIPPED and name in self.kept and "uploadId" in exchange.target:
                    whole, marks = self.kept[name]
                    self.kept[name] = bytes([whole[0] ^ 1]) + whole[1:], marks
                    self.etags[name] = f"{'0' * 32}-{len(self.etags)}"
            if lie.tag is Tag.OF_WHAT_IS_KEPT and lie.keep is Keep.WHOLE:
                lie = replace(lie, body=content)
            await self._end(exchange, lie, {})

    def _answer(self, exchange: Exchange, body: bytes) -> tuple[int, dict[str, str], bytes]:
        name, _, query = exchange.target.partition("?")
        return self.assembly.answer(exchange.method, name, query, exchange.headers, body) or (400, {}, b"")

    async def _head(self, exchange: Exchange) -> None:
        if self.heads:
            await self._end(exchange, self.heads.pop(0), {})
        elif exchange.target in self.kept:
            content, marks = self.kept[exchange.target]
            headers = {"ETag": f'"{self.etags[exchange.target]}"', "Content-Length": str(len(content)), **marks}
            await exchange.answer(headers=headers)
        else:
            await exchange.answer(404)


@settings(max_examples=max(20, HISTORIES // 25), suppress_health_check=list(HealthCheck))
@given(
    st.lists(BEHAVIOURS, max_size=2),
    st.lists(BEHAVIOURS, max_size=1),
    st.lists(BEHAVIOURS, min_size=1, max_size=2),
    st.lists(BEHAVIOURS, max_size=1),
    st.lists(BEHAVIOURS, max_size=2),
)
def test_stored_in_parts_is_the_truth(
    parts: list[Behaviour],
    creations: list[Behaviour],
    completions: list[Behaviour],
    lists: list[Behaviour],
    heads: list[Behaviour],
) -> None:
    """The same for a file in parts, whatever is answered to its creation, parts, list and completion."""
    liar = PartsLiar(
        list(parts), list(heads), creations=list(creations), completions=list(completions), lists=list(lists)
    )

    async def try_it(directory: Path) -> None:
        limits = {"multipart_threshold_bytes": PART_BYTES, "part_size_bytes": PART_BYTES}
        async with (
            scripted(liar.put, liar.other) as server,
            sending(settings_for(server.url, **limits)) as sender,
        ):
            await history(liar, PART_BYTES + 1000, directory, sender, "key")

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(try_it(Path(directory)))
