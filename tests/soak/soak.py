"""A night at ten times the speed, with all kinds of faults, and an audit: nothing lost, torn, or falsely answered.

    tests/soak/run [--minutes 10] [--seed N] [--json FILE]

Every 4 to 6 s an exposure: 23 images, for each the JSON and then the FITS file, waiting for each, as the hooks do it:
one host's cadence ten times as fast, with files small enough for loopback and two cores. Some keys get newer content
again and again, some files go in parts. In front of the store, SeaweedFS, a proxy with two addresses injects faults
into PUTs and completions (`lab.faults`), is unreachable at one address or both for seconds, refuses the keys, which
holds the queue until a reload, or breaks the signatures of some keys, which stops no other. The daemon is killed,
terminated and reloaded; waiting clients' connections go from one process to the next, as under systemd. Clients remove
some files once the reply was *stored*.

The audit reads every object from the store, past the proxy, and compares its MD5 with what was sent:

    lost      accepted (answered stored, accepted or deferred), and the object is missing or older
    torn      an object with none of its key's contents
    false     answered stored while the object was missing; answered failed; or disconnected without an answer

Two outcomes mean that nothing was accepted, and the request is repeated: `Interrupted`, and a disconnection by a
SIGKILL before the connection was stored with systemd. Exit status 0: none of these, and nothing left in the queue. One
JSON object, the figures, ends the output.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import processes
from lab.daemon import Daemon, HungUpError, daemon
from lab.faults import COMPLETING, PASSING
from lab.proxy import Proxy, passing, proxy
from lab.s3 import S3Server
from lab.scripted import Exchange, Script, refusing
from lab.seaweed import seaweed

IMAGES, CADENCE_S = 23, (4.0, 6.0)
#: Bytes of a FITS and of a JSON file, from and to.
FITS, JSON = (10_000, 500_000), (2_000, 4_000)
#: A share of the FITS files is so large that it goes in parts.
LARGE, IN_PARTS = 0.004, (6_000_000, 11_000_000)
#: A share of the images goes to keys whose signatures are broken at times.
FOLDED = 0.03
ADDRESSES = ("127.0.0.1", "127.0.0.2")
#: A share of the images goes to keys that are written again, by the program `send`, or without waiting.
AGAIN, BY_SEND, UNWAITED = 0.15, 0.08, 0.1
LIMITS: dict[str, Any] = {"stall_timeout": "2s", "answer_timeout": "3s", "connect_timeout": "2s", "wait_limit": "10s",
          "drain_timeout": "2s", "max_connections": "25", "multipart_threshold": "5MiB", "part_size": "5MiB",
          "receivers": ",".join(ADDRESSES)}  # fmt: skip
#: Events, one every few seconds, and their relative frequency.
EVENTS = {"kill": 4, "terminate": 2, "reload": 3, "outage": 2, "address": 2, "hold": 1, "fold": 1, "calm": 2,
          "rough": 4}  # fmt: skip
EVERY_S = (1.0, 6.0)
#: What the keys are refused with: as most stores do, and as Ceph with its Security Token Service does.
REFUSALS = {code: refusing(403, code) for code in ("ExpiredToken", "AccessDenied")}
BROKEN = refusing(403, "SignatureDoesNotMatch")


@dataclass
class Key:
    """The contents sent to one destination, and which was accepted; one client at a time uses it."""

    name: str
    contents: list[str] = field(default_factory=list)
    """MD5s, in the order sent."""
    accepted: int = -1
    """The index of the last accepted one."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Soak:
    """The clients, the injected faults, and the results."""

    def __init__(self, served: Daemon, between: Proxy, store: S3Server, folder: Path, seed: int) -> None:
        self.served, self.between, self.folder = served, between, folder
        self.bucket = store.new_bucket()
        self.client: Any = store.client()
        self.rng = random.Random(seed)
        self.keys: list[Key] = []
        self.again = [Key(f"again/{number}") for number in range(12)]
        self.counts, self.answers, self.faults = Counter[str](), Counter[str](), Counter[str]()
        self.false: list[str] = []
        self.rate, self.refusing_keys, self.killed_at = 0.02, "", 0.0
        self.folding = False
        self._lock = threading.Lock()
        self._fates = random.Random(seed + 1)  # the proxy's thread's own
        between.choose = self.choose
        between.completing = self.choose_completion

    def choose(self, exchange: Exchange) -> Script:
        """Choose what the proxy does to a PUT."""
        if self.refusing_keys:
            self.faults[f"403 {self.refusing_keys}"] += 1
            return REFUSALS[self.refusing_keys]
        if self.folding and "/folded/" in exchange.target:
            self.faults["403 SignatureDoesNotMatch"] += 1
            return BROKEN
        if self._fates.random() >= self.rate:
            return passing
        name = self._fates.choice(list(PASSING))
        self.faults[name] += 1
        return PASSING[name]

    def choose_completion(self, _: Exchange) -> Script:
        """Choose what the proxy does to the completion of an upload in parts: there are few."""
        if self._fates.random() >= min(10 * self.rate, 0.7):
            return passing
        name = self._fates.choice(list(COMPLETING))
        self.faults[name] += 1
        return COMPLETING[name]

    def image(self, exposure: int, number: int, rng: random.Random) -> None:
        """One image: its JSON file, then its FITS file."""
        stem = f"{'folded/' if rng.random() < FOLDED else ''}exposure{exposure:05}/image{number:02}"
        for kind, sizes in (("json", JSON), ("fits", IN_PARTS if rng.random() < LARGE else FITS)):
            if rng.random() < AGAIN:
                key = rng.choice(self.again)
            else:
                key = Key(f"{stem}.{kind}")
                with self._lock:
                    self.keys.append(key)
            with key.lock:
                try:
                    self.transfer(key, rng, rng.randint(*sizes))
                except Exception as exc:
                    self.false.append(f"{key.name}: {exc!r}")

    def transfer(self, key: Key, rng: random.Random, size: int) -> None:
        """Write a file, send it, and check the answer against the store."""
        content = rng.randbytes(size)
        md5, number = hashlib.md5(content, usedforsecurity=False).hexdigest(), len(key.contents)
        file = self.folder / f"{key.name.replace('/', '-')}.{number}"
        file.write_bytes(content)
        key.contents.append(md5)
        self.counts["transfers"] += 1
        self.counts["bytes"] += size
        again = True
        while again:
            began = time.monotonic()
            result, text = self.ask(file, f"alias/{self.bucket}/{key.name}", rng)
            self.answers[result] += 1
            again = result == "interrupted" or (result == "unanswered" and self.killed_at >= began)
        if result in ("stored", "accepted", "deferred"):
            key.accepted = number
        else:
            self.false.append(f"{key.name} was answered {text}")
        if result == "stored":
            if (found := self.found(key)) != md5:
                self.false.append(f"{key.name} was answered stored, but the store had {found or 'nothing'}")
            if rng.random() < 0.5:
                file.unlink()  # as an owner may who got this answer

    def ask(self, file: Path, destination: str, rng: random.Random) -> tuple[str, str]:
        """Send by one of the client's methods; the result as the extended form names it, and the whole answer."""
        way = rng.random()
        try:
            if way < BY_SEND:
                done = self.served.send(file, destination)
                text = done.stdout + done.stderr
                if " closed the connection (" in text:  # or the connection was reset before the request was read
                    return "unanswered", text
                return ("stored" if done.returncode == 0 else _word(text)), text
            if way < BY_SEND + UNWAITED:
                members = self.served.extended(file, destination, wait=False)
            elif way < 0.6:
                members = self.served.extended(file, destination)
            else:
                text = self.served.plain(file, destination).decode()
                return ("stored" if text == "Success" else _word(text)), text
        except HungUpError as exc:
            return "unanswered", str(exc)
        result = "interrupted" if members.get("code") == "Interrupted" else members["result"]
        return result, str(members)

    def found(self, key: Key) -> str:
        """The MD5 of what the store has, without the proxy; "" if the object is missing."""
        try:
            body = self.client.get_object(Bucket=self.bucket, Key=key.name)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return ""
        return hashlib.md5(body, usedforsecurity=False).hexdigest()

    def exposures(self, until: float) -> None:
        """Start exposures at the cadence until then, whether or not earlier ones are complete."""
        with ThreadPoolExecutor(8 * IMAGES) as pool:
            while time.monotonic() < until:
                self.counts["exposures"] += 1
                for number in range(IMAGES):
                    pool.submit(self.image, self.counts["exposures"], number, random.Random(self.rng.random()))
                time.sleep(self.rng.uniform(*CADENCE_S))

    def disturb(self, until: float) -> None:
        """Cause events until then; end without faults."""
        rng = random.Random(self.rng.random())
        first = rng.sample(list(EVENTS), len(EVENTS))  # each once at least
        while time.monotonic() < until:
            event = first.pop() if first else rng.choices(list(EVENTS), list(EVENTS.values()))[0]
            self.counts[event] += 1
            getattr(self, f"_{event}")(rng)
            processes.mark()
            time.sleep(rng.uniform(*EVERY_S))
        self.rate = 0.0
        self._reload(rng)

    def _kill(self, rng: random.Random) -> None:
        self.killed_at = math.inf  # a request may begin while it dies
        self.served.kill()
        self.killed_at = time.monotonic()
        time.sleep(rng.choice((0.0, 0.5)))
        self.served.start()

    def _terminate(self, _: random.Random) -> None:
        self.served.terminate()
        self.served.start()

    def _reload(self, rng: random.Random) -> None:
        answer = self.served.ask("reload", environ=self.served.environ | {
            "S3DAEMON_BWLIMIT": rng.choice(("0", "1G")), "S3DAEMON_MAX_CONNECTIONS": rng.choice(("12", "25")),
        })  # fmt: skip
        assert "applied" in answer, answer

    def _outage(self, rng: random.Random) -> None:
        self.between.refuse()
        time.sleep(rng.uniform(0.5, 8))
        self.between.open()

    def _address(self, rng: random.Random) -> None:
        self.between.refuse(rng.choice(ADDRESSES))
        time.sleep(rng.uniform(0.5, 8))
        self.between.open()

    def _hold(self, rng: random.Random) -> None:
        self.refusing_keys = rng.choice(list(REFUSALS))
        self.between.neutral = REFUSALS[self.refusing_keys]
        time.sleep(rng.uniform(1, 4))
        self.refusing_keys, self.between.neutral = "", passing
        self._reload(rng)

    def _fold(self, rng: random.Random) -> None:
        self.folding = True
        time.sleep(rng.uniform(1, 8))
        self.folding = False

    def _calm(self, _: random.Random) -> None:
        self.rate = 0.0

    def _rough(self, rng: random.Random) -> None:
        self.rate = rng.choice((0.02, 0.1, 0.4))

    def audit(self) -> dict[str, Any]:
        """Compare every object with what was sent; return the figures."""
        self.served.wait_idle(timeout=300)
        left = self.served.queue()
        lost, torn = list[str](), list[str]()
        keys = [key for key in (*self.keys, *self.again) if key.contents]
        with ThreadPoolExecutor(8) as pool:
            for key, found in zip(keys, pool.map(self.found, keys), strict=True):
                if found and found not in key.contents:
                    torn.append(key.name)
                elif found not in key.contents[max(key.accepted, 0) :] and key.accepted >= 0:
                    lost.append(key.name)
        records = [record for record in self.served.records() if record.outcome == "stored"]
        unrecorded = {key.name for key in keys if key.accepted >= 0} - {record.key for record in records}
        whole = self.between.whole.total()
        return {
            **self.counts,
            "answers": dict(self.answers),
            "faults": self.faults.total(),
            "faults_by_kind": dict(sorted(self.faults.items())),
            "attempts": sum(record.attempts for record in records),
            "most_attempts": max(record.attempts for record in records),
            "puts_whole_at_the_store": whole,
            "lost": lost,
            "torn": torn,
            "false": self.false,
            "left_in_the_queue": [row["destination"] for row in left],
            "without_a_record": sorted(unrecorded),
        }


