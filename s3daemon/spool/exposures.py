"""The tables of the last exposures in the spool's file: what has ended of each, so that it is known after a restart.

    exposure    tagged, name, first_usec, last_usec, stored, size_bytes: a row for each of the last exposures
    missing     exposure, destination, outcome, reason: a row for each file of these that failed or was refused
    counted     exposure, mark: a row for each destination that was stored, `MARKS_KEPT` at most
    ended       seq, id: a row for each of the transfers stored last, to answer questions about them

The columns are as in `model.exposure`. Pending transfers are not here: they have rows of their own. A stored transfer
is counted in the same commit that removes its row, so that no crash counts it twice or not at all.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass

from s3daemon.model.exposure import (
    KEPT,
    MARKS_KEPT,
    MISSING_KEPT,
    Exposure,
    Loss,
    Missing,
    Name,
    mark_of,
    names_of,
)
from s3daemon.model.record import TransferRecord

#: The number of ended transfers that are remembered, here the stored ones: a hundred exposures of one host.
ENDED_KEPT = 5000

#: The statements that create these tables, in `database.MIGRATIONS`.
TABLES = (
    """CREATE TABLE exposure (
        id INTEGER PRIMARY KEY, tagged INTEGER NOT NULL, name TEXT NOT NULL, first_usec INTEGER NOT NULL,
        last_usec INTEGER, stored INTEGER NOT NULL, size_bytes INTEGER NOT NULL, UNIQUE (tagged, name))""",
    """CREATE TABLE missing (
        exposure INTEGER NOT NULL, destination TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (exposure, destination))""",
    "CREATE TABLE ended (seq INTEGER PRIMARY KEY, id TEXT NOT NULL)",
)
#: Likewise, since another version.
COUNTED = """CREATE TABLE counted (
    exposure INTEGER NOT NULL, mark INTEGER NOT NULL, PRIMARY KEY (exposure, mark)) WITHOUT ROWID"""
_COLUMNS = "tagged, name, first_usec, last_usec, stored, size_bytes"
_ADD = f"INSERT OR IGNORE INTO exposure ({_COLUMNS}) VALUES (?, ?, ?, NULL, 0, 0)"  # noqa: S608 - ours
_PRUNE = (
    # A row that is being added still counts among those of which all was refused.
    """DELETE FROM exposure WHERE id IN (SELECT id FROM (
        SELECT id, row_number() OVER (
            PARTITION BY stored > 0 OR id IN (SELECT exposure FROM missing WHERE outcome <> 'refused')
            ORDER BY first_usec DESC) AS place
        FROM exposure) WHERE place > ?)""",
    "DELETE FROM missing WHERE exposure NOT IN (SELECT id FROM exposure)",
    "DELETE FROM counted WHERE exposure NOT IN (SELECT id FROM exposure)",
)
_ID = "(SELECT id FROM exposure WHERE tagged = ? AND name = ?)"
_BEGIN = "UPDATE exposure SET first_usec = min(first_usec, ?) WHERE tagged = ? AND name = ?"
_COUNT = """UPDATE exposure SET last_usec = max(coalesce(last_usec, 0), ?),
    stored = stored + max(?, stored >= ?), size_bytes = size_bytes + ? * max(?, stored >= ?)
    WHERE tagged = ? AND name = ?"""
_SET = """UPDATE exposure SET first_usec = ?, last_usec = ?, stored = ?, size_bytes = ?
    WHERE tagged = ? AND name = ?"""
_MARK = """INSERT OR IGNORE INTO counted (exposure, mark)
    SELECT id, ? FROM exposure WHERE tagged = ? AND name = ? AND stored < ?"""
_FOUND = f"DELETE FROM missing WHERE exposure = {_ID} AND destination = ?"  # noqa: S608 - ours
_LOSE = f"""INSERT INTO missing (exposure, destination, outcome, reason)
    SELECT id, ?, ?, ? FROM exposure WHERE tagged = ? AND name = ?
    AND (SELECT count(*) FROM missing WHERE exposure = {_ID} AND destination <> ?) < ?
    ON CONFLICT (exposure, destination) DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason
    """  # noqa: S608 - ours


@dataclass(frozen=True, slots=True)
class SaveLoss:
    """The change that adds a missing file."""

    loss: Loss


@dataclass(frozen=True, slots=True)
class KeptExposures:
    """The content of the tables; as a change, of another file's, which is added.

    Args:
        exposures: the last ones, without pending transfers.
        ended: ids of the transfers stored last, by seq.
    """

    exposures: tuple[Exposure, ...] = ()
    ended: tuple[tuple[int, str], ...] = ()


def count_stored(db: sqlite3.Connection, seq: int, record: TransferRecord) -> None:
    """Count a stored transfer.

    Args:
        db: in a transaction.
        seq: of the row that is removed in the same transaction; 0 when there was none.
        record: the transfer's.
    """
    for tagged, name in names_of(record.tags, record.destination):
        _add(db, (tagged, name), record.start_usec)
        mark = mark_of(record.destination)
        is_new = db.execute(_MARK, (mark, tagged, name, MARKS_KEPT)).rowcount > 0
        counts = is_new, MARKS_KEPT, record.size_bytes, is_new, MARKS_KEPT
        db.execute(_COUNT, (record.end_usec, *counts, tagged, name))
        db.execute(_FOUND, (tagged, name, record.destination))
    if seq:
        _keep_ended(db, seq, record.transfer_id)


def _keep_ended(db: sqlite3.Connection, seq: int, id_: str) -> None:
    """Add a transfer to those stored last, and remove the oldest, in a transaction."""
    db.execute("INSERT OR REPLACE INTO ended (seq, id) VALUES (?, ?)", (seq, id_))
    db.execute("DELETE FROM ended WHERE seq <= ?", (seq - ENDED_KEPT,))


def save(db: sqlite3.Connection, change: SaveLoss | KeptExposures) -> None:
    """Carry out a change, in a transaction."""
    if isinstance(change, SaveLoss):
        loss = change.loss
        for name in loss.names:
            _add(db, name, loss.at_usec)
            _lose(db, name, loss.what, loss.missing)
        return
    for one in change.exposures:
        name = (one.tagged, one.name)
        _add(db, name, one.first_usec)
        db.execute(_SET, (one.first_usec, one.last_usec, one.stored, one.size_bytes, *name))
        db.executemany(_MARK, [(mark, *name, math.inf) for mark in one.marks])
        for what, missing in one.missing.items():
            _lose(db, name, what, missing)
    for seq, id_ in change.ended:
        _keep_ended(db, seq, id_)


def _add(db: sqlite3.Connection, name: Name, first_usec: int) -> None:
    if db.execute(_ADD, (*name, first_usec)).rowcount > 0:
        db.execute(_PRUNE[0], (KEPT,))
        for statement in _PRUNE[1:]:
            db.execute(statement)
    else:
        db.execute(_BEGIN, (first_usec, *name))


def _lose(db: sqlite3.Connection, name: Name, what: str, missing: Missing) -> None:
    db.execute(_LOSE, (what, missing.outcome, missing.reason, *name, *name, what, MISSING_KEPT))


def read(db: sqlite3.Connection) -> KeptExposures:
    """Return the content of the tables.

    Raises:
        sqlite3.Error, ValueError, TypeError: they are damaged.
    """
    rows = db.execute(f"SELECT id, {_COLUMNS} FROM exposure ORDER BY first_usec")  # noqa: S608 - ours
    found = {row[0]: _from_row(row) for row in rows}
    for id_, what, *why in db.execute("SELECT exposure, destination, outcome, reason FROM missing ORDER BY rowid"):
        if id_ in found:
            found[id_].missing[str(what)] = Missing(*map(str, why))
    for id_, mark in db.execute("SELECT exposure, mark FROM counted"):
        if id_ in found:
            found[id_].marks.add(int(mark))
    ended = db.execute("SELECT seq, id FROM ended ORDER BY seq")
    return KeptExposures(tuple(found.values()), tuple((int(seq), str(id_)) for seq, id_ in ended))


def _from_row(row: tuple[int, int, str, int, int | None, int, int]) -> Exposure:
    _, tagged, name, first, last, stored, size = row
    last_usec = None if last is None else int(last)
    return Exposure(str(name), bool(tagged), int(first), last_usec, int(stored), int(size))
