"""A host made of files, for tests of `s3daemon check`."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import pwd
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from s3daemon.commands.check.findings import Findings
from s3daemon.commands.check.system import Host
from s3daemon.config.settings import Settings

SYSCTLS = {
    "net.ipv4.tcp_congestion_control": "cubic",
    "net.ipv4.tcp_available_congestion_control": "reno cubic",
    "net.ipv4.tcp_allowed_congestion_control": "reno cubic",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_wmem": "4096\t16384\t67108864",
}
#: What systemctl shows of units as the package installs them, enabled.
UNITS = {
    "socket": {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled",
               "Listen": "127.0.0.1:15555 (Stream)"},
    "service": {"LoadState": "loaded", "ActiveState": "inactive", "UnitFileState": "enabled",
                "ProtectSystem": "strict", "StateDirectory": "%N", "ReadWritePaths": ""},
}  # fmt: skip


def settings(**changes: object) -> Settings:
    """Make valid settings."""
    given = {"endpoint_url": "http://127.0.0.1:1", "access_key": "a", "secret_key": "b", "state_dir": "/nowhere"}
    return Settings(**{**given, **changes})  # type: ignore[arg-type]  # names of its own, each of its type


def account(name: str, uid: int) -> pwd.struct_passwd:
    """Make an account of that name."""
    return pwd.struct_passwd((name, "x", uid, uid, "", "/", "/bin/false"))


class Looked:
    """A host made of files, on which systemd runs and the package is installed, and what is found there."""

    def __init__(self, root: Path, **sysctls: str) -> None:
        self.out = io.StringIO()
        self.findings = Findings(self.out)
        self.host = Host(
            root,
            uid=0,
            user=lambda name: None,
            show=self._show,
            environment=self._environment,
            last_error=lambda unit: "",
            readable=lambda file, user, groups: None,
        )
        self.units = {kind: dict(shown) for kind, shown in UNITS.items()}
        for name, value in {**SYSCTLS, **sysctls}.items():
            if value:
                self.put("/proc/sys/" + name.replace(".", "/"), value + "\n")

    def _show(self, unit: str) -> Mapping[str, str]:
        name, _, kind = unit.rpartition(".")
        plain, optional, rest = name.partition("-")  # an optional socket: "http" in s3daemon-http@4.socket
        if optional:
            name, kind = plain, rest.partition("@")[0]
        return {key: value.replace("%N", name) for key, value in self.units.get(kind, {}).items()}

    def _environment(self, file: Path) -> Mapping[str, str] | None:
        """Read NAME=value lines, as systemd would; None of a file that it does not take."""
        content = self.host.path(file).read_text()
        return None if "\0" in content else dict(line.split("=", 1) for line in content.splitlines())

    def change(self, **changes: Any) -> None:
        """Put other values into the host."""
        self.host = dataclasses.replace(self.host, **changes)

    def put(self, path: str, text: str = "") -> Path:
        """Make a file of the host."""
        file = self.host.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    @property
    def lines(self) -> list[str]:
        """What was found, blanks made single."""
        return [" ".join(line.split()) for line in self.out.getvalue().splitlines()]

    def levels(self) -> set[str]:
        """The levels of what was found."""
        return {line.split()[0] for line in self.lines}

    def one(self, word: str) -> str:
        """The one line with that word."""
        (line,) = [line for line in self.lines if word in line]
        return line


def refusal(status: int, code: str) -> bytes:
    """Make an answer as S3 gives it."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>"
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@asynccontextmanager
async def serving(
    answer: bytes, tls: ssl.SSLContext | None = None, *, address: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serve at an address of loopback, with the same answer to every request; yield the URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async with await asyncio.start_server(serve, address, port, ssl=tls) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if tls else 'http'}://{address}:{port}"


def settings_for(url: str, **more: str) -> Settings:
    """Make settings for a server that does not check keys."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "S3DAEMON_STATE_DIR": "/nowhere"}
    return Settings.from_environ({"S3_ENDPOINT_URL": url, **keys, **more})
