"""`s3daemon report` reads what it is given, shows what is asked for, and says what it could not read."""

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from lab.env import TREE, clean_env
from lab.records import START_USEC, failed, line, record, refusal
from lab.terminal import Terminal

from s3daemon.commands.report import command as report
from s3daemon.errors import Code, S3daemonError
from s3daemon.model.record import MessageId
from s3daemon.units import BEGIN_USEC, END_USEC

SECOND = 1_000_000
NIGHT = [
    line(record(1, total_usec=8 * SECOND), "node1"),
    line(record(2, tags=("exposure-2",), bucket="log", key="day/x", start_usec=START_USEC + 60 * SECOND), "node2"),
    line(failed(3, start_usec=START_USEC + 90 * SECOND, tags=("exposure-2",)), "node2"),
]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    report.configure(parser)
    return parser.parse_args(words)


def run(*words: str, given: Iterable[bytes] = NIGHT, err: io.StringIO | None = None) -> tuple[int, str, str]:
    out, err = io.StringIO(), err or io.StringIO()
    status = report.main(parsed("--stdin", "--utc", *words), {}, out=out, err=err, stdin=given)
    return status, out.getvalue(), err.getvalue()


def test_text() -> None:
    """Without options it is text for people, which ends with where to look for pending transfers."""
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out.startswith("3 transfers: 2 stored, 1 FAILED\n")
    assert "over the limit of 7 s: 1 " in out
    assert "FIRST REQUEST" not in out
    assert out.endswith("\nPending transfers have no record yet: see s3daemon queue\n")


def test_a_journal_that_can_be_read_in_part() -> None:
    """What was read is shown, and the status and a note say that it is not all; nothing read is no report."""

    def broken(*some: bytes) -> Iterator[bytes]:
        yield from some
        raise S3daemonError(Code.NO_JOURNAL, "journalctl cannot read the journal: Bad message")

    status, out, err = run(given=broken(*NIGHT))
    assert status == 1
    assert out.startswith("3 transfers: 2 stored, 1 FAILED\n")
    assert err.startswith("note: the report is not complete, what follows is missing: NoJournal: journalctl cannot")
    assert run(given=broken())[:2] == (1, "")


def test_entries_that_the_journal_did_not_take() -> None:
    """Their number is noted, of the time and the hosts that are asked for: transfers may be among them."""

    def gone(host: str, second: int) -> bytes:
        usec = str(START_USEC + second * SECOND)
        return line(record(9), host, MESSAGE_ID=MessageId.LOST, S3DAEMON_LOST="5", __REALTIME_TIMESTAMP=usec)

    given = [*NIGHT, gone("node1", 0), gone("node1", 60), gone("node2", 0)]
    for words, count in (([], 15), (["--host", "node1"], 10), (["--since", f"@{START_USEC // SECOND + 30}"], 5)):
        status, out, err = run("--json", *words, given=given)
        assert (status, json.loads(out)["transfers"] > 0) == (0, True)
        assert err.endswith(f"as the journal did not take them in time: transfers may be missing here: {count}\n")


@pytest.mark.parametrize(
    ("words", "stored", "lost"),
    [
        (["--bucket", "log"], 1, 0),
        (["--bucket", "log", "--bucket", "raw"], 2, 1),
        (["--prefix", "night/"], 1, 1),
        (["--tag", "exposure-2"], 1, 1),
        (["--host", "node2"], 1, 1),
        (["--unit", "s3daemon"], 0, 0),
        (["--since", "2026-11-23 02:14"], 1, 1),
        (["--until", "2026-11-23 02:14 UTC"], 1, 0),
        (["-S", "@1795400059", "-U", "@1795400062"], 1, 0),
        (["--since", "2026-11-23 02:14:30 UTC"], 0, 1),
    ],
)
def test_selection(words: list[str], stored: int, lost: int) -> None:
    """Each option narrows the report as it says."""
    status, out, _ = run("--json", *words)
    found = json.loads(out)
    assert (status, found["stored"], found["failed"]) == (0, stored, lost)


def test_relative_times_are_taken_as_journalctl_takes_them() -> None:
    """`--since -2h` is a time, not an option."""
    assert parsed("--since", "-2h", "-U", "-1min").since == "-2h"
    assert run("--json", "--since", "-2h")[0] == 0


def test_unit_names_have_a_suffix_or_not() -> None:
    """Units are named as on systemctl's command line."""
    given = [line(record(1), _SYSTEMD_UNIT="s3daemon@15556.service"), line(record(2), _SYSTEMD_UNIT="s3daemon.service")]
    for name in ("s3daemon@15556", "s3daemon@15556.service"):
        assert json.loads(run("--json", "--unit", name, given=given)[1])["stored"] == 1


