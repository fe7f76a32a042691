"""What is recorded of transfers and attempts, and when the spool forgets what is recorded; in a FlyingLoop."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

from fake_host import settings_for
from fakes import FakeJournal, FakeStore, House, away, flying, flying_with

from s3daemon.errors import AttemptError
from s3daemon.model.record import AttemptEnd, MessageId
from s3daemon.model.reply import Outcome


@flying_with(House)
async def test_equal_warnings_are_counted_beyond_a_handful_a_second(house: House) -> None:
    house.store.answer = away
    for n in range(200):
        await house.intake.submit(house.request(key=f"k{n}", wait=False))
    await asyncio.sleep(60)
    warnings = house.journal.of(MessageId.ATTEMPT_FAILED)
    assert len(warnings) < 30
    (counting,) = [entry for entry in warnings if "more like this" in entry["MESSAGE"]]
    assert re.search(r"refused \(2\d more like this not logged\)$", counting["MESSAGE"])


@flying_with(House)
async def test_the_record_of_a_failure_names_the_address_of_the_last_attempt(house: House) -> None:
    refusal = AttemptError("NoSuchBucket", "no", status=404, address="c")
    left = [AttemptError("SlowDown", "no", status=503, address="a", other_address=True), refusal]
    house.store.answer = lambda _: left.pop(0)
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.FAILED
    assert house.journal.records[0].receiver == "c"


@flying_with(House)
async def test_a_record_names_the_store_of_the_last_attempt(house: House) -> None:
    """Not the one that a reload has put in its place."""
    ticket = await house.intake.submit(house.request())
    await asyncio.sleep(0.5 * house.store.seconds)
    house.store, house.holder.current = FakeStore(url="http://new"), settings_for("http://new")
    await ticket.outcome
    assert house.journal.records[0].endpoint == "http://store"


class HoldingJournal(FakeJournal):
    """Writes no record: what is to be called when one is written is in `written`."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Callable[[], None]] = []

    def record(self, record: Any, done: Callable[[], None] | None = None) -> bool:
        assert done is not None
        self.written.append(done)
        return True


@flying
async def test_a_transfer_is_removed_from_the_spool_once_its_record_is_written() -> None:
    journal = HoldingJournal()
    house = House(journal=journal)
    ticket = await house.intake.submit(house.request())
    await ticket.outcome
    await asyncio.sleep(60)
    assert ticket.id in house.spool.rows
    journal.written[0]()
    await asyncio.sleep(0)
    assert not house.spool.rows


def test_a_record_that_is_written_after_the_end_does_no_harm() -> None:
    """The journal blocked for longer than the stop waits: the next process looks the object up."""
    journal = HoldingJournal()

    @flying_with(House, journal=journal)
    async def store_one(house: House) -> None:
        await (await house.intake.submit(house.request())).outcome

    store_one()
    journal.written[0]()


@flying_with(House)
async def test_observers_see_every_record(house: House) -> None:
    seen: list[str] = []
    house.uploader.records.observers.append(lambda record: seen.append(record.outcome))
    answers = [None, AttemptError("NoSuchBucket", "no", status=404)]
    house.store.answer = lambda _: answers.pop()
    for key in "ab":
        ticket = await house.intake.submit(house.request(key=key))
        await ticket.outcome
    assert seen == ["failed", "stored"]


@flying_with(House)
async def test_every_attempt_is_reported_when_it_ends(house: House) -> None:
    """During an outage too: with its code, and whether another follows; and the one that stores."""
    ends: list[AttemptEnd] = []
    house.uploader.records.attempt_observers.append(ends.append)
    house.store.answer = away
    await house.intake.submit(house.request())
    await asyncio.sleep(60)
    assert len(ends) >= 3
    assert set(ends) == {AttemptEnd(code="ConnectionFailed", again=True)}
    house.store.answer = lambda _: AttemptError("NoSuchBucket", "no", status=404)
    await asyncio.sleep(60)
    assert ends[-1] == AttemptEnd(code="NoSuchBucket", status=404)
    house.store.answer = lambda _: None
    await house.intake.submit(house.request(key="other"))
    await asyncio.sleep(1)
    assert (ends[-1].code, ends[-1].again, ends[-1].size_bytes) == ("", False, 3000)


class StandingJournal(FakeJournal):
    """A journal that stands still: it has room for so many records, and drops the others."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def record(self, record: Any, done: Callable[[], None] | None = None) -> bool:
        self.records.append(record)
        if len(self.records) > self.room and done is not None:
            done()
        return len(self.records) <= self.room


@flying
async def test_the_spool_forgets_in_the_order_of_a_destination_when_the_journal_stands_still() -> None:
    """Else a crash would leave the older row alone, and the next process would send it over the newer content."""
    journal = StandingJournal(room=2)
    house = House(journal=journal)
    for file, key in (("/other", "other"), ("/old", "k"), ("/new", "k")):
        ticket = await house.intake.submit(house.request(file=file, key=key))
        assert (await ticket.outcome).outcome is Outcome.STORED
    await asyncio.sleep(1)
    assert [entry.transfer.file for entry in house.spool.rows.values()] == ["/other"]


@flying
async def test_the_spool_forgets_what_is_stored_before_a_newer_one_is_sent_there() -> None:
    """Else a crash after the newer one's success leaves both rows, and the next process would send the old content."""
    house = House(journal=StandingJournal(room=10))
    old, new = [await house.intake.submit(house.request(file=file)) for file in ("/old", "/new")]
    assert (await old.outcome).outcome is Outcome.STORED
    await asyncio.sleep(0.5 * house.store.seconds)
    assert house.store.in_flight
    assert list(house.spool.rows) == [new.id]


@flying
async def test_a_newer_success_clears_older_failures_before_the_journal_has_its_record() -> None:
    """Whoever retries the failures meanwhile must not find them."""
    house = House(journal=StandingJournal(room=10))
    house.store.answer = lambda _: AttemptError("NoSuchBucket", "none", status=404)
    for key in ("k", "other"):
        await (await house.intake.submit(house.request(key=key))).outcome
    house.store.answer = lambda _: None
    await (await house.intake.submit(house.request())).outcome
    assert [entry.transfer.destination.key for entry in house.spool.failed_entries()] == ["other"]
