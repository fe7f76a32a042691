"""What check says of the service: its units, the daemon behind the socket, and the environment file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fake_host import Looked

from s3daemon.commands.check import unit as checks_unit
from s3daemon.commands.check.unit import Unit
from s3daemon.control.client import NoDaemonError
from s3daemon.errors import Code, S3daemonError

PLAIN = Unit("s3daemon", Path("/etc/sysconfig/s3daemon"))
OTHER = Unit("s3daemon@15556", Path("/etc/sysconfig/s3daemon@15556"))


@pytest.mark.parametrize("unit", [PLAIN, OTHER], ids=lambda unit: unit.name)
def test_installed(unit: Unit, looked: Looked) -> None:
    """As the package installs it, enabled: one line with where it listens."""
    assert checks_unit.units(looked.findings, looked.host, unit)
    assert looked.lines == ["ok socket 127.0.0.1:15555 takes requests"]


@pytest.mark.parametrize("shown", [{}, {"LoadState": "not-found"}])
def test_not_installed(shown: dict[str, str], looked: Looked) -> None:
    """In a checkout that is a note, and so where systemd does not run."""
    looked.units = {"socket": shown, "service": shown}
    assert not checks_unit.units(looked.findings, looked.host, PLAIN)
    assert looked.lines == ["note service s3daemon.service and its socket are not installed here"]


@pytest.mark.parametrize("kind", ["socket", "service"])
@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ({"LoadState": "not-found"}, "%s is missing: install the package again"),
        ({"LoadState": "masked"}, "%s is masked and does not start: systemctl unmask s3daemon."),
        ({"LoadState": "masked", "UnitFileState": "masked-runtime"},
         "%s is masked and does not start: systemctl unmask --runtime s3daemon."),
        ({"LoadState": "bad-setting"}, "systemd cannot load %s, bad-setting: see systemctl status"),
    ],
)  # fmt: skip
def test_unit_that_systemd_cannot_start(kind: str, shown: dict[str, str], found: str, looked: Looked) -> None:
    """Where the other unit is installed, that is a failure."""
    looked.units[kind] = shown
    assert not checks_unit.units(looked.findings, looked.host, PLAIN)
    (line,) = looked.lines
    assert line.startswith("FAIL service " + found % f"s3daemon.{kind}")


def test_socket_that_is_not_active(looked: Looked) -> None:
    """What it costs and what to do are said."""
    looked.units["socket"]["ActiveState"] = "failed"
    assert not checks_unit.units(looked.findings, looked.host, PLAIN)
    looked.change(last_error={"s3daemon.socket": "Address already in use"}.get)
    assert not checks_unit.units(looked.findings, looked.host, PLAIN)
    refused = "FAIL socket s3daemon.socket is failed, so clients are refused"
    cure = "systemctl enable --now s3daemon.socket s3daemon.service"
    assert looked.lines == [
        f"{refused}: {cure}",
        f"{refused}: Address already in use: remove the cause, then {cure}",
    ]


@pytest.mark.parametrize(("kind", "cost"), [("socket", "clients are refused"), ("service", "waits for a client")])
def test_unit_that_is_not_enabled(kind: str, cost: str, looked: Looked) -> None:
    """What a reboot would cost is said of each."""
    looked.units[kind]["UnitFileState"] = "disabled"
    assert checks_unit.units(looked.findings, looked.host, PLAIN)
    assert looked.one("warn").startswith(f"warn service s3daemon.{kind} is disabled: after a reboot ")
    assert cost in looked.one("warn")


def test_unit_that_systemd_reads_in_part(looked: Looked) -> None:
    """That is not said to be a unit which nobody has enabled."""
    looked.units["service"]["UnitFileState"] = "bad"
    assert checks_unit.units(looked.findings, looked.host, PLAIN)
    assert looked.one("warn").endswith("cannot be read in part: systemd-analyze verify s3daemon.service")


@pytest.mark.parametrize(
    ("listening", "is_open"),
    [("127.0.0.1:1", False), ("[::1]:1", False), ("/run/s3daemon.socket", False), ("0.0.0.0:1", True), ("[::]:1", True),
     ("192.0.2.1:1", True)],
)  # fmt: skip
def test_socket_that_is_open_to_the_network(listening: str, is_open: bool, looked: Looked) -> None:
    """Each address that other hosts can reach is a warning."""
    looked.units["socket"]["Listen"] = f"127.0.0.1:15555 (Stream) {listening} (Stream)"
    assert checks_unit.units(looked.findings, looked.host, PLAIN)
    assert any(line.startswith(f"warn socket {listening} is open to the network") for line in looked.lines) == is_open


def test_socket_that_is_open_to_the_network_and_knows_its_users(looked: Looked) -> None:
    """The daemon refuses requests of other hosts then."""
    looked.units["socket"]["Listen"] = "0.0.0.0:15555 (Stream)"
    assert checks_unit.units(looked.findings, looked.host, PLAIN, knows_users=True)
    assert looked.levels() == {"ok"}


@pytest.mark.parametrize(
    ("kind", "name"), [("unix", "s3daemon-unix@15556.socket"), ("http", "s3daemon-http@15556.socket")]
)
def test_optional_socket(kind: str, name: str, looked: Looked) -> None:
    """One that is active counts as the others do; one that is enabled and has failed is a failure of its own."""
    looked.units[kind] = {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "disabled"}
    assert checks_unit.units(looked.findings, looked.host, OTHER)
    assert looked.lines == ["ok socket 127.0.0.1:15555 takes requests"]
    looked.units[kind] |= {"ActiveState": "active", "UnitFileState": "enabled", "Listen": "0.0.0.0:15556 (Stream)"}
    assert checks_unit.units(looked.findings, looked.host, OTHER)
    assert looked.lines[1] == "ok socket 127.0.0.1:15555, 0.0.0.0:15556 takes requests"
    assert looked.lines[2].startswith("warn socket 0.0.0.0:15556 is open to the network")
    for state in ("inactive", "failed"):
        looked.units[kind]["ActiveState"] = state
        looked.change(last_error={name: "Address already in use"}.get)
        assert checks_unit.units(looked.findings, looked.host, OTHER)
    refused, cure = "so its clients are refused", "systemctl restart s3daemon@15556.service"
    assert [line for line in looked.lines if line.startswith("FAIL")] == [
        f"FAIL socket {name} is enabled and inactive, {refused}: {cure}",
        f"FAIL socket {name} is enabled and failed, {refused}: Address already in use: remove the cause, then {cure}",
    ]


@pytest.mark.parametrize(
    ("shown", "user"),
    [({}, "s3daemon"), ({"User": "s3daemon"}, "s3daemon"), ({"User": "ccs"}, "ccs"), ({"User": ""}, "root"),
     ({"User": "", "DynamicUser": "yes"}, ""), ({"User": "", "LoadState": "not-found"}, "s3daemon")],
)  # fmt: skip
def test_user_of_the_service(shown: dict[str, str], user: str, looked: Looked) -> None:
    """A drop-in may name another; one for each start has no name to look for."""
    looked.units["service"] |= shown
    assert checks_unit.user_of(looked.host, PLAIN) == user


@pytest.mark.parametrize(("readable", "fails"), [(True, False), (False, True), (None, False)])
def test_files_that_the_service_may_not_read(readable: bool | None, fails: bool, looked: Looked) -> None:
    """Root may, so no other check notices; what is not known is no finding."""
    asked: list[tuple[object, ...]] = []

    def look(*about: object) -> bool | None:
        asked.append(about)
        return readable

    looked.units["service"] |= {"User": "ccs", "Group": "certs", "SupplementaryGroups": "adm images"}
    looked.change(readable=look)
    files = {"AWS_CA_BUNDLE": "/etc/ca.pem", "AWS_SHARED_CREDENTIALS_FILE": ""}
    checks_unit.readable_files(looked.findings, looked.host, PLAIN, files)
    assert asked == [(Path("/etc/ca.pem"), "ccs", ["adm", "images", "certs"])]
    assert [line.partition(":")[0] for line in looked.lines] == (
        ["FAIL settings AWS_CA_BUNDLE is '/etc/ca.pem', which ccs may not read"] if fails else []
    )


def answers(status: Mapping[str, object] | S3daemonError) -> Callable[[str], Mapping[str, object]]:
    """Make a daemon that says that."""

    def ask(command: str) -> Mapping[str, object]:
        assert command == "status"
        if isinstance(status, S3daemonError):
            raise status
        return status

    return ask


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ({"status": "0 in flight", "held": "", "away": False, "failed": 0, "spool": ""}, "ok daemon 0 in flight"),
        ({"status": "HELD, TLSRefused", "held": "TLSRefused"}, "FAIL daemon HELD, TLSRefused"),
        ({"status": "refusing", "spool": "SpoolFull"}, "FAIL daemon refusing"),
        ({"status": "AWAY, StallError: no", "away": True}, "warn daemon AWAY, StallError: no"),
        (
            {"status": "UNREACHABLE, TLSRefused, no; 0 in flight", "unreachable": "TLSRefused, no"},
            "warn daemon UNREACHABLE, TLSRefused, no",
        ),
        ({"status": "3 failed", "failed": 3}, "warn daemon 3 failed"),
        ({"status": "full", "refused": "too many clients"}, "warn daemon full"),
        (S3daemonError(Code.NOT_PERMITTED, "not yours"), "note daemon not yours"),
        (S3daemonError(Code.NO_ANSWER, "said nothing"), "FAIL daemon said nothing"),
    ],
)
def test_daemon(status: dict[str, object] | S3daemonError, found: str, looked: Looked) -> None:
    """What it says of itself decides the level."""
    checks_unit.daemon(looked.findings, looked.host, PLAIN, answers(status), activated=True)
    (line,) = looked.lines
    assert line.startswith(found)


@pytest.mark.parametrize("in_use", ["http://new", "http://old"])
def test_a_daemon_with_another_endpoint_than_the_file_has(in_use: str, looked: Looked) -> None:
    status = {"status": "0 in flight", "endpoint": in_use}
    checks_unit.daemon(looked.findings, looked.host, PLAIN, answers(status), activated=True, endpoint="http://new")
    warned = [line for line in looked.lines if line.startswith("warn")]
    expected = "warn daemon it still sends to http://old, not to http://new: systemctl reload s3daemon"
    assert warned == ([expected] if in_use == "http://old" else [])


@pytest.mark.parametrize(("activated", "text"), [(True, "it starts with the first request"), (False, "start it")])
def test_no_daemon(activated: bool, text: str, looked: Looked) -> None:
    """Behind a socket of systemd's it starts by itself."""
    absent = NoDaemonError(Code.NO_DAEMON, "no daemon listens on X")
    checks_unit.daemon(looked.findings, looked.host, PLAIN, answers(absent), activated=activated)
    assert looked.one("daemon").startswith(f"note daemon no daemon runs: {text}")