FORGED = [
    line(record(9, tags=("exposure-1",), key="forged"), "node1", _SYSTEMD_UNIT="session-3.scope"),
    refusal("raw/x", "exposure-1", _SYSTEMD_UNIT="user@1000.service"),
    json.dumps({
        "MESSAGE_ID": "e3e2e43e172e458d9cce4364dccb89e8", "S3DAEMON_TRANSFER_ID": f"{1:016x}", "_HOSTNAME": "node1",
        "S3DAEMON_ERROR": "Forged: x", "__REALTIME_TIMESTAMP": str(START_USEC), "_SYSTEMD_UNIT": "cron.service",
    }).encode(),
]  # fmt: skip


def test_what_other_units_wrote_does_not_count() -> None:
    """Any local user may write a record; it is left out and counted, unless its unit was asked for."""
    plain = run("--json", "--by", "tag")
    status, out, err = run("--json", "--by", "tag", given=[*NIGHT, *FORGED])
    assert (status, out) == plain[:2]
    assert err == (
        "note: entries left out, not written by s3daemon.service or s3daemon@*.service (--unit names others): 3\n"
    )
    own = [line(record(1), _SYSTEMD_UNIT="run-u3.service"), *FORGED]
    _, out, err = run("--json", "--unit", "run-u3", given=own)
    assert (json.loads(out)["transfers"], err) == (1, "")


@pytest.mark.parametrize("words", [(), ("--by", "tag"), ("--json",), ("--csv",), ("--late-only",)])
@pytest.mark.parametrize("field", ["S3DAEMON_START_USEC", "S3DAEMON_TOTAL_USEC", "S3DAEMON_SIZE_BYTES"])
def test_impossible_numbers_are_noted(words: tuple[str, ...], field: str) -> None:
    """The record is left out, and the report is of the others."""
    status, out, err = run(*words, given=[*NIGHT, line(record(9), **{field: "9" * 400})])
    assert (status, out) == run(*words)[:2]
    assert err == (
        "note: records left out, cut (journalctl --all?), of another version, or with impossible numbers: 1\n"
    )


def test_by_and_limits() -> None:
    """Groups and limits are those that were asked for, in text and in JSON."""
    _, out, _ = run("--by", "tag", "--limit", "500ms", "--late", "5s")
    assert "over the limit of 0.5 s: 1 " in out
    (row,) = (text.split() for text in out.splitlines() if text.startswith("exposure-1 "))
    assert " ".join(row[1:]) == "2026-11-23 02:13:20 02:13:28 8.000 s 1 0 8 MB 8.000 s 1 LATE"
    found = json.loads(run("--by", "host", "--json")[1])
    assert [(group["name"], group["failed"]) for group in found["groups"]] == [("node2", 1), ("node1", 0)]


def test_late_only() -> None:
    """Only exposures with which something is wrong are shown, by tag unless told otherwise; figures are of all."""
    found = json.loads(run("--late-only", "--json", "--late", "9s")[1])
    assert (found["transfers"], found["by"], [group["name"] for group in found["groups"]]) == (3, "tag", ["exposure-2"])


BOTH = {"NoSuchFile": 1, "NotReadable": 1}
REFUSED_NIGHT = [
    line(record(1, bucket="raw", key="a/1", tags=("a",)), "node1"),
    refusal("raw/b/1", "b", second=60),
    refusal("raw/b/2", "b", code="NoSuchFile", second=61),
    refusal("raw/b/2", "b", code="NoSuchFile", second=62, _HOSTNAME="node2"),
    refusal("log/c/1", second=70, _HOSTNAME="node2"),
]


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        ("tag", [("a", 1, 0, {}), ("b", 0, 2, BOTH), ("log/c/", 0, 1, {"NotReadable": 1})]),
        ("prefix", [("raw/a/", 1, 0, {}), ("raw/b/", 0, 2, BOTH),
                    ("log/c/", 0, 1, {"NotReadable": 1})]),
        ("host", [("node1", 1, 2, BOTH), ("node2", 0, 2, BOTH)]),
        ("receiver", [("-", 1, 0, {})]),
    ],
)  # fmt: skip
def test_a_group_of_refused_requests_alone_is_there(by: str, groups: list[tuple[object, ...]]) -> None:
    """With nothing stored and the codes; only a receiver has none, for nothing was sent to it."""
    found = json.loads(run("--by", by, "--json", given=REFUSED_NIGHT)[1])["groups"]
    shown = [(one["name"], one["stored"], one["missing"], one["refused_codes"]) for one in found]
    assert shown == groups
    assert all(one["refused"] == sum(one["refused_codes"].values()) for one in found)


