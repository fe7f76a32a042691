"""The service under a real systemd, in a booted system, with Ceph's gateway over HTTPS as its store.

What the units promise is seen from outside: clients, systemctl, the journal, and what is in the store afterwards.
"""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from lab.box import Box
from lab.installed import Service, installed, until, wait_for_one_more_each, write_file
from lab.relay import Relay
from lab.rgw import Gateway
from lab.s3 import S3Server

from s3daemon.model.record import MessageId

SMALL = "/data/small.json"
MEDIUM = "/data/medium.fits"


@pytest.fixture(scope="module")
def units(box: Box) -> Iterator[Service]:
    """Everything installed, nothing running, two files to send."""
    with installed(box) as service:
        write_file(box, SMALL, os.urandom(3_000))
        write_file(box, MEDIUM, os.urandom(20_000_000))
        yield service


@pytest.fixture
def service(units: Service, rgw: Gateway) -> Iterator[Service]:
    """The service configured for the gateway and stopped; what a test leaves is removed."""
    units.configure(rgw)
    try:
        yield units
    finally:
        units.stop()


def stored(server: S3Server, bucket: str, key: str) -> str:
    """The MD5 of an object's content."""
    with closing(server.client()) as client:
        return hashlib.md5(client.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest()


def md5_of(box: Box, path: str) -> str:
    return hashlib.md5((box.root / path.lstrip("/")).read_bytes()).hexdigest()


def field(entry: dict[str, Any], name: str) -> str:
    return str(entry[f"S3DAEMON_{name}"])


def test_the_first_send_starts_the_service(service: Service, rgw: Gateway, bucket: str) -> None:
    """With the socket alone started, a file of 20 MB is stored, and its record in the journal has every field."""
    service.systemctl("start", service.socket)
    assert service.show("ActiveState") == "inactive"
    done = service.send("--tag", "night 7", MEDIUM, f"store/{bucket}/first")
    assert done.stdout + done.stderr == ""
    assert stored(rgw, bucket, "first") == md5_of(service.box, MEDIUM)

    (record,) = service.records("first")
    assert {name.removeprefix("S3DAEMON_") for name in record if name.startswith("S3DAEMON_")} == {
        "TRANSFER_ID", "OUTCOME", "FILE", "BUCKET", "KEY", "TAG", "SIZE_BYTES", "START_USEC", "QUEUE_USEC",
        "UPLOAD_USEC", "TOTAL_USEC", "ATTEMPTS", "ENDPOINT", "ETAG", "RTT_USEC", "RETRANSMITS", "CONNECTION",
        "RECEIVER",
    }  # fmt: skip
    assert field(record, "OUTCOME") == "stored"
    assert field(record, "FILE") == MEDIUM
    assert field(record, "BUCKET") == bucket
    assert field(record, "TAG") == "night 7"
    assert field(record, "SIZE_BYTES") == "20000000"
    assert field(record, "ATTEMPTS") == "1"
    assert field(record, "ENDPOINT") == rgw.url
    assert field(record, "ETAG") == md5_of(service.box, MEDIUM)
    assert 0 < int(field(record, "UPLOAD_USEC")) <= int(field(record, "TOTAL_USEC"))
    assert abs(int(field(record, "START_USEC")) / 1e6 - time.time()) < 60
    assert re.match(rf"\d+\.\d{{6}} \d+\.\d+ sec - {bucket}/first ", record["MESSAGE"])
    assert record["PRIORITY"] == "6"
    assert record["_UID"] == service.box.exec("id", "-u", "s3daemon").stdout.strip()

    # Updated every two seconds. The gateway listens on 127.0.0.1; that localhost may also be ::1 is not mentioned.
    idle = re.compile(r"0 in flight; 0 pending; \d+ of 30 connections open")
    service.wait_show("StatusText", lambda text: idle.fullmatch(text) is not None)
    explained = service.box.exec("journalctl", "-x", "-u", service.unit, "S3DAEMON_KEY=first").stdout
    assert "Subject: A transfer ended: its object is stored, or it failed permanently" in explained
    assert "To see all entries of the transfer: journalctl S3DAEMON_TRANSFER_ID=ID" in explained


def test_systemd_analyze_finds_no_fault_in_the_units(service: Service) -> None:
    """`systemd-analyze` finds no fault, and an exposure of at most 1.5; the socket has the clients' default port."""
    names = [f"{name}.{kind}" for name in ("s3daemon", "s3daemon@15556") for kind in ("service", "socket")]
    found = service.box.exec("systemd-analyze", "verify", "--man=no", *names)
    assert found.stdout + found.stderr == ""
    for unit in (service.unit, "s3daemon@15556.service"):
        judged = service.box.exec("systemd-analyze", "security", "--no-pager", unit).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged)
        assert exposure
        assert float(exposure[1]) <= 1.5
    assert "ListenStream=127.0.0.1:15555" in service.systemctl("cat", service.socket).stdout


