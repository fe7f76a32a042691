"""The spool of a process that is killed again and again, and the spool after a long outage."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from fake_transfer import transfer

from s3daemon.spool.spool import Spool

TOP = Path(__file__).resolve().parents[2]

ADD_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2]) / "tests"))
from fake_transfer import transfer
from s3daemon.spool.spool import Spool

async def main():
    spool = Spool.open(Path(sys.argv[1]))
    numbers = itertools.count(int(sys.argv[3]))
    async def client():
        for n in numbers:
            await spool.add(transfer(n), 1.0, attempt_started=True)
            print(f"added {n}", flush=True)
            if n % 3 == 0:
                spool.remove(transfer(n).id)
            if n % 3 == 1:
                await spool.fail(transfer(n).id, 1, "NoSuchBucket", "none", 1.0)
                print(f"failed {n}", flush=True)
    await asyncio.gather(*(client() for _ in range(8)))
asyncio.run(main())
"""


def test_twenty_kills_lose_no_accepted_transfer(tmp_path: Path) -> None:
    rng = random.Random(3)
    printed: set[tuple[str, int]] = set()
    for life in range(20):
        command = [sys.executable, "-c", ADD_FOR_EVER, str(tmp_path / "state"), str(TOP), str(life * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TOP)}) as child:
            assert child.stdout is not None
            for _, line in zip(range(rng.randrange(1, 400)), child.stdout, strict=False):
                printed.add((line.split()[0], int(line.split()[1])))
            child.kill()
            printed.update((line.split()[0], int(line.split()[1])) for line in child.stdout if line.endswith("\n"))
    spool = Spool.open(tmp_path / "state")
    there = {entry.transfer.id: entry for entry in spool.entries()}
    assert [entry.seq for entry in there.values()] == sorted({entry.seq for entry in there.values()})
    added = {n for word, n in printed if word == "added"}
    assert len(added) > 1000
    for n in added:
        assert n % 3 == 0 or there[transfer(n).id].transfer == transfer(n)
    for word, n in printed:
        assert word == "added" or there[transfer(n).id].failed
    asyncio.run(spool.close())


def test_54000_pending_transfers_are_read_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten times the rows cost about ten times the time, and the memory of a two-day outage stays small."""

    async def fill(spool: Spool, numbers: range) -> float:
        left, began = iter(numbers), time.perf_counter()

        async def client() -> None:
            for n in left:
                await spool.add(transfer(n), 1.0, attempt_started=True)

        await asyncio.gather(*(client() for _ in range(50)))
        return len(numbers) / (time.perf_counter() - began)

    async def main() -> tuple[float, list[float]]:
        seconds = []
        for numbers in (range(5400), range(5400, 54000)):
            spool = Spool.open(tmp_path)
            rate = await fill(spool, numbers)
            await spool.close()
            began = time.process_time()  # not that of other programs
            spool = Spool.open(tmp_path)
            assert len(spool.entries()) == numbers.stop
            seconds.append(time.process_time() - began)
            await spool.close()
        return rate, seconds

    rate, (few, many) = asyncio.run(main())
    tracemalloc.start()
    spool = Spool.open(tmp_path)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    asyncio.run(spool.close())
    with capsys.disabled():
        print(f"\n54 000 rows: accepted at {rate:.0f}/s from 50 callers, read in {many:.2f} s, {size / 1e6:.0f} MB")
    assert many < 30 * few
    assert size < 100e6
