"""What is accepted stays: through crashes, in order, in few commits; and the states of a row are those of the table.

The state machine walks the table of `spool` against a model. Its crash is a copy of the files as they lie there,
opened as a new process would.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fakes import transfer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from s3daemon.errors import SpoolError, StartError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.spool import Entry, Spool

TOP = Path(__file__).resolve().parents[3]
HOUR = 3600.0
T = TypeVar("T")


def ids(entries: list[Entry]) -> list[str]:
    return [entry.transfer.id for entry in entries]


class Machine(RuleBasedStateMachine):
    """Lazy changes wait an hour here, so what is on disk at any moment is known: all up to the last awaited change."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.top = Path(tempfile.mkdtemp())
        self.lives = 0
        self.made = 0
        self.active_s = 0.0
        self.live: dict[str, Entry] = {}
        self.durable: dict[str, Entry] = {}
        self.highest = 0  # seq of all that was ever durable
        self.spool = Spool.open(self.top / "0", lazy_s=HOUR)

    def teardown(self) -> None:
        self.run(self.spool.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.top)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def committed(self) -> None:
        self.durable = dict(self.live)

    def change(self, transfer_id: str, **columns: Any) -> None:
        if transfer_id in self.live:
            self.live[transfer_id] = dataclasses.replace(self.live[transfer_id], **columns)

    def overtake(self, transfer_id: str, place: Destination) -> None:
        self.live.pop(transfer_id, None)
        for other in [e for e in self.live.values() if e.failed and e.transfer.destination == place]:
            del self.live[other.transfer.id]

    def new(self, key: str) -> Entry:
        """The entry of a new transfer, but for its seq."""
        self.made += 1
        self.active_s += 1.0
        return Entry(0, transfer(self.made, key), self.active_s, attempt_started=self.made % 2 == 0)

    @rule(target=known, keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
    def add(self, keys: list[str]) -> Any:
        entries = [self.new(key) for key in keys]

        async def add_all() -> list[int]:
            return await asyncio.gather(
                *(self.spool.add(e.transfer, e.accepted_active_s, attempt_started=e.attempt_started) for e in entries)
            )

        seqs = self.run(add_all())
        assert self.highest < seqs[0]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        self.highest = seqs[-1]
        for entry, seq in zip(entries, seqs, strict=True):
            self.live[entry.transfer.id] = dataclasses.replace(entry, seq=seq)
        self.committed()
        return multiple(*(entry.transfer for entry in entries))

    @rule(key=st.sampled_from("abc"))
    def add_what_is_stored_at_once(self, key: str) -> None:
        """Whether the row was on the disk for a moment is a race; what follows is the same."""
        entry = self.new(key)

        async def both() -> int:
            adding = asyncio.create_task(self.spool.add(entry.transfer, entry.accepted_active_s, attempt_started=True))
            await asyncio.sleep(0)
            self.spool.stored(entry.transfer.id, entry.transfer.destination)
            return await adding

        assert self.run(both()) > self.highest
        self.overtake(entry.transfer.id, entry.transfer.destination)
        self.run(self.spool.drop([]))
        self.committed()

    @rule(which=known, tags=st.lists(st.sampled_from("xyü"), max_size=2), size=st.integers(0, 2**63 - 1))
    def update(self, which: Transfer, tags: list[str], size: int) -> None:
        joined = dataclasses.replace(which, tags=tuple(tags), seen=FileState(size, -size, 2**64 - 1, 2))
        self.run(self.spool.update(joined))
        self.change(which.id, transfer=joined)
        self.committed()

    @rule(which=known)
    def start_attempt(self, which: Transfer) -> None:
        self.run(self.spool.start_attempt(which.id))
        self.change(which.id, attempt_started=True)
        self.committed()

    @rule(which=known, attempts=st.integers(1, 99), started=st.booleans(), text=st.sampled_from(["t", "\udcff\n"]))
    def record_attempt(self, which: Transfer, attempts: int, started: bool, text: str) -> None:
        self.spool.record_attempt(which.id, attempts, attempt_started=started, code="SlowDown", text=text)
        shown = text.replace("\udcff\n", "\\udcff\\n")
        self.change(which.id, attempts=attempts, attempt_started=started, code="SlowDown", text=shown)

    @rule(which=known)
    def fail(self, which: Transfer) -> None:
        self.active_s += 1.0
        self.run(self.spool.fail(which.id, 5, "NoSuchBucket", "none", self.active_s))
        outcome = {"failed": True, "failed_active_s": self.active_s, "client_notified": False}
        self.change(which.id, attempts=5, code="NoSuchBucket", text="none", **outcome)
        self.committed()

    @rule(which=known)
    def mark_notified(self, which: Transfer) -> None:
        self.spool.mark_notified(which.id)
        self.change(which.id, client_notified=True)

    @rule(which=st.lists(known, max_size=3))
    def retry(self, which: list[Transfer]) -> None:
        wanted = {t.id for t in which}
        assert self.run(self.spool.retry(wanted, self.active_s)) == wanted & self.live.keys()
        for transfer_id in wanted:
            again = {"failed": False, "failed_active_s": 0.0, "client_notified": False}
            self.change(transfer_id, **again, accepted_active_s=self.active_s)
        self.committed()

    @rule(which=consumes(known))
    def stored(self, which: Transfer) -> None:
        self.spool.stored(which.id, which.destination)
        self.overtake(which.id, which.destination)

    @rule(which=st.lists(known, max_size=3))
    def drop(self, which: list[Transfer]) -> None:
        wanted = {t.id for t in which}
        assert self.run(self.spool.drop(wanted)) == wanted & self.live.keys()
        for transfer_id in wanted:
            self.live.pop(transfer_id, None)
        self.committed()

    @rule(keep=st.integers(0, 6))
    def expire(self, keep: int) -> None:
        self.spool.expire(self.active_s, float(keep))
        old = [e for e in self.live.values() if e.failed and e.failed_active_s < self.active_s - keep]
        for entry in old:
            del self.live[entry.transfer.id]

    @rule()
    def restart(self) -> None:
        self.spool.save_clock(self.active_s)
        self.run(self.spool.close())
        self.committed()
        self.open_again()
        assert self.spool.active_base_s == self.active_s

    @rule()
    def crash(self) -> None:
        """The old process's lazy changes are lost; only what was awaited must be there."""
        here = self.top / str(self.lives)
        self.lives += 1
        shutil.copytree(here, self.top / str(self.lives))
        self.run(self.spool.close())
        self.live = dict(self.durable)
        self.open_again()

    def open_again(self) -> None:
        self.spool = Spool.open(self.top / str(self.lives), lazy_s=HOUR)
        assert self.spool.entries() == [self.live[i] for i in sorted(self.live, key=lambda i: self.live[i].seq)]

    @invariant()
    def what_is_on_disk_is_known(self) -> None:
        in_order = sorted(self.durable.values(), key=lambda entry: entry.seq)
        assert self.spool.entries() == in_order
        assert self.spool.entries(failed=True) == [entry for entry in in_order if entry.failed]
        assert self.spool.entries(failed=False) == [entry for entry in in_order if not entry.failed]


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def commits(wal: Path) -> int:
    """Count the commits in a WAL by SQLite's file format: frames of its present generation with the database's size."""
    data = wal.read_bytes()
    page, salts = int.from_bytes(data[8:12], "big"), data[16:24]
    frames = [data[at : at + 24] for at in range(32, len(data), 24 + page)]
    return sum(frame[8:16] == salts and frame[4:8] != b"\0\0\0\0" for frame in frames)


def test_a_burst_is_a_few_commits(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool.open(tmp_path)
        before = commits(tmp_path / "spool.db-wal")
        await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(50)))
        assert commits(tmp_path / "spool.db-wal") - before <= 5
        await spool.close()

    asyncio.run(main())


