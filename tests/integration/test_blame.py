"""Failures stop whom they concern, with the daemon as a program: dead addresses, and a key that the store refuses."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
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
MEASURED_S = 15.0


@pytest.fixture(params=[2, 4])
def served(request: pytest.FixtureRequest, s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose endpoint has so many addresses, the first of which the store listens on."""
    addresses = ",".join(f"127.0.0.{n}" for n in range(1, request.param + 1))
    named = replace(s3.server, url=s3.server.url.replace("127.0.0.1", "store.invalid"))
    with daemon(tmp_path / "state", named, activated=True, http=True, receivers=addresses, wait_limit="60s") as made:
        yield made


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


def test_when_all_addresses_are_dead_the_endpoint_is_away(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    file = a_file(tmp_path / "sidecar.json", 3_000)
    assert served.plain(file, "alias/bucket/before") == b"Success"
    s3.refuse()
    began = time.monotonic()
    assert served.extended(file, "alias/bucket/during", wait=False)["result"] == "accepted"
    served.wait_status(lambda now: now["away"], "noticed that the endpoint is away", timeout=10)
    away_s = time.monotonic() - began
    assert (healthz(served), away_metric(served)) == (503, 1)
    lines, cpu, measured = len(served.lines()), cpu_s(served.process.pid), time.monotonic()
    time.sleep(MEASURED_S)
    seconds = time.monotonic() - measured
    per_minute = (len(served.lines()) - lines) * 60 / seconds
    share = (cpu_s(served.process.pid) - cpu) / seconds
    assert away_metric(served) == 1
    (waiting,) = served.queue()
    s3.open()
    back = time.monotonic()
    served.wait_status(lambda now: not now["away"] and not now["pending"], "delivered", timeout=10)
    back_s = time.monotonic() - back
    print(f"\naway after {away_s:.1f} s; {per_minute:.0f} log lines a minute, {share:.1%} CPU; back in {back_s:.1f} s")
    assert per_minute < 50
    assert share < 0.02
    assert waiting["attempts"] <= 12
    assert back_s < 5
    assert (healthz(served), away_metric(served)) == (200, 0)
    assert "bucket/during" in s3.objects


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