def test_what_the_service_can_reach(service: Service, bucket: str) -> None:
    """It sends world-readable files from anywhere; it can read no keys, passwords and files of root."""
    box = service.box
    write_file(box, "/root/private", b"secret")
    (box.root / "data/private").write_bytes(b"secret")
    (box.root / "data/private").chmod(0o600)
    hidden = (f"/etc/sysconfig/{service.name}", "/etc/shadow", "/root/private", "/data/private")
    service.systemctl("start", service.socket)
    for path in ("/home/observer/a", "/data/a", "/tmp/a", "/var/tmp/a", "/srv/a"):
        # Written there: what the host puts below /tmp, the box does not see.
        box.exec("mkdir", "-p", path.rpartition("/")[0])
        box.exec("tee", path, text_in=path)
        service.send(path, f"store/{bucket}/reach{path}")
    for path in hidden:
        refused = service.send(path, f"store/{bucket}/stolen", check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("send: NotReadable: ")

    # The same as the service sees it: its user, in its own view of the file system.
    as_service = ("nsenter", "-t", str(service.main_pid()), "--mount", "--",
                  "setpriv", "--reuid=s3daemon", "--regid=s3daemon", "--clear-groups", "--")  # fmt: skip
    for path in hidden:
        assert box.exec(*as_service, "cat", path, check=False).returncode != 0
    for path in ("/home/x", "/data/x", "/tmp/x", "/etc/x", "/usr/x", "/var/x"):
        assert box.exec(*as_service, "touch", path, check=False).returncode != 0
    box.exec(*as_service, "touch", f"/var/lib/{service.name}/x")
    # Nor can it run what was put there for it: no file outside of /usr is a program.
    box.exec("sh", "-c", "cp /usr/bin/true /tmp/program && chmod 755 /tmp/program && /tmp/program")
    assert box.exec(*as_service, "/usr/bin/true", check=False).returncode == 0
    assert box.exec(*as_service, "/tmp/program", check=False).returncode == 126

    status = box.exec("cat", f"/proc/{service.main_pid()}/status").stdout
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.M)
    assert re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s+(\w+)$", status, re.M) == ["0" * 16] * 4
    assert set(re.findall(r"^[UG]id:\s+(.+)$", status, re.M)).isdisjoint({"0\t0\t0\t0"})


def test_what_others_can_reach(service: Service, bucket: str) -> None:
    """Only the service and root can read the spool and use the control socket."""
    box = service.box
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/others")
    for place in (f"/var/lib/{service.name}", f"/run/{service.name}"):
        assert box.exec("stat", "-c", "%a %U %G", place).stdout.strip() == "700 s3daemon s3daemon"
    for place in (f"/var/lib/{service.name}/spool.db", f"/run/{service.name}/control"):
        assert box.exec("stat", "-c", "%a %U", place).stdout.strip() == "600 s3daemon"
    as_nobody = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--")
    assert box.exec(*as_nobody, "ls", f"/var/lib/{service.name}", check=False).returncode != 0
    denied = box.exec(*as_nobody, "s3daemon", "queue", check=False)
    assert denied.returncode != 0
    assert "Traceback" not in denied.stderr
    assert box.exec("s3daemon", "queue").returncode == 0


#: Sends until the file `enough` exists, and prints the outcome of each.
LOOP = """
for ((n = 1; n > 0; n++)); do
    [[ -e /data/enough ]] && exit
    if send {file} store/{bucket}/{prefix}$n; then echo "sent {prefix}$n"; else echo "failed {prefix}$n"; fi
done
"""


