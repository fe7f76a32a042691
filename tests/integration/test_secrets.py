"""Keys, and what is signed with them, are shown nowhere: not in logs, tracebacks, replies, reports or core dumps.

What each fault of a store makes the daemon write is looked through in test_faults.py, a system in test_systemd.py.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemon import Daemon, daemon
from lab.env import TREE
from lab.proxy import Proxy, proxy
from lab.s3 import S3Server

SECRET = "wrong-secret/of+the=test"
TOKEN = "session-token-of-the-test"

#: Python runs this at its start: sending fails with what no exception should say, and a bug in it at that.
RAISES_THE_KEYS = """
from s3daemon.network.connection import Connection
async def request(self, method, url, headers, data):
    if data is not None:
        raise RuntimeError(f"{headers} {self._settings.secret_key} {self._settings!r}")
    raise OSError(f"{headers}")
Connection.request = request
"""


@pytest.fixture
def between(seaweed: S3Server) -> Iterator[tuple[Proxy, S3Server]]:
    with proxy(seaweed) as (made, through):
        yield made, through


@pytest.fixture
def served(between: tuple[Proxy, S3Server], tmp_path: Path) -> Iterator[Daemon]:
    with daemon(
        tmp_path / "state", between[1], running=False, log_level="debug", wait_limit="3s", AWS_SECRET_ACCESS_KEY=SECRET
    ) as made:
        yield made


def shown(served: Daemon) -> str:
    """Everything that it wrote, and that operators and clients can ask it."""
    said = [*served.lines(), str(served.ask("status")), str(served.ask("queue")), str(served.ask("nonsense"))]
    for command in (("queue",), ("queue", "--json"), ("check", "some-bucket/scratch"), ("check",), ("reload",)):
        done = served.command(*command)
        said += [done.stdout, done.stderr]
    return "\n".join(said)


def test_with_keys_that_are_refused(served: Daemon, between: tuple[Proxy, S3Server], file: Path) -> None:
    """The store's refusal quotes the signature and what was signed; neither is shown."""
    served.set(AWS_SESSION_TOKEN=TOKEN)
    served.start()
    reply = served.plain(file, "a/some-bucket/key").decode()
    assert re.search("InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken", reply), reply
    text = shown(served) + reply
    assert between[0].signatures
    for secret in (SECRET, TOKEN, *between[0].signatures):
        assert secret not in text
    assert "AWS4-HMAC" not in text


def test_with_a_bug_that_shows_keys(served: Daemon, tmp_path: Path, file: Path) -> None:
    """An exception that names the keys is logged without them, and so is its traceback."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(RAISES_THE_KEYS)
    served.set(PYTHONPATH=f"{tmp_path / 'site'}:{TREE}", wait_limit="100ms")
    served.start()
    reply = served.plain(file, "a/some-bucket/key").decode()
    served.process.wait_line(r"RuntimeError: .*\*\*\*")
    text = "\n".join(served.lines()) + reply
    assert "a bug in an attempt" in text
    assert "***" in text
    assert SECRET not in text


def test_with_a_fault_in_the_settings(served: Daemon) -> None:
    """A start and a reload say which variable is wrong, not what is in it."""
    served.start()
    good = dict(served.environ)
    for name, value in (
        ("AWS_SECRET_ACCESS_KEY", f"'{SECRET}"),  # an open quote
        ("AWS_SECRET_ACCESS_KEY", f"{SECRET}\nAWS_DEFAULT_REGION=x"),
        ("S3_ENDPOINT_URL", f"http://key:{SECRET}@store"),
        ("S3DAEMON_ALLOWED_ROOTS", f"data AWS_SECRET_ACCESS_KEY={SECRET}"),  # a line that was joined to the one before
        ("AWS_SESSION_TOKEN", f"{SECRET} {SECRET}"),
    ):
        served.environ = good | {name: value}
        for text in (str(served.ask("reload", environ=served.environ)), served.command("serve").stderr):
            assert name in text
            assert SECRET not in text


def test_no_core_is_dumped(served: Daemon) -> None:
    """The unit forbids core dumps, and a daemon that dies of a signal prints no secret."""
    text = (TREE / "systemd/s3daemon.service").read_text()
    # 1, not 0: at 0 the kernel still hands a dying process to a core_pattern that is a pipe.
    assert "\nLimitCORE=1\n" in text
    assert "LimitCORE=" not in text.replace("\nLimitCORE=1\n", "")
    served.start()
    assert served.process.stop(signal.SIGABRT) == -signal.SIGABRT
    assert SECRET not in "\n".join(served.lines())
