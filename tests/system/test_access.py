"""Who may use which socket, with real users: in a booted system, with a store that takes everything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.request import urlopen

import pytest
from lab.box import Box
from lab.daemon import daemon
from lab.env import TREE, free_ports
from lab.installed import Service, installed, write_file
from lab.relay import relay
from lab.s3 import S3Server

UNIX, PATH = "s3daemon-unix.socket", "/run/s3daemon.socket"
HTTP = "s3daemon-http.socket"
FILE = "/data/f"


@pytest.fixture(scope="module")
def units(box: Box) -> Iterator[Service]:
    """Everything installed, the Unix socket too, and three users: `member` is in the group that may use it."""
    with ExitStack() as stack:
        for name in (UNIX, HTTP):
            stack.callback(box.put(TREE / "systemd" / name, f"/etc/systemd/system/{name}").unlink)
        service = stack.enter_context(installed(box))
        write_file(box, FILE, os.urandom(3_000))
        for user, options in (("listed", ()), ("unlisted", ()), ("member", ("--groups", "s3daemon"))):
            box.exec("useradd", *options, user)
            stack.callback(box.exec, "userdel", user)
        yield service


@pytest.fixture
def service(units: Service, moto: S3Server) -> Iterator[Service]:
    """The service, configured, with its TCP socket listening; what a test leaves is removed."""
    units.configure(moto)
    units.systemctl("start", units.socket)
    try:
        yield units
    finally:
        units.systemctl("disable", UNIX, units.unit, units.socket)
        units.systemctl("stop", UNIX)
        units.stop()


@pytest.fixture(scope="module")
def bucket(moto: S3Server) -> str:
    return moto.new_bucket()


def send(service: Service, user: str, *words: str, host: str = "localhost") -> CompletedProcess[str]:
    """Run `send` as a user of the box."""
    environ = {"S3DAEMON_HOST": host, "S3DAEMON_PORT": str(service.port)}
    return service.box.exec("runuser", "-u", user, "--", "/usr/bin/send", *words, check=False, env=environ)


def uid(service: Service, user: str) -> str:
    return service.box.exec("id", "-u", user).stdout.strip()


def allow(service: Service, server: S3Server, **variables: str) -> None:
    """Put other settings in force."""
    service.configure(server, **{f"S3DAEMON_ALLOWED_{name}": text for name, text in variables.items()})
    service.systemctl("reload-or-restart", service.unit)


def warned(service: Service, user: str) -> list[dict[str, Any]]:
    """The warnings about what a user asked for."""
    return service.journal("-p", "warning..warning", f"S3DAEMON_PEER_UID={uid(service, user)}")


def test_users_of_the_tcp_socket(service: Service, moto: S3Server, bucket: str) -> None:
    """A listed user's file is stored; another's is refused in either form, and the journal says who asked for what."""
    allow(service, moto, USERS="listed, 4711")
    for words in ((), ("--no-wait",)):
        assert send(service, "listed", *words, FILE, f"a/{bucket}/tcp/listed").returncode == 0
        for user in ("unlisted", "root"):
            done = send(service, user, *words, FILE, f"a/{bucket}/tcp/{user}")
            said = f"send: NotAllowed: user {uid(service, user)} is not in S3DAEMON_ALLOWED_USERS\n"
            assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    service.records("tcp/listed", 2)
    assert not {"tcp/unlisted", "tcp/root"} & moto.keys(bucket)
    first, second = warned(service, "unlisted")
    for entry in (first, second):
        asked = entry["S3DAEMON_FILE"], entry["S3DAEMON_BUCKET"], entry["S3DAEMON_KEY"]
        assert asked == (FILE, bucket, "tcp/unlisted")
        assert entry["MESSAGE"].startswith(f"refused {FILE} to {bucket}/tcp/unlisted, asked by user ")


def test_a_reload_changes_the_allowed_users(service: Service, moto: S3Server, bucket: str) -> None:
    """A list, another list, none: each applies from the reload on. An unknown name allows no reload and no start."""
    everyone = ("listed", "unlisted", "root")
    for users, good in (("listed", everyone[:1]), ("unlisted,root", everyone[1:]), ("", everyone)):
        allow(service, moto, USERS=users)
        for user in everyone:
            assert (send(service, user, FILE, f"a/{bucket}/reload").returncode == 0) == (user in good)
    service.configure(moto, S3DAEMON_ALLOWED_USERS="listed,nosuch")
    assert service.systemctl("reload", service.unit, check=False).returncode != 0
    assert send(service, "unlisted", FILE, f"a/{bucket}/reload").returncode == 0
    assert service.systemctl("restart", service.unit, check=False).returncode != 0
    logged = [entry["MESSAGE"] for entry in service.journal("-p", "crit")]
    assert any("S3DAEMON_ALLOWED_USERS names nosuch, which is not a user here" in text for text in logged)
    checked = service.box.exec("s3daemon", "check", check=False)
    assert checked.returncode == 1
    assert "FAIL access      S3DAEMON_ALLOWED_USERS names nosuch" in checked.stdout


def test_roots_and_buckets(service: Service, moto: S3Server, bucket: str) -> None:
    """A file outside the roots, a link to one, another bucket: each is refused, and a warning has the user and path."""
    link = service.box.root / "data/link"
    link.symlink_to("/etc/hostname")
    other = moto.new_bucket()
    allow(service, moto, ROOTS="/data:/srv", BUCKETS=bucket)
    for path, wanted, why in (
        ("/etc/hostname", bucket, "/etc/hostname is not under S3DAEMON_ALLOWED_ROOTS"),
        ("/data/../etc/hostname", bucket, "/etc/hostname is not under S3DAEMON_ALLOWED_ROOTS"),
        ("/data/link", bucket, "/etc/hostname is not under S3DAEMON_ALLOWED_ROOTS"),
        (FILE, other, f"the bucket {other} is not in S3DAEMON_ALLOWED_BUCKETS"),
    ):
        before = len(warned(service, "listed"))
        done = send(service, "listed", path, f"a/{wanted}/stolen")
        assert done.returncode == 1
        assert done.stderr.startswith("send: NotAllowed: ")
        assert done.stderr.endswith(f"{why}\n")
        (*_, entry) = found = warned(service, "listed")
        assert len(found) == before + 1
        assert entry["S3DAEMON_FILE"] == path
        assert why in entry["MESSAGE"]
    assert send(service, "listed", FILE, f"a/{bucket}/good").returncode == 0
    assert "stolen" not in moto.keys(bucket) | moto.keys(other)
    link.unlink()


def test_the_unix_socket(service: Service, moto: S3Server, bucket: str) -> None:
    """Once enabled and the service restarted, only its group can use it; it survives restarts; the list applies."""
    service.systemctl("start", service.unit)
    service.systemctl("enable", UNIX)
    service.systemctl("restart", service.unit)
    assert service.show("ActiveState", UNIX) == "active"
    for n in range(2):
        done = send(service, "member", FILE, f"a/{bucket}/unix/{n}", host=PATH)
        assert (done.returncode, done.stderr) == (0, "")
        denied = send(service, "listed", FILE, f"a/{bucket}/denied", host=PATH)
        assert denied.returncode == 1
        assert denied.stderr.startswith(f"send: cannot connect to {PATH}: Permission denied; only members of its group")
        service.systemctl("restart", service.unit)
    assert send(service, "listed", FILE, f"a/{bucket}/unix/tcp").returncode == 0
    assert {"unix/0", "unix/1", "unix/tcp"} <= moto.keys(bucket)

    allow(service, moto, USERS="member")
    assert send(service, "member", "--tag", "t", FILE, f"a/{bucket}/unix/t", host=PATH).returncode == 0
    refused = send(service, "root", FILE, f"a/{bucket}/denied", host=PATH)
    assert refused.stderr == "send: NotAllowed: user 0 is not in S3DAEMON_ALLOWED_USERS\n"
    assert "denied" not in moto.keys(bucket)

    service.systemctl("stop", UNIX, service.socket, service.unit)
    assert service.box.exec("test", "-e", PATH, check=False).returncode == 1
    service.systemctl("start", UNIX)
    assert send(service, "member", FILE, f"a/{bucket}/unix/start", host=PATH).returncode == 0
    assert service.show("ActiveState", service.socket) == "active"


def test_a_client_of_the_unix_socket_waits_during_a_restart(service: Service, moto: S3Server, bucket: str) -> None:
    """Its connection is kept as a TCP client's is, and the next process answers it."""
    service.systemctl("enable", UNIX)
    with relay(moto) as (network, store), ExitStack() as stack:
        service.configure(store, S3DAEMON_DRAIN_TIMEOUT="1s", S3DAEMON_WAIT_LIMIT="5min")
        service.systemctl("restart", service.unit)
        network.hold()
        words = ("env", f"S3DAEMON_HOST={PATH}", "runuser", "-u", "member", "--", "/usr/bin/send", FILE)
        client = stack.enter_context(service.running(*words, f"a/{bucket}/unix/waits"))
        service.wait_show("NFileDescriptorStore", "1")
        service.systemctl("restart", service.unit)
        network.open()
        assert (client.wait(120), client.lines()) == (0, [])
        service.systemctl("stop", service.socket, service.unit)  # before the relay, which it would go on connecting to
    assert "unix/waits" in moto.keys(bucket)