@pytest.mark.parametrize(
    "disturbance", ["restart s3daemon.service", "reload s3daemon.service", "daemon-reload", "daemon-reexec"]
)
def test_clients_notice_nothing(service: Service, rgw: Gateway, bucket: str, disturbance: str) -> None:
    """While eight loops send, the service or systemd itself restarted or reloaded: none is refused, none fails."""
    service.systemctl("start", service.socket)
    prefix = disturbance.replace(" ", "-")
    enough = service.box.root / "data/enough"
    with ExitStack() as stack:
        scripts = [LOOP.format(file=SMALL, bucket=bucket, prefix=f"{prefix}/{number}-") for number in range(8)]
        loops = [stack.enter_context(service.running("bash", "-c", script)) for script in scripts]
        stack.callback(enough.unlink)
        for _ in range(4):
            wait_for_one_more_each(loops)
            service.systemctl(*disturbance.split())
        wait_for_one_more_each(loops)
        enough.touch()
        assert [loop.wait(60) for loop in loops] == [0] * 8
    lines = [line for loop in loops for line in loop.lines()]
    assert [line for line in lines if not line.startswith("sent ")] == []
    assert {line.removeprefix("sent ") for line in lines} == rgw.keys(bucket, prefix)


def test_a_hang_up_changes_nothing(service: Service, rgw: Gateway, bucket: str) -> None:
    """The same process goes on, and its journal says what to do instead."""
    service.systemctl("start", service.socket, service.unit)
    before = service.main_pid()
    service.systemctl("kill", "--kill-who=main", "--signal=HUP", service.unit)
    service.send(SMALL, f"store/{bucket}/hang-up")
    assert service.main_pid() == before
    assert any("systemctl reload s3daemon" in entry["MESSAGE"] for entry in service.journal("-p", "warning..warning"))


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("restart", id="restart"),
        pytest.param("kill --kill-who=main --signal=KILL", id="killed"),
        # By hand, or by a guard against low memory: systemd did not ask for the end.
        pytest.param("kill --kill-who=main --signal=TERM", id="terminated"),
        # An event loop that does not turn: nothing but the watchdog ends it.
        pytest.param("kill --kill-who=main --signal=STOP", id="stuck"),
    ],
)
def test_waiting_clients_get_their_answer_from_the_next_process(
    service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str, end: str
) -> None:
    """After a restart, a kill, or the watchdog in the middle of uploads, the new process answers waiting clients."""
    network, far = line
    service.configure(far, S3DAEMON_DRAIN_TIMEOUT="1s")
    with ExitStack() as stack:
        stack.enter_context(service.drop_in("WatchdogSec=3s\nRestartSec=500ms"))
        service.systemctl("start", service.socket)
        service.send(SMALL, f"store/{bucket}/warm")
        network.hold()
        clients = {}
        for number, file in enumerate((SMALL, SMALL, MEDIUM)):
            for form, options in (("plain", ()), ("extended", ("--tag", "dark"))):
                key = f"{end[-4:]}/{form}-{number}"
                clients[key] = stack.enter_context(service.sending(*options, file, f"store/{bucket}/{key}"))
        service.wait_show("NFileDescriptorStore", "6")
        before = service.main_pid()
        service.systemctl(*end.split(), service.unit)
        after = service.wait_show("MainPID", lambda pid: pid not in ("0", str(before)))
        service.wait_show("ActiveState", "active")
        network.open()
        for client in clients.values():
            assert client.wait(60) == 0
            assert client.lines() == []
    records = until(
        lambda: {entry["S3DAEMON_KEY"]: entry for entry in service.journal("S3DAEMON_OUTCOME=stored")},
        lambda found: clients.keys() <= found.keys(),
        "record of each",
    )
    for key in clients:
        assert stored(rgw, bucket, key) == md5_of(service.box, MEDIUM if key.endswith("2") else SMALL)
        assert records[key]["_PID"] == after
    service.wait_show("NFileDescriptorStore", "0")


