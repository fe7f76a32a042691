"""`s3daemon check`, the service's part: the door, the daemon behind it and, for root, what the package installed."""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from s3daemon.commands.check.findings import Host, Report
from s3daemon.config.settings import Settings
from s3daemon.control.client import NoDaemonError
from s3daemon.errors import Code, S3daemonError

#: TCP_LISTEN in include/net/tcp_states.h, as /proc/net/tcp shows it.
_LISTENING = "0A"
_UNIT_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SYSCTL_FILES = tuple(Path(top, "60-s3daemon.conf") for top in ("/etc/sysctl.d", "/run/sysctl.d", "/usr/lib/sysctl.d"))


@dataclass(frozen=True, slots=True)
class Unit:
    """One instance as systemd knows it.

    Args:
        name: `s3daemon`, or `s3daemon@PORT`; %N in the unit files.
        env_file: its settings.
    """

    name: str
    env_file: Path

    USER = "s3daemon"

    @property
    def port(self) -> int | None:
        """The instance's port; None for the plain service's, which is in its settings."""
        _, _, port = self.name.partition("@")
        return int(port) if port.isdecimal() else None

    @property
    def state_dir(self) -> Path:
        """StateDirectory= of it."""
        return Path("/var/lib", self.name)

    def environ(self, host: Host) -> dict[str, str]:
        """What systemd adds to the environment file's variables."""
        added = {"STATE_DIRECTORY": str(self.state_dir), "RUNTIME_DIRECTORY": str(host.path(f"/run/{self.name}"))}
        credentials = Path("/run/credentials", f"{self.name}.service")
        if host.path(credentials).is_dir():
            added["CREDENTIALS_DIRECTORY"] = str(host.path(credentials))
        return added

    def installed(self, host: Host) -> bool:
        """Whether systemd has its unit file."""
        file = re.sub("@.*", "@", self.name) + ".service"
        return any(host.path(top).joinpath(file).exists() for top in _UNIT_DIRECTORIES)


def door(report: Report, host: Host, unit: Unit | None, port: int) -> bool:
    """Whether requests are taken. Nobody is connected to, since that would start the service.

    Args:
        report: takes the findings.
        host: on which it listens.
        unit: whose socket unit says where, if there is one.
        port: where else.
    """
    shown = host.systemctl("show", "--property=Listen", "--value", f"{unit.name}.socket") if unit else ""
    doors = re.findall(r"^(\S+) \(Stream\)$", shown, re.MULTILINE)
    ports = {int(number) for number in re.findall(r":(\d+)$", "\n".join(doors), re.MULTILINE)} or {port}
    listening = [(address, at) for address, at in _listeners(host) if at in ports]
    missing = ports - {at for _, at in listening}
    state, start = "", "start s3daemon"
    if unit and unit.installed(host):
        state = host.systemctl("is-active", f"{unit.name}.socket")
        start = f"systemctl enable --now {unit.name}.socket {unit.name}.service"
    for at in sorted(missing):
        report.fail("socket", f"nothing listens at port {at}: {start}")
    if unit and not missing and state not in ("", "active"):
        text = "something else has its port, such as a daemon started by hand: stop that"
        report.fail("socket", f"{unit.name}.socket is {state}, and {text}, and {start}")
        return False
    if not missing:
        report.ok("socket", ", ".join(f"{address} port {at}" for address, at in listening) + " takes requests")
    for address, at in listening:
        if not address.is_loopback:
            text = "whoever reaches it can have any file sent that the daemon can read; listen on 127.0.0.1"
            report.warn("socket", f"{address} port {at} is open to the network, without authentication: {text}")
    return not missing


def _listeners(host: Host) -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    for name in ("tcp", "tcp6"):
        try:
            lines = host.path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for _, local, _, state, *_ in map(str.split, lines):
            address, _, port = local.partition(":")
            if state == _LISTENING:
                # Words of 32 bits in the host's order, which is the little one wherever this runs.
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                yield ipaddress.ip_address(b"".join(words)), int(port, 16)