def test_the_http_socket(service: Service, moto: S3Server, bucket: str) -> None:
    """Once enabled and the service restarted: users are checked as on the wire, metrics shown, no client is refused."""
    (port,) = free_ports(1)
    folder = service.box.root / f"etc/systemd/system/{HTTP}.d"
    with ExitStack() as stack:
        stack.callback(service.systemctl, "daemon-reload")
        stack.callback(shutil.rmtree, folder)
        folder.mkdir()
        (folder / "port.conf").write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
        stack.callback(service.systemctl, "disable", "--now", HTTP)
        service.systemctl("daemon-reload")
        service.systemctl("enable", HTTP)
        allow(service, moto, USERS="listed")
        service.systemctl("restart", service.unit)
        assert service.show("ActiveState", HTTP) == "active"
        script = _POST.format(port=port, file=FILE, bucket=bucket)
        for user, code in (("listed", "200"), ("unlisted", "400")):
            done = service.box.exec("runuser", "-u", user, "--", "python3", "-c", script, user)
            assert done.stdout.split(" ", 1)[0] == code, done.stdout
        assert "http/unlisted" not in moto.keys(bucket)
        assert warned(service, "unlisted")[-1]["S3DAEMON_KEY"] == "http/unlisted"
        metrics = urlopen(f"http://localhost:{port}/metrics").read().decode()
        assert '\ns3daemon_transfers_total{outcome="stored"} 1.0\n' in metrics
        assert "\nprocess_resident_memory_bytes " in metrics
        with ThreadPoolExecutor(1) as pool:
            over = [pool.submit(lambda: urlopen(f"http://localhost:{port}/version").status) for _ in range(200)]
            service.systemctl("restart", service.unit)
            assert {one.result() for one in over} == {200}
        with ThreadPoolExecutor(1) as pool:
            scraping = [pool.submit(scrape, port) for _ in range(500)]
            service.systemctl("stop", service.socket, service.unit)
            assert scrape(port) == 0
            states = [service.show("ActiveState", unit) for unit in (HTTP, service.socket, service.unit)]
            for one in scraping:
                one.cancel()
        assert states == ["inactive"] * 3, "no scraper starts it again"


