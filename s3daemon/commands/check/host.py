"""Check the host: kernel settings, limits, the state directory, the journal, and the allowed users.

The cost of a wrong setting is given for a burst of 23 small and 23 large files over 200 ms at 1 Gbit/s, which takes
1.94 s at best; `tests/bench/wan` measured these figures, which s3daemon-tuning(7) has too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from s3daemon.commands.check.findings import Findings
from s3daemon.commands.check.system import Host
from s3daemon.config.settings import PRIME_AUTO, RESTRICTIONS, VARIABLES, Settings
from s3daemon.errors import S3daemonError, SettingsError
from s3daemon.ingress.access import resolve_users
from s3daemon.spool.directory import (
    EMPTY_SPOOL,
    NAMES,
    SHARED_DIRECTORY,
    UNUSED_SPOOL,
    has_unused_spool,
    is_shared,
)
from s3daemon.units import rate

#: On shorter paths than this the settings that are checked cost nothing.
LONG_PATH_S = 0.01
#: From here on a connection takes half a second and more to open its window.
PRIMED_RTT_S = 0.05
#: A single connection should be able to fill this much; above, uploads in parallel do.
ONE_CONNECTION_BPS = 10**9
#: What `systemd/s3daemon.sysctl` sets as the maximum of tcp_wmem.
WMEM_BYTES = 64 << 20
#: The kernel counts what a packet takes in memory, about twice what it carries.
_OVERHEAD = 2
#: The outage to live through is 48 h, some 54 000 transfers, each good for a kilobyte of spool at most.
SPOOL_BYTES = 64 << 20
#: How the values of StandardError= begin that lead elsewhere than to the journal.
_NOT_JOURNAL = ("file", "append", "truncate", "tty", "socket", "fd")

_APPLY = "set it with sysctl -w, and permanently in /etc/sysctl.d or with the package's file"


def sysctls(findings: Findings, host: Host, settings: Settings, rtt_s: float | None) -> None:
    """Name the settings that cost time on a path with a round trip of `rtt_s` seconds; None when it is not known."""
    in_use = _congestion(findings, host, settings.congestion)
    idle = host.sysctl("net.ipv4.tcp_slow_start_after_idle")
    if idle not in ("", "0") and in_use == "bbr":
        text = f"net.ipv4.tcp_slow_start_after_idle = {idle}: connections with bbr stay fast while idle anyway"
        findings.ok("sysctl", text)
    elif idle not in ("", "0"):
        cost = "connections start slowly again after each pause: a burst over 200 ms takes 2.6 s instead of 2.1 s"
        findings.warn("sysctl", f"net.ipv4.tcp_slow_start_after_idle = {idle}: {cost}; use 0: {_APPLY}")
    elif idle:
        findings.ok("sysctl", f"net.ipv4.tcp_slow_start_after_idle = {idle}: connections stay fast while idle")
    _buffers(findings, host, settings, rtt_s)
    _priming(findings, settings.prime, rtt_s)


def limit(
    findings: Findings, settings: Settings, rtt_s: float | None, ask: Callable[[str], Mapping[str, object]]
) -> None:
    """Say what uploads may send together, and where that comes from; `ask` asks the daemon, as `Instance.ask` does."""
    is_long = rtt_s is None or rtt_s >= LONG_PATH_S
    if settings.bwlimit_bps:
        findings.ok("limits", f"uploads share {rate(settings.bwlimit_bps)}, set by S3DAEMON_BWLIMIT")
    elif settings.bwlimit_bps == 0 and is_long:
        gain = (
            "a burst over 200 ms takes 2.6 to 3.1 s instead of 2.1 s, and the first one 4.5 to 5.6 s instead of 3.2 s"
        )
        findings.warn("limits", f"S3DAEMON_BWLIMIT is off, and uploads overrun the path: {gain}; use auto")
    elif settings.bwlimit_bps is None and is_long:
        known = _found_rate(settings.endpoint_url, ask)
        findings.ok("limits", f"uploads share the rate of the narrowest link, which the daemon finds: {known}")


def _found_rate(endpoint: str, ask: Callable[[str], Mapping[str, object]]) -> str:
    """Return the rate in force to an endpoint, as the daemon says."""
    try:
        status = ask("status")
    except S3daemonError:
        return "not shown, as it does not answer"
    found = status.get("limit")
    if status.get("endpoint") == endpoint and isinstance(found, dict) and found.get("origin") in ("found", "kept"):
        return rate(found["rate_bps"]) + (", kept from before" if found["origin"] == "kept" else "")
    return "not known yet"


def _priming(findings: Findings, prime: str, rtt_s: float | None) -> None:
    """Recommend primed connections where the path is long, and say what they cost."""
    if prime == PRIME_AUTO:
        text = (
            "new connections carry 1 MB that the store must refuse, to the bucket last used; the store's log shows that"
        )
        findings.ok("priming", f"S3DAEMON_PRIME=auto: {text}")
    elif not prime and rtt_s is not None and rtt_s >= PRIMED_RTT_S:
        gain = "with auto the first exposure after a start, over 200 ms, takes 2.3 s instead of 3.1 s"
        cost = "it costs 1 MB on each new connection, which the store must refuse, and a BadDigest in its log"
        findings.note("priming", f"S3DAEMON_PRIME is off: {gain}; {cost}")


def _congestion(findings: Findings, host: Host, chosen: str) -> str:
    """Return the congestion control that uploads will have."""
    default = host.sysctl("net.ipv4.tcp_congestion_control")
    if not chosen:
        return default
    allowed = "net.ipv4.tcp_allowed_congestion_control"
    if chosen not in host.sysctl("net.ipv4.tcp_available_congestion_control").split():
        text = f"the kernel has not loaded it: modprobe tcp_{chosen}, and name it in /etc/modules-load.d"
    elif chosen not in (host.sysctl(allowed) or chosen).split():
        text = f"only root may choose it: add it to {allowed}"
    else:
        return chosen
    findings.warn("sysctl", f"S3DAEMON_CONGESTION = {chosen}: uploads use {default or 'the default'}, because {text}")
    return default


def _buffers(findings: Findings, host: Host, settings: Settings, rtt_s: float | None) -> None:
    sizes = host.sysctl("net.ipv4.tcp_wmem").split()
    if not sizes or rtt_s is None:  # of a path that does not work now nobody wants to know whether it is fast
        return
    most = int(sizes[-1])
    path_s = max(rtt_s, 1e-6)
    wanted_bps = min(settings.bwlimit_bps or ONE_CONNECTION_BPS, ONE_CONNECTION_BPS)
    over = f"over {path_s * 1e3:.3g} ms"
    text = f"net.ipv4.tcp_wmem: its maximum of {most / 1e6:.3g} MB"
    if most >= _OVERHEAD * wanted_bps / 8 * path_s:
        findings.ok("sysctl", f"{text} is enough for one connection at {wanted_bps / 1e6:.4g} Mbit/s {over}")
    else:
        cost = f"keeps one connection to {8 * most / path_s / 1e6:.3g} Mbit/s at best {over}, of {wanted_bps / 1e6:.4g}"
        findings.warn("sysctl", f"{text} {cost}; use {WMEM_BYTES}: {_APPLY}")


def access(findings: Findings, host: Host, settings: Settings) -> None:
    """Name the limits that are not set, and users and directories in the settings that this host does not have."""
    if not_set := [VARIABLES[name].name for name in RESTRICTIONS if not getattr(settings, name)]:
        findings.note("access", f"{', '.join(not_set)}: not set, which means no limit")
    if len(settings.allowed_buckets) == 1 and ":" in (bucket := settings.allowed_buckets[0]):
        text = f"{bucket} is one bucket, with its tenant in Ceph; commas separate buckets"
        findings.note("access", f"S3DAEMON_ALLOWED_BUCKETS: {text}")
    try:
        resolve_users(settings.allowed_users, lambda name: _uid(host, name))
    except SettingsError as exc:
        for fault in exc.faults:
            findings.fail("access", f"{fault}: the service does not start with that")
    for root in settings.allowed_roots:
        with contextlib.suppress(OSError):  # it is there, and not for this user to see
            if not host.path(root).is_dir():
                findings.warn("access", f"S3DAEMON_ALLOWED_ROOTS: {root} is not a directory here: no file is below it")


def _uid(host: Host, name: str) -> int:
    account = host.user(name)
    if account is None:
        raise KeyError(name)
    return account.pw_uid


def state_directory(findings: Findings, host: Host, directory: Path, owner: str) -> None:
    """Check the directory in which accepted transfers are kept; `owner` is empty where any user may run the daemon."""
    here = host.path(directory)
    try:
        found, disk = here.stat(), os.statvfs(here)
        ours = [path for path in here.iterdir() if path.name.startswith(NAMES)]
        inside = [path.name for path in ours if path.lstat().st_uid != found.st_uid]
    except FileNotFoundError:
        if here.is_symlink():
            findings.fail("state", f"{directory} is a symbolic link to what does not exist: remove it")
        else:
            findings.note("state", f"{directory} does not exist; the first start creates it")
        return
    except NotADirectoryError:
        findings.fail("state", f"{directory} is not a directory: rename or remove it")
        return
    except OSError as exc:
        findings.note("state", f"{directory} cannot be examined: {exc.strerror}; run it as root")
        return
    _spool_file(findings, directory, here)
    account = host.user(owner) if owner else None
    free = disk.f_bavail * disk.f_frsize
    if disk.f_flag & os.ST_RDONLY:
        findings.fail("state", f"{directory} is on a file system that is read-only: nothing would be accepted")
    elif free < SPOOL_BYTES:
        text = f"{free / 1e6:.3g} MB are free, and an outage of two days may need {SPOOL_BYTES / 1e6:.3g} MB: make room"
        (findings.warn if free > 1 << 20 else findings.fail)("state", f"{directory}: {text}")
    elif inside:
        text = f"{inside[0]} has another owner than the directory, and the daemon may not write it"
        findings.fail("state", f"{directory}: {text}: chown -R --reference={directory} {directory}")
    elif account and found.st_uid != account.pw_uid:
        findings.fail(
            "state", f"{directory} belongs to user {found.st_uid}, not {owner}: chown -R {owner}: {directory}"
        )
    else:
        findings.ok("state", f"{directory}, mode {stat.S_IMODE(found.st_mode):04o}, {free / 1e9:.3g} GB free")


def shared_directory(findings: Findings, host: Host, directory: Path) -> bool:
    """Whether others use the directory, so that no command may be shown that would take it away from them; say so."""
    with contextlib.suppress(OSError):
        if is_shared(host.path(directory)):
            findings.fail("state", f"{directory} {SHARED_DIRECTORY}")
            return True
    return False


def unused_spool(findings: Findings, host: Host, directory: Path, state_dir: Path) -> None:
    """Say if a directory has a spool and is not the state directory."""
    if has_unused_spool(host.path(directory), host.path(state_dir)):
        findings.warn("state", f"{directory / 'spool.db'} {UNUSED_SPOOL}")


def _spool_file(findings: Findings, directory: Path, here: Path) -> None:
    """Say if the spool's file has no byte; `here` is where the state directory is for this process."""
    with contextlib.suppress(FileNotFoundError):
        if not (here / "spool.db").lstat().st_size:
            findings.warn("state", f"{directory}/spool.db {EMPTY_SPOOL}")


