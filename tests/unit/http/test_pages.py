"""The pages show the state and no secret; health is bad exactly when nothing is delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from s3daemon import __version__
from s3daemon.config.settings import VARIABLES, Settings, SettingsHolder
from s3daemon.control.operations import Operations
from s3daemon.control.status import Condition, Connections
from s3daemon.http.metrics import Metrics
from s3daemon.http.pages import routes
from s3daemon.ingress.questions import Questions
from s3daemon.model.exposure import Exposures


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


SETTINGS = Settings(
    endpoint_url="http://store", access_key="AKIDEXAMPLE", secret_key="hush-hush-key", session_token="hush-token",
    state_dir="/nowhere", allowed_buckets=("a", "b"), shared_credentials_file="/etc/keys", profile="p",
)  # fmt: skip


def ask(path: str, operations: FakeOperations, settings: Settings = SETTINGS) -> Any:
    async def main() -> Any:
        request: Any = FakeRequest()
        questions = Questions(Exposures(), lambda id_: False)
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
