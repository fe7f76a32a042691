"""The daemon with few descriptors and many clients that take one each and say nothing."""

from __future__ import annotations

import os
import resource
import socket
import time
import urllib.request
from pathlib import Path

from lab.daemon import Daemon, daemon
from lab.flaky import FlakyS3

LIMIT = 256
SERVERS = ("wire", "http", "control")


def test_idle_clients_take_no_descriptor_that_the_daemon_needs(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """It reports its status to systemd, writes its records, reads files and reaches the store, and does not end."""
    prefix = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
    with daemon(tmp_path / "state", s3.server, prefix=prefix, activated=True, max_connections="5") as served:
        idle = [served.connect() for _ in range(2 * LIMIT)]
        served.wait_status(lambda now: now["clients"] > 20, "full of clients")
        time.sleep(2.2)  # a status is reported each 2 s
        pid = served.process.pid
        assert len(os.listdir(f"/proc/{pid}/fd")) < LIMIT - 50
        for client in idle:
            client.close()
        assert served.plain(file, "a/bucket/k") == b"Success"
        assert served.process.pid == pid
        assert not [line for line in served.lines() if " error " in line or "Too many" in line]
        assert len(served.records(1)) == 1


def test_no_call_that_gets_no_descriptor_ends_the_daemon(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """Not systemd's, a client's, a file's or one to reach the store; then all goes on."""
    with (
        daemon(tmp_path / "state", s3.server, activated=True, http=True, keepalive_interval="1s") as served,
        served.connect() as client,
        served.connect() as later,
        served.connect() as later,
        served.connect() as idle,
    ):
        assert served.plain(file, "a/bucket/before") == b"Success"
        pid = served.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        for sock in (client, later):
            sock.sendall(f"{file} a/bucket/k".encode())  # the rest comes when nothing can be opened any more
        time.sleep(0.5)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        client.sendall(b"\n")
        s3.refuse()
        waiting = [served.connect() for _ in range(3)]
        idle.close()
        time.sleep(2.2)  # of statuses, pings, attempts to accept
        later.sendall(b"\n")
        assert client.recv(1000).startswith(b"HostLimit: ")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        s3.open()
        assert later.recv(1000) == b"Success"
        for sock in waiting:
            sock.close()
        assert served.plain(file, "a/bucket/after") == b"Success"
        assert served.process.pid == pid
        served.wait_idle()
        assert [record.key for record in served.records(3)] == ["before", "k", "after"]


def test_servers_without_descriptors_wait_in_silence(s3: FlakyS3, tmp_path: Path, file: Path) -> None:
    """While clients wait and none can be accepted, each server logs one line and uses little CPU; then it serves."""
    with daemon(tmp_path / "state", s3.server, activated=True, http=True, keepalive_interval="1s") as served:
        assert served.plain(file, "a/bucket/before") == b"Success"
        pid = served.process.pid
        before = len(served.lines())
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        waiting = [_connected(served, server) for server in SERVERS for _ in range(5)]
        time.sleep(0.5)
        began = _cpu_s(pid)
        time.sleep(2.2)
        used = _cpu_s(pid) - began
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for sock in waiting:
            sock.close()
        assert served.plain(file, "a/bucket/after") == b"Success"
        with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/healthz", timeout=10) as answer:
            assert answer.status == 200
        assert served.ask("status")["clients"] >= 0
        lines = served.lines()[before:]
    assert len([line for line in lines if "cannot accept a client, which has to wait" in line]) == len(SERVERS)
    assert len(lines) < 20, lines
    assert used < 0.5


def _connected(served: Daemon, server: str) -> socket.socket:
    """A client of one of the servers."""
    if server == "wire":
        return served.connect()
    if server == "http":
        return socket.create_connection(("127.0.0.1", served.http_port))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(served.state_dir / "control"))
    return sock


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
