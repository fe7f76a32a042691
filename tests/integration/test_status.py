"""`s3daemon status` against a daemon at work: what it shows in flight agrees with the bytes that the store's kernel has
acknowledged; it watches through a restart; without a daemon the error names that."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import Fault, FlakyS3

from s3daemon.commands.status import command as status

SIZE = 30_000_000


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server, stall_timeout="10min", max_connections="4") as made:
        yield made


def test_status_shows_the_progress_of_uploads(served: Daemon, s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Progress is what was acknowledged: less than all while the store does not read, and nothing once it is over."""
    large = tmp_path / "large"
    large.write_bytes(bytes(SIZE))
    served.extended(file, "any/bucket/night/e0.fits", tag="exposure-0")
    s3.faults = {Fault.DENIED: 1.0}
    served.extended(file, "any/bucket/night/denied.fits", tag="exposure-0")
    s3.faults = {}
    s3.hold_bodies()
    for number in range(6):
        served.extended(large, f"any/bucket/night/e1-{number}.fits", tag="exposure-1", wait=False)
    served.wait_status(lambda now: any(u["acked_bytes"] for u in now["uploads"]), "moving")
    time.sleep(2.5)  # for a sample
    answer = json.loads(served.command("status", "--json").stdout)
    assert (answer["state"], answer["in_flight"], answer["pending"], answer["failed"]) == ("ok", 3, 3, 1)
    first = answer["uploads"][0]
    assert (first["bucket"], first["key"], first["attempt"]) == ("bucket", "night/e1-0.fits", 1)
    assert (first["size_bytes"], first["file"], first["tags"]) == (SIZE, str(large), ["exposure-1"])
    assert 0 < first["acked_bytes"] < SIZE / 2
    assert first["receivers"] == ["127.0.0.1"]
    assert first["seconds"] > 2
    assert 0 < first["rate_bytes_per_s"] < first["acked_bytes"]
    assert [row["destination"] for row in answer["waiting"]] == [f"bucket/night/e1-{n}.fits" for n in (3, 4, 5)]
    assert [row["destination"] for row in answer["failures"]] == ["bucket/night/denied.fits"]
    assert [(r["address"], r["uploads"]) for r in answer["receivers"]] == [("127.0.0.1", 3)]
    one, two = answer["exposures"]
    assert (one["name"], one["stored"], one["failed"], one["verdict"]) == ("exposure-0", 1, 1, "incomplete")
    assert (two["name"], two["stored"], two["pending"]) == ("exposure-1", 0, 6)

    text = served.command("status").stdout
    assert "3 in flight; 3 pending" in text
    assert "bucket/night/e1-0.fits" in text
    assert text.startswith("s3daemon ")
    s3.release()
    served.wait_idle()
    answer = served.ask("status")
    assert (answer["uploads"], answer["waiting"]) == ([], [])
    two = answer["exposures"][1]
    ends = [record.start + record.seconds for record in served.records(8) if "e1-" in record.key]
    began = min(record.start for record in served.records() if "e1-" in record.key)
    assert (two["stored"], two["pending"], two["size_bytes"]) == (6, 0, 6 * SIZE)
    assert abs(two["seconds"] - (max(ends) - began)) < 0.005


def test_a_file_in_parts(s3: FlakyS3, tmp_path: Path) -> None:
    """Its parts in flight and those that are stored add up; after a restart what is stored is not counted as lost."""
    large = tmp_path / "large"
    large.write_bytes(bytes(SIZE))
    settings = {"multipart_threshold": "5MiB", "part_size": "5MiB", "max_connections": "4", "stall_timeout": "10min"}
    part = 5 * 1024 * 1024
    with daemon(tmp_path / "state", s3.server, settings) as served:
        s3.latency_s = 0.5  # so that there is a moment between a part and the next one
        served.extended(large, "any/bucket/large", wait=False)
        served.wait_status(lambda now: any(u["acked_bytes"] >= part for u in now["uploads"]), "a part there")
        s3.hold_bodies()
        assert s3.held_bodies.acquire(timeout=30)
        while s3.held_bodies.acquire(timeout=2):
            pass  # all that may are in flight, and do not move
        (before,) = served.ask("status")["uploads"]
        assert part <= before["acked_bytes"] < SIZE
        served.restart()
        assert s3.held_bodies.acquire(timeout=30)
        served.wait_status(lambda now: any(u["acked_bytes"] >= part for u in now["uploads"]), "what was there before")
        s3.release()
        served.wait_idle()
    assert len(s3.objects["bucket/large"].body) == SIZE


def test_what_an_earlier_process_accepted(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """After a restart the exposures are those that are pending in the spool, from their first request on."""
    s3.refuse()
    served.extended(file, "any/bucket/one", tag="before", wait=False)
    began = served.ask("status")["exposures"][0]["first_usec"]
    served.restart()
    (found,) = served.ask("status")["exposures"]
    assert (found["name"], found["first_usec"], found["pending"]) == ("before", began, 1)
    s3.open()
    served.wait_idle()
    (found,) = served.ask("status")["exposures"]
    assert (found["stored"], found["pending"]) == (1, 0)


def run(served: Daemon, *words: str, rounds: int = 0, restart: int = -1) -> tuple[int, str, str]:
    """The command in this process; `restart` is the round of a watch after which the daemon is killed."""
    parser = argparse.ArgumentParser()
    status.configure(parser)
    out, err, left = io.StringIO(), io.StringIO(), list(range(rounds))

    def sleep(seconds: float) -> None:
        assert seconds == 5
        if not left:
            raise KeyboardInterrupt
        if left.pop(0) == restart:
            served.kill()

    code = status.main(parser.parse_args(words), served.environ, out=out, err=err, sleep=sleep)
    return code, out.getvalue(), err.getvalue()


def test_watching(served: Daemon) -> None:
    """Again each interval, through a daemon's absence, until interrupted; as JSON one object a line."""
    code, out, _ = run(served, "--watch", "5", rounds=2, restart=1)
    assert code == 0
    assert out.count("OK: 0 in flight") == 2
    assert "DOWN: no daemon listens on" in out
    code, out, _ = run(served, "--watch", "5", "--json", rounds=1)
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["down", "down"]
    code, out, err = run(served)
    assert (code, out) == (1, "")
    assert err.startswith("NoDaemon: no daemon listens on ")


def test_on_a_terminal(served: Daemon) -> None:
    """Colours, unless NO_COLOR is set; the same words either way."""
    code = (
        "import sys, pty, os\n"
        "from s3daemon.cli import main\n"
        "pid, fd = pty.fork()\n"
        "if not pid: main(['status'])\n"
        "seen = b''\n"
        "try:\n"
        "    while piece := os.read(fd, 4096): seen += piece\n"
        "except OSError: pass\n"
        "print(seen.decode())"
    )
    for no_colour in ({}, {"NO_COLOR": "1"}):
        environ = served.environ | {"TERM": "xterm-256color"} | no_colour
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert "OK:" in done.stdout
        assert "0 in flight" in done.stdout
        assert ("\x1b[1;37;" in done.stdout) != bool(no_colour)
