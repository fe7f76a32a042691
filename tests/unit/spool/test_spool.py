"""The spool: few commits for many changes, what it ignores, what it restores, and how a tool works on it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_transfer import transfer
from lab.sending import in_loop

from s3daemon.errors import SpoolError, StartError
from s3daemon.model.request import FileState
from s3daemon.spool.rows import Hint
from s3daemon.spool.spool import Entry, Spool


def ids(entries: list[Entry]) -> list[str]:
    return [entry.transfer.id for entry in entries]


def commits(wal: Path) -> int:
    """Count the commits in a WAL by SQLite's file format: frames of its present generation with the database's size."""
    data = wal.read_bytes()
    page, salts = int.from_bytes(data[8:12], "big"), data[16:24]
    frames = [data[at : at + 24] for at in range(32, len(data), 24 + page)]
    return sum(frame[8:16] == salts and frame[4:8] != b"\0\0\0\0" for frame in frames)


@in_loop
async def test_a_burst_is_a_few_commits(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    before = commits(tmp_path / "spool.db-wal")
    await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(50)))
    assert commits(tmp_path / "spool.db-wal") - before <= 5
    await spool.close()


@in_loop
async def test_lazy_changes_are_durable_soon_by_themselves(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, lazy_s=0.01)
    await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(3)))
    spool.remove(transfer(0).id)
    spool.record_attempt(transfer(1).id, 4, attempt_started=False, code="SlowDown", text="slow down")
    while len(spool.entries()) == 3 or spool.entries()[0].attempts == 0:
        await asyncio.sleep(0.005)
    await spool.close()


@in_loop
async def test_each_call_changes_the_row_as_documented(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    one, two = transfer(1, key="same"), transfer(2, key="same")

    async def row() -> Entry:
        await spool.drop([])  # what is lazy is durable too
        return spool.entries()[0]

    assert await spool.add(one, 1.0, attempt_started=False) == 1
    entry = Entry(1, one, 1.0)
    assert await row() == entry
    await spool.start_attempt(one)
    assert (await row()).attempt_started
    spool.record_attempt(one.id, 3, attempt_started=False, code="SlowDown", text="slow\ndown")
    entry = dataclasses.replace(entry, attempts=3, code="SlowDown", text="slow\\ndown")
    assert await row() == entry
    spool.record_attempt(one.id, 3, attempt_started=True, code="SlowDown", text="slow\ndown", sent_etag="0f")
    changed = dataclasses.replace(one, file_state=FileState(5, 6, 7, 8))
    await spool.start_attempt(changed, file_changed=True)
    started = dataclasses.replace(entry, transfer=changed, attempt_started=True, file_changed=True)
    assert await row() == started, "no ETag of other content"
    spool.record_attempt(one.id, 3, attempt_started=True, code="SlowDown", text="slow\ndown", sent_etag="0f")
    joined = dataclasses.replace(one, tags=("a", "b"), file_state=FileState(9, 6, 7, 8))
    await spool.save_join(joined, file_changed=True)
    assert await row() == dataclasses.replace(started, transfer=joined), "likewise"
    await spool.save_join(one)
    await spool.start_attempt(one)
    spool.record_attempt(one.id, 3, attempt_started=False, code="SlowDown", text="slow\ndown")
    assert await row() == entry
    await spool.fail(one.id, 4, "NoSuchBucket", "none", 2.0)
    entry = dataclasses.replace(entry, attempts=4, code="NoSuchBucket", text="none", failed=True, failed_active_s=2.0)
    assert await row() == entry
    spool.mark_notified(one.id)
    assert await row() == dataclasses.replace(entry, client_notified=True)
    assert await spool.retry([one.id], 3.0) == ({one.id}, None)
    assert await row() == Entry(1, one, 3.0, attempts=4, code="NoSuchBucket", text="none")
    await spool.fail(one.id, 5, "NoSuchBucket", "none", 4.0)
    spool.expire(10.0, 6.0)
    assert (await row()).failed  # as old as may be
    await spool.add(two, 5.0, attempt_started=True)
    spool.clear_failures(two.destination, 1)
    assert (await row()).failed, "it is not older than what was stored"
    spool.clear_failures(two.destination, 2)
    spool.remove(two.id)
    assert await spool.retry([one.id, two.id], 6.0) == (set(), None), "it knows that they are gone"
    assert spool.entries() == []
    assert spool.hint == Hint()
    spool.save_clock(12.5)
    spool.save_hint(Hint("https://store", 994_000_000, "images"))
    await spool.close()
    spool = Spool.open(tmp_path)
    assert (spool.active_base_s, spool.last_seq) == (12.5, 2)
    assert spool.hint == Hint("https://store", 994_000_000, "images")
    await spool.close()


@in_loop
async def test_what_the_spool_does_not_hold_is_ignored(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    await spool.start_attempt(transfer(1))
    await spool.save_join(transfer(1))
    await spool.fail("f" * 16, 1, "c", "t", 1.0)
    spool.record_attempt("f" * 16, 1, attempt_started=False, code="c", text="t")
    spool.mark_notified("f" * 16)
    spool.remove("f" * 16)
    assert await spool.retry(["f" * 16], 1.0) == (set(), None)
    await spool.add(transfer(1), 1.0, attempt_started=False)
    with pytest.raises(ValueError, match="in the spool already"):
        await spool.add(transfer(1), 1.0, attempt_started=False)
    await spool.close()
    await spool.close()
    with pytest.raises(SpoolError, match="stopping"):
        await spool.add(transfer(2), 1.0, attempt_started=False)


@in_loop
async def test_a_cancelled_acceptance_does_not_disturb_the_next(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path)
    adding = asyncio.create_task(spool.add(transfer(1), 1.0, attempt_started=True))
    await asyncio.sleep(0)
    adding.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await adding
    await spool.add(transfer(2), 1.0, attempt_started=True)
    assert ids(spool.entries()) == ids([Entry(1, transfer(1), 1.0), Entry(2, transfer(2), 1.0)])
    await spool.close()


@in_loop
async def test_a_file_damaged_at_work_is_restored_from_memory(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    replaced = asyncio.Event()
    spool = Spool.open(tmp_path, on_replaced=replaced.set)
    await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(500)))
    await spool.fail(transfer(7).id, 2, "NoSuchBucket", "none", 2.0)
    memory = spool.entries()
    damage(tmp_path / "spool.db")
    seq = await spool.add(transfer(1000), 3.0, attempt_started=True)
    spool.remove(transfer(8).id)
    await asyncio.wait_for(replaced.wait(), 20)
    memory = [entry for entry in memory if entry.transfer.id != transfer(8).id]
    other_seqs = [dataclasses.replace(entry, seq=entry.seq + 1) for entry in memory]
    await spool.restore(other_seqs)  # the spool keeps its own
    assert spool.entries() == [*memory, Entry(seq, transfer(1000), 3.0, attempt_started=True)]
    assert await spool.drop([transfer(9).id]) == ({transfer(9).id}, None)
    assert spool.fault == ""
    await spool.close()
    assert sum(name.startswith("spool.db.corrupt-") for name in os.listdir(tmp_path)) == 1


@in_loop
async def test_a_tool_works_on_the_spool_and_leaves_no_file_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="there is no spool"):
        Spool.open(tmp_path / "state", create=False)
    spool = Spool.open(tmp_path / "state")
    await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(5)))
    with pytest.raises(StartError, match=f"process {os.getpid()} holds"):
        Spool.open(tmp_path / "state", create=False)
    await spool.close()
    (tmp_path / "state/ballast").unlink()
    tool = Spool.open(tmp_path / "state", create=False)
    assert await tool.drop([transfer(1).id, "none"]) == ({transfer(1).id}, None)
    assert await tool.drop([transfer(1).id]) == (set(), None)
    await tool.close()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "spool.db"]


@in_loop
async def test_a_tool_run_by_root_leaves_everything_to_the_services_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be another user than the service's")
    service_uid = 65534
    owners: set[tuple[str, int]] = set()
    spool = Spool.open(tmp_path / "state")
    await asyncio.gather(*(spool.add(transfer(n), 1.0, attempt_started=True) for n in range(5)))
    await spool.close()
    for path in (tmp_path / "state", *(tmp_path / "state").iterdir()):
        os.chown(path, service_uid, service_uid)
    tool = Spool.open(tmp_path / "state", create=False)
    await tool.drop([transfer(1).id])
    owners.update((path.name, path.stat().st_uid) for path in (tmp_path / "state").iterdir())
    await tool.close()
    assert owners == {(name, service_uid) for name in ("lock", "spool.db", "spool.db-wal", "ballast")}


@in_loop
async def test_opening_says_that_it_finds_the_file_damaged(tmp_path: Path) -> None:
    """So that systemd can be asked for the time that it takes; what is found damaged later is no start."""
    damaged: list[str] = []
    await Spool.open(tmp_path, on_damaged=lambda: damaged.append("sound")).close()
    (tmp_path / "spool.db").write_bytes(b"not a database" * 1000)
    spool = Spool.open(tmp_path, on_damaged=lambda: damaged.append("damaged"))
    assert damaged == ["damaged"]
    await spool.close()
