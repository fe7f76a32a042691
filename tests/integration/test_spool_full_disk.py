"""The spool on a real file system of 1 MB, in a mount namespace of its own: full, read-only, and working again.

Nothing is accepted that is not durable, what was accepted can be removed, what could not be written is written later,
and acceptance resumes without a restart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from s3daemon.model.record import MessageId, Priority

TOP = Path(__file__).resolve().parents[2]
#: What every scenario begins with; it runs in a process of its own, with the file system mounted at `top`.
PRELUDE = """
import asyncio, json, os, subprocess, sys
from pathlib import Path
from s3daemon.errors import SpoolError, StartError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.spool import Spool

top = Path(sys.argv[1])
state = top / "state"
result = {}

def transfer(n, key=None):
    place = Destination("bucket", key or f"20261123/{n:06d}.fits")
    return Transfer(f"{n:016x}", f"/data/{n:06d}" + "x" * 200, place, (), FileState(1, 2, 3, 4), 5)

async def fill(spool, first=0):
    "Accept until refused; the transfers that were accepted."
    accepted = []
    for n in range(first, first + 100000):
        try:
            await spool.add(transfer(n), 1.0, attempt_started=True)
        except SpoolError as error:
            result["refusal"] = [error.code, error.text]
            result["fault"] = spool.fault
            return accepted
        accepted.append(transfer(n))

async def settled(spool):
    "Wait until the fault is over."
    while spool.fault:
        await asyncio.sleep(0.01)

def ids(entries):
    return [entry.transfer.id for entry in entries]