def daemon(report: Report, ask: Callable[[str], Mapping[str, object]], *, listening: bool, activated: bool) -> None:
    """What the daemon says of itself.

    Args:
        report: takes the findings.
        ask: asks it, as `Instance.ask` does.
        listening: something takes requests.
        activated: that is systemd, which starts the daemon.
    """
    try:
        status = ask("status")
    except NoDaemonError as exc:
        if listening and activated:
            text = "it starts with the first request; started now, it also delivers what an earlier one left"
            report.note("daemon", f"none runs: {text}")
        elif listening:
            report.fail("daemon", f"{exc.text}: what takes requests is something else, or keeps its state elsewhere")
        else:
            report.note("daemon", f"none runs: {exc.text}")
    except S3daemonError as exc:
        (report.note if exc.code == Code.NOT_PERMITTED else report.fail)("daemon", exc.text)
    else:
        line = str(status.get("status", ""))
        if status.get("held") or status.get("spool"):
            report.fail("daemon", f"{line}: mend it, then systemctl reload")
        elif status.get("away") or status.get("failed") or status.get("refused"):
            report.warn("daemon", line)
        else:
            report.ok("daemon", line)


def installation(report: Report, host: Host, unit: Unit, settings: Settings | None) -> None:
    """What the package installed and an operator edited; for root.

    Args:
        report: takes the findings.
        host: where it is installed.
        unit: the instance.
        settings: valid ones, or None.
    """
    if not unit.installed(host):
        report.note("service", f"{unit.name}.service is not installed here")
        return
    _environment_file(report, host, unit)
    account = host.user(unit.USER)
    if account is None:
        report.fail("service", f"there is no user {unit.USER}: systemd-sysusers makes it, from the package's file")
    elif settings:
        for name, file in (
            ("AWS_CA_BUNDLE", settings.ca_bundle),
            ("AWS_SHARED_CREDENTIALS_FILE", settings.shared_credentials_file),
        ):
            if file and not _readable(host, Path(file), account.pw_uid, account.pw_gid):
                text = f"{file}, or a directory above, is by its mode closed to {unit.USER}: open it"
                report.warn("service", f"{name}: {text}")
    for kind, loses in (("socket", "clients are refused"), ("service", "a backlog waits for a client")):
        name = f"{unit.name}.{kind}"
        if state := host.systemctl("is-enabled", name):
            if state.startswith("enabled"):
                report.ok("service", f"{name} is {state}")
            else:
                report.warn("service", f"{name} is {state}: after a reboot {loses}: systemctl enable --now {name}")
    _sysctl_file(report, host)


def _environment_file(report: Report, host: Host, unit: Unit) -> None:
    try:
        found = host.path(unit.env_file).stat()
    except OSError:
        return  # the settings' line has said so
    if found.st_mode & 0o077 or found.st_uid:
        text = f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}: others may read or change the keys"
        report.fail("service", f"{unit.env_file}: {text}: chown root:root, chmod 600")
    else:
        report.ok("service", f"{unit.env_file} is root's alone")


def _readable(host: Host, file: Path, uid: int, gid: int) -> bool:
    """By the modes alone; access lists and further groups are not looked at."""

    def may(path: Path, right: int) -> bool:
        found = host.path(path).stat()
        shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
        return bool(found.st_mode >> shift & right)

    return may(file, stat.S_IROTH) and all(may(parent, stat.S_IXOTH) for parent in file.parents)


def _sysctl_file(report: Report, host: Host) -> None:
    for path in _SYSCTL_FILES:
        with_lines = host.path(path)
        if with_lines.is_file():
            break
    else:
        report.note("service", f"no {_SYSCTL_FILES[0].name} in sysctl.d: the kernel is as the lines on sysctl say")
        return
    wanted = re.findall(r"^-?\s*([\w.]+)\s*=\s*(.*?)\s*$", with_lines.read_text(), re.MULTILINE)
    differ = [name for name, value in wanted if host.sysctl(name) not in ("", " ".join(value.split()))]
    if differ:
        text = "sysctl --system applies it, and shows which file overrules it"
        report.warn("service", f"{path} is not in force for {', '.join(differ)}: {text}")
    else:
        report.ok("service", f"{path} is in force")
