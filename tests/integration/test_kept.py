"""Waiting clients get their answer from the next process, by the lab's version of systemd's descriptor store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.terminate], ids=["killed", "terminated"])
def test_answers_over_a_restart(s3: FlakyS3, tmp_path: Path, file: Path, end: object) -> None:
    """Plain and extended requests are answered after two restarts, and no descriptor is left in the store."""
    assert callable(end)
    with (
        daemon(tmp_path / "state", s3.server, activated=True, keeping=True, drain_timeout="0s") as served,
        ThreadPoolExecutor(2) as pool,
    ):
        s3.hold_bodies()
        plain = pool.submit(served.plain, file, "a/bucket/plain")
        extended = pool.submit(served.extended, file, "a/bucket/extended")
        served.wait_status(lambda now: now["in_flight"] == 2, "in flight")
        for _ in range(2):
            end(served)
            served.start()
        s3.release()
        assert plain.result() == b"Success"
        assert extended.result()["result"] == "stored"
        served.wait_status(lambda now: now["clients"] <= 1, "without clients")
        assert not served.kept
