"""Ceph's object gateway, the S3 server that production runs, as a one-node cluster on loopback.

One monitor, one OSD that keeps objects in memory, one gateway; the daemons run in the foreground under this
process, as any user, with their files in the directory given.
"""

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.certs import Authority
from lab.env import clean_env, free_ports, program
from lab.processes import ProgramError, start
from lab.s3 import S3Server

_MEMORY_BYTES = 4 << 30
"""The capacity that the OSD reports. It takes memory for what is stored only; delete what is large."""

_CONFIG = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {dir}/keyring
run dir = {dir}/run
log file =
log to stderr = true
err to stderr = true
debug mon = 0
debug osd = 0
crash dir = {dir}/crash
# Each pool is a change of the cluster's map, or three, and the gateway makes eight: by default each waits a second.
paxos propose interval = 0.05
paxos min wait = 0.01
admin socket = {dir}/run/$name.asok
pid file =
mon data = {dir}/mon
mgr data = {dir}/mgr
osd data = {dir}/osd
{classes}
osd objectstore = memstore
memstore device bytes = {memory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon max pg per osd = 1000
[client.rgw]
rgw frontends = beast endpoint={host}:{http} ssl_endpoint={host}:{https} ssl_certificate={cert} \
ssl_private_key={key}
rgw data = {dir}/rgw
# For rules that delete old objects; at a stop it is waited for, for seconds.
rgw enable lc threads = false
{options}
"""


@dataclass(frozen=True, kw_only=True)
class Gateway(S3Server):
    """The gateway's HTTPS side, and what only a gateway has."""

    plain: S3Server
    """The same account over plain HTTP."""
    config: Path
    """ceph.conf, for Ceph's own tools."""

    def admin(self, *words: str) -> Any:
        """Run radosgw-admin and return what it printed, parsed where it is JSON."""
        command = (program("radosgw-admin"), "-c", str(self.config), "-n", "client.rgw", *words)
        printed = _run(*command)
        return json.loads(printed) if printed[:1] in ("[", "{") else printed

    def new_account(self, *words: str) -> S3Server:
        """Another account, with keys of its own; the words are further options of ``user create``."""
        uid = f"user-{uuid.uuid4().hex[:8]}"
        secret = uuid.uuid4().hex
        keys = ("--access-key", uid, "--secret-key", secret)
        self.admin("user", "create", "--uid", uid, "--display-name", uid, *keys, *words)
        return S3Server(self.url, uid, secret, self.ca)


@contextmanager
def rgw(directory: Path, authority: Authority, *, host: str = "127.0.0.1", options: str = "") -> Iterator[Gateway]:
    """Run the cluster; raises UnavailableError where Ceph's packages are missing.

    Args:
        directory: takes its files.
        authority: signs its certificate.
        host: the address that the gateway listens on.
        options: further lines of its section of ceph.conf.
    """
    mon, osd, gateway = program("ceph-mon"), program("ceph-osd"), program("radosgw")
    mon_port, http, https = free_ports(3)
    certificate = authority.issue("rgw", "DNS:localhost", f"IP:{host}")
    fsid = str(uuid.uuid4())
    config = directory / "ceph.conf"
    for name in ("run", "crash", "rgw", "osd"):
        (directory / name).mkdir()
    config.write_text(
        _CONFIG.format(
            dir=directory,
            fsid=fsid,
            mon=mon_port,
            host=host,
            http=http,
            https=https,
            memory=_MEMORY_BYTES,
            # Debian 13's own default is relative to the working directory.
            classes="".join(f"osd class dir = {found}" for found in Path("/usr/lib").glob("*/rados-classes")),
            cert=certificate.cert,
            key=certificate.key,
            options=options,
        )
    )
    keyring, monmap, conf = directory / "keyring", directory / "monmap", ("-c", str(config))
    _make_keys(keyring)
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", str(monmap))
    _run(mon, *conf, "--mkfs", "-i", "a", "--monmap", str(monmap), "--keyring", str(keyring))
    with ExitStack() as stack:
        # Foreground, so that each is a child of ours and is ended with us.
        stack.enter_context(start(mon, *conf, "-f", "-i", "a", name="ceph-mon")).wait_port(mon_port)
        _run("ceph", *conf, "auth", "import", "-i", str(keyring))
        osd_id = str(uuid.uuid4())
        _run("ceph", *conf, "osd", "new", osd_id)
        _run(osd, *conf, "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        stack.enter_context(start(osd, *conf, "-f", "-i", "0", name="ceph-osd"))
        _run("ceph", *conf, "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
        server = stack.enter_context(start(gateway, *conf, "-f", "-n", "client.rgw", name="radosgw"))
        server.wait_port(https, host)
        plain = S3Server(f"http://{host}:{http}", "testkey", "testsecret")
        name = "localhost" if host == "127.0.0.1" else host
        made = Gateway(
            f"https://{name}:{https}", plain.access_key, plain.secret_key, authority.ca, plain=plain, config=config
        )
        keys = ("--access-key", made.access_key, "--secret-key", made.secret_key)
        made.admin("user", "create", "--uid", "test", "--display-name", "test", *keys)
        yield made


def _make_keys(keyring: Path) -> None:
    everyone = {
        "mon.": ("mon", "allow *"),
        "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
        "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
        "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    }
    _run("ceph-authtool", "--create-keyring", str(keyring))
    for name, caps in everyone.items():
        given = [word for pair in zip(caps[::2], caps[1::2], strict=True) for word in ("--cap", *pair)]
        _run("ceph-authtool", str(keyring), "--gen-key", "-n", name, *given)


def _run(name: str, *words: str) -> str:
    command = [program(name) if "/" not in name else name, *words]
    done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise ProgramError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