def test_clients_wait_while_the_environment_file_is_broken(service: Service, rgw: Gateway, bucket: str) -> None:
    """Clients wait while the service fails to start, more often than systemd's default limit; then all is stored."""
    with ExitStack() as stack:
        # Five failed starts within ten seconds are what systemd's own limits are about; 2 s apart they are not enough.
        stack.enter_context(service.drop_in("RestartSec=100ms"))
        service.systemctl("start", service.socket)
        service.send(SMALL, f"store/{bucket}/before")
        assert listening(service) == (0, 4096)
        good = service.environment_file.read_text()
        service.write(good + "S3DAEMON_MAX_CONNECTIONS=many\n")
        assert service.systemctl("restart", service.unit, check=False).returncode != 0
        clients = [stack.enter_context(service.sending(SMALL, f"store/{bucket}/broken/{n}")) for n in range(5)]
        service.wait_show("NRestarts", lambda count: int(count) > 5, timeout=120)
        assert service.show("ActiveState", service.socket) == "active"
        assert listening(service) == (5, 4096)
        assert [client.popen.poll() for client in clients] == [None] * 5
        assert any(
            "cannot start: BadSettings: S3DAEMON_MAX_CONNECTIONS" in entry["MESSAGE"]
            for entry in service.journal("-p", "2")
        )
        service.write(good)
        assert [(client.wait(60), client.lines()) for client in clients] == [(0, [])] * 5
        assert len(rgw.keys(bucket, "broken/")) == 5
        assert listening(service) == (0, 4096)


def listening(service: Service) -> tuple[int, int]:
    """How many clients wait in the socket's backlog, and how many may."""
    shown = service.box.exec("ss", "-Hltn", f"sport = :{service.port}").stdout.split()
    return int(shown[1]), int(shown[2])


#: What the daemon does at the end of an outage of 48 hours, without the outage: its journal, its record, 54 000 times.
BURST = """
import os, threading
from s3daemon.journal import Journal, choose_sink, warn_on
from s3daemon.model.record import TransferRecord

journal, room = Journal(choose_sink(os.environ), warn=warn_on()), threading.Semaphore(10_000)
for number in range(54_000):
    record = TransferRecord(
        transfer_id=f"t{number}", outcome="stored", file="/data/f", bucket="b", key=f"burst/{number}", size_bytes=1,
        start_usec=1, total_usec=1, attempts=1,
    )
    room.acquire()
    assert journal.record(record, room.release)
journal.close(60)
"""


def test_the_journal_keeps_every_record(service: Service) -> None:
    """54 000 records in a row under the service's unit: the journal has all of them."""
    write_file(service.box, "/data/burst.py", BURST.encode())
    burst = Service(service.box, f"s3daemon@{service.port + 1}", service.port + 1)
    try:
        program = "ExecStart=\nExecStart=/usr/lib/s3daemon/bin/python3 /data/burst.py"
        with burst.drop_in(f"Type=oneshot\nRestart=no\n{program}"):
            burst.systemctl("start", burst.unit)
        service.box.exec("journalctl", "--sync")
        kept = service.box.exec("journalctl", "-u", burst.unit, "-o", "cat", "S3DAEMON_BUCKET=b").stdout
    finally:
        burst.stop()
    assert len(set(kept.splitlines())) == 54_000


@pytest.fixture
def journald(service: Service) -> Iterator[tuple[str, ...]]:
    """Journald's unit and those of its sockets; at the end they work again."""
    names = tuple(f"systemd-journald{end}" for end in (".service", ".socket", "-dev-log.socket", "-audit.socket"))
    try:
        yield names
    finally:
        service.systemctl("start", *names)
        service.systemctl("kill", "--kill-who=main", "--signal=CONT", names[0])


def test_a_blocked_journal_delays_no_transfer(
    service: Service, rgw: Gateway, bucket: str, journald: tuple[str, ...]
) -> None:
    """More transfers than its socket holds entries of: all are stored at once, and their records follow later."""
    service.systemctl("start", service.socket, service.unit)
    service.systemctl("kill", "--kill-who=main", "--signal=STOP", journald[0])
    sent = [f"still/{number}" for number in range(30)]
    for key in sent:
        service.send(SMALL, f"store/{bucket}/{key}")
    assert rgw.keys(bucket, "still/") == set(sent)
    service.systemctl("kill", "--kill-who=main", "--signal=CONT", journald[0])
    for key in sent:
        assert len(service.records(key)) == 1


