"""23 sidecars of 3 kB at once, to a store 200 ms away: what each contender adds to the round trip.

The exposures go to one contender after the other, so that each figure has its baseline beside it.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.common import make_files
from bench.contenders import Deliver, given, over_the_wire, raw
from lab.certs import Authority
from lab.daemon import daemon
from lab.env import TREE, clean_env, free_ports
from lab.processes import start
from lab.s3 import S3Server

HOOKS, SIDECAR_BYTES, RTT_S = 23, 3_000, 0.2


@contextmanager
def distant(authority: Authority) -> Iterator[S3Server]:
    """The distant store."""
    (port,) = free_ports(1)
    certificate = authority.issue("distant", "DNS:localhost", "IP:127.0.0.1")
    environ = clean_env(PYTHONPATH=f"{TREE / 'tests'}:{TREE}")
    words = (str(port), str(certificate.cert), str(certificate.key), str(RTT_S))
    with start(sys.executable, "-m", "bench.distant", *words, name="distant", env=environ) as process:
        process.wait_port(port)
        yield S3Server(f"https://localhost:{port}", "any", "any", authority.ca)


@dataclass
class Above:
    """Milliseconds above the round trip, of each exposure in order.

    Args:
        medians: of the exposure's sidecars.
        worst: of the last one.
    """

    medians: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Of the exposures after the first: that one opens what connections a contender has not."""
        return statistics.median(self.medians[1:] or self.medians)

    @property
    def late(self) -> float:
        """How far the worst sidecar of all of them came after their median."""
        return max(self.worst[1:] or self.worst) - self.median


async def expose(deliver: Deliver, files: Sequence[Path], name: str, above: Above) -> None:
    """All sidecars at once."""

    async def one(file: Path) -> float:
        began = time.monotonic()
        await deliver(file, f"bucket/{name}/{file.name}")
        return (time.monotonic() - began - RTT_S) * 1000

    took = await asyncio.gather(*map(one, files))
    above.medians.append(statistics.median(took))
    above.worst.append(max(took))


def measure(work: Path, authority: Authority, rounds: int, daemons: Sequence[str]) -> dict[str, Above]:
    """That many exposures, and one before, of each contender; ours is `wire`, its floor `raw`."""
    files = make_files(work / "sidecars", HOOKS, SIDECAR_BYTES)
    found: dict[str, Above] = {}
    with ExitStack() as stack:
        store = stack.enter_context(distant(authority))
        state = work / "state"
        ours = stack.enter_context(daemon(state, store))
        ours.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
        contenders = {"wire": over_the_wire(ours.port), "raw": stack.enter_context(raw(store))[1]}
        for text in daemons:
            contenders[text.partition("=")[0]] = stack.enter_context(given(text, store))[1]
        for number in range(rounds + 1):
            for name, deliver in contenders.items():
                asyncio.run(expose(deliver, files, f"{name}/{number}", found.setdefault(name, Above())))
    return found
