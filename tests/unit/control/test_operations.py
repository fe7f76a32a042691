"""What operators may ask of the running daemon: to list, to retry, to drop, and how it is doing."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from fakes import House, away, flying_with, operations_of

from s3daemon import __version__
from s3daemon.control.exposures import watch_exposures
from s3daemon.control.status import LISTED, Status
from s3daemon.errors import AttemptError, RequestError, SpoolError
from s3daemon.ingress.peer import PeerLookup
from s3daemon.ingress.refusals import Refusals
from s3daemon.model.exposure import Exposures, Loss
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.exposures import KeptExposures
from s3daemon.spool.rows import Entry
from s3daemon.spool.spool import Spool


class OperatorsSpool(Spool):
    """The spool as operators' commands use it: failed transfers, and ids of pending ones."""

    fault = ""

    def __init__(self) -> None:
        self.failed: dict[str, Entry] = {}
        self.pending: set[str] = set()
        self.broken = False
        self.error: SpoolError | None = None  # of a disk that takes nothing now: changes are retained
        self.kept = KeptExposures()
        self.losses: list[Loss] = []

    def put_failed(self, number: int) -> str:
        """Add a failed transfer; return its id."""
        id_ = f"f{number:015x}"
        transfer = Transfer(id_, "/f", Destination("bucket", f"failed-{number}"), (), FileState(1000, 1, 1, 1), 10**15)
        self.failed[id_] = Entry(
            number, transfer, 0.0, 1, True, "NoSuchBucket", "none", failed=True, client_notified=True
        )
        return id_

    def failed_entries(self) -> list[Entry]:
        if self.broken:
            raise SpoolError("SpoolBroken", "unreadable")
        return list(self.failed.values())

    def count_failed(self, last: int) -> tuple[int, list[Entry]]:
        failed = self.failed_entries()
        return len(failed), failed[-last:]

    async def retry(self, ids: Iterable[str], active_now_s: float) -> tuple[set[str], SpoolError | None]:
        await asyncio.sleep(0)
        held = {id_ for id_ in ids if id_ in self.pending or id_ in self.failed}
        self.pending |= held
        for id_ in held if self.error is None else ():
            self.failed.pop(id_, None)
        return held, self.error

    async def drop(self, ids: Iterable[str], losses: Iterable[Loss] = ()) -> tuple[set[str], SpoolError | None]:
        self.losses += losses
        await asyncio.sleep(0)
        held = {id_ for id_ in ids if id_ in self.pending or id_ in self.failed}
        self.pending -= held
        for id_ in held if self.error is None else ():
            self.failed.pop(id_, None)
        return held, self.error

    def remove(self, transfer_id: str, stored: TransferRecord | None = None) -> None:
        self.pending.discard(transfer_id)

    def save_loss(self, loss: Loss) -> None:
        self.losses.append(loss)


class Desk:
    """Operations over the stand-ins, inside a running FlyingLoop."""

    def __init__(self) -> None:
        self.house = House()
        self.spool = OperatorsSpool()
        refusals = Refusals(PeerLookup(lambda socks: {}))
        exposures = watch_exposures(self.house.uploader, self.spool, refusals)
        self.operations = operations_of(self.house, self.spool, exposures)

    async def submit(self, *keys: str) -> list[str]:
        ids = []
        for key in keys:
            ticket = await self.house.intake.submit(self.house.request(key=key))
            ids.append(ticket.id)
            self.spool.pending.add(ticket.id)
        return ids

    async def rows(self, **arguments: object) -> list[Any]:
        answer: Any = await self.operations.queue(arguments)
        return list(answer["transfers"])


