"""The packages, built from the tree and installed in a booted system; Ceph's gateway is the store.

The behaviour of the units is tested in test_systemd.py; here is what packages add: installation, upgrade, removal, and
that the daemon which runs is the packaged one.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from lab import rpm
from lab.box import Box, box
from lab.env import TREE, UnavailableError
from lab.installed import Service, until, wait_for_one_more_each, write_file
from lab.relay import Relay
from lab.rgw import Gateway
from lab.rpm import Builds, Packages
from lab.s3 import S3Server

SMALL = "/data/small.json"
MEDIUM = "/data/medium.fits"
LARGE = "/data/large.fits"
LARGE_BYTES = 500_000_000

#: A field of every entry about a transfer, failed attempts included.
TRANSFER = "S3DAEMON_TRANSFER_ID"

#: Systemd's messages about a unit's jobs, by MESSAGE_ID.
JOBS = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": "starting",
    "39f53479d3a045ac8e11786248231fbf": "started",
    "be02cf6855d2428ba40df7e9d022f03d": "failed",
    "de5b426a63be47a7b6ac3eaac82e2f6f": "stopping",
    "9d1aaa27d60140bd96365438aad20286": "stopped",
    "7ad2d189f7e94e70a38c781354912448": "success",
    "98e322203f7a4ed290d09fe03c09fe15": "exited",
    "d9b373ed55a64feb8242e02dbe79a49c": "failure",
}


@pytest.fixture(scope="module")
def packages(builds: Builds) -> Packages:
    """This version's."""
    try:
        return builds.this.result()
    except UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def later(builds: Builds) -> Packages:
    """The next version's."""
    return builds.later.result()


