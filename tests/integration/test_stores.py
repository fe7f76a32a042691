"""The matrix: the daemon as a program before every kind of store, as s3daemon-tuning(7) reports of it.

Stores that `packaging/bootstrap` does not install are skipped where `tests/lab/install-stores` did not run, and are no
part of CI. S3DAEMON_TEST_IDLE is how long connections rest, seconds; the manual's figures are of 70.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.daemon import Daemon, daemon
from lab.env import MACHINE_ENV, UnavailableError
from lab.relay import relay
from lab.rgw import Gateway
from lab.s3 import S3Server
from lab.stores import BUILT_IN, TRAITS, Store, gzipping, store_of

from s3daemon.spool.rows import Hint
from s3daemon.spool.spool import Spool

MIB = 1 << 20
PART = 5 * MIB
IN_PARTS = {"multipart_threshold": "5MiB", "part_size": "5MiB"}
IDLE_S = float(MACHINE_ENV.get("S3DAEMON_TEST_IDLE", "1.5"))
BACK_S = 8.0
"""A store that listens again has all its connections again within this."""
IN_CI = os.environ.get("CI") == "true"
KEYS = [
    "k" + "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in "/\\"),
    "night 1/a file.fits", " edges ", "100%/%2F+%20", "ü/日本語/\U0001f600", "~a/.b/c..", "x" * 200,
]  # fmt: skip
LONG_KEY, KEY_OF_A_DIRECTORY = "x" * 1024, "plain/as"
ODD_KEYS = ["a//b///c", "/leading", "back\\slash", LONG_KEY, "plain/as/an/object", KEY_OF_A_DIRECTORY]
#: What a store answers with 500, so that the file is tried for days; the manual says so.
ANSWERED_500 = {"rclone": [LONG_KEY], "s3proxy": [LONG_KEY, KEY_OF_A_DIRECTORY]}


def those(*in_ci: str, **traits: bool) -> pytest.MarkDecorator:
    """Run a test with the stores that are so; in CI with those that it has, or only with these."""
    candidates = (in_ci or BUILT_IN) if IN_CI else tuple(TRAITS)
    names = [name for name in candidates if all(getattr(TRAITS[name], trait) is to for trait, to in traits.items())]
    return pytest.mark.parametrize("store", names, indirect=True)


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each in turn."""

    def cluster() -> Gateway:
        found: Gateway = request.getfixturevalue("rgw")
        return found

    with ExitStack() as stack:
        try:
            yield stack.enter_context(store_of(request.param, tmp_path_factory.mktemp(request.param), cluster))
        except UnavailableError as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module")