@flying_with(Desk)
async def test_the_queue_has_every_state(desk: Desk) -> None:
    desk.house.store.seconds = 1000.0
    await desk.submit("a", "b")
    await asyncio.sleep(1)
    desk.house.store.answer = away
    await desk.submit("a")
    failed = desk.spool.put_failed(1)
    assert [(row["destination"], row["state"]) for row in await desk.rows()] == [
        ("bucket/a", "in flight"),
        ("bucket/b", "in flight"),
        ("bucket/a", "behind"),
        ("bucket/failed-1", "failed"),
    ]
    assert [row["id"] for row in await desk.rows(failed=True)] == [failed]


@flying_with(Desk)
async def test_a_transfer_that_waits_out_a_delay_says_how_long(desk: Desk) -> None:
    desk.house.store.answer = lambda _: AttemptError("SlowDown", "busy", status=503, retry_after=30.0)
    await desk.submit("a")
    await asyncio.sleep(5)
    (row,) = await desk.rows()
    assert (row["state"], row["attempts"], row["code"]) == ("pending", 1, "SlowDown")
    assert 0 < row["next_in_s"] <= 30


@flying_with(Desk)
async def test_while_the_endpoint_is_away_no_transfer_says_that_it_is_next_before_the_next_probe(desk: Desk) -> None:
    """Most have never failed, or their delay is over: what they wait for is the endpoint."""
    desk.house.store.answer = away
    await desk.submit(*"abcdef")
    await asyncio.sleep(100)
    probe_s = desk.house.uploader.health.next_probe_s
    assert probe_s
    assert min(row["next_in_s"] for row in await desk.rows()) >= probe_s - 0.1


@flying_with(Desk)
async def test_while_the_queue_is_held_no_time_is_set(desk: Desk) -> None:
    refusal = AttemptError("InvalidAccessKeyId", "unknown key", status=403)
    desk.house.store.answer = lambda _: refusal
    desk.house.store.neutral = lambda: refusal
    await desk.submit("a")
    await asyncio.sleep(1)
    (row,) = await desk.rows()
    assert (row["state"], row["next_in_s"]) == ("held", None)
    assert not desk.operations.condition().healthy
    assert desk.operations.line().startswith("HELD, InvalidAccessKeyId: ")


@flying_with(Desk)
async def test_a_retry_ends_the_delay_of_a_pending_transfer(desk: Desk) -> None:
    desk.house.store.answer = lambda _: AttemptError("SlowDown", "busy", status=503, retry_after=60.0)
    (id_,) = await desk.submit("a")
    await asyncio.sleep(5)
    desk.house.store.answer = lambda _: None
    assert await desk.operations.retry({"ids": [id_, "unknown"]}) == {"ids": [id_]}
    await asyncio.sleep(1)
    assert desk.house.store.objects == {Destination("bucket", "a"): id_}


@pytest.mark.parametrize("everything", [True, False])
@flying_with(Desk)
async def test_a_retry_makes_a_failed_transfer_pending_again(desk: Desk, everything: bool) -> None:
    chosen, other = desk.spool.put_failed(1), desk.spool.put_failed(2)
    arguments: dict[str, object] = {"all": True} if everything else {"ids": [chosen]}
    answer = await desk.operations.retry(arguments)
    assert answer == {"ids": [chosen, other] if everything else [chosen]}
    assert set(desk.spool.failed) == (set() if everything else {other})
    pending = desk.house.uploader.schedule.transfers
    assert [queued.transfer.id for queued in pending] == answer["ids"]
    assert {queued.accepted_active_s for queued in pending} == {desk.house.uploader.active_clock.now()}


@pytest.mark.parametrize("error", [None, SpoolError("SpoolReadOnly", "read-only")])
@flying_with(Desk)
async def test_two_retries_at_once_send_an_object_once(desk: Desk, error: SpoolError | None) -> None:
    """Also while the disk fails, when its row stays failed in the file."""
    failed = desk.spool.put_failed(1)
    desk.spool.error = error
    first, second = await asyncio.gather(*(desk.operations.retry({"all": True}) for _ in range(2)))
    assert first["ids"] == second["ids"] == [failed]
    await asyncio.sleep(60)
    assert [id_ for _, id_ in desk.house.store.puts] == [failed]