@pytest.mark.parametrize("words", [(), ("--by", "tag"), ("--late-only",), ("--expect", "2")])
def test_an_exposure_of_refused_files_alone_is_incomplete(words: tuple[str, ...]) -> None:
    """Its first time is that of the first refusal, in every form; also where the night has no transfer at all."""
    for given in (REFUSED_NIGHT, REFUSED_NIGHT[1:3]):
        words = words or ("--by", "tag")
        found = json.loads(run(*words, "--json", given=given)[1])["groups"]
        (one,) = (group for group in found if group["name"] == "b")
        assert (one["verdict"], one["files"], one["stored"]) == ("incomplete", 0, 0)
        assert (one["first_usec"], one["to_last_usec"]) == (START_USEC + 60 * SECOND, None)
        out = run(*words, given=given)[1].splitlines()
        (at,) = (number for number, text in enumerate(out) if text.startswith("b "))
        assert out[at].split()[1:4] == ["2026-11-23", "02:14:20", "-"]
        assert out[at].endswith("INCOMPLETE")
        assert out[at + 1].endswith("refused: 1 NotReadable, 1 NoSuchFile")
        assert any(text.startswith("b,") for text in run(*words, "--by", "tag", "--csv", given=given)[1].splitlines())


def test_a_night_of_refused_requests_alone() -> None:
    """There is a report of it, with its period, and a note that nothing was recorded."""
    status, out, err = run(given=REFUSED_NIGHT[1:3])
    assert status == 0
    assert out.startswith("0 transfers: 0 stored, none failed; not accepted: 1 NotReadable, 1 NoSuchFile\n")
    assert "from 2026-11-23 02:14:20 to 2026-11-23 02:14:21 UTC" in out
    assert err == "note: no transfer was recorded\n"


def test_a_host_whose_requests_were_refused_says_why() -> None:
    """In the text too, and before hosts with which nothing is wrong."""
    out = run("--by", "host", given=[REFUSED_NIGHT[0], *REFUSED_NIGHT[3:]])[1].splitlines()
    at = next(number for number, text in enumerate(out) if text.startswith("node2 "))
    assert out[at + 1].strip() == "refused: 1 NoSuchFile, 1 NotReadable"
    assert out[at + 2].startswith("node1 ")


def test_a_number_of_files_is_not_learned_from_exposures_without_any() -> None:
    given = [refusal(f"raw/{tag}/{n}", tag) for tag in "abc" for n in (1, 2)]
    assert json.loads(run("--by", "tag", "--json", given=given)[1])["expected_files"] is None
    assert "expected: " not in run("--by", "tag", given=given)[1]


def test_late_only_begins_with_what_was_asked_for() -> None:
    """First the exposures with which something is wrong, then the night; the slowest are those of the exposures."""
    out = run("--late-only", "--late", "7s")[1].splitlines()
    assert out[0].startswith("TAG ")
    assert [text.split()[0] for text in out if text.startswith("exposure-")] == ["exposure-1", "exposure-2"]
    assert run("--late-only", "--late", "9s", "--json")[1].count('"transfer_id": "0000000000000001"') == 0
    assert "\n\n3 transfers: 2 stored, 1 FAILED\n" in run("--late-only")[1]
    assert run("--late-only", given=NIGHT[:1])[1].startswith("none is late, incomplete, lost\n\n1 transfer: 1 stored")


def test_expect() -> None:
    """An exposure with fewer files than expected is incomplete; nonsense is refused."""
    found = json.loads(run("--expect", "2", "--json")[1])
    assert found["expected_files"] == 2
    assert [(g["name"], g["verdict"], g["missing"]) for g in found["groups"]] == [
        ("exposure-1", "incomplete", 1), ("exposure-2", "incomplete", 1),
    ]  # fmt: skip
    for nonsense in ("0", "-1", "many"):
        with pytest.raises(SystemExit):
            run("--expect", nonsense)


def test_the_error_that_cost_the_time() -> None:
    """Warnings about failed attempts are read too, and are no transfers."""
    slow = line(record(1, attempts=2, queue_usec=8 * SECOND, total_usec=9 * SECOND))
    warning = {
        "MESSAGE_ID": "e3e2e43e172e458d9cce4364dccb89e8", "S3DAEMON_TRANSFER_ID": f"{1:016x}", "_HOSTNAME": "node1",
        "S3DAEMON_ERROR": "ConnectionFailed: refused", "__REALTIME_TIMESTAMP": str(START_USEC + SECOND),
    }  # fmt: skip
    found = json.loads(run("--json", given=[slow, json.dumps(warning).encode()])[1])
    assert (found["transfers"], found["slowest"][0]["why"]["error"]) == (1, "ConnectionFailed")


def test_csv() -> None:
    """A line for each transfer, or with `--by` for each group."""
    assert run("--csv")[1].count("\n") == 4
    assert run("--csv", "--by", "tag")[1].splitlines()[1].startswith("exposure-1,")


