"""Check the service: its units, its listening sockets, the running daemon, and who may read its keys."""

from __future__ import annotations

import ipaddress
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from s3daemon.commands.check.findings import Findings
from s3daemon.commands.check.system import Host
from s3daemon.control.client import NoDaemonError
from s3daemon.errors import Code, S3daemonError
from s3daemon.units import plural

#: What a unit that is not enabled costs after a reboot.
_UNITS = {"socket": "clients are refused", "service": "what was accepted waits for a client to start the daemon"}
#: The optional sockets of an instance, as they are called in the names of their units.
_OPTIONAL = ("unix", "http")
#: What to do where systemd failed to run the program, by the name of the step that failed.
_CURES = {
    "CHDIR": "fix WorkingDirectory= in the drop-in",
    "CREDENTIALS": "fix LoadCredential= in the drop-in, or the file that it names",
    "EXEC": "install the package again, or fix ExecStart= in the drop-in",
    "GROUP": "systemd-sysusers makes the group of the package; or fix Group= in the drop-in",
    "NAMESPACE": "make the directory that is missing, or fix ...Paths= in the drop-in",
    "STATE_DIRECTORY": "remove what is in the way; with a symbolic link, use S3DAEMON_STATE_DIR= instead",
    "USER": "systemd-sysusers makes the user of the package; or fix User= in the drop-in",
}
#: How systemd names the step, in the messages that it failed and that the process has ended.
_STEP = re.compile(r"(?:Failed at step |status=\d+/)([A-Z_]+)")
#: Members of the daemon's status that are empty, false or 0 where all is well.
_WRONG = ("away", "unreachable", "failing", "failed", "refused")
#: Settings of a unit that hide files from it, another value than "no" that does not, and where.
_HIDING = (
    ("PrivateTmp", "", "/tmp and /var/tmp"),  # noqa: S108 - words of a message
    ("ProtectHome", "read-only", "/home, /root and /run/user"),
)
#: The LoadState of a unit that has no file.
_MISSING = "not-found"


#: Who runs the service, unless a drop-in has User= and Group=.
USER = "s3daemon"


@dataclass(frozen=True, slots=True)
class Unit:
    """One instance as systemd knows it.

    Args:
        name: `s3daemon`, or `s3daemon@PORT`; %N in the unit files.
        env_file: its settings.
    """

    name: str
    env_file: Path

    def optional_socket(self, kind: str) -> str:
        """Return the name of an optional socket unit."""
        return f"s3daemon-{kind}{self.name.removeprefix('s3daemon')}.socket"

    def environ(self, host: Host) -> dict[str, str]:
        """Return what systemd adds to the environment file's variables."""
        shown = host.show(f"{self.name}.service")
        state, runtime = (shown.get(name) or self.name for name in ("StateDirectory", "RuntimeDirectory"))
        added = {
            "STATE_DIRECTORY": ":".join(f"/var/lib/{name}" for name in state.split()),
            "RUNTIME_DIRECTORY": ":".join(str(host.path(f"/run/{name}")) for name in runtime.split()),
        }
        credentials = host.path(f"/run/credentials/{self.name}.service")
        return added | ({"CREDENTIALS_DIRECTORY": str(credentials)} if credentials.is_dir() else {})


def units(findings: Findings, host: Host, unit: Unit, *, knows_users: bool = False) -> bool:
    """Check the units of an instance; return whether systemd takes requests for it.

    Where the daemon `knows_users`, those allowed, it refuses requests of other hosts.
    """
    enable = f"systemctl enable --now {unit.name}.socket {unit.name}.service"
    shown = {kind: host.show(f"{unit.name}.{kind}") for kind in _UNITS}
    if all(found.get("LoadState", "") in ("", _MISSING) for found in shown.values()):
        findings.note("service", f"{unit.name}.service and its socket are not installed here")
        return False
    if faults := [text for kind, found in shown.items() if (text := _not_loaded(f"{unit.name}.{kind}", found))]:
        for text in faults:
            findings.fail("service", text)
        return False
    for kind, cost in _UNITS.items():
        state = shown[kind].get("UnitFileState", "")
        if state == "bad":
            see = f"systemd-analyze verify {unit.name}.{kind}"
            findings.warn("service", f"{unit.name}.{kind} or a drop-in of it cannot be read in part: {see}")
        elif not state.startswith("enabled"):
            findings.warn("service", f"{unit.name}.{kind} is {state}: after a reboot {cost}: {enable}")
    state = shown["socket"].get("ActiveState", "")
    if state != "active":
        why = host.last_error(f"{unit.name}.socket") if state == "failed" else ""
        refused = f"{unit.name}.socket is {state}, so clients are refused"
        findings.fail("socket", f"{refused}: {why}: remove the cause, then {enable}" if why else f"{refused}: {enable}")
        return False
    listening = _listening(shown["socket"])
    for kind in _OPTIONAL:
        listening += _optional(findings, host, unit, kind)
    findings.ok("socket", f"{', '.join(listening)} takes requests")
    for at in [] if knows_users else filter(_is_open, listening):
        text = "anyone who reaches it can have any file sent that the daemon can read"
        cure = "listen on 127.0.0.1, or set S3DAEMON_ALLOWED_USERS"
        findings.warn("socket", f"{at} is open to the network, without authentication: {text}; {cure}")
    return True