@flying_with(Desk)
async def test_what_the_disk_takes_only_later_happens_at_once(desk: Desk) -> None:
    """The spool carries it out once it can, whatever the operator was answered."""
    desk.house.store.seconds = 1000.0
    (id_,) = await desk.submit("a")
    failed = desk.spool.put_failed(1)
    desk.spool.error = SpoolError("SpoolReadOnly", "read-only")
    assert await desk.operations.drop({"ids": [id_]}) == {"ids": [id_], "unsaved": "read-only"}
    assert id_ not in desk.house.uploader.schedule
    assert await desk.operations.retry({"ids": [failed]}) == {"ids": [failed], "unsaved": "read-only"}
    assert [(row["id"], row["state"]) for row in await desk.rows()] == [(failed, "in flight")]


@flying_with(Desk)
async def test_a_dropped_transfer_is_missing_in_its_exposure(desk: Desk) -> None:
    """From the very commit that removes it: a crash after that must not make the exposure whole."""
    desk.house.store.seconds = 1000.0
    (id_,) = await desk.submit("night/a")
    await asyncio.sleep(1)
    await desk.operations.drop({"ids": [id_, "f" * 16]})
    loss = desk.spool.losses[0]
    assert (loss.what, loss.missing.outcome) == ("bucket/night/a", "failed")
    assert loss.missing.reason == "Dropped: dropped by an operator"


@flying_with(Desk)
async def test_a_drop_cancels_the_attempt_in_flight(desk: Desk) -> None:
    desk.house.store.seconds = 1000.0
    (id_,) = await desk.submit("a")
    failed = desk.spool.put_failed(1)
    await asyncio.sleep(1)
    assert await desk.operations.drop({"ids": [id_, failed, "unknown"]}) == {"ids": sorted([id_, failed])}
    assert await desk.rows() == []
    assert [record.outcome for record in desk.house.journal.records] == ["failed"]


@flying_with(Desk)
async def test_a_drop_that_has_begun_is_carried_out(desk: Desk) -> None:
    """A stop ends its client's connection: else the spool would have no row, and the journal no record."""
    desk.house.store.seconds = 1000.0
    (id_,) = await desk.submit("a")
    await asyncio.sleep(1)
    dropping = asyncio.create_task(desk.operations.drop({"ids": [id_]}))
    while not desk.spool.losses:
        await asyncio.sleep(0)
    dropping.cancel()
    await desk.operations.settle()
    assert [record.outcome for record in desk.house.journal.records] == ["failed"]


@pytest.mark.parametrize("arguments", [{}, {"ids": "all"}, {"ids": [1]}, {"all": 1}])
@flying_with(Desk)
async def test_ids_must_be_a_list_of_texts(desk: Desk, arguments: dict[str, object]) -> None:
    for operation in (desk.operations.retry, desk.operations.drop):
        with pytest.raises(RequestError, match="list of transfer ids"):
            await operation(arguments)


@flying_with(Desk)
async def test_the_status_has_everything(desk: Desk) -> None:
    desk.house.store.seconds = 1000.0
    await desk.submit("a", "a")
    for number in range(LISTED + 5):
        desk.spool.put_failed(number)
    await desk.operations.count_failed()
    desk.operations.reload_fault = "bad port"
    await asyncio.sleep(10)
    status = desk.operations.snapshot()
    assert (status.state, status.version, status.endpoint) == ("ok", __version__, "http://store")
    assert (status.in_flight, status.pending, status.failed, status.clients) == (1, 1, LISTED + 5, 2)
    assert status.now_usec - status.started_usec == 10_000_000
    assert status.oldest_s == pytest.approx(10.0, abs=0.01)
    assert (status.connections.open, status.connections.opened, status.connections.limit) == (3, 7, 8)
    assert [upload.key for upload in status.uploads] == ["a"]
    assert [row.state for row in status.waiting] == ["behind"]
    assert [row.destination for row in status.failures][-1] == f"bucket/failed-{LISTED + 4}"
    assert len(status.failures) == LISTED
    assert [(one.address, one.disabled) for one in status.receivers] == [("192.0.2.1", False), ("192.0.2.2", True)]
    assert (status.receivers[1].reason, status.receivers[1].limited_s) == ("refused", 9.0)
    assert [(exposure.name, exposure.pending) for exposure in status.exposures] == [("bucket/", 2)]
    assert "reload REFUSED, bad port" in status.line
    assert Status.from_dict(dict(await desk.operations.status({}))).uploads == status.uploads


