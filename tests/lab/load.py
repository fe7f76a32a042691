"""Clients by the thousand, and what the daemon holds meanwhile: for tests of load and for tests/bench/load."""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.daemon import Daemon

PATIENCE_S = 600.0
#: Before a daemon of this limit: what the project demands of it.
FEW_DESCRIPTORS = ("prlimit", "--nofile=4096:4096", "--")


@dataclass(frozen=True)
class Held:
    """What a daemon holds at a moment.

    Args:
        rss: resident memory, bytes.
        descriptors: open ones.
        threads: of the process.
    """

    rss: int
    descriptors: int
    threads: int

    @classmethod
    def by(cls, served: Daemon) -> Held:
        """Look."""
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.M))
        return cls(int(found["VmRSS"]) * 1024, served.descriptors(), int(found["Threads"]))

    def __str__(self) -> str:
        return f"{self.rss / 1e6:.1f} MB, {self.descriptors} descriptors, {self.threads} threads"


def held_at_rest(served: Daemon, most: int, timeout: float = 60.0) -> Held:
    """What it holds once it has nothing to do and no more descriptors than `most`, or after the timeout."""
    served.wait_status(lambda now: now["clients"] == now["pending"] == now["in_flight"] == 0, "at rest", timeout)
    until = time.monotonic() + timeout
    while (held := Held.by(served)).descriptors > most and time.monotonic() < until:
        time.sleep(0.1)  # connections to the store come and go
    return held


async def ask(port: int, file: Path, destination: str) -> str:
    """A plain request: the first word of its reply, or what went wrong."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(f"{file} {destination}\n".encode())
                return (await reader.read()).decode().partition(":")[0] or "nothing"
            finally:
                writer.close()
    except (OSError, TimeoutError) as exc:
        return type(exc).__name__


def crowd(served: Daemon, file: Path, count: int, bucket: str = "bucket") -> Counter[str]:
    """So many clients at once, each with a destination of its own: how often each reply was given."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def main() -> list[str]:
        return await asyncio.gather(*(ask(served.port, file, f"a/{bucket}/crowd/{n}") for n in range(count)))

    return Counter(asyncio.run(main()))


@dataclass(frozen=True)
class Series:
    """Many transfers in a row.

    Args:
        replies: how often each was given.
        seconds: for all.
        samples: transfers done and what was held then, from a quarter of the way on: by then all is warm.
    """

    replies: Counter[str]
    seconds: float
    samples: Sequence[tuple[int, Held]]

    def slope(self, figure: str) -> float:
        """Growth of a figure of `Held`, for 1 000 transfers."""
        done = [float(count) for count, _ in self.samples]
        figures = [float(getattr(held, figure)) for _, held in self.samples]
        return 1000 * statistics.linear_regression(done, figures).slope


def series(served: Daemon, file: Path, count: int, *, at_once: int = 50, bucket: str = "bucket") -> Series:
    """So many transfers, some at a time; keys come again after 5 000, so that the store's memory does not grow."""
    replies, samples = Counter[str](), list[tuple[int, Held]]()
    numbers = iter(range(count))
    every = max(1, count // 100)

    async def client() -> None:
        for number in numbers:
            replies[await ask(served.port, file, f"a/{bucket}/series/{number % 5000}")] += 1
            if number % every == 0 and number >= count // 2:
                samples.append((number, Held.by(served)))

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(at_once)))

    began = time.monotonic()
    asyncio.run(main())
    return Series(replies, time.monotonic() - began, samples)
