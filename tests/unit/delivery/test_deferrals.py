"""Deferred clients in the journal: each that was told is an entry with its transfer's id, once; a flood is few entries
and a number, so that a long outage costs the journal no more than its transfers do."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fakes import House, away, fly

from s3daemon.delivery.deferrals import ROUND_LIMIT, ROUND_S, Deferrals
from s3daemon.delivery.health import KNOWN_AWAY_AFTER_S
from s3daemon.errors import AttemptError
from s3daemon.model.record import Deferral, Field, MessageId, Priority
from s3daemon.model.reply import Outcome


def deferral(number: int) -> Deferral:
    return Deferral(transfer_id=f"{number:016x}", bucket="b", key="k", attempts=1, why="the endpoint is away")


def test_an_entry_each() -> None:
    """With what finds the transfer, and why."""

    async def main() -> None:
        written: list[Sequence[Field]] = []
        Deferrals(written.append).note(deferral(7))
        (entry,) = map(dict, written)
        assert entry == {
            "MESSAGE": "b/k deferred, its client was told that it is kept; the endpoint is away",
            "MESSAGE_ID": MessageId.DEFERRED,
            "PRIORITY": Priority.NOTICE,
            "S3DAEMON_TRANSFER_ID": f"{7:016x}",
            "S3DAEMON_BUCKET": "b",
            "S3DAEMON_KEY": "k",
            "S3DAEMON_ATTEMPTS": 1,
        }

    fly(main)


def test_a_flood_is_counted() -> None:
    """No more than the limit a round, and none is passed over in silence; the next round begins with none."""

    async def main() -> None:
        written: list[Sequence[Field]] = []
        deferrals = Deferrals(written.append)
        for number in range(ROUND_LIMIT + 5000):
            deferrals.note(deferral(number))
        assert len(written) == ROUND_LIMIT
        await asyncio.sleep(ROUND_S + 1)
        assert len(written) == ROUND_LIMIT + 1
        last: dict[str, Any] = dict(written[-1])
        assert last["MESSAGE"] == "5000 more transfers were deferred, their clients told, within 60 s"
        assert (last["MESSAGE_ID"], last["S3DAEMON_DEFERRED"]) == (MessageId.DEFERRED, 5000)
        deferrals.note(deferral(1))
        await asyncio.sleep(ROUND_S + 1)
        assert len(written) == ROUND_LIMIT + 2

    fly(main)


def test_who_waits_through_the_beginning_of_an_outage() -> None:
    """Each transfer's clients are told once: those there at the time, and at once those who come later."""

    async def main() -> None:
        house = House()
        house.store.answer = away
        early = [await house.intake.submit(house.request(key=f"early{n}")) for n in range(5)]
        patient = await house.intake.submit(house.request(key="patient"))
        assert house.intake.deferral(patient)  # its wait limit was shorter than the outage is known for
        replies = [await ticket.outcome for ticket in early]
        assert {reply.outcome for reply in replies} == {Outcome.DEFERRED}
        assert house.loop.time() >= 1000 + KNOWN_AWAY_AFTER_S
        late = await house.intake.submit(house.request(key="late"))
        assert (await late.outcome).outcome is Outcome.DEFERRED
        entries = house.journal.of(MessageId.DEFERRED)
        told = [entry["S3DAEMON_TRANSFER_ID"] for entry in entries]
        assert sorted(told) == sorted(ticket.id for ticket in (patient, *early, late))
        assert "the endpoint is away: ConnectionFailed, refused" in entries[-2]["MESSAGE"]
        house.store.answer = lambda _: None
        house.uploader.health.reload()
        house.uploader.pump()
        await asyncio.sleep(60)
        assert len(house.journal.records) == 7
        assert len(house.journal.of(MessageId.DEFERRED)) == 7

    fly(main)


def test_a_second_client_goes_on_waiting() -> None:
    """One of two that wait for a transfer gives up; the other has its answer when it is stored."""

    async def main() -> None:
        house = House()
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

    fly(main)
