"""The command as a whole: where its settings come from, what runs without them, and the exit status."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_host import Looked, account, refusal, serving

from s3daemon.commands.check import command as check

SECRET = "wJalrXUtnFEMI"


def run(looked: Looked, *words: str, **environ: str) -> int:
    """Run the command on that host; return the exit status."""
    parser = argparse.ArgumentParser()
    check.configure(parser)
    return check.main(parser.parse_args(words), environ, out=looked.out, err=looked.out, host=looked.host)


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    """A host on which nothing is wrong."""
    return Looked(tmp_path)


@pytest.fixture
def closed() -> str:
    """The URL of a port on which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def put_env_file(looked: Looked, path: str, url: str, *more: str) -> Path:
    """Write an environment file."""
    lines = (f"S3_ENDPOINT_URL={url}", "AWS_ACCESS_KEY_ID=testkey", f"AWS_SECRET_ACCESS_KEY={SECRET}", *more)
    file = looked.put(path, "".join(f"{line}\n" for line in lines))
    file.chmod(0o600)
    return file


@pytest.mark.skipif(os.geteuid() != 0, reason="an environment file must belong to root")
def test_environment_file(looked: Looked) -> None:
    """With nothing in the environment, the plain service's file: everything works, and the exit status says so."""

    async def run_beside() -> int:
        async with serving(refusal(403, "AccessDenied")) as url:
            put_env_file(looked, "/etc/sysconfig/s3daemon", url, "S3DAEMON_MAX_CONNECTIONS=7")
            return await asyncio.to_thread(run, looked)

    assert asyncio.run(run_beside()) == 0
    assert looked.one("settings").startswith("ok settings from /etc/sysconfig/s3daemon: 7 connections to http://127.")
    assert looked.one(" state ").startswith("note state /var/lib/s3daemon does not exist")
    assert looked.one("note daemon").startswith("note daemon no daemon runs: it starts with the first request")
    assert looked.one("credentials").startswith("note")
    assert SECRET not in looked.out.getvalue()


def test_environment(looked: Looked, closed: str, tmp_path: Path) -> None:
    """Where the environment names the store, it alone counts, and no units are looked at."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", "nonsense")
    environ = {"S3_ENDPOINT_URL": closed, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    assert run(looked, **environ, S3DAEMON_STATE_DIR=str(tmp_path / "state")) == 1
    assert looked.one("settings").startswith("ok settings from the environment: ")
    assert "Connection refused" in looked.one("FAIL")
    assert str(tmp_path / "state") in looked.one(" state ")
    assert not [line for line in looked.lines if " socket " in line]


def test_the_three_required_variables_are_enough(looked: Looked, closed: str) -> None:
    """The state directory is then that of the service."""
    run(looked, S3_ENDPOINT_URL=closed, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    assert looked.one("settings").startswith("ok settings from the environment: ")
    assert looked.one(" state ").startswith("note state /var/lib/s3daemon does not exist")


def test_state_directory_that_the_service_cannot_write(looked: Looked, closed: str) -> None:
    """Though it is there and belongs to the service: the unit decides."""
    looked.put("/data/spool/spool.db").parent.chmod(0o700)
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_STATE_DIR=/data/spool")
    run(looked)
    assert looked.one(" state ").startswith("FAIL state /data/spool is read-only to the service")


@pytest.mark.parametrize("protected", ["strict", "no"])
def test_state_directory_that_others_use(looked: Looked, closed: str, protected: str) -> None:
    """No command is shown that would take it away from them."""
    looked.put("/data/image.fits").parent.chmod(0o755)
    looked.units["service"]["ProtectSystem"] = protected
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_STATE_DIR=/data")
    run(looked)
    assert looked.one(" state ") == (
        "FAIL state /data is open to other users and has files of others: name a directory of the daemon's own"
    )


def test_spool_that_is_not_used(looked: Looked, closed: str) -> None:
    """What systemd's state directory has is not delivered by a daemon that has another one."""
    looked.put("/var/lib/s3daemon/spool.db", "rows")
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed)
    run(looked)
    looked.host.path("/link").symlink_to(looked.host.path("/var/lib/s3daemon"))
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_STATE_DIR=/link")
    run(looked)
    assert not any("is not used" in line for line in looked.lines)
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_STATE_DIR=/data/spool")
    run(looked)
    assert looked.one("is not used").startswith("warn state /var/lib/s3daemon/spool.db is not used, as the service has")