def test_a_stopped_journal_stops_no_transfer(
    service: Service, rgw: Gateway, bucket: str, journald: tuple[str, ...]
) -> None:
    """Transfers go on without it; what could not be recorded is counted in a warning once it is back, and reported."""
    began_s = time.time()
    service.systemctl("start", service.socket, service.unit)
    service.send(SMALL, f"store/{bucket}/gone/before")
    service.records("gone/before")
    service.systemctl("stop", *journald)
    sent = {f"gone/{number}" for number in range(5)}
    for key in sent:
        service.send(SMALL, f"store/{bucket}/{key}")
    assert rgw.keys(bucket, "gone/") == sent | {"gone/before"}
    service.systemctl("start", *journald)
    service.send(SMALL, f"store/{bucket}/gone/after")
    service.records("gone/after")
    text = "5 journal entries are lost: the journal did not take them in time"
    until(lambda: service.journal(f"MESSAGE={text}"), lambda found: len(found) == 1, "warning of all that is lost")
    noted = service.box.exec("s3daemon", "report", "--since", f"@{began_s:.6f}", "--prefix", "gone/").stderr
    assert "entries lost, as the journal did not take them in time: transfers may be missing here: 5\n" in noted
    explained = service.box.exec("journalctl", "-x", f"MESSAGE_ID={MessageId.LOST}").stdout
    assert "Subject: Entries of the service are missing" in explained


def test_a_stop_lets_uploads_finish(service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str) -> None:
    """A stop waits for the upload in flight past TimeoutStopSec, with the watchdog served, and ends with status 0."""
    network, far = line
    service.configure(far)
    with service.drop_in("WatchdogSec=2\nTimeoutStopSec=2"), ExitStack() as stack:
        service.systemctl("start", service.socket)
        service.send(SMALL, f"store/{bucket}/warm")
        network.hold(after=5_000_000)
        client = stack.enter_context(service.sending(MEDIUM, f"store/{bucket}/drained"))
        assert network.blocked.wait(30)
        service.systemctl("stop", "--no-block", service.socket, service.unit)
        service.wait_show("ActiveState", "deactivating")
        for _ in range(4):  # served each second; four are more than what WatchdogSec= and TimeoutStopSec= allow
            service.wait_show("WatchdogTimestampMonotonic", service.show("WatchdogTimestampMonotonic").__ne__)
        assert service.show("ActiveState") == "deactivating"
        assert "draining" in service.show("StatusText")
        network.open()
        assert (client.wait(60), client.lines()) == (0, [])
        service.wait_show("ActiveState", "inactive")
        assert service.show("Result") == "success"
        assert service.show("ExecMainStatus") == "0"
    assert stored(rgw, bucket, "drained") == md5_of(service.box, MEDIUM)


def test_a_stop_answers_waiting_clients_and_keeps_their_transfers(
    service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str
) -> None:
    """A stop that cannot wait for the store answers waiting clients with Deferred; the next start delivers all."""
    network, far = line
    service.configure(far, S3DAEMON_DRAIN_TIMEOUT="0s")
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/warm")
    network.hold()
    with ExitStack() as stack:
        plain = stack.enter_context(service.sending(SMALL, f"store/{bucket}/stop/plain"))
        extended = stack.enter_context(service.sending("--tag", "dusk", MEDIUM, f"store/{bucket}/stop/extended"))
        service.wait_show("NFileDescriptorStore", "2")
        service.systemctl("stop", service.socket, service.unit)
        assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
        for client in (plain, extended):
            assert client.wait(60) == 1
            (reply,) = client.lines()
            assert re.match(r"send: Deferred: \w+ is kept and being tried", reply)
    network.open()
    service.systemctl("start", service.unit)
    until(lambda: rgw.keys(bucket, "stop/"), lambda found: len(found) == 2, "objects")
    assert stored(rgw, bucket, "stop/plain") == md5_of(service.box, SMALL)
    assert stored(rgw, bucket, "stop/extended") == md5_of(service.box, MEDIUM)


