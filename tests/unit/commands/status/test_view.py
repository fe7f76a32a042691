"""The status as tables: everything that an operator asks for is in them, empty columns are not, and a control character
in a name reaches no terminal."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest
from lab.statuses import busy, empty, exposure, upload

from s3daemon.commands.status.view import Bar, Table, View, view_of
from s3daemon.errors import S3daemonError


def tables(answer: dict[str, Any]) -> dict[str, Table]:
    return {table.title.partition(",")[0]: table for table in view_of(answer, UTC).tables}


def column(table: Table, name: str) -> list[Any]:
    return [row[[head.removeprefix(">") for head in table.head].index(name)] for row in table.rows]


def test_a_busy_night() -> None:
    answer = busy()
    view, found = view_of(answer), tables(answer)
    assert (view.state, view.about) == ("ok", "s3daemon 1.0.0 on camera-3, to https://s3.example.org")
    assert list(found) == ["IN FLIGHT", "WAITING", "FAILED", "RECEIVERS", "LAST EXPOSURES"]
    flying = found["IN FLIGHT"]
    assert flying.rows[0][1:] == [
        "27%", "8.39 MB", "12.5 MB/s", "9.1 MB/s", "0s", "1", "192.0.2.2",
        "raw/camera/20261123/MC_O_000123/MC_O_000123_R01.fits",
    ]  # fmt: skip
    assert isinstance(bar := flying.rows[0][0], Bar)
    assert 0.26 < bar.share < 0.28
    assert column(flying, "ATTEMPT") == ["1", "1", "2", "1"]
    assert found["WAITING"].title == "WAITING, 3 of 12; s3daemon queue has all"
    assert column(found["WAITING"], "NEXT") == ["17s", "0s", "0s"]
    assert column(found["FAILED"], "DESTINATION")[0].endswith("R45.fits")
    assert [row[2] for row in found["RECEIVERS"].rows] == ["", "", "left aside"]


def test_exposures_against_their_limits() -> None:
    answer = empty() | {
        "exposures": [
            exposure(1), exposure(2, 12.3), exposure(3, 741.0), exposure(4, None, failed=46, stored=0),
            exposure(5, 1.0, pending=3),
        ]
    }  # fmt: skip
    table = tables(answer)["LAST EXPOSURES"]
    assert column(table, "LAST OBJECT") == ["2.1 s", "12.3 s", "12m21s", "never", "1.0 s"]
    assert [row[2] for row in table.rows] == ["in time", "late", "lost", "lost", "in time, pending"]
    assert [bar.beyond for bar in column(table, "")] == [False, True, True, True, False]
    assert column(table, "FAILED") == ["", "", "", "46", ""]
    assert column(table, "FIRST REQUEST")[0] == "01:43:20"


def test_what_is_empty_is_not_there() -> None:
    """No table without rows, no column without content; the one that gives way is still the same."""
    assert view_of(empty()).tables == []
    answer = empty() | {"receivers": [{"address": "192.0.2.1", "connections": 1, "uploads": 0, "aside": False}]}
    table = tables(answer)["RECEIVERS"]
    assert table.head == [">CONNECTIONS", ">UPLOADS", "ADDRESS"]
    assert table.head[table.elastic] == "ADDRESS"


def test_nothing_that_moves_the_cursor() -> None:
    uploads = [upload(1, key="\x1b]0;x\x07", receivers=["\x9b"])]
    answer = busy() | {"host": "\x1b[2J", "status": "a\nb", "uploads": uploads}
    assert texts(view_of(answer)).isprintable()


def texts(view: View) -> str:
    cells = [cell for table in view.tables for row in table.rows for cell in row if isinstance(cell, str)]
    return "".join([view.about, view.status, *cells])


@pytest.mark.parametrize("changes", [{"uploads": [{}]}, {"exposures": None}, {"late_s": "soon"}])
def test_another_versions_answer(changes: dict[str, Any]) -> None:
    with pytest.raises(S3daemonError, match="of another version"):
        view_of(empty() | changes)


def test_the_state_is_said_once() -> None:
    """Whoever draws it puts the state at the head; the daemon's line, which does so too, goes on from there."""
    view = view_of(empty() | {"state": "held", "status": "HELD, TLSRefused: no; 0 in flight"})
    assert (view.state, view.status) == ("held", "TLSRefused: no; 0 in flight")