def _optional(findings: Findings, host: Host, unit: Unit, kind: str) -> list[str]:
    """Return where an optional socket listens; say why not, if it is enabled."""
    name = unit.optional_socket(kind)
    shown = host.show(name)
    if (state := shown.get("ActiveState", "")) == "active":
        return _listening(shown)
    if shown.get("UnitFileState", "").startswith("enabled"):
        why = host.last_error(name) if state == "failed" else ""
        cure = f"systemctl restart {unit.name}.service"
        cure = f"{why}: remove the cause, then {cure}" if why else cure
        findings.fail("socket", f"{name} is enabled and {state}, so its clients are refused: {cure}")
    return []


def _listening(shown: Mapping[str, str]) -> list[str]:
    return re.findall(r"(\S+) \(Stream\)", shown.get("Listen", ""))


def _not_loaded(name: str, shown: Mapping[str, str]) -> str:
    """Return why systemd cannot start a unit, and what to do; empty when it has loaded it."""
    state = shown.get("LoadState", "")
    if state == "masked":
        runtime = " --runtime" if shown.get("UnitFileState") == "masked-runtime" else ""
        return f"{name} is masked and does not start: systemctl unmask{runtime} {name}"
    if state == _MISSING:
        return f"{name} is missing: install the package again, then systemctl daemon-reload"
    return "" if state == "loaded" else f"systemd cannot load {name}, {state}: see systemctl status {name}"


def _is_open(listening: str) -> bool:
    """Whether an address of a socket unit can be reached from other hosts; the path of a Unix socket cannot."""
    address = listening.rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def daemon(
    findings: Findings,
    host: Host,
    unit: Unit | None,
    ask: Callable[[str], Mapping[str, object]],
    *,
    activated: bool,
    endpoint: str = "",
) -> None:
    """Check what the daemon says of itself, and where there is none, why.

    No `unit` is given where it is not known, and no `endpoint` where the settings are not valid. `ask` asks the daemon,
    as `Instance.ask` does; where it is `activated`, systemd takes requests and starts it for the first.
    """
    try:
        status = ask("status")
    except NoDaemonError:
        if unit is not None and (_failing(findings, host, unit) or _not_started(findings, host, unit)):
            return
        text = "it starts with the first request; started now, it also delivers what an earlier one left"
        findings.note("daemon", f"no daemon runs: {text}" if activated else "no daemon runs: start it")
    except S3daemonError as exc:
        (findings.note if exc.code == Code.NOT_PERMITTED else findings.fail)("daemon", exc.text)
    else:
        line, in_use = str(status.get("status", "")), status.get("endpoint", endpoint)
        if endpoint not in ("", in_use):
            name = unit.name if unit else "s3daemon"
            findings.warn("daemon", f"it still sends to {in_use}, not to {endpoint}: systemctl reload {name}")
        if status.get("held") or status.get("spool"):
            findings.fail("daemon", line)
        elif any(map(status.get, _WRONG)):
            findings.warn("daemon", line)
        else:
            findings.ok("daemon", line)


def _failing(findings: Findings, host: Host, unit: Unit) -> bool:
    """Whether the service fails to start, as systemd sees it; say why, as the journal has it."""
    shown = host.show(f"{unit.name}.service")
    restarting = shown.get("SubState") == "auto-restart" or shown.get("NRestarts", "0") not in ("", "0")
    if shown.get("ActiveState") != "failed" and not (shown.get("ActiveState") == "activating" and restarting):
        return False
    count = shown.get("NRestarts", "0") if restarting else "0"
    times = "" if count in ("", "0") else f", {plural(int(count), 'time')} so far"
    why = host.last_error(f"{unit.name}.service") or f"Result={shown.get('Result', 'unknown')}"
    see = f"journalctl -e -u {unit.name}"
    text = f"{unit.name}.service fails to start{times}: {why.replace(f'{unit.name}.service: ', '')}{_cure(why)}"
    findings.fail("daemon", f"{text}; accepted transfers are kept; {see}")
    return True