@flying_with(Desk)
async def test_the_line_says_for_how_long_the_store_is_away(desk: Desk) -> None:
    """In no time zone: whoever reads it may have another than the daemon."""
    desk.house.store.answer = away
    for key in "abc":
        await desk.submit(key)
    await asyncio.sleep(65)
    assert re.search(r"^AWAY, .*, for 1m0\ds, next attempt in ", desk.operations.line())


@flying_with(Desk)
async def test_the_status_says_that_uploads_get_no_answer(desk: Desk) -> None:
    """Long before the first one is given up; not where bytes are still on their way."""
    desk.house.store.seconds = 1000.0
    await desk.submit("a", "b", "c")
    await asyncio.sleep(31)
    assert desk.operations.condition().healthy
    for queued in desk.house.uploader.schedule.running:
        assert queued.attempt is not None
        queued.attempt.progress.add_stored(queued.transfer.file_state.size)
    assert desk.operations.line().startswith("FAILING, nothing stored for 31s, 3 uploads without an answer; ")
    assert not desk.operations.condition().healthy


@flying_with(Desk)
async def test_the_status_says_that_nothing_is_stored_though_the_endpoint_answers(desk: Desk) -> None:
    """An error that accuses each transfer alone holds nothing up; if all get one, that is not OK."""
    desk.house.store.answer = lambda _: AttemptError("TooBusyToday", "try later", status=409)
    await desk.submit("a", "b")
    await asyncio.sleep(60)
    assert desk.operations.condition().healthy, "two destinations may have a fault of their own"
    await desk.submit("c")
    await asyncio.sleep(1)
    assert desk.operations.line().startswith(
        "FAILING, nothing stored for 1m00s, the last error is TooBusyToday: try later"
    )
    assert not desk.operations.condition().healthy
    assert desk.operations.snapshot().failing.startswith("nothing stored for 1m00s")
    await desk.operations.drop({"ids": [row["id"] for row in await desk.rows()]})
    await desk.submit("a", "b", "c")
    await asyncio.sleep(29)
    assert desk.operations.condition().healthy, "what failed before is gone"
    await asyncio.sleep(9)
    assert not desk.operations.condition().healthy
    desk.house.store.answer = lambda _: None
    await desk.submit("d")
    await asyncio.sleep(1)
    assert desk.operations.condition().healthy


@flying_with(Desk)
async def test_a_wall_clock_that_steps_makes_nothing_older(desk: Desk) -> None:
    """As when a host whose clock was dead at boot gets the time: no outage of 20 000 days, no transfer of that age."""
    desk.house.store.answer = away
    await desk.submit("a", "b", "c")
    await asyncio.sleep(25)
    desk.house.wall_offset += 86400.0
    condition, status = desk.operations.condition(), desk.operations.snapshot()
    assert (condition.oldest_s, condition.outage_s) == pytest.approx((25, 25), abs=1)
    assert [row.age_s for row in status.waiting] == [25] * 3
    assert status.since_usec == pytest.approx(status.now_usec - 25e6, abs=1e6)
    assert desk.operations.late_line() == ""


