"""What becomes of a transfer, and when: the uploader and the intake with fake collaborators, in a FlyingLoop."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_transfer import transfer
from fakes import FakeSpool, FakeStore, House, away, flying, flying_with

from s3daemon.delivery.health.endpoint import ASK_EVERY_S, HELD_PROBE_S
from s3daemon.errors import AttemptError, SpoolError
from s3daemon.model.record import MessageId, TransferRecord
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Destination, Request, Transfer
from s3daemon.s3.store import Stored
from s3daemon.spool.rows import Entry

HOUR = 3600.0
BAD_KEY = AttemptError("InvalidAccessKeyId", "no such key", status=403)
DENIED = AttemptError("AccessDenied", "denied", status=403)


@flying_with(House)
async def test_a_stored_transfer_leaves_one_record_and_nothing_else(house: House) -> None:
    ticket = await house.intake.submit(house.request(tag="night"))
    reply = await ticket.outcome
    assert (reply.outcome, reply.id) == (Outcome.STORED, ticket.id)
    (record,) = house.journal.records
    assert (record.outcome, record.attempts, record.tags, record.total_usec) == ("stored", 1, ("night",), 100_000)
    assert len(house.uploader.schedule) == 0
    await asyncio.sleep(0)
    assert not house.spool.rows


@pytest.mark.parametrize(
    ("code", "status", "outcome", "attempts"),
    [
        ("SlowDown", 503, Outcome.STORED, 3),
        ("Stalled", 0, Outcome.STORED, 3),
        ("SomethingNew", 418, Outcome.STORED, 3),
        ("NoSuchBucket", 404, Outcome.FAILED, 1),
        ("XMinioInvalidObjectName", 400, Outcome.FAILED, 1),
    ],
)
@flying_with(House)
async def test_an_error_is_permanent_or_tried_again(
    house: House, code: str, status: int, outcome: Outcome, attempts: int
) -> None:
    """A permanent error ends the transfer, notified and listed, at once; an unknown one is transient."""
    left = [AttemptError(code, "no", status=status)] * 2
    house.store.answer = lambda _: left.pop() if left else None
    ticket = await house.intake.submit(house.request())
    reply = await ticket.outcome
    assert reply.outcome is outcome
    assert house.journal.records[-1].attempts == attempts
    assert house.spool.failed == ({ticket.id: (code, "no")} if outcome is Outcome.FAILED else {})
    assert len(house.journal.of(MessageId.ATTEMPT_FAILED)) == attempts - 1


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="1")
async def test_bad_keys_hold_the_queue_until_a_reload(house: House) -> None:
    """One attempt and a neutral request are enough; the others wait, and their clients are deferred."""
    house.store.answer = lambda _: BAD_KEY
    house.store.neutral = lambda: BAD_KEY
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(50)]
    replies = [await ticket.outcome for ticket in tickets]
    assert {reply.outcome for reply in replies} == {Outcome.DEFERRED}
    assert all("InvalidAccessKeyId" in reply.text for reply in replies)
    assert len(house.store.puts) == 1
    held_at = house.uploader.active_clock.now()
    await asyncio.sleep(10 * HOUR)
    assert house.uploader.active_clock.now() == held_at, "time on hold does not count for the retry limit"
    assert 10 * 12 - 5 <= len(house.store.puts) <= 10 * 12 + 5, "one probe every five minutes"
    house.store.answer = lambda _: None
    house.uploader.reload()
    await asyncio.sleep(60)
    assert len(house.store.objects) == 50


@flying_with(House)
async def test_keys_that_one_destination_refuses_stop_that_destination_alone(house: House) -> None:
    """A proxy that normalizes paths refuses `x//y` for ever; the neutral request and the others pass."""
    house.store.answer = lambda transfer: BAD_KEY if "//" in transfer.destination.key else None
    house.store.neutral = lambda: None
    for key in ("x//y", "x//z"):
        await house.intake.submit(house.request(key=key, wait=False))
    await asyncio.sleep(600)
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(20)]
    assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.STORED}
    assert max(record.total_usec for record in house.journal.records) == 100_000
    assert not house.uploader.health.held
    assert len(house.uploader.schedule) == 2


#: An attempt that gets no answer until it is given up.
SILENCE = (60.0, AttemptError("NoAnswer", "nothing came", silent_s=60.0))


def slowed(house: House, of: Callable[[Transfer], tuple[float, AttemptError | None]]) -> None:
    """Have each upload take so many seconds first, as `of` says at its start; then it fails, or the store answers."""
    put = house.store.put

    async def slow(transfer: Transfer, *args: Any, **kwargs: Any) -> Any:
        seconds, error = of(transfer)
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        return await put(transfer, *args, **kwargs)

    house.store.put = slow  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (AttemptError("503", "a page", status=503), 0.1),
        (AttemptError("BadAnswer", "a page", status=200), 0.1),
        (AttemptError("409", "a proxy", status=409), 0.1),
        (AttemptError("NoAnswer", "nothing came"), 20.0),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
@flying_with(House)
async def test_destinations_that_fail_for_ever_cost_the_others_nothing(
    house: House, error: AttemptError, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    """However many they are, and though the endpoint counts as away while nothing else is sent."""
    caplog.set_level(logging.INFO)
    house.store.answer = lambda transfer: error if "bad" in transfer.destination.key else None
    house.store.neutral = lambda: None
    slowed(house, lambda transfer: (seconds if "bad" in transfer.destination.key else 0.0, None))
    for n in range(6):
        await house.intake.submit(house.request(key=f"bad{n}", wait=False))
    await asyncio.sleep(120)
    assert house.uploader.health.away
    for n in range(30):
        ticket = await house.intake.submit(house.request(key=f"good{n}"))
        assert (await asyncio.wait_for(ticket.outcome, 1.0)).outcome is Outcome.STORED
        await asyncio.sleep(20)
    assert (house.uploader.health.away, len(house.uploader.schedule)) == (False, 6)
    assert sum("the endpoint is away" in record.message for record in caplog.records) == 1


@flying_with(House)
async def test_a_bucket_that_does_not_answer_leaves_slots_to_the_others(house: House) -> None:
    """As while its index is stuck. Each of its attempts holds a slot for a minute; new requests come all the time."""
    house.store.neutral = lambda: None
    silent = {"stuck"}
    slowed(house, lambda transfer: SILENCE if transfer.destination.bucket in silent else (0.0, None))
    for n in range(300):
        await house.intake.submit(Request("/f", Destination("stuck", f"k{n}"), wait=False))
        ticket = await house.intake.submit(house.request(key=f"good{n}"))
        assert (await asyncio.wait_for(ticket.outcome, 1.0)).outcome is Outcome.STORED
        await asyncio.sleep(3.0)
    assert house.uploader.silent_buckets == ["stuck"]
    silent.clear()
    await asyncio.sleep(130.0)
    assert len(house.uploader.schedule) == 0
    ticket = await house.intake.submit(Request("/f", Destination("stuck", "k")))
    assert (await asyncio.wait_for(ticket.outcome, 1.0)).outcome is Outcome.STORED


@flying_with(House)
async def test_after_a_silent_outage_all_that_waits_goes_at_once(house: House) -> None:
    """Attempts from before it still wait for their answers, and time out one after the other; it is not away again."""
    house.store.neutral = lambda: None
    is_silent = True
    slowed(house, lambda _: SILENCE if is_silent else (0.0, None))
    for n in range(70):
        await house.intake.submit(house.request(key=f"k{n}", wait=False))
        await asyncio.sleep(2.0)
    assert house.uploader.health.away
    is_silent = False
    await asyncio.sleep(15.0)
    waiting = [queued for queued in house.uploader.schedule.transfers if queued.attempt is None]
    assert len(waiting) <= 1, "one that has just timed out"
    for _ in range(60):
        await asyncio.sleep(1.0)
        assert not house.uploader.health.away
    assert len(house.uploader.schedule) == 0


@flying_with(House)
async def test_a_store_that_refuses_everything_gets_each_file_once_and_its_clients_hear_at_once(house: House) -> None:
    """Its small requests may be answered all the while."""
    house.store.answer = lambda _: AttemptError("503", "a page", status=503)
    house.store.neutral = lambda: None
    for n in range(3):
        await house.intake.submit(house.request(key=f"first{n}", wait=False))
    await asyncio.sleep(20)
    assert house.uploader.health.away
    ticket = await house.intake.submit(house.request(key="k"))
    reply = await asyncio.wait_for(ticket.outcome, 1.0)
    assert (reply.outcome, "the endpoint is away: 503, a page" in reply.text) == (Outcome.DEFERRED, True)
    assert house.queued(ticket).attempts == 1
    assert house.uploader.health.away


@flying_with(House)
async def test_without_a_neutral_answer_a_second_destination_tells_that_the_keys_are_bad(house: House) -> None:
    house.store.answer = lambda _: BAD_KEY
    await house.intake.submit(house.request(key="a", wait=False))
    await asyncio.sleep(60)
    held = [house.uploader.health.held]
    await house.intake.submit(house.request(key="b", wait=False))
    await asyncio.sleep(1)
    held.append(house.uploader.health.held)
    assert held == ["", "InvalidAccessKeyId: no such key; fix it and reload"]


@flying_with(House)
async def test_a_denial_of_the_first_destination_costs_the_others_nothing(house: House) -> None:
    """Keys that may write need not be allowed the neutral request; so any user could hold the queue after a restart."""
    house.store.answer = lambda transfer: DENIED if "denied" in transfer.destination.key else None
    house.store.neutral = lambda: DENIED
    for n in range(3):
        await house.intake.submit(house.request(key=f"denied{n}", wait=False))
    await asyncio.sleep(60)
    assert house.uploader.health.held
    ticket = await house.intake.submit(house.request(key="k"))
    assert (await asyncio.wait_for(ticket.outcome, 1.0)).outcome is Outcome.STORED
    assert not house.uploader.health.held


@pytest.mark.parametrize("others", [0, 3])
@flying_with(House)
async def test_wrong_keys_that_look_like_a_denial_fail_nothing(house: House, others: int) -> None:
    """Ceph RGW with rgw_s3_auth_use_sts answers so; the queue is held, and after a reload all is stored."""
    house.store.answer = lambda _: DENIED
    house.store.neutral = lambda: DENIED
    for n in range(1 + others):
        await house.intake.submit(house.request(key=f"k{n}", wait=False))
    await asyncio.sleep(HOUR)
    assert house.uploader.health.held == "AccessDenied: denied; fix it and reload"
    house.store.answer = lambda _: None
    assert house.uploader.reload() == set()
    await asyncio.sleep(60)
    assert len(house.store.objects) == 1 + others
    assert not house.spool.failed


@flying_with(House)
async def test_a_denial_is_final_where_the_keys_are_good(house: House) -> None:
    house.store.answer = lambda _: DENIED
    house.store.neutral = lambda: None
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).code == "AccessDenied"
    assert len(house.store.puts) == 1
    assert house.uploader.reload() == set()


@flying_with(House)
async def test_a_store_that_denies_everything_for_some_seconds_fails_nothing(house: House) -> None:
    """Whether these keys are allowed the neutral request is not known by then."""
    house.store.neutral = lambda: DENIED
    await (await house.intake.submit(house.request(key="good"))).outcome
    house.store.answer = lambda _: DENIED
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(3)]
    await asyncio.sleep(4)
    house.store.answer = lambda _: None
    assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.STORED}
    assert not house.spool.failed


@flying_with(House)
async def test_a_bucket_that_denies_keys_without_a_neutral_request_fails_soon(house: House) -> None:
    """And holds nothing meanwhile."""
    house.store.neutral = lambda: DENIED
    house.store.answer = lambda transfer: DENIED if "denied" in transfer.destination.key else None
    await (await house.intake.submit(house.request(key="good"))).outcome
    tickets = [await house.intake.submit(house.request(key=f"denied{n}")) for n in range(3)]
    await asyncio.sleep(2)
    assert not house.uploader.health.held
    outcomes = [await asyncio.wait_for(ticket.outcome, 10) for ticket in tickets]
    assert {reply.code for reply in outcomes} == {"AccessDenied"}
    assert house.spool.failed.keys() == {ticket.id for ticket in tickets}


@flying_with(House)
async def test_denials_with_another_error_between_are_counted_anew(house: House) -> None:
    """A store that starts may be away once more, and deny everything again."""
    busy = AttemptError("SlowDown", "busy", status=503)
    errors = [DENIED, busy, busy, busy, busy, DENIED]
    house.store.neutral = lambda: DENIED
    await (await house.intake.submit(house.request(key="good"))).outcome
    house.store.answer = lambda _: errors.pop(0) if errors else None
    ticket = await house.intake.submit(house.request(key="k"))
    assert (await asyncio.wait_for(ticket.outcome, 600)).outcome is Outcome.STORED
    assert not errors


@flying_with(House)
async def test_what_was_denied_after_the_keys_have_worked_is_named_by_a_reload(house: House) -> None:
    """The neutral request told nothing, so the keys may have been changed at the store."""
    await (await house.intake.submit(house.request(key="good"))).outcome
    await asyncio.sleep(1)
    house.store.answer = lambda _: DENIED
    ticket = await house.intake.submit(house.request(key="denied"))
    assert (await ticket.outcome).code == "AccessDenied"
    assert house.uploader.reload() == {ticket.id}


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="3")
async def test_a_full_bucket_stops_its_own_transfers_alone(house: House) -> None:
    """One of them is tried at a time, ever less often; all are stored soon after it has room again."""
    full = AttemptError("QuotaExceeded", "no room", status=403)
    house.store.answer = lambda transfer: full if transfer.destination.bucket == "full" else None
    for n in range(100):
        destination = Destination("full", f"k{n}")
        await house.intake.submit(Request("/f", destination, wait=False))
    await asyncio.sleep(HOUR)
    assert not house.uploader.health.held
    assert not house.uploader.health.away
    assert len(house.store.puts) < 3 + 6 + 12 + 1
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.STORED
    assert house.uploader.full_buckets == ["full"]
    house.store.answer = lambda _: None
    await asyncio.sleep(300 + 100)
    assert len(house.store.objects) == 101
    assert house.uploader.full_buckets == []


@flying_with(House)
async def test_a_bucket_without_transfers_is_not_named(house: House) -> None:
    house.store.answer = lambda _: AttemptError("QuotaExceeded", "no room", status=403)
    ticket = await house.intake.submit(house.request())
    await asyncio.sleep(1)
    assert house.uploader.full_buckets == ["bucket"]
    queued = house.uploader.schedule.get(ticket.id)
    assert queued is not None
    await house.uploader.drop(queued)
    assert house.uploader.full_buckets == []


@flying_with(House)
async def test_an_object_that_comes_back_wrong_defers_no_other(house: House) -> None:
    """Another ETag, an overwritten object, a bug: none of them makes the endpoint away."""
    codes = itertools.cycle(["ETagMismatch", "Overwritten", "Internal"])
    house.store.answer = lambda it: AttemptError(next(codes), "x") if it.destination.key == "bad" else None
    await house.intake.submit(house.request(key="bad", wait=False))
    await asyncio.sleep(600)
    assert not house.uploader.health.away
    ticket = await house.intake.submit(house.request(key="good"))
    assert (await ticket.outcome).outcome is Outcome.STORED


@pytest.mark.parametrize("error", [AttemptError("SlowDown", "x", address="a", other_address=True), None])
@flying_with(House)
async def test_no_transfer_makes_more_than_12_attempts_in_a_minute(house: House, error: AttemptError | None) -> None:
    """Whatever the reason, even if the store and every client ask for the next one at once."""
    failures = (AttemptError("SlowDown", "x", address=f"{n}", other_address=True) for n in itertools.count())
    house.store.answer = lambda _: error or next(failures)
    for _ in range(300):
        await house.intake.submit(house.request(wait=False))
        await asyncio.sleep(1)
    starts = [at for at, _ in house.store.puts]
    assert len(starts) >= 15
    assert min(later - earlier for earlier, later in zip(starts, starts[12:], strict=False)) > 59.9


@flying
async def test_a_bug_after_an_attempt_ends_the_service() -> None:
    """Its task is one that the supervisor watches; the spool has the transfer for the next process."""
    names: list[str] = []

    def start(name: str, work: Any) -> asyncio.Task[None]:
        names.append(name)
        return asyncio.get_running_loop().create_task(work)

    def fail(_: TransferRecord) -> None:
        raise ZeroDivisionError

    house = House(start=start)
    house.uploader.records.observers.append(fail)
    ticket = await house.intake.submit(house.request())
    (task,) = house.uploader.tasks
    await asyncio.wait({task})
    assert isinstance(task.exception(), ZeroDivisionError)
    assert names == [f"the attempt of {ticket.id}"]
    assert ticket.id in house.spool.rows


@flying_with(House)
async def test_an_outage_has_its_next_attempt_when_the_status_says(house: House) -> None:
    """Not only when the next delay ends: some transfers have none, and wait for their turn."""
    house.store.answer = away
    for n in range(46):
        await house.intake.submit(house.request(key=str(n), wait=False))
    said: list[float] = []
    for _ in range(1200):
        await asyncio.sleep(1)
        said.append(house.loop.time() + (house.uploader.next_probe_s or 0.0))
    starts = [started for started, _ in house.store.puts]
    late = [at for at in said if at <= starts[-1] and min(abs(at - start) for start in starts) > 1]
    assert not late


@flying_with(House)
async def test_an_endpoint_that_is_away_gets_a_few_probes_until_it_serves_again(house: House) -> None:
    """Clients are deferred at once when that is known, and everything is sent in the end."""
    house.store.answer = away
    first = await house.intake.submit(house.request(key="first"))
    assert (await first.outcome).outcome is Outcome.DEFERRED
    for n in range(500):
        ticket = await house.intake.submit(house.request(key=f"k{n}"))
        assert ticket.outcome.done(), "known to be away: deferred at once"
    await asyncio.sleep(HOUR)
    assert len(house.store.puts) < 3600 / 20 * 2, "a few probes"
    house.store.answer = lambda _: None
    await asyncio.sleep(90)
    assert len(house.store.objects) == 501


@flying_with(House)
async def test_a_store_that_can_be_connected_to_again_gets_its_transfers_within_five_seconds(house: House) -> None:
    """However long the outage was: a small request tells it, not the next probe."""
    house.store.answer = away
    await house.intake.submit(house.request(wait=False))
    await asyncio.sleep(HOUR)
    assert len(house.store.puts) < HOUR / 20, "no file is sent to find that out"
    house.store.answer, house.store.neutral = lambda _: None, lambda: None
    await asyncio.sleep(5)
    assert len(house.store.objects) == 1


@pytest.mark.parametrize("is_answered", [False, True])
@flying_with(House)
async def test_one_transfer_that_is_never_answered_is_an_outage_if_nothing_else_is_answered(
    house: House, is_answered: bool
) -> None:
    """A balancer without a store behind it takes connections, and resets them: one sidecar must find that out."""
    house.store.answer = lambda _: AttemptError("ConnectionClosed", "reset", ambiguous=True)
    house.store.neutral = lambda: None if is_answered else AttemptError("ConnectionClosed", "reset")
    await house.intake.submit(house.request(wait=False))
    await asyncio.sleep(20)
    assert house.uploader.health.away is not is_answered
    house.store.answer = lambda _: None
    house.store.neutral = lambda: None
    await asyncio.sleep(5 if not is_answered else 60)
    assert not house.uploader.health.away
    assert len(house.store.objects) == 1


@flying_with(House)
async def test_48_hours_of_outage_lose_nothing(house: House) -> None:
    """Steps of the wall clock expire nothing, and there are at most two probes in each 22 to 30 s, spread over the
    transfers."""
    house.store.answer = lambda _: AttemptError("SlowDown", "not now", status=503)
    for n in range(54_000 // 60):
        await house.intake.submit(house.request(key=f"k{n}", wait=False))
        await asyncio.sleep(48 * HOUR / 900)
        house.wall_offset += {300: 86_400.0, 600: -2 * 86_400.0}.get(n, 0.0)
    assert not house.spool.failed
    assert len(house.uploader.schedule) == 900
    total = len(house.store.puts)
    assert 48 * HOUR / 30 * 0.9 <= total <= 48 * HOUR / 22 * 2
    attempts = [job.attempts for job in house.uploader.schedule.transfers]
    assert max(attempts) <= 48 * HOUR / 45, "no transfer is tried more often than its own back-off allows"
    house.store.answer = lambda _: None
    await asyncio.sleep(300)
    assert len(house.store.objects) == 900


@flying_with(House, S3DAEMON_RETRY_FOR="6h")
async def test_past_the_retry_limit_a_transfer_has_failed_with_its_last_error(house: House) -> None:
    house.store.answer = lambda _: AttemptError("InternalError", "oops", status=500)
    ticket = await house.intake.submit(house.request())
    await asyncio.sleep(6 * HOUR - 60)
    assert not house.spool.failed
    await asyncio.sleep(180)
    ((code, text),) = house.spool.failed.values()
    assert code == "InternalError"
    assert "given up after" in text
    assert ticket.id in house.spool.failed


@flying_with(House)
async def test_transfers_to_one_destination_keep_their_order(house: House) -> None:
    """There are never two at once, with or without errors, so that the newest content wins."""
    flaky = iter([AttemptError("InternalError", "x", status=500), None] * 10)
    house.store.answer = lambda _: next(flaky)
    tickets = [await house.intake.submit(house.request(file=f"/f{n}")) for n in range(10)]
    for ticket in tickets:
        await ticket.outcome
    assert list(dict.fromkeys(id_ for _, id_ in house.store.puts)) == [ticket.id for ticket in tickets]
    assert house.store.most == 1
    assert set(house.store.objects.values()) == {tickets[-1].id}


@pytest.mark.parametrize("is_answered", [True, False])
@flying
async def test_an_object_that_cannot_be_looked_up_is_sent_in_the_end(is_answered: bool) -> None:
    """If the store answers others, its silence is about this object. In an outage the look-ups go on."""
    silence = AttemptError("ConnectionClosed", "reset")

    class SilentStore(FakeStore):
        async def find(self, *_: object, **__: object) -> Stored:
            raise silence

    house = House(store=SilentStore())
    lost = AttemptError("NoAnswer", "none", ambiguous=True)
    house.store.answer = lambda _: None if len(house.store.puts) > 1 else lost
    house.store.neutral = lambda: None if is_answered else silence
    await house.intake.submit(house.request())
    await asyncio.sleep(120)
    assert len(house.store.puts) == 1 + is_answered


@flying_with(House)
async def test_a_late_arrival_is_replaced_again(house: House) -> None:
    """After an attempt of unknown outcome, the next transfer for that destination checks that its object stays."""
    left = [AttemptError("NoAnswer", "none", ambiguous=True)]
    house.store.answer = lambda _: left.pop() if left else None
    first = await house.intake.submit(house.request(file="/old"))
    await first.outcome
    second = await house.intake.submit(house.request(file="/new"))
    while second.id not in house.store.objects.values():
        await asyncio.sleep(0.01)
    house.store.objects[house.request().destination] = first.id  # the old body arrives at last
    assert (await second.outcome).outcome is Outcome.STORED
    assert set(house.store.objects.values()) == {second.id}
    assert [id_ for _, id_ in house.store.puts].count(second.id) == 2


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="1")
async def test_a_file_that_is_missing_after_acceptance_has_an_hour_from_the_start(house: House) -> None:
    """It may be on a file system that is mounted late."""
    house.store.answer = away
    ticket = await house.intake.submit(house.request(file="/f"))
    await ticket.outcome
    house.files.missing.add("/f")
    await asyncio.sleep(60.0)  # an attempt that had opened it is over
    house.store.answer = lambda _: None
    await asyncio.sleep(HOUR / 2)
    assert not house.spool.failed
    await asyncio.sleep(HOUR)
    assert list(house.spool.failed.values()) == [("NoSuchFile", "/f: no such file")]


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="2")
async def test_a_drain_finishes_what_is_in_flight(house: House) -> None:
    """Whatever has not ended within the limit, started or not, stays for the next process."""
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(5)]
    await asyncio.sleep(0)
    await house.uploader.drain(20.0)
    assert [ticket.outcome.done() for ticket in tickets].count(True) == 2
    assert len(house.uploader.schedule) == 3

    slow = House()
    slow.store.seconds = 1000.0
    ticket = await slow.intake.submit(slow.request())
    await asyncio.sleep(0)
    began = slow.loop.time()
    await slow.uploader.drain(20.0)
    assert slow.loop.time() - began == pytest.approx(20.0)
    assert not ticket.outcome.done()
    assert not slow.store.in_flight


@pytest.mark.parametrize("error", [AttemptError("NoAnswer", "no"), None], ids=["after a failure", "after a success"])
@pytest.mark.parametrize("upload_s", [0.1, 10.0], ids=["before", "meanwhile"])
@flying_with(House)
async def test_a_drain_ends_neutral_requests(
    house: House, error: AttemptError | None, upload_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that began before it, and those of attempts that end meanwhile. The connections are closed after it."""
    ended = []

    async def ask() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(True)

    house.store.seconds, house.store.answer = upload_s, lambda _: error
    monkeypatch.setattr(house.store, "ask_neutrally", ask)
    await house.intake.submit(house.request())
    await asyncio.sleep(2)
    assert house.uploader.tasks
    began = house.loop.time()
    await house.uploader.drain(20.0)
    assert house.loop.time() - began < 20.1
    assert ended