def _cure(why: str) -> str:
    """Return what to do where a start failed before the daemon could say so itself."""
    step = _STEP.search(why)
    cure = _CURES.get(step[1]) if step else None
    return f": {cure}" if cure else ""


def _not_started(findings: Findings, host: Host, unit: Unit) -> bool:
    """Whether systemd says why no daemon runs, though the service has not failed; say that."""
    name = f"{unit.name}.service"
    shown = host.show(name)
    state = shown.get("ActiveState", "")
    unmet = [
        f"{kind}...="
        for kind in ("Condition", "Assert")
        # Before the first start it is "no" too.
        if shown.get(f"{kind}Result") == "no" and shown.get(f"{kind}TimestampMonotonic", "0") not in ("", "0")
    ]
    if state == "inactive" and unmet:
        cure = f"systemctl status {name} names it; to wait for a file system, use RequiresMountsFor= instead"
        findings.fail("daemon", f"{name} did not start, as a line {unmet[0]} of its unit does not hold: {cure}")
    elif state in ("activating", "deactivating"):
        findings.note("daemon", f"{name} is {state}: run check again; systemctl status {name} shows for how long")
    elif state == "active":
        findings.fail("daemon", f"{name} runs, but its control socket is gone: systemctl restart {unit.name}")
    else:
        return False
    return True


def may_write(findings: Findings, host: Host, unit: Unit, directory: Path) -> bool:
    """Whether the unit lets the service write its state directory, as systemd shows the unit; say what is missing."""
    shown = host.show(f"{unit.name}.service")
    writable = [Path("/var/lib", name) for name in shown.get("StateDirectory", "").split()]
    writable += [Path(path.lstrip("-+")) for path in shown.get("ReadWritePaths", "").split()]
    if shown.get("ProtectSystem") != "strict" or any(directory.is_relative_to(path) for path in writable):
        return True
    user, group = shown.get("User") or USER, shown.get("Group") or USER
    make = f"install -d -m 700 -o {user} -g {group} {directory}"
    drop_in = f"systemctl edit {unit.name}.service, with ReadWritePaths={directory} below [Service]"
    findings.fail("state", f"{directory} is read-only to the service, which does not start with it: {make}; {drop_in}")
    return False


def hidden_files(findings: Findings, host: Host, unit: Unit) -> None:
    """Name what a drop-in hides from the service: to its clients a file there has no reason not to be found."""
    shown = host.show(f"{unit.name}.service")
    for name, harmless, directories in _HIDING:
        if (value := shown.get(name, harmless)) not in ("", "no", harmless):
            text = (
                f"{name}={value}: the service does not see clients' files in {directories}: remove it from the drop-in"
            )
            findings.warn("access", text)


def user_of(host: Host, unit: Unit) -> str:
    """Return the name of the user who runs the service; empty where that is one for each start (DynamicUser=)."""
    shown = host.show(f"{unit.name}.service")
    if shown.get("LoadState") != "loaded":
        return USER
    return "" if shown.get("DynamicUser") == "yes" else shown.get("User", USER) or "root"


def readable_files(findings: Findings, host: Host, unit: Unit, files: Mapping[str, str]) -> None:
    """Check that the service's user may read the files that settings name, as root may; by variable.

    Nothing is said where that cannot be found out: by others than root, or of a user who is not there.
    """
    shown = host.show(f"{unit.name}.service")
    groups = [*shown.get("SupplementaryGroups", "").split(), *shown.get("Group", "").split()]
    for name, file in files.items():
        user = user_of(host, unit)
        if file and user and host.readable(Path(file), user, groups) is False:
            text = f"the service does not start with that: give {user} access to it, and to each directory above it"
            findings.fail("settings", f"{name} is '{file}', which {user} may not read: {text}")


def files_with_keys(findings: Findings, host: Host, unit: Unit, credentials: str) -> None:
    """Check that others may not read or change the keys in the environment file, or in the file of `credentials`."""
    env_file, others = str(unit.env_file), stat.S_IWGRP | stat.S_IRWXO
    cures = {env_file: "chown root:root, chmod 600", credentials: "chmod g-w,o="}
    for file in filter(None, cures):
        try:
            found = host.path(file).stat()
        except OSError:
            continue  # the line on the settings says so
        is_env_file = file == env_file
        if found.st_mode & (0o077 if is_env_file else others) or (is_env_file and found.st_uid):
            text = f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}: others may read or change the keys"
            findings.fail("service", f"{file}: {text}: {cures[file]}")
