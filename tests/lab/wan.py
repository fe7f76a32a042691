"""The long fat network of `tests/lab/emulator` for a program: two network namespaces and the link between. Needs root.

A network namespace belongs to a thread: ``inside`` moves the calling one, and what it starts from there on, programs
and sockets alike, is on that side of the link.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.env import TREE, UnavailableError, clean_env

FAR = "10.77.0.2"
"""The far side's address."""

_LIMITS = ("odrop_pkts", "werr_pkts", "dev_drop_pkts")
"""Packets lost because the machine did not keep up, which the emulated link would not have lost."""


class Wan:
    """The link and its two sides. Made by ``wan``."""

    def __init__(self, directory: Path) -> None:
        """Describe it; nothing is there before ``shape``."""
        self.near, self.far = f"s3d-near-{os.getpid()}", f"s3d-far-{os.getpid()}"
        self._environ = clean_env(WAN_DIR=str(directory))

    def shape(self, *, rtt_ms: float = 200, rate_mbit: float = 1000, **options: object) -> None:
        """Make the link, or give it other properties: options of ``wan up``, with _ for -; True for a mere flag."""
        words = ["--near-ns", self.near, "--far-ns", self.far, "--rtt", str(rtt_ms), "--rate", str(rate_mbit)]
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
        self._run("up", *words)

    def stats(self) -> dict[str, Any]:
        """The link's counters since it was shaped."""
        counted: dict[str, Any] = json.loads(self._run("stats", "--json"))
        return counted

    def overrun(self) -> dict[str, int]:
        """What the emulator could not keep up with since the link was shaped; with anything in it, a run is void."""
        stats = self.stats()
        ways = ("near_to_far", "far_to_near")
        return {f"{way} {name}": stats[way][name] for way in ways for name in _LIMITS if stats[way][name]}

    @contextmanager
    def inside(self, side: str) -> Iterator[None]:
        """Be on one side, ``near`` or ``far``, for the time of a ``with`` block."""
        with Path("/proc/thread-self/ns/net").open() as here, Path(f"/run/netns/{getattr(self, side)}").open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def ip(self, side: str, *words: str) -> None:
        """Run ip(8) on one side."""
        subprocess.run(["ip", "-n", getattr(self, side), *words], env=self._environ, check=True)

    def _run(self, *words: str) -> str:
        command = [sys.executable, str(TREE / "tests/lab/emulator/wan"), *words]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnavailableError(done.stderr.strip())
        return done.stdout


def _enter(namespace: int) -> None:
    """os.setns comes with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def wan(**options: Any) -> Iterator[Wan]:
    """The link for the time of a ``with`` block, with the options of ``Wan.shape``; raises UnavailableError."""
    with tempfile.TemporaryDirectory(prefix="s3d-wan-", dir="/run") as directory:
        made = Wan(Path(directory))
        try:
            made.shape(**options)
            yield made
        finally:
            made._run("down")
