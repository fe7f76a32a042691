"""The command as a whole: where its settings come from, what runs without them, and the exit status."""

from __future__ import annotations

import argparse
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lab.s3 import S3Server
from looked import LOOPBACK_ROW, Looked

from s3daemon.commands.check import command as check
from s3daemon.commands.check.findings import Host, Report

SECRET = "wJalrXUtnFEMI"


def run(looked: Looked, *words: str, **environ: str) -> int:
    """Run the command on that host; the exit status."""
    parser = argparse.ArgumentParser()
    check.configure(parser)
    return check.main(parser.parse_args(words), environ, looked.out, host=looked.host)


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    """A host on which all is well: installed, and with its socket open."""
    looked = Looked(tmp_path)
    looked.put("/proc/self/net/tcp", LOOPBACK_ROW)
    looked.put("/usr/lib/systemd/system/s3daemon.service")
    looked.put("/usr/lib/systemd/system/s3daemon@.service")
    looked.host = Host(tmp_path, uid=4711, user=lambda name: None, systemctl=lambda *words: "")
    return looked


@pytest.fixture
def nobody() -> str:
    """An endpoint at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def text_of(url: str, **more: str) -> str:
    """An environment file."""
    named = {"S3_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": SECRET, **more}
    return "".join(f'{name}="{value}"\n' for name, value in named.items())


def test_environment_file(looked: Looked, moto: S3Server) -> None:
    """With nothing in the environment, the plain service's file: all is well, to the exit status."""
    looked.put("/etc/sysconfig/s3daemon", text_of(moto.url, S3DAEMON_MAX_CONNECTIONS="7"))
    assert run(looked) == 0
    assert looked.one("settings") == f"ok settings from /etc/sysconfig/s3daemon: 7 connections to {moto.url}"
    assert looked.one(" state ").startswith("note state /var/lib/s3daemon is not there")
    assert looked.one("note daemon").startswith("note daemon none runs: it starts with the first request")
    assert looked.one(" service ").startswith("note service how it is installed is checked for root only")
    assert SECRET not in looked.out.getvalue()


def test_bucket(looked: Looked, moto: S3Server) -> None:
    """The bucket's name goes through to the store."""
    looked.put("/etc/sysconfig/s3daemon", text_of(moto.url))
    assert run(looked, moto.new_bucket()) == 0
    assert looked.one("stored in").startswith("ok bucket")
    assert run(looked, "no-such-bucket") == 1


def test_environment(looked: Looked, moto: S3Server, tmp_path: Path) -> None:
    """Where the environment names the store, it is what counts, with the host and port in it."""
    looked.put("/etc/sysconfig/s3daemon", "nonsense")
    environ = {**moto.settings(), "S3DAEMON_STATE_DIR": str(tmp_path / "state"), "S3DAEMON_PORT": "7"}
    assert run(looked, **environ) == 1
    assert looked.one("settings").startswith("ok settings from the environment: ")
    assert looked.one("FAIL") == "FAIL socket nothing listens at port 7: start s3daemon"
    assert str(tmp_path / "state") in looked.one(" state ")
    assert not [line for line in looked.lines if " service " in line]


def test_instance(looked: Looked, nobody: str) -> None:
    """An instance has a file, a port and a state directory of its own, whatever the environment says."""
    looked.put("/etc/sysconfig/s3daemon@4", text_of(nobody))
    assert run(looked, "--instance", "4", S3_ENDPOINT_URL="http://elsewhere.test") == 1
    assert "/etc/sysconfig/s3daemon@4" in looked.one("settings")
    assert "port 4: systemctl enable --now s3daemon@4.socket s3daemon@4.service" in looked.one("FAIL socket")
    assert "/var/lib/s3daemon@4" in looked.one(" state ")


def test_file_named(looked: Looked, nobody: str) -> None:
    """A file to try out before it is put in its place."""
    looked.put("/root/new", text_of(nobody))
    assert run(looked, "--env-file", "/root/new") == 1
    assert looked.one("settings").startswith("ok settings from /root/new: ")
    assert "Connection refused" in looked.one("FAIL")


