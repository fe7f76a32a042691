"""Find out whether the access keys are at fault when the store refuses an attempt.

One refusal may concern its destination alone: a proxy that normalizes paths breaks the signatures of some object keys
only, and a denial usually concerns the bucket. So a *neutral request*, which names no destination, is sent with the
same access keys. Its answer, together with what these keys were accepted for before, decides
(`model.verdict.keys_after`).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError, Code
from s3daemon.model.verdict import CLIENT_STATUSES, Keys, keys_after

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

Ask = Callable[[], Awaitable[None]]
"""Sends the neutral request, which is signed and names no destination; AttemptError: it is refused or unanswered."""

#: A neutral request after a success that had no clear answer is repeated, after a later success, no sooner than this,
#: seconds.
LEARN_AGAIN_S = 60.0


class KeyEvidence:
    """Evidence on whether the access keys in force are valid. Belongs to the running event loop.

    Args:
        ask: sends the neutral request.
        clock: monotonic seconds.

    Attributes:
        tasks: those in which neutral requests are sent; they use the store.
    """

    def __init__(self, ask: Ask, clock: Clock) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._ask = ask
        self._clock = clock
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[AttemptError | None] | None = None  # has not been sent yet
        self._in_force_since = -math.inf
        self._accepted_since = -math.inf  # the neutral request; inf while it is refused
        self._ever_accepted = False
        self._ever_stored = False
        self._doubtful: dict[str, float] = {}
        self._learn_at = -math.inf

    def stored(self, started_at: float) -> None:
        """Note that an attempt that started at `started_at` (monotonic seconds) has stored its object.

        After the first one the neutral request is sent, and every `LEARN_AGAIN_S` until its answer is clear. If valid
        keys are allowed that request, a later denial of it means that the keys are no longer valid. It is the only sign
        with Ceph's `rgw_s3_auth_use_sts`, which denies every request with keys that were replaced.
        """
        if started_at >= self._in_force_since:
            if self._clock() >= self._learn_at:
                self._learn_at = math.inf
                self._start(self._learn())
            self._ever_stored = True
            self._doubtful = {id_: at for id_, at in self._doubtful.items() if at > started_at}

    def reload(self) -> set[str]:
        """Forget what is known: other keys may be in force.

        Returns:
            the ids of transfers that failed by a denial since the last success; they should be tried again.
        """
        doubtful, self._doubtful = set(self._doubtful), {}
        self._in_force_since = self._clock()
        self._ever_accepted = self._ever_stored = False
        self._accepted_since = self._learn_at = -math.inf
        return doubtful

    def denied(self, transfer_id: str) -> None:
        """Note that a transfer has failed by a denial although the neutral request did not confirm the keys."""
        self._doubtful[transfer_id] = self._clock()

    async def examine(self, refusal: AttemptError, started_at: float) -> Keys:
        """Send the neutral request, and return what follows for the keys.

        One that is accepted, where others were refused, tells nothing of an attempt from before: the store may have
        denied everything until now.

        Args:
            refusal: the attempt's error.
            started_at: when the attempt started, monotonic seconds.
        """
        asked_at = self._clock()
        neutral = None if started_at < self._in_force_since else await self.ask()
        return keys_after(
            refusal,
            neutral,
            ever_accepted=self._ever_accepted,
            ever_stored=self._ever_stored,
            replaced=min(started_at, asked_at) < self._in_force_since
            or (neutral is None and started_at < self._accepted_since),
        )

    def _start(self, work: Coroutine[object, object, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _learn(self) -> None:
        since = self._in_force_since
        error = await self.ask()
        if since == self._in_force_since and error is not None and error.status not in CLIENT_STATUSES:
            self._learn_at = self._clock() + LEARN_AGAIN_S

    async def ask(self) -> AttemptError | None:
        """Send the neutral request, and return its error; None when it is accepted. Callers that wait share one."""
        if self._next is None:
            self._next = self._start(self._send())
        return await asyncio.shield(self._next)

    async def _send(self) -> AttemptError | None:
        async with self._lock:
            self._next = None
            since = self._in_force_since
            try:
                await self._ask()
                error = None
            except AttemptError as exc:
                error = exc
            except Exception as exc:
                _log.exception("a bug in the neutral request")
                error = AttemptError(Code.INTERNAL, f"a bug: {type(exc).__name__}")
            if since == self._in_force_since:
                self._note(error)
        return error

    def _note(self, error: AttemptError | None) -> None:
        """Note how a neutral request was answered that was sent with the keys in force."""
        if error is None:
            self._ever_accepted = True
            self._accepted_since = min(self._accepted_since, self._clock())
        elif error.status in CLIENT_STATUSES:
            self._accepted_since = math.inf
