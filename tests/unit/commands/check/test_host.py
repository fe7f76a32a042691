"""What check says of a host: each setting of the kernel with what it costs, the disk, the journal, who may ask."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from looked import SYSCTLS, Looked, account, settings

from s3daemon.commands.check import host as checks_host
from s3daemon.commands.check.findings import Host


def test_tuned_host(tmp_path: Path) -> None:
    """With what the package's file sets there is nothing to complain about."""
    looked = Looked(tmp_path)
    checks_host.sysctls(looked.report, looked.host, settings(), 0.2)
    assert looked.levels() == {"ok", "note"}
    assert not looked.report.failed


def test_default_host(tmp_path: Path) -> None:
    """What an untuned kernel costs is said in seconds and Mbit/s: 4 MB over 200 ms are 168 Mbit/s."""
    sysctls = {"net.ipv4.tcp_slow_start_after_idle": "1", "net.ipv4.tcp_wmem": "4096 16384 4194304"}
    looked = Looked(tmp_path, **sysctls, **{"net.ipv4.tcp_mtu_probing": "0", "net.core.default_qdisc": "pfifo_fast"})
    checks_host.sysctls(looked.report, looked.host, settings(), 0.2)
    assert looked.one("slow_start").startswith("warn sysctl net.ipv4.tcp_slow_start_after_idle = 1: ")
    assert "2.6 s instead of 2.1 s" in looked.one("slow_start")
    assert "168 Mbit/s at best over 200 ms, of 1000; 67108864" in looked.one("wmem")
    assert looked.one("mtu_probing").startswith("note")
    assert looked.one("qdisc").startswith("note")


@pytest.mark.parametrize(
    ("rtt_s", "bwlimit", "level"),
    [(0.0001, 0, "ok"), (0.2, 0, "warn"), (None, 0, "warn"), (0.2, 50_000_000, "ok"), (0.2, 4 * 10**9, "warn")],
)
def test_buffers_by_path(tmp_path: Path, rtt_s: float | None, bwlimit: int, level: str) -> None:
    """Whether 4 MB in flight are enough depends on round trip and rate; without a measurement 200 ms are assumed."""
    looked = Looked(tmp_path, **{"net.ipv4.tcp_wmem": "4096 16384 4194304"})
    checks_host.sysctls(looked.report, looked.host, settings(bwlimit_bps=bwlimit), rtt_s)
    assert looked.one("wmem").startswith(level)
    assert ("assumed" in looked.one("wmem")) == (rtt_s is None)


def test_bbr_needs_no_slow_start_setting(tmp_path: Path) -> None:
    """BBR is exempt from slow start after idle."""
    looked = Looked(tmp_path, **{"net.ipv4.tcp_slow_start_after_idle": "1", "net.ipv4.tcp_congestion_control": "bbr"})
    checks_host.sysctls(looked.report, looked.host, None, None)
    assert looked.one("slow_start").startswith("ok")


@pytest.mark.parametrize(
    ("available", "allowed", "said"),
    [
        ("reno cubic", "reno cubic", "warn sysctl S3DAEMON_CONGESTION = bbr: the kernel has not loaded it"),
        ("reno cubic bbr", "reno cubic", "warn sysctl S3DAEMON_CONGESTION = bbr: a plain user may not choose it"),
        ("reno cubic bbr", "reno cubic bbr", "ok sysctl S3DAEMON_CONGESTION = bbr is loaded and allowed"),
    ],
)
def test_congestion_chosen(tmp_path: Path, available: str, allowed: str, said: str) -> None:
    """What the service's user may choose, whatever root may; where it may not, slow start matters again."""
    names = ("net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control")
    looked = Looked(tmp_path, **dict(zip(names, (available, allowed), strict=True)))
    looked.put("/proc/sys/net/ipv4/tcp_slow_start_after_idle", "1")
    checks_host.sysctls(looked.report, looked.host, settings(congestion="bbr"), 0.2)
    assert looked.one("CONGESTION").startswith(said)
    assert looked.one("slow_start").startswith(said.split()[0])


def test_nothing_to_read(tmp_path: Path) -> None:
    """A container that hides /proc/sys is no fault."""
    looked = Looked(tmp_path, **dict.fromkeys(SYSCTLS, ""))
    checks_host.sysctls(looked.report, looked.host, None, None)
    assert looked.levels() == {"ok", "note"}
    assert "cannot be read" in looked.one("slow_start")


