"""The unit files have the settings that the daemon relies on, and none that would break it; systemd accepts them.

What only a running systemd shows is tested in the booted container (tests/system).
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from s3daemon.config.settings import MAX_CLIENTS
from s3daemon.journal import QUEUE_LIMIT
from s3daemon.model.record import MessageId
from s3daemon.service import FILE_THREADS
from s3daemon.systemd.descriptors import WANTED
from s3daemon.systemd.sockets import BACKLOG, SOCKET_NAMES

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
SERVICE = SYSTEMD / "s3daemon.service"
SOCKETS = [SYSTEMD / "s3daemon.socket", SYSTEMD / "s3daemon@.socket"]
UNIX = SYSTEMD / "s3daemon-unix.socket"
HTTP = SYSTEMD / "s3daemon-http.socket"
#: The sockets of an instance by those of the first one, and where each listens.
OF_INSTANCES = {
    SYSTEMD / "s3daemon.socket": ("127.0.0.1:15555", "127.0.0.1:%i"),
    UNIX: ("/run/s3daemon.socket", "/run/s3daemon@%i.socket"),
    HTTP: ("127.0.0.1:15556", "127.0.0.2:%i"),
}
UNITS = [SERVICE, *SOCKETS, UNIX, HTTP, SYSTEMD / "s3daemon-unix@.socket", SYSTEMD / "s3daemon-http@.socket"]

#: The default of S3DAEMON_DRAIN_TIMEOUT.
DRAIN_S = 20


def settings(path: Path) -> dict[str, list[str]]:
    """Map `Section.Name` to its values in order. Unit files repeat names, which configparser cannot read."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(f"{section}.{name}", []).append(value)
    return found


