"""The uploader and the intake over stand-ins, in a loop whose time flies: what becomes of a transfer, and when."""

import asyncio

import pytest
from fakes import House, away, fly

from s3daemon.errors import AttemptError, FileError, RequestError, SpoolError
from s3daemon.model.record import MessageId
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Transfer

HOUR = 3600.0


def test_stored() -> None:
    """One attempt, one record, nothing left."""

    async def main() -> None:
        house = House()
        ticket = await house.intake.submit(house.request(tag="night"))
        reply = await ticket.outcome
        assert (reply.outcome, reply.id) == (Outcome.STORED, ticket.id)
        (record,) = house.journal.records
        assert (record.outcome, record.attempts, record.tags, record.total_usec) == ("stored", 1, ("night",), 100_000)
        assert len(house.uploader.schedule) == 0
        await asyncio.sleep(0)
        assert not house.spool.rows

    fly(main)


def test_the_upload_does_not_wait_for_the_disk() -> None:
    """A commit that takes long delays the acceptance alone; the spool is told that an attempt may have begun."""

    async def main() -> None:
        house = House()
        house.spool.commit = asyncio.Event()
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.STORED
        assert not ticket.durable.done()
        house.spool.commit.set()
        await ticket.durable

    fly(main)


def test_a_full_disk_refuses() -> None:
    """Nothing is accepted falsely: the attempt is ended, all is forgotten, and the client hears why."""

    async def main() -> None:
        house = House()
        house.spool.full = True
        ticket = await house.intake.submit(house.request())
        with pytest.raises(SpoolError):
            await ticket.durable
        reply = await ticket.outcome
        assert (reply.outcome, reply.code, reply.id) == (Outcome.FAILED, "SpoolFull", "")
        assert len(house.uploader.schedule) == 0
        assert not house.store.objects
        house.spool.full = False
        assert (await (await house.intake.submit(house.request())).outcome).outcome is Outcome.STORED

    fly(main)


@pytest.mark.parametrize(
    ("code", "status", "outcome", "attempts"),
    [
        ("SlowDown", 503, Outcome.STORED, 3),
        ("Stalled", 0, Outcome.STORED, 3),
        ("SomethingNew", 418, Outcome.STORED, 3),
        ("NoSuchBucket", 404, Outcome.FAILED, 1),
        ("AccessDenied", 403, Outcome.FAILED, 1),
    ],
)
def test_errors(code: str, status: int, outcome: Outcome, attempts: int) -> None:
    """Transient ones are tried again, permanent ones are told and listed at once, unknown ones are transient."""

    async def main() -> None:
        house = House()
        left = [AttemptError(code, "no", status=status)] * 2
        house.store.answer = lambda _: left.pop() if left else None
        ticket = await house.intake.submit(house.request())
        reply = await ticket.outcome
        assert reply.outcome is outcome
        assert house.journal.records[-1].attempts == attempts
        assert house.spool.failed == ({ticket.id: (code, "no")} if outcome is Outcome.FAILED else {})
        assert len(house.journal.of(MessageId.ATTEMPT_FAILED)) == attempts - 1

    fly(main)


def test_bad_keys_hold_the_queue() -> None:
    """One attempt tells; the others wait, their clients are deferred, and a reload lets all go."""

    async def main() -> None:
        house = House(S3DAEMON_MAX_CONNECTIONS="1")
        house.store.answer = lambda _: AttemptError("InvalidAccessKeyId", "no such key", status=403)
        tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(50)]
        replies = [await ticket.outcome for ticket in tickets]
        assert {reply.outcome for reply in replies} == {Outcome.DEFERRED}
        assert all("InvalidAccessKeyId" in reply.text for reply in replies)
        assert len(house.store.puts) == 1
        held_at = house.service.now()
        await asyncio.sleep(10 * HOUR)
        assert house.service.now() == held_at, "a hold takes no time from the limit"
        assert 10 * 12 - 5 <= len(house.store.puts) <= 10 * 12 + 5, "a probe each five minutes"
        house.store.answer = lambda _: None
        house.uploader.health.reload()
        house.uploader.schedule.end_delays()
        house.uploader.pump()
        await asyncio.sleep(60)
        assert len(house.store.objects) == 50

    fly(main)


def test_an_endpoint_that_is_away() -> None:
    """A few probes, clients deferred at once when it is known, and all is sent when it is back."""

    async def main() -> None:
        house = House()
        house.store.answer = away
        first = await house.intake.submit(house.request(key="first"))
        assert (await first.outcome).outcome is Outcome.DEFERRED
        for n in range(500):
            ticket = await house.intake.submit(house.request(key=f"k{n}"))
            assert ticket.outcome.done(), "known to be away: deferred at once"
        await asyncio.sleep(HOUR)
        assert len(house.store.puts) < 3600 / 20 * 2, "probes, no hammering"
        house.store.answer = lambda _: None
        await asyncio.sleep(90)
        assert len(house.store.objects) == 501

    fly(main)


