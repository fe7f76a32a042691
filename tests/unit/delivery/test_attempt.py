"""One attempt: what it asks of the store, and what it leaves for the next attempt to know."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from fakes import ArrivedError, FakeSpool, FakeStore, House, flying, flying_with

from s3daemon.delivery.attempt import LATE_ARRIVAL_S, LOOKUPS_MAX, SETTLE_S
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import AttemptError, FileError, SpoolError
from s3daemon.model.request import FileState, Transfer
from s3daemon.network.uploads.progress import Progress
from s3daemon.network.uploads.straggler import MoveHistory
from s3daemon.s3.store import Stored
from s3daemon.spool.open_uploads import MultipartUpload
from s3daemon.spool.spool import Entry


class Bench:
    """Attempts with fake collaborators."""

    def __init__(self, spool: FakeSpool | None = None, store: FakeStore | None = None) -> None:
        self.house = House(spool=spool, store=store)
        self.store, self.spool, self.files = self.house.store, self.house.spool, self.house.files

    def accepted(self, file: str = "/f", *, attempt_started: bool = True) -> QueuedTransfer:
        """Return a transfer as it is when its first attempt starts."""
        source = self.files.open(file)
        transfer = Transfer.accept(self.house.request(file=file), source.state, 0)
        return QueuedTransfer(1, transfer, 0.0, 0.0, source=source, attempt_started=attempt_started)

    def make(self, queued: QueuedTransfer) -> Coroutine[Any, Any, Stored]:
        return self.house.attempts.make(queued, Progress())

    async def lose(self, queued: QueuedTransfer) -> None:
        """Make an attempt of which it is not known whether it was stored; what is tried later is stored."""
        self.store.answer = lambda _: LOST
        with pytest.raises(AttemptError):
            await self.make(queued)
        self.store.answer = lambda _: None


LOST = AttemptError("NoAnswer", "no answer", ambiguous=True)
#: Of an object in one part whose MD5 sum is 0.
ONE_PART = "4ae71336e44bf9bf79d2752e234818a5-1"


@flying_with(Bench)
async def test_the_file_opened_at_acceptance_is_sent_and_opened_anew_after_that(bench: Bench) -> None:
    queued = bench.accepted()
    bench.files.missing.add("/f")
    assert (await bench.make(queued)).size == 3000
    assert (queued.attempts, queued.source) == (1, None)
    with pytest.raises(FileError, match="no such file"):
        await bench.make(queued)
    assert queued.attempts == 2


@flying_with(Bench)
async def test_the_spool_is_notified_before_anything_is_sent(bench: Bench) -> None:
    queued = bench.accepted(attempt_started=False)
    making = asyncio.create_task(bench.make(queued))
    await asyncio.sleep(0.5 * bench.store.seconds)
    assert bench.store.in_flight
    assert bench.spool.started == [queued.transfer.id]
    await making
    assert queued.attempt_started
    await bench.make(queued)
    assert len(bench.spool.started) == 1, "the spool has it already"


class FullSpool(FakeSpool):
    async def start_attempt(self, transfer: Transfer, *, file_changed: bool = False) -> None:
        raise SpoolError("SpoolFull", "no space")


@flying
async def test_a_full_disk_stops_no_accepted_transfer() -> None:
    bench = Bench(FullSpool())
    assert await bench.make(bench.accepted(attempt_started=False))


@flying_with(Bench)
async def test_a_file_that_changed_since_acceptance_is_sent_as_it_is_now(bench: Bench) -> None:
    queued = bench.accepted()
    queued.source = None
    await bench.spool.add(queued.transfer, 0.0, attempt_started=True)
    queued.outcome_unknown, queued.sent_etag = True, "of the old content"
    bench.files.sizes["/f"] = 5000
    assert (await bench.make(queued)).size == 5000
    assert (queued.file_changed, queued.sent_etag) == (True, "")
    assert queued.transfer.file_state == FileState(5000, 1, 1, 1)
    row = bench.spool.rows[queued.transfer.id]
    assert row.transfer == queued.transfer, "the spool has the new state too"
    assert QueuedTransfer.of(row).file_changed, "so the next process does not see the change again"
    assert not bench.store.finds, "what an earlier attempt sent is not what is there now"


@pytest.mark.parametrize("arrived", [True, False])
@flying_with(Bench)
async def test_what_an_earlier_process_sent_is_looked_up_though_its_file_has_changed(
    bench: Bench, arrived: bool
) -> None:
    """Its client may have been told that it is stored, and have used the file for something else since."""
    before = bench.accepted()
    queued = QueuedTransfer.of(Entry(1, before.transfer, 0.0, attempt_started=True))
    bench.files.sizes["/f"] = 5000
    if arrived:
        bench.store.objects[queued.transfer.destination] = queued.transfer.id
    assert (await bench.make(queued)).size == (3000 if arrived else 5000)
    assert len(bench.store.finds) == 1
    assert (len(bench.store.puts), queued.file_changed) == ((0, False) if arrived else (1, True))


@flying_with(Bench)
async def test_a_change_after_this_process_has_sent_the_file_is_sent(bench: Bench) -> None:
    queued = QueuedTransfer.of(Entry(1, bench.accepted().transfer, 0.0, attempt_started=True))
    bench.store.answer = lambda _: ArrivedError("NoAnswer", "no answer", ambiguous=True)
    with pytest.raises(AttemptError):
        await bench.make(queued)
    bench.store.answer = lambda _: None
    bench.files.sizes["/f"] = 5000
    assert (await bench.make(queued)).size == 5000


@flying_with(Bench)
async def test_a_failed_transfer_that_is_retried_is_sent_as_its_file_is_now(bench: Bench) -> None:
    """An operator has corrected the file."""
    queued = QueuedTransfer.of(Entry(1, bench.accepted().transfer, 0.0, attempt_started=True, failed=True))
    bench.store.objects[queued.transfer.destination] = queued.transfer.id
    bench.files.sizes["/f"] = 5000
    assert (await bench.make(queued)).size == 5000


@flying_with(Bench)
async def test_a_look_up_that_is_refused_again_and_again_does_not_hold_a_changed_file_back(bench: Bench) -> None:
    queued = QueuedTransfer.of(Entry(1, bench.accepted().transfer, 0.0, attempt_started=True))
    bench.files.sizes["/f"] = 5000

    async def find(*_: object, **__: object) -> Stored:
        raise AttemptError("InternalError", "cannot look", status=500)

    bench.store.find = find  # type: ignore[method-assign]
    for _ in range(LOOKUPS_MAX - 1):
        with pytest.raises(AttemptError):
            await bench.make(queued)
    assert (await bench.make(queued)).size == 5000


@pytest.mark.parametrize("changes", [True, False])
@flying_with(Bench)
async def test_the_spool_has_no_etag_of_what_an_earlier_attempt_sent(bench: Bench, changes: bool) -> None:
    """Else the next process, after a crash, would not know the object that this attempt stored, and send it again."""
    queued = bench.accepted(attempt_started=True)
    queued.source = None
    await bench.spool.add(queued.transfer, 0.0, attempt_started=True)
    bench.spool.record_attempt(
        queued.transfer.id, 1, attempt_started=True, code="SlowDown", text="", sent_etag=f"{'0' * 32}-2"
    )
    queued.sent_etag = f"{'0' * 32}-2"  # in parts of another size than now
    if changes:
        bench.files.sizes["/f"] = 5000
    making = asyncio.create_task(bench.make(queued))
    await asyncio.sleep(0.5 * bench.store.seconds)
    assert bench.store.in_flight
    row = bench.spool.rows[queued.transfer.id]
    assert (row.sent_etag, row.attempt_started, row.transfer) == ("", True, queued.transfer)
    await making


@flying_with(Bench)
async def test_the_spool_has_the_change_that_a_request_noted_before_the_file_is_sent(bench: Bench) -> None:
    """That of the request itself may come later: after a crash the next process would look for the old content."""
    queued = bench.accepted(attempt_started=True)
    queued.source, queued.outcome_unknown = None, True
    await bench.spool.add(queued.transfer, 0.0, attempt_started=True)
    bench.files.sizes["/f"] = 5000
    queued.note_change(bench.files.open("/f").state)
    assert await bench.make(queued)
    assert bench.spool.rows[queued.transfer.id].transfer == queued.transfer


@pytest.mark.parametrize("arrived", [True, False])
@flying_with(Bench)
async def test_after_an_unknown_outcome_the_object_is_looked_up(bench: Bench, arrived: bool) -> None:
    """If it is there, it is not sent a second time."""
    queued = bench.accepted()
    bench.store.answer = lambda _: LOST
    with pytest.raises(AttemptError):
        await bench.make(queued)
    assert queued.outcome_unknown
    if arrived:
        bench.store.objects[queued.transfer.destination] = queued.transfer.id
    bench.store.answer = lambda _: None
    assert await bench.make(queued)
    assert bench.store.finds == [queued.transfer.id]
    assert len(bench.store.puts) == (1 if arrived else 2)


@flying_with(Bench)
async def test_an_error_with_a_known_outcome_leaves_nothing_to_look_up(bench: Bench) -> None:
    queued = bench.accepted()
    bench.store.answer = lambda _: AttemptError("SlowDown", "busy", status=503)
    with pytest.raises(AttemptError):
        await bench.make(queued)
    assert not queued.outcome_unknown


@flying_with(Bench)
async def test_a_transfer_whose_file_was_removed_after_it_was_stored_is_stored(bench: Bench) -> None:
    queued = bench.accepted()
    queued.source, queued.outcome_unknown = None, True
    bench.files.missing.add("/f")
    with pytest.raises(FileError):
        await bench.make(queued)
    bench.store.objects[queued.transfer.destination] = queued.transfer.id
    assert await bench.make(queued)
    assert not bench.store.puts


@flying_with(Bench)
async def test_addresses_that_failed_are_avoided(bench: Bench) -> None:
    queued = bench.accepted()
    queued.failed_addresses = frozenset({"192.0.2.1"})
    await bench.make(queued)
    assert bench.store.avoided == [{"192.0.2.1"}]


@flying_with(Bench)
async def test_a_late_arrival_of_an_older_transfer_is_noticed(bench: Bench) -> None:
    """The attempt fails, so that the newer content is sent again; once that is found, it is not looked up again."""
    older, newer = bench.accepted("/old"), bench.accepted("/new")
    await bench.lose(older)
    making = asyncio.create_task(bench.make(newer))
    await asyncio.sleep(1.5 * bench.store.seconds)  # it is stored, and being looked up
    bench.store.objects[older.transfer.destination] = older.transfer.id
    with pytest.raises(AttemptError) as caught:
        await making
    assert caught.value.code == "Overwritten"
    assert await bench.make(newer)
    assert len(bench.store.finds) == 2
    assert await bench.make(newer)
    assert len(bench.store.finds) == 2


async def lose_one(bench: Bench, older: QueuedTransfer, newer: QueuedTransfer) -> None:
    await bench.lose(older)


async def lose_both(bench: Bench, older: QueuedTransfer, newer: QueuedTransfer) -> None:
    await bench.lose(older)
    await bench.lose(newer)


async def drop_one(bench: Bench, older: QueuedTransfer, newer: QueuedTransfer) -> None:
    making = asyncio.create_task(bench.make(older))
    await asyncio.sleep(0.5 * bench.store.seconds)
    making.cancel()
    await asyncio.wait({making})


@pytest.mark.parametrize("before", [lose_one, lose_both, drop_one])
@flying_with(Bench)
async def test_whatever_may_still_arrive_is_looked_for(
    bench: Bench, before: Callable[[Bench, QueuedTransfer, QueuedTransfer], Coroutine[Any, Any, None]]
) -> None:
    """An older transfer's body, though the newer one was lost once as well, or the older one dropped by an operator."""
    older, newer = bench.accepted("/old"), bench.accepted("/new")
    await before(bench, older, newer)
    newer.outcome_unknown = False
    assert await bench.make(newer)
    assert bench.store.finds == [newer.transfer.id]


