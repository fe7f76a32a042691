"""Entries come from journalctl or from lines that it printed elsewhere, and nothing that cannot be read is missed."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from lab.env import UnavailableError, clean_env, program
from lab.records import START_USEC, entry, line, record

from s3daemon.commands.report.read import (
    from_journal,
    from_lines,
    host_directories,
    usec_of,
)
from s3daemon.commands.report.select import JournalEntry, Selection
from s3daemon.errors import S3daemonError

SECOND = 1_000_000
#: Stands in for journalctl: notes how it was called, prints what a file holds, and fails as it is set to.
JOURNALCTL = """#!{python}
import json, os, pathlib, sys

top = pathlib.Path(__file__).parent
with open(top / "called", "a") as called:
    called.write(json.dumps(sys.argv[1:]) + "\\n")
sys.stdout.buffer.write((top / "printed").read_bytes())
sys.stderr.write((top / "complaints").read_text())
sys.exit(int((top / "status").read_text()))
"""


class Journalctl:
    """A program in the place of journalctl, and a directory with a journal file that it is asked to read."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.program = top / "journalctl"
        self.program.write_text(JOURNALCTL.format(python=sys.executable))
        self.program.chmod(0o755)
        self.place = top / "saved"
        self.place.mkdir()
        (self.place / "system.journal").touch()
        self.prints()

    def prints(self, *lines: bytes, complaints: str = "", status: int = 0) -> None:
        """Decide what it will print, and how it will end."""
        (self.top / "printed").write_bytes(b"".join(lines))
        (self.top / "complaints").write_text(complaints)
        (self.top / "status").write_text(str(status))

    def read(self, notes: list[str] | None = None, place: Path | None = None, **wanted: Any) -> list[JournalEntry]:
        """What comes of reading; a note is a failure where none are expected."""
        note = pytest.fail if notes is None else notes.append
        return list(from_journal(place or self.place, Selection(**wanted), note, program=os.fspath(self.program)))

    def called(self) -> list[list[str]]:
        """The arguments of each call."""
        return [json.loads(text) for text in (self.top / "called").read_text().splitlines()]


@pytest.fixture
def journalctl(tmp_path: Path) -> Journalctl:
    return Journalctl(tmp_path)


def test_records_of_a_journal(journalctl: Journalctl) -> None:
    """They come as journalctl prints them, other entries are left out."""
    journalctl.prints(line(record(1)), b'{"MESSAGE": "x"}\n', line(record(2)))
    assert journalctl.read() == [entry(record(1)), entry(record(2))]


def test_what_journalctl_is_asked_for(journalctl: Journalctl) -> None:
    """The directory, the bounds to the microsecond, the fields and the matches; cut fields would be no records.

    journalctl ends at the first entry after its bound, though entries from before it may follow where the clock was set
    back: it is asked for a day more.
    """
    journalctl.prints(line(record(1)))
    journalctl.read(since_usec=START_USEC + 1_402_000, until_usec=START_USEC + 90 * SECOND, tags=("a", "b"))
    words = journalctl.called()[-1]
    assert {"--output=json", "--all", "--no-pager", f"--directory={journalctl.place}"} <= {*words}
    assert "--since=@1795400001.402000" in words
    assert f"--until=@{1795400090 + 24 * 3600}.000000" in words
    assert words[words.index("MESSAGE_ID=59de861c00b54c97810d5760a3b1b9a0") + 1 :][:3] == [
        "S3DAEMON_TAG=a", "S3DAEMON_TAG=b", "+",
    ]  # fmt: skip
    (fields,) = (word for word in words if word.startswith("--output-fields="))
    assert {"S3DAEMON_KEY", "S3DAEMON_TOTAL_USEC", "_HOSTNAME"} <= {*fields.partition("=")[2].split(",")}


def test_a_single_file(journalctl: Journalctl) -> None:
    """journalctl takes a pattern for a file; what looks like one in a name is not."""
    journalctl.prints(line(record(1)))
    file = journalctl.top / "night[1].journal"
    file.touch()
    journalctl.read(place=file)
    assert f"--file={journalctl.top}/night[[]1].journal" in journalctl.called()[-1]


