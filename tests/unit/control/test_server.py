"""The control socket: operators' commands are answered in private, and nothing they send stops or slows the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from lab.sending import in_loop

from s3daemon.control.client import MAX_REQUEST
from s3daemon.control.server import MAX_COMMANDS, ControlServer, Handler
from s3daemon.errors import S3daemonError, SettingsError, StartError
from s3daemon.ingress.peer import peer_uid

SECRET = "wJalrXUtnFEMI7MDENG"  # the documentation's example, nobody's key


async def echo(request: Mapping[str, object]) -> Mapping[str, object]:
    """Answer with the request."""
    return {"got": dict(request)}


@contextlib.asynccontextmanager
async def serving(path: Path, handlers: Mapping[str, Handler], **options: Any) -> AsyncIterator[None]:
    """A server at that path."""
    server = ControlServer(path, handlers, **options)
    server.start()
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        await server.close()


async def exchange(path: Path, sent: bytes, *, half_close: bool = True) -> list[dict[str, Any]]:
    """Everything that is answered to some bytes."""
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
    writer.write(sent)
    if half_close:
        writer.write_eof()
    answers = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    return answers


@in_loop
async def test_a_connection_serves_one_request_after_another(path: Path) -> None:
    sent = b'{"command": "echo", "a": [1]}\n{"command": "echo"}\n'
    async with serving(path, {"echo": echo}):
        answers = await exchange(path, sent)
    assert answers == [{"ok": True, "got": {"a": [1]}}, {"ok": True, "got": {}}]


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"\n", "not a JSON object"),
        (b"[]\n", "not a JSON object"),
        (b"\xff\n", "not a JSON object"),
        (b"[" * 100_000 + b"\n", "not a JSON object"),
        (b'{"command": "echo"}', "not a JSON object and LF"),
        (b'{"command": "x\\u0007"}\n', "does not know the command 'x\\x07'"),
        (b'{"command": ["echo"]}\n', "does not know"),
        (b"{}\n", "does not know the command ''"),
        (b"x" * (3 * MAX_REQUEST), f"at most {MAX_REQUEST} bytes"),
    ],
)
@in_loop
async def test_what_is_not_a_request_is_refused(sent: bytes, text: str, path: Path) -> None:
    """One answer says why."""
    async with serving(path, {"echo": echo}):
        answer, *_ = await exchange(path, sent)
    assert (answer["ok"], answer["code"]) == (False, "BadRequest")
    assert text in answer["text"]


@in_loop
async def test_errors_are_answered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An expected error with its code, a bug with its name; no log quotes a request."""

    async def refuse(request: Mapping[str, object]) -> Mapping[str, object]:
        raise S3daemonError("UnknownTransfer", "no\nsuch")

    async def doubt(request: Mapping[str, object]) -> Mapping[str, object]:
        raise SettingsError(["a is bad", "b is worse"])

    async def fail(request: Mapping[str, object]) -> Mapping[str, object]:
        raise KeyError(request["secret"])

    path = tmp_path / "control"
    handlers = {"refuse": refuse, "doubt": doubt, "fail": fail, "echo": echo}
    commands = [{"command": "refuse"}, {"command": "doubt"}, {"command": "fail", "secret": SECRET}, {"command": "echo"}]
    sent = b"".join(json.dumps(command).encode() + b"\n" for command in commands)
    async with serving(path, handlers):
        answers = await exchange(path, sent)
    assert answers == [
        {"ok": False, "code": "UnknownTransfer", "text": "no\\nsuch"},
        {"ok": False, "code": "BadSettings", "text": "a is bad; b is worse", "faults": ["a is bad", "b is worse"]},
        {"ok": False, "code": "Internal", "text": "a bug in the daemon: KeyError; its journal says where"},
        {"ok": True, "got": {}},
    ]
    assert "bug in the command fail: KeyError" in caplog.text
    assert "in fail" in caplog.text
    assert SECRET not in caplog.text