@pytest.mark.parametrize(
    ("shown", "said", "found"),
    [
        ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "7"}, "cannot start: BadSettings: no",
         "FAIL daemon s3daemon.service fails to start, 7 times so far: cannot start: BadSettings: no; accepted"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "0"}, "cannot start: BadSettings: no",
         "FAIL daemon s3daemon.service fails to start: cannot start: BadSettings: no; accepted"),
        ({"ActiveState": "failed", "SubState": "failed", "Result": "exit-code", "NRestarts": "0"}, "",
         "FAIL daemon s3daemon.service fails to start: Result=exit-code; accepted"),
        ({"ActiveState": "failed", "SubState": "failed", "NRestarts": "0"},
         "s3daemon.service: Failed to find the user; s3daemon.service: Failed at step USER spawning /x: No such",
         "FAIL daemon s3daemon.service fails to start: Failed to find the user; Failed at step USER spawning "
         "/x: No such: systemd-sysusers makes the user of the package; or fix User= in the drop-in; accepted"),
        ({"ActiveState": "failed", "SubState": "failed", "NRestarts": "0"},
         "s3daemon.service: Main process exited, code=exited, status=203/EXEC",
         "FAIL daemon s3daemon.service fails to start: Main process exited, code=exited, status=203/EXEC: install the"),
        ({"ActiveState": "activating", "SubState": "start", "NRestarts": "0"}, "",
         "note daemon s3daemon.service is activating: run check again"),
        ({"ActiveState": "inactive", "SubState": "dead", "NRestarts": "0"}, "old", "note daemon no daemon runs"),
        ({"ActiveState": "active", "SubState": "running"}, "", "FAIL daemon s3daemon.service runs, but its control"),
        ({"ConditionResult": "no", "ConditionTimestampMonotonic": "0"}, "", "note daemon no daemon runs"),
        ({"ConditionResult": "no", "ConditionTimestampMonotonic": "7"}, "",
         "FAIL daemon s3daemon.service did not start, as a line Condition...= of its unit does not hold: systemctl"),
        ({"AssertResult": "no", "AssertTimestampMonotonic": "7"}, "",
         "FAIL daemon s3daemon.service did not start, as a line Assert...= of its unit does not hold: systemctl"),
    ],
)  # fmt: skip
def test_a_service_that_fails_to_start(shown: dict[str, str], said: str, found: str, looked: Looked) -> None:
    """It is not said to start with the first request: why it fails is said, as the journal has it."""
    looked.units["service"] |= shown
    looked.change(last_error={"s3daemon.service": said}.get)
    absent = NoDaemonError(Code.NO_DAEMON, "no daemon listens on X")
    checks_unit.daemon(looked.findings, looked.host, PLAIN, answers(absent), activated=True)
    assert looked.one("daemon").startswith(found)


