"""Asking: each way of getting no answer has a line of its own, and a reload says what it did."""

from __future__ import annotations

import argparse
import io
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s3daemon.control.client import Instance, NoDaemonError, add_instance, ask, instance_of, reload
from s3daemon.control.server import MAX_REQUEST
from s3daemon.errors import S3daemonError, SettingsError


@contextmanager
def daemon(path: Path, *answers: bytes) -> Iterator[list[bytes]]:
    """Give one answer to each connection; what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection, connection.makefile("rb") as lines:
                    asked.append(lines.readline())
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            thread.join(20)


def refused(path: Path, **options: float) -> S3daemonError:
    """What `ask` raises."""
    with pytest.raises(S3daemonError) as caught:
        ask(path, "status", **options)
    return caught.value


def test_asks(tmp_path: Path) -> None:
    """The command and its arguments go out as one line; the answer comes back without its "ok"."""
    path = tmp_path / "control"
    with daemon(path, b'{"ok": true, "ids": ["a"]}\n') as asked:
        assert ask(path, "retry", ids=["a", "\udcff"]) == {"ids": ["a"]}
    assert asked == [b'{"command": "retry", "ids": ["a", "\\udcff"]}\n']


def test_no_daemon(tmp_path: Path) -> None:
    """No socket, and a socket that a crash left, mean that there is none."""
    path = tmp_path / "control"
    assert isinstance(refused(path), NoDaemonError)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert isinstance(refused(path), NoDaemonError)
    (tmp_path / "file").touch()
    assert isinstance(refused(tmp_path / "file" / "control"), NoDaemonError)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b"\xff\n", b'{"ok": tr'])
def test_no_answer(tmp_path: Path, answer: bytes) -> None:
    """A hang-up or nonsense is no answer, and not the same as no daemon."""
    path = tmp_path / "control"
    with daemon(path, answer):
        error = refused(path)
    assert (type(error), error.code) == (S3daemonError, "NoAnswer")


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    """It is waited for so long and no longer, connected or not yet."""
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        error = refused(path, timeout_s=0.05)
        assert (error.code, error.text) == ("NoAnswer", f"the daemon on {path} said nothing for 0.05 s")
        assert refused(path, timeout_s=0.05).code == "NoAnswer"  # its backlog is full now


def test_a_full_backlog_is_a_wait(tmp_path: Path) -> None:
    """To connect when nothing accepts yet is to wait, not to be refused."""
    path = tmp_path / "control"
    answers: list[dict[str, object]] = []
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(os.fspath(path))
        listener.listen(0)
        first.connect(os.fspath(path))
        thread = threading.Thread(target=lambda: answers.append(ask(path, "status")))
        thread.start()
        for answer in (b"", b'{"ok": true}\n'):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer)
        thread.join(20)
    assert answers == [{}]


def test_refusals(tmp_path: Path) -> None:
    """The daemon's code and text come through; a reload's faults one by one."""
    path = tmp_path / "control"
    faults = b'{"ok": false, "code": "BadSettings", "text": "a; b", "faults": ["a", "b"]}\n'
    with daemon(path, b'{"ok": false, "code": "NoSuchTransfer", "text": "none"}\n', b'{"ok": false}\n', faults):
        error = refused(path)
        assert (error.code, error.text) == ("NoSuchTransfer", "none")
        assert refused(path).code == "Refused"
        with pytest.raises(SettingsError) as caught:
            ask(path, "reload")
    assert caught.value.faults == ("a", "b")


def test_too_much_for_one_request(tmp_path: Path) -> None:
    """The bound is told before anything is sent."""
    with pytest.raises(S3daemonError, match="more than fits in one request"):
        ask(tmp_path / "control", "drop", ids=["0123456789abcdef"] * (MAX_REQUEST // 16))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_not_permitted(tmp_path: Path) -> None:
    """Another user is told whom to be."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "control"))
        (tmp_path / "control").chmod(0o600)
        listener.listen()
        os.seteuid(65534)
        try:
            error = refused(tmp_path / "control")
        finally:
            os.seteuid(0)
    assert error.code == "NotPermitted"
    assert "run it as root or as the service's user" in error.text


