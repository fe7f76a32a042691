"""The daemon's answer to `status` as tables for people, before anybody draws them: pure.

What comes from outside (names, errors) is made fit for one line here, so that no control character reaches a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.units import size, span

_NAME_CHARS = 400


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar.

    Args:
        share: filled, 0 to 1.
        beyond: it stands for what is past its limit.
    """

    share: float
    beyond: bool = False


Cell = str | Bar


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        title: what it shows.
        head: names of the columns; with a `>` before those that are aligned at the right.
        rows: a cell for each column.
        elastic: the column that gives way where there is little room; its cells' ends tell most.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    elastic: int


@dataclass(frozen=True, slots=True)
class View:
    """All there is to show.

    Args:
        state: `ok`, or what is wrong in a word; as `Operations.state`.
        about: which daemon this is.
        status: the line that `systemctl status` shows, without the state that it begins with.
        tables: those that have rows.
    """

    state: str
    about: str
    status: str
    tables: Sequence[Table]


def view_of(answer: Mapping[str, Any], zone: tzinfo | None = None) -> View:
    """Make tables of the answer.

    Args:
        answer: of the daemon.
        zone: for points in time; None for the system's.

    Raises:
        S3daemonError: `NoAnswer`, it is not what this version's daemon says.
    """
    try:
        about = f"s3daemon {answer['version']} on {answer['host']}, to {answer['endpoint']}"
        tables = [_fitted(table) for table in _tables(answer, zone) if table.rows]
        state, status = str(answer["state"]), one_line(str(answer["status"]))
        return View(state, one_line(about), status.removeprefix(f"{state.upper()}, "), tables)
    except (KeyError, TypeError, ValueError) as exc:
        raise S3daemonError(Code.NO_ANSWER, "the daemon's answer is of another version: restart the service") from exc


def _tables(answer: Mapping[str, Any], zone: tzinfo | None) -> Iterator[Table]:
    head = ["", ">DONE", ">OF", ">RATE", ">AVERAGE", ">FOR", ">ATTEMPT", "RECEIVER", "DESTINATION"]
    yield Table("IN FLIGHT", head, [_upload(upload) for upload in answer["uploads"]], 8)
    waiting, all_waiting = answer["waiting"], answer["pending"]
    head = [">AGE", "STATE", ">ATTEMPTS", ">NEXT", ">SIZE", "LAST ERROR", "DESTINATION"]
    yield Table(_some("WAITING", waiting, all_waiting), head, [_waiting(row) for row in waiting], 6)
    head = [">AGE", ">ATTEMPTS", ">SIZE", "ERROR", "DESTINATION"]
    title = _some("FAILED", answer["failures"], answer["failed"])
    yield Table(title, head, [_failure(row) for row in reversed(answer["failures"])], 4)
    yield _receivers(answer["receivers"])
    head = ["", ">LAST OBJECT", "", ">STORED", ">PENDING", ">FAILED", "FIRST REQUEST", "NAME"]
    title = f"LAST EXPOSURES, late after {answer['late_s']:g} s, lost after {answer['lost_s']:g} s"
    rows = [_exposure(exposure, answer["lost_s"], zone) for exposure in answer["exposures"]]
    yield Table(title, head, rows, 7)


def _fitted(table: Table) -> Table:
    """Without the columns in which nothing stands."""
    kept = [at for at in range(len(table.head)) if at == table.elastic or any(row[at] for row in table.rows)]
    rows = [[row[at] for at in kept] for row in table.rows]
    return Table(table.title, [table.head[at] for at in kept], rows, kept.index(table.elastic))


def _some(title: str, shown: Sequence[object], count: int) -> str:
    return title if len(shown) >= count else f"{title}, {len(shown)} of {count}; s3daemon queue has all"


def _name(text: object) -> str:
    return one_line(str(text), _NAME_CHARS)


def _upload(upload: Mapping[str, Any]) -> list[Cell]:
    whole, acked = upload["size_bytes"], upload["acked_bytes"]
    share = acked / whole if whole else 0.0
    return [
        Bar(share),
        f"{100 * share:.0f}%",
        size(whole),
        f"{size(upload['recent_bytes_per_s'])}/s",
        f"{size(upload['rate_bytes_per_s'])}/s",
        span(upload["seconds"]),
        str(upload["attempt"]),
        _name(", ".join(upload["receivers"])),
        _name(f"{upload['bucket']}/{upload['key']}"),
    ]


def _error(row: Mapping[str, Any]) -> str:
    return one_line(f"{row['code']}: {row['text']}", 60) if row["code"] else ""


def _waiting(row: Mapping[str, Any]) -> list[Cell]:
    following = "" if row["next_in_s"] is None else span(row["next_in_s"])
    cells = [span(row["age_s"]), row["state"], str(row["attempts"]), following, size(row["size_bytes"])]
    return [*cells, _error(row), _name(row["destination"])]


def _failure(row: Mapping[str, Any]) -> list[Cell]:
    cells = [span(row["age_s"]), str(row["attempts"]), size(row["size_bytes"])]
    return [*cells, _error(row), _name(row["destination"])]


def _receivers(receivers: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [str(row["connections"]), str(row["uploads"]), "left aside" if row["aside"] else "", _name(row["address"])]
        for row in receivers
    ]
    return Table("RECEIVERS", [">CONNECTIONS", ">UPLOADS", "", "ADDRESS"], rows, 3)


def _exposure(exposure: Mapping[str, Any], lost_s: float, zone: tzinfo | None) -> list[Cell]:
    seconds, verdict = exposure["seconds"], exposure["verdict"]
    share = 1.0 if seconds is None else min(1.0, seconds / lost_s)
    return [
        Bar(share, beyond=verdict != "in time"),
        "never" if seconds is None else f"{seconds:.1f} s" if seconds < 100 else span(seconds),  # noqa: PLR2004
        verdict + (", pending" if exposure["pending"] else ""),
        *(str(exposure[count]) if exposure[count] else "" for count in ("stored", "pending", "failed")),
        datetime.fromtimestamp(exposure["first_usec"] / 1e6, zone).strftime("%H:%M:%S"),
        _name(exposure["name"]),
    ]
