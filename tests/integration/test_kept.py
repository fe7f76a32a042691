"""Waiting clients get their answer from the next process, by the lab's version of systemd's descriptor store."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3

from s3daemon.spool.rows import Hint
from s3daemon.spool.spool import Spool


def upload(port: int, file: Path) -> dict[str, Any]:
    """Ask by a form, as a hook does; return the answer's members."""
    form = urlencode({"file": str(file), "uri": "s3://bucket/form"}).encode()
    with urlopen(f"http://127.0.0.1:{port}/upload", form, timeout=60) as answer:
        members: dict[str, Any] = json.load(answer)
    return members


@pytest.mark.parametrize("end", [Daemon.kill, Daemon.terminate], ids=["killed", "terminated"])
def test_answers_over_a_restart(s3: FlakyS3, tmp_path: Path, file: Path, end: object) -> None:
    """Requests of each form are answered after two restarts, and no descriptor is left in the store."""
    assert callable(end)
    with (
        daemon(tmp_path / "state", s3.server, activated=True, http=True, keeping=True, drain_timeout="0s") as served,
        ThreadPoolExecutor(3) as pool,
    ):
        s3.hold_bodies()
        plain = pool.submit(served.plain, file, "a/bucket/plain")
        extended = pool.submit(served.extended, file, "a/bucket/extended")
        form = pool.submit(upload, served.http_port, file)
        served.wait_status(lambda now: now["in_flight"] == 3, "in flight")
        for _ in range(2):
            end(served)
            served.start()
        s3.release()
        assert plain.result() == b"Success"
        assert extended.result()["result"] == "stored"
        answer = form.result()
        assert (answer["code"], answer["task"]["uri"]) == (200, "s3://bucket/form")
        served.wait_status(lambda now: now["clients"] <= 1, "without clients")
        assert not served.kept


def test_a_request_behind_a_waiting_one_is_not_lost_by_a_kill(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Both were sent at once over one connection; the next process answers both, in order."""
    with daemon(tmp_path / "state", s3.server, activated=True, keeping=True) as served, served.connect() as client:
        s3.hold_bodies()
        for key in ("first", "second"):
            line = json.dumps({"file": str(file), "destination": f"a/bucket/{key}"})
            client.sendall(line.encode() + b"\n")
        served.wait_status(lambda now: now["in_flight"] == 1, "in flight")
        served.restart()
        s3.release()
        with client.makefile() as answers:
            found = [json.loads(answers.readline()) for _ in range(2)]
    assert [answer["result"] for answer in found] == ["stored", "stored"]
    assert [answer["id"] for answer in found] == [s3.objects[f"bucket/{key}"].id for key in ("first", "second")]


def test_what_was_found_about_the_store_is_kept(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """The rate is in force from the start on; what was not found anew is not forgotten."""

    async def keep(*hints: Hint) -> Hint:
        spool = Spool.open(tmp_path / "state")
        for hint in hints:
            spool.save_hint(hint)
        await spool.close()
        return spool.hint

    asyncio.run(keep(Hint(s3.server.url, 8_000_000)))
    with daemon(tmp_path / "state", s3.server) as served:
        limit = served.ask("status")["limit"]
        assert limit["origin"] == "kept"
        assert 0.95 < limit["rate_bps"] / 8_000_000 <= 1
        assert served.extended(file, "a/bucket/key")["result"] == "stored"
        served.terminate()
        assert asyncio.run(keep()) == Hint(s3.server.url, 8_000_000, "bucket")
