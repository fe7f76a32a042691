"""A host made of files, for tests of `s3daemon check`."""

from __future__ import annotations

import io
import os
import pwd
from pathlib import Path

from s3daemon.commands.check.findings import Host, Report
from s3daemon.config.settings import Settings

SYSCTLS = {
    "net.ipv4.tcp_congestion_control": "cubic",
    "net.ipv4.tcp_available_congestion_control": "reno cubic",
    "net.ipv4.tcp_allowed_congestion_control": "reno cubic",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_wmem": "4096\t16384\t67108864",
    "net.ipv4.tcp_mtu_probing": "1",
    "net.core.default_qdisc": "fq",
}
#: /proc/net/tcp with a socket that listens at 127.0.0.1 port 15555.
LOOPBACK_ROW = "  sl  local_address rem_address   st\n   0: 0100007F:3CC3 00000000:0000 0A 00000000:00000000\n"


def settings(**changes: object) -> Settings:
    """Valid ones."""
    given = {"endpoint_url": "http://127.0.0.1:1", "access_key": "a", "secret_key": "b", "state_dir": "/nowhere"}
    return Settings(**{**given, **changes})  # type: ignore[arg-type]


def account(name: str, uid: int) -> pwd.struct_passwd:
    """An account of that name."""
    return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/false"))


class Looked:
    """A host made of files, and what is said of it."""

    def __init__(self, root: Path, **sysctls: str) -> None:
        self.out = io.StringIO()
        self.report = Report(self.out)
        self.host = Host(root, uid=os.geteuid(), user=lambda name: None, systemctl=lambda *words: "")
        for name, value in {**SYSCTLS, **sysctls}.items():
            if value:
                self.put("/proc/sys/" + name.replace(".", "/"), value + "\n")

    def put(self, path: str, text: str = "") -> Path:
        """Make a file of the host."""
        file = self.host.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    @property
    def lines(self) -> list[str]:
        """What was said, blanks made single."""
        return [" ".join(line.split()) for line in self.out.getvalue().splitlines()]

    def levels(self) -> set[str]:
        """The kinds of what was said."""
        return {line.split()[0] for line in self.lines}

    def one(self, word: str) -> str:
        """The one line with that word."""
        (line,) = [line for line in self.lines if word in line]
        return line