def service(name: str) -> str:
    """Return the only value of one of the service's settings."""
    (value,) = settings(SERVICE)[name]
    return value


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_every_line_is_a_setting_a_section_or_a_comment(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert re.fullmatch(r"|#.*|\[[A-Z][a-z]+\]|[A-Za-z0-9]+=.*", line), line


def test_one_service_text_serves_all_instances() -> None:
    """%N makes one text serve the service and its instances; the spec installs it under both names."""
    assert not re.search(r"^[^#\n]*=.*%[iIpP]", SERVICE.read_text(), re.MULTILINE)
    assert [path.name for path in SYSTEMD.glob("*.service")] == ["s3daemon.service"]


def test_no_two_files_are_identical() -> None:
    contents = [path.read_bytes() for path in SYSTEMD.iterdir()]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("path", OF_INSTANCES, ids=lambda path: path.name)
def test_the_sockets_of_instances_differ_only_in_where_they_listen(path: Path) -> None:
    """An instance has every socket that the first one has, under its own name and for its own service."""
    plain, instance = (settings(path), settings(path.with_stem(f"{path.stem}@")))
    listens = tuple(found.pop("Socket.ListenStream")[0] for found in (plain, instance))
    assert listens == OF_INSTANCES[path]
    for name in {"Socket.Service", "Install.WantedBy", "Unit.PartOf", "Unit.After"} & plain.keys():
        ours, theirs = plain.pop(name)[0], instance.pop(name)[0]
        assert theirs == re.sub(r"s3daemon\.(service|socket)", r"s3daemon@%i.\1", ours)
    del plain["Unit.Description"], instance["Unit.Description"]
    assert plain == instance


@pytest.mark.parametrize("path", SOCKETS, ids=lambda path: path.name)
def test_the_socket_survives_a_failing_service(path: Path) -> None:
    found = settings(path)
    assert found["Socket.FileDescriptorName"] == [SOCKET_NAMES[0]]
    assert found["Socket.Backlog"] == [str(BACKLOG)]
    assert found["Socket.TriggerLimitIntervalSec"] == ["0"]
    assert "Socket.Accept" not in found


def test_the_unix_socket() -> None:
    """It survives a failing service and restarts, and only members of a group may connect."""
    found, other = settings(UNIX), settings(SOCKETS[0])
    assert found["Socket.FileDescriptorName"] == [SOCKET_NAMES[2]]
    assert found["Install.WantedBy"] == ["sockets.target s3daemon.service"]
    assert found["Unit.After"] == ["s3daemon.socket"]
    assert found["Socket.SocketMode"] == ["0660"]
    assert found["Socket.ListenStream"] == ["/run/s3daemon.socket"]
    assert not found["Socket.ListenStream"][0].startswith("/run/s3daemon/")
    for name in ("Backlog", "Service", "TriggerLimitIntervalSec"):
        assert found[f"Socket.{name}"] == other[f"Socket.{name}"]


def test_the_http_socket() -> None:
    """It survives a failing service, has a name of its own, and listens on loopback only."""
    found, other = settings(HTTP), settings(SOCKETS[0])
    assert found["Socket.FileDescriptorName"] == [SOCKET_NAMES[1]]
    assert found["Install.WantedBy"] == ["sockets.target s3daemon.service"]
    assert found["Socket.ListenStream"] == ["127.0.0.1:15556"]
    for name in ("Backlog", "Service", "TriggerLimitIntervalSec"):
        assert found[f"Socket.{name}"] == other[f"Socket.{name}"]


@pytest.mark.parametrize("path", [UNIX, HTTP], ids=lambda path: path.name)
def test_stopping_the_plain_socket_stops_the_optional_ones(path: Path) -> None:
    """Else a scraper would start the service again right after `systemctl stop s3daemon.socket s3daemon.service`."""
    assert settings(path)["Unit.PartOf"] == ["s3daemon.socket"]


@pytest.mark.parametrize("path", [path for path in UNITS if path != SERVICE], ids=lambda path: path.name)
def test_a_socket_may_be_restarted_at_any_rate(path: Path) -> None:
    """Else it fails at the sixth start within ten seconds, and clients are refused until `systemctl reset-failed`."""
    assert settings(path)["Unit.StartLimitIntervalSec"] == ["0"]


def test_a_service_that_cannot_start_is_restarted_without_limit() -> None:
    assert service("Unit.StartLimitIntervalSec") == "0"
    # on-failure leaves out HUP, INT, TERM and PIPE: a signal by hand would end the service until a client comes.
    assert service("Service.Restart") == "always"
    assert service("Service.RestartSec") == "2"
    assert not {"Service.RestartPreventExitStatus", "Service.SuccessExitStatus"} & settings(SERVICE).keys()


def test_boot_does_not_wait() -> None:
    found = settings(SERVICE)
    assert "Unit.Wants" not in found
    assert found["Unit.Requires"] == ["%N.socket"]
    assert "network-online.target" not in found["Unit.After"][0]
    # The optional sockets name their service; Sockets= would make the service start them.
    assert "Service.Sockets" not in found


def test_notification_watchdog_and_limits() -> None:
    assert (service("Service.Type"), service("Service.NotifyAccess")) == ("notify", "main")
    assert service("Service.WatchdogSec") == "30"
    assert int(service("Service.TimeoutStopSec")) > DRAIN_S
    # Of both servers, those of the process before, and new ones; at the highest setting.
    assert int(service("Service.FileDescriptorStoreMax")) >= 2 * 2 * MAX_CLIENTS
    assert int(service("Service.LimitNOFILE")) == WANTED


def test_memory_and_threads_are_bounded_far_above_what_is_right() -> None:
    """Seven days of outage and a full journal fit, and all calls that a dead file system may block."""
    high, most = (int(service(f"Service.Memory{name}").removesuffix("G")) << 30 for name in ("High", "Max"))
    needed = (67 << 20) + 7 * 27_000 * 2200 + QUEUE_LIMIT * 2000 + 25 * (64 << 20)
    assert needed < high < most
    assert int(service("Service.TasksMax")) > FILE_THREADS + 100


def test_the_journal_drops_no_record() -> None:
    """An interval of 0 would mean the default, which keeps 10 000 entries in 30 s."""
    assert service("Service.LogRateLimitIntervalSec") == "1s"
    assert int(service("Service.LogRateLimitBurst")) >= 1_000_000


def test_secrets_are_readable_only_by_root_and_the_process() -> None:
    assert service("Service.EnvironmentFile") == "-/etc/sysconfig/%N"
    # core(5): a limit of 0 does not prevent a core from being piped; a limit of 1 does (the kernel's fs/coredump.c).
    assert service("Service.LimitCORE") == "1"
    assert service("Service.StateDirectoryMode") == service("Service.RuntimeDirectoryMode") == "0700"
    assert service("Service.User") == service("Service.Group") == "s3daemon"


def test_hardening_keeps_files_readable_and_users_distinct() -> None:
    found = settings(SERVICE)
    left_out = {"PrivateTmp", "PrivateUsers", "PrivateNetwork", "RootDirectory", "TemporaryFileSystem", "DynamicUser"}
    assert not {f"Service.{name}" for name in left_out} & found.keys()
    assert found["Service.ProtectHome"] == ["read-only"]
    assert found["Service.ProtectSystem"] == ["strict"]
    assert found["Service.CapabilityBoundingSet"] == [""]
    text = SERVICE.read_text()
    assert all(re.search(rf"^#   .*\b{name}=", text, re.MULTILINE) for name in left_out - {"DynamicUser"})


def test_the_catalog_explains_every_kind_of_entry() -> None:
    text = (SYSTEMD / "s3daemon.catalog").read_text()
    entries = re.findall(r"^-- ([0-9a-f]{32})\nSubject: .+\nDefined-By: s3daemon\n", text, re.MULTILINE)
    assert sorted(entries) == sorted(MessageId)


def test_the_presets_cover_every_unit() -> None:
    lines = [line for line in (SYSTEMD / "s3daemon.preset").read_text().splitlines() if not line.startswith("#")]
    names = [path.name for path in UNITS] + ["s3daemon@.service"]
    assert sorted(lines) == sorted(f"disable {name}" for name in names)


def test_every_sysctl_has_its_reason() -> None:
    for block in (SYSTEMD / "s3daemon.sysctl").read_text().strip().split("\n\n"):
        *reasons, last = block.splitlines()
        assert reasons or last.startswith("#"), block
        assert all(line.startswith("#") for line in reasons), block
        assert re.fullmatch(r"#.*|-?net\.[a-z0-9_.]+ = [a-z0-9 ]+", last), block


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
class TestSystemdAnalyze:
    """`systemd-analyze` on copies whose ExecStart= exists on this machine."""

    @pytest.fixture
    def units(self, tmp_path: Path) -> Path:
        """The units as they are installed, the template included."""
        for path in UNITS:
            names = [path.name, "s3daemon@.service"] if path == SERVICE else [path.name]
            for name in names:
                (tmp_path / name).write_text(path.read_text().replace("/usr/bin/s3daemon", "/bin/true"))
        return tmp_path

    @pytest.mark.parametrize(
        "name",
        ["s3daemon", "s3daemon@15557", "s3daemon-unix", "s3daemon-http", "s3daemon-unix@15557", "s3daemon-http@15557"],
    )
    def test_verify_is_silent(self, units: Path, name: str) -> None:
        service = re.sub("-(unix|http)", "", name)
        paths = [str(units / f"{service}.service"), str(units / f"{service}.socket"), str(units / f"{name}.socket")]
        # The manual pages are installed with the package, not in a checkout.
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *paths], capture_output=True, text=True, check=False, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_exposure_is_low(self, units: Path) -> None:
        done = subprocess.run(
            [
                "systemd-analyze",
                "security",
                "--offline=yes",
                "--threshold=15",
                "--no-pager",
                units / "s3daemon.service",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout[-200:] + done.stderr
