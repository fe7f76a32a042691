"""The daemon's status as tables for people, before they are drawn: no I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from s3daemon.commands.table import Bar, Cell, Column, Table
from s3daemon.control.exposures import ExposureStatus
from s3daemon.control.rows import Row
from s3daemon.control.status import AttemptStatus, RateLimit, Receiver, Status
from s3daemon.errors import one_line
from s3daemon.units import rate, recent, size, span

_INDENT = 2
_LEAST_BAR = 7
#: Tenths of a second tell up to here; beyond, an exposure is lost anyway.
_TENTHS_BELOW_S = 100
#: What the daemon's line begins with while its state is `ok`, where not with counts.
_COMPLAINTS = ("UNREACHABLE", "reload REFUSED")
_VERDICTS = {"in time": "cyan", "late": "orange3", "incomplete": "bold red", "lost": "bold red"}


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is shown.

    Args:
        head: `OK`, or what is wrong in a word or two: the state in capitals, or what the line begins with; `DOWN`
            without a daemon.
        about: which daemon this is.
        line: the line that `systemctl status` shows, without the head where it begins with that.
        tables: the ones that have rows.
    """

    head: str
    about: str
    line: str
    tables: Sequence[Table] = ()


def view_of(status: Status, zone: tzinfo | None = None) -> View:
    """Make tables of a status.

    Args:
        status: what the daemon answered.
        zone: for points in time; None for the system's.
    """
    about = one_line(f"s3daemon {status.version} on {status.host}, to {status.endpoint}{_limit(status.limit)}")
    line, state = one_line(status.line), status.state.upper()
    head = next((words for words in _COMPLAINTS if line.startswith(f"{words}, ")), state)
    return View(head, about, line.removeprefix(f"{head}, "), [table for table in _tables(status, zone) if table.rows])


def _limit(limit: RateLimit) -> str:
    """Say what uploads may send together, and how that is known."""
    known = "as found before the restart" if limit.origin == "kept" else limit.origin
    return f", at {rate(limit.rate_bps)} ({known})" if limit.rate_bps else ""


def _tables(status: Status, zone: tzinfo | None) -> Iterator[Table]:
    yield _uploads(status.uploads)
    yield _transfers(_title("WAITING", status.waiting, status.pending), status.waiting, "LAST ERROR")
    yield _transfers(_title("FAILED", status.failures, status.failed), status.failures[::-1], "ERROR")
    yield _receivers(status.receivers)
    yield _exposures(status, zone)
    yield _incomplete([one for one in status.exposures if one.reason])


def _title(title: str, shown: Sequence[object], count: int) -> str:
    return title if len(shown) >= count else f"{title}, {len(shown)} of {count}; s3daemon queue has all"


def _number(name: str) -> Column:
    return Column(name, align="right", optional=True)


def _uploads(uploads: Sequence[AttemptStatus]) -> Table:
    columns = (
        Column("", least=_LEAST_BAR, style=lambda _: "cyan"),
        *map(_number, ("DONE", "OF", "RATE", "AVERAGE", "FOR", "ATTEMPT")),
        Column("RECEIVER", optional=True),
        Column("DESTINATION", place="fold"),
    )
    return Table(columns, [_upload(upload) for upload in uploads], "IN FLIGHT", _INDENT)


def _upload(upload: AttemptStatus) -> tuple[Cell, ...]:
    fraction = upload.acked_bytes / upload.size_bytes if upload.size_bytes else 0.0
    return (
        Bar(fraction),
        f"{100 * fraction:.0f}%",
        size(upload.size_bytes),
        f"{size(upload.recent_bytes_per_s)}/s",
        f"{size(upload.rate_bytes_per_s)}/s",
        span(upload.seconds),
        str(upload.attempt),
        ", ".join(upload.receivers),
        f"{upload.bucket}/{upload.key}",
    )


def _transfers(title: str, rows: Sequence[Row], error: str) -> Table:
    """Make the table of those that wait, or of those that failed, which need no column for that."""
    columns = (
        _number("AGE"),
        Column("STATE", optional=True),
        *map(_number, ("ATTEMPTS", "NEXT", "SIZE")),
        Column("DESTINATION", place="fold"),
        _error_column(error),
    )
    cells = [
        (
            span(row.age_s),
            "" if row.state == "failed" else row.state,
            str(row.attempts),
            "" if row.next_in_s is None else span(row.next_in_s),
            size(row.size_bytes),
            row.destination,
            f"{row.code}: {row.text}" if row.code else "",
        )
        for row in rows
    ]
    return Table(columns, cells, title, _INDENT)


def _error_column(name: str) -> Column:
    return Column(name, place="fold", optional=True)


def _receivers(receivers: Sequence[Receiver]) -> Table:
    columns = (
        _number("CONNECTIONS"),
        _number("UPLOADS"),
        Column("ADDRESS"),
        Column("STATE", place="fold", optional=True),
    )
    rows = [(str(one.connections), str(one.uploads), one.address, _limited(one)) for one in receivers]
    return Table(columns, rows, "RECEIVERS", _INDENT)


def _limited(receiver: Receiver) -> str:
    if receiver.limited_s is None:
        return ""
    since = f"for {span(receiver.limited_s)}"
    if receiver.next_probe_s is None:
        return f"on trial until an upload is stored there, limited {since}: {receiver.reason}"
    return f"temporarily disabled {since}, asked again in {span(receiver.next_probe_s)}: {receiver.reason}"


def _exposures(status: Status, zone: tzinfo | None) -> Table:
    columns = (
        Column("", least=_LEAST_BAR, style=_bar_style),
        _number("LAST OBJECT"),
        Column("", optional=True, style=_verdict_style),
        Column("STORED", align="right", place="drop", optional=True),
        _number("PENDING"),
        _number("MISSING"),
        Column("FIRST REQUEST", place="drop"),
        Column("NAME", place="fold"),
    )
    title = f"LAST EXPOSURES, late after {status.late_s:g} s, lost after {status.lost_s:g} s"
    rows = [_exposure(exposure, status, zone) for exposure in status.exposures]
    return Table(columns, rows, title, _INDENT)


def _exposure(exposure: ExposureStatus, status: Status, zone: tzinfo | None) -> tuple[Cell, ...]:
    return (
        Bar(
            1.0 if exposure.seconds is None else exposure.seconds / status.lost_s, beyond=exposure.verdict != "in time"
        ),
        _last_object(exposure.seconds),
        exposure.verdict + (", pending" if exposure.pending else ""),
        *(
            str(count) if count else ""
            for count in (exposure.stored, exposure.pending, exposure.failed + exposure.refused)
        ),
        recent(exposure.first_usec, status.now_usec, zone),
        exposure.name,
    )


def _incomplete(exposures: Sequence[ExposureStatus]) -> Table:
    columns = (*map(_number, ("FAILED", "REFUSED")), Column("NAME", place="fold"), _error_column("FIRST REASON"))
    rows = [
        (*(str(count) if count else "" for count in (one.failed, one.refused)), one.name, one.reason)
        for one in exposures
    ]
    return Table(columns, rows, "INCOMPLETE EXPOSURES", _INDENT)


def _last_object(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return f"{seconds:.1f} s" if seconds < _TENTHS_BELOW_S else span(seconds)


def _bar_style(cell: Cell) -> str:
    return "orange3" if isinstance(cell, Bar) and cell.beyond else "cyan"


def _verdict_style(cell: Cell) -> str:
    return _VERDICTS.get(cell.partition(",")[0], "") if isinstance(cell, str) else ""
