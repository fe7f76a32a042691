"""What operators do with a running daemon, and with its spool while it is down."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import Fault, FlakyS3, flaky


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server, stall_timeout="10min") as made:
        yield made


def accepted(served: Daemon, file: Path, key: str) -> str:
    """Have a file accepted; return the id of its transfer."""
    reply = served.extended(file, f"alias/bucket/{key}", wait=False)
    assert reply["result"] == "accepted"
    return reply["id"]


def listed(served: Daemon) -> list[dict[str, Any]]:
    """Return what `s3daemon queue --json` prints, which a daemon that is up says too."""
    done = served.command("queue", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def states(served: Daemon) -> dict[str, str]:
    """Return the states by destination."""
    return {row["destination"]: row["state"] for row in listed(served)}


def test_a_second_daemon_on_the_same_directory_exits(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Its message names the process of the first one, which goes on."""
    with daemon(served.state_dir, s3.server, running=False) as second:
        second.start(wait=False)
        assert second.process.wait() == 1
        assert f"process {served.process.pid} holds its lock" in second.process.tail()
    assert served.plain(file, "alias/bucket/key") == b"Success"


def test_the_queue_of_a_daemon_that_is_up(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """It is listed; a retry ends a delay, and makes a failed transfer pending; a drop is final and recorded."""
    s3.faults = {Fault.DENIED: 1.0}
    assert served.plain(file, "alias/bucket/denied").startswith(b"AccessDenied: ")
    (failed,) = listed(served)
    assert (failed["state"], failed["code"], failed["told"]) == ("failed", "AccessDenied", True)

    s3.refuse()
    kept, dropped = accepted(served, file, "kept"), accepted(served, file, "dropped")
    served.process.wait_line("kept attempt 1 failed")
    assert states(served) == {"bucket/denied": "failed", "bucket/kept": "pending", "bucket/dropped": "pending"}
    assert "AccessDenied" in served.command("queue").stdout

    done = served.command("queue", "drop", dropped, "nonsense")
    assert (done.returncode, done.stdout) == (1, "1 dropped\n")
    assert done.stderr == "UnknownTransfer: nonsense is not in the queue\n"
    done = served.command("queue", "retry", kept, failed["id"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 will be tried again\n", "")
    s3.faults = {}
    s3.open()
    served.wait_idle()
    assert set(s3.objects) == {"bucket/kept", "bucket/denied"}
    assert listed(served) == []
    (record,) = (record for record in served.records(3) if record.key == "dropped")
    assert (record.outcome, record.error) == ("failed", "Dropped: dropped by an operator")


def test_a_retry_says_that_the_queue_is_held(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """And why: nothing is tried before that is fixed."""
    s3.faults = {Fault.KEY_UNKNOWN: 1.0}
    kept = accepted(served, file, "kept")
    served.wait_status(lambda now: bool(now["held"]), "held")
    done = served.command("queue", "retry", kept)
    assert done.stdout.startswith("1 will be tried again once the queue is no longer held (InvalidAccessKeyId: ")
    assert done.stdout.count("\n") == 1


def test_systemd_shows_at_once_that_the_queue_is_held(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Not up to two seconds later, as counts are; several times, since it may have been about to show these."""
    for number in range(3):
        s3.faults = {Fault.KEY_UNKNOWN: 1.0}
        accepted(served, file, f"kept{number}")
        served.wait_status(lambda now: bool(now["held"]), "held")
        served.process.wait_status(lambda shown: shown["STATUS"].startswith("HELD, "), "HELD", timeout=0.5)
        s3.faults = {}
        assert served.command("reload").returncode == 0
        served.wait_idle()


def test_the_queue_of_a_daemon_that_is_down(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """The same commands change the spool, and the next daemon acts on that."""
    s3.faults = {Fault.DENIED: 1.0}
    assert served.plain(file, "alias/bucket/denied").startswith(b"AccessDenied: ")
    s3.refuse()
    accepted(served, file, "kept")
    dropped = accepted(served, file, "dropped")
    served.kill()
    assert states(served) == {"bucket/denied": "failed", "bucket/kept": "pending", "bucket/dropped": "pending"}
    done = served.command("queue", "drop", dropped)
    assert (done.returncode, done.stdout) == (0, "1 dropped\n")
    assert f"bucket/dropped failed, {file.stat().st_size} bytes" in done.stderr
    assert served.command("queue", "retry", "--all").stdout == "2 will be tried again\n"
    assert states(served) == {"bucket/denied": "pending", "bucket/kept": "pending"}
    s3.faults = {}
    s3.open()
    served.start()
    served.wait_idle()
    assert set(s3.objects) == {"bucket/kept", "bucket/denied"}


def test_a_reload_takes_what_waits_to_another_endpoint(served: Daemon, s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """An attempt in flight ends where it started; waiting and new transfers go to the new endpoint."""
    large = tmp_path / "large"
    large.write_bytes(bytes(3_000_000))
    s3.hold_bodies()
    with ThreadPoolExecutor(1) as pool, flaky() as other:
        waiting = pool.submit(served.plain, large, "alias/bucket/begun")
        assert s3.held_bodies.acquire(timeout=30)
        accepted(served, file, "begun")
        assert [row["state"] for row in listed(served)] == ["in flight", "behind"]
        served.set(**other.server.settings())
        done = served.command("reload")
        assert (done.returncode, done.stdout) == (0, "in force: S3_ENDPOINT_URL\n")
        accepted(served, file, "comes")
        s3.release()
        assert waiting.result() == b"Success"
        served.wait_idle()
        assert [put.name for put in s3.puts] == ["bucket/begun"]
        assert {put.name for put in other.puts} == {"bucket/begun", "bucket/comes"}


def test_a_refused_reload_is_shown_until_one_is_accepted(served: Daemon, file: Path) -> None:
    """The old settings stay in force, and the status says why, until the file is fixed."""
    limit = served.environ["S3DAEMON_STALL_TIMEOUT"]
    served.set(stall_timeout="soon", wait_limit="later")
    done = served.command("reload")
    assert (done.returncode, done.stdout) == (1, "")
    first, *others = done.stderr.splitlines()
    assert first.startswith("S3DAEMON_STALL_TIMEOUT")
    assert others[-1] == "refused: the previous settings stay in force"
    for _ in range(2):
        assert served.plain(file, "alias/bucket/key") == b"Success"
        assert served.ask("status")["status"].startswith(f"reload REFUSED, {first} (and 1 more); 0 in flight")
    served.set(stall_timeout=limit, wait_limit="30s")
    assert served.command("reload").returncode == 0
    assert served.ask("status")["status"].startswith("0 in flight")


def test_a_drop_of_a_transfer_in_flight(served: Daemon, s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Its client is notified at once, nothing of it is stored, not even later, and the one behind it goes on."""
    large = tmp_path / "large"
    large.write_bytes(bytes(30_000_000))
    s3.hold_bodies()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(served.plain, large, "alias/bucket/key")
        assert s3.held_bodies.acquire(timeout=30)
        accepted(served, file, "key")
        first, behind = listed(served)
        assert (first["state"], behind["state"]) == ("in flight", "behind")
        assert served.command("queue", "drop", first["id"]).stdout == "1 dropped\n"
        assert waiting.result() == b"Dropped: dropped by an operator\n"
    s3.release()
    served.wait_idle()
    assert [(put.name, put.id) for put in s3.puts] == [("bucket/key", behind["id"])]
    assert s3.objects["bucket/key"].body == b"content"
