"""Whatever the order of calls, restarts and crashes: the rows of the spool are those of the table in its docstring.

A state machine compares the spool with a model. Its crash is a copy of the files as they are at that moment, opened as
a new process would.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from fake_transfer import transfer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.spool import Entry, Spool

HOUR = 3600.0
T = TypeVar("T")


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

    def change_transfer(self, transfer_id: str, **fields: Any) -> None:
        if transfer_id in self.live:
            self.change(transfer_id, transfer=dataclasses.replace(self.live[transfer_id].transfer, **fields))

    def clear_failures(self, place: Destination, before: int) -> None:
        self.spool.clear_failures(place, before)
        for other in [e for e in self.live.values() if e.failed and e.transfer.destination == place]:
            if other.seq < before:
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
    def add_and_store_at_once(self, key: str) -> None:
        """Whether the row was on disk for a moment is a race; the state afterwards is the same."""
        entry = self.new(key)

        async def both() -> int:
            adding = asyncio.create_task(self.spool.add(entry.transfer, entry.accepted_active_s, attempt_started=True))
            await asyncio.sleep(0)
            self.spool.remove(entry.transfer.id)
            return await adding

        seq = self.run(both())
        assert seq > self.highest
        self.clear_failures(entry.transfer.destination, seq)
        self.run(self.spool.drop([]))
        self.committed()

    @rule(which=known, tags=st.lists(st.sampled_from("xyü"), max_size=2))
    def save_tags(self, which: Transfer, tags: list[str]) -> None:
        self.run(self.spool.save_join(dataclasses.replace(which, tags=tuple(tags))))
        self.change_transfer(which.id, tags=tuple(tags))
        self.committed()

    @rule(which=known, size=st.integers(0, 2**63 - 1))
    def start_attempt(self, which: Transfer, size: int) -> None:
        state = FileState(size, -size, 2**64 - 1, 2)
        self.run(self.spool.start_attempt(dataclasses.replace(which, file_state=state)))
        self.change_transfer(which.id, file_state=state)
        self.change(which.id, attempt_started=True, sent_etag="")
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
        assert self.run(self.spool.retry(wanted, self.active_s)) == (wanted & self.live.keys(), None)
        for transfer_id in wanted:
            again = {"failed": False, "failed_active_s": 0.0, "client_notified": False}
            self.change(transfer_id, **again, accepted_active_s=self.active_s)
        self.committed()

    @rule(which=consumes(known))
    def stored(self, which: Transfer) -> None:
        if which.id in self.live:
            self.clear_failures(which.destination, self.live.pop(which.id).seq)
        self.spool.remove(which.id)

    @rule(which=st.lists(known, max_size=3))
    def drop(self, which: list[Transfer]) -> None:
        wanted = {t.id for t in which}
        assert self.run(self.spool.drop(wanted)) == (wanted & self.live.keys(), None)
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
    def the_disk_has_what_the_model_has(self) -> None:
        in_order = sorted(self.durable.values(), key=lambda entry: entry.seq)
        assert self.spool.entries() == in_order
        assert self.spool.failed_entries() == [entry for entry in in_order if entry.failed]


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow])