@flying_with(House)
async def test_a_renewed_certificate_ends_the_hold_within_seconds(house: House) -> None:
    """Small requests find out that a connection can be had; nobody has to reload for what others corrected."""
    refused = AttemptError("TLSRefused", "the certificate has expired")
    house.store.answer, house.store.neutral = lambda _: refused, lambda: refused
    await house.intake.submit(house.request())
    await asyncio.sleep(2 * HELD_PROBE_S - 10)
    assert house.uploader.health.held
    assert len(house.store.puts) == 2, "one probe every five minutes"
    house.store.answer, house.store.neutral = lambda _: None, lambda: None
    await asyncio.sleep(2 * ASK_EVERY_S)
    assert not house.uploader.health.held
    assert len(house.store.objects) == 1


@flying_with(House)
async def test_a_drop_cancels_the_attempt_and_is_recorded(house: House) -> None:
    house.store.seconds = 1000.0
    ticket = await house.intake.submit(house.request())
    await asyncio.sleep(1)
    assert await house.uploader.drop(house.queued(ticket))
    assert (await ticket.outcome).code == "Dropped"
    assert not house.store.in_flight
    assert not house.store.objects
    assert house.journal.records[-1].outcome == "failed"


@flying_with(House)
async def test_a_bug_loses_no_transfer(house: House) -> None:
    """An unexpected exception counts as a transient failure with an unknown outcome."""
    calls = iter([1])

    def answer(_: object) -> None:
        if next(calls, None):
            raise RuntimeError("a bug")

    house.store.answer = answer
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.STORED
    assert house.store.finds


