"""The single checks of the daemon over a long fat network; each yields figures against their bars."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.acked import watching
from bench.common import make_files
from bench.contenders import Deliver, DeliveryError, over_the_wire
from bench.exposure import Burst, Files, Shape, ours
from bench.gate import Fault, gate
from lab.certs import Authority
from lab.daemon import Daemon
from lab.nginx import NAME, nginx
from lab.processes import start
from lab.s3 import S3Server
from lab.wan import FAR, Wan

#: Every connection is open and ready when next to nothing crossed the link for this long.
QUIET_S, QUIET_BYTES = 2.0, 2_000
RECEIVERS = tuple(f"10.77.1.{n}" for n in range(1, 5))
STALL_S = 5.0


@dataclass(frozen=True)
class Finding:
    """A figure against its bar; `met` is None where there is no bar, or nothing to measure."""

    what: str
    figure: str
    bar: str = ""
    met: bool | None = None

    def line(self) -> str:
        """For people."""
        verdict = {True: "met", False: "MISSED", None: ""}[self.met]
        return f"{self.what:44} {self.figure:>22}   {self.bar and f'bar {self.bar}':18} {verdict}"


@dataclass
class Bench:
    """What every check uses."""

    link: Wan
    shape: Shape
    server: S3Server
    files: Files
    work: Path
    far: Path
    authority: Authority
    args: argparse.Namespace
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def directory(self, *, far: bool = False) -> Path:
        """A new one: of the near side's disk, or of the far side's memory."""
        return Path(tempfile.mkdtemp(dir=self.far if far else self.work))

    @contextmanager
    def paced(self, server: S3Server | None = None, **settings: str) -> Iterator[tuple[Daemon, Deliver]]:
        """s3daemon at the link's rate, its connections open."""
        with self.daemon(server, **{"bwlimit": self.args.bwlimit, **settings}) as started:
            yield started

    @contextmanager
    def daemon(
        self, server: S3Server | None = None, *, quiet: bool = True, **settings: Any
    ) -> Iterator[tuple[Daemon, Deliver]]:
        """s3daemon, its connections open; without `quiet` the link need not be."""
        chosen = {**settings, **dict(word.split("=", 1) for word in self.args.set)}
        with ours(server or self.server, self.directory(), **chosen) as started:
            if quiet:
                self.settle()
            yield started

    def settle(self) -> None:
        """Wait until nothing but a touch now and then crosses the link: some ten seconds."""
        sent, still = -QUIET_BYTES, 0
        while still < QUIET_S / 0.5:
            now = self.link.stats()["near_to_far"]["rx_bytes"]
            still = still + 1 if now - sent < QUIET_BYTES else 0
            sent = now
            time.sleep(0.5)

    def bursts(self, deliver: Deliver, name: str, count: int, apart_s: float | None = None) -> list[Burst]:
        """Exposures."""
        return asyncio.run(self.files.bursts(deliver, name, count, self.args.apart if apart_s is None else apart_s))

    def ratios(self, bursts: Sequence[Burst]) -> list[float]:
        """To the limit."""
        return [burst.done / self.shape.limit_s() for burst in bursts]


def listed(figures: Sequence[float]) -> str:
    """Two digits each."""
    return " ".join(f"{figure:.2f}" for figure in figures)


def _at_most(what: str, figures: Sequence[float], bar: float) -> Finding:
    """The median against a bar that it may not pass."""
    middle = statistics.median(figures)
    several = f"  ({listed(figures)})" if len(figures) > 1 else ""
    return Finding(what, f"{middle:.2f}{several}", f"<= {bar:.2f}", middle <= bar)


def idle(bench: Bench) -> Iterator[Finding]:
    """As good after a long idleness."""
    with bench.paced() as (_, deliver):
        bench.bursts(deliver, "idle", 2)
        time.sleep(bench.args.idle)
        after = bench.bursts(deliver, "idle/after", 1)
    yield _at_most(f"burst after {bench.args.idle:g} s of idleness", bench.ratios(after), 1.10)