def test_an_idle_service_stops_at_once(service: Service, bucket: str) -> None:
    """Idle, socket and service are down within 2 s, and stay down; `send` then names the command that starts them."""
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/idle")
    began = time.monotonic()
    service.systemctl("stop", service.socket, service.unit)
    assert time.monotonic() - began < 2
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    refused = service.send(SMALL, f"store/{bucket}/idle", check=False)
    assert refused.returncode == 1
    assert "is it up? systemctl start s3daemon" in refused.stderr


def test_a_reload_takes_new_keys(service: Service, line: tuple[Relay, S3Server], rgw: Gateway, bucket: str) -> None:
    """`systemctl reload` puts new keys in force in the same process; an upload in flight finishes with the old ones."""
    network, far = line
    service.configure(far)
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/warm")
    before = service.main_pid()
    network.hold(after=5_000_000)
    with service.sending(MEDIUM, f"store/{bucket}/over-reload") as client:
        assert network.blocked.wait(30)
        other = rgw.new_account()
        theirs = other.new_bucket()
        service.configure(S3Server(far.url, other.access_key, other.secret_key, other.ca))
        service.systemctl("reload", service.unit)
        network.open()
        assert (client.wait(60), client.lines()) == (0, [])
    service.send(SMALL, f"store/{theirs}/with-new-keys")
    assert stored(other, theirs, "with-new-keys") == md5_of(service.box, SMALL)
    denied = service.send(SMALL, f"store/{bucket}/with-new-keys", check=False)
    assert denied.stderr.startswith("send: AccessDenied: ")
    assert service.main_pid() == before
    assert len(service.records("over-reload")) == 1


@pytest.mark.parametrize("fault", ["a bad value", "no file"])
def test_a_bad_reload_changes_nothing(service: Service, rgw: Gateway, bucket: str, fault: str) -> None:
    """A file that is broken, or gone, fails the reload, in exit status, journal and STATUS; the old settings stay."""
    service.systemctl("start", service.socket)
    service.send(SMALL, f"store/{bucket}/before")
    before = service.main_pid()
    if fault == "a bad value":
        service.write("S3_ENDPOINT_URL=ftp://nowhere\nS3DAEMON_WAITLIMIT=5\n")
        expected = ["S3_ENDPOINT_URL", "S3DAEMON_WAIT_LIMIT", "AWS_ACCESS_KEY_ID"]
    else:
        service.environment_file.unlink()
        expected = ["S3_ENDPOINT_URL is not set"]
    assert service.systemctl("reload", service.unit, check=False).returncode != 0
    assert service.show("ReloadResult") == "exit-code"
    assert (service.show("ActiveState"), service.main_pid()) == ("active", before)
    since = service.journal(f"_SYSTEMD_INVOCATION_ID={service.show('InvocationID')}")
    messages = "\n".join(entry["MESSAGE"] for entry in since)
    for words in (*expected, "the previous settings stay in force"):
        assert words in messages
    assert f"reload REFUSED, {expected[0]}" in service.show("StatusText")
    service.send(SMALL, f"store/{bucket}/after")
    service.configure(rgw)
    service.systemctl("reload", service.unit)
    assert service.show("StatusText").startswith("0 in flight")


def test_a_second_instance(service: Service, rgw: Gateway, bucket: str) -> None:
    """`s3daemon@PORT` serves another store beside the first, with settings, a spool and a queue of its own."""
    port = service.port + 1
    second = Service(service.box, f"s3daemon@{port}", port)
    second.configure(rgw.plain)
    service.systemctl("start", service.socket)
    try:
        second.systemctl("start", second.socket)
        service.send(SMALL, f"store/{bucket}/from-first")
        second.send(SMALL, f"store/{bucket}/from-second")
        assert stored(rgw, bucket, "from-first") == stored(rgw, bucket, "from-second")
        assert field(service.records("from-first")[0], "ENDPOINT") == rgw.url
        assert field(second.records("from-second")[0], "ENDPOINT") == rgw.plain.url
        assert service.main_pid() != second.main_pid()
        assert (service.box.root / f"var/lib/s3daemon@{port}/spool.db").exists()
        assert service.box.exec("s3daemon", "queue", "--instance", str(port)).returncode == 0
        service.systemctl("stop", service.socket, service.unit)
        second.send(SMALL, f"store/{bucket}/from-second")
    finally:
        second.stop()
