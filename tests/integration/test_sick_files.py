"""A file system that never answers delays only its own transfers; one that fails is tried again."""

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
from lab.installed import until
from lab.sickfs import SickFs, content, sickfs

LIMITS = {"stall_timeout": "2s", "wait_limit": "4s", "drain_timeout": "3s", "max_connections": "4"}


@pytest.fixture
def sick(tmp_path: Path) -> Iterator[SickFs]:
    try:
        with sickfs(tmp_path) as made:
            yield made
    except UnavailableError as missing:
        pytest.skip(str(missing))


def test_a_file_system_that_hangs(sick: SickFs, s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Other transfers go on, also in the next process; its own are kept; and a stop does not wait for it."""
    with (
        daemon(tmp_path / "state", s3.server, LIMITS, activated=True) as served,
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
        assert max(took) < 1.5  # less than the stall limit: none waited for one that hangs
        assert {one.result().split(b":")[0] for one in hung} == {b"Deferred"}
        assert all(b"ReadFailed" in one.result() for one in hung)
        assert all(one.result().startswith(b"ReadFailed: ") for one in mute)

        began = time.monotonic()
        served.process.popen.terminate()
        served.process.wait_line("stopped; 3 transfers kept for the next start")
        assert time.monotonic() - began < 12  # the drain's 3 s, and what a busy machine takes
        # The kernel ends the process only when the file system answers; the next process need not wait for that.
        stat = Path(f"/proc/{served.process.pid}/stat")
        until(stat.read_text, lambda text: ") Z " in text, "the end of the main thread")
        with daemon(tmp_path / "state", s3.server, LIMITS) as following:
            assert following.plain(file, "a/bucket/after") == b"Success"
            assert {row["destination"] for row in following.queue()} == {f"bucket/hung{n}" for n in range(3)}
            sick.end()
            assert served.process.wait() == 0


@pytest.mark.parametrize("name", ["broken", "broken-small"])
def test_a_read_error(sick: SickFs, s3: FlakyS3, tmp_path: Path, name: str) -> None:
    """It does not end the transfer: the client gets the error, and the file is stored once it can be read."""
    with daemon(tmp_path / "state", s3.server, LIMITS) as served:
        reply = served.plain(sick.file(name), f"a/bucket/{name}")
        assert reply.startswith(b"Deferred: ")
        assert b"ReadFailed" in reply
        assert "Input/output error" in reply.decode()
        assert not s3.puts
        sick.heal()
        served.ask("retry", all=True)
        served.wait_idle()
    assert s3.objects[f"bucket/{name}"].body == content(name)


def test_a_file_that_another_host_replaced(sick: SickFs, s3: FlakyS3, tmp_path: Path) -> None:
    """The kernel remembers the old one for a moment; the request waits for that."""
    with daemon(tmp_path / "state", s3.server, LIMITS) as served:
        assert served.plain(sick.file("moved"), "a/bucket/moved") == b"Success"
    assert s3.objects["bucket/moved"].body == content("moved")
