"""`s3daemon queue`: does the same through the daemon's socket while it runs, and on its spool while it is down."""

from __future__ import annotations

import argparse
import asyncio
import errno
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s3daemon.commands import queue
from s3daemon.control.rows import Row
from s3daemon.control.server import ControlServer, Handler
from s3daemon.model.ids import uuid_of
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.database import SpoolFile
from s3daemon.spool.rows import Entry
from s3daemon.spool.spool import Spool

TREE = Path(__file__).resolve().parents[2]


def transfer(name: str) -> Transfer:
    """A transfer whose id is made of its name."""
    seen = FileState(1000, 1, 2, 3)
    return Transfer(name.rjust(16, "0"), f"/data/{name}.fits", Destination("raw", f"{name}.fits"), (), seen, 1)


def ident(name: str) -> str:
    """The id of `transfer(name)`."""
    return name.rjust(16, "0")


def run(
    directory: Path, *argv: str, on_dropped: Callable[[Sequence[Entry]], None] = lambda _: None
) -> tuple[int, str, str]:
    """Run the command as the command line would; its exit status and what it printed."""
    parser = argparse.ArgumentParser()
    queue.configure(parser)
    out, err = io.StringIO(), io.StringIO()
    environ = {"S3DAEMON_STATE_DIR": os.fspath(directory)}
    status = queue.main(parser.parse_args(argv), environ, out=out, err=err, on_dropped=on_dropped)
    return status, out.getvalue(), err.getvalue()


@pytest.fixture
def spooled(tmp_path: Path) -> Path:
    """The directory of a spool, its daemon down: a and b pending, c and d failed, c's client not notified."""
    directory = tmp_path / "state"

    async def fill() -> None:
        spool = Spool.open(directory)
        for name in "abcd":
            await spool.add(transfer(name), 0.0, attempt_started=True)
        await spool.fail(ident("c"), 1, "NoSuchBucket", "no bucket", 1.0)
        await spool.fail(ident("d"), 2, "EntityTooLarge", "too large", 1.0)
        spool.mark_notified(ident("d"))
        await spool.close()

    asyncio.run(fill())
    return directory


def states(directory: Path) -> dict[str, bool]:
    """The last digit of each id in the spool, and whether it failed."""

    async def look() -> dict[str, bool]:
        spool = Spool.open(directory, create=False)
        found = {entry.transfer.id[-1]: entry.failed for entry in spool.entries()}
        await spool.close()
        return found

    return asyncio.run(look())


@contextmanager
def daemon(path: Path, handlers: Mapping[str, Handler]) -> Iterator[None]:
    """A control server in a thread of its own."""
    up, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = ControlServer(path, handlers)
        server.start()
        up.set()
        await end.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert up.wait(20)
        yield
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(20)
        loop.close()


def test_down_it_lists_the_spool(spooled: Path) -> None:
    """A table of what the spool holds, in the order of acceptance."""
    status, out, err = run(spooled)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0][-1] for line in lines[1:5]] == list("abcd")
    assert "NoSuchBucket: no bucket" in lines[3]
    assert [" failed, client not notified " in line for line in lines[1:5]] == [False, False, True, False]
    assert lines[5].startswith("4 transfers, 4 kB: 2 pending, 2 failed; the oldest ")
    assert run(spooled, "--failed")[1].count("\n") == 4


def test_down_it_lists_json(spooled: Path) -> None:
    """One array, an object a line."""
    status, out, _ = run(spooled, "--json", "--failed")
    rows = [Row.from_dict(members) for members in json.loads(out)]
    assert status == 0
    assert [(row.id, row.state, row.attempts, row.notified) for row in rows] == [
        (ident("c"), "failed", 1, False),
        (ident("d"), "failed", 2, True),
    ]
    assert len(out.splitlines()) == 4


def test_an_id_may_be_given_as_the_uuid_of_an_answer_over_http(spooled: Path) -> None:
    assert run(spooled, "retry", uuid_of(ident("c")).upper()) == (0, "1 will be tried again\n", "")
    assert run(spooled, "drop", uuid_of(ident("d"))) == (0, "1 dropped\n", "")
    assert states(spooled) == {"a": False, "b": False, "c": False}


def test_down_it_retries(spooled: Path) -> None:
    """What failed is pending again, by id or all of it; what is pending counts too, as it does while a daemon runs."""
    assert run(spooled, "retry", ident("c")) == (0, "1 will be tried again\n", "")
    assert states(spooled) == {"a": False, "b": False, "c": False, "d": True}
    assert run(spooled, "retry", ident("a")) == (0, "1 will be tried again\n", "")
    assert run(spooled, "retry", "--all") == (0, "4 will be tried again\n", "")
    assert not any(states(spooled).values())
    assert run(spooled, "retry", "--all") == (0, "4 will be tried again\n", "")


@pytest.mark.parametrize("action", ["retry", "drop"])
def test_an_unknown_id_is_one_line(spooled: Path, action: str) -> None:
    """That nothing was done goes without saying."""
    assert run(spooled, action, "zzzz") == (1, "", "UnknownTransfer: zzzz is not in the queue\n")


def test_down_it_drops(spooled: Path) -> None:
    """What is dropped is gone, and goes on record, unless it is on record already: as failed, with the reason."""
    records: list[Entry] = []
    status, out, err = run(spooled, "drop", ident("a"), "nosuch", on_dropped=records.extend)
    assert (status, out) == (1, "1 dropped\n")
    assert err == "UnknownTransfer: nosuch is not in the queue\n"
    assert [entry.transfer for entry in records] == [transfer("a")]
    assert run(spooled, "drop", "--all-failed", on_dropped=records.extend) == (0, "2 dropped\n", "")
    assert [entry.transfer.id[-1] for entry in records] == ["a"]
    assert states(spooled) == {"b": False}