@pytest.mark.parametrize(
    ("argv", "environ", "state_dir", "sockets"),
    [
        ([], {}, "/var/lib/s3daemon", ["/var/lib/s3daemon/control", "/run/s3daemon/control"]),
        (
            ["--instance", "15556"],
            {"RUNTIME_DIRECTORY": "/run/s3daemon"},
            "/var/lib/s3daemon@15556",
            ["/var/lib/s3daemon@15556/control", "/run/s3daemon@15556/control"],
        ),
        (["--state-dir", "/s"], {"S3DAEMON_STATE_DIR": "/t", "RUNTIME_DIRECTORY": "/r"}, "/s", ["/s/control"]),
        ([], {"S3DAEMON_STATE_DIR": "/s"}, "/s", ["/s/control"]),
        ([], {"STATE_DIRECTORY": "/s:/t", "RUNTIME_DIRECTORY": "/r:/q"}, "/s", ["/r/control", "/s/control"]),
    ],
)
def test_places(argv: list[str], environ: dict[str, str], state_dir: str, sockets: list[str]) -> None:
    """Options go before the environment, and that before where systemd puts the plain service's."""
    parser = argparse.ArgumentParser()
    add_instance(parser)
    place = instance_of(parser.parse_args(argv), environ)
    assert place == Instance(Path(state_dir), tuple(map(Path, sockets)))


def test_a_place_is_asked_wherever_it_listens(tmp_path: Path) -> None:
    """The sockets are tried in turn; when none answers, the last one's error is told."""
    place = Instance(tmp_path, (tmp_path / "gone", tmp_path / "control"))
    with daemon(tmp_path / "control", b'{"ok": true}\n') as asked:
        assert place.ask("queue", failed=True) == {}
    assert asked == [b'{"command": "queue", "failed": true}\n']
    with pytest.raises(NoDaemonError, match="control"):
        place.ask("queue")


@pytest.mark.parametrize(
    ("answer", "status", "out", "err"),
    [
        (b'{"ok": true, "applied": [], "restart": []}\n', 0, "nothing changed\n", ""),
        (
            b'{"ok": true, "applied": ["A", "B"], "restart": ["C"]}\n',
            0,
            "in force from the next attempt on: A, B\ntakes a restart of the service: C\n",
            "",
        ),
        (
            b'{"ok": false, "code": "BadSettings", "text": "", "faults": ["a", "b"]}\n',
            1,
            "",
            "a\nb\nrefused: the settings before stay in force\n",
        ),
        (b'{"ok": false, "code": "Internal", "text": "a bug"}\n', 1, "", "Internal: a bug\n"),
    ],
)
def test_reload(tmp_path: Path, answer: bytes, status: int, out: str, err: str) -> None:
    """The operator's variables are handed over; the outcome is told in words and by the exit status."""
    environ = {"RUNTIME_DIRECTORY": os.fspath(tmp_path), "S3DAEMON_PORT": "1", "CREDENTIALS_DIRECTORY": "/c"}
    outs, errs = io.StringIO(), io.StringIO()
    with daemon(tmp_path / "control", answer) as asked:
        assert reload(environ, outs, errs) == status
    assert asked == [b'{"command": "reload", "environ": {"S3DAEMON_PORT": "1"}}\n']
    assert (outs.getvalue(), errs.getvalue()) == (out, err)


def test_reload_without_a_daemon(tmp_path: Path) -> None:
    """One line, exit status 1."""
    errs = io.StringIO()
    assert reload({"S3DAEMON_STATE_DIR": os.fspath(tmp_path)}, io.StringIO(), errs) == 1
    assert errs.getvalue() == f"NoDaemon: no daemon listens on {tmp_path}/control\n"