def journal(findings: Findings, host: Host, journald: Path, unit: str) -> None:
    """Say where records go, and whether the user who looks can read them; `unit` is the name of the service."""
    shown = host.show(f"{unit}.service")
    output, error = (shown.get(f"Standard{which}", "") for which in ("Output", "Error"))
    written = output if error == "inherit" else error
    if written.startswith(_NOT_JOURNAL):
        text = f"the unit sends records to {written}, where report does not find them: remove StandardError= and"
        findings.warn("journal", f"{text} StandardOutput= from its drop-in, and restart the service")
        return
    if not host.path(journald).exists():
        findings.note("journal", "journald does not run here: records go to standard error")
        return
    if not _receives(host.path(journald)):
        start = "systemctl start systemd-journald.socket systemd-journald.service"
        findings.fail("journal", f"journald has stopped, and records are lost until it runs again: {start}")
        return
    kept, lost_at_boot = (list(host.path(top).glob("journal/*/system.journal")) for top in ("/var/log", "/run/log"))
    if host.uid == 0 and not kept and not lost_at_boot:
        text = "journald keeps no records, and report finds none: take Storage=none out of its journald.conf"
        findings.fail("journal", f"{text}, then systemctl restart systemd-journald")
        return
    if lost_at_boot and not kept:
        text = "records are lost at a reboot, as the journal is in memory: mkdir -p /var/log/journal, then"
        findings.warn("journal", f"{text} systemctl restart systemd-journald, unless its journald.conf has Storage=")
    if host.uid == 0 or any(os.access(file, os.R_OK) for file in (*kept, *lost_at_boot)):
        findings.ok("journal", f"records go there: journalctl -u {unit}")
    else:
        text = "records go there, but you cannot read them, and journalctl shows none"
        findings.warn("journal", f"{text}: usermod -aG systemd-journal YOU, and log in again")


def _receives(path: Path) -> bool:
    """Whether a process has the socket open that a datagram socket's file stands for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass  # this user may not know
    return True