def test_down_it_waits_for_the_journal_without_the_spool(spooled: Path) -> None:
    """A daemon can start meanwhile."""
    seen: list[dict[str, bool]] = []
    run(spooled, "drop", ident("a"), on_dropped=lambda _: seen.append(states(spooled)))
    assert seen == [{"b": False, "c": True, "d": True}]


def test_down_it_reports_a_disk_that_takes_nothing(spooled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded as dropped that the next start would deliver."""
    records: list[Entry] = []

    def full(file: SpoolFile, batches: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(SpoolFile, "commit", full)
    status, out, err = run(spooled, "drop", ident("a"), on_dropped=records.extend)
    assert (status, out, records) == (1, "", [])
    assert err.startswith("SpoolFull: ")


def test_down_it_creates_no_spool(tmp_path: Path) -> None:
    """Where there is none, the error names the directory."""
    status, out, err = run(tmp_path)
    assert (status, out) == (1, "")
    first = f"NoSpool: there is no spool in {tmp_path}: the daemon's first start makes it"
    assert err == f"{first}; --instance or --state-dir name others\n"
    assert not list(tmp_path.iterdir())


def test_a_daemon_that_does_not_listen(spooled: Path) -> None:
    """With the lock held and no daemon on the socket, the holder is named."""

    async def hold() -> tuple[int, str, str]:
        spool = Spool.open(spooled)
        try:
            return await asyncio.to_thread(run, spooled)
        finally:
            await spool.close()

    status, _, err = asyncio.run(hold())
    assert status == 1
    assert err.startswith("SpoolLocked: ")
    assert str(os.getpid()) in err


class FakeUploader:
    """Has rows, and remembers what is asked of it."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row.id: row for row in rows}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.handlers: dict[str, Handler] = {"queue": self.queue, "retry": self.act("retry"), "drop": self.act("drop")}

    async def queue(self, request: Mapping[str, object]) -> Mapping[str, object]:
        """The rows, as the daemon's handler gives them."""
        wanted = [row for row in self.rows.values() if row.state == "failed" or not request["failed"]]
        return {"transfers": (row.as_dict() for row in wanted)}

    def act(self, command: str) -> Handler:
        """A handler that remembers the command and answers with known ids."""

        async def handler(request: Mapping[str, object]) -> Mapping[str, object]:
            self.asked.append((command, dict(request)))
            ids = request.get("ids", list(self.rows))
            assert isinstance(ids, list)
            return {"ids": [id_ for id_ in ids if id_ in self.rows]}

        return handler


def some_rows(count: int, state: str = "pending") -> list[Row]:
    """Rows as an outage leaves them."""
    return [
        Row(f"{n:016x}", state, 86400 + n, 40, "ConnectionFailed", "connect to s3.example.org:443: Connection refused",
            30.5, 8_388_608, f"raw/2025/MC_O_20250716_{n:06}/MC_O_20250716_{n:06}_R22_S11.fits",
            f"/data/staging/MC_O_20250716_{n:06}_R22_S11.fits", notified=False)
        for n in range(count)
    ]  # fmt: skip


def test_up_the_daemon_is_asked(tmp_path: Path) -> None:
    """The spool is not opened."""
    rows = [*some_rows(2), *some_rows(3, "failed")[2:]]
    uploader = FakeUploader(rows)
    with daemon(tmp_path / "control", uploader.handlers):
        listed = json.loads(run(tmp_path, "--json")[1])
        failed = json.loads(run(tmp_path, "--failed", "--json")[1])
        assert run(tmp_path, "retry", "--all") == (0, "3 will be tried again\n", "")
        assert run(tmp_path, "retry", rows[0].id) == (0, "1 will be tried again\n", "")
        assert run(tmp_path, "drop", "--all-failed") == (0, "1 dropped\n", "")
        assert run(tmp_path, "drop", "x", rows[0].id)[0] == 1
    assert [Row.from_dict(members) for members in listed] == rows
    assert [members["id"] for members in failed] == [rows[2].id]
    assert uploader.asked == [
        ("retry", {"all": True}),
        ("retry", {"ids": [rows[0].id]}),
        ("drop", {"ids": [rows[2].id]}),
        ("drop", {"ids": ["x", rows[0].id]}),
    ]


def test_54_000_rows(tmp_path: Path) -> None:
    """Two nights of outage are listed and dropped in a moment, the start of the interpreter included.

    The aim is a second; the bound leaves room for a machine that does other things.
    """
    uploader = FakeUploader(some_rows(54_000, "failed"))
    program = (
        "import argparse, os, sys; from s3daemon.commands import queue; parser = argparse.ArgumentParser(); "
        "queue.configure(parser); "
        "sys.exit(queue.main(parser.parse_args(), os.environ, out=sys.stdout, err=sys.stderr))"
    )
    command = [sys.executable, "-c", program, "--state-dir", os.fspath(tmp_path)]
    taken = {}
    with daemon(tmp_path / "control", uploader.handlers):
        for argv in ((), ("--json",), ("drop", "--all-failed")):
            began = time.monotonic()
            done = subprocess.run([*command, *argv], cwd=TREE, capture_output=True, text=True, check=True)
            taken[argv] = time.monotonic() - began
            if not argv:
                assert done.stdout.count("\n") == 54_002
    print({" ".join(argv) or "queue": f"{seconds:.2f} s" for argv, seconds in taken.items()})
    assert [len(request["ids"]) for _, request in uploader.asked] == [10_000] * 5 + [4_000]
    assert max(taken.values()) < 5
