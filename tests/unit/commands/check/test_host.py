"""What check says of a host: the settings that cost time, the state directory, the journal, who may ask."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fake_host import SYSCTLS, Looked, account, settings

from s3daemon.commands.check import host as checks_host
from s3daemon.control.client import NoDaemonError
from s3daemon.errors import Code

Ask = Callable[[str], Mapping[str, object]]
ENDPOINT = settings().endpoint_url
FOUND = "ok limits uploads share the rate of the narrowest link, which the daemon finds"


def test_tuned_host(looked: Looked) -> None:
    """With what the package's file sets, a rate to share and primed connections, everything is right."""
    checks_host.sysctls(looked.findings, looked.host, settings(bwlimit_bps=4 * 10**9, prime="auto"), 0.2)
    assert looked.levels() == {"ok"}


def test_default_host(tmp_path: Path) -> None:
    """What an untuned kernel costs is said in seconds and Mbit/s: 4 MB over 200 ms are 168 Mbit/s."""
    sysctls = {"net.ipv4.tcp_slow_start_after_idle": "1", "net.ipv4.tcp_wmem": "4096 16384 4194304"}
    looked = Looked(tmp_path, **sysctls)
    checks_host.sysctls(looked.findings, looked.host, settings(bwlimit_bps=0), 0.2)
    assert looked.levels() == {"warn", "note"}
    assert looked.one("slow_start").startswith("warn sysctl net.ipv4.tcp_slow_start_after_idle = 1: ")
    assert "2.6 s instead of 2.1 s" in looked.one("slow_start")
    assert "168 Mbit/s at best over 200 ms, of 1000; use 67108864" in looked.one("wmem")


@pytest.mark.parametrize(
    ("rtt_s", "bwlimit", "level"),
    [(0.0001, 0, "ok"), (0.2, 0, "warn"), (None, 0, ""), (0.2, 50_000_000, "ok"), (0.2, 4 * 10**9, "warn")],
)
def test_buffers_by_path(tmp_path: Path, rtt_s: float | None, bwlimit: int, level: str) -> None:
    """Whether 4 MB in flight are enough depends on round trip and rate; while the store is away it does not matter."""
    looked = Looked(tmp_path, **{"net.ipv4.tcp_wmem": "4096 16384 4194304"})
    checks_host.sysctls(looked.findings, looked.host, settings(bwlimit_bps=bwlimit), rtt_s)
    assert [line.split()[0] for line in looked.lines if "wmem" in line] == level.split()


def test_bbr_needs_no_slow_start_setting(tmp_path: Path) -> None:
    """BBR is exempt from slow start after idle."""
    looked = Looked(tmp_path, **{"net.ipv4.tcp_slow_start_after_idle": "1", "net.ipv4.tcp_congestion_control": "bbr"})
    checks_host.sysctls(looked.findings, looked.host, settings(), None)
    assert looked.one("slow_start").startswith("ok")


@pytest.mark.parametrize(
    ("available", "allowed", "fault"),
    [
        ("reno cubic", "reno cubic", "the kernel has not loaded it"),
        ("reno cubic bbr", "reno cubic", "only root may choose it"),
        ("reno cubic bbr", "reno cubic bbr", ""),
    ],
)
def test_congestion_chosen(tmp_path: Path, available: str, allowed: str, fault: str) -> None:
    """Where the service's user may not choose it the default is used, and slow start after idle matters again."""
    names = ("net.ipv4.tcp_available_congestion_control", "net.ipv4.tcp_allowed_congestion_control")
    looked = Looked(tmp_path, **dict(zip(names, (available, allowed), strict=True)))
    looked.put("/proc/sys/net/ipv4/tcp_slow_start_after_idle", "1")
    checks_host.sysctls(looked.findings, looked.host, settings(congestion="bbr"), 0.2)
    if fault:
        assert looked.one("CONGESTION").startswith("warn sysctl S3DAEMON_CONGESTION = bbr: uploads use cubic, because ")
        assert fault in looked.one("CONGESTION")
    assert looked.one("slow_start").startswith("warn" if fault else "ok")


def test_nothing_to_read(tmp_path: Path) -> None:
    """A container that hides /proc/sys is not a fault."""
    looked = Looked(tmp_path, **dict.fromkeys(SYSCTLS, ""))
    checks_host.sysctls(looked.findings, looked.host, settings(), None)
    assert looked.lines == []


def answering(rate_bps: int, origin: str, endpoint: str = ENDPOINT) -> Ask:
    """A daemon with that limit in force."""
    return lambda command: {"endpoint": endpoint, "limit": {"rate_bps": rate_bps, "origin": origin}}


def absent(command: str) -> Mapping[str, object]:
    """No daemon."""
    raise NoDaemonError(Code.NO_DAEMON, "none listens")