def test_lazy_changes_are_durable_soon_by_themselves(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool.open(tmp_path, lazy_s=0.01)
        await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(3)))
        spool.stored(transfer(0).id, transfer(0).destination)
        spool.record_attempt(transfer(1).id, 4, attempt_started=False, code="SlowDown", text="slow down")
        while len(spool.entries()) == 3 or spool.entries()[0].attempts == 0:
            await asyncio.sleep(0.005)
        await spool.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_what_the_spool_does_not_hold_is_ignored(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool.open(tmp_path)
        await spool.start_attempt("f" * 16)
        await spool.update(transfer(1))
        await spool.fail("f" * 16, 1, "c", "t", 1.0)
        spool.record_attempt("f" * 16, 1, attempt_started=False, code="c", text="t")
        spool.mark_notified("f" * 16)
        spool.stored("f" * 16, transfer(1).destination)
        assert await spool.retry(["f" * 16], 1.0) == set()
        await spool.add(transfer(1), 1.0, attempt_started=False)
        with pytest.raises(ValueError, match="in the spool already"):
            await spool.add(transfer(1), 1.0, attempt_started=False)
        await spool.close()
        await spool.close()
        with pytest.raises(SpoolError, match="stopping"):
            await spool.add(transfer(2), 1.0, attempt_started=False)

    asyncio.run(main())


def test_a_waiter_that_went_away_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool.open(tmp_path)
        adding = asyncio.create_task(spool.add(transfer(1), 1.0, attempt_started=True))
        await asyncio.sleep(0)
        adding.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await adding
        await spool.add(transfer(2), 1.0, attempt_started=True)
        assert ids(spool.entries()) == ids([Entry(1, transfer(1), 1.0), Entry(2, transfer(2), 1.0)])
        await spool.close()

    asyncio.run(main())


ADD_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[2]) / "tests"))
from fakes import transfer
from s3daemon.spool.spool import Spool

