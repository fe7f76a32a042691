"""The writer: one commit for what is queued, and what becomes of each request while the disk fails.

The file is a real one whose disk fails, or blocks, when the test says so.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fake_transfer import transfer
from lab.sending import in_loop

from s3daemon.errors import SpoolError
from s3daemon.model.record import Priority
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.recovery import RecoverableFile
from s3daemon.spool.rows import ClearFailures, Delete, Entry, Insert, SaveClock, Update
from s3daemon.spool.writer import STUCK_S, Writer, WriteRequest

HOUR_S = 3600.0
PATIENCE_S = 20.0
T = TypeVar("T")


def full() -> sqlite3.Error:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


class TestedFile(RecoverableFile):
    """A file whose disk fails with `error`, and blocks until `works` is set."""

    __test__ = False

    def __init__(self, path: Path) -> None:
        super().__init__(path, create=True)
        self.error: Exception | None = None
        self.reached, self.works = threading.Event(), threading.Event()
        self.works.set()
        self.uses = 0

    def use(self, work: Callable[[SpoolFile], T]) -> T:
        self.uses += 1
        self.reached.set()
        assert self.works.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return super().use(work)

    async def block(self, writer: Writer) -> asyncio.Task[None]:
        """Have the thread wait in a commit; the task ends after that commit."""
        self.works.clear()
        self.reached.clear()
        commit = asyncio.ensure_future(writer.apply())
        assert await asyncio.to_thread(self.reached.wait, PATIENCE_S)
        return commit


class Scene:
    """A writer on a file in `directory`, and what it called back."""

    def __init__(self, directory: Path, retry_s: float = HOUR_S, stuck_s: float = STUCK_S) -> None:
        self.file = TestedFile(directory / "spool.db")
        self.removed: list[str] = []
        self.replaced = asyncio.Event()
        self.writer = Writer(
            directory,
            self.file,
            create=True,
            lazy_s=0.001,
            retry_s=retry_s,
            on_replaced=self.replaced.set,
            stuck_s=stuck_s,
        )
        self.writer.on_removed = self.removed.extend

    def accept(self, seq: int) -> Awaitable[None]:
        """Put a request to accept a transfer."""
        durable = asyncio.get_running_loop().create_future()
        self.writer.put(WriteRequest([Insert(entry(seq))], durable, refusable=True))
        return durable

    def seqs(self) -> list[int]:
        return [row.seq for row in self.writer.read(SpoolFile.entries)]


def entry(seq: int, **columns: Any) -> Entry:
    return Entry(seq, transfer(seq, key="same"), 1.0, **columns)


async def codes(results: Iterable[Awaitable[None]]) -> list[str]:
    """Await each; the code of the error that it raises, or an empty text."""
    found = []
    for result in results:
        try:
            await result
            found.append("")
        except SpoolError as exc:
            found.append(exc.code)
    return found


@in_loop
async def test_what_is_queued_is_one_commit(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    before = await scene.file.block(scene.writer)
    uses = scene.file.uses
    results = [scene.accept(seq) for seq in range(1, 50)]
    scene.writer.apply_lazily(Delete(7))
    scene.file.works.set()
    await before
    assert await codes(results) == [""] * 49
    assert scene.file.uses == uses + 1
    assert scene.seqs() == [seq for seq in range(1, 50) if seq != 7]
    scene.writer.close()


@in_loop
async def test_a_full_disk_refuses_acceptances_and_retains_the_rest(tmp_path: Path) -> None:
    """What was refused never appears; what was retained is written, in order, before the next acceptance."""
    scene = Scene(tmp_path)
    await codes(scene.accept(seq) for seq in (1, 2, 3))
    scene.file.error = full()
    assert await codes([scene.accept(4), scene.writer.apply(Delete(1))]) == ["SpoolFull", "SpoolFull"]
    assert (scene.writer.is_refusing, "is full" in scene.writer.fault) == (True, True)
    assert not (tmp_path / "ballast").exists(), "its space is for removals"
    for attempts in range(100):
        scene.writer.apply_lazily(Update(2, {"attempts": attempts}))
    assert await codes([scene.writer.apply(Update(2, {"code": "SlowDown"}))]) == ["SpoolFull"]
    scene.file.error = None
    assert await codes([scene.accept(5)]) == [""]
    assert (scene.writer.is_refusing, scene.writer.fault) == (False, "")
    assert (tmp_path / "ballast").exists()
    assert scene.seqs() == [2, 3, 5]
    (two, *_) = scene.writer.read(SpoolFile.entries)
    assert (two.attempts, two.code) == (99, "SlowDown")
    scene.writer.close()


@in_loop
async def test_a_fault_ends_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged when it begins, when its code changes, and when it ends, however often it is retried."""
    scene = Scene(tmp_path, retry_s=0.001)
    scene.file.error = full()
    assert await codes([scene.accept(1), scene.accept(2)]) == ["SpoolFull", "SpoolFull"]
    uses = scene.file.uses
    while scene.file.uses < uses + 10:  # some retries
        await asyncio.sleep(0.001)
    scene.file.error = OSError("cable pulled")
    while "cable pulled" not in scene.writer.fault:
        await asyncio.sleep(0.001)
    scene.file.error = None
    while scene.writer.fault:
        await asyncio.sleep(0.001)
    scene.writer.close()
    first, second, third = caplog.messages
    assert "is full" in first
    assert "cable pulled" in second
    assert "can be written again; requests are accepted" in third


