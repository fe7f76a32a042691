"""Journal files: found where journald keeps them or where one was saved, and none there is missed in silence."""

import errno
from pathlib import Path
from typing import Any

import pytest

from s3daemon.commands.report.files import JournalFiles
from s3daemon.errors import S3daemonError

ID = "5e936193186b4f05ae03f3f2be700583"


class Opener:
    """Opens what it is told it can, as systemd-python does, and remembers what it was asked for."""

    def __init__(self, **refused: OSError) -> None:
        self.refused = refused
        self.asked: list[dict[str, Any]] = []
        self.closed = 0

    def __call__(self, **place: Any) -> "Opener":
        self.asked.append(place)
        for path in place.get("files", ()):
            if Path(path).stem in self.refused:
                raise self.refused[Path(path).stem]
        return self

    def close(self) -> None:
        self.closed += 1


def journal(place: Path, *names: str) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        (place / name).write_bytes(b"LPKSHHRH")
    return place


@pytest.fixture
def machine_id(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text(f"{ID}\n")
    return path


def test_this_hosts_journal(tmp_path: Path, machine_id: Path) -> None:
    """The host's files lie under its machine's id, those that outlast a boot and others; no other machine's."""
    roots = tmp_path / "var", tmp_path / "run"
    journal(roots[0] / ID, "system.journal", "system@1.journal", "broken.journal~", "notes.txt")
    journal(roots[1] / ID, "early.journal")
    journal(roots[0] / "remote", "other.journal")
    found = JournalFiles.of_host(roots, machine_id)
    assert [path.name for path in found.files] == [
        "broken.journal~",
        "system.journal",
        "system@1.journal",
        "early.journal",
    ]
    opener = Opener()
    found.open(opener)
    assert opener.asked == [{}]


@pytest.mark.parametrize("there", [True, False])
def test_no_journal_is_an_error(tmp_path: Path, machine_id: Path, there: bool) -> None:
    """A host without a journal, or without an id, is told apart from a quiet night."""
    if there:
        journal(tmp_path / "var" / ID)
    else:
        machine_id.unlink()
    with pytest.raises(S3daemonError, match="has no journal") as caught:
        JournalFiles.of_host([tmp_path / "var"], machine_id)
    assert caught.value.code == "NoJournal"


def test_a_saved_journal(tmp_path: Path) -> None:
    """A directory is read with the machines' directories in it, as libsystemd does; a single file alone."""
    journal(tmp_path, "here.journal")
    journal(tmp_path / ID, "below.journal")
    journal(tmp_path / "elsewhere", "not.journal")
    found = JournalFiles.saved(tmp_path)
    assert [path.name for path in found.files] == ["here.journal", "below.journal"]
    opener = Opener()
    found.open(opener)
    JournalFiles.saved(tmp_path / "here.journal").open(opener)
    assert opener.asked == [{"path": str(tmp_path)}, {"files": [str(tmp_path / "here.journal")]}]


@pytest.mark.parametrize(("name", "code"), [("nothing", "NoSuchFile"), ("empty", "NoJournal")])
def test_no_saved_journal_is_an_error(tmp_path: Path, name: str, code: str) -> None:
    """A place that is not there, or has no journal file, is told."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(S3daemonError) as caught:
        JournalFiles.saved(tmp_path / name)
    assert caught.value.code == code


def test_a_file_that_may_not_be_read_names_the_group(tmp_path: Path) -> None:
    """One unreadable file ends it, though libsystemd would show what else there is: the error says whose group may."""
    found = JournalFiles.saved(journal(tmp_path, "system.journal", "user-1000.journal"))
    with pytest.raises(S3daemonError, match="systemd-journal") as caught:
        found.check(Opener(system=PermissionError(errno.EACCES, "Permission denied")), pytest.fail)
    assert caught.value.code == "NotReadable"


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    """What is damaged is left out with a word, what journald removed meanwhile without; with nothing left it ends."""
    found = JournalFiles.saved(journal(tmp_path, "a.journal", "b.journal", "c.journal"))
    notes: list[str] = []
    damaged = OSError(errno.EBADMSG, "Bad message")
    opener = Opener(b=damaged, c=FileNotFoundError(errno.ENOENT, "gone"))
    found.check(opener, notes.append)
    assert [note.split(" ")[0] for note in notes] == [str(tmp_path / "b.journal")]
    assert "Bad message" in notes[0]
    assert opener.closed == 1
    with pytest.raises(S3daemonError, match="no journal file could be read"):
        found.check(Opener(a=damaged, b=damaged, c=damaged), notes.append)