async def main():
    spool = Spool.open(Path(sys.argv[1]))
    numbers = itertools.count(int(sys.argv[3]))
    async def client():
        for n in numbers:
            await spool.add(transfer(n), 1.0, attempt_started=True)
            print(f"added {n}", flush=True)
            if n % 3 == 0:
                spool.stored(transfer(n).id, transfer(n).destination)
            if n % 3 == 1:
                await spool.fail(transfer(n).id, 1, "NoSuchBucket", "none", 1.0)
                print(f"failed {n}", flush=True)
    await asyncio.gather(*(client() for _ in range(8)))
asyncio.run(main())
"""


def test_twenty_kills_lose_nothing_that_was_accepted(tmp_path: Path) -> None:
    rng = random.Random(3)
    said: set[tuple[str, int]] = set()
    for life in range(20):
        command = [sys.executable, "-c", ADD_FOR_EVER, str(tmp_path / "state"), str(TOP), str(life * 10**6)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(TOP)}) as child:
            assert child.stdout is not None
            for _, line in zip(range(rng.randrange(1, 400)), child.stdout, strict=False):
                said.add((line.split()[0], int(line.split()[1])))
            child.kill()
            said.update((line.split()[0], int(line.split()[1])) for line in child.stdout if line.endswith("\n"))
    spool = Spool.open(tmp_path / "state")
    there = {entry.transfer.id: entry for entry in spool.entries()}
    assert [entry.seq for entry in there.values()] == sorted({entry.seq for entry in there.values()})
    added = {n for word, n in said if word == "added"}
    assert len(added) > 1000
    for n in added:
        assert n % 3 == 0 or there[transfer(n).id].transfer == transfer(n)
    for word, n in said:
        assert word == "added" or there[transfer(n).id].failed
    asyncio.run(spool.close())


def test_damage_found_at_work_costs_nothing_that_memory_holds(
    tmp_path: Path, connections: list[sqlite3.Connection]
) -> None:
    async def main() -> None:
        replaced = asyncio.Event()
        spool = Spool.open(tmp_path, on_replaced=replaced.set)
        await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(500)))
        await spool.fail(transfer(7).id, 2, "NoSuchBucket", "none", 2.0)
        memory = spool.entries()
        connections[-1].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connections[-1].execute("PRAGMA shrink_memory")  # or the pages would be served from memory
        with (tmp_path / "spool.db").open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom((tmp_path / "spool.db").stat().st_size - 4096))
        seq = await spool.add(transfer(1000), 3.0, attempt_started=True)
        spool.stored(transfer(8).id, transfer(8).destination)
        await asyncio.wait_for(replaced.wait(), 20)
        memory = [entry for entry in memory if entry.transfer.id != transfer(8).id]
        await spool.restore(
            [dataclasses.replace(entry, seq=entry.seq + 1) for entry in memory]
        )  # the spool's own count
        assert spool.entries() == [*memory, Entry(seq, transfer(1000), 3.0, attempt_started=True)]
        assert await spool.drop([transfer(9).id]) == {transfer(9).id}
        assert spool.fault == ""
        await spool.close()

    asyncio.run(main())
    assert len(list(tmp_path.glob("spool.db.corrupt-*"))) == 1


def test_a_tool_works_on_the_spool_and_leaves_no_file_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no spool"):
        Spool.open(tmp_path / "state", create=False)

    async def main() -> None:
        spool = Spool.open(tmp_path / "state")
        await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(5)))
        with pytest.raises(StartError, match=f"process {os.getpid()} holds"):
            Spool.open(tmp_path / "state", create=False)
        await spool.close()
        (tmp_path / "state/ballast").unlink()
        tool = Spool.open(tmp_path / "state", create=False)
        assert await tool.drop([transfer(1).id, "none"]) == {transfer(1).id}
        await tool.close()

    asyncio.run(main())
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "spool.db"]


def test_a_tool_run_by_root_leaves_everything_to_the_services_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user than the service's")
    nobody = 65534
    owners: set[tuple[str, int]] = set()

    async def main() -> None:
        spool = Spool.open(tmp_path / "state")
        await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(5)))
        await spool.close()
        for path in (tmp_path / "state", *(tmp_path / "state").iterdir()):
            os.chown(path, nobody, nobody)
        tool = Spool.open(tmp_path / "state", create=False)
        await tool.drop([transfer(1).id])
        owners.update((path.name, path.stat().st_uid) for path in (tmp_path / "state").iterdir())
        await tool.close()

    asyncio.run(main())
    assert owners == {(name, nobody) for name in ("lock", "spool.db", "spool.db-wal", "ballast")}


def test_54000_pending_are_read_in_a_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
            began = time.perf_counter()
            spool = Spool.open(tmp_path)
            assert len(spool.entries()) == numbers.stop
            seconds.append(time.perf_counter() - began)
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