def test_state_directory_of_another_user(looked: Looked, closed: str) -> None:
    """As what was copied there by root."""
    looked.put("/var/lib/s3daemon/spool.db", "rows")
    looked.change(user=lambda name: account(name, os.geteuid() + 1))
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed)
    run(looked)
    assert looked.one("FAIL state").endswith(", not s3daemon: chown -R s3daemon: /var/lib/s3daemon")


def test_state_directory_that_is_no_path(looked: Looked, closed: str) -> None:
    """The line on the settings says so; nothing is said of a directory of that name."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_STATE_DIR=spool")
    run(looked)
    assert looked.one("FAIL settings").endswith("S3DAEMON_STATE_DIR is 'spool': expected an absolute path without ..")
    assert not any("LoadCredential" in line for line in looked.lines), "nothing is missing that may be elsewhere"
    assert not any(" state " in line for line in looked.lines)


def test_instance(looked: Looked, closed: str) -> None:
    """An instance has a file, units and a state directory of its own, whatever the environment says."""
    put_env_file(looked, "/etc/sysconfig/s3daemon@4", closed)
    looked.units["socket"]["ActiveState"] = "inactive"
    assert run(looked, "--instance", "4", S3_ENDPOINT_URL="http://elsewhere.test") == 1
    assert "/etc/sysconfig/s3daemon@4" in looked.one("settings")
    assert "systemctl enable --now s3daemon@4.socket s3daemon@4.service" in looked.one("FAIL socket")
    assert "/var/lib/s3daemon@4" in looked.one(" state ")


def test_file_named(looked: Looked, closed: str) -> None:
    """`--env-file` tries a file out before it is put in its place."""
    put_env_file(looked, "/root/new", closed)
    assert run(looked, "--env-file", "/root/new") == 1
    assert looked.one("settings").startswith("ok settings from /root/new: ")
    assert "Connection refused" in looked.one("FAIL")


def test_no_file(looked: Looked) -> None:
    """What to do is said, and what takes no settings is checked all the same."""
    assert run(looked) == 1
    assert looked.one("FAIL").startswith("FAIL settings there is no /etc/sysconfig/s3daemon: write it, or export the")
    assert looked.one("store").startswith("note store not checked")
    assert looked.one("socket").startswith("ok")
    assert looked.one("journal").startswith("note")


@pytest.mark.parametrize("words", [("--instance", "4"), ("--env-file", "/root/new")])
def test_no_file_where_one_is_named(looked: Looked, words: tuple[str, str]) -> None:
    """The environment does not count then, and the line does not say that it lacks the variables."""
    assert run(looked, *words, S3_ENDPOINT_URL="http://elsewhere.test") == 1
    assert looked.one("FAIL settings").endswith(
        "write it, or export the variables, which count without --env-file and --instance"
    )


def test_file_that_cannot_be_read(looked: Looked) -> None:
    """One line, with what to do, which depends on the reason."""
    looked.host.path("/etc/sysconfig/s3daemon").mkdir(parents=True)
    assert run(looked) == 1
    text = "cannot be read: Is a directory: give a file with a NAME=value in each line"
    assert looked.one("FAIL settings") == f"FAIL settings /etc/sysconfig/s3daemon {text}"


@pytest.mark.parametrize("target", ["/raw/x", "/", "s3://raw/x", "S3:", "tenant:/x"])
def test_a_target_of_another_form(looked: Looked, capsys: pytest.CaptureFixture[str], target: str) -> None:
    """It is refused with the form that is meant, and nothing is checked."""
    with pytest.raises(SystemExit, match="2"):
        run(looked, target)
    assert f"'{target}' is not BUCKET or BUCKET/PREFIX, such as raw/tests" in capsys.readouterr().err
    assert not looked.lines


def test_a_secret_that_systemd_would_log_is_not_shown_to_it(looked: Looked, closed: str) -> None:
    """Check has systemd read the file, which would put that line into the journal."""
    asked: list[Path] = []
    looked.change(environment=asked.append)
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, f"export AWS_SECRET_ACCESS_KEY={SECRET}")
    assert run(looked) == 1
    assert "/etc/sysconfig/s3daemon: systemd writes all of line 4, with any secret in it" in looked.one("FAIL settings")
    assert not asked
    assert SECRET not in looked.out.getvalue()


@pytest.mark.parametrize(
    ("uid", "text"), [(0, "systemd does not run here, or does not accept /"), (4711, "for root only: run it as root")]
)
def test_file_that_systemd_does_not_read(looked: Looked, closed: str, uid: int, text: str) -> None:
    """For others than root, where systemd does not run, and a file with a NUL byte: no settings, and why."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "A=\0")
    looked.change(uid=uid)
    assert run(looked) == 1
    assert text in looked.one("FAIL settings")
    assert looked.one("store").startswith("note store not checked")


