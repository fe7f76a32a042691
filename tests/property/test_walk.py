"""After any history of requests, errors, outages, holds, full disks, drops and crashes, every accepted transfer is
stored, listed as failed or dropped, and every key has the newest content."""

from __future__ import annotations

import asyncio
from typing import Any

from fakes import ArrivedError, FlyingLoop, House
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3daemon.errors import AttemptError, SpoolError
from s3daemon.model.reply import Outcome
from s3daemon.model.request import Destination

ERRORS = {
    "fine": None,
    "refused": AttemptError("ConnectionFailed", "refused"),
    "busy": AttemptError("SlowDown", "busy", status=503),
    "lost": AttemptError("NoAnswer", "lost", ambiguous=True),
    "arrived": ArrivedError("NoAnswer", "arrived", ambiguous=True),
    "forbidden": AttemptError("AccessDenied", "no", status=403),
    "bad keys": AttemptError("InvalidAccessKeyId", "who", status=403),
    "stale": AttemptError("StaleConnection", "closed"),
    "full": AttemptError("QuotaExceeded", "full", status=403),
    "wrong": AttemptError("ETagMismatch", "wrong"),
}
NEUTRAL = {
    "accepted": None,
    "no answer": AttemptError("NoAnswer", "silent"),
    "bad keys": AttemptError("InvalidAccessKeyId", "who", status=403),
    "forbidden": AttemptError("AccessDenied", "no", status=403),
}


class Walk(RuleBasedStateMachine):
    """The uploader and the intake with a fake spool and store, which survive a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = FlyingLoop()
        self.answers: list[str] = []
        self.neutral = "no answer"
        self.accepted: dict[str, tuple[Destination, int]] = {}  # destination and order of acceptance
        self.dropped: set[str] = set()
        self.waiting: list[tuple[str, asyncio.Future[Any]]] = []
        self.house = self.loop.run_until_complete(self._new_house(None))

    async def _new_house(self, before: House | None) -> House:
        spool, store = (None, None) if before is None else (before.spool, before.store)
        house = House(spool=spool, store=store, S3DAEMON_MAX_CONNECTIONS="3")
        house.store.in_flight = 0
        house.store.answer = self._answer
        house.store.neutral = lambda: NEUTRAL[self.neutral]
        house.uploader.recover(sorted(house.spool.rows.values(), key=lambda entry: entry.seq))
        return house

    def _answer(self, _: object) -> AttemptError | None:
        return ERRORS[self.answers.pop(0)] if self.answers else None

    @rule(neutral=st.sampled_from(sorted(NEUTRAL)))
    def a_neutral_request_is_answered(self, neutral: str) -> None:
        self.neutral = neutral

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
                # A client that was deferred at once gets the error of the commit, which it awaits first.
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
        self.house.uploader.reload()

    @rule(index=st.integers(0, 5))
    def an_operator_drops(self, index: int) -> None:
        pending = self.house.uploader.schedule.transfers
        if index < len(pending):
            self.dropped.add(pending[index].transfer.id)
            self.house.spool.rows.pop(pending[index].transfer.id, None)
            self.loop.run_until_complete(self.house.uploader.drop(pending[index]))

    @rule()
    def crash(self) -> None:
        """Lose what is in memory; attempts in flight end wherever they are."""
        self.loop.run_until_complete(self.house.uploader.drain(0.0))
        self.house = self.loop.run_until_complete(self._new_house(self.house))

    @invariant()
    def replies_are_true(self) -> None:
        for id_, outcome in self.waiting:
            if outcome.done() and outcome.result().outcome is Outcome.STORED:
                assert id_ in self.house.store.ever
            if outcome.done() and outcome.result().outcome is Outcome.FAILED:
                assert id_ in self.house.spool.failed or id_ in self.dropped or self._is_overtaken(id_)

    @invariant()
    def every_accepted_transfer_is_accounted_for(self) -> None:
        pending = {queued.transfer.id for queued in self.house.uploader.schedule.transfers}
        for id_ in self.accepted:
            known = id_ in pending or id_ in self.house.spool.failed or id_ in self.dropped
            assert known or id_ in self.house.store.ever or self._is_overtaken(id_)

    def _is_overtaken(self, id_: str) -> bool:
        """Whether a newer transfer was stored at its destination, which clears its failure."""
        place, number = self.accepted[id_]
        newer = [other for other, (at, later) in self.accepted.items() if at == place and later > number]
        return any(other in self.house.store.ever for other in newer)

    def teardown(self) -> None:
        """Without faults, everything is delivered, and the newest content stays."""
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
        self.loop.run_until_complete(self.house.uploader.drain(0.0))
        self.loop.close()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=300, stateful_step_count=40)
