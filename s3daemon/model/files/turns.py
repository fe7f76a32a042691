"""Lets a few of those that come together go on at a time.

Otherwise the event loop takes 23 files that were sent at once through each step together, and the first body leaves as
late as the last; and while 23 images are sent, each step of a sidecar waits for a chunk of every one.
"""

from __future__ import annotations

import asyncio
from collections import deque

#: For each `MANY` that wait, `at_once` more go on, so that a large burst is accepted as fast as without turns; not all
#: of it can be sent at once anyway.
MANY = 30


class Turns:
    """Gives turns, in the order in which they are asked for, in one event loop.

    Args:
        at_once: how many go on together.
        rounds: of the event loop, until the next ones go on.
    """

    def __init__(self, at_once: int, rounds: int) -> None:
        self._at_once = at_once
        self._after = rounds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._left = 0  # turns that may still be taken in these rounds
        self._rounds = 0  # until there are new turns; 0: none was asked for lately
        self._is_used = False  # a turn was asked for in these rounds, or is waited for

    async def take(self) -> None:
        """Wait for a turn."""
        loop = asyncio.get_running_loop()
        if not self._rounds:
            self._begin(loop)
        self._is_used = True
        if self._left:
            self._left -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left = self._at_once * (1 + len(self._waiting) // MANY)
        while self._left and self._waiting:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._left -= 1
        self._rounds, self._is_used = self._after, bool(self._waiting)
        loop.call_soon(self._pass_round, loop)

    def _pass_round(self, loop: asyncio.AbstractEventLoop) -> None:
        self._rounds -= 1
        if self._rounds:
            loop.call_soon(self._pass_round, loop)
        elif self._is_used:
            self._begin(loop)
