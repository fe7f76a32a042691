"""Clients that wait: each is notified once, and at once when waiting is of no use.

Deferred clients in the journal: one entry for each transfer with its id; a flood is few entries and a number, so that a
long outage costs the journal no more than its transfers do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_transfer import transfer
from fakes import House, away, flying_with

from s3daemon.delivery.decision import LastError
from s3daemon.delivery.health.endpoint import KNOWN_AWAY_AFTER_S, Health
from s3daemon.delivery.schedule import AttemptInFlight, QueuedTransfer
from s3daemon.delivery.waiters import (
    PERIOD_LIMIT,
    PERIOD_S,
    Waiters,
    notify,
)
from s3daemon.errors import AttemptError
from s3daemon.model.record import MessageId, Priority
from s3daemon.model.reply import Outcome, Reply
from s3daemon.network.uploads.progress import Progress

DOWN = AttemptError("ConnectionFailed", "refused")
BAD_KEY = AttemptError("InvalidAccessKeyId", "unknown key", status=403)


class Room:
    """Waiters, the health that they ask, and the entries that they write."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.health = Health(random.Random(1), self.loop.time)
        self.entries: list[dict[str, Any]] = []
        self.waiters = Waiters(self.health, lambda fields: self.entries.append(dict(fields)))

    def queued(self, number: int = 1) -> QueuedTransfer:
        return QueuedTransfer(number, transfer(number), 0.0, 0.0)

    async def lose_the_endpoint(self) -> None:
        for _ in range(3):
            self.health.failed(DOWN, transfer(1).destination)
        await asyncio.sleep(KNOWN_AWAY_AFTER_S)


@flying_with(Room)
async def test_all_clients_of_a_transfer_are_notified_of_its_end(room: Room) -> None:
    """Except one that is gone."""
    queued = room.queued()
    first, gone, third = (room.waiters.wait(queued) for _ in range(3))
    gone.cancel()
    waiters = room.waiters.remove(queued)
    assert not first.done(), "notifying them is the caller's, once the end is recorded"
    reply = Reply(Outcome.STORED, queued.transfer.id)
    notify(waiters, reply)
    assert first.result() == third.result() == reply
    assert room.waiters.remove(queued) == []


@flying_with(Room)
async def test_clients_are_deferred_at_once_when_the_endpoint_is_known_to_be_away(room: Room) -> None:
    early = room.waiters.wait(room.queued(1))
    await room.lose_the_endpoint()
    room.waiters.defer_if_away()
    late = room.waiters.wait(room.queued(2))
    assert [waiter.result().outcome for waiter in (early, late)] == [Outcome.DEFERRED] * 2
    assert [entry["S3DAEMON_TRANSFER_ID"] for entry in room.entries] == [f"{1:016x}", f"{2:016x}"]
    room.waiters.defer_if_away()
    assert len(room.entries) == 2, "each once"


@flying_with(Room)
async def test_a_transfer_that_is_over_is_not_deferred_any_more(room: Room) -> None:
    """Its clients get the end, though that may take until a failure is listed."""
    queued = room.queued()
    waiter = room.waiters.wait(queued)
    room.waiters.remove(queued)
    await room.lose_the_endpoint()
    room.waiters.defer_if_away()
    assert not waiter.done()


async def _nothing(_: Room) -> None:
    """Leave the endpoint as it is."""


async def _refuse(room: Room) -> None:
    room.health.refused(BAD_KEY, room.loop.time())


@pytest.mark.parametrize(
    ("prepare", "error", "why"),
    [
        (_nothing, LastError(), "it waits for its turn"),
        (_nothing, LastError("Stalled", "no byte for 10 s"), "the last error: Stalled, no byte for 10 s"),
        (Room.lose_the_endpoint, LastError(), "the endpoint is away"),
        (Room.lose_the_endpoint, LastError("Stalled", "10 s"), "the endpoint is away: Stalled, 10 s"),
        (
            _refuse,
            LastError("Stalled", "10 s"),
            "the queue is held: InvalidAccessKeyId: unknown key; fix it and reload",
        ),
    ],
)
@flying_with(Room)
async def test_a_deferral_says_why(
    room: Room, prepare: Callable[[Room], Awaitable[None]], error: LastError, why: str
) -> None:
    queued = room.queued()
    waiter = room.waiters.wait(queued)
    queued.last_error = error
    await prepare(room)
    id_ = queued.transfer.id
    reply = room.waiters.defer(queued, waiter)
    kept = "is kept" if room.health.held or why == "it waits for its turn" else "is kept and being tried"
    assert reply == Reply(Outcome.DEFERRED, id_, "Deferred", f"{id_} {kept}; {why}")


@flying_with(Room)
async def test_only_a_transfer_that_an_attempt_was_made_for_is_said_to_be_on_its_way(room: Room) -> None:
    queued = room.queued()
    waiter = room.waiters.wait(queued)
    queued.attempts = 1
    reply = room.waiters.defer(queued, waiter)
    assert reply.text == f"{queued.transfer.id} is kept and being tried; it is still on its way"


@flying_with(Room)
async def test_a_store_that_hangs_is_not_said_to_be_a_slow_network(room: Room) -> None:
    """It took all of a file and does not answer, which is what its operators have to hear."""
    queued = room.queued()
    waiter = room.waiters.wait(queued)
    queued.attempts, progress = 1, Progress()
    queued.attempt = AttemptInFlight(asyncio.create_task(asyncio.sleep(0)), progress)
    progress.add_stored(queued.transfer.file_state.size)
    reply = room.waiters.defer(queued, waiter)
    why = "all of it is sent, and the store has not answered yet"
    assert reply.text == f"{queued.transfer.id} is kept and being tried; {why}"