def idleclose(bench: Bench) -> Iterator[Finding]:
    """As good with a server that closes idle connections after 15 s."""
    with ExitStack() as stack:
        with bench.link.inside("far"):
            server = stack.enter_context(nginx(bench.directory(far=True), bench.authority, host=FAR, keepalive_s=15))
        _, deliver = stack.enter_context(bench.paced(server))
        bursts = bench.bursts(deliver, "idleclose", 3)
    yield Finding("server closes after 15 s: first two", listed(bench.ratios(bursts[:2])))
    yield _at_most("server closes after 15 s: third burst", bench.ratios(bursts[2:]), 1.10)


def loss(bench: Bench) -> Iterator[Finding]:
    """0.01 % of the packets lost each way, with bbr."""
    bench.link.shape(**bench.args.link, loss=0.0001, cc="bbr")
    try:
        with bench.paced() as (_, deliver):
            bursts = bench.bursts(deliver, "loss", 3)
    finally:
        bench.link.shape(**bench.args.link)
    yield Finding("0.01 % loss, bbr: first two", listed(bench.ratios(bursts[:2])))
    yield _at_most("0.01 % loss, bbr: third burst", bench.ratios(bursts[2:]), 1.2)


def single(bench: Bench) -> Iterator[Finding]:
    """One file of 1 GiB."""
    size = 1 << 30
    (file,) = make_files(bench.directory(), 1, size)
    with bench.paced() as (_, deliver):
        for what in ("right after the start", "again"):
            began = time.monotonic()
            asyncio.run(deliver(file, f"{bench.files.bucket}/single"))
            share = size * 8 / (time.monotonic() - began) / bench.shape.rate_bps
            yield Finding(f"one file of 1 GiB, {what}: share of the link", f"{share:.3f}", ">= 0.85", share >= 0.85)
    file.unlink()