def blaming(address: str) -> AttemptError:
    """Return an error for which an address is to blame while another one serves."""
    return AttemptError("SlowDown", "no", status=503, address=address, other_address=True)


@flying_with(House)
async def test_a_broken_address_costs_each_transfer_one_attempt(house: House) -> None:
    """The next one goes to another address at once; the endpoint is not away, however many transfers fail there."""
    failed: set[str] = set()

    def once(transfer: Transfer) -> AttemptError | None:
        if transfer.id in failed:
            return None
        failed.add(transfer.id)
        return blaming("broken")

    house.store.answer = once
    tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(20)]
    assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.STORED}
    assert all(record.attempts == 2 for record in house.journal.records)
    assert max(record.total_usec for record in house.journal.records) < 250_000, "no delay between the two"
    assert not house.uploader.health.away


@flying_with(House)
async def test_each_address_is_tried_once_before_the_back_off(house: House) -> None:
    """The next attempt avoids addresses where one failed; after the last one the transfer waits, and avoids none."""
    left = [blaming("a"), blaming("b"), AttemptError("SlowDown", "no", status=503)]
    house.store.answer = lambda _: left.pop(0) if left else None
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.STORED
    assert house.store.avoided == [set(), {"a"}, {"a", "b"}, set()]
    started = [started for started, _ in house.store.puts]
    assert started[2] - started[0] == pytest.approx(0.2)
    assert started[3] - started[2] > 0.8
    warnings = house.journal.of(MessageId.ATTEMPT_FAILED)
    assert [entry.get("S3DAEMON_RECEIVER") for entry in warnings] == ["a", "b", None]
    assert house.journal.records[0].receiver == "of the store", "not where an earlier attempt failed"


