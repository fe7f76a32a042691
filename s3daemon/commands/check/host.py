"""`s3daemon check`, the host's part: what the kernel, the journal and the disk do for the daemon, and who may use it.

What a setting of the kernel costs is told with figures of a burst of 23 small and 23 large files over 200 ms at
1 Gbit/s, which 1.95 s would be enough for; `tests/bench/wan` measured them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from s3daemon.commands.check.findings import Host, Report
from s3daemon.config.settings import Settings
from s3daemon.errors import SettingsError
from s3daemon.ingress.access import resolve_users

#: Shorter paths than this forgive what these checks are about.
LONG_PATH_S = 0.01
#: Taken when no round trip was measured: the path that the product is made for.
ASSUMED_RTT_S = 0.2
#: A single connection should be able to fill this much; above, uploads in parallel do.
ONE_CONNECTION_BPS = 10**9
#: What `systemd/s3daemon.sysctl` sets as the maximum of tcp_wmem.
WMEM_BYTES = 64 << 20
#: The kernel counts what a packet takes in memory, about twice what it carries.
_OVERHEAD = 2
#: The outage to live through is 48 h, some 54 000 transfers, each good for a kilobyte of spool at most.
SPOOL_BYTES = 64 << 20

_APPLY = "set it with sysctl -w, and for good in /etc/sysctl.d or with the package's file"


def sysctls(report: Report, host: Host, settings: Settings | None, rtt_s: float | None) -> None:
    """What the kernel's settings make of long fat networks.

    Args:
        report: takes the findings.
        host: whose kernel it is.
        settings: valid ones, or None.
        rtt_s: the round trip to the store, seconds; None when it is not known.
    """
    chosen = settings.congestion if settings else ""
    in_use = _congestion(report, host, chosen)
    match host.sysctl("net.ipv4.tcp_slow_start_after_idle"):
        case "":
            report.note("sysctl", "net.ipv4.tcp_slow_start_after_idle cannot be read here")
        case "0":
            report.ok("sysctl", "net.ipv4.tcp_slow_start_after_idle = 0: connections stay fast while idle")
        case value if in_use == "bbr":
            report.ok("sysctl", f"net.ipv4.tcp_slow_start_after_idle = {value} does nothing to bbr")
        case value:
            cost = "connections start slowly again after each pause: a burst over 200 ms takes 2.6 s instead of 2.1 s"
            report.warn("sysctl", f"net.ipv4.tcp_slow_start_after_idle = {value}: {cost}; 0 is right: {_APPLY}")
    _buffers(report, host, settings, rtt_s)
    if host.sysctl("net.ipv4.tcp_mtu_probing") == "0":
        cost = "uploads over a path that drops large packets in silence stall; 1 finds the size that passes"
        report.note("sysctl", f"net.ipv4.tcp_mtu_probing = 0: {cost}")
    if qdisc := host.sysctl("net.core.default_qdisc"):
        what = "which paces too" if qdisc == "fq" else "without fq TCP paces by itself, at some CPU"
        report.note("sysctl", f"net.core.default_qdisc = {qdisc}: {what}")


def _congestion(report: Report, host: Host, chosen: str) -> str:
    """The congestion control that uploads will have."""
    default = host.sysctl("net.ipv4.tcp_congestion_control")
    if not chosen:
        report.ok("sysctl", f"net.ipv4.tcp_congestion_control = {default or 'unknown'}, and uploads use it")
        return default
    instead = f"uploads go with {default or 'the default'} instead"
    if chosen not in host.sysctl("net.ipv4.tcp_available_congestion_control").split():
        text = f"the kernel has not loaded it, {instead}: modprobe tcp_{chosen}, and name it in /etc/modules-load.d"
        report.warn("sysctl", f"S3DAEMON_CONGESTION = {chosen}: {text}")
        return default
    allowed = "net.ipv4.tcp_allowed_congestion_control"
    if chosen not in (host.sysctl(allowed) or chosen).split():
        text = f"a plain user may not choose it, {instead}: add it to {allowed}"
        report.warn("sysctl", f"S3DAEMON_CONGESTION = {chosen}: {text}")
        return default
    report.ok("sysctl", f"S3DAEMON_CONGESTION = {chosen} is loaded and allowed")
    return chosen


def _buffers(report: Report, host: Host, settings: Settings | None, rtt_s: float | None) -> None:
    sizes = host.sysctl("net.ipv4.tcp_wmem").split()
    if not sizes:
        report.note("sysctl", "net.ipv4.tcp_wmem cannot be read here")
        return
    most = int(sizes[-1])
    path_s = max(ASSUMED_RTT_S if rtt_s is None else rtt_s, 1e-6)
    wanted_bps = min((settings and settings.bwlimit_bps) or ONE_CONNECTION_BPS, ONE_CONNECTION_BPS)
    over = f"over {path_s * 1e3:.3g} ms" + (", the round trip assumed" if rtt_s is None else "")
    text = f"net.ipv4.tcp_wmem: its maximum of {most / 1e6:.3g} MB"
    if most >= _OVERHEAD * wanted_bps / 8 * path_s:
        report.ok("sysctl", f"{text} is enough for one connection at {wanted_bps / 1e6:.4g} Mbit/s {over}")
    else:
        cost = f"keeps one connection to {8 * most / path_s / 1e6:.3g} Mbit/s at best {over}, of {wanted_bps / 1e6:.4g}"
        report.warn("sysctl", f"{text} {cost}; {WMEM_BYTES} is right: {_APPLY}")


def limits(report: Report, settings: Settings, rtt_s: float | None) -> None:
    """What uploads may send together."""
    if settings.bwlimit_bps:
        report.ok("limits", f"S3DAEMON_BWLIMIT is {settings.bwlimit_bps / 1e6:.6g} Mbit/s, shared among the uploads")
    elif rtt_s is not None and rtt_s < LONG_PATH_S:
        report.ok("limits", f"S3DAEMON_BWLIMIT is not set, and over {rtt_s * 1e3:.3g} ms need not be")
    else:
        gain = "a burst over 200 ms takes 2.6 s instead of 2.1 s, and the first one 4.3 s instead of 3.1 s"
        cure = "set it to what this host may send to the store, such as 4G, or 2 % less where queues are short"
        report.warn("limits", f"S3DAEMON_BWLIMIT is not set, and uploads overrun the path: {gain}; {cure}")


def access(report: Report, host: Host, settings: Settings) -> None:
    """Who may have what sent where."""
    if not settings.allowed_users:
        report.note("access", "S3DAEMON_ALLOWED_USERS is empty: any user of this host may ask")
    if not settings.allowed_roots:
        report.note("access", "S3DAEMON_ALLOWED_ROOTS is empty: any file that the daemon can read may be sent")
    if not settings.allowed_buckets:
        report.note("access", "S3DAEMON_ALLOWED_BUCKETS is empty: any bucket that the keys can write may be written")
    try:
        resolve_users(settings.allowed_users, lambda name: _uid(host, name))
    except SettingsError as exc:
        for fault in exc.faults:
            report.fail("access", f"{fault}: the service does not start with that")
    for root in settings.allowed_roots:
        if not host.path(root).is_dir():
            report.warn("access", f"S3DAEMON_ALLOWED_ROOTS names {root}, which is no directory here, or not yet")


def _uid(host: Host, name: str) -> int:
    account = host.user(name)
    if account is None:
        raise KeyError(name)
    return account.pw_uid


def state_directory(report: Report, host: Host, directory: Path, owner: str) -> None:
    """Where accepted transfers are kept.

    Args:
        report: takes the findings.
        host: where it is.
        directory: the directory.
        owner: the user whose it must be, if there is one of that name; empty where nobody says.
    """
    here = host.path(directory)
    try:
        found, disk = here.stat(), os.statvfs(here)
        inside = [path for path in here.iterdir() if path.lstat().st_uid != found.st_uid] if host.uid == 0 else []
    except FileNotFoundError:
        report.note("state", f"{directory} is not there; the first start makes it")
        return
    except OSError as exc:
        report.note("state", f"{directory} cannot be looked at: {exc.strerror}; run it as root")
        return
    account = host.user(owner) if owner else None
    free = disk.f_bavail * disk.f_frsize
    if not stat.S_ISDIR(found.st_mode):
        report.fail("state", f"{directory} is no directory: move it away")
    elif disk.f_flag & os.ST_RDONLY:
        report.fail("state", f"{directory} is on a file system that is read-only: nothing would be accepted")
    elif free < SPOOL_BYTES:
        text = f"{free / 1e6:.3g} MB are free, and an outage of two days may need {SPOOL_BYTES / 1e6:.3g} MB: make room"
        (report.warn if free > 1 << 20 else report.fail)("state", f"{directory}: {text}")
    elif inside:
        text = f"{inside[0].name} has another owner than the directory, and the daemon may not write it"
        report.fail("state", f"{directory}: {text}: chown -R --reference={directory} {directory}")
    elif account and found.st_uid != account.pw_uid:
        report.fail("state", f"{directory}: it is user {found.st_uid}'s, not {owner}'s: chown -R {owner}: {directory}")
    elif not account and host.uid not in (0, found.st_uid):
        report.warn("state", f"{directory}: it is user {found.st_uid}'s, and only that user's s3daemon can use it")
    elif found.st_mode & 0o077:
        text = f"its mode is {stat.S_IMODE(found.st_mode):04o}; the next start makes it 0700"
        report.warn("state", f"{directory}: others can read what is sent where, {text}")
    else:
        report.ok("state", f"{directory}, mode {stat.S_IMODE(found.st_mode):04o}, {free / 1e9:.3g} GB free")


def journal(report: Report, host: Host, socket: Path) -> None:
    """Where records go, and whether whoever looks can read them."""
    if not host.path(socket).exists():
        report.note("journal", "there is none here: records go to standard error")
        return
    files = [path for top in ("/var/log/journal", "/run/log/journal") for path in _system_journals(host.path(top))]
    if host.uid == 0 or any(os.access(path, os.R_OK) for path in files):
        report.ok("journal", "records go there: journalctl -u s3daemon")
    else:
        text = "records go there and you cannot read them, which looks as if there were none"
        report.warn("journal", f"{text}: usermod -aG systemd-journal YOU, and log in anew")


def _system_journals(top: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in top.glob("*/system.journal") if path.is_file()]
    return []