@pytest.mark.parametrize(
    ("bwlimit", "rtt_s", "ask", "found"),
    [
        (0, 0.2, absent, "warn limits S3DAEMON_BWLIMIT is off"),
        (0, None, absent, "warn limits S3DAEMON_BWLIMIT is off"),
        (0, 0.001, absent, ""),
        (4 * 10**9, 0.2, absent, "ok limits uploads share 4 Gbit/s, set by S3DAEMON_BWLIMIT"),
        (None, 0.001, answering(994_000_000, "found"), ""),
        (None, 0.2, answering(994_000_000, "found"), f"{FOUND}: 994 Mbit/s"),
        (None, None, answering(994_000_000, "kept"), f"{FOUND}: 994 Mbit/s, kept from before"),
        (None, 0.2, answering(0, "none"), f"{FOUND}: not known yet"),
        (None, 0.2, answering(10**9, "set"), f"{FOUND}: not known yet"),
        (None, 0.2, answering(10**9, "found", "https://other"), f"{FOUND}: not known yet"),
        (None, 0.2, lambda command: {}, f"{FOUND}: not known yet"),
        (None, 0.2, absent, f"{FOUND}: not shown, as it does not answer"),
    ],
)
def test_bandwidth(looked: Looked, bwlimit: int | None, rtt_s: float | None, ask: Ask, found: str) -> None:
    """The rate in force and where it comes from, as the daemon says; auto is recommended where the path is long."""
    checks_host.limit(looked.findings, settings(bwlimit_bps=bwlimit), rtt_s, ask)
    assert [line[: len(found)] if bwlimit == 0 else line for line in looked.lines] == ([found] if found else [])


@pytest.mark.parametrize(
    ("prime", "rtt_s", "level"),
    [
        ("", 0.2, "note"),
        ("", 0.05, "note"),
        ("", 0.049, ""),
        ("", None, ""),
        ("auto", 0.2, "ok"),
        ("auto", 0.001, "ok"),
        ("bucket/prefix", 0.2, ""),
    ],
)
def test_priming(prime: str, rtt_s: float | None, level: str, looked: Looked) -> None:
    """It is recommended where the path is long, with what a store's log then shows."""
    checks_host.sysctls(looked.findings, looked.host, settings(prime=prime), rtt_s)
    lines = [line for line in looked.lines if "PRIME" in line]
    assert [line.split()[0] for line in lines] == [level] * bool(level)
    assert all("must refuse" in line and "log" in line for line in lines)


@pytest.mark.parametrize(
    ("limits", "not_set"),
    [
        ((), "S3DAEMON_ALLOWED_USERS, S3DAEMON_ALLOWED_ROOTS, S3DAEMON_ALLOWED_BUCKETS"),
        (("users",), "S3DAEMON_ALLOWED_ROOTS, S3DAEMON_ALLOWED_BUCKETS"),
        (("users", "roots"), "S3DAEMON_ALLOWED_BUCKETS"),
        (("buckets",), "S3DAEMON_ALLOWED_USERS, S3DAEMON_ALLOWED_ROOTS"),
        (("users", "roots", "buckets"), ""),
    ],
)
def test_limits_that_are_not_set(looked: Looked, limits: tuple[str, ...], not_set: str) -> None:
    looked.put("/data/file")
    given = {"users": ("1234",), "roots": ("/data",), "buckets": ("raw",)}
    checks_host.access(looked.findings, looked.host, settings(**{f"allowed_{name}": given[name] for name in limits}))
    assert looked.lines == ([f"note access {not_set}: not set, which means no limit"] if not_set else [])


@pytest.mark.parametrize(("buckets", "notes"), [(("raw:b",), 1), (("raw",), 0), (("raw:b", "raw:c"), 0)])
def test_how_a_colon_between_buckets_is_read(looked: Looked, buckets: tuple[str, ...], notes: int) -> None:
    """It may be a tenant's, or meant as in the list of roots."""
    checks_host.access(looked.findings, looked.host, settings(allowed_buckets=buckets))
    assert len([line for line in looked.lines if "raw:b is one bucket, with its tenant in Ceph" in line]) == notes


def test_users_of_the_settings_that_do_not_exist_are_named(looked: Looked) -> None:
    """With a name that no user has the service does not start."""
    looked.change(user=lambda name: account(name, 1) if name == "ccs" else None)
    checks_host.access(looked.findings, looked.host, settings(allowed_users=("ccs", "1234", "typo")))
    line = looked.one("FAIL")
    assert line.startswith("FAIL access")
    assert "typo" in line


def test_roots_that_are_not_there(looked: Looked) -> None:
    """A typo there refuses every file."""
    looked.put("/data/file")
    checks_host.access(looked.findings, looked.host, settings(allowed_roots=("/data", "/dtaa", "/data/file")))
    warned = [line for line in looked.lines if line.startswith("warn")]
    begin = "warn access S3DAEMON_ALLOWED_ROOTS: "
    assert [line.removeprefix(begin).partition(" ")[0] for line in warned] == ["/dtaa", "/data/file"]


