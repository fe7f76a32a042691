"""The stores of the matrix: each can be stopped and started again, at the same address and with its data.

RGW, SeaweedFS and moto come with `packaging/bootstrap ci`; the others with `tests/lab/install-stores`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import boto3

from lab.env import MACHINE_ENV, UnavailableError, clean_env, free_ports, program
from lab.nginx import front
from lab.processes import start
from lab.rgw import Gateway
from lab.s3 import S3Server
from lab.seaweed import PORTS, seaweed

KEY, SECRET = "testkey", "testsecret"
DIRECTORY = Path(
    MACHINE_ENV.get("S3DAEMON_TEST_STORES") or Path(MACHINE_ENV.get("HOME", "/root")) / ".cache/s3daemon-stores"
)
"""What `tests/lab/install-stores` fills."""

Run = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Traits:
    """What a store does otherwise than most.

    Args:
        verifies: it refuses requests with wrong keys.
        lasting: what it stored is there after a restart.
        has_directories: `a/b` cannot be stored where `a` is an object, and some keys are refused or folded.
        has_accounts: it can have one that may do less.
        keeps: connections stay open after an answer.
        makes_buckets: a PUT to a bucket that does not exist makes it.
    """

    verifies: bool = True
    lasting: bool = True
    has_directories: bool = True
    has_accounts: bool = True
    keeps: bool = True
    makes_buckets: bool = False


TRAITS: Mapping[str, Traits] = {
    "rgw": Traits(has_directories=False),
    "seaweed": Traits(makes_buckets=True),
    "moto": Traits(verifies=False, lasting=False, has_directories=False, has_accounts=False, keeps=False),
    "minio": Traits(),
    "versitygw": Traits(),
    "rclone": Traits(has_accounts=False),
    "s3proxy": Traits(has_accounts=False),
}
BUILT_IN = ("rgw", "seaweed", "moto")
"""Those that `packaging/bootstrap ci` installs."""


@dataclass
class Store:
    """A running store. Made by `store_of`."""

    name: str
    server: S3Server
    run: Run
    make_stranger: Callable[[str], S3Server] | None = None
    _running: ExitStack = field(default_factory=ExitStack)

    @property
    def traits(self) -> Traits:
        return TRAITS[self.name]

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._running.enter_context(self.run())

    def stop(self) -> None:
        """Stop it, as its service manager does."""
        self._running.close()

    def restart(self) -> None:
        """Stop it and start it again."""
        self.stop()
        self.start()

    def stranger(self, bucket: str) -> S3Server:
        """The same server with an account that may not write to the bucket."""
        assert self.make_stranger is not None
        return self.make_stranger(bucket)


@contextmanager
def store_of(name: str, directory: Path, cluster: Callable[[], Gateway]) -> Iterator[Store]:
    """Run a store; raises UnavailableError where it is not installed.

    Args:
        name: one of `TRAITS`.
        directory: empty; takes its files.
        cluster: a cluster for a gateway of RGW's.
    """
    made = _MAKERS[name](directory, cluster) if name == "rgw" else _MAKERS[name](directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _installed(name: str) -> Path:
    found = DIRECTORY / name
    if not found.exists():
        raise UnavailableError(f"{name} is not installed; tests/lab/install-stores does that")
    return found


def _program(
    name: str, words: list[str | Path], port: int, *, secret: str = SECRET, env: Mapping[str, str] | None = None
) -> Store:
    """A store that is one program."""

    @contextmanager
    def run() -> Iterator[None]:
        with start(*words, name=name, env=clean_env(**(env or {}))) as process:
            process.wait_port(port)
            yield

    return Store(name, S3Server(f"http://127.0.0.1:{port}", KEY, secret), run)


def _rgw(directory: Path, cluster: Callable[[], Gateway]) -> Store:
    """A gateway of its own at the cluster."""
    (port,) = free_ports(1)
    gateway = cluster()
    words: list[str | Path] = [
        program("radosgw"), "-c", gateway.config, "-f", "-n", "client.rgw", "--admin-socket=",
        f"--rgw-data={directory}", f"--rgw-frontends=beast endpoint=127.0.0.1:{port}",
    ]  # fmt: skip
    made = _program("rgw", words, port)

    def stranger(_: str) -> S3Server:
        return replace(gateway.new_account(), url=made.server.url, ca=None)

    made.make_stranger = stranger
    return made


def _seaweed(directory: Path) -> Store:
    ports = free_ports(PORTS)
    # One account may only list what is in a bucket that does not matter here.
    run = lambda: seaweed(directory, ports, others={"stranger": ["List:other"]})  # noqa: E731
    server = S3Server(f"http://127.0.0.1:{ports[-2]}", KEY, SECRET)
    return Store("seaweed", server, run, lambda _: replace(server, access_key="stranger"))


def _moto(directory: Path) -> Store:
    (port,) = free_ports(1)
    return _program("moto", [program("moto_server"), "-H", "127.0.0.1", "-p", str(port)], port)


def _minio(directory: Path) -> Store:
    (port,) = free_ports(1)
    words: list[str | Path] = [_installed("minio"), "server", directory / "data", f"--address=127.0.0.1:{port}"]
    env = {"MINIO_ROOT_USER": KEY, "MINIO_ROOT_PASSWORD": SECRET, "MINIO_BROWSER": "off"}
    made = _program("minio", [*words, f"--certs-dir={directory}/certs", "--quiet"], port, env=env)

    def stranger(_: str) -> S3Server:
        allowed = [{"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::*"]}]
        policy = json.dumps({"Version": "2012-10-17", "Statement": allowed})
        sts = boto3.client(
            "sts", endpoint_url=made.server.url, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )  # fmt: skip
        try:
            given = sts.assume_role(RoleArn="arn:aws:iam::000000000000:role/any", RoleSessionName="any", Policy=policy)[
                "Credentials"
            ]
        finally:
            sts.close()
        return S3Server(made.server.url, given["AccessKeyId"], given["SecretAccessKey"], token=given["SessionToken"])

    made.make_stranger = stranger
    return made


def _versitygw(directory: Path) -> Store:
    (port,) = free_ports(1)
    data, accounts = directory / "data", directory / "accounts"
    data.mkdir()
    accounts.mkdir()
    gateway = _installed("versitygw")
    words: list[str | Path] = [
        gateway, f"--port=127.0.0.1:{port}", f"--access={KEY}", f"--secret={SECRET}", "--keep-alive", "--quiet",
        f"--iam-dir={accounts}", "posix", data,
    ]  # fmt: skip
    made = _program("versitygw", words, port)

    @cache
    def stranger() -> S3Server:
        command = [
            str(gateway), "admin", f"--access={KEY}", f"--secret={SECRET}", f"--endpoint-url={made.server.url}",
            "create-user", "--access=stranger", f"--secret={SECRET}", "--role=user",
        ]  # fmt: skip
        subprocess.run(command, env=clean_env(), check=True, capture_output=True, timeout=30)
        return replace(made.server, access_key="stranger")

    made.make_stranger = lambda _: stranger()
    return made


def _rclone(directory: Path) -> Store:
    (port,) = free_ports(1)
    data = directory / "data"
    data.mkdir()
    words: list[str | Path] = [
        _installed("rclone"), "serve", "s3", data, f"--addr=127.0.0.1:{port}", f"--auth-key={KEY},{SECRET}",
        f"--config={directory}/rclone.conf", f"--cache-dir={directory}/cache",
    ]  # fmt: skip
    return _program("rclone", words, port)


def _s3proxy(directory: Path) -> Store:
    (port,) = free_ports(1)
    data, properties = directory / "data", directory / "s3proxy.conf"
    data.mkdir()
    given = {
        "s3proxy.endpoint": f"http://127.0.0.1:{port}",
        "s3proxy.authorization": "aws-v2-or-v4",
        "s3proxy.identity": KEY,
        "s3proxy.credential": SECRET,
        "jclouds.provider": "filesystem-nio2",
        "jclouds.filesystem.basedir": data,
    }
    properties.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    jars = f"{_installed('s3proxy')}/*"
    words: list[str | Path] = [
        program("java"), "-Xmx512m", "-DLOG_LEVEL=warn", "-cp", jars, "org.gaul.s3proxy.Main",
        "--properties", properties
    ]  # fmt: skip
    return _program("s3proxy", words, port)


_MAKERS: Mapping[str, Callable[..., Store]] = {
    "rgw": _rgw,
    "seaweed": _seaweed,
    "moto": _moto,
    "minio": _minio,
    "versitygw": _versitygw,
    "rclone": _rclone,
    "s3proxy": _s3proxy,
}


@contextmanager
def gzipping(directory: Path, server: S3Server) -> Iterator[S3Server]:
    """Run an nginx in front of a store, which compresses XML for whoever takes it."""
    http = (
        "gzip on; gzip_types application/xml text/xml; gzip_min_length 1; gzip_proxied any; "
        f"upstream store {{ server {server.url.removeprefix('http://')}; keepalive 64; }}"
    )
    location = (
        "proxy_pass http://store; proxy_request_buffering off; proxy_http_version 1.1; "
        'proxy_set_header Connection ""; proxy_set_header Accept-Encoding gzip;'
    )
    with front(server, directory, location, http) as nginx:
        yield nginx.server