def test_faults(looked: Looked, closed: str) -> None:
    """Every fault is a line, with a hint at what is not visible here; and no secret."""
    looked.put(
        "/etc/sysconfig/s3daemon", f"S3_ENDPOINT_URL={closed}/x\nexport AWS_REGION=a\nAWS_SECRET_ACCESS_KEY={SECRET}\n"
    )
    assert run(looked) == 1
    assert looked.one("S3_ENDPOINT_URL").startswith("FAIL settings /etc/sysconfig/s3daemon: S3_ENDPOINT_URL is ")
    assert looked.one("AWS_ACCESS_KEY_ID is not set").startswith("FAIL")
    assert looked.one("as credentials (LoadCredential=)").startswith("note")
    assert not any("rpmsave" in line for line in looked.lines)
    assert SECRET not in looked.out.getvalue()


def test_settings_from_before_the_package_was_removed(looked: Looked) -> None:
    """A package that is installed again brings an empty template."""
    looked.put("/etc/sysconfig/s3daemon", "S3_ENDPOINT_URL=\n")
    looked.put("/etc/sysconfig/s3daemon.rpmsave", "")
    assert run(looked) == 1
    assert looked.one("before the package").endswith("was removed are in /etc/sysconfig/s3daemon.rpmsave")


def test_faults_of_the_environment_are_not_of_a_file(looked: Looked) -> None:
    """What systemd does with a file has nothing to do with them."""
    assert run(looked, S3_ENDPOINT_URL="nonsense") == 1
    assert looked.one("S3_ENDPOINT_URL is ").startswith("FAIL settings the environment: ")
    assert not [line for line in looked.lines if "LoadCredential" in line]


def test_a_line_that_systemd_ignores(looked: Looked, closed: str) -> None:
    """A restriction that is written and not in force is a failure, though the settings have no fault."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "export S3DAEMON_ALLOWED_USERS=daemon")
    assert run(looked) == 1
    assert looked.one("FAIL settings").startswith(
        "FAIL settings /etc/sysconfig/s3daemon: line 4 does not set S3DAEMON_ALLOWED_USERS: systemd ignores export, "
    )
    assert looked.one("ok settings")


def test_a_variable_of_the_original_daemon_is_a_warning(looked: Looked, closed: str) -> None:
    """As in the service's journal, which starts without it."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed, "S3DAEMON_MAX_RETRIES=2")
    run(looked)
    assert "S3DAEMON_MAX_RETRIES is ignored" in looked.one("warn settings")


def test_systemd_credentials(looked: Looked, closed: str) -> None:
    """While the service runs, root sees what systemd passed to it."""
    looked.put("/etc/sysconfig/s3daemon", f"S3_ENDPOINT_URL={closed}\nAWS_ACCESS_KEY_ID=testkey\n")
    looked.put("/run/credentials/s3daemon.service/aws_secret_access_key", SECRET)
    run(looked)
    assert looked.one("settings").startswith("ok")


@pytest.mark.skipif(os.geteuid() != 0, reason="an environment file must belong to root")
def test_file_that_others_may_read(looked: Looked, closed: str) -> None:
    """It holds the keys."""
    put_env_file(looked, "/etc/sysconfig/s3daemon", closed).chmod(0o644)
    assert run(looked) == 1
    assert "mode 0644" in looked.one("FAIL service /etc/sysconfig")


def test_command(tmp_path: Path) -> None:
    """As an operator calls it: nothing on standard error, findings on standard output."""
    libraries = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ = libraries | {"S3_ENDPOINT_URL": "http://127.0.0.1:9", "S3DAEMON_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "s3daemon", "check"]
    top = Path(check.__file__).parents[3]
    done = subprocess.run(command, env=environ, cwd=top, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAIL settings    the environment: AWS_ACCESS_KEY_ID and " in done.stdout
    assert done.stderr == ""
