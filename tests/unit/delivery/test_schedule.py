"""The schedule: order for one destination, live before backlog, small past large, delays, and no slot ever lost."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3daemon.delivery.schedule import Job, Schedule
from s3daemon.model.request import Destination, FileState, Transfer

SMALL, LARGE = 3_000, 8 << 20
_numbers = itertools.count(1)


def job(key: str, size: int = LARGE, *, live: bool = True) -> Job:
    number = next(_numbers)
    transfer = Transfer(f"{number:016x}", "/f", Destination("bucket", key), (), FileState(size, 0, number, 0), 0)
    return Job(number, transfer, 0.0, 0.0, live=live)


def taken(schedule: Schedule, now: float = 0.0) -> list[Job]:
    return list(iter(lambda: schedule.take(now), None))


def test_order_of_acceptance() -> None:
    """Among equals the first goes first."""
    schedule = Schedule(10)
    jobs = [job(f"k{n}") for n in range(5)]
    for each in jobs:
        schedule.add(each)
    assert taken(schedule) == jobs


def test_one_at_a_time_for_a_destination() -> None:
    """The second waits for the end of the first, a delay of the first included."""
    schedule = Schedule(10)
    first, second = job("k"), job("k")
    schedule.add(first)
    schedule.add(second)
    assert taken(schedule) == [first]
    schedule.release(first, 5.0)
    assert taken(schedule, 4.9) == []
    assert taken(schedule, 5.0) == [first]
    schedule.remove(first)
    assert taken(schedule) == [second]


def test_live_before_backlog() -> None:
    """What a hook waits for passes what an outage left."""
    schedule = Schedule(1)
    old, new = job("old", live=False), job("new")
    schedule.add(old)
    schedule.add(new)
    assert schedule.take(0.0) is new
    schedule.remove(new)
    assert schedule.take(0.0) is old


def test_a_live_one_lends_its_rank() -> None:
    """An old transfer to the destination that a live one waits for passes the rest of the backlog."""
    schedule = Schedule(1)
    other, old = job("other", live=False), job("k", live=False)
    schedule.add(other)
    schedule.add(old)
    schedule.add(job("k"))
    assert schedule.take(0.0) is old


def test_one_that_is_asked_for_again_raises_what_stands_before_it() -> None:
    """A transfer that becomes live while it waits behind another neither loses it nor leaves it in the backlog."""
    schedule = Schedule(1)
    jobs = [job("other", live=False), job("k", live=False), job("k", live=False)]
    for each in jobs:
        schedule.add(each)
    jobs[2].live = True
    schedule.end_delay(jobs[2])
    assert schedule.take(0.0) is jobs[1]


def test_what_waited_out_an_outage_is_backlog() -> None:
    """When the endpoint is back, fresh transfers pass all that it kept waiting, tried or not."""
    schedule = Schedule(2)
    for n in range(10):
        schedule.add(job(f"old{n}", SMALL))
    schedule.demote()
    assert len(taken(schedule)) == 1
    fresh = job("fresh", SMALL)
    schedule.add(fresh)
    assert taken(schedule) == [fresh]


def test_small_ones_pass_a_wall_of_large_ones() -> None:
    """Large ones leave slots free; live ones find some although the backlog is endless."""
    schedule = Schedule(25)
    for n in range(100):
        schedule.add(job(f"large{n}"))
    assert len(taken(schedule)) == 23
    small = [job(f"small{n}", SMALL) for n in range(3)]
    for each in small:
        schedule.add(each)
    assert taken(schedule) == small[:2]


def test_backlog_leaves_room() -> None:
    """Half of the slots are for live transfers, should there be any."""
    schedule = Schedule(10)
    for n in range(100):
        schedule.add(job(f"old{n}", SMALL, live=False))
    assert len(taken(schedule)) == 5
    fresh = job("fresh")
    schedule.add(fresh)
    assert taken(schedule) == [fresh]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_few_slots(slots: int) -> None:
    """However few there are, everything gets its turn."""
    schedule = Schedule(slots)
    jobs = [
        job(f"k{n}", size, live=live) for n, (size, live) in enumerate(itertools.product((SMALL, LARGE), (True, False)))
    ]
    for each in jobs:
        schedule.add(each)
    done = []
    while len(schedule):
        batch = taken(schedule)
        assert batch
        for each in batch:
            schedule.remove(each)
        done += batch
    assert set(done) == set(jobs)


def test_joinable() -> None:
    """Only the newest for the destination, only of the same file, only without an attempt in flight."""
    schedule = Schedule(1)
    first = job("k")
    schedule.add(first)
    assert schedule.joinable("/f", first.transfer.destination) is first
    assert schedule.joinable("/other", first.transfer.destination) is None
    assert schedule.joinable("/f", Destination("bucket", "else")) is None
    schedule.take(0.0)
    assert schedule.joinable("/f", first.transfer.destination) is None


class Walk(RuleBasedStateMachine):
    """Any sequence of events keeps the rules, and nothing is stuck while there is a slot and no delay."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(4)
        self.now = 0.0
        self.running: list[Job] = []
        self.everything: list[Job] = []

    @rule(key=st.sampled_from("abcdef"), size=st.sampled_from([SMALL, LARGE]), live=st.booleans())
    def add(self, key: str, size: int, live: bool) -> None:
        made = job(key, size, live=live)
        self.everything.append(made)
        self.schedule.add(made)

    @rule()
    def take(self) -> None:
        if (found := self.schedule.take(self.now)) is not None:
            self.running.append(found)

    @rule(index=st.integers(0, 3), delay=st.floats(0, 10), live=st.booleans())
    def release(self, index: int, delay: float, live: bool) -> None:
        if index < len(self.running):
            found = self.running.pop(index)
            found.live = found.live and live
            self.schedule.release(found, self.now + delay)

    @rule(index=st.integers(0, 20))
    def join(self, index: int) -> None:
        if index < len(self.everything) and (found := self.everything[index]) not in self.running:
            found.live = True
            self.schedule.end_delay(found)

    @rule(index=st.integers(0, 20))
    def remove(self, index: int) -> None:
        if index < len(self.everything):
            found = self.everything.pop(index)
            if found in self.running:
                self.running.remove(found)
            self.schedule.remove(found)

    @rule(seconds=st.floats(0, 20))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def end_delays(self) -> None:
        self.schedule.end_delays()

    @invariant()
    def one_per_destination(self) -> None:
        keys = [each.transfer.destination.key for each in self.running]
        assert len(keys) == len(set(keys))
        for each in self.running:
            older = [
                e for e in self.everything if e.transfer.destination == each.transfer.destination and e.seq < each.seq
            ]
            assert not older
        assert set(self.running) == self.schedule.running

    def teardown(self) -> None:
        """With time passing, all ends."""
        for each in self.running:
            self.schedule.remove(each)
            self.everything.remove(each)
        self.now += 1000
        while self.everything:
            found = self.schedule.take(self.now)
            assert found is not None
            self.schedule.remove(found)
            self.everything.remove(found)
        assert len(self.schedule) == 0


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
