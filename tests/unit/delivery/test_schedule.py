"""The schedule: order for one destination, live before backlog, small before large, delays, and no connection left
unused for ever."""

import itertools
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3daemon.delivery.schedule import (
    QueuedTransfer,
    Schedule,
    earliest_attempt,
)
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.spool import Entry

SMALL, LARGE = 3_000, 8 << 20
_numbers = itertools.count(1)


def queued(key: str, size: int = LARGE, *, live: bool = True, bucket: str = "bucket") -> QueuedTransfer:
    number = next(_numbers)
    transfer = Transfer(f"{number:016x}", "/f", Destination(bucket, key), (), FileState(size, 0, number, 0), 0)
    return QueuedTransfer(number, transfer, 0.0, 0.0, live=live)


def taken(schedule: Schedule, now: float = 0.0) -> list[QueuedTransfer]:
    return list(iter(lambda: schedule.take(now), None))


def test_a_row_becomes_the_transfer_that_it_was_written_of() -> None:
    """As backlog; where an attempt may have started, the object is looked up first."""
    transfer = queued("k").transfer
    row = Entry(7, transfer, 5.0, 2, attempt_started=True, code="SlowDown", text="no", sent_etag="0" * 32)
    found = QueuedTransfer.of(row)
    assert found.entry() == row
    assert (found.accepted_at, found.live, found.outcome_unknown) == (None, False, True)


def test_among_equals_the_first_goes_first() -> None:
    schedule = Schedule(10)
    made = [queued(f"k{n}") for n in range(5)]
    for each in made:
        schedule.add(each)
    assert taken(schedule) == made


def test_there_is_one_at_a_time_for_a_destination() -> None:
    """The second waits for the end of the first, including its delay."""
    schedule = Schedule(10)
    first, second = queued("k"), queued("k")
    schedule.add(first)
    schedule.add(second)
    assert taken(schedule) == [first]
    schedule.release(first, 5.0)
    assert taken(schedule, 4.9) == []
    assert taken(schedule, 5.0) == [first]
    schedule.remove(first)
    assert taken(schedule) == [second]


def test_live_transfers_go_before_the_backlog() -> None:
    schedule = Schedule(1)
    old, new = queued("old", live=False), queued("new")
    schedule.add(old)
    schedule.add(new)
    assert schedule.take(0.0) is new
    schedule.remove(new)
    assert schedule.take(0.0) is old


def test_a_transfer_counts_as_live_if_a_live_one_waits_behind_it() -> None:
    schedule = Schedule(1)
    other, old = queued("other", live=False), queued("k", live=False)
    schedule.add(other)
    schedule.add(old)
    schedule.add(queued("k"))
    assert schedule.take(0.0) is old


def test_a_transfer_that_becomes_live_raises_the_one_before_it() -> None:
    schedule = Schedule(1)
    made = [queued("other", live=False), queued("k", live=False), queued("k", live=False)]
    for each in made:
        schedule.add(each)
    made[2].live = True
    schedule.end_delay(made[2])
    assert schedule.take(0.0) is made[1]


def test_after_an_outage_all_that_waited_is_backlog() -> None:
    """Fresh transfers pass it, whether it was tried or not."""
    schedule = Schedule(2)
    for n in range(10):
        schedule.add(queued(f"old{n}", SMALL))
    schedule.demote()
    assert len(taken(schedule)) == 1
    fresh = queued("fresh", SMALL)
    schedule.add(fresh)
    assert taken(schedule) == [fresh]


def test_attempts_that_an_outage_left_in_flight_take_nothing_of_the_backlogs_share() -> None:
    """The store was silent, and still is to them; the one slot that is free delivers what waited."""
    schedule = Schedule(10)
    stuck = [queued(f"stuck{n}", SMALL) for n in range(9)]
    waiting = [queued(f"k{n}", SMALL, live=False) for n in range(3)]
    for each in (*stuck, *waiting):
        schedule.add(each)
    assert len([schedule.take(0.0) for _ in stuck]) == 9
    schedule.demote()
    assert taken(schedule) == waiting[:1]


def test_a_queue_that_is_offered_again_and_again_takes_no_more_memory() -> None:
    """As by a store that goes away and comes back all night, with 54 000 transfers waiting."""
    schedule = Schedule(2)
    made = [queued(f"k{n}", SMALL) for n in range(1000)]
    for each in made:
        schedule.add(each)
    schedule.demote()
    tracemalloc.start()
    try:
        for _ in range(100):
            schedule.end_delays()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert taken(schedule) == made[:1]


def test_a_bucket_that_takes_objects_again_ends_the_delays_at_it_alone() -> None:
    schedule = Schedule(10)
    made = [queued("k", bucket=bucket) for bucket in ("full", "full", "other")]
    for each in made:
        schedule.add(each)
    assert taken(schedule) == [made[0], made[2]]
    for each in (made[0], made[2]):
        schedule.release(each, 300.0)
    schedule.end_delays_of("full")
    assert taken(schedule) == [made[0]], "its destination's next one waits for its end"
    schedule.remove(made[0])
    assert taken(schedule) == [made[1]]


@pytest.mark.parametrize(("slots", "large"), [(1, 1), (2, 1), (10, 9), (25, 23)])
def test_large_transfers_leave_some_connections_to_small_ones(slots: int, large: int) -> None:
    schedule = Schedule(slots)
    for n in range(100):
        schedule.add(queued(f"large{n}"))
    assert len(taken(schedule)) == large
    small = [queued(f"small{n}", SMALL) for n in range(3)]
    for each in small:
        schedule.add(each)
    assert taken(schedule) == small[: slots - large]


