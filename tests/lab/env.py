"""What every started program shares: an environment built here, free ports, a limit on descriptors, another user."""

import os
import random
import resource
import shutil
import socket
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
"""The checkout."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MACHINE_ENV = dict(os.environ)
"""The machine's own environment, for programs that download (it may name a proxy), and for nothing else."""

NOBODY = 65534

_FOREIGN_PREFIXES = ("AWS_", "S3_", "S3DAEMON_", "LISTEN_", "NOTIFY_", "WATCHDOG_", "PYTHON")
_FOREIGN_SUFFIXES = ("_PROXY", "_CA_BUNDLE", "_CERT_FILE", "_CERT_DIR")


class UnavailableError(Exception):
    """A part that a test needs is not on this machine; the message names it and the reason."""


def clean_env(**extra: str) -> dict[str, str]:
    """The environment for a program: nothing of the caller's but what it passes here.

    A machine's own proxies, certificate authorities and AWS variables would otherwise decide what a test sees. HOME
    does not exist, so that no ``~/.aws`` is read. That no authority is read is a seventh of a daemon's start, too.
    """
    measured = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")}  # by tests/coverage
    return {
        "PATH": SYSTEM_PATH, "HOME": "/nonexistent", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1",
        "SSL_CERT_FILE": "/dev/null", "SSL_CERT_DIR": "/nonexistent", **measured, **extra
    }  # fmt: skip


def scrub(environ: MutableMapping[str, str]) -> None:
    """Remove from this process's environment what libraries running *inside* the tests would read."""
    for name in list(environ):
        if name.startswith(_FOREIGN_PREFIXES) or name.upper().endswith(_FOREIGN_SUFFIXES):
            del environ[name]
    environ.update(
        AWS_CONFIG_FILE="/dev/null", AWS_SHARED_CREDENTIALS_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true"
    )


def program(name: str) -> str:
    """The path of a program of the virtual environment or of the system; raises UnavailableError without it."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{SYSTEM_PATH}")
    if found is None:
        raise UnavailableError(f"{name} is not installed")
    return found


_GIVEN, _GIVEN_LOCK = set[int](), threading.Lock()
"""What servers of this process may be about to listen on."""


def free_ports(count: int) -> list[int]:
    """That many TCP ports of 127.0.0.1, free just now; no two calls of this process give the same.

    They lie below the range that the kernel hands to outgoing connections (from 32768 on), so that no client
    connection of a busy test run can take one between this call and the server's bind.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        with _GIVEN_LOCK:
            if port not in _GIVEN:
                _GIVEN.add(port)
                ports.append(port)
    return ports


@contextmanager
def no_free_descriptor(limit: int = 3) -> Iterator[None]:
    """No descriptor from this number on can be opened within the block."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextmanager
def not_as_root() -> Iterator[None]:
    """Become another user for the duration of a block: root may read everything."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
