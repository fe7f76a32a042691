"""Generated histories of the whole daemon: clients, a store that misbehaves as a plan says, kills; and their judge.

    PYTHONPATH=tests python -m lab.histories [--histories 100000] [--seed N] [--kind KIND] [--tree DIR]

What happens to one transfer in a world (`worlds`) is a history; a world has dozens of them, since most wait for a time
limit most of the time. The daemon runs as a program, and is driven by nothing but its wire, its HTTP server, its
control socket and the store: so another checkout can be tried.

The store's history is the judge. *Stored* is said only when the store has this content there, whole, and nothing older
replaces it; in the end, each destination has what was accepted last. Of requests that overlap, each may be the last.
What a file has after a request was made counts as that request's too. Every client is answered within its patience.
Attempts of a transfer, log lines, memory and descriptors are bounded. A world that is not so is shrunk, and printed as
JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import md5
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lab.daemon import Daemon, daemon
from lab.env import TREE
from lab.liar import Death, LyingStore, lying_store, port_for
from lab.s3 import S3Server
from lab.worlds import KINDS, Event, Sent, Version, World, refusal, world_of

WAIT_LIMIT_S = 6.0
LIMITS: dict[str, Any] = {
    "stall_timeout": "2s", "answer_timeout": "1s", "connect_timeout": "1s", "wait_limit": f"{WAIT_LIMIT_S:g}s",
    "drain_timeout": "1s", "keepalive_interval": "1s", "max_connections": "100", "multipart_threshold": "5MiB",
    "part_size": "5MiB",
}  # fmt: skip
#: What a busy machine may add to a limit.
SLACK_S = 6.0
#: Until then everything is delivered, once the store is honest.
DELIVERED_WITHIN_S = 60.0
AWAY_WITHIN_S, DEAD_FOR_S, BACK_WITHIN_S = 10.0, 8.0, 5.0
ATTEMPTS_PER_MINUTE = 12
LINES_PER_S = 60
MEMORY_BYTES = 250 << 20
DESCRIPTORS = 250


@dataclass
class Told:
    """One version as it went: its content, and what its client was answered.

    Args:
        name: bucket/key.
        version: as planned.
        contents: MD5 sums of what its file had since the request, and will have.
        begun, settled: when it was requested and answered, monotonic seconds.
        result: as the protocol has it; `left` for a client that did not wait.
        text: of the answer.
        is_dropped: an operator has perhaps dropped it.
    """

    name: str
    version: Version
    contents: Contents
    begun: float
    settled: float = math.inf
    result: str = ""
    text: str = ""
    is_dropped: bool = False

    def supersedes(self, other: Told, results: tuple[str, ...]) -> bool:
        """Return whether it was surely requested after the other one, and had one of these results."""
        return other.settled <= self.begun and self.result in results and not self.is_dropped

    @property
    def id(self) -> str:
        """The transfer's, or empty where the answer has none."""
        found = re.search(r'"id": ?"([0-9a-f-]+)"', self.text)
        digits = found[1].replace("-", "") if found else ""
        return digits[:12] + digits[-4:]


class Contents:
    """What a file has, from one moment on: MD5 sums, the latest last."""

    def __init__(self, history: list[str]) -> None:
        self._history, self._first = history, len(history) - 1

    def __contains__(self, md5: object) -> bool:
        return md5 in self._history[max(0, self._first) :]


class Files:
    """The files that are sent, in `folder`, and the history of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing: set[str] = set()  # at some time
        self.histories: dict[str, list[str]] = {}

    def write(self, name: str, size: int, *, in_place: bool = False) -> None:
        """Give a file other content, by default as a new one of this name."""
        history = self.histories.setdefault(name, [])
        content = random.Random(f"{name} {len(history)}").randbytes(size)
        history.append(md5(content, usedforsecurity=False).hexdigest())
        path = self.folder / name
        if in_place and path.exists():
            number = os.open(path, os.O_WRONLY)
            os.pwrite(number, content, 0)
            os.close(number)
        else:
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").rename(path)

    async def change(self, name: str, version: Version) -> None:
        """Do what the file's owner does after the request."""
        await asyncio.sleep(version.after_s)
        if version.then == "vanish":
            self.missing.add(name)
            (self.folder / name).unlink(missing_ok=True)
            await asyncio.sleep(1)
        self.write(name, version.size, in_place=version.then == "rewrite")


