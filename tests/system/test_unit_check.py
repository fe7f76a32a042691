"""`s3daemon check` in a booted system: systemd reads the environment file, and says how the units are."""

import socket
from collections.abc import Iterator

import pytest
from lab.box import Box
from lab.installed import Service, installed
from lab.s3 import S3Server


@pytest.fixture(scope="module")
def service(box: Box) -> Iterator[Service]:
    with installed(box) as made:
        yield made


def check(service: Service, *words: str, status: int = 0) -> str:
    """What it prints to root."""
    done = service.box.exec("s3daemon", "check", *words, check=False)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout
    return done.stdout


def test_installed(service: Service, moto: S3Server) -> None:
    """Before the socket is enabled that is a failure; afterwards all is well, to an object put and deleted."""
    service.configure(moto)
    assert "FAIL socket      s3daemon.socket is inactive" in check(service, status=1)
    service.systemctl("enable", "--now", service.socket, service.unit)
    found = check(service, moto.new_bucket())
    assert "ok   settings    from /etc/sysconfig/s3daemon: " in found
    assert "ok   socket      127.0.0.1:" in found
    assert "ok   bucket      stored in" in found
    assert "ok   daemon      " in found
    assert "ok   journal     " in found


def test_lines_that_systemd_ignores(service: Service, moto: S3Server) -> None:
    """An open quote swallows the next line, and systemd calls neither that nor an ignored line an error."""
    service.configure(moto)
    file = service.box.root / "etc/sysconfig/s3daemon"
    text = file.read_text()
    try:
        file.write_text(f"{text}\nS3DAEMON_CONGESTION='x\nS3DAEMON_MAX_CONNECTIONS=7\n")
        assert "is a quote left open" in check(service, status=1)
        ignored = "# only these:\\\nS3DAEMON_ALLOWED_ROOTS=/data\nexport S3DAEMON_ALLOWED_USERS=daemon\n"
        file.write_text(f"{text}\n{ignored}")
        found = check(service, status=1)
        # Systemd 254 and later does not continue a comment after a backslash.
        assert ("does not set S3DAEMON_ALLOWED_ROOTS" in found) == ("S3DAEMON_ALLOWED_ROOTS, " in found)
        assert "does not set S3DAEMON_ALLOWED_USERS" in found
        file.write_bytes(text.encode() + b"\nS3DAEMON_HTTP_NAMES=\xff\n")
        assert "does not accept /etc/sysconfig/s3daemon: see journalctl" in check(service, status=1)
    finally:
        file.write_text(text)


def test_another_file_and_another_user(service: Service, moto: S3Server) -> None:
    """`--env-file` is read likewise; other users are asked to run it as root."""
    service.configure(moto)
    text = (service.box.root / "etc/sysconfig/s3daemon").read_text()
    other = service.box.root / "srv/new settings.env"
    other.write_text(f"{text}\nS3DAEMON_MAX_CONNECTIONS=3\n")
    other.chmod(0o644)
    done = service.box.exec("s3daemon", "check", "--env-file", "/srv/new settings.env", check=False)
    assert "from /srv/new settings.env: 3 connections" in done.stdout
    user = ("runuser", "-u", "nobody", "--", "s3daemon", "check", "--env-file", "/srv/new settings.env")
    assert (
        "systemd reads /srv/new settings.env for root only: run it as root"
        in service.box.exec(*user, check=False).stdout
    )


def test_another_state_directory(service: Service, moto: S3Server) -> None:
    """The unit cannot write it, which check says before a start fails; what it says to do is enough."""
    service.configure(moto)
    file = service.box.root / "etc/sysconfig/s3daemon"
    text = file.read_text()
    drop_in = service.box.root / f"etc/systemd/system/{service.unit}.d/state.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.write_text(f"{text}\nS3DAEMON_STATE_DIR=/srv/spool\n")
        line = next(line for line in check(service, status=1).splitlines() if " state " in line)
        assert line.startswith("FAIL state       /srv/spool is read-only to the service")
        assert service.systemctl("restart", service.unit, check=False).returncode != 0
        service.box.exec(*line.split(": ")[1].partition(";")[0].split())
        drop_in.write_text("[Service]\nReadWritePaths=/srv/spool\n")
        service.systemctl("daemon-reload")
        service.systemctl("reset-failed", service.unit)
        service.systemctl("restart", service.unit)
        assert "ok   state       /srv/spool, mode 0700" in check(service)
    finally:
        drop_in.unlink(missing_ok=True)
        file.write_text(text)
        service.systemctl("daemon-reload")
        service.systemctl("restart", service.unit)


def test_why_the_units_do_not_start(service: Service, moto: S3Server) -> None:
    """What systemd says of a port that is taken, and of a service that it does not start, is passed on."""
    service.configure(moto)
    service.systemctl("stop", service.socket, service.unit)
    with socket.create_server(("127.0.0.1", service.port)):
        service.systemctl("start", service.socket, check=False)
        assert f"(127.0.0.1:{service.port}): Address already in use: remove the cause" in check(service, status=1)
    with service.drop_in("RestartSec=1min\nExecStart=\nExecStart=/bin/sh -c 'echo a library is missing >&2; exit 3'"):
        service.systemctl("start", service.socket, service.unit, check=False)
        service.box.exec("journalctl", "--sync")
        assert "fails to start: a library is missing; " in check(service, status=1)
    with service.drop_in("[Unit]\nConditionPathExists=/nowhere"):
        service.systemctl("stop", service.unit)
        service.systemctl("start", service.unit)
        assert "did not start, as a line Condition...= of its unit does not hold" in check(service, status=1)
    service.systemctl("start", service.unit)
    check(service)
