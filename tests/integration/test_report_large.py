"""A report of many transfers takes little more than reading them, and less memory than the daemon may take."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.box import Box
from lab.env import TREE, clean_env

COUNT = 50_000
#: Measured: processor time of 0.6 to 1.0 of journalctl's, which is the baseline, and 80 MB; 135 MB of twice as many.
TIMES_JOURNALCTL, RESIDENT_BYTES = 2, 120e6
#: Runs in the box: writes the records of a long night to journald, with fields as long as real ones.
WRITE = """
import random, socket, sys

count = int(sys.argv[1])
rng = random.Random(1)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.connect("/run/systemd/journal/socket")
for number in range(count):
    exposure, file = divmod(number, 46)
    upload = 230_000 + rng.randrange(600_000)
    queue = rng.randrange(2_000_000)
    tag = f"20261123_{exposure:05}"
    key = f"raw/20261123/{tag}/{tag}_R{file:02}.fits"
    fields = {
        "MESSAGE": f"1795400000.000000 {(queue + upload) / 1e6:.3f} sec - camera/{key} stored, 8388608 bytes",
        "MESSAGE_ID": "59de861c00b54c97810d5760a3b1b9a0", "PRIORITY": 6, "SYSLOG_IDENTIFIER": "s3daemon",
        "S3DAEMON_TRANSFER_ID": f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}", "S3DAEMON_OUTCOME": "stored",
        "S3DAEMON_FILE": f"/data/{key}", "S3DAEMON_BUCKET": "camera", "S3DAEMON_KEY": key, "S3DAEMON_TAG": tag,
        "S3DAEMON_SIZE_BYTES": 8388608, "S3DAEMON_START_USEC": 1_795_400_000_000_000 + exposure * 40_000_000 + file,
        "S3DAEMON_QUEUE_USEC": queue, "S3DAEMON_UPLOAD_USEC": upload, "S3DAEMON_TOTAL_USEC": queue + upload,
        "S3DAEMON_ATTEMPTS": 1, "S3DAEMON_ENDPOINT": "https://s3.example.org",
        "S3DAEMON_ETAG": f"{rng.getrandbits(128):032x}",
        "S3DAEMON_RTT_USEC": 200_000 + rng.randrange(9_000), "S3DAEMON_RETRANSMITS": 0, "S3DAEMON_CONNECTION": "warm",
        "S3DAEMON_RECEIVER": f"192.0.2.{rng.randrange(4)}",
    }
    sock.send("".join(f"{name}={value}\\n" for name, value in fields.items()).encode())
"""
#: Runs the command line and says on standard error what it took; journalctl's processor time is part of it, but not the
#: memory that it maps, up to 512 MB of journal files that the kernel may take back at any time.
MEASURE = """
import json, resource, sys, time
from s3daemon.cli import main

began = time.monotonic()
try:
    main(sys.argv[1:])
except SystemExit as exc:
    status = exc.code
# Of this program: ru_maxrss still has that of the process which it was forked from.
peak = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"wall_s": time.monotonic() - began, "cpu_s": own.ru_utime + own.ru_stime,
                  "journalctl_cpu_s": others.ru_utime + others.ru_stime,
                  "resident_bytes": peak}), file=sys.stderr)
sys.exit(status)
"""


@pytest.fixture(scope="module")
def journal(box: Box, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Journal files with that many records, moved out of the box's journal, which is as small as before."""
    place = next((box.root / "var/log/journal").iterdir())
    box.exec("journalctl", "--rotate")
    before = set(place.iterdir())
    box.exec("python3", "-c", WRITE, str(COUNT), timeout=300)
    box.exec("journalctl", "--sync", timeout=300)
    box.exec("journalctl", "--rotate")
    kept = tmp_path_factory.mktemp("journal")
    moved = [path for path in place.iterdir() if path not in before and "@" in path.name]
    for path in moved:
        path.rename(kept / path.name)
    yield kept
    for path in kept.iterdir():
        path.unlink()


def test_fifty_thousand(journal: Path) -> None:
    """All are in the report, in less than twice the processor time of journalctl's reading, and 120 MB."""
    words = ("report", "--file", str(journal), "--json", "--by", "tag")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *words], cwd=TREE, env=clean_env(), capture_output=True, text=True, check=True
    )
    print(done.stderr)
    took = json.loads(done.stderr)
    found = json.loads(done.stdout)
    assert found["stored"] == COUNT
    assert len(found["groups"]) == -(-COUNT // 46)
    assert took["cpu_s"] < TIMES_JOURNALCTL * took["journalctl_cpu_s"]
    assert took["resident_bytes"] < RESIDENT_BYTES