def test_no_file(looked: Looked) -> None:
    """What to do is said, and what takes no settings is checked all the same."""
    assert run(looked) == 1
    assert looked.one("FAIL").startswith("FAIL settings there is no /etc/sysconfig/s3daemon, and S3_ENDPOINT_URL is")
    assert looked.one("store").startswith("note store not checked")
    assert looked.one("socket").startswith("ok")
    assert looked.one("slow_start").startswith("ok")


def test_file_that_cannot_be_read(looked: Looked) -> None:
    """One line, with what to do."""
    looked.host.path("/etc/sysconfig/s3daemon").mkdir(parents=True)
    assert run(looked) == 1
    assert looked.one("FAIL") == "FAIL settings /etc/sysconfig/s3daemon cannot be read: Is a directory: run it as root"


def test_faults(looked: Looked, nobody: str) -> None:
    """Every fault, what systemd passes over, and no secret: not even one that an open quote has swallowed."""
    text = f"S3_ENDPOINT_URL={nobody}/x\nexport AWS_ACCESS_KEY_ID=a\nS3DAEMON_PORT='1\nAWS_SECRET_ACCESS_KEY={SECRET}\n"
    looked.put("/etc/sysconfig/s3daemon", text)
    assert run(looked) == 1
    assert "line 2: " in looked.one("warn settings")
    assert looked.one("S3_ENDPOINT_URL").startswith("FAIL settings /etc/sysconfig/s3daemon: S3_ENDPOINT_URL is ")
    assert "is a quote left open" in looked.one("S3DAEMON_PORT")
    assert looked.one("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set").startswith("FAIL")
    assert looked.one("seen by root only").startswith("note")
    assert SECRET not in looked.out.getvalue()


def test_a_variable_of_the_original_daemon_is_a_warning(looked: Looked, moto: S3Server) -> None:
    """As in the service's journal, which starts without it."""
    looked.put("/etc/sysconfig/s3daemon", text_of(moto.url, S3DAEMON_MAX_RETRIES="2"))
    assert run(looked) == 0
    assert "S3DAEMON_MAX_RETRIES is ignored" in looked.one("warn settings")


def test_systemd_credentials(looked: Looked, moto: S3Server) -> None:
    """While the service runs, root sees what systemd passed to it."""
    looked.put("/etc/sysconfig/s3daemon", f"S3_ENDPOINT_URL={moto.url}\nAWS_ACCESS_KEY_ID=testkey\n")
    looked.put("/run/credentials/s3daemon.service/aws_secret_access_key", SECRET)
    assert run(looked) == 0


def test_root(looked: Looked, nobody: str, tmp_path: Path) -> None:
    """For root the installation is looked at too."""
    looked.put("/etc/sysconfig/s3daemon", text_of(nobody)).chmod(0o644)
    looked.host = Host(tmp_path, uid=0, user=lambda name: None, systemctl=lambda *words: "")
    assert run(looked) == 1
    assert "mode 0644" in looked.one("FAIL service /etc/sysconfig")


def test_report() -> None:
    """Aligned, folded on a terminal, one line each elsewhere; secrets are hidden and a check's own bug is contained."""
    wide, narrow = io.StringIO(), io.StringIO()
    for out, width in ((wide, None), (narrow, 40)):
        report = Report(out, width)
        report.hide([SECRET])
        report.ok("clock", f"right {SECRET}")
        report.warn("credentials", "one two three four\nfive six seven eight")
        assert not report.failed
        with report.guard("state"):
            raise ValueError(SECRET)
        assert report.failed
    lines = wide.getvalue().splitlines()
    assert lines[:2] == ["ok   clock       right ***", "warn credentials one two three four\\nfive six seven eight"]
    assert lines[2].startswith("FAIL state       this check itself is at fault")
    assert SECRET not in wide.getvalue()
    folded = narrow.getvalue().splitlines()
    assert max(map(len, folded)) <= 40
    assert folded[2].startswith(" " * 17 + "four")


def test_command(tmp_path: Path) -> None:
    """As an operator calls it: nothing on standard error, findings on standard output."""
    environ = {"PATH": os.environ["PATH"], "S3_ENDPOINT_URL": "http://127.0.0.1:9", "S3DAEMON_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "s3daemon", "check"]
    top = Path(check.__file__).parents[3]
    done = subprocess.run(command, env=environ, cwd=top, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAIL settings    the environment: AWS_ACCESS_KEY_ID and " in done.stdout
    assert done.stderr == ""
