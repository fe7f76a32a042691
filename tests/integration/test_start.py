"""A daemon that cannot start exits at once, and its last message says why; one that starts is ready for a burst."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from fake_transfer import transfer
from lab.daemon import daemon
from lab.env import TREE
from lab.flaky import Fault, FlakyS3
from lab.processes import ProgramError
from lab.s3 import S3Server

from s3daemon.spool.spool import Spool

NOWHERE = S3Server("http://127.0.0.1:9", "key", "secret-of-the-test")


def test_a_port_in_use(tmp_path: Path) -> None:
    """It is named, although the spool was open by then and the journal had been flushed."""
    with socket.create_server(("127.0.0.1", 0)) as other, daemon(tmp_path, NOWHERE, running=False) as served:
        port = other.getsockname()[1]
        served.set(port=str(port))
        with pytest.raises(
            ProgramError, match=f"cannot start: CannotListen: cannot listen on 127.0.0.1:{port}: Address already"
        ):
            served.start()


def test_variables_of_the_original_daemon_do_not_keep_it_from_starting(tmp_path: Path) -> None:
    """One warning for each, and no more."""
    with daemon(tmp_path, NOWHERE, running=False) as served:
        served.set(max_retries="2", accept_wait="1", log="/var/log/s3daemon.log")
        served.start()
        warned = [line for line in served.lines() if "is ignored" in line]
    assert len(warned) == 3


def test_settings_that_are_not_used_are_named(tmp_path: Path) -> None:
    """An address, where systemd passes the sockets; and a spool in the directory that systemd has made."""
    usual, moved = tmp_path / "s3daemon", tmp_path / "moved"
    with daemon(usual, NOWHERE, STATE_DIRECTORY=str(usual)) as served:
        assert not any("not used" in line for line in served.lines())
    with daemon(moved, NOWHERE, activated=True, STATE_DIRECTORY=f"/elsewhere:{usual}", port="1") as served:
        assert any(f"{usual / 'spool.db'} is not used, as the service has another" in line for line in served.lines())
        assert any("S3DAEMON_PORT: not used, as systemd listens on 127.0.0.1" in line for line in served.lines())


def test_a_second_daemon(tmp_path: Path) -> None:
    """A lock prevents its start; the first one goes on."""
    with daemon(tmp_path, NOWHERE) as first, daemon(tmp_path, NOWHERE, running=False) as second:
        with pytest.raises(ProgramError, match=r"cannot start: SpoolLocked: .* is in use: process"):
            second.start()
        assert first.ask("status")["pending"] == 0


def test_a_damaged_spool_gets_more_time_from_systemd(tmp_path: Path) -> None:
    """Reading what is left of it may take longer than TimeoutStartSec=."""
    (tmp_path / "spool.db").write_bytes(b"not a database" * 1000)
    with daemon(tmp_path, NOWHERE) as served:
        served.process.wait_status(lambda status: int(status.get("EXTEND_TIMEOUT_USEC", 0)) >= 10 * 60e6, "extended")
    (tmp_path / "again").mkdir()
    with daemon(tmp_path / "again", NOWHERE) as served, pytest.raises(ProgramError):
        served.process.wait_status(lambda status: "EXTEND_TIMEOUT_USEC" in status, "extended", timeout=0.5)


def test_the_first_status_has_what_failed_before(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """An operator who looks a second after a restart sees the truth."""
    with daemon(tmp_path / "state", s3.server) as served:
        s3.faults = {Fault.DENIED: 1.0}
        served.plain(file, "a/bucket/key")
        served.terminate()
        served.start()
        assert "1 failed" in served.process.status["STATUS"]


def test_what_is_loaded_at_the_start_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    """There are some 95 000 objects: 80 ms and more in which no upload would go on."""
    with daemon(tmp_path, NOWHERE, module="lab.collecting", PYTHONPATH=f"{TREE}:{TREE / 'tests'}") as served:
        found = served.process.wait_line(r"(\d+) objects are looked through")
    assert int(found[1]) < 5_000


def test_a_command_that_comes_while_transfers_are_recovered_is_answered_after_it(tmp_path: Path) -> None:
    """With a hundred thousand that takes seconds; no daemon seemed to run meanwhile."""

    async def leave_one() -> None:
        spool = Spool.open(tmp_path)
        await spool.add(transfer(1), 0.0, attempt_started=False)
        await spool.close()

    asyncio.run(leave_one())
    path = f"{TREE}:{TREE / 'tests'}"
    with daemon(tmp_path, NOWHERE, running=False, module="lab.recovering", PYTHONPATH=path) as served:
        served.start(wait=False)
        served.process.wait_line("transfers are being recovered")
        answer = served.ask("status")
        assert answer["pending"] + answer["in_flight"] == 1
