"""A full disk under the spool: new requests are refused, accepted ones are stored; with space, requests are accepted.

The spool lies on a tmpfs of 1 MB in a mount namespace of the daemon's own, so this needs root.
"""

import itertools
import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3

from s3daemon.spool.database import SpoolFile

PLACE = Path("/mnt")
OWN_DISK = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=1m,mode=0700 spool {PLACE} && exec "$@"', "sh")


@pytest.fixture
def served(s3: FlakyS3) -> Iterator[Daemon]:
    if subprocess.run([*OWN_DISK, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    with daemon(PLACE, s3.server, prefix=OWN_DISK, stall_timeout="10min") as made:
        made.state_dir = Path(f"/proc/{made.process.pid}/root{PLACE}")  # as it is seen from here
        yield made


class Filler:
    """A file that takes all the space there is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "filler"

    def fill(self) -> None:
        """Take all the space there is now."""
        with self.path.open("ab", buffering=0) as file:
            for size in (4096, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        assert not os.statvfs(self.path).f_bavail


def left_by_a_crash(folder: Path, copy: Path) -> int:
    """How many transfers a crash now would leave in the spool."""
    copy.mkdir()
    for path in folder.glob("spool.db*"):
        shutil.copy(path, copy)
    with suppress(sqlite3.Error):  # it was copied in the middle of a commit
        file = SpoolFile(copy / "spool.db", create=False)
        try:
            return len(file.entries())
        finally:
            file.close()
    return -1


def test_a_full_disk(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """New requests are refused in one line, accepted ones are stored and leave the spool; with space, all works."""
    filler, file, accepted = Filler(served.state_dir), tmp_path / "file", list[str]()
    file.write_bytes(b"content")

    def ask(key: str) -> dict[str, str]:
        reply = served.extended(file, f"alias/bucket/{key}", wait=False)
        if reply["result"] == "accepted":
            accepted.append(key)
        return reply

    def ask_until_refused(name: str) -> dict[str, str]:
        for number in range(2000):
            if (reply := ask(f"{name}{number}"))["result"] != "accepted":
                return reply
        raise AssertionError("a full disk took all of it")

    s3.hold_bodies()
    for number in range(20):
        assert ask(f"before{number}")["result"] == "accepted"

    filler.fill()
    refused = ask_until_refused("full")
    assert (refused["result"], refused["code"]) == ("failed", "SpoolFull")
    assert "id" not in refused

    s3.release()
    served.wait_idle()
    assert set(s3.objects) == {f"bucket/{key}" for key in accepted}
    until, copies = time.monotonic() + 30, itertools.count()
    while left := left_by_a_crash(served.state_dir, tmp_path / f"copy{next(copies)}"):
        assert time.monotonic() < until, f"{left} that are stored never left the spool on the full disk"
        time.sleep(0.1)  # there is no event for it

    s3.hold_bodies()
    for _ in range(5):  # until the filler has the space that the daemon released for removals
        filler.fill()
        ask_until_refused("fuller")
    filler.fill()
    assert "is full" in served.ask("status")["spool"]
    served.process.wait_status(lambda status: "refusing requests" in status.get("STATUS", ""), "a STATUS that shows it")
    s3.release()  # what was refused must not be stored though the store is quick
    reply = served.plain(file, "alias/bucket/refused").decode()
    assert re.fullmatch(r"SpoolFull: nothing is accepted: [^\n]+\n", reply)

    filler.path.unlink()
    assert ask("after")["result"] == "accepted"
    assert served.ask("status")["spool"] == ""
    s3.release()
    served.wait_idle()
    assert set(s3.objects) == {f"bucket/{key}" for key in accepted}
