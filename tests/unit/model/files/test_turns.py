"""A few of what comes together go on at a time, in their order; nothing waits for longer than it has to."""

from __future__ import annotations

import asyncio

from lab.sending import in_loop

from s3daemon.model.files.turns import MANY, Turns

AT_ONCE, ROUNDS = 4, 5


class Waiting:
    """So many tasks that ask for a turn at once."""

    def __init__(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self.turns, self.done = Turns(AT_ONCE, ROUNDS), list[int]()
        self.tasks = [loop.create_task(self._take(number)) for number in range(count)]

    async def _take(self, number: int) -> None:
        await self.turns.take()
        self.done.append(number)


async def rounds(count: int) -> None:
    """Let so many rounds of the loop pass."""
    for _ in range(count):
        await asyncio.sleep(0)


@in_loop
async def test_a_few_go_on_at_a_time() -> None:
    """So that the first file is sent before the last one is begun; the next one that comes goes at once again."""
    waiting = Waiting(3 * AT_ONCE)
    for passed in range(1, 4):
        await rounds(ROUNDS)
        assert waiting.done == list(range(passed * AT_ONCE))
    for task in waiting.tasks:
        await task
    await rounds(3 * ROUNDS)
    others = [asyncio.create_task(waiting.turns.take()) for _ in range(AT_ONCE)]
    await asyncio.sleep(0)
    assert all(other.done() for other in others)


@in_loop
async def test_more_go_on_where_many_wait() -> None:
    """Their number bounds the wait of the last."""
    waiting = Waiting(AT_ONCE + 2 * MANY)
    await rounds(2 * ROUNDS)
    assert len(waiting.done) == 4 * AT_ONCE


@in_loop
async def test_who_waits_no_longer_takes_no_turn() -> None:
    waiting = Waiting(3 * AT_ONCE)
    await rounds(ROUNDS)
    for task in waiting.tasks[AT_ONCE : 2 * AT_ONCE]:
        task.cancel()
    await rounds(ROUNDS)
    assert waiting.done == [*range(AT_ONCE), *range(2 * AT_ONCE, 3 * AT_ONCE)]