def test_state_directory(looked: Looked) -> None:
    """One that a start made is right; one that does not exist is made by the first start."""
    directory = looked.put("/var/lib/s3daemon/spool.db", "rows").parent
    directory.chmod(0o700)
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert looked.one("state").startswith("ok state /var/lib/s3daemon, mode 0700, ")
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon@1"), "")
    assert looked.one("@1").startswith("note")


def test_state_directory_with_an_empty_spool(looked: Looked) -> None:
    """A file system that was full or crashed may have left it; a tool that opens it would find a new, empty spool."""
    looked.put("/var/lib/s3daemon/spool.db")
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert "spool.db is empty; if it held transfers, they are lost" in looked.one("warn state")


def test_state_directory_that_is_a_file(looked: Looked) -> None:
    """What is in the way is said."""
    looked.put("/var/lib/s3daemon")
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert looked.one("state").startswith("FAIL state /var/lib/s3daemon is not a directory")


def test_state_directory_that_is_a_link_to_nothing(looked: Looked) -> None:
    """The first start does not create it."""
    looked.put("/var/lib/other").with_name("s3daemon").symlink_to("gone")
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert looked.one("state").startswith("FAIL state /var/lib/s3daemon is a symbolic link to what does not exist")


def test_state_directory_of_another(looked: Looked) -> None:
    """It must be the service's user's."""
    directory = looked.put("/var/lib/s3daemon/spool.db", "rows").parent
    looked.change(user=lambda name: account(name, directory.stat().st_uid + 1))
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "s3daemon")
    assert "chown -R s3daemon: /var/lib/s3daemon" in looked.one("FAIL")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_state_directory_with_files_of_root(looked: Looked) -> None:
    """A spool that was made as root cannot be written by the daemon."""
    directory = looked.put("/var/lib/s3daemon/spool.db", "rows").parent
    os.chown(directory, 12345, 12345)
    directory.chmod(0o700)
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert "spool.db has another owner" in looked.one("FAIL")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")
def test_state_directory_with_what_is_not_ours(looked: Looked) -> None:
    """A disk of its own has a lost+found of root's, which is no concern of the daemon."""
    directory = looked.put("/var/lib/s3daemon/spool.db", "rows").parent
    looked.put("/var/lib/s3daemon/README")
    (directory / "lost+found").mkdir()
    directory.chmod(0o700)
    for path in (directory, directory / "spool.db"):
        os.chown(path, 12345, 12345)
    checks_host.state_directory(looked.findings, looked.host, Path("/var/lib/s3daemon"), "")
    assert looked.levels() == {"ok"}


def test_journal(looked: Looked) -> None:
    """None, one that can be read, one that cannot, which must not look empty, and one whose journald has stopped."""
    path = Path("/run/journal")
    checks_host.journal(looked.findings, looked.host, path, "s3daemon@1")
    looked.put(str(path)).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(looked.host.path(path)))
        looked.change(uid=4711)
        checks_host.journal(looked.findings, looked.host, path, "s3daemon@1")
        looked.put("/var/log/journal/0123/system.journal")
        checks_host.journal(looked.findings, looked.host, path, "s3daemon@1")
    checks_host.journal(looked.findings, looked.host, path, "s3daemon@1")
    assert [line.split()[0] for line in looked.lines] == ["note", "warn", "ok", "FAIL"]
    assert "systemd-journal" in looked.lines[1]
    assert looked.lines[2].endswith("journalctl -u s3daemon@1")
    assert "journald has stopped" in looked.lines[3]


def test_journal_that_is_not_kept(looked: Looked) -> None:
    """Without files there are no records; those in /run are gone after a reboot."""
    path = Path("/run/journal")
    looked.put(str(path)).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(looked.host.path(path)))
        checks_host.journal(looked.findings, looked.host, path, "s3daemon")
        looked.put("/run/log/journal/0123/system.journal")
        checks_host.journal(looked.findings, looked.host, path, "s3daemon")
    assert [line.split()[0] for line in looked.lines] == ["FAIL", "warn", "ok"]
    assert "Storage=none" in looked.lines[0]
    assert "mkdir -p /var/log/journal" in looked.lines[1]


@pytest.mark.parametrize(
    ("output", "error", "place"),
    [
        ("journal", "inherit", ""),
        ("file:/var/log/out", "journal", ""),
        ("null", "null", ""),
        ("journal", "append:/var/log/s3daemon", "append:/var/log/s3daemon"),
        ("file:/var/log/out", "inherit", "file:/var/log/out"),
    ],
)
def test_records_that_the_unit_sends_elsewhere(output: str, error: str, place: str, looked: Looked) -> None:
    """A drop-in that gives standard error a file has the records written there, where no report finds them."""
    looked.units["service"] |= {"StandardOutput": output, "StandardError": error}
    checks_host.journal(looked.findings, looked.host, Path("/run/journal"), "s3daemon")
    (line,) = looked.lines
    assert line.startswith(f"warn journal the unit sends records to {place}, where" if place else "note journal")
