"""What check says of the service: its door, the daemon behind it, and what the package installed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from looked import Looked, account, settings

from s3daemon.commands.check import unit as checks_unit
from s3daemon.commands.check.findings import Host
from s3daemon.commands.check.unit import Unit
from s3daemon.control.client import NoDaemonError
from s3daemon.errors import S3daemonError

PLAIN = Unit("s3daemon", Path("/etc/sysconfig/s3daemon"))
OTHER = Unit("s3daemon@15556", Path("/etc/sysconfig/s3daemon@15556"))
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   0: {}:{:04X} 00000000:0000 {} 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
LOOPBACK, ANY, LOOPBACK6 = "0100007F", "00000000", "00000000000000000000000001000000"


def listens(looked: Looked, address: str, port: int, state: str = "0A") -> None:
    """Show a socket in the kernel's table."""
    name = "tcp" if len(address) == 8 else "tcp6"
    looked.put(f"/proc/self/net/{name}", HEADER + ROW.format(address, port, state))


def with_systemctl(looked: Looked, answers: dict[str, str]) -> None:
    """Give the host a systemctl whose answer depends on the last word."""
    looked.host = dataclasses.replace(looked.host, uid=0, systemctl=lambda *words: answers.get(words[-1], ""))


@pytest.mark.parametrize(("address", "shown"), [(LOOPBACK, "127.0.0.1"), (LOOPBACK6, "::1")])
def test_door(tmp_path: Path, address: str, shown: str) -> None:
    """Found in the kernel's table, without connecting."""
    looked = Looked(tmp_path)
    listens(looked, address, 15555)
    assert checks_unit.door(looked.report, looked.host, None, 15555)
    assert looked.lines == [f"ok socket {shown} port 15555 takes requests"]


def test_door_closed(tmp_path: Path) -> None:
    """A connection is no listener, nor is one at another port; what to do depends on what is installed."""
    looked = Looked(tmp_path)
    listens(looked, LOOPBACK, 15555, "01")
    listens(looked, LOOPBACK6, 15556)
    assert not checks_unit.door(looked.report, looked.host, None, 15555)
    looked.put("/usr/lib/systemd/system/s3daemon.service")
    assert not checks_unit.door(looked.report, looked.host, PLAIN, 15555)
    assert looked.lines == [
        "FAIL socket nothing listens at port 15555: start s3daemon",
        "FAIL socket nothing listens at port 15555: systemctl enable --now s3daemon.socket s3daemon.service",
    ]


def test_door_of_the_socket_unit(tmp_path: Path) -> None:
    """Where systemd says where it listens, that counts; doors that are Unix sockets have no port."""
    looked = Looked(tmp_path)
    with_systemctl(looked, {"s3daemon.socket": "127.0.0.1:7777 (Stream)\n/run/s3daemon.socket (Stream)"})
    listens(looked, LOOPBACK, 7777)
    assert checks_unit.door(looked.report, looked.host, PLAIN, 15555)


def test_door_of_somebody_else(tmp_path: Path) -> None:
    """What listens at its port while the socket unit is down is not the service's door."""
    looked = Looked(tmp_path)
    looked.put("/usr/lib/systemd/system/s3daemon.service")
    looked.host = dataclasses.replace(looked.host, systemctl=lambda *words: "failed" if "is-active" in words else "")
    listens(looked, LOOPBACK, 15555)
    assert not checks_unit.door(looked.report, looked.host, PLAIN, 15555)
    assert looked.one("socket").startswith("FAIL socket s3daemon.socket is failed, and something else has its port")


def test_door_to_the_network(tmp_path: Path) -> None:
    """A door that is open to all is not overlooked."""
    looked = Looked(tmp_path)
    listens(looked, ANY, 15555)
    assert checks_unit.door(looked.report, looked.host, None, 15555)
    assert looked.one("warn").startswith("warn socket 0.0.0.0 port 15555 is open to the network")


def answers(status: dict[str, object] | S3daemonError) -> Callable[[str], dict[str, object]]:
    """A daemon that says that."""

    def ask(command: str) -> dict[str, object]:
        assert command == "status"
        if isinstance(status, S3daemonError):
            raise status
        return status

    return ask


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"status": "0 in flight", "held": "", "away": False, "failed": 0, "spool": ""}, "ok daemon 0 in flight"),
        ({"status": "HELD, TLSRefused", "held": "TLSRefused"}, "FAIL daemon HELD, TLSRefused: mend it"),
        ({"status": "refusing", "spool": "SpoolFull"}, "FAIL daemon refusing: mend it"),
        ({"status": "endpoint AWAY", "away": True}, "warn daemon endpoint AWAY"),
        ({"status": "3 failed", "failed": 3}, "warn daemon 3 failed"),
        (S3daemonError("NotPermitted", "not yours"), "note daemon not yours"),
        (S3daemonError("NoAnswer", "said nothing"), "FAIL daemon said nothing"),
    ],
)
def test_daemon(tmp_path: Path, status: dict[str, object] | S3daemonError, said: str) -> None:
    """What it says of itself, judged."""
    looked = Looked(tmp_path)
    checks_unit.daemon(looked.report, answers(status), listening=True, activated=True)
    (line,) = looked.lines
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("listening", "activated", "level"), [(True, True, "note"), (True, False, "FAIL"), (False, True, "note")]
)
def test_no_daemon(tmp_path: Path, listening: bool, activated: bool, level: str) -> None:
    """Behind systemd's socket that is all right; behind a socket that nobody activates, somebody else has the port."""
    looked = Looked(tmp_path)
    absent = NoDaemonError("NoDaemon", "no daemon listens on X")
    checks_unit.daemon(looked.report, answers(absent), listening=listening, activated=activated)
    assert looked.levels() == {level}