@flying_with(House)
async def test_what_an_earlier_process_tried_was_queued_until_it_is_dropped(house: House) -> None:
    """When its attempts started, and where, that process knew."""
    accepted_usec = round((house.wall() - 100) * 1e6)
    house.uploader.health.refused(AttemptError("UserSuspended", "no", status=403), house.loop.time())
    house.uploader.recover([Entry(1, replace(transfer(1), accepted_usec=accepted_usec), 0.0, attempts=3)])
    (queued,) = house.uploader.schedule.transfers
    assert await house.uploader.drop(queued)
    record = house.journal.records[0]
    assert (record.attempts, record.queue_usec, record.total_usec, record.endpoint) == (3, 10**8, 10**8, "")


@flying_with(House)
async def test_after_two_closed_connections_in_a_row_there_is_a_back_off(house: House) -> None:
    """One that was closed is replaced at once; when it happens again, something is closing them."""
    left = [AttemptError("StaleConnection", "closed") for _ in range(3)]
    house.store.answer = lambda _: left.pop() if left else None
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).outcome is Outcome.STORED
    first, second, third, fourth = (at for at, _ in house.store.puts)
    assert second - first == pytest.approx(0.1)
    assert third - second > 0.8
    assert fourth - third > 0.8
    assert not house.uploader.health.away


