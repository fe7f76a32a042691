"""A fake of `s3.sender.Sender`: it records what is sent and called, and gives the answers that a test sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.sending import settings_for

from s3daemon.config.settings import Settings
from s3daemon.errors import AttemptError
from s3daemon.model.files.source import Source
from s3daemon.network.rate.pacing import Pacer
from s3daemon.s3.sender import Sender, SentBody

Answer = Mapping[str, Any] | AttemptError


@dataclass
class FakePool:
    """As many connections as there should be."""

    usable: int = 25
    limit: int = 30
    available_for_parts: int = 12
    pacer: Pacer = field(default_factory=lambda: Pacer(0))
    rtt_s: float = 0.0


@dataclass
class FakeSender(Sender):
    """Takes every body and answers every call, but for the errors that are set.

    Attributes:
        errors: raised for a part, by its number, or a single PUT, as number 0; one after the other, then none.
        etags: of a part or a PUT; by default `etag-NUMBER`.
        answers: of a call, by its operation: a mapping, an error to raise, or a function that returns one of these from
            the addresses to avoid; without one it is empty.
        hold: bodies wait for it.
        later_s: each part takes so much longer than the one before it.
        sent: number, offset and size of every body that was taken.
        called: operation and parameters of every call.
    """

    settings: Settings = field(default_factory=lambda: settings_for("http://store"))
    pool: Any = field(default_factory=FakePool)
    errors: dict[int, list[AttemptError]] = field(default_factory=dict)
    etags: dict[int, str] = field(default_factory=dict)
    answers: dict[str, Answer | Callable[[Collection[str]], Answer]] = field(default_factory=dict)
    can_look_up: bool = True
    hold: asyncio.Event | None = None
    later_s: float = 0.0
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    called: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    in_flight: int = 0
    most_at_once: int = 0

    async def send_file(
        self, operation: str, transfer_id: str, source: Source, offset: int = 0, size: int | None = None, **params: Any
    ) -> SentBody:
        number: int = params.get("PartNumber", 0)
        self.in_flight += 1
        self.most_at_once = max(self.most_at_once, self.in_flight)
        self.pool.available_for_parts -= self.in_flight > 1
        try:
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(0.001 + number * self.later_s)
            if errors := self.errors.get(number):
                raise errors.pop(0)
        finally:
            self.pool.available_for_parts += self.in_flight > 1
            self.in_flight -= 1
        length = source.state.size if size is None else size
        self.sent.append((number, offset, length))
        self.called.append((operation, params))
        return SentBody(self.etags.get(number, f"etag-{number}"), 100 * (number + 1), 1, "warm", "192.0.2.1")

    async def call(
        self,
        operation: str,
        *,
        answer_timeout_s: float | None = None,
        failed_addresses: Collection[str] = (),
        **params: object,
    ) -> Mapping[str, Any]:
        self.called.append((operation, params))
        answer = self.answers.get(operation, {})
        if callable(answer):
            answer = answer(failed_addresses)
        if isinstance(answer, AttemptError):
            raise answer
        return answer