@pytest.fixture(scope="module")
def system() -> Iterator[Box]:
    """A booted system of this module's own that has never seen the daemon."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(box())
        except UnavailableError as missing:
            pytest.skip(str(missing))
        write_file(made, SMALL, os.urandom(3_000))
        write_file(made, MEDIUM, os.urandom(20_000_000))
        write_file(made, LARGE, b"")
        os.truncate(made.root / LARGE[1:], LARGE_BYTES)
        yield made


@pytest.fixture
def service(system: Box, packages: Packages) -> Iterator[Service]:
    """Installed by the package and stopped; what a test leaves is removed, the package stays."""
    with rpm.installed(system, packages) as made:
        yield made


def etag(server: S3Server, bucket: str, key: str) -> str:
    with closing(server.client()) as client:
        return str(client.head_object(Bucket=bucket, Key=key)["ETag"]).strip('"')


def test_from_nothing_to_an_object(system: Box, packages: Packages, rgw: Gateway, bucket: str) -> None:
    """`rpm -U`, one edited file, `systemctl enable --now`, `check`, `send`: object and record are there."""
    output = packages.install(system)
    assert not re.search("error|fail|warn", output, re.I), output
    assert system.exec("s3daemon", "--version").stdout == f"s3daemon {packages.version}\n"
    assert system.exec("send", "--version").stdout == f"send {packages.version}\n"
    units = rpm.unit_files(system)
    assert system.exec("systemctl", "is-enabled", *units, check=False).stdout == "disabled\n" * len(units)
    running = system.exec("systemctl", "is-active", "s3daemon.socket", "s3daemon.service", check=False)
    assert running.stdout == "inactive\n" * 2
    assert system.exec("stat", "-c", "%a %U %G", "/etc/sysconfig/s3daemon").stdout == "600 root root\n"
    assert system.exec("id", "-un", "s3daemon").stdout == "s3daemon\n"
    assert "s3daemon" in system.exec("journalctl", "--list-catalog").stdout
    instances = [name.replace("@.", "@15556.") for name in units]
    verified = system.exec("systemd-analyze", "verify", "--man=no", *instances)
    assert verified.stdout + verified.stderr == ""

    with rpm.installed(system, packages) as service:
        rpm.edit(service, rgw)
        system.exec("systemctl", "enable", "--now", service.socket, service.unit)
        checked = system.exec("s3daemon", "check", f"{bucket}/scratch").stdout
        assert "FAIL" not in checked
        assert "warn service" not in checked
        for known in (
            "from /etc/sysconfig/s3daemon: ", f"127.0.0.1:{service.port} takes requests",
            "/var/lib/s3daemon, mode 0700", "ok   bucket      stored in",
        ):  # fmt: skip
            assert known in checked
        service.send(SMALL, f"store/{bucket}/first")
        (record,) = service.records("first")
        assert record["S3DAEMON_OUTCOME"] == "stored"
        assert record["S3DAEMON_ETAG"] == etag(rgw, bucket, "first")
        # The unit's hardening does not keep it from files anywhere.
        for path in ("/home/observer/a", "/data/a", "/tmp/a"):
            system.exec("mkdir", "-p", path.rpartition("/")[0])
            system.exec("tee", path, text_in=path)
            service.send(path, f"store/{bucket}/from{path}")
        judged = system.exec("systemd-analyze", "security", "--no-pager", service.unit).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged)
        assert exposure
        assert float(exposure[1]) <= 1.5
        # Commands that root runs leave no file that the service's user could not write.
        service.systemctl("stop", service.socket, service.unit)
        for command in (("queue",), ("queue", "retry", "--all"), ("check",)):
            system.exec("s3daemon", *command, check=command != ("check",))
        assert system.exec("find", "/var/lib/s3daemon", "!", "-user", "s3daemon").stdout == ""


#: Requirements that every Enterprise Linux and Fedora fulfils, or these packages themselves.
REQUIRED = (
    r"/bin/sh|/usr/bin/python3|/usr/lib/s3daemon/bin/python3|ca-certificates|systemd( >= \d+)?|python3"
    r"|python\(abi\) = 3\.\d+|config\(s3daemon\) = .*|s3daemon(-send)?(\(x86-64\))? = .*|rpmlib\(.*|rtld\(GNU_HASH\)"
    r"|(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|z|systemd)|ld-linux-x86-64)\.so\.\d(\([A-Z_0-9.]*\))?\(64bit\)"
)


def test_what_the_packages_require_and_provide(packages: Packages) -> None:
    """The bundled libraries appear in no requirement, and no other package can depend on them."""
    for file in (*packages.files, *packages.report):
        wanted = rpm.query(file, "--requires")
        assert [one for one in wanted if not re.fullmatch(REQUIRED, one)] == []
        own = r"s3daemon.*|config\(s3daemon\) = .*|bundled\(python3dist\(.*|(user|group)\(s3daemon\).*"
        assert [one for one in rpm.query(file, "--provides") if not re.fullmatch(own, one)] == []


def test_the_manual_pages_render(packages: Packages, tmp_path: Path) -> None:
    """Every page of packaging/man is in a package, groff renders it without a warning, and it has a name line."""
    for file in packages.files:
        rpm.extract(file, "*/man/*", tmp_path)
    pages = [page for page in tmp_path.rglob("*") if page.is_file()]
    assert {page.name.removesuffix(".gz") for page in pages} == {
        "s3daemon.8", "s3daemon.env.5", "s3daemon-protocol.7", "s3daemon-security.7", "s3daemon-tuning.7", "send.1",
    }  # fmt: skip
    assert len(pages) == len(list((TREE / "packaging/man").glob("*.rst")))
    for page in pages:
        warnings, text = rpm.render(page)
        assert warnings == ""
        assert re.search(r"^Name\n +\S+ - \S", text, re.M)


def test_plots_come_with_their_own_package(service: Service, packages: Packages, rgw: Gateway, bucket: str) -> None:
    """Without s3daemon-report the error for --plot names it; with it, .png and .svg are drawn; it can be removed."""
    box = service.box
    service.configure(rgw)
    service.systemctl("start", service.socket)
    service.send("--tag", "one", SMALL, f"store/{bucket}/drawn")
    service.records("drawn")
    report = ("s3daemon", "report", "--since", "-1h", "--plot")
    refused = box.exec(*report, "/root/night.png", check=False)
    assert (refused.returncode, "s3daemon-report" in refused.stderr) == (1, True), refused.stderr
    packages.install_report(box)
    try:
        for name, begins in (("night.png", b"\x89PNG"), ("night.svg", b"<?xml")):
            drawn = box.exec(*report, f"/root/{name}")
            assert "Traceback" not in drawn.stderr
            content = (box.root / "root" / name).read_bytes()
            assert content.startswith(begins)
            assert len(content) > 20_000
    finally:
        box.exec("rpm", "-e", "s3daemon-report")
    assert not (box.root / "usr/lib/s3daemon-report").exists()
    assert list((box.root / "usr/lib/s3daemon").rglob("*.pth")) == []
    service.send(SMALL, f"store/{bucket}/drawn")


def test_rpmlint(builds: Builds) -> None:
    """rpmlint finds nothing except what packaging/rpmlintrc allows, with a reason each."""
    try:
        output = builds.lint.result()
    except UnavailableError as missing:
        pytest.skip(str(missing))
    assert re.search(r"4 packages and 1 specfiles checked; 0 errors, 0 warnings", output), output


def test_the_unix_socket(service: Service, rgw: Gateway, bucket: str) -> None:
    """The Unix socket is off until it is enabled; after a restart of the service it accepts requests."""
    service.configure(rgw)
    service.systemctl("enable", "--now", service.socket, service.unit)
    service.systemctl("enable", "s3daemon-unix.socket")
    service.systemctl("restart", service.unit)
    service.box.exec("send", SMALL, f"store/{bucket}/unix", env={"S3DAEMON_HOST": "/run/s3daemon.socket"})
    assert rgw.keys(bucket, "unix") == {"unix"}


@pytest.mark.parametrize("way", ["the environment file", "credentials", "encrypted credentials"])
def test_only_the_daemon_can_read_its_secrets(service: Service, rgw: Gateway, bucket: str, way: str) -> None:
    """Keys from the environment file, or from credentials and no such file: the daemon alone sees them."""
    box = service.box
    account = rgw.new_account()
    theirs = account.new_bucket()
    with ExitStack() as stack:
        if way != "the environment file":
            lines = []
            for name, value in account.settings().items():
                if name == "AWS_CA_BUNDLE":
                    box.put(Path(value), "/etc/s3daemon-ca.pem")
                    value = "/etc/s3daemon-ca.pem"
                if way == "encrypted credentials":  # as the manual page has it; the box has no TPM
                    command = ("systemd-creds", "encrypt", "--with-key=host", "-p", f"--name={name.lower()}", "-", "-")
                    lines.append(box.exec(*command, text_in=value).stdout)
                    continue
                path = write_file(box, f"/etc/s3daemon/{name.lower()}", value.encode())
                (box.root / path[1:]).chmod(0o600)
                lines.append(f"LoadCredential={name.lower()}:{path}")
            service.environment_file.unlink(missing_ok=True)
            stack.enter_context(service.drop_in("\n".join(lines)))
        else:
            service.configure(account)
        service.systemctl("start", service.socket, service.unit)
        service.send(SMALL, f"store/{theirs}/a")
        refused = service.send("/data/none", f"store/{theirs}/b", check=False)
        assert refused.returncode == 1
        service.systemctl("reload", service.unit)
        secret = account.secret_key
        pid = service.show("MainPID")
        seen = {
            "show": service.systemctl("show", service.unit).stdout,
            "status": service.systemctl("status", service.unit).stdout,
            "journal": box.exec("journalctl", "-o", "verbose", "--all").stdout,
            "commands": box.exec("ps", "-eww", "-o", "args").stdout,
            "reply": refused.stderr,
        }
        assert [name for name, text in seen.items() if secret in text] == []
        holders = [of for of in rpm.processes(box) if secret.encode() in rpm.environment_of(box, of)]
        assert holders == ([pid] if way == "the environment file" else [])
        assert box.exec("stat", "-c", "%a %U", f"/proc/{pid}/environ").stdout == "400 s3daemon\n"
        # The only limit at which the kernel passes a crashed process to no handler; the unit has the reason.
        assert re.search(r"^Max core file size +1 +1 ", box.exec("cat", f"/proc/{pid}/limits").stdout, re.M)


def test_the_daemon_needs_none_of_its_files_once_it_serves(service: Service, rgw: Gateway, bucket: str) -> None:
    """With its directory gone, as between two versions in an upgrade, it stores, fails and drains all the same."""
    box = service.box
    service.configure(rgw)
    service.systemctl("start", service.socket, service.unit)
    home = box.root / "usr/lib/s3daemon"
    away = home.rename(home.with_name("s3daemon-away"))
    try:
        service.send(MEDIUM, f"store/{bucket}/without")
        service.send("--tag", "extended form", SMALL, f"store/{bucket}/without-too")
        for file, destination, code in (
            ("/data/none", f"store/{bucket}/x", "NoSuchFile"),
            (SMALL, "store/no-such-bucket/x", "NoSuchBucket"),
            (SMALL, f"store/{bucket}", "send"),
        ):
            assert code in service.send(file, destination, check=False).stderr
        service.systemctl("stop", service.socket, service.unit)
        assert service.show("Result") == "success"
    finally:
        away.rename(home)
    messages = "\n".join(entry["MESSAGE"] for entry in service.journal())
    assert not re.search("Traceback|ImportError|ModuleNotFound|No such file or directory: '/usr", messages), messages


def test_keys_are_rotated_in_the_middle_of_500_megabytes(
    service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str
) -> None:
    """A reload with new keys, after one with a broken file, while 500 MB are on their way: they arrive, once."""
    network, store = line
    service.configure(store)
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/warm")
    before = service.main_pid()
    network.hold(after=LARGE_BYTES // 4)
    with service.sending(LARGE, f"store/{bucket}/rotated") as client:
        assert network.blocked.wait(60)
        other = rgw.new_account()
        theirs = other.new_bucket()
        service.write("S3_ENDPOINT_URL='no end\n")
        assert service.systemctl("reload", service.unit, check=False).returncode != 0
        service.configure(S3Server(store.url, other.access_key, other.secret_key, other.ca))
        service.systemctl("reload", service.unit)
        network.open()
        assert (client.wait(120), client.lines()) == (0, [])
    (record,) = service.records("rotated")
    assert (record["S3DAEMON_ATTEMPTS"], record["S3DAEMON_SIZE_BYTES"]) == ("1", str(LARGE_BYTES))
    service.send(SMALL, f"store/{theirs}/with-new-keys")
    assert service.main_pid() == before
    with_client = rgw.client()
    with_client.delete_object(Bucket=bucket, Key="rotated")  # the gateway keeps it in memory
    with_client.close()


def test_a_reboot_delivers_what_was_accepted(
    service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str
) -> None:
    """100 transfers accepted while the store was away are delivered after a reboot, and no client comes."""
    network, store = line
    service.configure(store)
    service.systemctl("enable", "--now", service.socket, service.unit)
    network.refuse()
    accept(service, bucket, "reboot", 100)
    service.box.reboot()
    assert rgw.keys(bucket, "reboot/") == set()
    network.open()
    until(lambda: rgw.keys(bucket, "reboot/"), lambda found: len(found) == 100, "100 objects", timeout=120)
    until(
        lambda: {entry["S3DAEMON_KEY"] for entry in service.journal("S3DAEMON_OUTCOME=stored")},
        lambda found: sum(key.startswith("reboot/") for key in found) == 100,
        "100 records",
    )
    assert service.show("ActiveState", service.socket) == "active"
    service.systemctl("disable", service.unit)
    assert service.systemctl("is-enabled", service.socket, service.unit, check=False).stdout.split() == ["disabled"] * 2


def accept(service: Service, bucket: str, prefix: str, count: int) -> None:
    """Have so many transfers accepted, without waiting for them."""
    loop = f"for ((n = 0; n < {count}; n++)); do send --no-wait {SMALL} store/{bucket}/{prefix}/$n || exit; done"
    with service.running("bash", "-c", loop) as sender:
        assert (sender.wait(120), sender.lines()) == (0, [])


def nothing_is_left(system: Box) -> None:
    """Wait until systemd has noticed that what it ran has ended."""
    until(lambda: rpm.leftovers(system), lambda left: left == [], "removal without leftovers", timeout=20)


def test_removal_keeps_what_is_not_delivered(
    system: Box, packages: Packages, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str
) -> None:
    """`rpm -e` leaves no unit, no instance and no process, but a spool with transfers in it, and reports that.

    Installed again, they are delivered. An empty spool goes with the package.
    """
    network, store = line
    with rpm.installed(system, packages) as service:
        second = rpm.instance(service)
        service.configure(store)
        second.configure(rgw.plain)
        for each in (service, second):
            each.systemctl("enable", "--now", each.socket, each.unit)
        second.send(SMALL, f"store/{bucket}/second")
        network.refuse()
        accept(service, bucket, "kept", 3)
        output = rpm.remove(system)
        assert "s3daemon: /var/lib/s3daemon is kept; transfers in it that are not delivered: 3" in output
        assert f"/var/lib/{second.name}" not in output
        nothing_is_left(system)
        assert (system.root / "var/lib/s3daemon/spool.db").exists()
        assert not (system.root / f"var/lib/{second.name}").exists()

        packages.install(system)
        service.configure(store)
        network.open()
        service.systemctl("enable", "--now", service.socket, service.unit)
        until(lambda: rgw.keys(bucket, "kept/"), lambda found: len(found) == 3, "3 objects")
        service.systemctl("stop", service.socket, service.unit)
        output = rpm.remove(system)
        assert "warning: /etc/sysconfig/s3daemon saved as /etc/sysconfig/s3daemon.rpmsave\n" in output
        assert "is kept" not in output
        nothing_is_left(system)
        assert not (system.root / "var/lib/s3daemon").exists()


#: Sends until the file `enough` exists, and prints the outcome of each.
LOOP = """
for ((n = 1; n > 0; n++)); do
    [[ -e /data/enough ]] && exit
    if send {file} store/{bucket}/{prefix}$n; then echo "sent {prefix}$n"; else echo "failed {prefix}$n"; fi