def test_a_journal_that_begins_later(journalctl: Journalctl) -> None:
    """Where journald no longer has what is asked for, a note says so."""
    journalctl.prints(line(record(1, total_usec=0)))
    notes: list[str] = []
    journalctl.read(notes, since_usec=START_USEC - 1)
    (note,) = notes
    assert re.fullmatch(r"the journal begins at 2026-11-2\d \d\d:\d\d:20 \S+, later than the time requested", note)
    journalctl.read(since_usec=START_USEC)


def test_a_damaged_file(journalctl: Journalctl) -> None:
    """What journalctl leaves out is noted in its own words."""
    journalctl.prints(line(record(1)), complaints="Journal file /j/a.journal corrupted, ignoring file.\n")
    notes: list[str] = []
    assert len(journalctl.read(notes)) == 1
    assert notes == ["Journal file /j/a.journal corrupted, ignoring file."]


def test_damaged_files_alone(journalctl: Journalctl) -> None:
    """When journalctl can read none of the files it still ends with success; the report does not."""
    journalctl.prints(complaints="Journal file /j/a.journal corrupted, ignoring file.\n")
    with pytest.raises(S3daemonError, match=r"no journal file could be read: Journal file /j/a\.journal") as caught:
        journalctl.read()
    assert caught.value.code == "NoJournal"


def test_journalctl_fails(journalctl: Journalctl) -> None:
    """Its last words are the reason; what it printed before that is not complete."""
    journalctl.prints(line(record(1)), complaints="Hint: x\nFailed to get data\n", status=1)
    with pytest.raises(S3daemonError, match="Failed to get data") as caught:
        journalctl.read()
    assert caught.value.code == "NoJournal"


def test_no_journalctl(journalctl: Journalctl) -> None:
    """The way without it is named."""
    journalctl.program.unlink()
    with pytest.raises(S3daemonError, match="--stdin") as caught:
        journalctl.read()
    assert caught.value.code == "NoReader"


def test_a_reader_that_has_enough(journalctl: Journalctl) -> None:
    """When no more entries are wanted, journalctl is ended and not waited for."""
    journalctl.prints(*(line(record(n)) for n in range(2000)))
    entries = from_journal(journalctl.place, Selection(), pytest.fail, program=os.fspath(journalctl.program))
    assert next(entries) == entry(record(0))
    assert isinstance(entries, Generator)
    entries.close()


@pytest.mark.parametrize(
    ("place", "code"), [("empty", "NoJournal"), ("gone", "NoSuchFile"), ("empty/no.journal", "NoSuchFile")]
)
def test_no_files(journalctl: Journalctl, place: str, code: str) -> None:
    """Where there is no journal file, journalctl prints nothing and ends with success; here it is an error."""
    (journalctl.top / "empty").mkdir()
    (journalctl.top / "empty/notes.txt").touch()
    with pytest.raises(S3daemonError) as caught:
        journalctl.read(place=journalctl.top / place)
    assert caught.value.code == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("closed", ["saved/system.journal", "saved/closed"])
def test_a_file_that_may_not_be_read(closed: str) -> None:
    """journalctl skips it silently when it may read another; here it ends the report, with what to do."""
    code = (
        "import os, sys; from pathlib import Path; from s3daemon.commands.report.read import *\n"
        "from s3daemon.errors import S3daemonError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: next(from_journal(Path(sys.argv[1]), Selection(), print))\n"
        "except S3daemonError as exc: print(f'{exc.code}: {exc.text}')\n"
    )
    with tempfile.TemporaryDirectory() as name:  # pytest's own directories are closed to others
        top = Path(name)
        top.chmod(0o755)
        saved = top / "saved"
        (saved / "closed").mkdir(parents=True)
        for file in ("system.journal", "user-1000.journal"):
            (saved / file).touch()
        (top / closed).chmod(0)
        done = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"NotReadable: {top / closed} may be read by root and the group systemd-journal only")


def test_the_directories_of_a_host(tmp_path: Path) -> None:
    """This machine's own, of those that there are; namespaces and other machines' are not read."""
    machine_id = tmp_path / "machine-id"
    assert host_directories((tmp_path,), machine_id) == []
    machine_id.write_text("5e936193186b4f05ae03f3f2be700583\n")
    own = tmp_path / "run/5e936193186b4f05ae03f3f2be700583"
    own.mkdir(parents=True)
    (tmp_path / "run/5e936193186b4f05ae03f3f2be700583.other").mkdir()
    assert host_directories((tmp_path / "var", tmp_path / "run"), machine_id) == [own]