@flying_with(Desk)
async def test_every_pending_transfer_that_is_late_is_counted(desk: Desk) -> None:
    """The one with a failed attempt is the oldest; the others wait for a first attempt, or have one in flight."""
    desk.house.store.answer = lambda _: AttemptError("SlowDown", "busy", status=503, retry_after=100.0)
    await desk.house.intake.submit(desk.house.request(key="night/a", tag="e1"))
    await asyncio.sleep(8)
    desk.house.store.answer, desk.house.store.seconds = (lambda _: None), 1000.0
    await desk.submit("b", "b")
    await asyncio.sleep(21.9)
    assert desk.operations.late_line() == ""
    await asyncio.sleep(2)
    oldest = "31s: bucket/night/a (e1), pending, last error SlowDown: busy; see s3daemon queue"
    assert desk.operations.late_line() == f"1 transfer not stored after 30 s, the oldest after {oldest}"
    await asyncio.sleep(8)
    assert desk.operations.late_line().startswith("3 transfers not stored after 30 s, the oldest after 39s: ")


@pytest.mark.parametrize(("ago_s", "line"), [
    (29.0, ""),
    (31.0, "1 transfer not stored after 30 s, the oldest after 31s: bucket/a, in flight; see s3daemon queue"),
    (7200.0, "1 transfer not stored after 30 s, the oldest after 2h00m: bucket/a, in flight; see s3daemon queue"),
])  # fmt: skip
@flying_with(Desk)
async def test_a_transfer_is_late_since_its_acceptance_by_an_earlier_process(
    desk: Desk, ago_s: float, line: str
) -> None:
    desk.house.store.seconds = 1000.0
    accepted_usec = round((desk.house.wall() - ago_s) * 1e6)
    transfer = Transfer("a" * 16, "/f", Destination("bucket", "a"), (), FileState(1000, 1, 1, 1), accepted_usec)
    desk.house.uploader.recover([Entry(1, transfer, 0.0)])
    await asyncio.sleep(0.1)
    assert desk.operations.late_line() == line


@flying_with(Desk)
async def test_a_disk_that_cannot_be_read_keeps_the_last_count(desk: Desk) -> None:
    desk.spool.put_failed(1)
    await desk.operations.count_failed()
    desk.spool.broken = True
    await desk.operations.count_failed()
    assert desk.operations.condition().failed == 1


@flying_with(Desk)
async def test_health_ends_with_a_spool_that_refuses_and_with_the_stop(desk: Desk) -> None:
    assert desk.operations.condition().healthy
    desk.spool.fault = "disk full"
    assert not desk.operations.condition().healthy
    desk.spool.fault = ""
    desk.operations.draining = "draining for up to 30 s"
    assert not desk.operations.condition().healthy
    assert desk.operations.line().startswith("draining for up to 30 s; ")


@flying_with(House)
async def test_exposures_follow_every_transfer(house: House) -> None:
    """Accepted, stored, failed, refused by a full disk: at each moment they say what is true."""
    spool = OperatorsSpool()
    refusals = Refusals(PeerLookup(lambda socks: {}))
    exposures = watch_exposures(house.uploader, spool, refusals)
    house.store.answer = away
    tickets = [await house.intake.submit(house.request(key=f"k{n}", tag="e1")) for n in range(3)]
    (one,) = exposures
    assert (one.name, one.pending) == ("e1", {ticket.id for ticket in tickets})
    await asyncio.sleep(20)
    assert (one.stored, len(one.pending)) == (0, 3)
    failing = AttemptError("NoSuchBucket", "no", status=404)
    house.store.answer = lambda transfer: failing if transfer.destination.key == "k2" else None
    await asyncio.sleep(120)
    assert (one.stored, len(one.pending), one.failed) == (2, 0, 1)
    last = max(record.start_usec + record.total_usec for record in house.journal.records if record.stored)
    assert one.last_usec == last

    house.spool.full = True
    ticket = await house.intake.submit(house.request(key="k9", tag="e2"))
    assert [exposure.name for exposure in exposures] == ["e1", "e2"]
    with pytest.raises(SpoolError):
        await ticket.durable
    assert [exposure.name for exposure in exposures] == ["e1"]