@pytest.mark.parametrize(
    ("said", "cure"), [("no more", "; fix it and reload"), ("fix the access key and reload", "")], ids=["else", "said"]
)
@flying_with(House)
async def test_a_hold_is_logged_once(house: House, caplog: pytest.LogCaptureFixture, said: str, cure: str) -> None:
    """With the id by which the catalog explains it, and what to do."""
    suspended = AttemptError("UserSuspended", said, status=403)
    house.store.answer, house.store.neutral = lambda _: suspended, lambda: suspended
    for key in "ab":
        await house.intake.submit(house.request(key=key))
    await asyncio.sleep(HOUR)
    assert house.uploader.health.held == f"UserSuspended: {said}{cure}"
    warnings = house.journal.of(MessageId.ATTEMPT_FAILED)
    assert len(warnings) > 2
    assert not any("S3DAEMON_DELAY_USEC" in entry for entry in warnings), "no time is set for the next attempts"
    (record,) = caplog.records
    text = f"the queue is held: UserSuspended: {said}{cure}; nothing is lost; next attempt in 5m00s"
    assert record.getMessage() == text
    assert record.levelno == logging.CRITICAL
    fields = record.__dict__["journal"]
    assert (fields["MESSAGE_ID"], fields["S3DAEMON_DELAY_USEC"]) == (MessageId.HELD, 300_000_000)


