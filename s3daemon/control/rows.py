"""Transfers as operators see them: one row each.

    state      in flight   an attempt is running
               pending     waits for its turn, or until `next_in_s` has passed
               behind      waits for an older transfer to its destination
               held        waits, as all do, until the store takes our keys again
               failed      permanently; listed until retried, dropped, replaced by a success, or expired

While the daemon is down there are only pending and failed ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from s3daemon.control.codec import JsonObject, Key

if TYPE_CHECKING:  # commands read rows without a spool
    from s3daemon.spool.rows import Entry


@dataclass(frozen=True, slots=True)
class Row(JsonObject):
    """One transfer.

    Args:
        id: the transfer's.
        state: one of the above.
        age_s: whole seconds since it was accepted.
        attempts: started so far.
        code: of the last error, or "".
        text: of the last error, or "".
        next_in_s: seconds until the next attempt; None when no time is set for it.
        size_bytes: of the file when it was opened last.
        destination: bucket/key.
        file: its path.
        notified: a client has received its failure; `told` in JSON.
    """

    id: str
    state: str
    age_s: float
    attempts: int
    code: str
    text: str
    next_in_s: float | None
    size_bytes: int
    destination: str
    file: str
    notified: Annotated[bool, Key("told")]


def row_of(entry: Entry, state: str, *, age_s: float, next_in_s: float | None = None) -> Row:
    """Make the row of an entry of the spool.

    Args:
        entry: the transfer, as the spool has it.
        state: one of the above.
        age_s: seconds since it was accepted.
        next_in_s: seconds until its next attempt, where that is known.
    """
    transfer = entry.transfer
    return Row(
        id=transfer.id,
        state=state,
        age_s=int(age_s),
        attempts=entry.attempts,
        code=entry.code,
        text=entry.text,
        next_in_s=next_in_s,
        size_bytes=transfer.file_state.size,
        destination=str(transfer.destination),
        file=transfer.file,
        notified=entry.client_notified,
    )
