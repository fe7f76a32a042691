"""The pages show the state and no secret; health is bad exactly when nothing is delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from lab.records import failed, record
from yarl import URL

from s3daemon import __version__
from s3daemon.config.settings import VARIABLES, Settings, SettingsHolder
from s3daemon.control.operations import Operations
from s3daemon.control.status import Condition, Connections
from s3daemon.http.metrics import Metrics
from s3daemon.http.pages import routes
from s3daemon.ingress.questions import Questions
from s3daemon.model.exposure import Exposures
from s3daemon.model.ids import uuid_of


class FakeOperations(Operations):
    """A stand-in for the operations."""

    def __init__(self, spool_fault: str = "") -> None:
        """Make it without anything that it would describe."""
        self.spool_fault = spool_fault

    def condition(self) -> Condition:
        to_do: dict[str, Any] = {"in_flight": 0, "pending": 0, "oldest_s": None, "failed": 0, "clients": 0}
        return Condition(**to_do, connections=Connections(5, 9, 8), spool_fault=self.spool_fault)

    async def status(self, arguments: Mapping[str, object]) -> Mapping[str, object]:
        return {"in_flight": 3, **arguments}


class FakeRequest:
    headers: Mapping[str, str] = {}

    def __init__(self, url: str) -> None:
        self.rel_url = URL(url, encoded=True)
        self.path = self.rel_url.path


SETTINGS = Settings(
    endpoint_url="http://store", access_key="AKIDEXAMPLE", secret_key="hush-hush-key", session_token="hush-token",
    state_dir="/nowhere", allowed_buckets=("a", "b"), shared_credentials_file="/etc/keys", profile="p",
)  # fmt: skip


def ask(path: str, operations: FakeOperations, settings: Settings = SETTINGS, query: str = "") -> Any:
    async def main() -> Any:
        request: Any = FakeRequest(path)
        questions = Questions(Exposures(), lambda id_: None, lambda queued: "")
        metrics = Metrics()
        return await routes(SettingsHolder(settings), operations, metrics, questions)[path](request)

    return asyncio.run(main())


def test_version_shows_the_settings_without_secrets() -> None:
    response = ask("/version", FakeOperations())
    members = json.loads(response.text)
    assert members["version"] == __version__
    assert members["settings"]["S3DAEMON_ALLOWED_BUCKETS"] == ["a", "b"]
    assert members["settings"].keys() == {v.name for v in VARIABLES.values() if not v.secret}
    assert members["config"].keys() == members["settings"].keys()
    assert {type(value) for value in members["config"].values()} == {str}
    assert members["config"]["S3DAEMON_ALLOWED_BUCKETS"] == "a b"
    assert (members["config"]["S3DAEMON_PORT"], members["config"]["S3DAEMON_WAIT_LIMIT"]) == ("15555", "30")
    assert (members["settings"]["S3DAEMON_BWLIMIT"], members["config"]["S3DAEMON_BWLIMIT"]) == (None, "auto")
    assert response.text.endswith("}\n")
    assert "hush" not in response.text
    assert "AKIDEXAMPLE" not in response.text


def test_version_shows_no_secret_within_another_value() -> None:
    """A list takes any word, and so the next line of an environment file in which a quote was not closed."""
    unclosed = replace(SETTINGS, allowed_users=("a\nAWS_SECRET_ACCESS_KEY=hush",))
    text = ask("/version", FakeOperations(), unclosed).text
    assert "hush" not in text
    assert "S3DAEMON_ALLOWED_USERS" not in text


@pytest.mark.parametrize(("fault", "status"), [("", 200), ("the disk is full", 503)])
def test_health_is_a_status_and_a_line(fault: str, status: int) -> None:
    operations = FakeOperations(fault)
    response = ask("/healthz", operations)
    line = operations.condition().line
    assert (response.status, response.text, response.content_type) == (status, f"{line}\n", "text/plain")


def test_status_and_metrics() -> None:
    assert json.loads(ask("/status.json", FakeOperations()).text) == {"in_flight": 3}
    response = ask("/metrics", FakeOperations())
    assert response.content_type == "text/plain"
    assert b"\ns3daemon_stored_bytes_total 0.0\n" in response.body


GOOD, BAD, PENDING = "0000000000000001", "0000000000000002", "00000000000000aa"


def answer_about(url: str, *, stops: bool = False) -> Any:
    """The answer to a question: under one tag a file is stored, under another one failed, and a transfer is pending."""

    async def main() -> Any:
        request: Any = FakeRequest(url)
        exposures = Exposures()
        pending: Any = object()
        questions = Questions(exposures, {PENDING: pending}.get, lambda queued: "the queue is held")
        for ended in (record(1, tags=("good",)), failed(2, tags=("bad",)), record(3, tags=(r"\n",))):
            exposures.recorded(ended)
            questions.see(ended)
        if stops:
            questions.leave()
        found = routes(SettingsHolder(SETTINGS), FakeOperations(), Metrics(), questions)
        path = "/transfers" if request.path == "/transfers" else "/transfers/*"
        return await asyncio.wait_for(found[path](request), 5)

    return asyncio.run(main())


@pytest.mark.parametrize(("url", "status", "members"), [
    ("?tag=good&expect=1", 200, {"result": "stored", "tag": "good", "stored": 1, "pending": 0}),
    ("?tag=good&tag=good", 200, {"tag": "good"}),
    ("?tag=%0A", 200, {"tag": r"\n"}),
    ("?tag=bad", 502, {"result": "failed", "tag": "bad", "code": "Incomplete", "failed": 1}),
    ("?tag=good&expect=2&timeout=0", 504, {"result": "deferred", "code": "Deferred", "stored": 1}),
    ("?tag=none", 404, {"result": "failed", "tag": "none", "code": "UnknownTransfer"}),
    ("", 400, {"result": "failed", "code": "BadRequest", "msg": "a question needs a tag"}),
    ("?tag=", 400, {"msg": "a question needs a tag"}),
    ("?tag=good&tag=bad", 400, {"msg": "'tag' is given twice, with different values"}),
    ("?tag=good&expected=46", 400, {"msg": "'expected' is not known here; known: tag, expect, timeout"}),
    (f"/{GOOD}?tag=good", 400, {"msg": "'tag' is not known here; known: timeout"}),
    ("?tag=good&expect=all", 400, {"msg": "expect and timeout must be numbers"}),
    ("?tag=good&timeout=1h", 400, {"msg": "expect and timeout must be numbers"}),
    (f"/{GOOD}", 200, {"result": "stored", "id": uuid_of(GOOD)}),
    (f"/{uuid_of(GOOD).upper()}", 200, {"result": "stored", "id": uuid_of(GOOD)}),
    (f"/{BAD}", 502, {"result": "failed", "id": uuid_of(BAD), "code": "NoSuchBucket", "msg": "it is not there"}),
    (f"/{PENDING}?timeout=0", 504, {"result": "deferred", "id": uuid_of(PENDING), "code": "Deferred",
                                     "msg": "kept, and not stored yet; the queue is held"}),
    (f"/{'f' * 16}", 404, {"result": "failed", "code": "UnknownTransfer"}),
    (f"/{GOOD}?timeout=1h", 400, {"code": "BadRequest", "msg": "expect and timeout must be numbers"}),
])  # fmt: skip
def test_questions_about_transfers(url: str, status: int, members: dict[str, object]) -> None:
    """One that is understood in part is refused: a client would take the answer for that to its own question."""
    response = answer_about(f"/transfers{url}")
    found = json.loads(response.text)
    assert (response.status, found) == (status, found | members)
    assert found.get("id") == members.get("id")


@pytest.mark.parametrize("url", ["?tag=good&expect=2", f"/{PENDING}"])
def test_while_the_service_stops_a_question_is_to_be_asked_again(url: str) -> None:
    response = answer_about(f"/transfers{url}", stops=True)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(response.text) == {"result": "unknown"}
