"""`s3daemon reload`: the operator's variables go to the daemon; words and exit status say what it did."""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

import pytest
from lab.control import answering

from s3daemon.commands.reload import main

NOTHING = argparse.Namespace()


@pytest.mark.parametrize(
    ("answer", "status", "out", "err"),
    [
        (b'{"ok": true, "applied": [], "restart": []}\n', 0, "nothing changed\n", ""),
        (
            b'{"ok": true, "applied": ["A", "B"], "restart": ["C"]}\n',
            0,
            "in force: A, B\ntakes effect at the next restart: C\n",
            "",
        ),
        (
            b'{"ok": false, "code": "BadSettings", "text": "", "faults": ["a", "b"]}\n',
            1,
            "",
            "a\nb\nrefused: the previous settings stay in force\n",
        ),
        (b'{"ok": false, "code": "Internal", "text": "a bug"}\n', 1, "", "Internal: a bug\n"),
    ],
)
def test_what_a_reload_says(tmp_path: Path, answer: bytes, status: int, out: str, err: str) -> None:
    """The operator's variables are handed over; the outcome is in words and in the exit status."""
    environ = {
        "RUNTIME_DIRECTORY": os.fspath(tmp_path),
        "S3DAEMON_PORT": "1",
        "CREDENTIALS_DIRECTORY": "/c",
        "INVOCATION_ID": "1f",
    }
    outs, errs = io.StringIO(), io.StringIO()
    with answering(tmp_path / "control", answer) as asked:
        assert main(NOTHING, environ, out=outs, err=errs) == status
    assert asked == [b'{"command": "reload", "environ": {"S3DAEMON_PORT": "1"}, "invocation": "1f"}\n']
    assert (outs.getvalue(), errs.getvalue()) == (out, err)


def test_reload_without_a_daemon(tmp_path: Path) -> None:
    """One line, exit status 1."""
    errs = io.StringIO()
    assert main(NOTHING, {"S3DAEMON_STATE_DIR": os.fspath(tmp_path)}, out=io.StringIO(), err=errs) == 1
    assert errs.getvalue().startswith(f"NoDaemon: no daemon listens on {tmp_path}/control: start it; s3daemon check")
    assert errs.getvalue().count("\n") == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"ok": true, "applied": ["A"], "restart": []}\n', 0),
        (b'{"ok": false, "code": "BadSettings", "text": "", "faults": ["a"]}\n', 1),
    ],
)
def test_under_systemd_one_event_is_one_line(tmp_path: Path, answer: bytes, status: int) -> None:
    """The daemon logs what came of a reload; ExecReload= adds nothing to the same journal."""
    environ = {"RUNTIME_DIRECTORY": os.fspath(tmp_path), "JOURNAL_STREAM": "8:1"}
    outs, errs = io.StringIO(), io.StringIO()
    with answering(tmp_path / "control", answer):
        assert main(NOTHING, environ, out=outs, err=errs) == status
    assert outs.getvalue() + errs.getvalue() == ""
