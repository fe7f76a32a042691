"""The process stopped, or the wall clock stepped: no transfer stalls or expires because of it, no record is wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.env import TREE
from lab.flaky import FlakyS3
from lab.sending import a_file

#: Python runs this at its start, before the daemon takes `time.time` for its wall clock.
STEPPING = """
import time
real = time.time
def stepped():
    with open({place!r}) as file:
        return real() + float(file.read() or 0)
time.time = stepped
"""


def test_a_process_that_was_stopped(s3: FlakyS3, tmp_path: Path) -> None:
    """After SIGSTOP for longer than all limits of an attempt, and SIGCONT, one attempt is enough, and is answered."""
    file = a_file(tmp_path / "file", 20 << 20)
    limits = {"stall_timeout": "1s", "answer_timeout": "1s", "wait_limit": "5min"}
    with daemon(tmp_path / "state", s3.server, limits) as served, ThreadPoolExecutor(1) as pool:
        s3.hold_bodies()
        asked = pool.submit(served.plain, file, "a/bucket/key")
        assert s3.held_bodies.acquire(timeout=20)
        served.process.popen.send_signal(signal.SIGSTOP)
        s3.release()
        time.sleep(2.5)  # longer than all limits
        assert not asked.done()
        served.process.popen.send_signal(signal.SIGCONT)
        assert asked.result() == b"Success"
        served.terminate()  # a record comes after the answer
        (record,) = served.records()
    assert record.attempts == 1
    assert len(s3.puts) == 1


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """Return a file with the number of seconds by which the daemon's wall clock is wrong."""
    place = tmp_path / "step"
    place.write_text("0")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(STEPPING.format(place=str(place)))
    return place


@pytest.fixture
def served(clock: Path, s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server, running=False, retry_for="30s", keep_failed="30s") as made:
        made.set(PYTHONPATH=f"{tmp_path / 'site'}:{TREE}")
        made.start()
        yield made


@pytest.mark.parametrize("step", [3600, -3600], ids=["forward", "back"])
def test_a_clock_that_steps(served: Daemon, s3: FlakyS3, clock: Path, file: Path, step: int) -> None:
    """A step far beyond the retry limit expires nothing, not even over a restart; everything is stored in time."""
    s3.refuse()
    assert served.extended(file, "a/bucket/before", wait=False)["result"] == "accepted"
    clock.write_text(str(step))
    assert served.extended(file, "a/bucket/after", wait=False)["result"] == "accepted"
    served.restart()
    assert {row["destination"]: row["state"] != "failed" for row in served.queue()} == {
        "bucket/before": True,
        "bucket/after": True,
    }
    began = time.monotonic()
    s3.open()
    served.ask("retry", all=True)
    served.wait_idle()
    assert time.monotonic() - began < 20
    assert served.plain(file, "a/bucket/now") == b"Success"
    served.terminate()
    records = {record.key: record for record in served.records()}
    assert {record.outcome for record in records.values()} == {"stored"}
    assert abs(records["now"].start - (time.time() + step)) < 60  # the step took effect
    assert records["now"].seconds < 20
    assert all(record.seconds >= 0 for record in records.values())
