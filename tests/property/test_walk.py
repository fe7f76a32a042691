"""Any history of requests, errors, outages, holds, full disks, drops and crashes ends with every accepted transfer
stored, listed as failed or dropped, and with the newest content under every key."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes import FlyingLoop, House
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3daemon.errors import AttemptError, SpoolError
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Destination


class _Arrived(AttemptError):
    """No answer, but the object is there."""

    arrived = True


ERRORS = {
    "fine": None,
    "refused": AttemptError("ConnectionFailed", "refused"),
    "busy": AttemptError("SlowDown", "busy", status=503),
    "lost": AttemptError("NoAnswer", "lost", ambiguous=True),
    "arrived": _Arrived("NoAnswer", "arrived", ambiguous=True),
    "forbidden": AttemptError("AccessDenied", "no", status=403),
    "bad keys": AttemptError("InvalidAccessKeyId", "who", status=403),
    "stale": AttemptError("StaleConnection", "closed"),
}


class Walk(RuleBasedStateMachine):
    """The uploader and the intake over stand-ins whose spool and store outlive a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FlyingLoop()
        self.answers: list[str] = []
        self.accepted: dict[str, tuple[Destination, int]] = {}  # what each was to store, and its turn
        self.dropped: set[str] = set()
        self.waiting: list[tuple[str, asyncio.Future[Any]]] = []
        self.stored_order: dict[Destination, list[str]] = {}
        self.house = self.loop.run_until_complete(self._new_house(None))

    async def _new_house(self, before: House | None) -> House:
        house = House(S3DAEMON_MAX_CONNECTIONS="3")
        if before is not None:
            house.spool, house.store = before.spool, before.store
            house.store.in_flight = 0
            attempts = house.uploader._attempts
            attempts.store = house.store  # type: ignore[assignment]
            attempts._spool = house.uploader._spool = house.intake._spool = house.spool  # type: ignore[assignment]
        house.store.answer = self._answer
        house.uploader.recover(sorted(house.spool.rows.values(), key=lambda entry: entry.seq))
        return house

    def _answer(self, _: object) -> AttemptError | None:
        return ERRORS[self.answers.pop(0)] if self.answers else None

    def _run(self, seconds: float = 0.0) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(answers=st.lists(st.sampled_from(sorted(ERRORS)), max_size=4))
    def the_store_will_answer(self, answers: list[str]) -> None:
        self.answers += answers

    @rule(key=st.sampled_from("ab"), file=st.sampled_from(["/x", "/y"]))
    def request(self, key: str, file: str) -> None:
        async def submit() -> None:
            ticket = await self.house.intake.submit(self.house.request(file=file, key=key))
            try:
                await ticket.durable
            except SpoolError:
                # A client that was to be deferred at once is told of the commit, which is awaited first.
                assert (await ticket.outcome).code in ("SpoolFull", "Deferred")
                return
            self.accepted.setdefault(ticket.id, (Destination("bucket", key), len(self.accepted)))
            self.waiting.append((ticket.id, ticket.outcome))

        self.loop.run_until_complete(submit())

    @rule(full=st.booleans())
    def the_disk_is_full(self, full: bool) -> None:
        self.house.spool.full = full

    @rule(seconds=st.sampled_from([0.05, 0.3, 2.0, 40.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self._run(seconds)

    @rule()
    def reload(self) -> None:
        self.house.uploader.health.reload()
        self.house.uploader.schedule.end_delays()
        self.house.uploader.pump()

    @rule(index=st.integers(0, 5))
    def an_operator_drops(self, index: int) -> None:
        jobs = self.house.uploader.schedule.jobs
        if index < len(jobs):
            self.dropped.add(jobs[index].transfer.id)
            self.house.spool.rows.pop(jobs[index].transfer.id, None)
            self.loop.run_until_complete(self.house.uploader.drop(jobs[index]))

    @rule()
    def crash(self) -> None:
        """What is in memory is gone; attempts in flight end wherever they are."""
        self.loop.run_until_complete(self.house.uploader.drain(0.0))
        self.house = self.loop.run_until_complete(self._new_house(self.house))

    @invariant()
    def the_told_were_told_the_truth(self) -> None:
        for id_, outcome in self.waiting:
            if outcome.done() and outcome.result().outcome is Outcome.STORED:
                assert id_ in self.house.store.ever
            if outcome.done() and outcome.result().outcome is Outcome.FAILED:
                assert id_ in self.house.spool.failed or id_ in self.dropped

    @invariant()
    def nothing_is_forgotten(self) -> None:
        pending = {job.transfer.id for job in self.house.uploader.schedule.jobs}
        for id_ in self.accepted:
            assert (
                id_ in pending or id_ in self.house.spool.failed or id_ in self.dropped or id_ in self.house.store.ever
            )

    def teardown(self) -> None:
        """Once all is well again, all is delivered, and the newest is what stays."""
        self.answers.clear()
        self.house.spool.full = False
        self.reload()
        self._run(1000.0)
        assert len(self.house.uploader.schedule) == 0
        for key in "ab":
            destination = Destination("bucket", key)
            stored = [
                id_ for id_ in self.accepted if self.accepted[id_][0] == destination and id_ in self.house.store.ever
            ]
            if stored:
                newest = max(stored, key=lambda id_: self.accepted[id_][1])
                there = self.house.store.objects[destination]
                assert there == newest or there in self.dropped
        self.house.uploader._timer and self.house.uploader._timer.cancel()
        self.loop.close()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
