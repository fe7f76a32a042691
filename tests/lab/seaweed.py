"""SeaweedFS: an independent S3 server, which verifies signatures and echoes checksums."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.env import free_ports, program
from lab.processes import start
from lab.s3 import S3Server

_PARTS = ("master", "volume", "filer", "s3")


@contextmanager
def seaweed(directory: Path) -> Iterator[S3Server]:
    """Run master, volume server, filer and S3 gateway as one process that keeps its data in the directory."""
    account = {
        "name": "test",
        "credentials": [{"accessKey": "testkey", "secretKey": "testsecret"}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [account]}))
    data = directory / "data"
    data.mkdir()
    ports = dict(zip([name for part in _PARTS for name in (part, f"{part}.grpc")], free_ports(8), strict=True))
    flags = [f"-{part}.port={ports[part]}" for part in _PARTS]
    flags += [f"-{part}.port.grpc={ports[f'{part}.grpc']}" for part in _PARTS]
    with start(
        program("weed"),
        "-logtostderr=true",  # and not into files in /tmp
        "server",
        f"-dir={data}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.localSocket={directory}/s3.sock",
        f"-filer.localSocket={directory}/filer.sock",
        f"-s3.config={config}",
        *flags,
        name="seaweed",
        stop_signal=signal.SIGKILL,  # asked politely it waits ten seconds, for data that is thrown away
    ) as process:
        try:
            process.wait_port(ports["s3"])
            yield S3Server(f"http://127.0.0.1:{ports['s3']}", "testkey", "testsecret")
        finally:
            for part in _PARTS:  # their place cannot be set, and weed does not remove them
                Path(f"/tmp/seaweedfs-{part}-grpc-{ports[f'{part}.grpc']}.sock").unlink(missing_ok=True)
