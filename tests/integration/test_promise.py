"""The promise under SIGKILL: whatever was accepted is stored, complete and newest, in spite of kills and faults.

Some twenty kills for a developer, 50 with CI=true; S3DAEMON_TEST_KILLS sets another number, S3DAEMON_TEST_SEED
repeats a run's random choices, though not its timing.
"""

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab import processes
from lab.daemon import Daemon, HungUpError, daemon
from lab.env import MACHINE_ENV
from lab.flaky import Fault, FlakyS3, flaky

KILLS = int(MACHINE_ENV.get("S3DAEMON_TEST_KILLS") or (50 if os.environ.get("CI") == "true" else 20))
SEED = int(MACHINE_ENV.get("S3DAEMON_TEST_SEED") or random.randrange(1 << 32))
CLIENTS = 12
LARGE = (5 << 20) + 70_000
"""Two parts of about the smallest size that S3 allows."""
SIZES = (*(100, 3_000, 20_000, 70_000, 500_000) * 4, LARGE)
PARTS: dict[str, Any] = {"multipart_threshold": "5MiB", "part_size": "5MiB"}
PASSING = [fault for fault in Fault if fault is not Fault.DENIED]
WAYS = ("fresh", "fresh", "fresh", "another file", "replaced", "in place")


@dataclass
class Key:
    """A key that only one client writes, so that the order of its requests is the order of acceptance."""

    name: str
    way: str
    size: int
    asked: int = 0
    accepted: int = 0

    def content(self, version: int) -> bytes:
        """Return the content of a version; all have the same size, and no mixture of two equals one of them."""
        line = f"{self.name} {version}\n".encode()
        return (line * (self.size // len(line) + 1))[: self.size]


@dataclass
class Client:
    """Writes files and sends them in a loop: new keys, and its own keys with newer content."""

    number: int
    daemon: Daemon
    s3: FlakyS3
    folder: Path
    stop: threading.Event
    keys: list[Key] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    false_replies: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Send files until `stop` is set."""
        rng = random.Random(SEED + self.number)
        owned = {way: self._key(way, rng) for way in WAYS if way != "fresh"}
        while not self.stop.wait(rng.expovariate(1 / 0.15)):
            way = rng.choice(WAYS)
            key = owned[way] if way != "fresh" else self._key(way, rng)
            key.asked += 1
            try:
                self._send(key, self._write(key), rng.choice(("plain", "extended", "no wait")))
            except Exception as exc:
                self.false_replies.append(f"{key.name}: {exc!r}")
                raise

    def _key(self, way: str, rng: random.Random) -> Key:
        self.keys.append(Key(f"client{self.number}/{len(self.keys)}", way, rng.choice(SIZES)))
        return self.keys[-1]

    def _write(self, key: Key) -> Path:
        stem = self.folder / key.name.replace("/", "-")
        path = stem.with_suffix(f".{key.asked}" if key.way == "another file" else ".dat")
        target = path.with_suffix(".new") if key.way == "replaced" else path
        target.write_bytes(key.content(key.asked))
        target.rename(path)
        return path

    def _send(self, key: Key, path: Path, form: str) -> None:
        destination = f"alias/bucket/{key.name}"
        try:
            if form == "plain":
                reply = self.daemon.plain(path, destination).decode()
                result, text = {"Success": "stored"}.get(reply, reply.partition(":")[0].lower()), reply
            else:
                members = self.daemon.extended(path, destination, wait=form != "no wait")
                result, text = members["result"], str(members)
        except HungUpError:
            result, text = "unknown", ""
        self.answers[result] += 1
        if result in ("stored", "accepted", "deferred"):
            key.accepted = key.asked
        elif result != "unknown":
            self.false_replies.append(f"{key.name} was answered {text}")
        found = self.s3.objects.get(f"bucket/{key.name}")
        if result == "stored" and (found is None or found.body != key.content(key.asked)):
            self.false_replies.append(f"{key.name} version {key.asked} was answered as stored but is not in the store")


@pytest.fixture
def s3() -> Iterator[FlakyS3]:
    with flaky(SEED) as made:
        yield made


def change_conditions(s3: FlakyS3, rng: random.Random) -> None:
    """Make the store fast, slow, faulty or unreachable."""
    s3.latency_s = rng.choice((0.0, 0.0, 0.01, 0.1))
    s3.faults = dict.fromkeys(PASSING, rng.choice((0.0, 0.01, 0.04)))
    if rng.random() < 0.1:
        s3.refuse()
    else:
        s3.open()


def test_no_accepted_transfer_is_lost_to_kills(s3: FlakyS3, tmp_path: Path) -> None:
    """After many kills, every accepted transfer is stored, complete, newest and recorded, and no reply was false."""
    rng = random.Random(SEED)
    stop = threading.Event()
    with daemon(tmp_path / "state", s3.server, activated=True, running=False, wait_limit="5s", **PARTS) as served:
        clients = [Client(number, served, s3, tmp_path, stop) for number in range(CLIENTS)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        try:
            for _ in range(KILLS):
                change_conditions(s3, rng)
                served.start(wait=False)
                if rng.random() < 0.8:
                    served.wait_serving()
                time.sleep(rng.uniform(0, 0.8))  # the random moment
                served.kill()
                processes.mark()  # a failure shows the last one's output, not that of 200
        finally:
            stop.set()
            s3.open()
            s3.faults, s3.latency_s = {}, 0.0
            served.start()
            for thread in threads:
                thread.join()
        served.wait_idle(timeout=180)
        left = served.queue()
        until = time.monotonic() + 20
        while any(one.parts for one in s3.assembly.uploads.values()) and time.monotonic() < until:
            time.sleep(0.1)  # the daemon aborts the uploads that no transfer needs
        served.terminate()
        recorded = {record.key for record in served.records() if record.outcome == "stored"}
        # An upload whose completion was not answered is aborted a quarter of an hour later.
        with contextlib.closing(sqlite3.connect(tmp_path / "state" / "spool.db")) as spool:
            unanswered = {id_ for (id_,) in spool.execute("SELECT id FROM upload WHERE completing")}
        left_behind = [one for id_, one in s3.assembly.uploads.items() if one.parts and id_ not in unanswered]

    keys = {f"bucket/{key.name}": key for client in clients for key in client.keys}
    answers = sum((client.answers for client in clients), Counter[str]())
    times = Counter((put.name, put.id, put.etag) for put in s3.puts)
    unnecessary = Counter(keys[name].way for (name, _, _), count in times.items() for _ in range(count - 1))
    print(f"\nseed {SEED}: {KILLS} kills, {answers.total()} requests, answered {dict(answers)};")
    print(
        f"{len(s3.puts)} PUTs stored, {unnecessary.total()} of them unnecessary repetitions {dict(unnecessary) or ''}"
    )
    empty = len(s3.assembly.uploads) - len(unanswered & s3.assembly.uploads.keys())
    print(f"{s3.assembly.begun} multipart uploads; {empty} are left without parts, {len(unanswered)} without an answer")
    assert not left_behind, "the store keeps parts that no transfer needs"
    assert not [reply for client in clients for reply in client.false_replies]
    assert not left
    assert not [f"{name}: {state(key, s3)}" for name, key in keys.items() if key.accepted and not is_newest(key, s3)]
    assert not {key.name for key in keys.values() if key.accepted} - recorded
    assert unnecessary.total() <= len(s3.puts) / 100


def is_newest(key: Key, s3: FlakyS3) -> bool:
    """Return whether the object is the newest accepted version, or a later one whose reply was lost."""
    found = s3.objects.get(f"bucket/{key.name}")
    return found is not None and found.body in [key.content(n) for n in range(key.accepted, key.asked + 1)]


def state(key: Key, s3: FlakyS3) -> str:
    """Describe the key for the message of a failed test."""
    found = s3.objects.get(f"bucket/{key.name}")
    return f"{key.way}, accepted {key.accepted}, asked {key.asked}, stored {found.body[:40] if found else 'nothing'!r}"