@flying_with(Room)
async def test_a_client_that_was_deferred_does_not_wait_any_longer_and_another_does(room: Room) -> None:
    queued = room.queued()
    first, second = room.waiters.wait(queued), room.waiters.wait(queued)
    room.waiters.defer(queued, first)
    assert room.waiters.remove(queued) == [second]
    room.waiters.defer(queued, second)
    assert room.waiters.remove(queued) == []


@flying_with(Room)
async def test_clients_that_are_gone_are_not_logged_as_deferred(room: Room) -> None:
    room.waiters.wait(room.queued()).cancel()
    await room.lose_the_endpoint()
    room.waiters.defer_if_away()
    assert room.entries == []


@flying_with(House)
async def test_clients_that_do_not_wait_are_not_logged_as_deferred(house: House) -> None:
    """They were told that it is accepted, and nothing since."""
    house.store.answer = away
    await house.intake.submit(house.request(wait=False))
    await asyncio.sleep(60)
    assert house.uploader.health.away
    await house.intake.submit(house.request(key="late", wait=False))
    assert house.journal.of(MessageId.DEFERRED) == []


@flying_with(Room)
async def test_an_entry_names_the_transfer_and_the_reason(room: Room) -> None:
    queued = room.queued(7)
    room.waiters.defer(queued, room.waiters.wait(queued))
    (entry,) = room.entries
    assert "deferred" in entry["MESSAGE"]
    assert str(queued.transfer.destination) in entry.pop("MESSAGE")
    assert entry == {
        "MESSAGE_ID": MessageId.DEFERRED,
        "PRIORITY": Priority.NOTICE,
        "S3DAEMON_TRANSFER_ID": f"{7:016x}",
        "S3DAEMON_BUCKET": queued.transfer.destination.bucket,
        "S3DAEMON_KEY": queued.transfer.destination.key,
        "S3DAEMON_ATTEMPTS": 0,
    }


@flying_with(Room)
async def test_a_flood_is_counted(room: Room) -> None:
    """There are no more entries in a period than the limit, and then one with the number of the others."""
    for number in range(PERIOD_LIMIT + 5000):
        room.waiters.defer(queued := room.queued(number), room.waiters.wait(queued))
    assert len(room.entries) == PERIOD_LIMIT
    await asyncio.sleep(PERIOD_S + 1)
    assert len(room.entries) == PERIOD_LIMIT + 1
    last = room.entries[-1]
    assert last["MESSAGE"] == "5000 more transfers deferred, each client notified, within 60 s"
    assert (last["MESSAGE_ID"], last["S3DAEMON_DEFERRED"]) == (MessageId.DEFERRED, 5000)
    room.waiters.defer(queued, room.waiters.wait(queued))
    await asyncio.sleep(PERIOD_S + 1)
    assert len(room.entries) == PERIOD_LIMIT + 2


@flying_with(House)
async def test_clients_through_the_beginning_of_an_outage(house: House) -> None:
    """Each transfer's clients are deferred once: those that wait when it is known; those that come later, at once."""
    house.store.answer = away
    early = [await house.intake.submit(house.request(key=f"early{n}")) for n in range(5)]
    impatient = await house.intake.submit(house.request(key="impatient"))
    assert house.intake.deferral(impatient)  # its wait limit was over before the outage was known
    replies = [await ticket.outcome for ticket in early]
    assert {reply.outcome for reply in replies} == {Outcome.DEFERRED}
    assert house.loop.time() >= 1000 + KNOWN_AWAY_AFTER_S
    late = await house.intake.submit(house.request(key="late"))
    assert (await late.outcome).outcome is Outcome.DEFERRED
    entries = house.journal.of(MessageId.DEFERRED)
    notified = [entry["S3DAEMON_TRANSFER_ID"] for entry in entries]
    assert sorted(notified) == sorted(ticket.id for ticket in (impatient, *early, late))
    assert "the endpoint is away: ConnectionFailed, refused" in entries[-2]["MESSAGE"]
    house.store.answer = lambda _: None
    house.uploader.reload()
    await asyncio.sleep(60)
    assert len(house.journal.records) == 7
    assert len(house.journal.of(MessageId.DEFERRED)) == 7


@flying_with(House)
async def test_clients_are_deferred_when_the_outage_is_known_though_no_attempt_ends_then(house: House) -> None:
    """Where packets are dropped, an attempt takes as long as connecting to each address in turn."""
    house.store.answer, house.store.seconds = away, 20
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(5)]
    assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.DEFERRED}
    assert house.loop.time() < 1000 + 20 + KNOWN_AWAY_AFTER_S + 1


@flying_with(House)
async def test_a_second_client_goes_on_waiting(house: House) -> None:
    """One of two that wait for a transfer is deferred; the other gets its reply when it is stored."""
    errors = [AttemptError("SlowDown", "later", status=503)]
    house.store.answer = lambda _: errors.pop() if errors else None
    first = await house.intake.submit(house.request())
    await asyncio.sleep(0.2)
    second = await house.intake.submit(house.request())
    assert second.id == first.id
    assert house.intake.deferral(first)
    assert (await second.outcome).outcome is Outcome.STORED
    assert not first.outcome.done()
    assert len(house.journal.of(MessageId.DEFERRED)) == 1