done
"""


def test_an_upgrade_disturbs_no_client(service: Service, later: Packages, rgw: Gateway, bucket: str) -> None:
    """`rpm -U` while eight loops send, and one to an instance with another store: no send is refused, fails or is lost.

    Edits are kept, the sockets stay, and each service has one clean stop and start.
    """
    box = service.box
    other = rgw.new_account()
    theirs = other.new_bucket()
    second = rpm.instance(service)
    service.configure(rgw)
    edited = service.environment_file.read_text()
    second.configure(S3Server(rgw.plain.url, other.access_key, other.secret_key))
    services = (service, second)
    for each in services:
        each.systemctl("enable", "--now", each.socket, each.unit)
    activated = [each.show("ActiveEnterTimestampMonotonic", each.socket) for each in services]
    before = [each.show("InvocationID") for each in services]
    began = time.time()
    enough = box.root / "data/enough"
    with ExitStack() as stack:
        loops = []
        for number in range(9):
            to, into = (second, theirs) if number == 8 else (service, bucket)
            script = LOOP.format(file=SMALL, bucket=into, prefix=f"upgrade/{number}-")
            loops.append(stack.enter_context(to.running("bash", "-c", script)))
        stack.callback(enough.unlink)
        wait_for_one_more_each(loops)
        output = later.install(box)
        wait_for_one_more_each(loops)
        enough.touch()
        assert [loop.wait(60) for loop in loops] == [0] * 9
    lines = [line for loop in loops for line in loop.lines()]
    assert [line for line in lines if not line.startswith("sent ")] == []
    stored = rgw.keys(bucket, "upgrade/") | other.keys(theirs, "upgrade/")
    assert {line.removeprefix("sent ") for line in lines} == stored

    assert "/etc/sysconfig/s3daemon.rpmnew" in output
    assert service.environment_file.read_text() == edited
    assert box.exec("s3daemon", "--version").stdout == f"s3daemon {later.version}\n"
    assert [each.show("ActiveEnterTimestampMonotonic", each.socket) for each in services] == activated
    for each, old in zip(services, before, strict=True):
        assert each.show("InvocationID") != old
        assert each.show("NRestarts") == "0"
        kinds = [entry.get("MESSAGE_ID", "") for entry in each.journal(f"--since=@{began:.6f}")]
        jobs = [JOBS[kind] for kind in kinds if kind in JOBS]
        assert jobs == ["stopping", "success", "stopped", "starting", "started"]
        # Of the daemon itself: not of systemd, in whose eyes the box's kernel is odd, nor of a transfer.
        warned = each.journal(f"--since=@{began:.6f}", "-p", "warning", "_COMM=s3daemon")
        assert [entry["MESSAGE"] for entry in warned if TRANSFER not in entry] == []
    second.systemctl("stop", second.socket, second.unit)
    service.send(SMALL, f"store/{bucket}/after-the-other-stopped")
