"""`POST /upload`: the wire's requests in a form, with the same checks, the same promise and the same wait.

    200  stored
    400  refused, nothing was accepted: the form, the file, the bucket or the user
    500  failed for good, or (nothing accepted) the spool cannot be written
    504  not stored within the wait limit, or the store is away or held: kept, still being tried

The answer is a JSON object: `code`, the status; `msg`, one line; `task`, the transfer, null when nothing was accepted.
What is not a success has `msg` in an `X-Error` header too. A connection is not kept for the next process: a client that
waits when the service stops gets its 504 with the transfer's id.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings
from s3daemon.delivery.intake import Intake, Ticket
from s3daemon.errors import RequestError, S3daemonError
from s3daemon.http.form import STATUSES, Answer, Form, parse_form, task_of
from s3daemon.ingress.peer import AccessControl
from s3daemon.model.reply import Outcome, Reply


class Uploads:
    """Answers forms.

    Args:
        settings: wait limit.
        intake: takes the requests.
        told: called with the id of a transfer whose failure a client has received.
        clock: monotonic seconds, as the uploader has them.
    """

    def __init__(
        self, settings: Settings, intake: Intake, told: Callable[[str], None], *, clock: Clock = time.monotonic
    ) -> None:
        self.settings = settings
        self.door = AccessControl()  #: lets everybody in, until the service says whom
        self._intake = intake
        self._told = told
        self._clock = clock
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """The service stops: whoever waits is told that its transfer is kept."""
        if not self._leaving.done():
            self._leaving.set_result(None)

    async def handle(self, form: Form) -> Answer:
        """Answer one form."""
        try:
            asked = parse_form(form.content_type, form.body)
            ticket = await self.door.admit(form.sock, asked, self._intake.submit)
            reply = await self._wait(ticket)
        except S3daemonError as exc:
            refused = isinstance(exc, RequestError)
            return Answer(HTTPStatus.BAD_REQUEST if refused else STATUSES[Outcome.FAILED], f"{exc.code}: {exc.text}")
        message = f"{reply.code}: {reply.text}" if reply.code else reply.outcome.value
        answer = Answer(STATUSES[reply.outcome], message, task_of(asked, ticket.queued, self._clock()))
        if not reply.id:
            return replace(answer, task=None)  # the spool refused it
        return replace(answer, taken=partial(self._told, reply.id)) if reply.outcome is Outcome.FAILED else answer

    async def _wait(self, ticket: Ticket) -> Reply:
        """The end, or `deferred` once the transfer is durable and the client waited, or the service stops."""
        events: set[asyncio.Future[Any]] = {ticket.outcome, self._leaving}
        await asyncio.wait(events, timeout=self.settings.wait_limit_s, return_when=asyncio.FIRST_COMPLETED)
        await ticket.durable
        if not ticket.outcome.done() and (reply := self._intake.deferral(ticket)):
            return reply
        return await ticket.outcome