def test_plot_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--plot` draws into a file, and the rest is shown as without it."""
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    plain = run("--csv")
    assert run("--csv", "--plot", str(tmp_path / "n.PNG")) == plain
    assert (tmp_path / "n.PNG").read_bytes().startswith(b"\x89PNG")


def test_the_extremes_of_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form, and the picture, take the earliest and latest time and the largest size that a record may have."""
    last = {"start_usec": END_USEC - 1, "total_usec": 0, "size_bytes": 2**64 - 1}
    most = END_USEC - 1 - BEGIN_USEC
    given = [line(record(1, start_usec=BEGIN_USEC, total_usec=most, queue_usec=most)), line(record(2, **last))]
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))
    pytest.importorskip("matplotlib")
    for words in ([], ["--by", "tag"], ["--json"], ["--csv"], ["--plot", str(tmp_path / "n.png")]):
        status, out, err = run(*words, given=given)
        assert (status, out != "", err) == (0, True, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--plot", "night.pdf"], "--plot takes a file that ends in .png or .svg"),
        (["--plot", "night.GIF"], "--plot takes a file that ends in .png or .svg"),
        (["--since", "today", "--until", "yesterday"], "--since is later than --until"),
        (["--since", "soon"], "argument --since: 'soon' is not a time that journalctl takes"),
        (["--late-only", "--by", "host"], "--late-only shows exposures: --by tag or prefix"),
    ],
)
def test_what_makes_no_sense_is_refused_before_reading(words: list[str], text: str) -> None:
    """A request that cannot be met is a usage error at once, not after a long read."""
    unread = iter(NIGHT)
    with pytest.raises(argparse.ArgumentError, match=text):
        run(*words, given=unread)  # an iterator shows what was taken
    assert next(unread) == NIGHT[0]


@pytest.mark.parametrize(
    "words",
    [["--limit", "fast"], ["--limit", "0"], ["--late", "31d"], ["--by", "colour"],
     ["--json", "--csv"], ["--stdin", "--file", "x"], ["--plot"]],
)  # fmt: skip
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Options that are not understood are a usage error with a reason."""
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_nothing_to_read_is_an_error_not_an_empty_report(tmp_path: Path) -> None:
    """No input, no journal file, no such directory: an error and no report."""
    assert run(given=[])[:2] == (1, "")
    out, err = io.StringIO(), io.StringIO()
    for place, code in ((tmp_path, "NoJournal"), (tmp_path / "gone", "NoSuchFile")):
        assert report.main(parsed("--file", str(place)), {}, out=out, err=err) == 1
        assert err.getvalue().splitlines()[-1].startswith(code)
    assert out.getvalue() == ""


def test_nothing_happened() -> None:
    """A journal without transfers in the time asked about says so; for programs it is an empty report."""
    words = ("--since", "2026-11-24", "--until", "2026-11-25")
    said = "note: no transfer was recorded since 2026-11-24 00:00:00 until 2026-11-25 00:00:00\n"
    assert run(*words) == (0, "", said)
    status, out, err = run("--json", *words)
    assert (status, json.loads(out)["transfers"], err) == (0, 0, said)


def test_what_was_left_out_is_said() -> None:
    """Cut lines and unreadable records are counted on standard error."""
    cut = json.loads(NIGHT[1])
    cut["S3DAEMON_KEY"] = None
    status, out, err = run(given=[NIGHT[0], json.dumps(cut).encode(), NIGHT[2][:50]])
    assert (status, out.splitlines()[0]) == (0, "1 transfer: 1 stored, none failed")
    assert "note: not a JSON object: 1 of 3 lines, first line 3" in err
    assert "note: records left out, cut (journalctl --all?), of another version, or with impossible numbers: 1" in err


def test_progress() -> None:
    """A long read is counted on a terminal, in a line that is erased in the end; a file gets nothing of it."""
    given = [line(record(n)) for n in range(1000)]
    err = Terminal()
    assert run("--csv", given=given, err=err)[0] == 0
    assert "1000 records read" in err.getvalue()
    assert err.getvalue().endswith("\x1b[2K")
    assert run(given=given)[2] == ""


def test_command_line() -> None:
    """The command is there under its name, reads standard input, and writes nothing to standard error."""
    command = [sys.executable, "-m", "s3daemon", "report", "--stdin", "--by", "tag"]
    done = subprocess.run(
        command, cwd=TREE, env=clean_env(TZ="Asia/Tokyo"), input=b"".join(NIGHT), capture_output=True, check=True
    )
    assert b"from 2026-11-23 11:13:20 to 2026-11-23 11:14:50 JST; hosts node1, node2" in done.stdout
    assert done.stderr == b""
    helped = subprocess.run(
        [*command[:4], "--help"], cwd=TREE, env=clean_env(), capture_output=True, text=True, check=True
    )
    assert "--since" in helped.stdout
