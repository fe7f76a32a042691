"""Large files through the daemon as a program: killed, dropped, reloaded, many at once; and its memory."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3, flaky
from lab.relay import Relay, relay
from lab.rgw import Gateway
from lab.s3 import S3Server

from s3daemon.s3.store import FILE_KEY, ID_KEY

MIB = 1 << 20
PART = 5 * MIB
CONNECTIONS = 8
SETTINGS: dict[str, Any] = {"multipart_threshold": "5MiB", "part_size": "5MiB", "max_connections": str(CONNECTIONS)}
MEMORY_KIB = 250_000_000 // 1024


def a_file(path: Path, size: int) -> Path:
    """A file whose parts all differ, and which is fast to create."""
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(at.to_bytes(8, "big") * (min(MIB, size - at) // 8))
    return path


def memory_kib(served: Daemon) -> int:
    """The process's largest memory so far."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def wait(condition: Any, what: str, timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not {what} within {timeout:g} s"
        time.sleep(0.02)


class Bucket:
    """A bucket of a real store, read by an independent client, and emptied at the end."""

    def __init__(self, server: S3Server) -> None:
        self.name = server.new_bucket()
        self.client = server.client()

    def uploads(self) -> list[str]:
        """The keys of uploads that are neither completed nor aborted."""
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def parts(self) -> int:
        """The number of parts that these have."""
        count = 0
        for one in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", []):
            with suppress(self.client.exceptions.ClientError):
                listed = self.client.list_parts(Bucket=self.name, Key=one["Key"], UploadId=one["UploadId"])
                count += len(listed.get("Parts", []))
        return count

    def is_stored(self, key: str, file: Path) -> bool:
        """The object's content is the file's; read piece by piece."""
        body = self.client.get_object(Bucket=self.name, Key=key)["Body"]
        with file.open("rb") as content:
            while piece := body.read(MIB):
                if piece != content.read(len(piece)):
                    return False
            return not content.read(1)


@contextmanager
def bucket_of(server: S3Server) -> Iterator[Bucket]:
    made = Bucket(server)
    try:
        yield made
    finally:
        for entry in made.client.list_objects_v2(Bucket=made.name).get("Contents", []):
            made.client.delete_object(Bucket=made.name, Key=entry["Key"])
        made.client.close()


@pytest.fixture
def bucket(rgw: Gateway) -> Iterator[Bucket]:
    with bucket_of(rgw) as made:
        yield made


@pytest.fixture
def way(rgw: Gateway) -> Iterator[tuple[Relay, S3Server]]:
    """A relay to Ceph's gateway over plain HTTP, so that it counts the bytes that are sent."""
    with relay(rgw.plain) as made:
        yield made


def accepted(served: Daemon, file: Path, destination: str) -> str:
    reply = served.extended(file, f"alias/{destination}", wait=False)
    assert reply["result"] == "accepted", reply
    return reply["id"]


