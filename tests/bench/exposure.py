"""What one exposure costs: 23 hooks at once, each sending a sidecar, waiting for it, then its image.

A contender is whatever a hook may call to have a file delivered: a daemon asked over its port, or a program for each
file. The daemons are asked out of this process, so that the client's start-up is in none of their figures.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import cpu_of_machine, make_files
from bench.contenders import Deliver, DeliveryError, over_the_wire
from lab.daemon import Daemon, daemon
from lab.env import SYSTEM_PATH, clean_env
from lab.s3 import S3Server

HOOKS, SIDECAR_BYTES, IMAGE_BYTES = 23, 3_000, 8 << 20


@dataclass(frozen=True)
class Shape:
    """Of the link: the round-trip time, seconds, and the rate, bit/s."""

    rtt_s: float
    rate_bps: float

    def limit_s(self, count: int = HOOKS, size: int = IMAGE_BYTES) -> float:
        """No exposure can take less: its bytes through the link, and a round trip each for a sidecar and its image."""
        return count * (SIDECAR_BYTES + size) * 8 / self.rate_bps + 2 * self.rtt_s


@dataclass(frozen=True)
class Burst:
    """How one exposure went.

    Args:
        sidecars: seconds that each sidecar took.
        images: seconds from the start of the exposure to the end of each image.
        cores: how many cores of the machine were busy meanwhile, with everything.
        failures: what was not delivered, and why.
    """

    sidecars: list[float]
    images: list[float]
    cores: float
    failures: list[str]

    @property
    def done(self) -> float:
        """Seconds to the last object."""
        return max(self.images, default=float("nan"))

    @property
    def sidecar_p50(self) -> float:
        """The median sidecar's seconds."""
        return statistics.median(self.sidecars) if self.sidecars else float("nan")

    @property
    def sidecar_max(self) -> float:
        """The last sidecar's seconds."""
        return max(self.sidecars, default=float("nan"))


class Files:
    """The exposure's files, and where they go.

    Args:
        directory: not on a tmpfs, which refuses the reads that the daemon makes without a thread.
        bucket: of the store.
        size: bytes of an image.
    """

    def __init__(self, directory: Path, bucket: str, count: int = HOOKS, size: int = IMAGE_BYTES) -> None:
        self.bucket = bucket
        sidecars = make_files(directory, count, SIDECAR_BYTES, ".json")
        self.pairs = list(zip(sidecars, make_files(directory, count, size, ".fits"), strict=True))

    async def expose(self, deliver: Deliver, name: str) -> Burst:
        """One exposure, its keys below `name`."""
        sidecars, images, failures = list[float](), list[float](), list[str]()
        began, busy = time.monotonic(), cpu_of_machine()

        async def hook(sidecar: Path, image: Path) -> None:
            try:
                await deliver(sidecar, f"{self.bucket}/{name}/{sidecar.name}")
                sidecars.append(time.monotonic() - began)
                await deliver(image, f"{self.bucket}/{name}/{image.name}")
                images.append(time.monotonic() - began)
            except DeliveryError as exc:  # a hook goes on after anything
                failures.append(str(exc))

        await asyncio.gather(*(hook(*pair) for pair in self.pairs))
        cores = (cpu_of_machine() - busy) / (time.monotonic() - began)
        return Burst(sidecars, images, cores, failures)

    async def bursts(self, deliver: Deliver, name: str, count: int, apart_s: float) -> list[Burst]:
        """That many exposures, their starts `apart_s` from each other."""
        found: list[Burst] = []
        for number in range(count):
            began = time.monotonic()
            found.append(await self.expose(deliver, f"{name}/{number}"))
            if number < count - 1:
                await asyncio.sleep(max(0.0, began + apart_s - time.monotonic()))
        return found


def by_program(command: Callable[[Path, str], Sequence[str]], environ: dict[str, str]) -> Deliver:
    """By a program for each file."""

    async def deliver(file: Path, destination: str) -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command(file, destination), env=environ, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        _, errors = await process.communicate()
        if process.returncode != 0:
            raise DeliveryError(f"status {process.returncode}: {errors.decode(errors='replace')[-300:].strip()}")

    return deliver


@contextmanager
def ours(server: S3Server, directory: Path, **settings: Any) -> Iterator[tuple[Daemon, Deliver]]:
    """s3daemon, once its connections are open."""
    with daemon(directory, server, **settings) as running:
        limit = int(settings.get("max_connections", "25"))
        running.wait_status(lambda now: now["connections"]["open"] >= limit, "all connections open")
        yield running, over_the_wire(running.port)


def programs(server: S3Server, home: Path, tools: str) -> dict[str, Deliver]:
    """The programs that a user would call for each file, with their defaults; those that `tools` (a PATH) holds.

    Args:
        server: their store.
        home: a directory where they find no configuration.
        tools: directories with colons between, searched before the system's.
    """
    path = f"{tools}:{SYSTEM_PATH}" if tools else SYSTEM_PATH
    environ = clean_env(
        PATH=path,
        HOME=str(home),
        SSL_CERT_FILE=str(server.ca),
        AWS_CA_BUNDLE=str(server.ca),
        AWS_ACCESS_KEY_ID=server.access_key,
        AWS_SECRET_ACCESS_KEY=server.secret_key,
        AWS_REGION="us-east-1",
        AWS_REQUEST_CHECKSUM_CALCULATION="when_required",
        RCLONE_S3_PROVIDER="Ceph",
        RCLONE_S3_ENV_AUTH="true",
        RCLONE_S3_ENDPOINT=server.url,
        RCLONE_S3_NO_CHECK_BUCKET="true",
    )
    signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{server.access_key}:{server.secret_key}"]
    signed += ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]
    commands: dict[str, Callable[[Path, str], list[str]]] = {
        "curl": lambda file, to: ["-qsSf", "--cacert", str(server.ca), *signed, "-T", str(file), f"{server.url}/{to}"],
        "s5cmd": lambda file, to: ["--endpoint-url", server.url, "cp", str(file), f"s3://{to}"],
        "rclone": lambda file, to: ["copyto", str(file), f":s3:{to}"],
        "aws": lambda file, to: ["--endpoint-url", server.url, "s3", "cp", str(file), f"s3://{to}"],
    }

    def deliver(program: str, arguments: Callable[[Path, str], list[str]]) -> Deliver:
        return by_program(lambda file, to: [program, *arguments(file, to)], environ)

    found = {name: shutil.which(name, path=path) for name in commands}
    return {name: deliver(program, commands[name]) for name, program in found.items() if program}


def left_out(found: dict[str, Deliver]) -> list[str]:
    """The programs that are not on this machine."""
    return [name for name in ("curl", "s5cmd", "rclone", "aws") if name not in found]


def cores() -> int:
    """The number of CPU cores."""
    return os.cpu_count() or 1
