"""The daemon with few descriptors and many clients that take one each and say nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

from lab.daemon import daemon
from lab.flaky import FlakyS3

LIMIT = 256


def test_idle_clients_take_no_descriptor_that_the_daemon_needs(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """It reports its status to systemd, writes its records, reads files and reaches the store, and does not end."""
    prefix = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    with daemon(tmp_path / "state", s3.server, prefix=prefix, activated=True, max_connections="5") as served:
        idle = [served.connect() for _ in range(2 * LIMIT)]
        served.wait_status(lambda now: now["clients"] > 20, "full of clients")
        time.sleep(2.5)  # a status is reported each 2 s
        pid = served.process.pid
        assert len(os.listdir(f"/proc/{pid}/fd")) < LIMIT - 50
        for client in idle:
            client.close()
        assert served.plain(file, "a/bucket/k") == b"Success"
        assert served.process.pid == pid
        assert not [line for line in served.lines() if " error " in line or "Too many" in line]
        assert len(served.records()) == 1
