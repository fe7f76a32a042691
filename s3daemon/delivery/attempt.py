"""One attempt to store one transfer: open the file, look for the object, send it, check that it was not overwritten.

An upload over a connection that is far slower than others is moved: it is sent again at once, in the same attempt.

An attempt whose outcome is unknown has two consequences. The same transfer looks for its object before it sends again:
at the store in use, which after a reload may be another one, and hold a replica. And the next transfer to that
destination of that store looks for its own after it was stored: a body that arrives late could have overwritten it. So
does the same transfer when its file has changed since, for the body was another one.

A transfer that an earlier process has sent is looked for even if its file has changed since: its client may have been
told that it is stored, and have put other content there, for another destination perhaps. What the store then has is
what was accepted, for an attempt that sees the file change withholds its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from s3daemon.clock import Clock
from s3daemon.config.settings import Settings, SettingsHolder
from s3daemon.delivery.schedule import QueuedTransfer
from s3daemon.errors import AttemptError, Code, FileError, SpoolError
from s3daemon.model.files.source import Source, open_file
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.network.uploads.progress import Progress
from s3daemon.s3.multipart import expected_etag
from s3daemon.s3.store import LookupResult, Store, Stored
from s3daemon.spool.spool import Spool

_log = logging.getLogger(__name__)

#: How long the body of an attempt without an answer may still arrive: a proxy or a server's queue may hold it so long.
LATE_ARRIVAL_S = 900.0
#: The number of look-ups in a row that may be refused; then the file is sent, though its object may be there.
LOOKUPS_MAX = 3
#: After a reset, what the store has of a body is stored within this time, or never; seconds. Then it is looked up.
SETTLE_S = 0.5


async def open_allowed(path: str, settings: Settings, opener: Callable[..., Source]) -> Source:
    """Open a file if these settings allow that it is sent, at acceptance and before each attempt; as `open_file`."""
    return await open_file(path, settings.allowed_roots, settings.private_paths(), settings.stall_timeout_s, opener)


async def _save_if_possible(change: Awaitable[None]) -> None:
    """Wait until the spool has a change; a full disk delays only new transfers: it is written when that is possible."""
    with contextlib.suppress(SpoolError):
        await change


class _Content(NamedTuple):
    """What an attempt sends: equal ones may overwrite each other.

    Args:
        transfer_id: the attempt's.
        file_state: of the file that was sent.
    """

    transfer_id: str
    file_state: FileState

    @classmethod
    def of(cls, transfer: Transfer) -> _Content:
        """Return what an attempt of `transfer` sends now."""
        return cls(transfer.id, transfer.file_state)


class Attempts:
    """Carries out attempts.

    Args:
        settings: limits and roots.
        spool: gets notice before an attempt starts.
        store: gives the store in use; a reload may replace it. An attempt ends at the store where it started.
        opener: `Source.open`, or a fake of it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: SettingsHolder,
        spool: Spool,
        store: Callable[[], Store],
        opener: Callable[..., Source] = Source.open,
        clock: Clock = time.monotonic,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._store = store
        self._opener = opener
        self._clock = clock
        #: By URL of the store and destination, in order of time: what attempts of unknown outcome sent and may still
        #: arrive, with the monotonic seconds from which that is ruled out.
        self._late_arrivals: dict[tuple[str, Destination], dict[_Content, float]] = {}

    async def make(self, queued: QueuedTransfer, progress: Progress) -> Stored:
        """Make an attempt.

        Args:
            queued: the transfer; its state keeps what the next attempt must know.
            progress: counts the bytes.

        Raises:
            AttemptError: it failed.
            FileError: the file cannot be sent now.
        """
        queued.attempts += 1
        store, moved_before = self._store(), queued.moved
        queued.endpoint = store.url
        while True:
            try:
                return await self._make(queued, store, progress)
            except AttemptError as exc:
                if exc.ambiguous:
                    self._expect_late_arrival(queued, store)
                if exc.code != Code.SLOW_CONNECTION:
                    raise
                if exc.ambiguous:
                    await asyncio.sleep(SETTLE_S)
            except FileError:
                raise
            except asyncio.CancelledError:  # it was dropped, or a newer one was stored
                self._expect_late_arrival(queued, store)
                raise
            except Exception as exc:
                _log.exception("a bug in an attempt of %s", queued.transfer.id)
                self._expect_late_arrival(queued, store)
                raise AttemptError(Code.INTERNAL, f"a bug: {type(exc).__name__}", ambiguous=True) from exc
            finally:
                queued.moved = moved_before + progress.moves

    async def _make(self, queued: QueuedTransfer, store: Store, progress: Progress) -> Stored:
        def note_sent(etag: str) -> None:
            queued.sent_etag = etag

        try:
            source = queued.source or await open_allowed(queued.transfer.file, self._settings.current, self._opener)
        except FileError:
            if (found := await self._find(queued, store, progress)) is not None:
                return found  # it was stored, and its owner has removed the file since
            raise
        queued.source = None
        try:
            has_changed = source.state != queued.transfer.file_state
            if queued.sent_before or not has_changed:
                known = None if has_changed else source
                if (found := await self._find(queued, store, progress, known, can_send=True)) is not None:
                    return found
            if has_changed:
                queued.note_change(source.state)
            # The spool may not say what is sent now: that a request which joined noted a change may not be saved yet.
            if queued.file_changed or queued.sent_etag or not queued.attempt_started:
                await _save_if_possible(self._spool.start_attempt(queued.transfer, file_changed=queued.file_changed))
                queued.attempt_started = True
            queued.sent_before = False
            stored = await store.put(
                queued.transfer,
                source,
                self._spool.open_uploads,
                queued.failed_addresses,
                progress,
                on_sent=note_sent,
            )
        finally:
            source.close()
        await self._check_not_overwritten(queued, store)
        return stored

    async def _find(
        self,
        queued: QueuedTransfer,
        store: Store,
        progress: Progress,
        source: Source | None = None,
        *,
        can_send: bool = False,
    ) -> Stored | None:
        """Look for the object if an earlier attempt may have stored it.

        Args:
            queued: the transfer.
            store: where to look.
            progress: names the addresses to avoid.
            source: the open file, if it is unchanged.
            can_send: a store that refuses one look-up after the other gets the file in the end.
        """
        if not queued.outcome_unknown:
            return None
        try:
            avoided = queued.failed_addresses | progress.slow_addresses
            # A crash takes the ETag that was not saved yet; the parts were, before the object was asked for.
            expected = queued.sent_etag or expected_etag(self._spool.open_uploads.of(queued.transfer.id))
            found = await store.find(queued.transfer, avoided, expected=expected, source=source)
        except AttemptError as exc:
            is_answered = bool(exc.status) or exc.code == Code.BAD_ANSWER
            queued.lookups_refused += is_answered
            queued.is_lookup_unanswered = not is_answered
            if not can_send or queued.lookups_refused < LOOKUPS_MAX:
                raise
            found = LookupResult.FORBIDDEN
        queued.lookups_refused, queued.is_lookup_unanswered = 0, False
        return found if isinstance(found, Stored) else None

    def _expect_late_arrival(self, queued: QueuedTransfer, store: Store) -> None:
        queued.outcome_unknown = True
        key = store.url, queued.transfer.destination
        expected = self._late_arrivals.pop(key, {})
        self._late_arrivals[key] = expected | {_Content.of(queued.transfer): self._clock() + LATE_ARRIVAL_S}
        self._forget_arrivals()

    def _forget_arrivals(self) -> None:
        """Forget those that are ruled out by now, also of destinations that never come again."""
        while self._late_arrivals:
            first = next(iter(self._late_arrivals))
            if self._clock() < max(self._late_arrivals[first].values()):
                break
            del self._late_arrivals[first]

    async def _check_not_overwritten(self, queued: QueuedTransfer, store: Store) -> None:
        self._forget_arrivals()
        transfer, key = queued.transfer, (store.url, queued.transfer.destination)
        if not self._late_arrivals.get(key, {}).keys() - {_Content.of(transfer)}:
            return
        queued.outcome_unknown = True  # it is stored: if the look-up has no answer, the next attempt looks again
        found = await store.find(transfer, expected=queued.sent_etag)
        queued.outcome_unknown = False
        if found is LookupResult.NOT_FOUND:
            raise AttemptError(Code.OVERWRITTEN, "a late arrival of older content replaced the object")
        self._late_arrivals.pop(key, None)