def fill_other():
    "Take every block that is left, as another program would."
    with open(top / "other", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
"""


def run(tmp_path: Path, scenario: str, size: str = "1m") -> dict[str, Any]:
    """Run `async def main()` of `scenario` on a file system of its own and give the `result` that it leaves."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    mount = f'mount -t tmpfs -o size={size},mode=0700 tmpfs "$1" && shift && exec "$@"'
    return run_in(
        tmp_path, scenario, "unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", tmp_path
    )


def run_in(directory: Path, scenario: str, *words: str | Path) -> dict[str, Any]:
    """Run `async def main()` of `scenario` there, behind these words of a command."""
    program = f"{PRELUDE}\n{scenario}\nasyncio.run(main())\nprint(json.dumps(result))"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.fspath(TOP)}
    command = [*words, sys.executable, "-c", program, directory]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_full_disk_refuses_allows_removals_and_accepts_again(tmp_path: Path) -> None:
    """Only the spool uses the disk: once its own removals have made space, it accepts again by itself."""
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state, retry_s=0.02)
    accepted = await fill(spool)
    result["accepted"] = len(accepted)
    for done in accepted[: len(accepted) // 2]:
        spool.remove(done.id)
    spool.record_attempt(accepted[-1].id, 7, attempt_started=False, code="SlowDown", text="slow down")
    await spool.fail(accepted[-2].id, 3, "NoSuchBucket", "no such bucket", 2.0)
    await settled(spool)
    result["reserved"] = (state / "ballast").stat().st_size
    more = await fill(spool, 1000000)
    result["more"] = len(more)
    await spool.close()
    spool = Spool.open(state)
    entries = {entry.transfer.id: entry for entry in spool.entries()}
    result["exact"] = list(entries) == [t.id for t in [*accepted[len(accepted) // 2 :], *more]]
    result["noted"] = entries[accepted[-1].id].attempts, entries[accepted[-2].id].failed
    await spool.close()
""",
    )
    assert result["refusal"][0] == "SpoolFull"
    assert "is full" in result["refusal"][1]
    assert result["fault"] == result["refusal"][1]
    assert result["accepted"] > 500
    assert result["reserved"] == 256 * 1024
    assert result["more"] > 100
    assert result["exact"]
    assert result["noted"] == [7, True]


def test_a_fault_is_logged_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    """Once each, however many requests are refused in between, under the ids that the catalog explains."""
    result = run(
        tmp_path,
        """
import logging

class Keeper(logging.Handler):
    def emit(self, record):
        if hasattr(record, "journal"):
            result.setdefault("logged", []).append([record.levelname, record.getMessage(), record.journal])

async def main():
    logging.getLogger("s3daemon").addHandler(Keeper())
    spool = Spool.open(state, retry_s=0.02)
    fill_other()
    await fill(spool)
    (top / "other").rename(top / "other1")
    fill_other()  # the space that the WAL and the reserved file gave back, so that nothing can end the fault
    refused = 0
    for n in range(200):
        try:
            await spool.add(transfer(500000 + n), 1.0, attempt_started=True)
        except SpoolError:
            refused += 1
    result["refused"] = refused
    result["before"] = len(result["logged"])
    for name in ("other", "other1"):
        (top / name).unlink()
    await settled(spool)
    await spool.add(transfer(999999), 1.0, attempt_started=False)
    await spool.close()
""",
    )
    assert result["refused"] > 100
    assert len(result["logged"]) < 20
    (begin, fault, kind), (end, over, other) = result["logged"][result["before"] - 1 :]
    assert (begin, kind) == ("ERROR", {"MESSAGE_ID": MessageId.SPOOL_FULL})
    assert "is full" in fault
    assert (end, other) == ("WARNING", {"MESSAGE_ID": MessageId.SPOOL_WRITABLE, "PRIORITY": Priority.NOTICE})
    assert "can be written again; requests are accepted" in over


def test_removals_go_on_while_another_fills_the_disk(tmp_path: Path) -> None:
    """Not a block is free: the reserved space is for removals, acceptances are refused until the other file is gone."""
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state, retry_s=0.02)
    accepted = []
    for n in range(200):
        await spool.add(transfer(n), 1.0, attempt_started=True)
        accepted.append(transfer(n))
    fill_other()
    await fill(spool, 1000)
    for done in accepted[:150]:
        spool.remove(done.id)
    await spool.fail(accepted[150].id, 3, "NoSuchBucket", "no such bucket", 2.0)
    result["left"] = len(ids(spool.entries()))
    result["still"] = spool.fault
    (top / "other").unlink()
    await settled(spool)
    await spool.add(transfer(9999), 1.0, attempt_started=False)
    await spool.close()
    spool = Spool.open(state)
    result["last"] = ids(spool.entries())[-1] == transfer(9999).id
    result["failed"] = ids(spool.failed_entries()) == [accepted[150].id]
    await spool.close()
""",
    )
    assert "is full" in result["still"]
    assert 50 <= result["left"] < 100  # those of the 200 that are left, and what fitted before the refusal
    assert result["last"]
    assert result["failed"]


def test_what_cannot_be_written_is_retained_and_written_later(tmp_path: Path) -> None:
    """Another file takes the reserved space too: nothing can be written, nothing is forgotten."""
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state, retry_s=0.02)
    for n in range(40):
        await spool.add(transfer(n), 1.0, attempt_started=True)
    fill_other()
    refused = await fill(spool, 1000)
    fill_other()
    for n in range(500):
        spool.record_attempt(transfer(n % 10).id, n, attempt_started=False, code="SlowDown", text="slow down")
    for n in range(20, 30):
        spool.remove(transfer(n).id)
    try:
        await spool.fail(transfer(30).id, 3, "NoSuchBucket", "no such bucket", 2.0)
    except SpoolError as error:
        result["fail"] = error.code
    dropped, error = await spool.drop([transfer(31).id])
    result["drop"] = [len(dropped), error.code]
    (top / "other").unlink()
    await settled(spool)
    entries = {entry.transfer.id: entry for entry in spool.entries()}
    result["attempts"] = [entries[transfer(n).id].attempts for n in range(10)]
    result["removed"] = not any(transfer(n).id in entries for n in [*range(20, 30), 31])
    result["failed"] = [entry.transfer.id for entry in entries.values() if entry.failed] == [transfer(30).id]
    result["count"] = len(entries) == 40 - 11 + len(refused)
    await spool.close()
""",
    )
    assert result["fail"] == "SpoolFull"
    assert result["drop"] == [1, "SpoolFull"]
    assert result["attempts"] == list(range(490, 500))
    assert result["removed"]
    assert result["failed"]
    assert result["count"]


def test_many_removals_need_little_space(tmp_path: Path) -> None:
    """In one commit they would need the space of the whole file once more."""
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state, lazy_s=0.01, retry_s=0.02)
    accepted = await fill(spool)
    fill_other()
    for done in accepted:
        spool.remove(done.id)
    result["kept"] = (await spool.drop([]))[1].code
    os.truncate(top / "other", (top / "other").stat().st_size - 40 * 4096)
    while ids(spool.entries()):
        await asyncio.sleep(0.01)
    result["accepted"] = len(accepted)
    result["still"] = spool.fault
    await spool.close()
""",
        size="4m",
    )
    assert result["accepted"] > 5000
    assert result["kept"] == "SpoolFull"
    assert "is full" in result["still"]  # there is no space to reserve yet


def test_a_start_on_a_full_disk_reads_what_there_is(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state)
    for n in range(20):
        await spool.add(transfer(n), 1.0, attempt_started=True)
    await spool.close()
    (state / "ballast").unlink()
    fill_other()
    spool = Spool.open(state, retry_s=0.02)
    result["found"] = len(ids(spool.entries()))
    result["at_once"] = spool.fault
    result["accepted"] = len(await fill(spool, 1000))
    (top / "other").unlink()
    await settled(spool)
    await spool.add(transfer(77), 1.0, attempt_started=True)
    result["then"] = len(ids(spool.entries()))
    await spool.close()
""",
    )
    assert result["found"] == 20
    assert "is full" in result["at_once"]
    assert result["accepted"] == 0
    assert result["then"] == 21


def test_a_read_only_disk_prevents_the_start_only(tmp_path: Path) -> None:
    """A daemon could accept nothing there: systemd tries again, and clients wait in the socket's backlog."""
    result = run(
        tmp_path,
        """
async def main():
    spool = Spool.open(state)
    await spool.add(transfer(1), 1.0, attempt_started=True)
    await spool.close()
    subprocess.run(["mount", "-o", "remount,ro", str(top)], check=True)
    try:
        Spool.open(state)
    except StartError as error:
        result["refused"] = [error.code, error.text]
    subprocess.run(["mount", "-o", "remount,rw", str(top)], check=True)
    spool = Spool.open(state)
    result["found"] = len(ids(spool.entries()))
    await spool.close()
""",
    )
    assert result["refused"][0] == "SpoolDenied"
    assert "Read-only" in result["refused"][1]
    assert result["found"] == 1


def test_a_failing_disk_refuses_without_trace_and_works_again(tmp_path: Path) -> None:
    """A limit on the size of files makes each write fail as a broken disk does; that needs no root."""
    result = run_in(
        tmp_path,
        """
import resource

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    spool = Spool.open(state, retry_s=3600)
    await spool.add(transfer(1), 1.0, attempt_started=True)
    limit(100)
    try:
        await spool.add(transfer(2), 1.0, attempt_started=True)
    except SpoolError as error:
        result["refused"] = [error.code, error.text, spool.fault]
    spool.record_attempt(transfer(1).id, 9, attempt_started=False, code="SlowDown", text="slow down")
    try:
        await spool.start_attempt(transfer(1))
    except SpoolError as error:
        result["begin"] = error.code
    limit(resource.RLIM_INFINITY)
    result["seq"] = await spool.add(transfer(3), 1.0, attempt_started=True)
    result["fault"] = spool.fault
    await spool.add(transfer(2), 1.0, attempt_started=True)
    await spool.close()
    spool = Spool.open(state)
    result["rows"] = [[entry.transfer.id, entry.attempts, entry.attempt_started] for entry in spool.entries()]
    await spool.close()

""",
    )
    code, text, fault = result["refused"]
    assert code == "SpoolBroken"
    assert "cannot be written" in text
    assert fault == text
    assert result["begin"] == "SpoolBroken"
    assert (result["seq"], result["fault"]) == (3, "")
    assert result["rows"] == [[f"{1:016x}", 9, True], [f"{3:016x}", 0, True], [f"{2:016x}", 0, True]]
