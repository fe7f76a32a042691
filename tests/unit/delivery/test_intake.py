"""Requests that are accepted, refused, or joined to a pending transfer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeSpool, House, away, flying, flying_with

from s3daemon.delivery.schedule import MAX_TAGS
from s3daemon.errors import AttemptError, FileError, RequestError, SpoolError
from s3daemon.model.files.source import Source
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Transfer


@flying_with(House)
async def test_the_upload_does_not_wait_for_the_disk(house: House) -> None:
    """A commit that takes long delays only the acceptance; the spool has it that an attempt may have started."""
    house.spool.commit = asyncio.Event()
    ticket = await house.intake.submit(house.request())
    assert house.queued(ticket).attempt_started
    assert (await ticket.outcome).outcome is Outcome.STORED
    assert not ticket.durable.done()
    house.spool.commit.set()
    await ticket.durable


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="1")
async def test_a_transfer_that_must_wait_keeps_no_file_open(house: House) -> None:
    """And the spool knows that no attempt has started."""
    await house.intake.submit(house.request(key="first"))
    second = await house.intake.submit(house.request(key="second"))
    queued = house.queued(second)
    assert queued.source is None
    await second.durable
    assert not house.spool.rows[second.id].attempt_started


@flying_with(House)
async def test_a_full_disk_refuses(house: House) -> None:
    """Nothing is accepted falsely: the attempt is cancelled, the transfer forgotten, and the client gets the error."""
    house.spool.full = True
    ticket = await house.intake.submit(house.request())
    with pytest.raises(SpoolError):
        await ticket.durable
    reply = await ticket.outcome
    assert (reply.outcome, reply.code, reply.id) == (Outcome.FAILED, "SpoolFull", "")
    assert len(house.uploader.schedule) == 0
    assert not house.store.objects
    assert not house.journal.records
    house.spool.full = False
    assert (await (await house.intake.submit(house.request())).outcome).outcome is Outcome.STORED


@flying_with(House)
async def test_a_transfer_that_was_stored_before_the_disk_could_refuse_it_is_stored(house: House) -> None:
    house.spool.commit = asyncio.Event()
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.STORED
    house.spool.full = True
    house.spool.commit.set()
    await ticket.durable


@flying_with(House)
async def test_while_requests_are_refused_the_upload_waits_for_the_disk(house: House) -> None:
    """So nothing is stored of a request that is refused, or may be overwritten by what the spool could not remove."""
    house.spool.commit = asyncio.Event()
    house.spool.is_refusing = house.spool.full = True
    refused = await house.intake.submit(house.request(key="refused"))
    await asyncio.sleep(60)
    house.spool.commit.set()
    with pytest.raises(SpoolError):
        await refused.durable
    assert not house.store.objects
    house.spool.commit, house.spool.full = asyncio.Event(), False
    accepted = await house.intake.submit(house.request(key="accepted"))
    await asyncio.sleep(60)
    assert not house.store.objects
    house.spool.commit.set()
    await accepted.durable
    assert (await accepted.outcome).outcome is Outcome.STORED


def errors(count: int) -> Callable[[Transfer], AttemptError | None]:
    """Answer with so many errors, then store."""
    left = [AttemptError("InternalError", "x", status=500)] * count
    return lambda _: left.pop() if left else None


@flying_with(House)
async def test_a_request_joins_the_pending_transfer_of_the_same_file_and_destination(house: House) -> None:
    """They share one upload, its delay ends, and the record has the tags of both."""
    house.store.answer = errors(6)
    first = await house.intake.submit(house.request(tag="a"))
    while len(house.store.puts) < 6 or house.store.in_flight:  # then it is in its back-off, which is long by now
        await asyncio.sleep(0.05)
    second = await house.intake.submit(house.request(tag="b"))
    await second.durable
    assert second.id == first.id
    assert house.spool.rows[first.id].transfer.tags == ("a", "b")
    started_at = house.loop.time()
    assert (await second.outcome) == (await first.outcome)
    assert house.loop.time() - started_at < 0.2
    assert house.journal.records[-1].tags == ("a", "b")


@flying_with(House)
async def test_the_file_of_a_request_that_joins_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the transfer sends it opens itself."""
    closed: list[Source] = []
    monkeypatch.setattr(Source, "close", lambda source: closed.append(source))
    house.store.answer = away
    first = await house.intake.submit(house.request())
    await asyncio.sleep(0.2)
    closed.clear()
    assert (await house.intake.submit(house.request())).id == first.id
    assert len(closed) == 1