@pytest.mark.parametrize("is_rewritten", [False, True])
@flying_with(Bench)
async def test_a_late_arrival_of_the_same_transfer_matters_if_its_file_has_changed(
    bench: Bench, is_rewritten: bool
) -> None:
    """Its body of before is old content then; the same content may be stored twice."""
    queued = bench.accepted()
    await bench.lose(queued)
    queued.outcome_unknown = False
    if is_rewritten:
        bench.files.sizes["/f"] = 5000
    assert await bench.make(queued)
    assert bench.store.finds == [queued.transfer.id] * is_rewritten


@flying_with(Bench)
async def test_a_late_arrival_is_not_expected_for_ever(bench: Bench) -> None:
    older, newer = bench.accepted("/old"), bench.accepted("/new")
    await bench.lose(older)
    await asyncio.sleep(LATE_ARRIVAL_S)
    assert await bench.make(newer)
    assert not bench.store.finds


@flying_with(Bench)
async def test_a_bug_counts_as_a_failure_with_an_unknown_outcome(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    queued = bench.accepted()

    def answer(_: object) -> None:
        raise ZeroDivisionError

    bench.store.answer = answer
    with pytest.raises(AttemptError) as caught:
        await bench.make(queued)
    assert (caught.value.code, caught.value.text) == ("Internal", "a bug: ZeroDivisionError")
    assert caught.value.ambiguous
    assert queued.outcome_unknown
    assert "a bug in an attempt of" in caplog.text


class SlowStore(FakeStore):
    """A store to which the first uploads go over slow connections."""

    moves = 1
    ambiguous = False
    found: list[tuple[float, set[str]]]

    async def put(
        self, transfer: Transfer, source: Any, open_uploads: Any = None, failed_addresses: Any = (),
        progress: Progress | None = None, **kwargs: Any,
    ) -> Stored:  # fmt: skip
        assert progress is not None
        if progress.moves < self.moves:
            progress.histories[0] = MoveHistory(progress.moves + 1)
            progress.slow_addresses.add("192.0.2.1")
            error = AttemptError("SlowConnection", "slow", ambiguous=self.ambiguous)
            self.answer = lambda _: error
        else:
            self.answer = lambda _: None
        return await super().put(transfer, source, open_uploads, failed_addresses, progress, **kwargs)

    async def find(self, transfer: Transfer, failed_addresses: Any = (), **kwargs: Any) -> Any:
        self.found.append((asyncio.get_running_loop().time(), set(failed_addresses)))
        return await super().find(transfer, failed_addresses, **kwargs)


@pytest.mark.parametrize("ambiguous", [False, True])
@flying
async def test_a_moved_upload_is_sent_again_in_the_same_attempt(ambiguous: bool) -> None:
    """At once; what may have arrived is looked up first, not at the slow address, and is guarded against its return."""
    store = SlowStore()
    store.moves, store.ambiguous, store.found = 3, ambiguous, []
    bench = Bench(store=store)
    queued = bench.accepted()
    queued.moved = 2
    began = asyncio.get_running_loop().time()
    await bench.make(queued)
    assert (queued.attempts, queued.moved, len(store.puts)) == (1, 5, 4)
    assert queued.outcome_unknown is ambiguous
    assert [where for _, where in store.found] == [{"192.0.2.1"}] * (3 if ambiguous else 0)
    if ambiguous:
        assert store.found[0][0] - began == pytest.approx(store.seconds + SETTLE_S)
    else:
        assert asyncio.get_running_loop().time() - began == pytest.approx(4 * store.seconds)


@flying
async def test_a_moved_upload_that_had_arrived_is_found() -> None:
    """It is not sent again."""
    error = ArrivedError("SlowConnection", "slow", ambiguous=True)
    store = FakeStore(answer=lambda _: error)
    bench = Bench(store=store)
    queued = bench.accepted()
    assert (await bench.make(queued)).size == 3000
    assert (queued.attempts, len(store.puts), len(store.finds)) == (1, 1, 1)


@flying_with(Bench)
async def test_an_attempt_ends_at_the_store_where_it_started(bench: Bench) -> None:
    """A reload with another endpoint counts from the next attempt on."""
    queued = bench.accepted()
    queued.outcome_unknown = True
    making = asyncio.create_task(bench.make(queued))
    await asyncio.sleep(0.5 * bench.store.seconds)  # it looks for the object
    bench.house.store = FakeStore()
    await making
    assert (len(bench.store.puts), len(bench.house.store.puts)) == (1, 0)
    await bench.make(replace(queued))
    assert (len(bench.store.puts), len(bench.house.store.puts)) == (1, 1)


class RefusingStore(FakeStore):
    """A store that refuses look-ups."""

    status = 503

    async def find(self, transfer: Transfer, *args: Any, **kwargs: Any) -> Any:
        self.finds.append(transfer.id)
        raise AttemptError("503", "no", status=self.status)


@pytest.mark.parametrize(("status", "puts"), [(503, 1), (500, 1), (0, 0)])
@flying
async def test_the_third_refused_lookup_in_a_row_is_followed_by_a_put(status: int, puts: int) -> None:
    """Else a store that refuses all of them would hold the transfer; one that does not answer takes no PUT either."""
    store = RefusingStore()
    store.status = status
    bench = Bench(store=store)
    queued = bench.accepted()
    queued.outcome_unknown = True
    for _ in range(2):
        with pytest.raises(AttemptError):
            await bench.make(queued)
    with contextlib.nullcontext() if puts else pytest.raises(AttemptError):
        await bench.make(queued)
    assert (len(bench.store.finds), len(bench.store.puts)) == (3, puts)


@flying
async def test_what_was_sent_is_known_to_the_next_lookup() -> None:
    """Its ETag is that of an object that is taken for stored."""
    given: list[str] = []

    class KnowingStore(FakeStore):
        async def put(self, *args: Any, on_sent: Callable[[str], None] = lambda _: None, **kwargs: Any) -> Stored:
            on_sent("etag")
            raise LOST

        async def find(self, transfer: Transfer, *args: Any, expected: str = "", **kwargs: Any) -> Stored:
            given.append(expected)
            return Stored("etag", 3000)

    bench = Bench(store=KnowingStore())
    queued = bench.accepted()
    with pytest.raises(AttemptError):
        await bench.make(queued)
    await bench.make(queued)
    assert given == ["etag"]


@flying
@pytest.mark.parametrize(
    ("completing", "expected"),
    [([], ""), ([["0" * 32]], ONE_PART), ([["0" * 32]] * 2, ONE_PART), ([["0" * 32], ["1" * 32]], "")],
    ids=["none", "one", "two with the same parts", "two with other parts"],
)
async def test_what_was_sent_in_parts_is_known_after_a_crash(completing: list[list[str]], expected: str) -> None:
    """The spool has the parts of an upload before the store is asked for the object."""
    given: list[str] = []

    class KnowingStore(FakeStore):
        async def find(self, transfer: Transfer, *args: Any, expected: str = "", **kwargs: Any) -> Stored:
            given.append(expected)
            return Stored("etag", 3000)

    bench = Bench(store=KnowingStore())
    queued = bench.accepted()
    queued.outcome_unknown = True
    for number, etags in enumerate([["2" * 32], *completing]):
        to, id_ = queued.transfer.destination, queued.transfer.id
        upload = MultipartUpload(f"upload {number}", "http://store", id_, to, 3000, "mark", 3000)
        await bench.spool.open_uploads.begin(upload)
        (open_upload,) = (each for each in bench.spool.open_uploads if each.upload == upload)
        for part, etag in enumerate(etags, 1):
            bench.spool.open_uploads.part(open_upload, part, etag)
        if number:
            await bench.spool.open_uploads.completing(open_upload)
    await bench.make(queued)
    assert given == [expected]


class RefusingOnceStore(FakeStore):
    """A store that answers the first look-up with 503."""

    async def find(self, transfer: Transfer, *args: Any, **kwargs: Any) -> Any:
        if not self.finds:
            self.finds.append(transfer.id)
            raise AttemptError("503", "busy", status=503)
        return await super().find(transfer, *args, **kwargs)


@flying_with(Bench)
async def test_what_was_stored_after_an_unknown_outcome_is_not_sent_again_when_its_lookup_is_refused(
    bench: Bench,
) -> None:
    bench.house.store = bench.store = RefusingOnceStore()
    older, newer = bench.accepted("/old"), bench.accepted("/new")
    await bench.lose(older)
    with pytest.raises(AttemptError) as caught:
        await bench.make(newer)
    assert caught.value.status == 503
    assert await bench.make(newer)
    assert [id_ for _, id_ in bench.store.puts] == [older.transfer.id, newer.transfer.id]


@flying_with(Bench)
async def test_a_late_arrival_is_expected_at_the_store_that_got_the_attempt_alone(bench: Bench) -> None:
    """A reload to another store, and back: only there its object may be overwritten."""
    older, newer, newest = (bench.accepted(file) for file in ("/old", "/new", "/newest"))
    await bench.lose(older)
    bench.house.store = other = FakeStore(url="http://other")
    await bench.make(newer)
    assert not other.finds
    bench.house.store = bench.store
    await bench.make(newest)
    assert bench.store.finds == [newest.transfer.id]


@flying_with(Bench)
async def test_after_a_reload_an_unknown_outcome_is_looked_up_at_the_new_store(bench: Bench) -> None:
    """Which has it if it is a replica; else the file is sent there."""
    one, two = bench.accepted(), bench.accepted()
    for queued in (one, two):
        queued.outcome_unknown = True
    bench.house.store = other = FakeStore(url="http://other")
    other.objects[one.transfer.destination] = one.transfer.id
    assert await bench.make(one)
    assert not other.puts
    assert await bench.make(two)
    assert [id_ for _, id_ in other.puts] == [two.transfer.id]
    assert not bench.store.finds


@flying_with(Bench)
async def test_late_arrivals_at_destinations_that_never_come_again_are_forgotten(bench: Bench) -> None:
    bench.store.answer = lambda _: LOST

    async def lose(count: int) -> None:
        for number in range(count):
            queued = bench.accepted()
            to = replace(queued.transfer.destination, key=f"{number}/{asyncio.get_running_loop().time()}")
            queued.transfer = replace(queued.transfer, destination=to)
            with pytest.raises(AttemptError):
                await bench.make(queued)

    await lose(2000)
    await asyncio.sleep(LATE_ARRIVAL_S)
    gc.collect()
    before = sum(type(each).__name__ == "_Content" for each in gc.get_objects())
    await lose(1)
    gc.collect()
    after = sum(type(each).__name__ == "_Content" for each in gc.get_objects())
    assert before - after >= 1999