def _word(text: str) -> str:
    return text.removeprefix("send: ").partition(":")[0].strip().lower()


def run(minutes: float, seed: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Run one soak; return its figures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3daemon-soak-")))
        for name in ("store", "files"):
            (folder / name).mkdir()
        store = stack.enter_context(seaweed(folder / "store"))
        between, through = stack.enter_context(proxy(store, addresses=ADDRESSES))
        served = stack.enter_context(daemon(folder / "state", through, activated=True, keeping=True, **LIMITS))
        soak = Soak(served, between, store, folder / "files", seed)
        stack.callback(soak.client.close)
        until = time.monotonic() + 60 * minutes
        sending = threading.Thread(target=soak.exposures, args=(until,), name="exposures")
        sending.start()
        try:
            soak.disturb(until)  # in this thread, whose end would end the daemons that it starts
        finally:
            between.open()
            sending.join()
        note(f"{soak.counts['transfers']} transfers sent; the audit begins")
        return {"minutes": minutes, "seed": seed} | soak.audit()


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(description="A soak with faults, kills and reloads, and an audit.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    args = parser.parse_args()
    figures = run(args.minutes, args.seed, lambda text: print(text, flush=True))
    wrong = [name for name in ("lost", "torn", "false", "left_in_the_queue", "without_a_record") if figures[name]]
    text = json.dumps(figures, indent=1)
    if args.json:
        args.json.write_text(text)
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
