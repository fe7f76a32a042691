"""Questions: the counts of a tag and the end of a transfer, at the moment when the last one ends, and not before."""

from __future__ import annotations

import asyncio

import pytest
from fakes import flying_with
from lab.records import START_USEC, failed, record

from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.ingress.protocol import QUESTION_LIMIT_S, Question
from s3daemon.ingress.questions import Questions, TagCounts
from s3daemon.model.exposure import Exposures
from s3daemon.model.record import Refusal, TransferRecord
from s3daemon.model.reply import Outcome, Reply
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.exposures import ENDED_KEPT


class Desk:
    """Questions over exposures that a test fills."""

    def __init__(self) -> None:
        self.exposures = Exposures()
        self.pending: dict[str, QueuedTransfer] = {}
        self.loop = asyncio.get_running_loop()
        ended = [("old", Reply(Outcome.STORED, "old"))]
        self.questions = Questions(
            self.exposures,
            self.pending.get,
            lambda queued: f"{queued.transfer.destination.key} waits",
            ended,
            clock=self.loop.time,
        )

    def accept(self, number: int, tag: str = "e1") -> Transfer:
        key = f"night/{number}"
        made = Transfer(f"{number:016x}", "/f", Destination("raw", key), (tag,), FileState(1, 2, 3, 4), START_USEC)
        self.exposures.added(made)
        self.pending[made.id] = QueuedTransfer(number, made, 0.0, 0.0)
        return made

    def end(self, made: Transfer, error: str = "") -> None:
        number = int(made.id, 16)
        names = {"tags": made.tags, "key": made.destination.key}
        ended: TransferRecord = failed(number, error, **names) if error else record(number, **names)
        del self.pending[made.id]
        self.exposures.removed(made)
        self.exposures.recorded(ended)
        self.questions.see(ended)


@pytest.mark.parametrize(
    ("count", "outcome", "code", "text"),
    [
        (TagCounts("E", 46), Outcome.STORED, "", ""),
        (TagCounts("E", 46, expect=46), Outcome.STORED, "", ""),
        (
            TagCounts("E", 45, expect=46), Outcome.DEFERRED, "Deferred",
            "E: 45 stored, 0 pending, 0 failed, 0 refused of 46; the time is up with 1 file not requested: request the "
            "rest, then ask again",
        ),
        (
            TagCounts("E", 40, 6), Outcome.DEFERRED, "Deferred",
            "E: 40 stored, 6 pending, 0 failed, 0 refused; the time is up: ask again",
        ),
        (
            TagCounts("E", 40, 3, 2, 1, "NoSuchFile: /f", 46), Outcome.DEFERRED, "Deferred",
            "E: 40 stored, 3 pending, 2 failed, 1 refused of 46; the first: NoSuchFile: /f; the time is up: ask again",
        ),
        (
            TagCounts("E", 44, 0, 1, 1, "NoSuchFile: /f", 46), Outcome.FAILED, "Incomplete",
            "E: 44 stored, 0 pending, 1 failed, 1 refused of 46; the first: NoSuchFile: /f",
        ),
        (
            TagCounts("E"), Outcome.FAILED, "UnknownTransfer",
            "E: 0 stored, 0 pending, 0 failed, 0 refused; nothing was requested under this tag, or it is no "
            "longer among the last exposures",
        ),
        (
            TagCounts("E", expect=2), Outcome.DEFERRED, "Deferred",
            "E: 0 stored, 0 pending, 0 failed, 0 refused of 2; the time is up with 2 files not requested: request the "
            "rest, then ask again",
        ),
    ],
)  # fmt: skip
def test_the_reply_follows_from_the_counts(count: TagCounts, outcome: Outcome, code: str, text: str) -> None:
    reply = count.reply()
    assert (reply.outcome, reply.code, reply.text) == (outcome, code, text)
    assert reply.counts["stored"] == count.stored


@flying_with(Desk)
async def test_a_question_about_a_tag_is_answered_when_the_last_transfer_ends(desk: Desk) -> None:
    """At that moment; what comes under the tag meanwhile belongs to it; other tags do not."""
    one, two, other = desk.accept(1), desk.accept(2), desk.accept(3, "e2")
    asked = asyncio.create_task(desk.questions.about_tag(Question("e1", timeout_s=1000.0)))
    await asyncio.sleep(10)
    desk.end(one)
    desk.end(other)
    three = desk.accept(4)
    desk.end(two, "NoSuchBucket: none")
    await asyncio.sleep(10)
    assert not asked.done()
    ended_at = desk.loop.time()
    desk.end(three)
    assert await asked == TagCounts("e1", 2, 0, 1, 0, "NoSuchBucket: none").reply()
    assert desk.loop.time() == ended_at


