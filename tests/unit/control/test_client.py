"""Asking the daemon: every way of getting no answer has an error of its own that says what to do."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
from lab.control import answering

from s3daemon.control.client import (
    MAX_REQUEST,
    Instance,
    NoDaemonError,
    ask,
    control_path,
)
from s3daemon.errors import S3daemonError, SettingsError


def refused(path: Path, **options: float) -> S3daemonError:
    """What `ask` raises."""
    with pytest.raises(S3daemonError) as caught:
        ask(path, "status", **options)
    return caught.value


def test_a_successful_answer_is_returned_without_its_flag(path: Path) -> None:
    """The command and its arguments go out as one line; the answer comes back without its "ok"."""
    with answering(path, b'{"ok": true, "ids": ["a"]}\n') as asked:
        assert ask(path, "retry", ids=["a", "\udcff"]) == {"ids": ["a"]}
    assert asked == [b'{"command": "retry", "ids": ["a", "\\udcff"]}\n']


def test_a_missing_or_dead_socket_means_no_daemon(tmp_path: Path, path: Path) -> None:
    """No socket, and a socket that a crash left, mean that there is none."""
    assert isinstance(refused(path), NoDaemonError)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert isinstance(refused(path), NoDaemonError)
    (tmp_path / "file").touch()
    assert isinstance(refused(tmp_path / "file" / "control"), NoDaemonError)


@pytest.mark.parametrize(
    ("directory", "check"),
    [("s3daemon", "s3daemon check says"), ("s3daemon@15557", "s3daemon check --instance 15557 says")],
)
def test_the_check_to_run_is_that_of_the_instance(directory: str, check: str, tmp_path: Path) -> None:
    assert f"start it; {check} why" in refused(tmp_path / directory / "control").text


@pytest.mark.parametrize("answer", [b"", b"{", b"[]\n", b"\xff\n", b'{"ok": tr'])
def test_a_lost_connection_or_nonsense_is_not_an_answer(answer: bytes, path: Path) -> None:
    """That is not the same as no daemon."""
    with answering(path, answer):
        error = refused(path)
    assert (type(error), error.code) == (S3daemonError, "NoAnswer")


def test_a_daemon_that_hangs_is_waited_for_so_long(path: Path) -> None:
    """Whether it accepted the connection or not."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        error = refused(path, timeout_s=0.05)
        assert (error.code, error.text) == ("NoAnswer", f"the daemon on {path} did not answer within 0.05 s")
        assert refused(path, timeout_s=0.05).code == "NoAnswer"  # its backlog is full now


def test_a_full_backlog_is_a_wait(path: Path) -> None:
    """To connect when nothing accepts yet is to wait, not to be refused."""
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


def test_a_refusal_has_the_code_and_text_of_the_daemon(path: Path) -> None:
    """The daemon's code and text come through; a reload's faults one by one."""
    faults = b'{"ok": false, "code": "BadSettings", "text": "a; b", "faults": ["a", "b"]}\n'
    with answering(path, b'{"ok": false, "code": "UnknownTransfer", "text": "none"}\n', b'{"ok": false}\n', faults):
        error = refused(path)
        assert (error.code, error.text) == ("UnknownTransfer", "none")
        assert refused(path).code == "Refused"
        with pytest.raises(SettingsError) as caught:
            ask(path, "reload")
    assert caught.value.faults == ("a", "b")


def test_a_request_that_is_too_long_is_not_sent(tmp_path: Path) -> None:
    """The error comes before the daemon is asked."""
    with pytest.raises(S3daemonError, match="the request is too long"):
        ask(tmp_path / "control", "drop", ids=["0123456789abcdef"] * (MAX_REQUEST // 16))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user for a moment")
def test_another_user_is_refused_by_the_kernel(tmp_path: Path) -> None:
    """The error says which user to become."""
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
    assert "answers root and its own user only: run it as root" in error.text


def test_an_instance_is_asked_wherever_it_listens(tmp_path: Path) -> None:
    """The sockets are tried in turn; when none answers, the error is that of the last one."""
    instance = Instance(tmp_path, (tmp_path / "gone", tmp_path / "control"))
    with answering(tmp_path / "control", b'{"ok": true}\n') as asked:
        assert instance.ask("queue", failed=True) == {}
    assert asked == [b'{"command": "queue", "failed": true}\n']
    with pytest.raises(NoDaemonError, match="control"):
        instance.ask("queue")


def test_where_the_daemon_listens() -> None:
    """In systemd's runtime directory, else beside the spool."""
    state = Path("/var/lib/x")
    assert control_path({"RUNTIME_DIRECTORY": "/run/x:/run/y"}, state) == Path("/run/x/control")
    assert control_path({}, state) == Path("/var/lib/x/control")