@flying_with(House)
async def test_a_request_that_joins_wants_the_file_as_it_is_now(house: House) -> None:
    """After a crash, an object of what was sent before does not serve it."""
    house.store.answer = away
    first = await house.intake.submit(house.request())
    await asyncio.sleep(0.2)
    house.files.sizes["/f"] = 5000
    second = await house.intake.submit(house.request())
    await second.durable
    assert second.id == first.id
    row = house.spool.rows[first.id]
    assert (row.transfer.file_state.size, row.file_changed, row.sent_etag) == (5000, True, "")


@flying_with(House)
async def test_requests_that_join_keep_the_record_small(house: House) -> None:
    """Each tag is in it once, and after many tags the next request is a transfer of its own."""
    house.store.seconds = 60.0
    await house.intake.submit(house.request())  # is in flight meanwhile
    first = await house.intake.submit(house.request(tag="0"))
    for number in range(2 * MAX_TAGS - 1):
        ticket = await house.intake.submit(house.request(tag=str(number // 2)))
        assert ticket.id == first.id
        await ticket.durable
    assert house.spool.rows[first.id].transfer.tags == tuple(map(str, range(MAX_TAGS)))
    second = await house.intake.submit(house.request(tag="more"))
    assert second.id != first.id
    assert (await house.intake.submit(house.request(tag="again"))).id == second.id


@flying_with(House)
async def test_a_request_that_joins_is_not_durable_before_the_transfer_is(house: House) -> None:
    house.spool.commit = asyncio.Event()
    house.store.answer = away
    first = await house.intake.submit(house.request())
    await asyncio.sleep(0.2)
    second = await house.intake.submit(house.request())
    assert second.id == first.id
    await asyncio.sleep(60.0)
    assert not second.durable.done()
    house.spool.commit.set()
    await second.durable


@flying_with(House)
async def test_a_request_that_joined_is_refused_with_the_transfer(house: House) -> None:
    house.spool.commit = asyncio.Event()
    house.store.answer = away
    tickets = [await house.intake.submit(house.request())]
    await asyncio.sleep(0.2)
    tickets.append(await house.intake.submit(house.request()))
    house.spool.full = True
    house.spool.commit.set()
    for ticket in tickets:
        with pytest.raises(SpoolError):
            await ticket.durable
        assert (await ticket.outcome).code == "SpoolFull"


@flying_with(House)
async def test_no_request_joins_a_transfer_that_is_in_flight(house: House) -> None:
    """What is being sent may be older than what the client wrote: its request becomes a transfer of its own."""
    first = await house.intake.submit(house.request())
    second = await house.intake.submit(house.request())
    assert second.id != first.id
    assert (await second.outcome).outcome is Outcome.STORED
    assert len(house.store.puts) == 2


@flying_with(House, S3DAEMON_ALLOWED_BUCKETS="other")
async def test_only_listed_buckets_are_allowed(house: House) -> None:
    """A reload may change the list."""
    with pytest.raises(RequestError) as caught:
        await house.intake.submit(house.request())
    assert caught.value.code == "NotAllowed"
    house.holder.current = House().settings
    assert await house.intake.submit(house.request())


@flying_with(House)
async def test_a_file_that_cannot_be_opened_is_refused_at_once(house: House) -> None:
    house.files.missing.add("/gone")
    with pytest.raises(FileError):
        await house.intake.submit(house.request(file="/gone"))
    assert len(house.uploader.schedule) == 0


@flying_with(House)
async def test_a_client_of_an_earlier_process_waits_on(house: House) -> None:
    """Its transfer is durable already; a transfer that is over gives no ticket."""
    ticket = await house.intake.submit(house.request())
    await ticket.durable
    await house.uploader.drain(0.0)
    after = House(spool=house.spool, store=house.store)
    after.uploader.recover(house.spool.rows.values())
    resumed = after.intake.resume(ticket.id)
    assert resumed
    assert resumed.durable.done()
    assert (await resumed.outcome).outcome is Outcome.STORED
    assert after.intake.resume(ticket.id) is None


@flying
async def test_the_order_of_acceptance_goes_on_from_that_of_earlier_processes() -> None:
    spool = FakeSpool()
    spool.last_seq = 41
    house = House(spool=spool)
    ticket = await house.intake.submit(house.request())
    await ticket.durable
    assert house.spool.rows[ticket.id].seq == house.queued(ticket).seq == 42


@flying_with(House)
async def test_a_client_that_has_waited_long_enough_is_deferred_unless_its_transfer_is_over(house: House) -> None:
    ticket: Any = await house.intake.submit(house.request())
    reply = house.intake.deferral(ticket)
    assert reply
    assert (reply.outcome, reply.code, reply.id) == (Outcome.DEFERRED, "Deferred", ticket.id)
    await asyncio.sleep(1)
    assert not ticket.outcome.done(), "it does not wait any longer"
    assert house.intake.deferral(ticket) is None