def test_48_hours_of_outage() -> None:
    """Nothing is lost, wall-clock steps expire nothing, and the attempts are what the policy says: at most two probes
    in each 22 to 30 s, spread over the transfers."""

    async def main() -> None:
        house = House()
        house.store.answer = away
        for n in range(54_000 // 60):
            await house.intake.submit(house.request(key=f"k{n}", wait=False))
            await asyncio.sleep(48 * HOUR / 900)
            house.wall_offset += {300: 86_400.0, 600: -2 * 86_400.0}.get(n, 0.0)
        assert not house.spool.failed
        assert len(house.uploader.schedule) == 900
        total = len(house.store.puts)
        assert 48 * HOUR / 30 * 0.9 <= total <= 48 * HOUR / 22 * 2
        attempts = [job.attempts for job in house.uploader.schedule.jobs]
        assert max(attempts) <= 48 * HOUR / 45, "no transfer is tried more often than its own back-off allows"
        house.store.answer = lambda _: None
        await asyncio.sleep(300)
        assert len(house.store.objects) == 900
        print(f"attempts in total {total}, per transfer at most {max(attempts)}")

    fly(main)


def test_the_retry_limit() -> None:
    """Seven days of running time, then it failed, with the last error."""

    async def main() -> None:
        house = House()
        house.store.answer = lambda _: AttemptError("InternalError", "oops", status=500)
        ticket = await house.intake.submit(house.request())
        await asyncio.sleep(7 * 24 * HOUR - 60)
        assert not house.spool.failed
        await asyncio.sleep(180)
        ((code, text),) = house.spool.failed.values()
        assert code == "InternalError"
        assert "given up after" in text
        assert ticket.id in house.spool.failed

    fly(main)


def test_order_for_one_destination() -> None:
    """Never two at once, always in the order accepted: the newest content wins, errors or not."""

    async def main() -> None:
        house = House()
        flaky = iter([AttemptError("InternalError", "x", status=500), None] * 10)
        house.store.answer = lambda _: next(flaky)
        tickets = [await house.intake.submit(house.request(file=f"/f{n}")) for n in range(10)]
        for ticket in tickets:
            await ticket.outcome
        assert list(dict.fromkeys(id_ for _, id_ in house.store.puts)) == [ticket.id for ticket in tickets]
        assert house.store.most == 1
        assert set(house.store.objects.values()) == {tickets[-1].id}

    fly(main)


def test_join() -> None:
    """A request for the same file and destination shares the pending transfer, ends its delay, and keeps its tag."""

    async def main() -> None:
        house = House()
        left = [AttemptError("InternalError", "x", status=500)] * 6
        house.store.answer = lambda _: left.pop() if left else None
        first = await house.intake.submit(house.request(tag="a"))
        while left or house.store.in_flight:  # in its back-off, which by now is long
            await asyncio.sleep(0.05)
        second = await house.intake.submit(house.request(tag="b"))
        await second.durable
        assert second.id == first.id
        began = house.loop.time()
        assert (await second.outcome) == (await first.outcome)
        assert house.loop.time() - began < 0.2
        assert house.journal.records[-1].tags == ("a", "b")

    fly(main)


def test_no_join_while_in_flight() -> None:
    """What is in flight may be older than what the client sees: its request follows as its own."""

    async def main() -> None:
        house = House()
        first = await house.intake.submit(house.request())
        second = await house.intake.submit(house.request())
        assert second.id != first.id
        assert (await second.outcome).outcome is Outcome.STORED
        assert len(house.store.puts) == 2

    fly(main)


class _Arrived(AttemptError):
    arrived = True


def test_an_ambiguous_attempt_is_looked_up() -> None:
    """All was sent and no answer came: the object is found, and not sent a second time."""

    async def main() -> None:
        house = House()
        left = [_Arrived("NoAnswer", "none", ambiguous=True)]
        house.store.answer = lambda _: left.pop() if left else None
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.STORED
        assert len(house.store.puts) == 1
        assert house.store.finds == [ticket.id]

    fly(main)


def test_a_late_arrival_is_noticed() -> None:
    """After an ambiguous attempt, the next transfer for that destination looks whether its object is still there."""

    async def main() -> None:
        house = House()
        left = [AttemptError("NoAnswer", "none", ambiguous=True)]
        house.store.answer = lambda _: left.pop() if left else None
        first = await house.intake.submit(house.request(file="/old"))
        await first.outcome
        second = await house.intake.submit(house.request(file="/new"))
        while second.id not in house.store.objects.values():
            await asyncio.sleep(0.01)
        house.store.objects[house.request().destination] = first.id  # the old body comes in at last
        assert (await second.outcome).outcome is Outcome.STORED
        assert set(house.store.objects.values()) == {second.id}
        assert [id_ for _, id_ in house.store.puts].count(second.id) == 2

    fly(main)


def test_a_missing_file() -> None:
    """Told at once when it is asked for; for what was accepted, waited for during an hour after the start."""

    async def main() -> None:
        house = House(S3DAEMON_MAX_CONNECTIONS="1")
        house.files.missing.add("/gone")
        with pytest.raises(FileError):
            await house.intake.submit(house.request(file="/gone"))
        house.store.answer = away
        ticket = await house.intake.submit(house.request(file="/f"))
        await ticket.outcome
        house.files.missing.add("/f")
        house.store.answer = lambda _: None
        await asyncio.sleep(HOUR / 2)
        assert not house.spool.failed
        await asyncio.sleep(HOUR)
        assert list(house.spool.failed.values()) == [("NoSuchFile", "/f: no such file")]

    fly(main)


def test_buckets() -> None:
    """Where a list is set, others are refused."""

    async def main() -> None:
        house = House(S3DAEMON_ALLOWED_BUCKETS="other")
        with pytest.raises(RequestError) as caught:
            await house.intake.submit(house.request())
        assert caught.value.code == "NotAllowed"

    fly(main)


def test_drain() -> None:
    """What is in flight is finished within the limit; the rest, begun or not, stays for the next process."""

    async def main() -> None:
        house = House(S3DAEMON_MAX_CONNECTIONS="2")
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

    fly(main)


def test_drop_in_flight() -> None:
    """An operator's drop ends the attempt, tells the waiter and is recorded."""

    async def main() -> None:
        house = House()
        house.store.seconds = 1000.0
        ticket = await house.intake.submit(house.request())
        await asyncio.sleep(1)
        job = house.uploader.schedule.get(ticket.id)
        assert job is not None
        await house.uploader.drop(job)
        assert (await ticket.outcome).code == "Dropped"
        assert not house.store.in_flight
        assert not house.store.objects
        assert house.journal.records[-1].outcome == "failed"

    fly(main)


def test_a_bug_loses_nothing() -> None:
    """An exception that nobody thought of counts as a passing failure whose outcome is not known."""

    async def main() -> None:
        house = House()
        calls = iter([1])

        def answer(_: object) -> None:
            if next(calls, None):
                raise RuntimeError("a bug")

        house.store.answer = answer
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.STORED
        assert house.store.finds

    fly(main)


def elsewhere(receiver: str) -> AttemptError:
    """A receiver failed, and another one serves."""
    return AttemptError("SlowDown", "no", status=503, address=receiver, other_address=True)


def test_a_broken_receiver_costs_one_attempt() -> None:
    """The next one goes elsewhere at once; the endpoint is not held to be away, however many meet the broken one."""

    async def main() -> None:
        house = House()
        seen: set[str] = set()

        def once(transfer: Transfer) -> AttemptError | None:
            if transfer.id in seen:
                return None
            seen.add(transfer.id)
            return elsewhere("broken")

        house.store.answer = once
        tickets = [await house.intake.submit(house.request(key=f"k{n}")) for n in range(20)]
        assert {(await ticket.outcome).outcome for ticket in tickets} == {Outcome.STORED}
        assert all(record.attempts == 2 for record in house.journal.records)
        assert max(record.total_usec for record in house.journal.records) == 200_000, "no delay between the two"
        assert not house.uploader.health.away

    fly(main)


def test_each_receiver_once_then_patience() -> None:
    """Where an attempt failed the next one does not go; after the last receiver the transfer waits, and begins anew."""

    async def main() -> None:
        house = House()
        left = [elsewhere("a"), elsewhere("b"), AttemptError("SlowDown", "no", status=503)]
        house.store.answer = lambda _: left.pop(0) if left else None
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.STORED
        assert house.store.tried == [set(), {"a"}, {"a", "b"}, set()]
        at = [at for at, _ in house.store.puts]
        assert at[2] - at[0] == pytest.approx(0.2)
        assert at[3] - at[2] > 0.8
        warnings = house.journal.of(MessageId.ATTEMPT_FAILED)
        assert [entry.get("S3DAEMON_RECEIVER") for entry in warnings] == ["a", "b", None]
        assert house.journal.records[0].receiver == "of the store", "not where an earlier attempt failed"


def test_where_it_failed_for_good() -> None:
    """The record of a failure names the receiver of its last attempt."""

    async def main() -> None:
        house = House()
        refusal = AttemptError("NoSuchBucket", "no", status=404, address="c")
        left = [elsewhere("a"), refusal]
        house.store.answer = lambda _: left.pop(0)
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.FAILED
        assert house.journal.records[0].receiver == "c"

    fly(main)

    fly(main)


def test_a_stale_connection_twice_in_a_row() -> None:
    """The first is replaced at once; a second says that something else ends them, and that is not hurried."""

    async def main() -> None:
        house = House()
        left = [AttemptError("StaleConnection", "closed") for _ in range(3)]
        house.store.answer = lambda _: left.pop() if left else None
        ticket = await house.intake.submit(house.request())
        assert (await ticket.outcome).outcome is Outcome.STORED
        first, second, third, fourth = (at for at, _ in house.store.puts)
        assert second - first == pytest.approx(0.1)
        assert third - second > 0.8
        assert fourth - third > 0.8
        assert not house.uploader.health.away

    fly(main)
