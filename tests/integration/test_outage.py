"""The endpoint away: everything is kept in order, no client waits for nothing, and fresh files pass the backlog.

The outage lasts 10 s; S3DAEMON_TEST_OUTAGE sets another number of seconds. Two days are tested with a clock of the
test's own, in tests/unit/delivery/test_uploader.py.
"""

import hashlib
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.env import MACHINE_ENV
from lab.flaky import FlakyS3

OUTAGE_S = float(MACHINE_ENV.get("S3DAEMON_TEST_OUTAGE", "10"))
UNWAITED, WAITING = 500, 50


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    # Longer than the outage, so that no client is deferred because its wait limit has passed.
    with daemon(tmp_path / "state", s3.server, wait_limit="5min") as made:
        yield made


def written(folder: Path, name: str, size: int = 3_000) -> Path:
    """Write a file with a content of its own."""
    path = folder / name
    path.write_bytes((name.encode() * (size // len(name) + 1))[:size])
    return path


def test_an_outage_delays_and_loses_nothing(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """All files sent during an outage arrive; waiting clients are deferred; fresh files pass the backlog at its end."""
    s3.latency_s = 0.1  # so that the store takes most of a transfer's time, as over a long network
    files = [written(tmp_path, f"file{number}", (3_000, 100_000)[number % 2]) for number in range(UNWAITED + WAITING)]

    def timed(file: Path) -> tuple[bytes, float]:
        began = time.monotonic()
        return served.plain(file, f"alias/bucket/{file.name}"), time.monotonic() - began

    unloaded = [timed(written(tmp_path, f"before{number}"))[1] for number in range(9)]

    s3.refuse()
    until = time.monotonic() + OUTAGE_S
    with ThreadPoolExecutor(WAITING) as pool:
        early = [pool.submit(timed, file) for file in files[: WAITING // 2]]
        accepted = pool.map(lambda it: served.extended(it, f"alias/bucket/{it.name}", wait=False), files[WAITING:])
        assert {reply["result"] for reply in accepted} == {"accepted"}
        assert {reply.split(b":")[0] for reply, _ in (one.result() for one in early)} == {b"Deferred"}
        late = list(pool.map(timed, files[WAITING // 2 : WAITING]))
    assert all(b"kept and being tried; the endpoint is away" in reply for reply, _ in late)
    assert max(seconds for _, seconds in late) < 5, "a client waited though the endpoint was known to be away"
    time.sleep(max(0.0, until - time.monotonic()))  # the rest of the outage
    assert len(served.queue()) == len(files)
    tries = sum(" failed, next in" in line for line in served.lines())
    assert tries < 2 * OUTAGE_S, "there were too many attempts at an endpoint that is away"

    s3.open()
    before = len(s3.puts)
    served.wait_status(lambda now: not now["away"], "noticed that the endpoint is back", timeout=90)
    loaded = list[float]()
    while served.ask("status")["pending"]:
        loaded.append(timed(written(tmp_path, f"fresh{len(loaded)}"))[1])
    served.wait_idle()
    print(f"\n{tries} attempts in an outage of {OUTAGE_S:g} s; a fresh file took {statistics.median(unloaded):.3f} s")
    print(f"before, {statistics.median(loaded):.3f} s and at most {max(loaded):.3f} s beside the backlog")
    assert len(loaded) > 10, "the backlog was delivered too soon to compare"
    assert statistics.median(loaded) < 2 * statistics.median(unloaded)
    assert not [file for file in files if s3.objects[f"bucket/{file.name}"].body != file.read_bytes()]
    assert len(s3.puts) - before == len(files) + len(loaded)
    recorded = {record.key for record in served.records() if record.outcome == "stored"}
    assert {file.name for file in files} <= recorded


def test_the_same_request_again_joins_the_first(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """One PUT serves two clients that sent the same file while the endpoint was away."""
    file = written(tmp_path, "file")
    s3.refuse()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.plain, file, "alias/bucket/key")
        served.process.wait_line("attempt 1 failed")
        second = pool.submit(served.plain, file, "other/bucket/key")
        served.process.wait_line("attempt 2 failed")
        s3.open()
        served.ask("retry", all=True)
        assert [first.result(), second.result()] == [b"Success", b"Success"]
    assert [put.name for put in s3.puts] == ["bucket/key"]


def test_one_key_gets_its_contents_in_order_even_over_a_crash(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """Transfers to one key are stored in the order accepted, so that the newest wins."""
    files = [written(tmp_path, name, size) for name, size in (("a", 200_000), ("b", 10), ("c", 3_000))]
    order = [files[at] for at in (0, 1, 0, 2, 1, 2)]
    s3.refuse()
    for file in order[:4]:
        assert served.extended(file, "alias/bucket/key", wait=False)["result"] == "accepted"
    served.restart()
    for file in order[4:]:
        assert served.extended(file, "alias/bucket/key", wait=False)["result"] == "accepted"
    s3.open()
    served.ask("retry", all=True)
    served.wait_idle(timeout=90)
    expected = [hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() for file in order]
    assert [put.etag for put in s3.puts] == expected
