"""The lab: each server starts, works, and is stopped; the rules of a test run hold.

The other tests rely on this: a broken lab fails here, by name.
"""

import os
import select
import signal
import socket
import ssl
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from lab import processes
from lab.box import Box
from lab.certs import Authority
from lab.env import UnavailableError, clean_env, free_ports, program, scrub
from lab.nginx import Sink
from lab.rgw import Gateway
from lab.s3 import S3Server

KEY = "night 1/ü+%2F/file.fits"


def puts_and_gets(server: S3Server) -> None:
    """Store an object and read it."""
    with closing(server.client()) as client:
        bucket = server.new_bucket()
        client.put_object(Bucket=bucket, Key=KEY, Body=b"payload")
        assert client.get_object(Bucket=bucket, Key=KEY)["Body"].read() == b"payload"
        assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket)["Contents"]] == [KEY]


def test_moto(moto: S3Server) -> None:
    puts_and_gets(moto)


def test_seaweed(seaweed: S3Server) -> None:
    puts_and_gets(seaweed)


def test_rgw_over_https_and_http(rgw: Gateway) -> None:
    assert rgw.url.startswith("https:")
    puts_and_gets(rgw)
    puts_and_gets(rgw.plain)


def test_rgw_accounts(rgw: Gateway) -> None:
    puts_and_gets(rgw.new_account("--max-buckets", "3"))
    assert "test" in rgw.admin("user", "list")


def test_nginx_takes_a_put(nginx: Sink) -> None:
    request = urllib.request.Request(f"{nginx.url}/bucket/key", data=b"payload", method="PUT")
    trusting = ssl.create_default_context(cafile=str(nginx.ca))
    with urllib.request.urlopen(request, context=trusting, timeout=10) as answer:
        assert (answer.status, answer.headers["ETag"]) == (200, '"any"')
    assert (nginx.objects / "bucket/key").read_bytes() == b"payload"


def test_certificates_are_issued_by_the_authority(certs: Authority) -> None:
    issued = certs.issue("server")
    assert ssl.create_default_context(cafile=str(certs.ca)).cert_store_stats()["x509_ca"] == 1
    issued.context()


def test_box(box: Box) -> None:
    assert box.exec("systemctl", "is-system-running").stdout.strip() == "running"
    assert box.exec("test", "-x", "/tree/tests/run").returncode == 0
    assert box.exec("touch", "/tree/written", check=False).returncode != 0
    (box.root / "root/kept").write_text("kept")
    box.exec("logger", "before-the-boot")
    boots = box.exec("cat", "/proc/1/stat").stdout.split()[21]
    box.reboot()
    assert box.exec("cat", "/proc/1/stat").stdout.split()[21] != boots
    assert box.exec("cat", "/root/kept").stdout == "kept"
    assert "before-the-boot" in box.exec("journalctl", "--boot=-1", "-o", "cat").stdout


def test_box_runs_the_daemons_libraries(box: Box) -> None:
    code = "import aiobotocore.session, aiohttp, systemd.journal, s3daemon; print(s3daemon.__file__)"
    assert box.exec("/usr/lib/s3daemon/bin/python3", "-c", code).stdout.startswith("/usr/lib/s3daemon/lib/python3")


def test_an_error_shows_the_last_lines_of_a_program_that_ended() -> None:
    with processes.start(sys.executable, "-c", "print('no luck'); raise SystemExit(3)", name="unlucky") as process:
        with pytest.raises(processes.ProgramError, match=r"(?s)status 3.*unlucky\| no luck"):
            process.wait_line("never")
        assert process.wait() == 3


def test_a_program_is_stopped_at_the_end() -> None:
    sleeper = "import time; print('up', flush=True); time.sleep(600)"
    with processes.start(sys.executable, "-c", sleeper) as process:
        process.wait_line("^up$")
    assert process.wait() == -signal.SIGTERM


def test_a_report_shows_what_programs_wrote_during_the_test() -> None:
    with processes.start("/bin/echo", "before", name="early") as early:
        early.wait()
    processes.mark()
    with processes.start("/bin/echo", "during", name="late") as late:
        late.wait()
    written = dict(processes.written_since_mark())
    assert "early" not in written
    assert written["late"] == "    late| during"


def test_a_program_is_ended_with_its_starter() -> None:
    starter = (
        "import sys; sys.path.insert(0, sys.argv[1]); from lab import processes\n"
        "with processes.start('/bin/sh', '-c', 'echo up; exec sleep 600') as process:\n"
        "    process.wait_line('^up$')  # until then the kernel has not been asked to end it\n"
        "    print('pid', process.pid, flush=True); process.wait(600)\n"
    )
    with processes.start(sys.executable, "-c", starter, Path(__file__).resolve().parents[1], name="starter") as process:
        sleeper = os.pidfd_open(int(process.wait_line(r"^pid (\d+)$")[1]))
        try:
            process.popen.kill()
            assert select.select([sleeper], [], [], 10)[0], "the sleeper outlived its starter"
        finally:
            os.close(sleeper)
        process.wait()


def test_a_readiness_notification_is_received() -> None:
    code = (
        "import os, socket, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.sendto(b'STATUS=warming up', os.environ['NOTIFY_SOCKET'])\n"
        "s.sendto(b'READY=1\\nSTATUS=serving', os.environ['NOTIFY_SOCKET']); time.sleep(600)\n"
    )
    with processes.start(sys.executable, "-W", "ignore", "-c", code, notify=True) as process:
        process.wait_ready()
        assert process.status == {"READY": "1", "STATUS": "serving"}


def test_programs_get_a_clean_environment() -> None:
    with processes.start("/usr/bin/env", env=clean_env(EXTRA="1")) as process:
        process.wait()
    names = {line.partition("=")[0] for line in process.lines() if not line.startswith("COVERAGE_")}
    assert names == {"EXTRA", "HOME", "LANG", "PATH", "PYTHONUNBUFFERED", "SSL_CERT_DIR", "SSL_CERT_FILE"}


def test_scrub_removes_proxies_certificates_and_settings() -> None:
    environ = {"PATH": "/bin", "https_proxy": "x", "AWS_CA_BUNDLE": "x", "SSL_CERT_FILE": "x", "S3DAEMON_PORT": "1"}
    scrub(environ)
    assert {name for name in environ if not name.startswith("AWS_")} == {"PATH"}
    assert environ["AWS_EC2_METADATA_DISABLED"] == "true"


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(10)
    assert len(set(ports)) == 10
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


@pytest.mark.parametrize(("extra", "outcome"), [({}, "1 skipped"), ({"CI": "true"}, "1 failed")])
def test_with_ci_a_skip_is_a_failure(tmp_path: Path, extra: dict[str, str], outcome: str) -> None:
    module = tmp_path / "test_it.py"
    module.write_text("import pytest\n\ndef test_it():\n    pytest.skip('no such part')\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environ = clean_env(PYTHONPATH=str(Path(__file__).resolve().parents[1]), **extra)
    command = (sys.executable, "-m", "pytest", "-ra", "-p", "conftest", "-p", "no:cacheprovider", module)
    with processes.start(*command, env=environ, cwd=tmp_path) as run:
        status = run.wait(60)
    assert outcome in run.lines()[-1]
    assert any("no such part" in line for line in run.lines())
    assert status == (1 if extra else 0)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(UnavailableError, match="no-such-program is not installed"):
        program("no-such-program")