@pytest.mark.parametrize(
    ("directory", "shown", "may"),
    [
        ("/var/lib/s3daemon", {}, True),
        ("/var/lib/s3daemon/spool", {}, True),
        ("/var/lib/s3daemon-2", {}, False),
        ("/data/spool", {}, False),
        ("/data/spool", {"ReadWritePaths": "/var/other -/data"}, True),
        ("/data/spool", {"ReadWritePaths": "/data/spool/x /data/sp"}, False),
        ("/data/spool", {"StateDirectory": "a b"}, False),
        ("/var/lib/b", {"StateDirectory": "a b"}, True),
        ("/data/spool", {"ProtectSystem": "full"}, True),
    ],
)
def test_state_directory_that_the_unit_may_write(
    directory: str, shown: dict[str, str], may: bool, looked: Looked
) -> None:
    """All but what the unit names is read-only to the service; the line has the drop-in that changes it."""
    looked.units["service"] |= shown
    assert checks_unit.may_write(looked.findings, looked.host, PLAIN, Path(directory)) == may
    if not may:
        line = looked.one("state")
        assert line.startswith(f"FAIL state {directory} is read-only to the service")
        assert line.endswith(f"systemctl edit s3daemon.service, with ReadWritePaths={directory} below [Service]")


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ({}, []),
        ({"PrivateTmp": "no", "ProtectHome": "read-only"}, []),
        ({"PrivateTmp": "no", "ProtectHome": "no"}, []),
        ({"PrivateTmp": "yes"}, ["warn access PrivateTmp=yes: the service does not see clients' files in /tmp"]),
        ({"ProtectHome": "tmpfs"}, ["warn access ProtectHome=tmpfs: the service does not see clients' files in /home"]),
    ],
)
def test_what_a_drop_in_hides_from_the_service(shown: dict[str, str], found: list[str], looked: Looked) -> None:
    """Its clients are told that a file does not exist, or not what would let the service read it."""
    looked.units["service"] |= shown
    checks_unit.hidden_files(looked.findings, looked.host, PLAIN)
    assert [line[: len(start)] for line, start in zip(looked.lines, found, strict=True)] == found