def served(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon before it, with its default settings."""
    with daemon(tmp_path_factory.mktemp("state"), store.server) as made:
        yield made


def a_file(path: Path, size: int) -> Path:
    """A file whose parts all differ."""
    with path.open("wb") as file:
        for at in range(0, size, 4096):
            file.write((at.to_bytes(8, "big") * 512)[: min(4096, size - at)])
    return path


@contextmanager
def client_of(server: S3Server) -> Iterator[Any]:
    """A client that is independent of the product."""
    client = server.client()
    try:
        yield client
    finally:
        client.close()


def assert_stored(server: S3Server, bucket: str, key: str, file: Path) -> None:
    with client_of(server) as client:
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == file.read_bytes()


def uploads(server: S3Server, bucket: str) -> list[str]:
    """The keys of uploads that are neither completed nor aborted."""
    with client_of(server) as client:
        return [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def wait(condition: Callable[[], object], what: str, timeout: float = 60.0) -> float:
    """Wait until it is true; how long that took, seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout, f"not {what} within {timeout:g} s"
        time.sleep(0.02)
    return time.monotonic() - began


def all_open(status: dict[str, Any]) -> bool:
    connections: dict[str, int] = status["connections"]
    return connections["open"] == connections["limit"]


def accepted(served: Daemon, file: Path, destination: str) -> str:
    reply = served.extended(file, f"alias/{destination}", wait=False)
    assert reply["result"] == "accepted", reply
    return reply["id"]


@those()
def test_files_and_names(store: Store, served: Daemon, tmp_path: Path) -> None:
    """Of no byte, in one piece, with any printable name: all are stored, and equal."""
    bucket = store.server.new_bucket()
    files = [a_file(tmp_path / str(size), size) for size in (0, 3_000, 8 * MIB)]
    pairs = [(files[1], key) for key in KEYS] + [(file, f"sizes/{file.name}") for file in files]
    for file, key in pairs:
        reply = served.extended(file, f"alias/{bucket}/{key}")
        assert reply["result"] == "stored", (key, reply)
        assert_stored(store.server, bucket, key, file)


#: What `S3DAEMON_PRIME=auto` finds out about stores that it cannot prime.
UNPRIMED = {"s3proxy": "closes the connection after", "moto": ""}


@those("rgw")
def test_primed_by_refused_uploads(store: Store, tmp_path: Path) -> None:
    """Each connection, where the store refuses what it must refuse; else the journal says once why not.

    Nothing is left there either way, and a restart knows the bucket.
    """
    bucket, file = store.server.new_bucket(), a_file(tmp_path / "file", 3_000)
    found = UNPRIMED.get(store.name, "reads an upload with a wrong Content-MD5, refuses it, and keeps the connection")
    with daemon(tmp_path / "state", store.server, prime="auto", max_connections="4") as served:
        assert served.extended(file, f"alias/{bucket}/key")["result"] == "stored"
        for _ in range(2):
            if found:
                served.process.wait_line(f"S3DAEMON_PRIME.*{found}")
            else:  # it keeps no connection that could be primed
                served.process.wait_line("S3DAEMON_PRIME has no effect")
            time.sleep(IDLE_S)
            assert sum("S3DAEMON_PRIME" in line for line in served.process.lines()) == 1
            served.terminate()  # which saves what was found; a crash within 30 s of the first upload would not
            served.start()
    with client_of(store.server) as client:
        assert [one["Key"] for one in client.list_objects_v2(Bucket=bucket)["Contents"]] == ["key"]


@those("rgw", has_accounts=True)
def test_keys_that_may_not_prime(store: Store, tmp_path: Path) -> None:
    """The journal says so once; nothing is held, and no outage is seen."""
    bucket, state = store.server.new_bucket(), tmp_path / "state"
    stranger = store.stranger(bucket)

    async def save_hint() -> None:
        spool = Spool.open(state)
        spool.save_hint(Hint(stranger.url, bucket=bucket))
        await spool.close()

    asyncio.run(save_hint())
    with daemon(state, stranger, prime="auto", max_connections="4") as served:
        served.process.wait_line("S3DAEMON_PRIME.*AccessDenied")
        time.sleep(IDLE_S)
        assert sum("S3DAEMON_PRIME" in line for line in served.process.lines()) == 1
        assert served.ask("status")["held"] == ""


@those()
def test_names_that_not_every_store_has(store: Store, served: Daemon, tmp_path: Path) -> None:
    """Each is stored and found, or refused for good; none is tried for days."""
    bucket, file = store.server.new_bucket(), a_file(tmp_path / "file", 3_000)
    for key in ODD_KEYS:
        if key in ANSWERED_500.get(store.name, ()):
            continue
        reply = served.extended(file, f"alias/{bucket}/{key}")
        print(store.name, key[:20], reply["result"], reply.get("code"), reply.get("error"))
        assert reply["result"] == "stored" or (store.traits.has_directories and reply["result"] == "failed"), reply
        if reply["result"] == "stored":
            assert_stored(store.server, bucket, key, file)


@those(makes_buckets=False)
def test_a_missing_bucket(store: Store, served: Daemon, tmp_path: Path) -> None:
    """It is final, and concerns nothing else."""
    reply = served.extended(a_file(tmp_path / "file", 3_000), "alias/no-such-bucket/key")
    assert (reply["result"], reply["code"]) == ("failed", "NoSuchBucket")
    assert served.ask("status")["held"] == ""


@those(has_accounts=True)
def test_no_permission(store: Store, tmp_path: Path) -> None:
    """It is final, and concerns nothing else."""
    bucket = store.server.new_bucket()
    with daemon(tmp_path / "state", store.stranger(bucket)) as served:
        reply = served.extended(a_file(tmp_path / "file", 3_000), f"alias/{bucket}/key")
        assert (reply["result"], reply["code"]) == ("failed", "AccessDenied")
        assert served.ask("status")["held"] == ""


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@those("seaweed", verifies=True)
def test_wrong_keys(store: Store, tmp_path: Path, wrong: str) -> None:
    """They hold the queue, also behind a proxy that compresses; nothing fails."""
    bucket, file = store.server.new_bucket(), a_file(tmp_path / "file", 3_000)
    (tmp_path / "nginx").mkdir()
    with (
        gzipping(tmp_path / "nginx", store.server) as proxied,
        daemon(tmp_path / "state", proxied, {wrong: "wrongwrong"}) as served,
    ):
        accepted(served, file, f"{bucket}/key")
        served.wait_status(lambda now: bool(now["held"]), "held", 20)
        assert [row["state"] for row in served.queue()] == ["held"]
        served.set(**proxied.settings())
        assert served.command("reload").returncode == 0
        served.wait_idle(20)
        if not store.traits.makes_buckets:
            missing = served.extended(file, "alias/no-such-bucket/key")
            assert (missing["result"], missing["code"]) == ("failed", "NoSuchBucket")
    assert_stored(store.server, bucket, "key", file)


@those("rgw")
def test_parts_are_resumed_after_a_kill(store: Store, tmp_path: Path) -> None:
    """Killed at half of a paced file, at least 40 % of it is not sent again, and no upload is left.

    RGW is behind a proxy that compresses; without one it is tested with larger files.
    """
    bucket, size = store.server.new_bucket(), 48 * MIB
    file = a_file(tmp_path / "file", size)
    with ExitStack() as stack:
        server = store.server
        if store.name == "rgw":
            (tmp_path / "nginx").mkdir()
            server = stack.enter_context(gzipping(tmp_path / "nginx", server))
        way, through = stack.enter_context(relay(server))
        served = stack.enter_context(daemon(tmp_path / "state", through, IN_PARTS, bwlimit="50M"))
        accepted(served, file, f"{bucket}/key")
        wait(lambda: way.passed > size // 2, "half sent")
        served.kill()
        time.sleep(0.2)
        before = way.passed
        served.set(bwlimit="0")
        served.start()
        served.wait_idle()
        again = way.passed - size
        print(f"{store.name}: killed at {before / MIB:.1f} MiB; {again / MIB:.1f} MiB sent again")
        assert before - again >= 0.4 * size
        wait(lambda: [record.outcome for record in served.records()] == ["stored"], "recorded")
    assert_stored(store.server, bucket, "key", file)
    assert uploads(store.server, bucket) == []


@those("seaweed")
def test_parts_are_aborted_after_a_drop(store: Store, tmp_path: Path) -> None:
    """Nothing is left of a large file that an operator drops."""
    bucket, file = store.server.new_bucket(), a_file(tmp_path / "file", 48 * MIB)
    with relay(store.server) as (way, through), daemon(tmp_path / "s", through, IN_PARTS, bwlimit="100M") as served:
        id_ = accepted(served, file, f"{bucket}/key")
        wait(lambda: way.passed > 2 * PART, "two parts sent")
        assert uploads(store.server, bucket) == ["key"]
        assert served.command("queue", "drop", id_).returncode == 0
        wait(lambda: uploads(store.server, bucket) == [], "aborted", 20)
    with client_of(store.server) as client:
        assert client.list_objects_v2(Bucket=bucket).get("Contents", []) == []


@those(keeps=True)
def test_connections_stay_open(store: Store, served: Daemon) -> None:
    """Every one is, after a rest too, and was opened once."""
    served.wait_status(all_open, "all open", 20)
    before = served.ask("status")["connections"]
    time.sleep(IDLE_S)
    assert served.ask("status")["connections"] == before
    assert not [line for line in served.lines() if "each is now used every" in line]


@those(keeps=False)
def test_none_is_kept_open(store: Store, served: Daemon) -> None:
    """The status and `check` say so, and no connection is opened for nothing."""
    served.wait_status(lambda now: "the store closes each connection" in now["status"], "noticed", 20)
    assert "the store closes each connection after its answer" in served.command("check").stdout
    before = served.ask("status")["connections"]
    time.sleep(IDLE_S)
    assert served.ask("status")["connections"] == before


@those("rgw", keeps=True)
def test_a_restart_while_idle(store: Store, tmp_path: Path) -> None:
    """All connections are open again soon, and nothing is concluded from their end, even if it comes twice."""
    with daemon(tmp_path / "state", store.server) as served:
        for _ in range(2):
            served.wait_status(all_open, "all open", 20)
            time.sleep(1)
            store.stop()
            served.wait_status(lambda now: not all_open(now), "closed", 20)
            store.start()
            began = time.monotonic()
            back_s = served.wait_status(all_open, "all open", 20) - began
            print(f"{store.name}: all open {back_s:.1f} s after it listens")
            assert back_s < BACK_S
        time.sleep(IDLE_S)
        assert all_open(served.ask("status"))
        assert_nothing_concluded(served)


@those("rgw", lasting=True)
def test_a_restart_under_uploads(store: Store, tmp_path: Path) -> None:
    """Every file is stored soon after, whole, and the connections are as before."""
    bucket = store.server.new_bucket()
    files = [a_file(tmp_path / f"f{n}", MIB + n) for n in range(20)]
    with daemon(tmp_path / "state", store.server, bwlimit="40M") as served:
        served.wait_status(all_open, "all open", 20)
        for file in files:
            accepted(served, file, f"{bucket}/{file.name}")
        wait(lambda: served.records(), "the first stored")
        store.stop()
        stored = len(served.records())
        store.start()
        back_s = wait(lambda: len(served.records()) > stored or not served.queue(), "stored", 20)
        all_s = back_s + wait(lambda: all_open(served.ask("status")) and not served.queue(), "stored", 20)
        print(f"{store.name}: the first stored {back_s:.1f} s after it listens, all {all_s:.1f} s")
        assert back_s < BACK_S
        assert {record.outcome for record in served.records()} == {"stored"}
        time.sleep(IDLE_S)
        assert_nothing_concluded(served)
    for file in files:
        assert_stored(store.server, bucket, file.name, file)


def assert_nothing_concluded(served: Daemon) -> None:
    """Of how long the store keeps connections, and whether at all."""
    assert not [line for line in served.lines() if "the store closes" in line or "each is now used every" in line]