@in_loop
async def test_an_answer_that_cannot_be_encoded_ends_its_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the next connection is served."""

    async def odd(request: Mapping[str, object]) -> Mapping[str, object]:
        return {"what": object()}

    path = tmp_path / "control"
    async with serving(path, {"odd": odd, "echo": echo}):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"command": "odd"}\n')
        assert not (await reader.read()).endswith(b"\n")
        writer.close()
        assert await exchange(path, b'{"command": "echo"}\n') == [{"ok": True, "got": {}}]
    assert "bug in the encoding of an answer: TypeError" in caplog.text


@pytest.mark.parametrize("count", [0, 1, 256, 257, 10_000])
@in_loop
async def test_iterators_go_out_in_slices(count: int, path: Path) -> None:
    """They arrive as one array, and the event loop runs between the slices."""
    turns = 0

    async def rows(request: Mapping[str, object]) -> Mapping[str, object]:
        return {"before": 1, "rows": ({"n": n} for n in range(count)), "after": 2}

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with serving(path, {"rows": rows}):
        task = asyncio.create_task(others())
        (answer,) = await exchange(path, b'{"command": "rows"}\n')
        task.cancel()
    assert answer == {"ok": True, "before": 1, "rows": [{"n": n} for n in range(count)], "after": 2}
    assert turns >= count // 256


@in_loop
async def test_only_root_and_the_own_user_are_served(path: Path) -> None:
    """The mode is 0600, and another user who connects all the same is refused."""
    called: list[object] = []

    async def secret(request: Mapping[str, object]) -> Mapping[str, object]:
        called.append(request)
        return {}

    sent = b'{"command": "secret"}\n'
    async with serving(path, {"secret": secret}, peer=lambda sock: os.geteuid() + 4711):
        assert os.stat(path).st_mode & 0o777 == 0o600
        (answer,) = await exchange(path, sent, half_close=False)
    assert answer["code"] == "NotPermitted"
    assert not called
    for peer in (lambda _: 0, lambda _: os.geteuid()):
        async with serving(path, {"secret": secret}, peer=peer):
            assert await exchange(path, sent)
    assert len(called) == 2


def test_the_kernel_says_who_the_peer_is() -> None:
    """Not the peer itself."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_uid(ours) == os.geteuid()


@in_loop
async def test_the_socket_of_a_crashed_daemon_is_replaced(path: Path) -> None:
    """A closed server leaves nothing."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    async with serving(path, {"echo": echo}):
        assert await exchange(path, b'{"command": "echo"}\n')
    assert not os.access(path, os.F_OK)


def test_what_is_not_a_socket_is_left_alone(tmp_path: Path, path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(StartError, match=r"cannot listen on .*: Address already in use"):
        ControlServer(path, {}).start()
    assert path.read_text() == "precious"
    with pytest.raises(StartError, match=r"cannot listen on .*: No such file or directory"):
        ControlServer(tmp_path / "no" / "control", {}).start()


@in_loop
async def test_a_silent_connection_is_closed(path: Path) -> None:
    """Whether its client sends nothing or does not read."""
    asked = asyncio.Event()

    async def endless(request: Mapping[str, object]) -> Mapping[str, object]:
        asked.set()
        return {"rows": ("x" * 1000 for _ in iter(int, 1))}

    async with serving(path, {"endless": endless}, idle_s=0.05):
        reader, writer = await asyncio.open_unix_connection(path)
        assert await reader.read() == b""
        writer.close()
        before = asyncio.all_tasks()
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(os.fspath(path))
            deaf.sendall(b'{"command": "endless"}\n')
            # The server's task of this client is the only new one; it is done with the client when that ends.
            await asked.wait()
            await asyncio.wait(asyncio.all_tasks() - before)


@in_loop
async def test_close_ends_commands_in_progress(caplog: pytest.LogCaptureFixture, path: Path) -> None:
    """A command that hangs does not hold up the daemon's end; its client sees the connection close."""
    started = asyncio.Event()

    async def hang(request: Mapping[str, object]) -> Mapping[str, object]:
        started.set()
        await asyncio.Event().wait()
        return {}

    caplog.set_level(logging.DEBUG, "s3daemon")
    server = ControlServer(path, {"hang": hang})
    server.start()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"command": "hang"}\n')
    await started.wait()
    await server.close()
    await server.close()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    assert not caplog.records


@in_loop
async def test_further_commands_wait_for_their_turn(path: Path) -> None:
    """More connections than are served at a time are answered as soon as others end; none is refused."""
    release = asyncio.Event()
    served_now = most = 0

    async def slow(request: Mapping[str, object]) -> Mapping[str, object]:
        nonlocal served_now, most
        served_now += 1
        most = max(most, served_now)
        await release.wait()
        served_now -= 1
        return {}

    async with serving(path, {"slow": slow}):
        asking = [asyncio.create_task(exchange(path, b'{"command": "slow"}\n')) for _ in range(2 * MAX_COMMANDS)]
        while served_now < MAX_COMMANDS:
            await asyncio.sleep(0.001)
        release.set()
        assert await asyncio.gather(*asking) == [[{"ok": True}]] * 2 * MAX_COMMANDS
    assert most == MAX_COMMANDS