def scrape(port: int) -> int:
    """The status of an answer, 0 when there is none."""
    try:
        return int(urlopen(f"http://localhost:{port}/metrics", timeout=10).status)
    except OSError:
        return 0


_POST = """
import sys, urllib.error, urllib.parse, urllib.request
form = {{"file": "{file}", "uri": "s3://{bucket}/http/" + sys.argv[1]}}
try:
    answer = urllib.request.urlopen("http://localhost:{port}/upload", urllib.parse.urlencode(form).encode())
except urllib.error.HTTPError as refused:
    answer = refused
print(answer.status, answer.read().decode())
"""


def test_keys_that_systemd_passed_are_not_sent(service: Service, moto: S3Server, bucket: str) -> None:
    """The service can read its credentials; no client can have them stored."""
    keys_file = service.box.root / "etc/secret-key"
    keys_file.write_text(moto.secret_key)
    keys_file.chmod(0o600)
    service.write(
        "".join(f"{name}={value}\n" for name, value in moto.settings().items() if name != "AWS_SECRET_ACCESS_KEY")
    )
    with service.drop_in("LoadCredential=aws_secret_access_key:/etc/secret-key"):
        assert send(service, "listed", FILE, f"a/{bucket}/credentials").returncode == 0
        done = send(service, "listed", f"/run/credentials/{service.unit}/aws_secret_access_key", f"a/{bucket}/stolen")
        service.stop()
    assert done.stderr.startswith("send: NotAllowed: ")
    assert done.stderr.endswith(": it is one of the daemon's own files\n")
    assert "stolen" not in moto.keys(bucket)


def test_access_is_checked_at_each_request(tmp_path: Path, moto: S3Server, bucket: str) -> None:
    """Without root or systemd: a list without our user refuses both forms, one with it does not, after a reload."""
    (tmp_path / "f").write_bytes(b"content")
    ours, destination = str(os.geteuid()), f"a/{bucket}/each"
    with daemon(tmp_path / "state", moto, allowed_users="4711") as made, made.connect() as sock:
        refused = made.plain(tmp_path / "f", destination)
        assert refused == f"NotAllowed: user {ours} is not in S3DAEMON_ALLOWED_USERS\n".encode()
        line = f'{{"file": "{tmp_path}/f", "destination": "{destination}"}}\n'.encode()
        answers = sock.makefile("rb")
        sock.sendall(line)
        assert b'"code": "NotAllowed"' in answers.readline()
        made.set(allowed_users=f"4711 {ours}")
        assert made.command("reload").returncode == 0
        sock.sendall(line)
        assert b'"result": "stored"' in answers.readline()
        made.set(allowed_users="4711,nosuch")
        assert "names nosuch, which is not a user here" in made.command("reload").stderr
        assert made.plain(tmp_path / "f", destination) == b"Success"
        answers.close()
        made.terminate()
        (warning, _) = [text for text in made.lines() if "asked by user" in text]
        reason = f"asked by user {ours}, NotAllowed: user {ours} is not in"
        assert f"refused {tmp_path}/f to {bucket}/each, {reason}" in warning