@in_loop
async def test_a_disk_that_does_not_answer_is_a_fault_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing fails then; clients wait, and whoever looks has to learn why, in the journal once for all requests."""
    scene = Scene(tmp_path, stuck_s=0.05)
    commit = await scene.file.block(scene.writer)
    await asyncio.sleep(0.06)
    assert scene.writer.fault == f"nothing is accepted: the disk of {tmp_path} has not answered for 0s"
    for _ in range(2):
        scene.writer.apply_lazily(Delete(7))
    assert caplog.messages == [f"nothing is accepted: the disk of {tmp_path} has not answered for 0s; clients wait"]
    scene.file.works.set()
    await commit
    assert caplog.messages[1] == f"the disk of {tmp_path} has answered after 0s"
    assert caplog.records[1].__dict__["journal"] == {"PRIORITY": Priority.NOTICE}
    await asyncio.sleep(0.06)
    assert scene.writer.fault == "", "a thread with nothing to do is not stuck"
    scene.writer.close()


def test_a_start_without_reserved_space_has_the_fault_at_once(tmp_path: Path) -> None:
    """A directory where its file should be, so that it cannot be created."""
    (tmp_path / "ballast").mkdir()
    writer = Writer(
        tmp_path,
        TestedFile(tmp_path / "spool.db"),
        create=True,
        lazy_s=0.0,
        retry_s=HOUR_S,
        on_replaced=print,
    )
    assert "nothing is accepted" in writer.fault
    writer.close()


@in_loop
async def test_a_bad_change_fails_only_its_own_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path)
    before = await scene.file.block(scene.writer)
    good, again, last = scene.accept(1), scene.accept(1), scene.accept(2)
    scene.writer.apply_lazily(SaveClock(2**70))
    scene.file.works.set()
    await before
    assert await codes([good, again, last]) == ["", "Internal", ""]
    assert scene.seqs() == [1, 2]
    scene.writer.close()
    assert [message.partition("(")[0] for message in caplog.messages] == [
        f"a change cannot be carried out: {error}" for error in ("IntegrityError", "OverflowError")
    ]


@in_loop
async def test_a_bug_is_reported_to_the_waiters_and_the_thread_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene(tmp_path)
    scene.file.error = RuntimeError("a bug")
    with pytest.raises(SpoolError, match="RuntimeError\\('a bug'\\)"):  # so the transfer is refused and blocks no other
        await scene.accept(1)
    scene.file.error = None
    await scene.accept(2)
    assert scene.seqs() == [2]
    scene.writer.close()
    assert "unexpected error in the spool's writer" in caplog.text


@in_loop
async def test_a_request_can_be_amended_until_it_is_taken(tmp_path: Path) -> None:
    """Then it is not an acceptance any more, so a full disk does not drop it."""
    scene = Scene(tmp_path)
    loop = asyncio.get_running_loop()
    durable = [loop.create_future() for _ in range(2)]
    requests = [WriteRequest([Insert(entry(seq))], made, refusable=True) for seq, made in enumerate(durable, 1)]
    scene.writer.put(requests[0])
    await durable[0]
    assert not scene.writer.amend(requests[0], [])
    before = await scene.file.block(scene.writer)
    scene.writer.put(requests[1])
    assert scene.writer.amend(requests[1], [Delete(1)])
    scene.file.error = full()
    scene.file.works.set()
    with suppress(SpoolError):
        await before
    with pytest.raises(SpoolError, match="is full"):
        await durable[1]
    scene.file.error = None
    await scene.accept(3)
    assert scene.seqs() == [3]
    scene.writer.close()


@in_loop
async def test_removed_ids_and_a_replaced_file_are_reported(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    await scene.writer.apply(Insert(entry(1, failed=True)), Insert(entry(2)))
    await scene.writer.apply(ClearFailures(entry(1).transfer.destination, 3))
    assert scene.removed == [entry(1).transfer.id]
    assert not scene.replaced.is_set()
    scene.file.close()
    (tmp_path / "spool.db").write_bytes(b"not a database" * 100)
    await scene.accept(3)
    await scene.replaced.wait()
    assert scene.seqs() == [3]
    scene.writer.close()


@in_loop
async def test_close_writes_what_is_queued_and_refuses_what_comes_later(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    before = await scene.file.block(scene.writer)
    accepted = scene.accept(1)
    scene.writer.apply_lazily(SaveClock(3.0))
    closing = asyncio.create_task(asyncio.to_thread(scene.writer.close))
    scene.file.works.set()
    await closing
    assert await codes([before, accepted, scene.accept(2)]) == ["", "", "SpoolClosed"]
    scene.writer.close()
    file = SpoolFile(tmp_path / "spool.db", create=False)
    assert ([row.seq for row in file.entries()], file.active_base_s) == ([1], 3.0)
    file.close()


@in_loop
async def test_what_cannot_be_written_until_the_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(tmp_path)
    await scene.accept(1)
    scene.file.error = full()
    with pytest.raises(SpoolError):
        await scene.writer.apply(Delete(1), Delete(2))
    with pytest.raises(SpoolError, match="is full"):
        scene.seqs()
    await asyncio.to_thread(scene.writer.close)
    assert "2 changes could not be written to the spool" in caplog.messages[-1]
