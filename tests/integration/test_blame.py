"""Failures stop whom they concern, with the daemon as a program: dead addresses, and a key that the store refuses."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3
from lab.proxy import passing, proxy
from lab.s3 import S3Server
from lab.scripted import Exchange, Script, refusing
from lab.sending import a_file

#: For how long log lines and CPU are counted, seconds.
MEASURED_S = 6.0


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[list[Daemon]]:
    """Daemons whose endpoint has two addresses and four, the first of which the store listens on."""
    named = replace(s3.server, url=s3.server.url.replace("127.0.0.1", "store.invalid"))
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                daemon(
                    tmp_path / f"state{count}", named, activated=True, http=True, wait_limit="60s",
                    receivers=",".join(f"127.0.0.{n}" for n in range(1, count + 1)),
                )
            )
            for count in (2, 4)
        ]  # fmt: skip


def healthz(served: Daemon) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/healthz", timeout=10) as answer:
            status: int = answer.status
    except urllib.error.HTTPError as exc:
        status = exc.code
    return status


def away_metric(served: Daemon) -> float:
    """What the alert S3daemonStoreAway, a critical one, goes by: 1 for a minute makes it fire."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/metrics", timeout=10) as answer:
        found = re.search(r"^s3daemon_away (\S+)$", answer.read().decode(), re.M)
    assert found
    return float(found[1])


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_when_all_addresses_are_dead_the_endpoint_is_away(served: list[Daemon], s3: FlakyS3, tmp_path: Path) -> None:
    file = a_file(tmp_path / "sidecar.json", 3_000)
    for each in served:
        assert each.plain(file, "alias/bucket/before") == b"Success"
    s3.refuse()
    began = time.monotonic()
    for each in served:
        assert each.extended(file, f"alias/bucket/{each.port}", wait=False)["result"] == "accepted"
    for each in served:
        each.wait_status(lambda now: now["away"], "noticed that the endpoint is away", timeout=10)
    away_s = time.monotonic() - began
    assert [(healthz(each), away_metric(each)) for each in served] == [(503, 1)] * len(served)
    before, measured = [(len(each.lines()), cpu_s(each.process.pid)) for each in served], time.monotonic()
    time.sleep(MEASURED_S)
    seconds = time.monotonic() - measured
    per_minute = [(len(each.lines()) - lines) * 60 / seconds for each, (lines, _) in zip(served, before, strict=True)]
    shares = [(cpu_s(each.process.pid) - cpu) / seconds for each, (_, cpu) in zip(served, before, strict=True)]
    assert [away_metric(each) for each in served] == [1] * len(served)
    waiting = [row["attempts"] for each in served for row in each.queue()]
    s3.open()
    back = time.monotonic()
    for each in served:
        each.wait_status(lambda now: not now["away"] and not now["pending"], "delivered", timeout=10)
    back_s = time.monotonic() - back
    print(f"\naway after {away_s:.1f} s; log lines a minute: {per_minute}, CPU: {shares}; back in {back_s:.1f} s")
    assert max(per_minute) < 50
    assert max(shares) < 0.02
    assert len(waiting) == len(served)
    assert max(waiting) <= 12
    assert back_s < 5
    assert [(healthz(each), away_metric(each)) for each in served] == [(200, 0)] * len(served)
    assert {f"bucket/{each.port}" for each in served} <= set(s3.objects)


def test_a_key_whose_signature_a_proxy_breaks_stops_no_other(seaweed: S3Server, tmp_path: Path) -> None:
    """As with nginx's `proxy_pass .../;`, which folds `//`: only that key waits, and nothing is held."""
    bucket = seaweed.new_bucket()
    file = a_file(tmp_path / "file", 3_000)

    def choose(exchange: Exchange) -> Script:
        return refusing(403, "SignatureDoesNotMatch") if "x//y" in exchange.target else passing

    with proxy(seaweed) as (between, through), daemon(tmp_path / "state", through) as made:
        between.choose = choose
        assert made.extended(file, f"alias/{bucket}/x//y", wait=False)["result"] == "accepted"
        made.process.wait_line("attempt 1 failed, .*SignatureDoesNotMatch")
        for n in range(20):
            assert made.plain(file, f"alias/{bucket}/k{n}") == b"Success"
        assert made.ask("status")["held"] == ""
        (waiting,) = made.queue()
        assert re.search("SignatureDoesNotMatch", str(waiting))
