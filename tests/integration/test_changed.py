"""A file that is rewritten during its transfer: its last content is what is stored; but not what comes after that."""

import time
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


def test_a_file_that_is_reused_after_success_does_not_replace_its_object(
    served: Daemon, s3: FlakyS3, tmp_path: Path
) -> None:
    """After a crash the next process may still have the transfer; the file is another exposure's by then."""
    file = tmp_path / "latest"
    file.write_bytes(b"exposure 1")
    assert served.plain(file, "alias/bucket/1") == b"Success"
    served.kill()
    file.write_bytes(b"exposure 2")
    served.start()
    served.wait_idle()
    assert s3.objects["bucket/1"].body == b"exposure 1"
    assert len(s3.puts) == 1


def test_older_content_does_not_replace_newer_after_a_crash(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """The newer one's client was told that it is stored, and has removed its file: it could not be sent again."""
    s3.latency_s = 0.2
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    assert served.extended(old, "alias/bucket/key", wait=False)["result"] == "accepted"
    while not s3.puts:
        time.sleep(0.01)  # its answer is on its way
    s3.latency_s = 0.0
    assert served.plain(new, "alias/bucket/key") == b"Success"
    new.unlink()
    served.kill()
    served.start()
    served.wait_idle()
    assert s3.objects["bucket/key"].body == b"new"
    assert len(s3.puts) == 2


@pytest.mark.parametrize("state", ["running", "down"])
def test_a_retry_of_older_content_does_not_replace_newer_after_a_crash(
    served: Daemon, s3: FlakyS3, tmp_path: Path, state: str
) -> None:
    """Likewise, if the older one had failed and an operator retries it; it is overtaken."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    s3.faults = {Fault.DENIED: 1.0}
    assert served.plain(old, "alias/bucket/key").startswith(b"AccessDenied: ")
    s3.faults = {}
    with served.connect() as client:
        s3.latency_s = 0.5
        client.sendall(f"{new} alias/bucket/key\n".encode())
        while not s3.puts:
            time.sleep(0.01)  # its answer is on its way
        if state == "running":
            served.ask("retry", all=True)
        assert client.recv(100) == b"Success"
    s3.latency_s = 0.0
    new.unlink()
    served.kill()
    if state == "down":
        assert served.command("queue", "retry", "--all").returncode == 0
    served.start()
    served.wait_idle()
    assert s3.objects["bucket/key"].body == b"new"
    assert len(s3.puts) == 1
