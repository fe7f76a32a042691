"""`journalctl -x` under a real systemd explains what the daemon has to say, and each event is one entry; `s3daemon
status` there works for root alone."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from lab.box import Box
from lab.env import TREE
from lab.flaky import Fault, FlakyS3
from lab.installed import Service, installed, until, write_file

from s3daemon.model.record import MessageId

STATE = "/var/lib/s3daemon"
PROGRAM = "/usr/lib/s3daemon/hurrying.py"
ABSENT = "127.0.0.9"
SUBJECTS = dict(re.findall(r"^-- (\w{32})\nSubject: (.+)$", (TREE / "systemd/s3daemon.catalog").read_text(), re.M))


@pytest.fixture
def service(box: Box, s3: FlakyS3) -> Iterator[Service]:
    """Serves in a hurry, with a spool on a disk of 1 MB and a store of two receivers, one of which is not there."""
    hurrying = box.put(TREE / "tests/lab/hurrying.py", PROGRAM)
    command = f"ExecStart=\nExecStart=/usr/lib/s3daemon/bin/python3 {PROGRAM} serve"
    with installed(box) as service, service.drop_in(command):
        named = replace(s3.server, url=s3.server.url.replace("127.0.0.1", "localhost"))
        limits = {"S3DAEMON_WAIT_LIMIT": "500ms", "S3DAEMON_ALLOWED_BUCKETS": "bucket"}
        service.configure(named, S3DAEMON_RECEIVERS=f"127.0.0.1,{ABSENT}", **limits)
        write_file(box, "/data/f.fits", b"content")
        box.exec("mkdir", "-p", STATE)
        box.exec("mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "spool", STATE)
        try:
            service.systemctl("start", service.socket, service.unit)
            yield service
        finally:
            service.systemctl("stop", service.socket, service.unit)
            box.exec("umount", STATE)
            service.stop()
            hurrying.unlink()


def entries(service: Service, kind: MessageId, count: int) -> list[str]:
    """The messages of a kind since the service started, once there are so many."""
    began = service.show("InvocationID")
    match = f"MESSAGE_ID={kind.value}", f"_SYSTEMD_INVOCATION_ID={began}"
    found = until(lambda: service.journal(*match), lambda found: len(found) >= count, f"{count} {kind.name}")
    return [entry["MESSAGE"] for entry in found]


def request(service: Service, line: str) -> str:
    """The reply to a plain request; `send` takes a tenth of a second to start."""
    with socket.create_connection(("127.0.0.1", service.port), 60) as sock:
        sock.sendall(f"{line}\n".encode())
        return sock.makefile().read()


def test_every_event_is_one_entry_that_is_explained(service: Service, s3: FlakyS3) -> None:
    box = service.box
    assert service.send("/data/f.fits", "any/bucket/stored").returncode == 0
    assert "NotAllowed" in service.send("/data/f.fits", "any/foreign/f", check=False).stderr
    (disabled,) = entries(service, MessageId.ADDRESS_DISABLED, 1)
    assert disabled.startswith(f"address {ABSENT} of the store is temporarily disabled: no connection; next asked in ")

    s3.refuse()
    reply = service.send("/data/f.fits", "any/bucket/deferred", check=False).stderr
    assert "is kept and being tried" in reply
    (deferred,) = entries(service, MessageId.DEFERRED, 1)
    assert deferred.startswith("bucket/deferred deferred, its client was notified that it is kept; the last error: ")
    entries(service, MessageId.AWAY, 1)
    s3.open()
    box.exec("s3daemon", "queue", "retry", "--all")
    entries(service, MessageId.BACK, 1)
    until(lambda: len(s3.puts), lambda count: count == 2, "arrival of what was deferred")

    s3.refuse()  # while nothing is sent
    (unreachable,) = entries(service, MessageId.UNREACHABLE, 1)
    assert unreachable.startswith("the store cannot be reached: ConnectionFailed, no connection to the store: ")
    s3.open()
    entries(service, MessageId.REACHED, 1)

    s3.faults[Fault.KEY_UNKNOWN] = 1.0
    assert "InvalidAccessKeyId" in service.send("/data/f.fits", "any/bucket/held", check=False).stderr
    (held,) = entries(service, MessageId.HELD, 1)
    assert held.startswith("the queue is held: InvalidAccessKeyId: the store answered 403: who?")
    status = box.exec("s3daemon", "status", check=False).stdout
    assert "\nHELD: InvalidAccessKeyId" in status
    assert "temporarily disabled" in status
    s3.faults.clear()
    service.systemctl("reload", service.unit)

    filler = f"{STATE}/filler"

    def crowded() -> str:
        # Its write-ahead log has room of its own for some, and gives it back.
        box.exec("sh", "-c", f"cat /dev/zero >>{filler}", check=False)
        replies = (request(service, "/data/f.fits any/bucket/refused") for _ in range(100))
        return next((reply for reply in replies if reply != "Success"), "")

    assert "SpoolFull" in until(crowded, bool, "refusal on a full disk")
    box.exec("rm", filler)
    assert service.send("/data/f.fits", "any/bucket/again").returncode == 0
    over = entries(service, MessageId.SPOOL_WRITABLE, 1)
    assert len(entries(service, MessageId.SPOOL_FULL, 1)) == len(over)
    refused = entries(service, MessageId.REFUSED, 2)
    assert "asked by user 0, NotAllowed: the bucket foreign is not in S3DAEMON_ALLOWED_BUCKETS" in refused[0]
    assert all("asked by user 0, SpoolFull: nothing is accepted" in text for text in refused[1:])
    settings = service.environment_file.read_text()
    service.write("S3_ENDPOINT_URL=ftp://nowhere\n")
    assert service.systemctl("reload", service.unit, check=False).returncode != 0
    assert len(entries(service, MessageId.RELOAD_REFUSED, 1)) == 1
    service.write(settings)
    service.systemctl("reload", service.unit)
    stored = [text for text in entries(service, MessageId.RECORD, 4) if " stored, " in text]
    objects = {text.partition(" stored, ")[0].split()[-1] for text in stored}

    explained = box.exec("journalctl", "-x", "-u", service.unit, "--no-pager").stdout
    # The absent address stays away, and nothing is lost while journald runs: test_systemd stops it.
    for kind in set(MessageId) - {MessageId.ADDRESS_ENABLED, MessageId.LOST}:
        assert f"Subject: {SUBJECTS[kind]}" in explained
    notices = box.exec("journalctl", "-u", service.unit, "-p", "notice..notice", "-o", "cat").stdout
    assert "deferred, its client" in notices
    assert "can be written again" in notices

    answer = json.loads(box.exec("s3daemon", "status", "--json").stdout)
    assert answer["state"] == "ok"
    assert [(e["name"], e["stored"]) for e in answer["exposures"]] == [("bucket/", len(objects)), ("foreign/", 0)]
    assert "LAST EXPOSURES" in box.exec("s3daemon", "status").stdout
    asked = box.exec("runuser", "-u", "nobody", "--", "s3daemon", "status", check=False)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr.startswith("NotPermitted: ")


def test_the_catalog_explains_every_kind() -> None:
    catalog = (TREE / "systemd/s3daemon.catalog").read_text()
    for kind in MessageId:
        assert f"-- {kind.value}\nSubject: {SUBJECTS[kind]}\n" in catalog


def test_the_catalog_refers_to_no_field() -> None:
    """journalctl would print `@S3DAEMON_KEY@` unchanged, because its name has a digit."""
    assert "@" not in (TREE / "systemd/s3daemon.catalog").read_text()