def test_an_upload_is_resumed_after_a_kill(tmp_path: Path, way: tuple[Relay, S3Server], bucket: Bucket) -> None:
    """After SIGKILL at half of the file at most one part for each connection is sent again; the object is whole."""
    (relayed, server), size = way, 160 * MIB
    file = a_file(tmp_path / "large", size)
    with daemon(tmp_path / "state", server, bwlimit="300M", **SETTINGS) as served:
        id_ = accepted(served, file, f"{bucket.name}/key")
        wait(lambda: relayed.passed > size // 2, "half sent")
        hwm = [memory_kib(served)]
        served.kill()
        time.sleep(0.2)
        before, there = relayed.passed, bucket.parts()
        assert 0 < there < size // PART
        served.start()
        served.wait_idle(timeout=60)
        hwm.append(memory_kib(served))
        (record,) = served.records(1)
    again = relayed.passed - size
    print(f"\n{before / MIB:.0f} MiB at the kill, {there} parts; {again / MIB:.1f} MiB again; VmHWM {hwm} KiB")
    assert (record.outcome, record.size) == ("stored", size)
    assert again <= CONNECTIONS * PART + size // 100
    assert bucket.is_stored("key", file)
    assert bucket.uploads() == []
    head = bucket.client.head_object(Bucket=bucket.name, Key="key")
    assert (head["Metadata"][ID_KEY], head["ETag"].strip('"')[-3:]) == (id_, "-32")
    assert FILE_KEY in head["Metadata"]
    assert max(hwm) < MEMORY_KIB


def test_many_large_files_take_little_memory(tmp_path: Path, rgw: Gateway, bucket: Bucket) -> None:
    """25 files whose parts, were they in memory, would take 400 MB."""
    files = [tmp_path / f"large{n}" for n in range(25)]
    for file in files:
        file.touch()
        os.truncate(file, 20 * MIB)
    with daemon(tmp_path / "state", rgw, multipart_threshold="5MiB", part_size="16MiB") as served:
        for file in files:
            accepted(served, file, f"{bucket.name}/{file.name}")
        served.wait_idle(timeout=120)
        hwm = memory_kib(served)
        records = served.records(len(files))
    print(f"\nVmHWM {hwm} KiB")
    assert [record.outcome for record in records] == ["stored"] * 25
    assert all(bucket.is_stored(file.name, file) for file in files[:2])
    assert bucket.uploads() == []
    assert hwm < MEMORY_KIB


@pytest.mark.parametrize("how", ["running", "down"])
def test_a_dropped_transfer_leaves_no_parts(
    tmp_path: Path, way: tuple[Relay, S3Server], bucket: Bucket, how: str
) -> None:
    """An operator drops it half sent, with the daemon up or down: its parts are aborted soon after."""
    relayed, server = way
    file = a_file(tmp_path / "large", 80 * MIB)
    with daemon(tmp_path / "state", server, bwlimit="200M", **SETTINGS) as served:
        id_ = accepted(served, file, f"{bucket.name}/key")
        wait(lambda: bucket.parts() >= 2, "two parts stored")
        if how == "down":
            served.kill()
        done = served.command("queue", "drop", id_)
        assert (done.returncode, done.stdout) == (0, "1 dropped\n")
        if how == "down":
            assert bucket.uploads() == ["key"]
            served.start()
        wait(lambda: bucket.uploads() == [], "aborted", 10)
        assert served.queue() == []
    assert bucket.client.list_objects_v2(Bucket=bucket.name).get("Contents", []) == []
    assert relayed.passed < 80 * MIB


def test_a_permanent_failure_leaves_no_parts(tmp_path: Path, way: tuple[Relay, S3Server], bucket: Bucket) -> None:
    """It fails while the store is down: its parts are aborted once the store is up, though nothing else is sent."""
    relayed, server = way
    file = a_file(tmp_path / "large", 80 * MIB)
    with daemon(tmp_path / "state", server, bwlimit="200M", retry_for="3s", **SETTINGS) as served:
        accepted(served, file, f"{bucket.name}/key")
        wait(lambda: bucket.parts() >= 2, "two parts stored")
        relayed.refuse()
        wait(lambda: [row["state"] for row in served.queue()] == ["failed"], "failed", 60)
        assert bucket.uploads() == ["key"]
        relayed.open()
        wait(lambda: bucket.uploads() == [], "aborted", 60)


@pytest.fixture
def other() -> Iterator[FlakyS3]:
    """A second store."""
    with flaky() as made:
        yield made


def reloaded(served: Daemon, server: S3Server) -> None:
    served.set(**server.settings())
    done = served.command("reload")
    assert done.returncode == 0, done.stderr


def test_a_new_endpoint_lets_attempts_in_flight_finish(s3: FlakyS3, other: FlakyS3, tmp_path: Path) -> None:
    """A reload within a file: that one is stored at the old store, the next one at the new."""
    file = a_file(tmp_path / "large", 40 * MIB)
    with daemon(tmp_path / "state", s3.server, **SETTINGS) as served:
        s3.hold_bodies()
        accepted(served, file, "bucket/first")
        assert s3.held_bodies.acquire(timeout=20)
        reloaded(served, other.server)
        s3.release()
        served.wait_idle()
        accepted(served, file, "bucket/second")
        served.wait_idle()
    assert (set(s3.objects), set(other.objects)) == ({"bucket/first"}, {"bucket/second"})
    assert not s3.assembly.uploads


def test_what_failed_at_the_old_endpoint_goes_whole_to_the_new(s3: FlakyS3, other: FlakyS3, tmp_path: Path) -> None:
    """And its parts at the old store are aborted."""
    file = a_file(tmp_path / "large", 40 * MIB)
    with daemon(tmp_path / "state", s3.server, bwlimit="50M", **SETTINGS) as served:
        accepted(served, file, "bucket/key")
        wait(lambda: len(s3.assembly.stored) >= 1, "a part stored")
        s3.refuse()
        served.process.wait_line("attempt 1 failed")
        served.set(bwlimit="0")
        s3.open()
        reloaded(served, other.server)
        served.wait_idle()
        wait(lambda: not s3.assembly.uploads, "aborted", 20)
    assert (set(s3.objects), set(other.objects)) == (set(), {"bucket/key"})
    assert other.objects["bucket/key"].body == file.read_bytes()


def test_parts_at_an_endpoint_that_is_no_longer_set(s3: FlakyS3, other: FlakyS3, tmp_path: Path) -> None:
    """The old store cannot be reached any more: one warning names the upload."""
    file = a_file(tmp_path / "large", 40 * MIB)
    with daemon(tmp_path / "state", s3.server, bwlimit="50M", **SETTINGS) as served:
        accepted(served, file, "bucket/key")
        wait(lambda: len(s3.assembly.stored) >= 1, "a part stored")
        served.kill()
        served.set(**other.server.settings(), bwlimit="0")
        served.start()
        served.wait_idle()
        served.process.wait_line("cannot be aborted")
        served.restart()
        (warning,) = (line for line in served.lines() if "cannot be aborted" in line)
    (id_,) = s3.assembly.uploads
    assert id_ in warning
    assert s3.server.url in warning
    assert other.objects["bucket/key"].body == file.read_bytes()