@pytest.mark.parametrize(("slots", "backlog"), [(1, 1), (2, 1), (3, 1), (10, 5)])
def test_the_backlog_leaves_half_of_the_connections_to_live_transfers(slots: int, backlog: int) -> None:
    schedule = Schedule(slots)
    for n in range(100):
        schedule.add(queued(f"old{n}", SMALL, live=False))
    assert len(taken(schedule)) == backlog
    fresh = queued("fresh")
    schedule.add(fresh)
    assert taken(schedule) == [fresh][: slots - backlog]


@pytest.mark.parametrize(("slots", "in_outage"), [(1, 1), (3, 3), (4, 3), (25, 19)])
def test_in_an_outage_live_transfers_leave_slots_to_probes(slots: int, in_outage: int) -> None:
    """An attempt without an answer holds its slot for a minute."""
    schedule = Schedule(slots)
    for n in range(2 * slots):
        schedule.add(queued(f"k{n}", SMALL))
    assert len(list(iter(lambda: schedule.take(0.0, live_only=True), None))) == in_outage
    assert len(taken(schedule)) == slots - in_outage


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_with_few_connections_everything_gets_its_turn(slots: int) -> None:
    schedule = Schedule(slots)
    made = [
        queued(f"k{n}", size, live=live)
        for n, (size, live) in enumerate(itertools.product((SMALL, LARGE), (True, False)))
    ]
    for each in made:
        schedule.add(each)
    done = []
    while len(schedule):
        batch = taken(schedule)
        assert batch
        for each in batch:
            schedule.remove(each)
        done += batch
    assert set(done) == set(made)


def test_only_the_newest_pending_transfer_of_the_same_file_can_be_joined() -> None:
    schedule = Schedule(1)
    first = queued("k")
    schedule.add(first)
    assert schedule.joinable("/f", first.transfer.destination) is first
    assert schedule.joinable("/other", first.transfer.destination) is None
    assert schedule.joinable("/f", Destination("bucket", "else")) is None
    schedule.take(0.0)
    assert schedule.joinable("/f", first.transfer.destination) is None


class Walk(RuleBasedStateMachine):
    """Any sequence of events keeps the rules, and no transfer waits while a connection is free and it has no delay."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule(4)
        self.now = 0.0
        self.running: list[QueuedTransfer] = []
        self.pending: list[QueuedTransfer] = []

    @rule(key=st.sampled_from("abcdef"), size=st.sampled_from([SMALL, LARGE]), live=st.booleans())
    def add(self, key: str, size: int, live: bool) -> None:
        made = queued(key, size, live=live)
        self.pending.append(made)
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
        if index < len(self.pending) and (found := self.pending[index]) not in self.running:
            found.live = True
            self.schedule.end_delay(found)

    @rule(index=st.integers(0, 20))
    def remove(self, index: int) -> None:
        if index < len(self.pending):
            found = self.pending.pop(index)
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
                e for e in self.pending if e.transfer.destination == each.transfer.destination and e.seq < each.seq
            ]
            assert not older
        assert set(self.running) == self.schedule.running

    def teardown(self) -> None:
        """As time passes, all of them end."""
        for each in self.running:
            self.schedule.remove(each)
            self.pending.remove(each)
        self.now += 1000
        while self.pending:
            found = self.schedule.take(self.now)
            assert found is not None
            self.schedule.remove(found)
            self.pending.remove(found)
        assert len(self.schedule) == 0


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=40)


def test_twelve_attempts_in_a_minute_are_the_most() -> None:
    assert earliest_attempt(()) == 0.0
    assert earliest_attempt([100.0] * 11) == 0.0
    assert earliest_attempt([100.0, *[101.0] * 11]) == 160.0


def test_a_retried_transfer_keeps_its_place_before_newer_ones() -> None:
    schedule = Schedule(10)
    old, middle, new = queued("k", live=False), queued("k"), queued("k")
    for each in (middle, new, old):
        schedule.add(each)
    order = []
    while first := schedule.take(0.0):
        order.append(first)
        schedule.remove(first)
    assert order == [old, middle, new]


@pytest.mark.parametrize("first_added", [0, 1])
def test_what_an_earlier_process_sent_goes_before_what_is_older(first_added: int) -> None:
    """Its client may have been told that it is stored; and nothing joins the older one, which may end with that."""
    schedule = Schedule(10)
    old, sent, new = (queued("k") for _ in range(3))
    sent.sent_before = True
    for each in (old, sent) if first_added == 0 else (sent, old):
        schedule.add(each)
    assert schedule.joinable("/f", old.transfer.destination) is None
    schedule.add(new)
    assert schedule.joinable("/f", old.transfer.destination) is new
    assert schedule.older_than(sent) == [old]
    for each in (sent, old, new):
        assert taken(schedule) == [each]
        schedule.remove(each)


def test_nothing_joins_what_is_older_than_another_that_is_pending() -> None:
    """It would end, and the request with it, when that is stored, whatever the order in which they go."""
    schedule = Schedule(10)
    oldest, old, sent = (queued("k") for _ in range(3))
    sent.sent_before = True
    for each in (sent, old):
        schedule.add(each)
    assert taken(schedule) == [sent]
    sent.sent_before = False  # it was looked up, is sent again, and that fails
    schedule.release(sent, 5.0)
    schedule.add(oldest)
    assert schedule.joinable("/f", old.transfer.destination) is None


def test_a_retried_transfer_waits_for_a_newer_one_in_flight() -> None:
    schedule = Schedule(10)
    old, new = queued("k", live=False), queued("k")
    schedule.add(new)
    assert taken(schedule) == [new]
    schedule.add(old)
    assert taken(schedule) == []
    assert schedule.older_than(new) == [old]
    schedule.release(new, 5.0)
    assert taken(schedule, 4.0) == [old]
    assert taken(schedule, 6.0) == [], "and the newer one waits for it then"
