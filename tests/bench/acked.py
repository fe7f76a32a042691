"""The bytes that the far side acknowledged on each connection, by the kernel's count, several times a second."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

#: An established connection's local port, and what was acknowledged on it, in a line of `ss -tinHO`.
_LINE = re.compile(r"ESTAB +\d+ +\d+ +\S+:(?P<port>\d+) +\S+:\d+ .*?(?:\bbytes_acked:(?P<acked>\d+)|$)")


@dataclass
class Acked:
    """Samples of one side.

    Args:
        samples: the time of each, monotonic seconds, and the bytes acknowledged by local port.
    """

    samples: list[tuple[float, Mapping[int, int]]] = field(default_factory=list)

    async def look(self) -> None:
        """Take a sample."""
        words = ("ss", "-tinHO", "dst", "10.77.0.0/16")
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        printed, _ = await process.communicate()
        now = time.monotonic()
        found = [match for line in printed.decode().splitlines() if (match := _LINE.match(line))]
        self.samples.append((now, {int(match["port"]): int(match["acked"] or 0) for match in found}))

    def rate_bps(self, begin: float, end: float) -> float:
        """Bit/s acknowledged between two times, over all connections that were there throughout."""
        within = [sample for sample in self.samples if begin <= sample[0] <= end]
        (first, before), (last, after) = within[0], within[-1]
        return 8 * sum(after[port] - before[port] for port in before.keys() & after.keys()) / (last - first)

    def stalled_s(self, port: int) -> float:
        """Seconds from the last byte that was acknowledged on a connection to its end."""
        mine = [(when, counts[port]) for when, counts in self.samples if port in counts]
        last = next(when for when, acked in mine if acked == mine[-1][1])
        gone = next((when for when, _ in self.samples if when > mine[-1][0]), float("inf"))
        return gone - last


@asynccontextmanager
async def watching(every_s: float = 0.1) -> AsyncIterator[Acked]:
    """Sample the calling thread's side for the time of a block."""
    found, over = Acked(), asyncio.Event()

    async def watch() -> None:
        while not over.is_set():  # never cancelled: a program that is left behind would outlive the loop
            await found.look()
            await asyncio.sleep(every_s)

    task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        await asyncio.sleep(2 * every_s)
        over.set()
        await task
