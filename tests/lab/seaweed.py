"""SeaweedFS: an independent S3 server, which verifies signatures and echoes checksums."""

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.env import free_ports, program
from lab.processes import start
from lab.s3 import S3Server

_PARTS = ("master", "volume", "filer", "s3")
PORTS = 2 * len(_PARTS)
"""How many ports it takes; the last but one serves S3."""


@contextmanager
def seaweed(
    directory: Path, ports: Sequence[int] = (), *, others: Mapping[str, Sequence[str]] | None = None
) -> Iterator[S3Server]:
    """Run master, volume server, filer and S3 gateway as one process that keeps its data in the directory.

    Args:
        directory: with its data, if it ran before.
        ports: to listen on; free ones by default.
        others: further accounts by their access key, with what they may do; their secret is the same.
    """
    actions = {"testkey": ["Admin", "Read", "Write", "List", "Tagging"], **(others or {})}
    accounts = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": "testsecret"}], "actions": list(may)}
        for key, may in actions.items()
    ]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": accounts}))
    data = directory / "data"
    data.mkdir(exist_ok=True)
    names = [name for part in _PARTS for name in (part, f"{part}.grpc")]
    by_name = dict(zip(names, ports or free_ports(PORTS), strict=True))
    flags = [f"-{part}.port={by_name[part]}" for part in _PARTS]
    flags += [f"-{part}.port.grpc={by_name[f'{part}.grpc']}" for part in _PARTS]
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
            process.wait_port(by_name["s3"])
            yield S3Server(f"http://127.0.0.1:{by_name['s3']}", "testkey", "testsecret")
        finally:
            for part in _PARTS:  # their place cannot be set, and weed does not remove them
                Path(f"/tmp/seaweedfs-{part}-grpc-{by_name[f'{part}.grpc']}.sock").unlink(missing_ok=True)