class Player:
    """Plays one world, and judges it.

    Attributes:
        wrong: what must not be, one line each.
    """

    def __init__(self, world: World, served: Daemon, store: LyingStore, folder: Path) -> None:
        self.world, self.served, self.store, self.files = world, served, store, Files(folder)
        self.wrong: list[str] = []
        self.told: dict[str, list[Told]] = {}
        self.may_fail = {one.name for one in world.sent if one.may_fail}
        self.kinds_of_event = {event.what for event in world.events}
        self.changes: list[asyncio.Task[None]] = []
        self.kept: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}  # connections, by client
        self.began = self.killed_at = time.monotonic()
        self.busy_killing = False

    async def play(self) -> None:
        """Play it to its end."""
        for one in self.world.sent:
            destination = self.store.destinations[one.name]
            destination.scripts |= {name: deque(plans) for name, plans in one.scripts.items()}
            destination.constant |= one.constant
            for version in one.versions:
                if version.file and version.file not in self.files.histories:
                    self.files.write(version.file, version.size)
        self.store.constant |= self.world.constant
        self.began = time.monotonic()
        clients = [asyncio.create_task(self._client(one, number)) for number, one in enumerate(self.world.sent)]
        watch = asyncio.create_task(self._watch_dead() if self.world.kind == "dead" else self._watch())
        for event in self.world.events:
            await asyncio.sleep(self.began + event.at - time.monotonic())
            await self._happen(event)
        if self.world.kind == "dead":
            await watch
        await asyncio.gather(*clients)
        await asyncio.gather(*self.changes)
        for _, writer in self.kept.values():
            writer.close()
        if self.world.kind != "dead":
            watch.cancel()
            await asyncio.wait({watch})
        if not watch.cancelled() and (exc := watch.exception()):
            raise exc
        await self._audit()

    async def _happen(self, event: Event) -> None:
        addresses = [f"127.0.0.{number}" for number in event.addresses] or None
        match event.what:
            case "kill" | "terminate":
                self.busy_killing = True
                await asyncio.to_thread(self.served.kill if event.what == "kill" else self.served.terminate)
                await asyncio.to_thread(self.served.start)
                self.killed_at, self.busy_killing = time.monotonic(), False
            case "disk":
                self.changes.append(asyncio.create_task(self._fail_disk()))
            case "renamed":
                url = self.served.environ["S3_ENDPOINT_URL"]
                is_first = "//store." in url
                self.served.set(S3_ENDPOINT_URL=url.replace(*("store", "other") if is_first else ("other", "store")))
                await self._happen(replace(event, what=event.how))
            case "dead":
                await self.store.kill(addresses, event.how)
            case "alive":
                await self.store.revive()
            case "denied":
                every = ("put", "head", "create", "part", "complete", "list", "neutral", "small")
                self.store.constant |= {name: refusal(403, event.how) for name in every}
            case "granted":
                self.store.constant.clear()
                await self._reload()
            case "lifted":
                self.store.constant.clear()
                self.store.constant |= self.world.constant
            case _:
                await self._operate(event.what)

    async def _operate(self, what: str) -> None:
        """Do what an operator does."""
        match what:
            case "reload":
                await self._reload()
            case "narrow" | "wide":
                limits = ("3", "100MiB") if what == "narrow" else ("100", "5MiB")
                self.served.set(max_connections=limits[0], multipart_threshold=limits[1])
                await self._reload()
            case "retry":
                await self._ask("retry", all=True)
            case "drop":
                await self._drop()

    async def _reload(self) -> None:
        answer = await self._ask("reload", environ=self.served.environ)
        if "applied" not in answer:
            self.wrong.append(f"reload was answered {answer}")

    async def _ask(self, command: str, **arguments: object) -> dict[str, Any]:
        return await asyncio.to_thread(self.served.ask, command, **arguments)

    async def _drop(self) -> None:
        rows = (await self._ask("queue"))["transfers"]
        chosen = [row for row in rows if row["state"] != "failed"][:2]
        for told in (told for row in chosen for told in self.told[row["destination"]]):
            told.is_dropped = True  # if only a request that joined it, perhaps
        await self._ask("drop", ids=[row["id"] for row in chosen])

    async def _fail_disk(self) -> None:
        pid = self.served.process.pid
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
            await asyncio.sleep(1)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    async def _client(self, one: Sent, client: int) -> None:
        await asyncio.sleep(self.began + one.at - time.monotonic())
        for number, version in enumerate(one.versions):
            name = version.file or f"{one.name.replace('/', '-')}.{client}.{number}"
            if not version.file:
                self.files.write(name, version.size)
            told = Told(one.name, version, Contents(self.files.histories[name]), time.monotonic())
            self.told.setdefault(one.name, []).append(told)
            if version.then and version.then != "finish":
                self.changes.append(asyncio.create_task(self.files.change(name, version)))
            while not told.result:
                asked_at, busy = time.monotonic(), self.busy_killing
                told.result, told.text = await self._request(client, self.files.folder / name, one.name, version)
                was_killed = busy or self.busy_killing or self.killed_at > asked_at
                is_overloaded = "ReadFailed" in told.text  # the machine: a file could not be opened in time
                if version.leaves_s and told.result == "unanswered":
                    told.result = "left"
                elif is_overloaded or (was_killed and (told.result == "unanswered" or "Interrupted" in told.text)):
                    told.result = ""  # nothing is known, so it is sent again
                    await asyncio.sleep(0.1)
                elif time.monotonic() - asked_at > WAIT_LIMIT_S + SLACK_S and not was_killed:
                    self.wrong.append(
                        f"{one.name} was answered {told.result} after {time.monotonic() - asked_at:.1f} s"
                    )
            if told.result != "left":
                told.settled = time.monotonic()
            self._judge_answer(one, told)
            if version.then == "finish" and told.result == "stored":
                (self.files.folder / name).unlink()

    def _judge_answer(self, one: Sent, told: Told) -> None:
        what = f"{one.name}, {told.version.size} bytes, {told.version.way}"
        if told.result == "stored" and (found := self._wrongly_kept(one.name, ("stored",))):
            self.wrong.append(f"{what}: answered stored, and the store has {found}")
        if told.result == "failed" and not self._has_reason(told):
            self.wrong.append(f"{what}: answered {told.text}, and nothing says so for good")
        if told.result not in ("stored", "accepted", "deferred", "failed", "left"):
            self.wrong.append(f"{what}: answered {told.result} {told.text}")
        if self.world.kind == "own" and not one.spoilt and told.result != "stored":
            self.wrong.append(f"{what}: answered {told.result} {told.text}, and the store serves it")

    def _has_reason(self, told: Told) -> bool:
        """Return whether something that happened is a reason for a failure."""
        words = ["Overtaken"] * (told.name in self.may_fail)
        words += ["NoSuchFile"] * ((told.version.file or told.version.then) != "" and bool(self.files.missing))
        words += ["Dropped"] * told.is_dropped + ["SpoolBroken", "SpoolFull"] * ("disk" in self.kinds_of_event)
        return told.name in self.may_fail or any(word in told.text for word in words)

    def _wrongly_kept(self, name: str, results: tuple[str, ...], kept: str = "", at: float = math.inf) -> str:
        """Return what the store has there although that is surely older than a request with one of these results.

        Args:
            name: bucket/key.
            results: of requests.
            kept: MD5 sum; by default of what is there now.
            at: only requests that were answered before count, monotonic seconds.

        Returns:
            words for it; empty if it may be there.
        """
        now = self.store.destinations[name].kept
        kept = kept or (now.md5 if now else "")
        told = self.told.get(name, [])
        newer = [one for one in told if one.settled < at]
        senders = [(number, one) for number, one in enumerate(told) if kept in one.contents]
        if any(not any(other.supersedes(one, results) for other in newer) for _, one in senders):
            return ""
        return f"version {senders[0][0]}" if senders else "another content" if kept else "nothing"

    async def _request(self, client: int, file: Path, name: str, version: Version) -> tuple[str, str]:
        """Send a request; return its result, and the text of the answer."""
        way, patience_s = version.way, version.leaves_s or WAIT_LIMIT_S + 60
        if way in ("http", "form"):
            fields = {"file": str(file), "uri": f"s3://{name}"} | ({"slug": version.tag} if version.tag else {})
            if way == "http":
                kind, body = "application/x-www-form-urlencoded", urlencode(fields)
            else:
                kind, part = (
                    "multipart/form-data; boundary=b",
                    '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n',
                )
                body = "".join(part.format(*field) for field in fields.items()) + "--b--\r\n"
            head = "POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
            answer = await self._exchange(self.served.http_port, (head + body).encode(), patience_s)
            found = re.match(r"HTTP/1.1 (\d{3})", answer)
            by_status = {"": "unanswered", "200": "stored", "504": "deferred"}
            return by_status.get(found[1] if found else "", "failed"), answer
        if way == "plain":
            answer = await self._exchange(self.served.port, f"{file} any/{name}\n".encode(), patience_s)
            word = answer.partition(":")[0].strip()
            return {"": "unanswered", "Success": "stored", "Deferred": "deferred"}.get(word, "failed"), answer
        members = {"file": str(file), "destination": f"any/{name}", "wait": way != "unwaited", "tag": version.tag}
        line = json.dumps(members).encode() + b"\n"
        if way == "kept":
            answer = await self._converse(client, line, patience_s)
        else:
            answer = await self._exchange(self.served.port, line, patience_s, line=True)
        return (json.loads(answer)["result"], answer) if answer else ("unanswered", "")

    async def _converse(self, client: int, line: bytes, patience_s: float) -> str:
        """Send a line over the client's own connection, or a new one if that has been closed; return the answer."""
        answer, reader_writer = b"", self.kept.pop(client, None)
        is_new = reader_writer is None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(patience_s):
                reader, writer = reader_writer or await asyncio.open_connection("127.0.0.1", self.served.port)
                reader_writer = reader, writer
                writer.write(line)
                answer = await reader.readline()
        if answer and reader_writer:
            self.kept[client] = reader_writer
        elif reader_writer:
            reader_writer[1].close()
        return answer.decode() if answer or is_new else await self._converse(client, line, patience_s)

    async def _exchange(self, port: int, request: bytes, patience_s: float, *, line: bool = False) -> str:
        answer = b""
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(request)
                    answer = await (reader.readline() if line else reader.read(-1))
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            pass
        return answer.decode(errors="replace")

    async def _watch(self) -> None:
        """Look at its status all the time. A hold that a healthy transfer ends at once harms nobody."""
        before = ""
        while True:
            await asyncio.sleep(0.5)
            if self.busy_killing or self.world.kind != "own":
                continue
            held = (await self._ask("status"))["held"]
            if held and before:
                self.wrong.append(f"held for another destination's sake: {held}")
                return
            before = held

    async def _watch_dead(self) -> None:
        """See it notice that the store is dead, keep quiet, and notice that it is back."""
        began, how = time.monotonic(), self.world.events[0].how
        # An address that takes a connection is asked again after each of its silences, and each transfer tries all.
        is_slow = how == Death.SILENT and (len(self.world.sent) < 3 or self.world.addresses > 1)
        within_s = 3 * AWAY_WITHIN_S if is_slow else AWAY_WITHIN_S
        while not (await self._ask("status"))["away"]:
            if time.monotonic() - began > within_s:
                self.wrong.append(f"not away {within_s:g} s after all addresses died")
                break
            await asyncio.sleep(0.1)
        lines, cpu, at = len(self.served.lines()), self._cpu_s(), time.monotonic()
        await asyncio.sleep(DEAD_FOR_S)
        passed = time.monotonic() - at
        per_minute, share = (len(self.served.lines()) - lines) * 60 / passed, (self._cpu_s() - cpu) / passed
        if per_minute > 60:  # 50, and the chance that one second more or less is seen
            self.wrong.append(f"{per_minute:.0f} log lines a minute while away")
        if share > 0.10:  # of one processor, beside all the others
            self.wrong.append(f"{share:.0%} of a processor while away")
        await self.store.revive()
        revived, limit = time.monotonic(), BACK_WITHIN_S + 1 if how != Death.SILENT else 35.0
        while (status := await self._ask("status"))["away"] or status["pending"] or status["in_flight"]:
            if time.monotonic() - revived > limit:
                self.wrong.append(f"not delivered {limit:g} s after the store's return ({how}): {status['status']}")
                break
            await asyncio.sleep(0.1)

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self.served.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    async def _audit(self) -> None:
        """Have the rest delivered by an honest store, and compare."""
        self.store.be_honest()
        await self.store.revive()
        until = time.monotonic() + DELIVERED_WITHIN_S
        reload_at = 0.0
        while (status := await self._ask("status"))["pending"] or status["in_flight"]:
            now = time.monotonic()
            if now > until:
                rows = (await self._ask("queue"))["transfers"]
                shown = [
                    f"{row['destination']} {row['state']} {row['text']}" for row in rows if row["state"] != "failed"
                ]
                self.wrong.append(f"not delivered {DELIVERED_WITHIN_S:g} s after the store became honest: {shown[:3]}")
                first = shown[0].split()[0]
                self.wrong += [line for line in self.served.lines() if f"{first} " in line][-5:]
                self.wrong += [str(status["uploads"]), str(status["status"])]
                return
            if now > reload_at:
                await self._reload()
                reload_at = now + 5
            await asyncio.sleep(0.05)
        rows = (await self._ask("queue"))["transfers"]
        listed = {row["id"] for row in rows if row["state"] == "failed"}
        failed = {row["destination"] for row in rows if row["id"] in listed}
        for name, told in self.told.items():
            self._judge_end(name, told, failed)
        self._judge_bounds()
        if self.world.kind == "shared":
            self._judge_listed(listed)
            await self._judge_counts(failed)

    def _judge_end(self, name: str, told: list[Told], failed: set[str]) -> None:
        results = ("stored", "accepted", "deferred", *(("failed",) if self.world.kind == "denied" else ()))
        accepted = [number for number, one in enumerate(told) if one.result in results and not one.is_dropped]
        if name in failed and name not in self.may_fail:
            self.wrong.append(f"{name} has failed, and nothing says so for good")
        if not accepted or name in failed:
            return  # what failed for good is listed
        # A version that failed later may have been kept by a store that said otherwise.
        if found := self._wrongly_kept(name, results):
            self.wrong.append(f"{name}: version {accepted[-1]} was {told[accepted[-1]].result}, there is {found}")

    def _judge_listed(self, listed: set[str]) -> None:
        for told in self.told.values():
            for one in told:
                if one.id in listed and any(other.supersedes(one, ("stored",)) for other in told):
                    self.wrong.append(f"{one.name}: {one.id} is listed as failed, and a newer one was stored")

    async def _judge_counts(self, failed: set[str]) -> None:
        """Judge what is counted: objects, records, files of a tag."""
        known = {id_ for told in self.told.values() for one in told if (id_ := one.id)}
        for at, name, id_, kept in self.store.history:
            if (found := self._wrongly_kept(name, ("stored",), kept, at)) not in ("", "another content"):
                self.wrong.append(f"{name}: {found} was put over a newer one, which was stored, by {id_}")
        honest = {one.name for one in self.world.sent} - {one.name for one in self.world.sent if one.scripts}
        for (name, id_, kept), count in Counter(one[1:] for one in self.store.history).items():
            if count > 1 and name in honest and "dead" not in self.kinds_of_event:
                self.wrong.append(f"{name}: {id_} has stored {kept} {count} times")
        records = Counter(
            (f"{record.bucket}/{record.key}", record.start, record.outcome) for record in self.served.records()
        )
        is_crashed = any(event.ends_process for event in self.world.events)
        for (name, start, outcome), count in records.items():
            if count > 1 + is_crashed and name not in self.may_fail:
                self.wrong.append(f"{name}: {count} records of what was {outcome} and began at {start}")
        for name, told in self.told.items():
            ids = {one.id for one in told} & known
            if len({start for where, start, _ in records if where == name}) < len(ids):
                self.wrong.append(f"{name}: fewer records than transfers ({len(ids)})")
        for tag in sorted({one.version.tag for told in self.told.values() for one in told} - {""}):
            question = json.dumps({"wait_for": tag, "timeout": 2}).encode() + b"\n"
            counts = json.loads(await self._exchange(self.served.port, question, 10.0, line=True) or "{}")
            self._judge_tag(tag, counts, failed)

    def _judge_tag(self, tag: str, counts: dict[str, Any], failed: set[str]) -> None:
        of_tag = [one for told in self.told.values() for one in told if one.version.tag == tag]
        names = {one.name for one in of_tag}
        unclear = {one.name for one in of_tag if one.is_dropped or one.result in ("failed", "left")}
        unclear |= failed | self.may_fail  # such a failure counts until a request of this tag is stored there
        least = {one.name for one in of_tag if one.result in ("stored", "accepted", "deferred")} - unclear
        if counts.get("pending", 0) or not len(least) <= counts.get("stored", 0) <= len(names):
            self.wrong.append(f"{tag}: {counts}, and {len(least)} to {len(names)} files are stored")

    def _judge_bounds(self) -> None:
        for id_, times in self.store.attempts.items():
            windows = [sum(at <= other < at + 60 for other in times) for at in times]
            if id_ and max(windows) > ATTEMPTS_PER_MINUTE:
                self.wrong.append(f"{max(windows)} attempts of {id_} in a minute")
        seconds = time.monotonic() - self.began
        lines = [line for line in self.served.lines() if " sec - " not in line]
        if len(lines) > LINES_PER_S * seconds:
            common = Counter(re.sub(r"[0-9a-f]{8,}|\d+", "N", line)[:90] for line in lines).most_common(1)
            self.wrong.append(f"{len(lines)} log lines in {seconds:.0f} s, most of them {common}")
        bugs = [line for line in lines if "a bug" in line or "Traceback" in line]
        self.wrong += [f"logged: {line[:200]}" for line in bugs[:3]]
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.served.process.pid}/status").read_text())
        if found and int(found[1]) * 1024 > MEMORY_BYTES:
            self.wrong.append(f"{int(found[1]) // 1024} MiB of memory")
        if self.served.descriptors() > DESCRIPTORS:
            self.wrong.append(f"{self.served.descriptors()} descriptors")