@flying
async def test_the_client_of_a_failure_is_notified_once_the_failure_is_listed() -> None:
    """It is recorded meanwhile, and a drain waits for the disk."""
    listed = asyncio.Event()

    class SlowSpool(FakeSpool):
        async def fail(self, *args: Any, **kwargs: Any) -> None:
            await listed.wait()

    house = House(spool=SlowSpool())
    house.store.answer = lambda _: AttemptError("NoSuchBucket", "no", status=404)
    ticket = await house.intake.submit(house.request())
    await asyncio.sleep(1)
    assert len(house.journal.records) == 1
    assert not ticket.outcome.done()
    draining = asyncio.create_task(house.uploader.drain(20.0))
    await asyncio.sleep(1)
    assert not draining.done()
    listed.set()
    await draining
    assert ticket.outcome.result().code == "NoSuchBucket"


@flying
async def test_a_failure_that_cannot_be_listed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its client is notified all the same; the next process finds the transfer pending."""

    class FullSpool(FakeSpool):
        async def fail(self, *args: Any, **kwargs: Any) -> None:
            raise SpoolError("SpoolFull", "no space")

    house = House(spool=FullSpool())
    house.store.answer = lambda _: AttemptError("NoSuchBucket", "no", status=404)
    ticket = await house.intake.submit(house.request())
    assert (await ticket.outcome).code == "NoSuchBucket"
    assert ticket.id in house.spool.rows
    assert "could not be listed: no space" in caplog.text


@flying_with(House)
async def test_what_an_earlier_process_accepted_goes_on(before: House) -> None:
    """Its object is looked up first if an attempt had started; times count from acceptance, by the wall clock."""
    before.store.seconds = 1000.0
    ticket = await before.intake.submit(before.request())
    await asyncio.sleep(10)
    await before.uploader.drain(0.0)
    before.store.seconds = 0.1
    house = House(spool=before.spool, store=before.store)
    await asyncio.sleep(50)
    house.uploader.recover(house.spool.rows.values())
    queued = house.uploader.schedule.get(ticket.id)
    assert queued
    assert not queued.live
    await asyncio.sleep(1)
    (record,) = house.journal.records
    assert record.total_usec == pytest.approx(60_200_000, abs=1)  # a lookup and a PUT
    assert house.store.finds == [ticket.id]


@pytest.mark.parametrize("everything", [True, False])
@flying_with(House)
async def test_a_retry_ends_delays(house: House, everything: bool) -> None:
    house.store.answer = lambda _: AttemptError("SlowDown", "later", status=503, retry_after=200.0)
    tickets = [await house.intake.submit(house.request(key=key)) for key in "ab"]
    await asyncio.sleep(1)
    house.store.answer = lambda _: None
    ids = {ticket.id for ticket in tickets}
    assert house.uploader.retry(None if everything else [tickets[0].id, "unknown"]) == (
        ids if everything else {tickets[0].id}
    )
    house.uploader.pump()
    await asyncio.sleep(1)
    assert house.store.ever == (ids if everything else {tickets[0].id})


@flying_with(House)
async def test_a_transfer_that_ends_by_itself_meanwhile_is_not_dropped(house: House) -> None:
    ticket = await house.intake.submit(house.request())
    queued = house.queued(ticket)
    await ticket.outcome
    assert not await house.uploader.drop(queued)
    assert [record.outcome for record in house.journal.records] == ["stored"]


@flying_with(House, S3DAEMON_MAX_CONNECTIONS="1")
async def test_a_reload_takes_the_number_of_connections_from_the_settings(house: House) -> None:
    for n in range(5):
        await house.intake.submit(house.request(key=f"k{n}"))
    assert len(house.uploader.tasks) == 1
    house.holder.current = House(S3DAEMON_MAX_CONNECTIONS="3").settings
    house.uploader.reload()
    assert len(house.uploader.tasks) == 3


@flying_with(House)
async def test_a_success_leaves_the_failure_of_a_newer_transfer(house: House) -> None:
    """Its content is not in the store, so it stays listed."""
    house.store.answer = lambda _: AttemptError("NoSuchBucket", "none", status=404)
    tickets = [await house.intake.submit(house.request(file=file, key="q")) for file in ("/1", "/2")]
    for ticket in tickets:
        await ticket.outcome
    house.store.answer = lambda _: None
    older, newer = house.spool.failed_entries()
    await house.spool.retry([older.transfer.id], 0.0)
    house.uploader.recover([older])
    await asyncio.sleep(1)
    assert house.store.objects[older.transfer.destination] == older.transfer.id
    assert house.spool.failed_entries() == [newer]