def lines(*given: bytes, notes: list[str] | None = None) -> list[JournalEntry]:
    return list(from_lines(given, pytest.fail if notes is None else notes.append))


def test_lines_of_many_hosts() -> None:
    """Records of several hosts are found among other entries; the line for an empty journal is not an error."""
    other = b'{"MESSAGE": "hello"}\n'
    found = lines(line(record(1), "a"), other, b"-- No entries --\n", b"\n", line(record(2), "b"))
    assert found == [entry(record(1), "a"), entry(record(2), "b")]
    assert lines(b"-- No entries --\n") == lines(other) == []


def test_a_cut_line_is_noted() -> None:
    """When a connection broke within a line, what came before counts and the break is noted."""
    notes: list[str] = []
    whole = line(record(1))
    assert lines(whole, whole[:100], notes=notes) == [entry(record(1))]
    assert notes == ["not a JSON object: 1 of 2 lines, first line 2: was the input cut off?"]


@pytest.mark.parametrize(
    ("given", "code"),
    [((), "NoInput"), ((b"\n",), "NoInput"), ((b"Nov 23 box s3daemon[1]: x\n",), "BadInput"),
     ((b"[1]\n", b"{\n"), "BadInput"), ((b'{"59de861c00b54c97810d5760a3b1b9a0" no}\n',), "BadInput")],
)  # fmt: skip
def test_no_lines_is_an_error(given: tuple[bytes, ...], code: str) -> None:
    """Nothing on standard input, as from a journalctl that may not read, and another format are errors."""
    with pytest.raises(S3daemonError) as caught:
        lines(*given)
    assert caught.value.code == code


@pytest.fixture
def analyze() -> None:
    """Skip where systemd-analyze is not installed."""
    try:
        program("systemd-analyze")
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.mark.usefixtures("analyze")
@pytest.mark.parametrize(
    ("text", "usec"),
    [
        ("2026-11-23 02:13:20", START_USEC),
        ("2026-11-23 02:13:20 UTC", START_USEC),
        ("Mon 2026-11-23 02:13:20.25", START_USEC + 250_000),
        ("@1795400534.761688", 1_795_400_534_761_688),
    ],
)
def test_times(text: str, usec: int) -> None:
    """A time means what it means to journalctl, to the microsecond."""
    assert usec_of(text, utc=True) == usec


@pytest.mark.usefixtures("analyze")
def test_a_time_without_a_zone_is_in_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless `--utc` is given; relative times, spans with blanks in them too, are counted from now."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert usec_of("2026-11-23 11:13:20", utc=False) == START_USEC
    assert usec_of("2026-11-23 02:13:20", utc=True) == START_USEC
    assert usec_of("now", utc=False) - usec_of("-2h 30min", utc=False) == pytest.approx(9000 * SECOND, abs=60 * SECOND)


@pytest.mark.usefixtures("analyze")
@pytest.mark.parametrize("text", ["", "soon", "2h", "2026-13-01", "--help", "@x", "@1e99"])
def test_what_is_not_a_time(text: str) -> None:
    """It is refused with its text, never taken for another time."""
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        usec_of(text, utc=True)


def test_no_systemd_analyze() -> None:
    """Without systemd times cannot be read, which is said."""
    with pytest.raises(ValueError, match="/nowhere/analyze, which parses times, cannot be run"):
        usec_of("now", utc=True, program="/nowhere/analyze")


def test_the_stand_in_is_called_as_journalctl_is() -> None:
    """Each option that is used is one of the journalctl of this host."""
    try:
        command = [program("journalctl"), "--help"]
    except UnavailableError as missing:
        pytest.skip(str(missing))
    known = subprocess.run(command, env=clean_env(), capture_output=True, text=True, check=True).stdout
    for option in (
        "--output=",
        "--all",
        "--no-pager",
        "--directory=",
        "--file=",
        "--since=",
        "--until=",
        "--output-fields=",
    ):
        assert option in known
