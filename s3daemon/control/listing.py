"""Transfers as an operator sees them: one row each, in a table or as JSON.

    state      in flight   an attempt is running
               pending     waits for its turn, or until `next_in_s` has passed
               behind      waits for an older transfer to its destination
               held        waits, as all do, until the store takes our keys again
               failed      for good; listed until retried, dropped, overtaken by a success, or old

With no daemon up there are only pending and failed ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.spool.rows import Entry
from s3daemon.units import size, span

_HEAD = ("ID", "STATE", "AGE", "ATTEMPTS", "NEXT", "SIZE", "DESTINATION", "LAST ERROR", "FILE")
_NUMBERS = {2, 3, 4, 5}
#: The columns that give way on a narrow terminal, and down to what: the file first, its name being mostly the key's.
_GIVE_WAY = ((8, 12), (7, 24), (6, 24), (8, 0), (7, 6), (6, 12))
_ERROR = 7
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Row:
    """One transfer as operators see it.

    Args:
        id: the transfer's.
        state: one of the above.
        age_s: seconds since it was accepted, by the wall clock.
        attempts: ended ones.
        code: of the last error, or "".
        text: of the last error, or "".
        next_in_s: seconds to the next attempt; None when there is no time for it.
        size_bytes: of the file when it was accepted.
        destination: bucket/key.
        file: its path.
        told: its client was told how it ended.
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
    told: bool

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {name: getattr(self, name) for name in _TYPES}

    @classmethod
    def from_dict(cls, members: object) -> Row:
        """Read back what `as_dict` gave; members of a later version are passed over.

        Raises:
            S3daemonError: `NoAnswer`, it is no such thing.
        """
        values: list[Any] = [members.get(name, _ABSENT) for name in _TYPES] if isinstance(members, dict) else [_ABSENT]
        if not all(map(isinstance, values, _TYPES.values())):
            raise S3daemonError(Code.NO_ANSWER, "the daemon's answer is of another version: restart the service")
        return cls(*values)


_NUMBER = (int, float)
_TYPES: Mapping[str, Any] = {
    "id": str,
    "state": str,
    "age_s": _NUMBER,
    "attempts": int,
    "code": str,
    "text": str,
    "next_in_s": (*_NUMBER, type(None)),
    "size_bytes": int,
    "destination": str,
    "file": str,
    "told": bool,
}


def row(entry: Entry, state: str, *, now_usec: int, next_in_s: float | None = None) -> Row:
    """The row of an entry of the spool.

    Args:
        entry: it.
        state: one of the above.
        now_usec: wall clock, microseconds since the epoch.
        next_in_s: seconds to its next attempt, where that is known.
    """
    transfer = entry.transfer
    age_s = max(0, now_usec - transfer.accepted_usec) // 1_000_000
    return Row(
        transfer.id, state, age_s, entry.attempts, entry.code, entry.text, next_in_s, transfer.seen.size,
        str(transfer.destination), transfer.file, entry.client_notified,
    )  # fmt: skip


def table(rows: Sequence[Row], width: int | None) -> Iterator[str]:
    """Lines for people, aligned; the last one counts.

    Args:
        rows: what to show.
        width: of the terminal; None leaves every column as wide as it needs.
    """
    cells = [_HEAD, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for column, least in _GIVE_WAY if width else ():
        excess = sum(widths) + 2 * len(widths) - 2 - (width or 0)
        widths[column] = max(min(widths[column], least), widths[column] - max(0, excess))
    shape = "  ".join(f"{{:{'>' if column in _NUMBERS else '<'}{w}}}" for column, w in enumerate(widths))
    cut = [column for column, least in _GIVE_WAY[:3] if widths[column] < max(len(cell[column]) for cell in cells)]
    for cell in cells:
        shown = list(cell)
        for column in cut:
            shown[column] = _cut(shown[column], widths[column], tail=column != _ERROR)
        yield shape.format(*shown).rstrip()[:width]
    yield total(rows)


def _cells(row: Row) -> tuple[str, ...]:
    error = f"{row.code}: {row.text}" if row.code else ""
    return (
        row.id,
        row.state if row.state != "failed" or row.told else "failed, client not notified",
        span(row.age_s),
        str(row.attempts),
        "" if row.next_in_s is None else span(row.next_in_s),
        size(row.size_bytes),
        *(text if text.isprintable() else one_line(text, 8192) for text in (row.destination, error, row.file)),
    )


def _cut(text: str, width: int, *, tail: bool) -> str:
    if len(text) <= width:
        return text
    if not width:
        return ""
    return "…" + text[len(text) - width + 1 :] if tail else text[: width - 1] + "…"


def total(rows: Sequence[Row]) -> str:
    """One line that counts."""
    if not rows:
        return "nothing in the queue"
    states = Counter(row.state for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    oldest = span(max(row.age_s for row in rows))
    return f"{len(rows)} transfers, {size(sum(row.size_bytes for row in rows))}: {counts}; the oldest {oldest} old"
