"""A file system that never answers holds its own transfers and nothing else; one that fails is asked again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab.daemon import daemon
from lab.env import UnavailableError
from lab.flaky import FlakyS3
from lab.sickfs import SickFs, content, sickfs

LIMITS = {"stall_timeout": "2s", "wait_limit": "4s", "drain_timeout": "3s", "max_connections": "4"}


@pytest.fixture
def sick(tmp_path: Path) -> Iterator[SickFs]:
    try:
        with sickfs(tmp_path) as made:
            yield made
    except UnavailableError as missing:
        pytest.skip(str(missing))


def test_a_hung_file_system(sick: SickFs, s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Others go on at once, also in the next process; those it holds are kept; and it holds up no stop."""
    with (
        daemon(tmp_path / "state", s3.server, activated=True, **LIMITS) as served,
        ThreadPoolExecutor(9) as pool,
        ExitStack() as last,
    ):
        last.callback(sick.end)  # whatever fails: until then the kernel ends no process that waits in it
        hung = [pool.submit(served.plain, sick.file(f"hung{n}"), f"a/bucket/hung{n}") for n in range(3)]
        mute = [pool.submit(served.plain, sick.file(f"mute{n}"), f"a/bucket/mute{n}") for n in range(3)]
        served.wait_status(lambda now: now["in_flight"] == 3, "hung")
        took = list[float]()
        while not all(one.done() for one in (*hung, *mute)):
            began = time.monotonic()
            assert served.plain(file, f"a/bucket/well{len(took)}") == b"Success"
            took.append(time.monotonic() - began)
        print(f"\n{len(took)} others meanwhile, the slowest {max(took):.2f} s")
        assert len(took) > 20
        assert max(took) < 1.5  # less than the stall limit: none stood behind one that hangs
        assert {one.result().split(b":")[0] for one in hung} == {b"Deferred"}
        assert all(b"ReadFailed" in one.result() for one in hung)
        assert all(one.result().startswith(b"ReadFailed: ") for one in mute)

        began = time.monotonic()
        served.process.popen.terminate()
        served.process.wait_line("stopped; 3 transfers are kept for the next start")
        assert time.monotonic() - began < 12  # the drain's 3 s, and what a busy machine takes
        # The kernel lets go of the process when the file system answers, not before; the next one need not wait.
        with daemon(tmp_path / "state", s3.server, **LIMITS) as following:
            assert following.plain(file, "a/bucket/after") == b"Success"
            assert {row["destination"] for row in following.queue()} == {f"bucket/hung{n}" for n in range(3)}
            sick.end()
            assert served.process.wait() == 0


def test_eio(sick: SickFs, s3: FlakyS3, tmp_path: Path) -> None:
    """A read that fails is no end of a transfer: the client is told, and what is whole again is stored whole."""
    with daemon(tmp_path / "state", s3.server, **LIMITS) as served:
        told = served.plain(sick.file("broken"), "a/bucket/broken")
        assert told.startswith(b"Deferred: ")
        assert b"ReadFailed" in told
        assert "Input/output error" in told.decode()
        assert not s3.puts
        sick.heal()
        served.ask("retry", all=True)
        served.wait_idle()
    assert s3.objects["bucket/broken"].body == content("broken")