def run(world: World, tree: Path = TREE) -> list[str]:
    """Play a world with a daemon of its own; return what was wrong.

    Args:
        world: the plan.
        tree: the checkout that the daemon is of.
    """
    addresses = [f"127.0.0.{number}" for number in range(1, world.addresses + 1)]
    port = port_for(addresses)
    is_named = world.addresses > 1 or world.kind == "shared"
    url = f"http://store.invalid:{port}" if is_named else f"http://127.0.0.1:{port}"
    more: dict[str, Any] = {"receivers": ",".join(addresses)} if is_named else {}
    with tempfile.TemporaryDirectory(prefix="s3daemon-worlds-") as folder:
        (Path(folder) / "files").mkdir()
        made = daemon(
            Path(folder) / "state", S3Server(url, "key", "secret"), activated=True, http=True, keeping=True, tree=tree,
            **LIMITS, **more,
        )  # fmt: skip
        with made as served:

            async def play() -> Player:
                async with lying_store(addresses, port) as store:
                    player = Player(world, served, store, Path(folder) / "files")
                    await player.play()
                    return player

            return asyncio.run(play()).wrong


def shrunk(world: World, is_wrong: Callable[[World], bool], tries: int = 40) -> World:
    """Return a smaller world that is wrong as well.

    Args:
        world: one that is wrong.
        is_wrong: plays one.
        tries: how many worlds may be played.
    """
    left = [tries]

    def still(smaller: World) -> bool:
        left[0] -= 1
        return left[0] >= 0 and is_wrong(smaller)

    for name in ("sent", "events"):
        items: tuple[Any, ...] = getattr(world, name)
        size = max(1, len(items) // 2)
        while items and size and left[0] > 0:
            for start in range(0, len(items), size):
                fewer = items[:start] + items[start + size :]
                if (fewer or (name == "events" and world.kind != "dead")) and still(_with(world, name, fewer)):
                    items = fewer
                    world = _with(world, name, items)
                    break
            else:
                size //= 2
    for number, one in enumerate(world.sent):
        for smaller in _simpler(one):
            tried = replace(world, sent=(*world.sent[:number], smaller, *world.sent[number + 1 :]))
            if left[0] > 0 and still(tried):
                world = tried
                break
    return world


def _with(world: World, name: str, items: tuple[Any, ...]) -> World:
    return replace(world, sent=items) if name == "sent" else replace(world, events=items)


def _simpler(one: Sent) -> Iterator[Sent]:
    for name in one.scripts:
        yield replace(one, scripts={other: plans for other, plans in one.scripts.items() if other != name})
    if len(one.versions) > 1:
        yield replace(one, versions=one.versions[:-1])
        yield replace(one, versions=one.versions[1:])
    for name, plans in one.scripts.items():
        for at in range(len(plans)):
            yield replace(one, scripts=one.scripts | {name: plans[:at] + plans[at + 1 :]})


def main() -> int:
    """Play worlds until there were so many histories; return the exit status."""
    parser = argparse.ArgumentParser(description="Generated histories of the whole daemon, judged by the store's own.")
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", choices=list(KINDS), default="", help="only worlds of this kind")
    parser.add_argument("--count", type=int, default=120, help="destinations in a rough world")
    parser.add_argument("--tree", type=Path, default=TREE, help="the checkout to try")
    parser.add_argument("--shrink", type=int, default=40, metavar="N", help="worlds to play for a smaller one; 0: none")
    parser.add_argument("--world", type=Path, help="play this one")
    parser.add_argument("--stop", action="store_true", help="at the first world that is wrong")
    args = parser.parse_args()
    done = found = 0
    seed = args.seed
    while done < args.histories:
        world = World.from_json(args.world.read_text()) if args.world else world_of(seed, args.kind, args.count)
        began = time.monotonic()
        wrong = run(world, args.tree)
        done += world.histories
        took = time.monotonic() - began
        print(f"seed {seed}: {world.kind}, {world.histories} histories, {took:.0f} s; {done} so far", flush=True)
        for line in wrong[:10]:
            print(f"    {line}", flush=True)
        if wrong and args.shrink and not args.world:
            words = {re.sub(r"\d+|[0-9a-f]{8,}", "N", line.partition(":")[2] or line)[:40] for line in wrong}

            def is_wrong(smaller: World, words: set[str] = words) -> bool:
                now = run(smaller, args.tree)
                return any(
                    re.sub(r"\d+|[0-9a-f]{8,}", "N", line.partition(":")[2] or line)[:40] in words for line in now
                )

            print(shrunk(world, is_wrong, args.shrink).to_json(), flush=True)
        found += bool(wrong)
        if (wrong and args.stop) or args.world:
            break
        seed += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
