"""moto as a server: starts in a second, keeps objects in memory, checks no signature."""

from collections.abc import Iterator
from contextlib import contextmanager

from lab.env import program
from lab.processes import start
from lab.s3 import S3Server


@contextmanager
def moto() -> Iterator[S3Server]:
    """Run a moto server on a port that the kernel picks."""
    with start(program("moto_server"), "-H", "127.0.0.1", "-p", "0", name="moto") as process:
        url = process.wait_line(r"Running on (http://127\.0\.0\.1:\d+)")[1]
        yield S3Server(url, "testkey", "testsecret")
