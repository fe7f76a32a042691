"""A file that is rewritten during its transfer: its last content is what is stored."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import Fault, FlakyS3


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server) as made:
        yield made


def store_unnoticed_then_rewrite(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """An attempt stores the file, but the daemon cannot know; then the file gets newer content of the same size."""
    s3.faults = {Fault.HUNG_UP_KEPT: 1.0}
    file.write_bytes(b"older content")
    assert served.extended(file, "alias/bucket/key", wait=False)["result"] == "accepted"
    served.process.wait_line("attempt 1 failed")
    assert s3.objects["bucket/key"].body == b"older content"
    file.write_bytes(b"newer content")


def test_an_object_of_older_content_does_not_count(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """An object of an earlier attempt counts as stored only if it is the file's present content."""
    store_unnoticed_then_rewrite(served, s3, tmp_path / "file")
    s3.faults = {Fault.RESET: 1.0}
    served.ask("retry", all=True)
    served.process.wait_line("attempt 2 failed")
    s3.faults = {}
    served.ask("retry", all=True)
    served.wait_idle()
    assert s3.objects["bucket/key"].body == b"newer content"


def test_an_object_of_older_content_does_not_count_after_a_crash(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """A crash between noting the newer file and sending it does not make the older one count."""
    store_unnoticed_then_rewrite(served, s3, tmp_path / "file")
    s3.faults = {}
    s3.hold_bodies()
    served.ask("retry", all=True)
    assert s3.held_bodies.acquire(timeout=30)
    served.kill()
    s3.release()
    served.start()
    served.wait_idle()
    assert s3.objects["bucket/key"].body == b"newer content"