@pytest.mark.parametrize(
    ("bwlimit", "rtt_s", "level"), [(0, 0.2, "warn"), (0, None, "warn"), (0, 0.001, "ok"), (4 * 10**9, 0.2, "ok")]
)
def test_bandwidth(tmp_path: Path, bwlimit: int, rtt_s: float | None, level: str) -> None:
    """A rate to share is recommended where the path is long."""
    looked = Looked(tmp_path)
    checks_host.limits(looked.report, settings(bwlimit_bps=bwlimit), rtt_s)
    assert looked.one("S3DAEMON_BWLIMIT").startswith(level)
    if bwlimit:
        assert "4000 Mbit/s" in looked.one("limits")


def test_no_lists(tmp_path: Path) -> None:
    """Each list that is empty is said to be no limit."""
    looked = Looked(tmp_path)
    checks_host.access(looked.report, looked.host, settings())
    assert looked.levels() == {"note"}
    assert [line.split()[2] for line in looked.lines] == [
        "S3DAEMON_ALLOWED_USERS",
        "S3DAEMON_ALLOWED_ROOTS",
        "S3DAEMON_ALLOWED_BUCKETS",
    ]


def test_lists(tmp_path: Path) -> None:
    """Names that nobody has and directories that are not there are told; good ones are not."""
    looked = Looked(tmp_path)
    looked.put("/data/x")
    changes = {"allowed_users": ("ccs", "1234", "typo"), "allowed_roots": ("/data", "/dtaa"), "allowed_buckets": ("b",)}
    looked.host = Host(tmp_path, user=lambda name: account(name, 1) if name == "ccs" else None)
    checks_host.access(looked.report, looked.host, settings(**changes))
    assert len(looked.lines) == 2
    assert looked.one("typo").startswith("FAIL")
    assert looked.one("/dtaa").startswith("warn")


def test_state_directory(tmp_path: Path) -> None:
    """One that a start made is fine; one that is not there comes with the first start."""
    looked = Looked(tmp_path)
    directory = looked.put("/var/lib/s3daemon/spool.db").parent
    directory.chmod(0o700)
    checks_host.state_directory(looked.report, looked.host, Path("/var/lib/s3daemon"), "")
    assert looked.one("state").startswith("ok state /var/lib/s3daemon, mode 0700, ")
    checks_host.state_directory(looked.report, looked.host, Path("/var/lib/s3daemon@1"), "")
    assert looked.one("@1").startswith("note")


def test_state_directory_open_to_others(tmp_path: Path) -> None:
    """It shows who sent what where."""
    looked = Looked(tmp_path)
    looked.put("/var/lib/s3daemon/spool.db").parent.chmod(0o755)
    checks_host.state_directory(looked.report, looked.host, Path("/var/lib/s3daemon"), "")
    assert "its mode is 0755" in looked.one("warn state")


def test_state_directory_of_another(tmp_path: Path) -> None:
    """It must be the service's user's; to a plain user who runs it by hand, one of somebody else is of no use."""
    looked = Looked(tmp_path)
    directory = looked.put("/var/lib/s3daemon/spool.db").parent
    directory.chmod(0o700)
    service = Host(tmp_path, uid=directory.stat().st_uid, user=lambda name: account(name, directory.stat().st_uid + 1))
    checks_host.state_directory(looked.report, service, Path("/var/lib/s3daemon"), "s3daemon")
    assert "chown -R s3daemon: /var/lib/s3daemon" in looked.one("FAIL")
    other = Host(tmp_path, uid=directory.stat().st_uid + 1)
    checks_host.state_directory(looked.report, other, Path("/var/lib/s3daemon"), "")
    assert "only that user's" in looked.one("warn")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_state_directory_with_files_of_root(tmp_path: Path) -> None:
    """A spool that somebody made as root cannot be written by the daemon."""
    looked = Looked(tmp_path)
    directory = looked.put("/var/lib/s3daemon/spool.db").parent
    os.chown(directory, 12345, 12345)
    directory.chmod(0o700)
    checks_host.state_directory(looked.report, looked.host, Path("/var/lib/s3daemon"), "")
    assert "spool.db has another owner" in looked.one("FAIL")


def test_journal(tmp_path: Path) -> None:
    """None, one that can be read, and one that cannot, which must not look empty."""
    looked = Looked(tmp_path)
    socket = Path("/run/systemd/journal/socket")
    checks_host.journal(looked.report, looked.host, socket)
    looked.put(str(socket))
    plain = Host(tmp_path, uid=4711)
    checks_host.journal(looked.report, plain, socket)
    looked.put("/var/log/journal/0123/system.journal")
    checks_host.journal(looked.report, plain, socket)
    assert [line.split()[0] for line in looked.lines] == ["note", "warn", "ok"]
    assert "systemd-journal" in looked.lines[1]
