"""Questions about transfers that were accepted earlier: whether all files of a tag, or one transfer, are stored.

A question is answered when the last transfer that it is about has ended, or its time is up. It changes nothing and may
be asked again. So a process that stops leaves no question to the next one: the client has to ask again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from s3daemon.clock import Clock
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import Code
from s3daemon.ingress.protocol import Question
from s3daemon.model.exposure import Exposures, Name
from s3daemon.model.record import TransferRecord
from s3daemon.model.reply import Outcome, Reply
from s3daemon.spool.exposures import ENDED_KEPT
from s3daemon.units import plural

#: A transfer that the disk refuses after its attempt began ends without a record: noticed within this time, seconds.
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class TagCounts:
    """What became of the files that were requested under a tag.

    Args:
        tag: the tag.
        stored, pending, failed, refused: numbers of files.
        reason: why the first file failed or was refused, one line with its code; empty when none was.
        expect: the number of files that there should be; None when that is not known.
    """

    tag: str
    stored: int = 0
    pending: int = 0
    failed: int = 0
    refused: int = 0
    reason: str = ""
    expect: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether no file is pending, and as many as expected are stored, failed or refused."""
        return not self.pending and self._ended >= (self.expect or 0)

    @property
    def _ended(self) -> int:
        return self.stored + self.failed + self.refused

    def reply(self, why: str = "") -> Reply:
        """Return the answer with the counts: `stored` if all are, `failed` if it is over otherwise, else `deferred`.

        Args:
            why: a pending file is not stored yet; empty when none is pending.
        """
        counts = {"stored": self.stored, "pending": self.pending, "failed": self.failed, "refused": self.refused}
        if self.is_over and self.stored and not (self.failed or self.refused):
            return Reply(Outcome.STORED, counts=counts)
        text = ", ".join(f"{count} {word}" for word, count in counts.items())
        text = f"{self.tag}: {text}" + ("" if self.expect is None else f" of {self.expect}")
        text += f"; the first: {self.reason}" if self.reason else ""
        if self.is_over and not self._ended:
            text += "; nothing was requested under this tag, or it is no longer among the last exposures"
            return Reply(Outcome.FAILED, code=Code.UNKNOWN_TRANSFER, text=text, counts=counts)
        if self.is_over:
            return Reply(Outcome.FAILED, code=Code.INCOMPLETE, text=text, counts=counts)
        text += f"; pending: {why}" if why else ""
        text += "; the time is up"
        if (unrequested := (self.expect or 0) - self._ended - self.pending) > 0:
            text += f" with {plural(unrequested, 'file')} not requested: request the rest, then ask again"
        else:
            text += ": ask again"
        return Reply(Outcome.DEFERRED, code=Code.DEFERRED, text=text, counts=counts)


class Questions:
    """Answers questions. Belongs to the running event loop.

    Args:
        exposures: the counts of each tag; their `on_change` is set here.
        find: returns the transfer of an id while it is pending, else None; `Schedule.get`.
        why: returns why a transfer is not stored yet; `Waiters.why`.
        ended: the ids and replies of transfers that ended before the start.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        exposures: Exposures,
        find: Callable[[str], QueuedTransfer | None],
        why: Callable[[QueuedTransfer], str],
        ended: Iterable[tuple[str, Reply]] = (),
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._exposures = exposures
        self._find = find
        self._why = why
        self._ended = dict(ended)
        self._clock = clock
        self._waiting: dict[Name | str, set[asyncio.Future[None]]] = {}
        self._leaving = False
        exposures.on_change = self._changed

    def see(self, record: TransferRecord) -> None:
        """Note a transfer that is over."""
        code, _, text = record.error.partition(": ")
        outcome = Outcome.STORED if record.stored else Outcome.FAILED
        self._ended[record.transfer_id] = Reply(outcome, record.transfer_id, code, text)
        if len(self._ended) > ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
        self._changed(record.transfer_id)

    def leave(self) -> None:
        """Stop waiting, in all questions: the service stops."""
        self._leaving = True
        for key in list(self._waiting):
            self._changed(key)

    async def about_tag(self, question: Question) -> Reply | None:
        """Return the answer when all files of a tag are over, or its time is up; None when the service stops before."""
        await self._wait((True, question.tag), lambda: self._count(question).is_over, question.timeout_s)
        count = self._count(question)
        if self._leaving and not count.is_over:
            return None
        one = self._exposures.of_tag(question.tag)
        pending = [found for id_ in (one.pending if one else ()) if (found := self._find(id_))]
        oldest = min(pending, key=lambda queued: queued.seq, default=None)
        return count.reply(self._why(oldest) if oldest else "")

    async def about_transfer(self, id_: str, timeout_s: float) -> Reply | None:
        """Return how a transfer ended, or `deferred` after `timeout_s`; None when the service stops before."""
        await self._wait(id_, lambda: self._find(id_) is None, timeout_s)
        if queued := self._find(id_):  # also after a failure, which an operator has tried again since
            text = f"kept, and not stored yet; {self._why(queued)}"
            return None if self._leaving else Reply(Outcome.DEFERRED, id_, Code.DEFERRED, text)
        if reply := self._ended.get(id_):
            return reply
        text = "no transfer with that id is known here: it ended long ago, or never existed; see journalctl"
        return Reply(Outcome.FAILED, "", Code.UNKNOWN_TRANSFER, f"{text} S3DAEMON_TRANSFER_ID={id_}")

    def _count(self, question: Question) -> TagCounts:
        tag, expect = question.tag, question.expect
        one = self._exposures.of_tag(tag)
        if one is None:
            return TagCounts(tag, expect=expect)
        return TagCounts(tag, one.stored, len(one.pending), one.failed, one.refused, one.reason, expect)

    async def _wait(self, key: Name | str, is_over: Callable[[], bool], timeout_s: float) -> None:
        until = self._clock() + timeout_s
        while not self._leaving and not is_over() and (left := until - self._clock()) > 0:
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(key, set())
            waiting.add(change)
            try:
                await asyncio.wait([change], timeout=min(left, _LOOK_EVERY_S))
            finally:
                waiting.discard(change)
                if not waiting:
                    self._waiting.pop(key, None)

    def _changed(self, key: Name | str) -> None:
        for change in self._waiting.get(key, ()):
            if not change.done():
                change.set_result(None)