def installed(root: Path, unit: Unit, mode: int = 0o600) -> Looked:
    """A host with the package's files, all in force."""
    looked = Looked(root)
    looked.put(f"/usr/lib/systemd/system/{'s3daemon@' if unit.port else 's3daemon'}.service")
    wanted = "# why\n-net.core.default_qdisc = fq\nnet.ipv4.tcp_wmem = 4096 16384 67108864\n"
    looked.put("/usr/lib/sysctl.d/60-s3daemon.conf", wanted)
    looked.put(str(unit.env_file)).chmod(mode)
    uid = os.geteuid()
    looked.host = Host(root, uid=0, user=lambda name: account(name, uid) if name == "s3daemon" else None)
    with_systemctl(looked, {f"{unit.name}.socket": "enabled", f"{unit.name}.service": "enabled"})
    return looked


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of root")


@needs_root
@pytest.mark.parametrize("unit", [PLAIN, OTHER], ids=lambda unit: unit.name)
def test_installation(tmp_path: Path, unit: Unit) -> None:
    """As the package installs it, for the plain service and for an instance."""
    looked = installed(tmp_path, unit)
    checks_unit.installation(looked.report, looked.host, unit, settings())
    assert looked.levels() == {"ok"}
    assert [line.split()[2] for line in looked.lines] == [
        str(unit.env_file),
        f"{unit.name}.socket",
        f"{unit.name}.service",
        "/usr/lib/sysctl.d/60-s3daemon.conf",
    ]


def test_not_installed(tmp_path: Path) -> None:
    """In a checkout that is said, and nothing else."""
    looked = Looked(tmp_path)
    checks_unit.installation(looked.report, looked.host, PLAIN, None)
    assert looked.lines == ["note service s3daemon.service is not installed here"]


def test_environment_file_of_all(tmp_path: Path) -> None:
    """The keys are in it."""
    looked = installed(tmp_path, PLAIN, 0o640)
    checks_unit.installation(looked.report, looked.host, PLAIN, None)
    assert looked.one("FAIL").startswith("FAIL service /etc/sysconfig/s3daemon: mode 0640")


def test_no_user(tmp_path: Path) -> None:
    """Without its user the service does not start."""
    looked = installed(tmp_path, PLAIN)
    host = Host(tmp_path, uid=0, user=lambda name: None, systemctl=lambda *words: "")
    checks_unit.installation(looked.report, host, PLAIN, None)
    assert looked.one("no user s3daemon").startswith("FAIL")


def test_not_enabled(tmp_path: Path) -> None:
    """What a reboot would cost is said of each."""
    looked = installed(tmp_path, PLAIN)
    with_systemctl(looked, {"s3daemon.socket": "disabled", "s3daemon.service": "disabled"})
    checks_unit.installation(looked.report, looked.host, PLAIN, None)
    assert "clients are refused" in looked.one("s3daemon.socket is disabled")
    assert "a backlog waits" in looked.one("s3daemon.service is disabled")


def test_sysctl_file_not_in_force(tmp_path: Path) -> None:
    """A file that another overrules, or that nobody applied, does nothing; an operator's own replaces the package's."""
    looked = installed(tmp_path, PLAIN)
    looked.put("/proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304")
    checks_unit.installation(looked.report, looked.host, PLAIN, None)
    assert "is not in force for net.ipv4.tcp_wmem: " in looked.one("warn")
    looked.put("/etc/sysctl.d/60-s3daemon.conf", "net.ipv4.tcp_wmem = 4096 16384 4194304")
    checks_unit.installation(looked.report, looked.host, PLAIN, None)
    assert looked.one("/etc/sysctl.d").startswith("ok")


def test_ca_bundle_that_the_user_cannot_read(tmp_path: Path) -> None:
    """Root can read what the service's user cannot."""
    looked = installed(tmp_path, PLAIN)
    os_uid = os.geteuid()
    host = Host(tmp_path, uid=0, user=lambda name: account(name, os_uid + 1), systemctl=lambda *words: "")
    tmp_path.chmod(0o755)
    bundle = looked.put("/etc/pki/ca.pem")
    checks_unit.installation(looked.report, host, PLAIN, settings(ca_bundle="/etc/pki/ca.pem"))
    assert not [line for line in looked.lines if "AWS_CA_BUNDLE" in line]
    bundle.chmod(0o600)
    checks_unit.installation(looked.report, host, PLAIN, settings(ca_bundle="/etc/pki/ca.pem"))
    assert looked.one("AWS_CA_BUNDLE").startswith("warn")


def test_environ(tmp_path: Path) -> None:
    """What systemd adds for an instance; credentials only where it has made some."""
    host = Host(tmp_path)
    assert OTHER.port == 15556
    assert OTHER.environ(host) == {
        "STATE_DIRECTORY": "/var/lib/s3daemon@15556",
        "RUNTIME_DIRECTORY": str(tmp_path / "run/s3daemon@15556"),
    }
    (tmp_path / "run/credentials/s3daemon@15556.service").mkdir(parents=True)
    assert "CREDENTIALS_DIRECTORY" in OTHER.environ(host)