def bwlimit(bench: Bench) -> Iterator[Finding]:
    """A limit of 200 Mbit/s, by bytes acknowledged from 2 s after the start to 1 s before the end."""
    limit = 200e6

    async def measured(deliver: Deliver, files: Sequence[Path]) -> float:
        async with watching() as acked:
            began = time.monotonic()
            to = f"{bench.files.bucket}/bwlimit"
            await asyncio.gather(*(deliver(file, f"{to}/{file.name}") for file in files))
            ended = time.monotonic()
        return acked.rate_bps(began + 2, ended - 1)

    with bench.daemon(bwlimit="200M") as (_, deliver):
        for count in (1, 25):
            files = make_files(bench.directory(), count, (240 << 20) // count)
            rate = asyncio.run(measured(deliver, files))
            met = abs(rate / limit - 1) <= 0.05
            yield Finding(f"limit of 200 Mbit/s, {count} uploads: Mbit/s", f"{rate / 1e6:.1f}", "190 to 210", met)


def stalls(bench: Bench) -> Iterator[Finding]:
    """One of 25 uploads meets a receiver that fails; it ends in time and is stored, the others are not delayed."""
    target = urlsplit(bench.server.url)
    settings = {"stall_timeout": f"{STALL_S:g}s", "answer_timeout": f"{STALL_S:g}s", "connect_timeout": f"{STALL_S:g}s"}
    files = make_files(bench.directory(), 25, 8 << 20)
    with ExitStack() as stack:
        with bench.link.inside("far"):
            bad, port, loop = stack.enter_context(gate(FAR, target.port or 443))
        server = S3Server(f"https://{FAR}:{port}", bench.server.access_key, bench.server.secret_key, bench.server.ca)
        running, deliver = stack.enter_context(bench.paced(server, **settings))

        async def uploads(name: str, fault: Fault | None) -> tuple[list[float], float]:
            took = list[float]()

            async def one(file: Path) -> None:
                began = time.monotonic()
                await deliver(file, f"{bench.files.bucket}/stalls/{name}/{file.name}")
                took.append(time.monotonic() - began)

            async with watching(0.05) as acked:
                if fault is not None:
                    bad.arm(fault)
                if fault is Fault.SILENT:
                    loop.call_soon_threadsafe(bad.reset_one)
                await asyncio.gather(*map(one, files))
                if fault is Fault.SILENT:  # the keeper finds it, and no upload waits for that
                    await asyncio.sleep(STALL_S + 1.5)
            return sorted(took), acked.stalled_s(bad.victim) if fault is not None else 0.0

        for n in range(2):  # the second on warm connections is what the others are held against
            usual, _ = asyncio.run(uploads(f"none{n}", None))
        yield Finding("25 uploads through the gate: the last, s", f"{usual[-1]:.2f}")
        for fault in Fault:
            bench.settle()
            before = len(running.records())
            took, stood = asyncio.run(uploads(fault.name, fault))
            attempts = sorted(record.attempts for record in running.records()[before:])
            what = fault.value
            yield Finding(f"{what}: ended after, s", f"{stood:.2f}", f"<= {STALL_S + 1:g}", stood <= STALL_S + 1)
            yield Finding(f"{what}: most attempts, stored after s", f"{attempts[-1]}, {took[-1]:.1f}", "<= 2",
                          attempts[-1] <= 2)  # fmt: skip
            others = took[-2] / usual[-1]
            met = others <= 1.1 and attempts[-2] == 1
            yield Finding(f"{what}: the other 24, against usual", f"{others:.2f}", "<= 1.10", met)


def receivers(bench: Bench) -> Iterator[Finding]:
    """One of four receivers answers 503 to everything."""
    with ExitStack() as stack:
        for address in RECEIVERS:
            bench.link.ip("far", "addr", "replace", f"{address}/32", "dev", "wan0")
        bench.link.ip("near", "route", "replace", "10.77.1.0/24", "dev", "wan0")
        with bench.link.inside("far"):
            made = nginx(
                bench.directory(far=True), bench.authority, host=FAR, receivers=RECEIVERS[1:], refusing=RECEIVERS[0]
            )
            server = stack.enter_context(made)
        # S3DAEMON_RECEIVERS goes with an endpoint that has a name.
        named = S3Server(server.url.replace(FAR, NAME), server.access_key, server.secret_key, server.ca)
        running, deliver = stack.enter_context(bench.paced(named, receivers=",".join(RECEIVERS)))

        bursts = bench.bursts(deliver, "receivers", 3)
        attempts = max(record.attempts for record in running.records())
    yield Finding("one receiver of four refuses: first two", listed(bench.ratios(bursts[:2])))
    yield _at_most("one receiver of four refuses: third burst", bench.ratios(bursts[2:]), 1.3)
    yield Finding("one receiver of four refuses: most attempts", str(attempts), "<= 2", attempts <= 2)


@contextmanager
def _link(bench: Bench, **options: Any) -> Iterator[Shape]:
    """The link with other properties for the time of a block."""
    chosen = {**bench.args.link, **options}
    bench.link.shape(**chosen)
    try:
        yield Shape(chosen["rtt_ms"] / 1000, chosen["rate_mbit"] * 1e6)
    finally:
        bench.link.shape(**bench.args.link)


def _dropped(bench: Bench) -> int:
    dropped: int = bench.link.stats()["near_to_far"]["qdrop_pkts"]
    return dropped


def _exposures(bench: Bench, deliver: Deliver, name: str, shape: Shape, count: int) -> tuple[list[float], list[int]]:
    """Return each exposure's ratio to the limit of that link, and the packets that it found the queue full with."""
    ratios, drops, before = list[float](), list[int](), _dropped(bench)
    for number in range(count):
        (burst,) = bench.bursts(deliver, f"{name}/{number}", 1)
        ratios.append(burst.done / shape.limit_s())
        drops.append((now := _dropped(bench)) - before)
        before = now
        time.sleep(max(0.0, bench.args.apart - burst.done))
    return ratios, drops


def rates(bench: Bench) -> Iterator[Finding]:
    """Links of other rates, nothing set."""
    for mbit in (100, 300, 2500):
        with _link(bench, rate_mbit=mbit) as shape, bench.daemon() as (_, deliver):
            ratios, drops = _exposures(bench, deliver, f"rate{mbit}", shape, 3)
        yield Finding(f"{mbit} Mbit/s: first two", listed(ratios[:2]))
        yield _at_most(f"{mbit} Mbit/s: third exposure", ratios[2:], 1.15)
        yield Finding(f"{mbit} Mbit/s: dropped", " ".join(map(str, drops)), "0 from the 2nd", not any(drops[1:]))


def queue(bench: Bench) -> Iterator[Finding]:
    """A queue of 1 MB, nothing set."""
    with _link(bench, queue=1_000_000) as shape, bench.daemon() as (_, deliver):
        ratios, drops = _exposures(bench, deliver, "queue", shape, 3)
    yield Finding("a queue of 1 MB: first two", listed(ratios[:2]))
    yield _at_most("a queue of 1 MB: third exposure", ratios[2:], 1.15)
    yield Finding("a queue of 1 MB: dropped", " ".join(map(str, drops)))


def change(bench: Bench) -> Iterator[Finding]:
    """A link that narrows and widens, nothing set."""
    with bench.daemon() as (_, deliver):
        for number, mbit in enumerate((bench.args.rate, 0.3 * bench.args.rate, bench.args.rate)):
            with _link(bench, rate_mbit=mbit) as shape:
                ratios, drops = _exposures(bench, deliver, f"change{number}", shape, 3)
            what = f"{'at' if not number else 'then'} {mbit:g} Mbit/s"
            yield Finding(f"{what}: first and third", listed(ratios[::2]))
            yield _at_most(f"{what}: second exposure", ratios[1:2], 1.2)
            yield Finding(f"{what}: dropped", " ".join(map(str, drops)))


#: A bulk transfer over one connection: to the address given, until it is ended.
_BULK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
body = bytes(1 << 20)
while True:
    sock.sendall(body)
"""
_SINK = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    sock, _ = server.accept()
    while sock.recv(1 << 20):
        pass
"""
BULK_PORT, RIVAL_S = 5001, 30.0


def rival(bench: Bench) -> Iterator[Finding]:
    """A bulk transfer over one connection with the kernel's congestion control, begun before and after ours.

    A daemon knows the link's rate from the exposures before, or from the process before; not where the endpoint is new.
    """
    size = 8 << 20
    files = make_files(bench.directory(), 23, size)

    @contextmanager
    def bulk() -> Iterator[None]:
        with start(sys.executable, "-c", _BULK, FAR, str(BULK_PORT), name="bulk"):
            yield

    async def ours_for(deliver: Deliver, seconds: float) -> int:
        """Upload the files again and again; return the bytes that were stored."""
        began, stored = time.monotonic(), 0

        async def one(file: Path) -> None:
            nonlocal stored
            while time.monotonic() - began < seconds:
                try:
                    await deliver(file, f"{bench.files.bucket}/rival/{file.name}")
                except DeliveryError:  # too slow for its client, or for its attempt
                    continue
                stored += size if time.monotonic() - began < seconds else 0

        await asyncio.gather(*map(one, files))
        return stored

    with bench.link.inside("far"), start(sys.executable, "-c", _SINK, FAR, str(BULK_PORT), name="sink") as sink:
        sink.wait_port(BULK_PORT, FAR)
        with bench.link.inside("near"):
            for is_known, is_first in ((False, True), (True, True), (True, False)):
                with ExitStack() as stack:
                    if not is_known:
                        stack.enter_context(bulk())
                        time.sleep(RIVAL_S / 2)
                    _, deliver = stack.enter_context(bench.daemon(quiet=False))
                    if is_known:
                        bench.bursts(deliver, "rival/before", 2)
                        stack.enter_context(bulk())
                        if is_first:
                            time.sleep(RIVAL_S / 2)
                        else:
                            asyncio.run(ours_for(deliver, RIVAL_S / 3))
                    before = bench.link.stats()["near_to_far"]["tx_bytes"]
                    stored = asyncio.run(ours_for(deliver, RIVAL_S))
                    passed = bench.link.stats()["near_to_far"]["tx_bytes"] - before
                share = stored / passed
                what = f"begun {'before' if is_first else 'after'} us, the rate {'' if is_known else 'not '}known"
                yield Finding(
                    f"a bulk transfer {what}: our share", f"{share:.2f}", "0.35 to 0.65", 0.35 <= share <= 0.65
                )


def slowstart(bench: Bench) -> Iterator[Finding]:
    """Where connections forget their windows in each pause, nothing set."""
    with _link(bench, slow_start_after_idle=1) as shape, bench.daemon() as (_, deliver):
        ratios, _ = _exposures(bench, deliver, "slowstart", shape, 3)
    yield Finding("slow start after idle: first two", listed(ratios[:2]))
    yield _at_most("slow start after idle: third exposure", ratios[2:], 1.3)


def restart(bench: Bench) -> Iterator[Finding]:
    """The first exposure after a restart, which knows the rate; with connections primed by refused requests too."""
    for prime, bar in (("off", 1.6), ("auto", 1.2)):
        with bench.daemon(prime=prime) as (daemon, deliver):
            bench.bursts(deliver, f"restart/{prime}", 2)
            daemon.terminate()
            daemon.start()
            time.sleep(bench.args.apart)
            after = bench.bursts(over_the_wire(daemon.port), f"restart/{prime}/after", 1)
        yield _at_most(f"first exposure after a restart, PRIME={prime}", bench.ratios(after), bar)


async def _ask(port: int, request: dict[str, object]) -> dict[str, Any]:
    """Send a request in its extended form; the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(json.dumps(request).encode() + b"\n")
    answer: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    return answer


def nowait(bench: Bench) -> Iterator[Finding]:
    """Exposures by hooks that do not wait, and one question at the end: no image waits for its sidecar's answer."""

    async def expose(port: int, tag: str) -> float:
        """Seconds until everything is known to be stored."""
        files = bench.files
        began = time.monotonic()

        async def hook(pair: Sequence[Path]) -> None:
            for file in pair:
                destination = f"any/{files.bucket}/{tag}/{file.name}"
                answer = await _ask(port, {"file": str(file), "destination": destination, "tag": tag, "wait": False})
                if answer["result"] != "accepted":
                    raise DeliveryError(str(answer))

        await asyncio.gather(*map(hook, files.pairs))
        answer = await _ask(port, {"wait_for": tag, "expect": 2 * len(files.pairs)})
        if answer["result"] != "stored":
            raise DeliveryError(str(answer))
        return time.monotonic() - began

    least = bench.shape.limit_s() - bench.shape.rtt_s
    ratios = []
    with bench.daemon() as (daemon, _):
        for number in range(bench.args.bursts):
            began = time.monotonic()
            ratios.append(asyncio.run(expose(daemon.port, f"nowait/{number}")) / least)
            if number < bench.args.bursts - 1:
                time.sleep(max(0.0, began + bench.args.apart - time.monotonic()))
    yield Finding("hooks that do not wait, one round trip", listed(ratios))


CHECKS: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    check.__name__: check
    for checks in (
        (idle, idleclose, loss, single, bwlimit, stalls, receivers),
        (rates, queue, change, rival, slowstart, restart, nowait),
    )
    for check in checks
}