def test_state_directory_where_the_unit_is_not_installed(looked: Looked) -> None:
    looked.units["service"] = {}
    assert checks_unit.may_write(looked.findings, looked.host, PLAIN, Path("/data/spool"))
    assert looked.lines == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of root")
def test_environment_file(looked: Looked) -> None:
    """The keys are in it, so no one but root may read or change it."""
    file = looked.put("/etc/sysconfig/s3daemon")
    file.chmod(0o600)
    checks_unit.files_with_keys(looked.findings, looked.host, PLAIN, "")
    assert looked.lines == []
    file.chmod(0o640)
    checks_unit.files_with_keys(looked.findings, looked.host, PLAIN, "")
    assert looked.one("FAIL").startswith("FAIL service /etc/sysconfig/s3daemon: mode 0640, owner 0: others may read")


@pytest.mark.parametrize(("mode", "fails"), [(0o600, False), (0o640, False), (0o660, True), (0o644, True)])
def test_file_that_the_settings_name_for_the_keys(mode: int, fails: bool, looked: Looked) -> None:
    """The service's group may read it, unlike the environment file; nobody else may."""
    looked.put("/etc/keys").chmod(mode)
    checks_unit.files_with_keys(looked.findings, looked.host, PLAIN, "/etc/keys")
    assert [line[:30] for line in looked.lines] == ([f"FAIL service /etc/keys: mode 0{mode:o}"[:30]] if fails else [])


def test_environ(tmp_path: Path) -> None:
    """What systemd adds for an instance, as the unit shows it; credentials only where it has made some."""
    looked = Looked(tmp_path)
    host = looked.host
    assert OTHER.environ(host) == {
        "STATE_DIRECTORY": "/var/lib/s3daemon@15556",
        "RUNTIME_DIRECTORY": str(tmp_path / "run/s3daemon@15556"),
    }
    looked.units["service"] |= {"StateDirectory": "images %N", "RuntimeDirectory": "images"}
    assert OTHER.environ(host) == {
        "STATE_DIRECTORY": "/var/lib/images:/var/lib/s3daemon@15556",
        "RUNTIME_DIRECTORY": str(tmp_path / "run/images"),
    }
    (tmp_path / "run/credentials/s3daemon@15556.service").mkdir(parents=True)
    assert "CREDENTIALS_DIRECTORY" in OTHER.environ(host)
