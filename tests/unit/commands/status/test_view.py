"""The status as tables: everything that an operator looks for is in them, drawn whole at any width."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest
from lab.statuses import NOW_USEC, busy, empty, exposure, receiver, transfer, upload

from s3daemon.commands.status.view import View, view_of
from s3daemon.commands.table import Bar, Table, lines
from s3daemon.control.status import Status


def view(answer: dict[str, Any]) -> View:
    return view_of(Status.from_dict(answer), UTC)


def tables(answer: dict[str, Any]) -> dict[str, Table]:
    return {table.title.partition(",")[0]: table for table in view(answer).tables}


def column(table: Table, name: str) -> list[Any]:
    return [row[[column.name for column in table.columns].index(name)] for row in table.rows]


def test_a_busy_night() -> None:
    answer = busy()
    shown, found = view(answer), tables(answer)
    assert (shown.head, shown.about) == (
        "OK",
        "s3daemon 1.0.0 on camera-3, to https://s3.example.org, at 994 Mbit/s (found)",
    )
    assert list(found) == ["IN FLIGHT", "WAITING", "FAILED", "RECEIVERS", "LAST EXPOSURES", "INCOMPLETE EXPOSURES"]
    flying = found["IN FLIGHT"]
    assert flying.rows[0][1:] == (
        "27%", "8.39 MB", "12.5 MB/s", "9.1 MB/s", "0s", "1", "192.0.2.2",
        "raw/camera/20261123/MC_O_000123/MC_O_000123_R01.fits",
    )  # fmt: skip
    assert isinstance(bar := flying.rows[0][0], Bar)
    assert 0.26 < bar.fraction < 0.28
    assert column(flying, "ATTEMPT") == ["1", "1", "2", "1"]
    assert found["WAITING"].title == "WAITING, 3 of 12; s3daemon queue has all"
    assert column(found["WAITING"], "NEXT") == ["17s", "0s", "0s"]
    assert column(found["FAILED"], "DESTINATION")[0].endswith("R45.fits")
    assert column(found["RECEIVERS"], "STATE") == [
        "", "", "temporarily disabled for 1m05s, asked again in 15s: no connection",
        "on trial until an upload is stored there, limited for 7s: answered 503",
    ]  # fmt: skip


def test_exposures_against_their_limits() -> None:
    answer = empty() | {
        "exposures": [
            exposure(1), exposure(2, 12.3), exposure(3, 741.0),
            exposure(4, None, failed=40, refused=6, stored=0, verdict="incomplete", reason="NoSuchFile: /f"),
            exposure(5, 1.0, pending=3),
        ]
    }  # fmt: skip
    table = tables(answer)["LAST EXPOSURES"]
    assert column(table, "LAST OBJECT") == ["2.1 s", "12.3 s", "12m21s", "never", "1.0 s"]
    assert [row[2] for row in table.rows] == ["in time", "late", "lost", "incomplete", "in time, pending"]
    assert [bar.beyond for bar in column(table, "")] == [False, True, True, True, False]
    assert column(table, "MISSING") == ["", "", "", "46", ""]
    assert column(table, "PENDING") == ["", "", "", "", "3"]
    (missing,) = tables(answer)["INCOMPLETE EXPOSURES"].rows
    assert missing == ("40", "6", "MC_O_20261123_000098", "NoSuchFile: /f")
    assert column(table, "FIRST REQUEST")[0] == "01:43:20"


def test_an_exposure_that_is_not_of_today_has_its_date() -> None:
    old = exposure(1, first_usec=NOW_USEC - 3 * 86_400_000_000)
    table = tables(empty() | {"exposures": [old, exposure(2)]})["LAST EXPOSURES"]
    assert column(table, "FIRST REQUEST") == ["2026-11-20 02:13:20", "01:44:20"]


def test_every_exposure_that_is_incomplete_has_its_reason() -> None:
    wrong = [exposure(n, refused=1, verdict="incomplete", reason="NoSuchFile: /f") for n in range(1, 31)]
    assert len(tables(empty() | {"exposures": wrong})["INCOMPLETE EXPOSURES"].rows) == 30


def test_only_tables_with_rows_and_columns_with_content_are_shown() -> None:
    assert view(empty()).tables == []
    answer = empty() | {"receivers": [receiver("192.0.2.1", 1, 0)]}
    assert list(lines(tables(answer)["RECEIVERS"], 80))[1].split() == ["CONNECTIONS", "UPLOADS", "ADDRESS"]


@pytest.mark.parametrize("width", [None, 200, 132, 100, 80, 60])
def test_every_destination_and_exposure_is_whole_at_any_width(width: int | None) -> None:
    answer = busy()
    text = "\n".join(line for table in view(answer).tables for line in lines(table, width))
    names = [f"{one['bucket']}/{one['key']}" for one in answer["uploads"]]
    names += [row["destination"] for row in answer["waiting"] + answer["failures"]]
    names += [one["name"] for one in answer["exposures"]]
    assert [name for name in names if name not in text] == []


def test_on_80_columns_a_row_has_its_figures_and_its_destination_beneath() -> None:
    assert list(lines(tables(busy())["IN FLIGHT"], 80))[:4] == [
        "IN FLIGHT",
        "                     DONE       OF       RATE   AVERAGE  FOR  ATTEMPT  RECEIVER",
        "  █████············   27%  8.39 MB  12.5 MB/s  9.1 MB/s   0s        1  192.0.2.2",
        "      raw/camera/20261123/MC_O_000123/MC_O_000123_R01.fits",
    ]
    assert list(lines(tables(busy())["WAITING"], 80))[2:5] == [
        "  4m00s  pending         3   17s  8.39 MB",
        "      raw/camera/20261123/MC_O_000123_R04.fits",
        "      SlowDown: the store answered 503: reduce your request rate",
    ]


def test_on_80_columns_an_exposure_is_one_line() -> None:
    shown = list(lines(tables(busy())["LAST EXPOSURES"], 80))
    assert len(shown) == 32
    assert shown[10] == "  ▒······        2.9 s  incomplete                       1  MC_O_20261123_000103"


def test_no_name_moves_the_cursor() -> None:
    answer = busy() | {
        "host": "\x1b[2J",
        "status": "a\nb",
        "uploads": [upload(1, key="\x1b]0;x\x07", receivers=["\x9b"])],
        "waiting": [transfer(1, "pending", code="\x1b[1m", text="\r")],
        "exposures": [exposure(1, name="\x07")],
    }
    shown = view(answer)
    drawn = [line for table in shown.tables for line in lines(table, 80)]
    assert all(text.isprintable() for text in [shown.about, shown.line, *drawn])


@pytest.mark.parametrize(
    ("state", "line", "head", "rest"),
    [
        ("held", "HELD, TLSRefused: no; 0 in flight", "HELD", "TLSRefused: no; 0 in flight"),
        (
            "ok",
            "reload REFUSED, S3_ENDPOINT_URL: no; 0 in flight",
            "reload REFUSED",
            "S3_ENDPOINT_URL: no; 0 in flight",
        ),
        ("ok", "UNREACHABLE, no address; reload REFUSED, no", "UNREACHABLE", "no address; reload REFUSED, no"),
        ("away", "AWAY, no; reload REFUSED, no", "AWAY", "no; reload REFUSED, no"),
        ("ok", "0 in flight", "OK", "0 in flight"),
    ],
)
def test_what_is_wrong_is_said_once_and_first(state: str, line: str, head: str, rest: str) -> None:
    """It is drawn at the head, and the daemon's line, which begins with it too, goes on from there; never after OK."""
    shown = view(empty() | {"state": state, "status": line})
    assert (shown.head, shown.line) == (head, rest)


def test_without_a_limit_none_is_shown() -> None:
    limits = [{"rate_bps": 0, "origin": ""}, {"rate_bps": 8_000_000, "origin": "set"}]
    shown = [view(empty() | {"limit": limit}).about.partition("example.org")[2] for limit in limits]
    assert shown == ["", ", at 8 Mbit/s (set)"]