@flying_with(Desk)
async def test_a_question_that_expects_more_waits_for_them(desk: Desk) -> None:
    """A refused one is one of them."""
    desk.end(desk.accept(1))
    asked = asyncio.create_task(desk.questions.about_tag(Question("e1", 2, 1000.0)))
    await asyncio.sleep(100)
    assert not asked.done()
    refusal = Refusal(code="NoSuchFile", text="gone", destination="raw/night/9", tag="e1")
    desk.exposures.refused(refusal, START_USEC)
    assert await asked == TagCounts("e1", 1, 0, 0, 1, "NoSuchFile: gone", 2).reply()


@flying_with(Desk)
async def test_a_question_ends_with_its_time(desk: Desk) -> None:
    """With the counts as they are; zero means now."""
    desk.accept(1)
    for timeout_s in (0.0, 7.0, QUESTION_LIMIT_S):
        began = desk.loop.time()
        reply = await desk.questions.about_tag(Question("e1", timeout_s=timeout_s))
        assert reply == TagCounts("e1", 0, 1).reply("night/1 waits")
        assert desk.loop.time() - began == pytest.approx(timeout_s, abs=0.01)


@flying_with(Desk)
async def test_the_answer_says_why_the_oldest_pending_file_is_not_stored(desk: Desk) -> None:
    """A hook that has only asked hears that the queue is held, as one does that waits for its file."""
    desk.end(desk.accept(1))
    for number in range(9, 1, -1):
        desk.accept(number)
    reply = await desk.questions.about_tag(Question("e1", 10, 0.0))
    assert reply
    assert reply.text == (
        "e1: 1 stored, 8 pending, 0 failed, 0 refused of 10; pending: night/2 waits; the time is up with 1 file not "
        "requested: request the rest, then ask again"
    )


@flying_with(Desk)
async def test_a_stop_ends_questions_that_cannot_be_answered(desk: Desk) -> None:
    made = desk.accept(1)
    asked = [
        asyncio.create_task(desk.questions.about_tag(Question("e1", timeout_s=1000.0))),
        asyncio.create_task(desk.questions.about_transfer(made.id, 1000.0)),
    ]
    await asyncio.sleep(1)
    desk.questions.leave()
    assert await asyncio.gather(*asked) == [None, None]
    desk.end(made)
    assert await desk.questions.about_tag(Question("e1", timeout_s=9.0)) == TagCounts("e1", 1).reply()


@flying_with(Desk)
async def test_the_end_of_a_transfer(desk: Desk) -> None:
    """Of one that is pending, of those that ended before, one of which is retried, and of one that ends without a
    record."""
    made, bad, gone = desk.accept(1), desk.accept(2), desk.accept(3)
    asked = asyncio.create_task(desk.questions.about_transfer(made.id, 1000.0))
    await asyncio.sleep(10)
    at = desk.loop.time()
    desk.end(made)
    assert await asked == Reply(Outcome.STORED, made.id)
    assert desk.loop.time() == at
    desk.end(bad, "NoSuchBucket: none")
    assert await desk.questions.about_transfer(bad.id, 9.0) == Reply(Outcome.FAILED, bad.id, "NoSuchBucket", "none")
    desk.pending[bad.id] = QueuedTransfer(2, bad, 0.0, 0.0)
    again = await desk.questions.about_transfer(bad.id, 9.0)
    text = "kept, and not stored yet; night/2 waits"
    assert again == Reply(Outcome.DEFERRED, bad.id, "Deferred", text), "it is being retried"
    assert await desk.questions.about_transfer("old", 9.0) == Reply(Outcome.STORED, "old")
    assert (await desk.questions.about_transfer(gone.id, 5.0) or Reply(Outcome.STORED)).outcome is Outcome.DEFERRED
    asked = asyncio.create_task(desk.questions.about_transfer(gone.id, 1000.0))
    await asyncio.sleep(10)
    del desk.pending[gone.id]
    unknown = await asked
    assert unknown
    assert (unknown.outcome, unknown.id, unknown.code) == (Outcome.FAILED, "", "UnknownTransfer")
    for number in range(10, 20 + ENDED_KEPT):
        desk.questions.see(record(number))
    assert (await desk.questions.about_transfer("old", 9.0) or unknown).code == "UnknownTransfer"