@flying_with(House)
async def test_exposures_begin_with_what_failed_before_and_follow_refusals(house: House) -> None:
    spool, refusals = OperatorsSpool(), Refusals(PeerLookup(lambda socks: {}))
    spool.put_failed(1)
    (one,) = exposures = watch_exposures(house.uploader, spool, refusals)
    assert (one.name, one.failed, one.reason) == ("bucket/", 1, "NoSuchBucket: none")
    here, there = socket.socketpair()
    with here, there:
        await refusals.add(Refusal(code="NoSuchFile", text="gone", destination="bucket/k", tag="e1"), here)
    assert [(exposure.name, exposure.refused) for exposure in exposures] == [("bucket/", 0), ("e1", 1)]


class OrderDesk:
    """Operations over a house's own spool, with a failed transfer to `bucket/k`."""

    def __init__(self) -> None:
        self.house = House()
        self.operations = operations_of(self.house, self.house.spool, Exposures())

    async def fail_one(self) -> str:
        self.house.store.answer = lambda _: AttemptError("NoSuchBucket", "none", status=404)
        ticket = await self.house.intake.submit(self.house.request(file="/old"))
        await ticket.outcome
        self.house.store.answer = lambda _: None
        return ticket.id

    def puts(self) -> list[str]:
        return [id_ for _, id_ in self.house.store.puts]


@flying_with(OrderDesk)
async def test_what_is_retried_is_sent_before_a_newer_pending_transfer(desk: OrderDesk) -> None:
    """The newer content wins, as if the older one had not failed."""
    old = await desk.fail_one()
    desk.house.store.answer = lambda _: AttemptError("SlowDown", "busy", status=503)
    new = await desk.house.intake.submit(desk.house.request(file="/new"))
    await asyncio.sleep(2)
    desk.house.store.answer = lambda _: None
    sent = len(desk.puts())
    assert await desk.operations.retry({"all": True}) == {"ids": sorted([old, new.id])}
    assert (await new.outcome).id == new.id
    assert desk.puts()[sent:] == [old, new.id]


@flying_with(OrderDesk)
async def test_what_is_retried_is_not_sent_over_a_newer_one_in_flight(desk: OrderDesk) -> None:
    """How it ended is recorded, and not listed."""
    old = await desk.fail_one()
    new = await desk.house.intake.submit(desk.house.request(file="/new"))
    await desk.operations.retry({"all": True})
    await asyncio.sleep(60)
    assert desk.puts() == [old, new.id]
    text = f"Overtaken: a newer one, {new.id}, was stored there"
    ends = [(record.transfer_id, record.error) for record in desk.house.journal.records]
    assert ends[1:] == [(old, text), (new.id, "")]
    assert not desk.house.spool.rows
    assert not desk.house.spool.failed
    assert not len(desk.house.uploader.schedule)


@flying_with(OrderDesk)
async def test_what_is_retried_is_not_sent_over_a_newer_one_that_is_stored_meanwhile(
    desk: OrderDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spool takes its time to make it pending."""
    old = await desk.fail_one()
    retry = desk.house.spool.retry

    async def slow_retry(ids: Any, now: float) -> Any:
        done = await retry(ids, now)
        await asyncio.sleep(1)
        return done

    monkeypatch.setattr(desk.house.spool, "retry", slow_retry)
    new = await desk.house.intake.submit(desk.house.request(file="/new"))
    assert await desk.operations.retry({"all": True}) == {"ids": [new.id]}
    await asyncio.sleep(60)
    assert desk.puts() == [old, new.id]
    assert not desk.house.spool.rows
