"""A host is read as it is."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest

from s3daemon.commands.check.system import (
    PROCESS_ENDED,
    RUN_FAILED,
    SPAWN_FAILED,
    START_FAILED,
    Host,
    last_reason,
)


def test_sysctl(tmp_path: Path) -> None:
    """Blanks are single; what cannot be read is empty."""
    file = tmp_path / "proc/sys/net/ipv4/tcp_wmem"
    file.parent.mkdir(parents=True)
    file.write_text("4096\t16384\t4194304\n")
    host = Host(tmp_path)
    assert host.sysctl("net.ipv4.tcp_wmem") == "4096 16384 4194304"
    assert host.sysctl("net.ipv4.gone") == ""


def test_users_are_looked_up_on_this_host() -> None:
    """Users are looked up on this host."""
    root = Host().user("root")
    assert root is not None
    assert root.pw_uid == 0
    assert Host().user("no-such-user-here") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look as another user")
def test_what_another_user_may_read() -> None:
    """By its own rights, and those of further groups; of a user or a group that is not there nothing is known."""
    with tempfile.TemporaryDirectory() as directory:  # tmp_path is below a directory of root's alone
        os.chmod(directory, 0o755)
        file = Path(directory, "file")
        file.touch(0o640)
        readable = Host().readable
        assert readable(file, "nobody", []) is False
        assert readable(file, "nobody", ["root"]) is True
        assert readable(file, "no-such-user-here", []) is None
        assert readable(file, "nobody", ["no-such-group-here"]) is None
        file.chmod(0o644)
        assert readable(file, "nobody", []) is True


RUN = {"INVOCATION_ID": "2"}
OF_RUN = {"_SYSTEMD_INVOCATION_ID": "2"}
FAILED = {**RUN, "PRIORITY": "4", "MESSAGE": "x.service: Failed with result", "MESSAGE_ID": RUN_FAILED}
NOT_STARTED = {**RUN, "PRIORITY": "3", "MESSAGE": "Failed to start x", "MESSAGE_ID": START_FAILED}
ENDED = {**RUN, "PRIORITY": "5", "MESSAGE": "Main process exited, status=1", "MESSAGE_ID": PROCESS_ENDED}
REFUSED = {**OF_RUN, "PRIORITY": "3", "MESSAGE": "cannot start: BadSettings: b"}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], ""),
        ([{**OF_RUN, "PRIORITY": "3", "MESSAGE": "still running"}], ""),
        ([{**REFUSED, "MESSAGE": "cannot start: BadSettings: a"}, REFUSED, ENDED, FAILED, NOT_STARTED],
         "cannot start: BadSettings: b"),
        # Of the run before, and of the next one.
        ([{"PRIORITY": "3", "MESSAGE": "old", "_SYSTEMD_INVOCATION_ID": "1"}, ENDED, FAILED, NOT_STARTED,
          {"PRIORITY": "3", "MESSAGE": "new", "_SYSTEMD_INVOCATION_ID": "3"}],
         "Main process exited, status=1"),
        ([{**FAILED, "INVOCATION_ID": "1"}, {**RUN, "PRIORITY": "3", "MESSAGE": "Watchdog timeout"}, FAILED],
         "Watchdog timeout"),
        ([{**OF_RUN, "PRIORITY": "6", "MESSAGE": "Traceback", "_TRANSPORT": "stdout"},
          {**OF_RUN, "PRIORITY": "6", "MESSAGE": "ImportError: libx", "_TRANSPORT": "stdout"}, ENDED, FAILED],
         "ImportError: libx"),
        ([{**OF_RUN, "PRIORITY": "3", "MESSAGE": "no /data"},
          {**OF_RUN, "PRIORITY": "3", "MESSAGE": "Failed at step NAMESPACE", "MESSAGE_ID": SPAWN_FAILED},
          ENDED, FAILED],
         "no /data; Failed at step NAMESPACE"),
        # A transfer that failed is not why the service did.
        ([{**OF_RUN, "PRIORITY": "3", "MESSAGE": "b/k failed", "S3DAEMON_KEY": "k"}, ENDED, FAILED],
         "Main process exited, status=1"),
        ([FAILED, NOT_STARTED], ""),
    ],
)  # fmt: skip
def test_the_reason_of_the_last_failure(entries: list[dict[str, str]], reason: str) -> None:
    assert last_reason(map(json.dumps, entries)) == reason
