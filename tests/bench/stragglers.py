"""Slow connections among fast ones, over loopback: what they cost an exposure. Not a test: run it alone.

    tests/bench/stragglers [--only connections] [--bursts N]

    connections  one connection in five is read at 100 kB/s: 23 x 2 MiB and 23 x 8 MiB
    receivers    one receiver of four is
    turning      a file of 1 GiB in parts; the connection of one part turns slow in its middle
    all          every connection is slow: nothing is moved, and nothing deferred earlier

Each exposure is held against the same one without stragglers, in the same run; the store counts what it stores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common import make_files
from bench.contenders import Deliver
from bench.exposure import HOOKS, Burst, Files, ours
from lab.counting import GOOD, Request, Store, Treatment, counting
from lab.daemon import Daemon

SLOW = Treatment(rate=100e3)
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4")
NAME = "store.invalid"
MIB = 1 << 20
SIZES = (2 * MIB, 8 * MIB)
TIMES, PLUS_S = 1.5, 0.5
APART_S = 3.0


@dataclass
class Scene:
    """A daemon before a store."""

    store: Store
    daemon: Daemon
    deliver: Deliver
    work: Path
    names: set[str] = field(default_factory=set)

    def exposures(self, name: str, size: int, count: int) -> list[Burst]:
        """Exposures of images of this size."""
        files = Files(self.work / name, "bucket", HOOKS, size)
        return asyncio.run(files.bursts(self.deliver, name, count, APART_S))

    def wrong(self) -> list[str]:
        """What was not stored exactly once, by the store's own count."""
        return [f"{name}: {count}" for name, count in self.store.stored.items() if count != 1]

    def moved(self) -> int:
        """How many moves the daemon has logged."""
        return sum("is moved to another connection" in line for line in self.daemon.lines())


@contextmanager
def scene(work: Path, addresses: tuple[str, ...] = ADDRESSES[:1], **settings: str) -> Iterator[Scene]:
    """A daemon, all of its connections open, before a store at these addresses."""
    directory = Path(tempfile.mkdtemp(dir=work))
    with counting(addresses) as (store, server):
        if len(addresses) > 1:
            server = type(server)(server.url.replace(addresses[0], NAME), server.access_key, server.secret_key)
            settings["receivers"] = ",".join(addresses)
        with ours(server, directory / "state", **settings) as (running, deliver):
            running.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
            yield Scene(store, running, deliver, directory)


def one_in_five(request: Request) -> Treatment:
    """For its life."""
    return SLOW if request.connection.number % 5 == 2 else GOOD


def at_the_first(request: Request) -> Treatment:
    """One receiver."""
    return SLOW if request.connection.address == ADDRESSES[0] else GOOD


def show(what: str, figure: str, *, met: bool | None = None) -> None:
    """A figure and its verdict."""
    print(f"{what:60} {figure:>28}  {'' if met is None else 'met' if met else 'MISSED'}", flush=True)


def _held_against(name: str, usual: list[Burst], found: list[Burst], made: Scene) -> None:
    base = statistics.median(burst.done for burst in usual)
    for number, burst in enumerate(found, 1):
        bar = TIMES * base + PLUS_S
        met = burst.done <= bar and not burst.failures
        show(f"{name}: last object of exposure {number}, s", f"{burst.done:.2f} of {bar:.2f} ({base:.2f})", met=met)
    wrong = made.wrong()
    show(f"{name}: not stored exactly once", ", ".join(wrong[:3]) or "0", met=not wrong)
    attempts = max(record.attempts for record in made.daemon.records())
    show(f"{name}: moves; most attempts", f"{made.moved()}; {attempts}", met=attempts == 1)


def connections(work: Path, bursts: int) -> None:
    """One connection in five."""
    for size in SIZES:
        with scene(work) as made:
            usual = made.exposures("usual", size, bursts)
        with scene(work) as made:
            made.store.treat = one_in_five
            found = made.exposures("slow", size, bursts)
            _held_against(f"one connection in five, {size >> 20} MiB", usual, found, made)


def receivers(work: Path, bursts: int) -> None:
    """One receiver of four."""
    for size in SIZES:
        with scene(work, ADDRESSES) as made:
            usual = made.exposures("usual", size, bursts)
        with scene(work, ADDRESSES) as made:
            made.store.treat = at_the_first
            name = f"one receiver of four, {size >> 20} MiB"
            first = made.exposures("slow", size, 1)
            time.sleep(APART_S)
            second = made.exposures("again", size, 1)
            disabled = [line for line in made.daemon.lines() if f"{ADDRESSES[0]} of the store is temporarily" in line]
            show(f"{name}: disabled by the second", str(bool(disabled)), met=bool(disabled))
            time.sleep(APART_S)
            _held_against(name, usual, first + second + made.exposures("more", size, max(1, bursts - 2)), made)


def turning(work: Path, bursts: int) -> None:
    """One part of a large file."""
    (file,) = make_files(work / "large", 1, 1 << 30)
    with scene(work) as made:
        began = time.monotonic()
        asyncio.run(made.deliver(file, "bucket/usual"))
        usual = time.monotonic() - began

        turned = list[Request]()

        def treat(request: Request) -> Treatment:
            if not request.target.endswith("partNumber=3") or turned:
                return GOOD
            turned.append(request)
            return Treatment(rate=100e3, after=32 << 20)

        made.store.treat = treat
        began = time.monotonic()
        asyncio.run(made.deliver(file, "bucket/turning"))
        took = time.monotonic() - began
        again = made.moved()
        show("1 GiB, a part turns slow: s, without", f"{took:.2f}, {usual:.2f}")
        show("1 GiB, a part turns slow: parts sent again, of both files", str(again), met=again == 1)
        wrong = made.wrong()
        show("1 GiB: not stored exactly once", ", ".join(wrong[:3]) or "0", met=not wrong)


def all_slow(work: Path, bursts: int) -> None:
    """Every connection."""
    with scene(work) as made:
        made.exposures("before", SIZES[0], 1)
        made.store.treat = lambda _: Treatment(rate=300e3)
        found = made.exposures("slow", SIZES[0], 1)[0]
        show("all slow: moves", str(made.moved()), met=made.moved() == 0)
        show("all slow: last object, s; failures", f"{found.done:.2f}; {len(found.failures)}", met=not found.failures)
        wrong = made.wrong()
        show("all slow: not stored exactly once", ", ".join(wrong[:3]) or "0", met=not wrong)


CHECKS: dict[str, Callable[[Path, int], Any]] = {
    "connections": connections, "receivers": receivers, "turning": turning, "all": all_slow
}  # fmt: skip


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CHECKS, help="these checks (all of them)")
    parser.add_argument("--bursts", type=int, default=3, help="exposures of each (3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work:
        for name in args.only or CHECKS:
            CHECKS[name](Path(tempfile.mkdtemp(dir=work)), args.bursts)


if __name__ == "__main__":
    main()
