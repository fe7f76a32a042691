"""Hooks that do not wait, and one question at the end: true over a restart, and answered when the last file ends."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3

FILES = 23
#: From the last end to the answer, in the daemon; a client's own start and end come on top.
AT_ONCE_S = 0.05


def waited(served: Daemon, *args: str) -> tuple[int, str, float]:
    """Run `send --wait-for`; its status, its line, and when it ended."""
    done = served.send("--wait-for", *args)
    return done.returncode, done.stdout + done.stderr, time.time()


def wire(served: Daemon, tag: str) -> tuple[dict[str, object], float]:
    """Ask over the wire, again when the daemon hangs up; the answer, and when it came."""
    question = json.dumps({"wait_for": tag, "expect": FILES, "timeout": 60}).encode() + b"\n"
    answer = b""
    while not answer:
        try:
            with served.connect() as sock:
                sock.sendall(question)
                answer = sock.recv(65536)
        except OSError:
            time.sleep(0.01)
    return json.loads(answer), time.time()


def status_of(url: str) -> int:
    """Return the status of a page."""
    try:
        with urlopen(url, timeout=20) as found:
            return int(found.status)
    except HTTPError as exc:
        return exc.code


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.terminate], ids=["killed", "terminated"])
def test_a_question_after_hooks_that_did_not_wait(s3: FlakyS3, tmp_path: Path, file: Path, end: object) -> None:
    """One file is missing, one is given up, the daemon is restarted in the middle."""
    assert callable(end)
    with (
        daemon(tmp_path / "state", s3.server, activated=True, http=True, drain_timeout="0s") as served,
        ThreadPoolExecutor(3) as pool,
    ):
        ids = []
        for number in range(FILES):
            if number == 10:
                s3.hold_bodies()
            source = tmp_path / "none" if number == 20 else file
            done = served.send("--no-wait", "--print-id", "--tag", "E1", source, f"a/bucket/night/{number}")
            assert done.returncode == (number == 20), done
            ids.append(done.stdout.strip())
        asked = pool.submit(waited, served, "E1", "--expect", str(FILES), "--timeout", "60")
        by_wire = pool.submit(wire, served, "E1")
        served.wait_status(lambda now: now["clients"] == 2 and now["in_flight"] > 0, "asked")
        end(served)
        served.start()
        served.wait_status(lambda now: now["clients"] == 2 and now["in_flight"] > 0, "asked again")
        assert served.command("queue", "drop", ids[15]).returncode == 0
        assert not asked.done()
        s3.release()
        status, line, ended_at = asked.result()
        answer, answered_at = by_wire.result()
        last = max(record.start + record.seconds for record in served.records(FILES - 1))
        counts = {"stored": FILES - 2, "pending": 0, "failed": 1, "refused": 1}
        assert answer == answer | counts | {"result": "failed", "code": "Incomplete"}
        assert status == 1
        assert line.startswith(f"send: Incomplete: E1: {FILES - 2} stored, 0 pending, 1 failed, 1 refused of {FILES}")
        assert "; the first: NoSuchFile: " in line
        assert answered_at - last < AT_ONCE_S
        assert ended_at - last < AT_ONCE_S + 0.2
        end(served)
        served.start()
        base = f"http://127.0.0.1:{served.http_port}/transfers"
        with pytest.raises(HTTPError) as caught:
            urlopen(f"{base}?tag=E1&timeout=10", timeout=20)
        assert caught.value.code == 502
        assert json.load(caught.value) == json.loads(json.dumps(counts)) | {
            "result": "failed", "code": "Incomplete", "tag": "E1", "msg": line[len("send: Incomplete: ") :].replace(
                f" of {FILES}", "").strip(),
        }  # fmt: skip
        for id_, code in ((ids[3], 200), (ids[22], 200), ("f" * 16, 404)):
            assert status_of(f"{base}/{id_}") == code


def test_nothing_is_printed_when_all_is_stored(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """And a line at once for a tag that nothing was accepted under, or when the time is up."""
    with daemon(tmp_path / "state", s3.server) as served:
        for number in range(3):
            assert served.send("--no-wait", "--tag=E1", file, f"a/bucket/{number}").returncode == 0
        assert waited(served, "E1", "--expect=3")[:2] == (0, "")
        assert waited(served, "E1")[:2] == (0, "")
        status, line, _ = waited(served, "E2")
        assert (status, line.startswith("send: UnknownTransfer: E2: 0 stored")) == (1, True)
        began = time.monotonic()
        status, line, _ = waited(served, "E1", "--expect=4", "--timeout=2")
        said = "E1: 3 stored, 0 pending, 0 failed, 0 refused of 4; the time is up with 1 file not requested: request"
        assert (status, line) == (1, f"send: Deferred: {said} the rest, then ask again\n")
        assert 1 < time.monotonic() - began < 2.5
