"""All clients are served when there are more than slots and descriptors, and what they use is freed; many transfers
leave nothing behind.

The full numbers, 10 000 clients and 100 000 transfers, are measured by hand with tests/bench/load.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3
from lab.load import FEW_DESCRIPTORS, crowd, held_at_rest, series

#: More than twice as many as there are slots.
CLIENTS = 2_500
#: Twice as many as `series` has keys, up to which number what is remembered of an exposure grows.
TRANSFERS = 10_000


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server, prefix=FEW_DESCRIPTORS, wait_limit="5min") as made:
        made.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
        yield made


def test_thousands_of_clients_at_once(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """With 1 024 slots and 4 096 descriptors, each is served, once, and nothing is kept of it."""
    # The first round starts the threads and fills the interpreter's pools; the second shows what is kept of each.
    assert crowd(served, file, CLIENTS, "first") == {"Success": CLIENTS}
    before = held_at_rest(served, 100)
    assert crowd(served, file, CLIENTS) == {"Success": CLIENTS}
    after = held_at_rest(served, before.descriptors)
    print(f"\n{CLIENTS} clients: {before}; then {after}")
    assert len([put for put in s3.puts if put.name.startswith("bucket/")]) == CLIENTS
    assert after.descriptors <= before.descriptors
    assert after.rss - before.rss < 6e6


def test_thousands_of_transfers_one_after_the_other(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Memory and the number of descriptors do not grow."""
    before = held_at_rest(served, 100)
    row = series(served, file, TRANSFERS)
    after = held_at_rest(served, before.descriptors)
    slope = row.slope("rss")
    print(f"\n{TRANSFERS} transfers in {row.seconds:.0f} s; for 1 000 more {slope / 1e3:.1f} kB; then {after}")
    assert row.replies == {"Success": TRANSFERS}
    assert len(s3.puts) == TRANSFERS
    assert slope < 500e3  # 1 kB kept for each would be twice that
    assert after.descriptors <= before.descriptors


def test_few_descriptors(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Few descriptors bound the clients: while silent ones take every place, another waits and is served later."""
    scarce = ("prlimit", "--nofile=128:128", "--")
    with daemon(tmp_path / "state", s3.server, prefix=scarce, max_connections="4") as served, ExitStack() as silent:
        for _ in range(200):
            silent.enter_context(served.connect())
        served.process.wait_line("with 128 descriptors .* clients are served at a time, not 1024")
        with served.connect() as waiting:
            waiting.sendall(f"{file} a/bucket/key\n".encode())
            time.sleep(0.5)
            silent.close()
            assert waiting.recv(100) == b"Success"
        served.wait_status(lambda now: now["clients"] == 0, "without clients")
        assert served.plain(file, "a/bucket/again") == b"Success"
