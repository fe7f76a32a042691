"""The service in the box, installed from the tree by hand as an operator may, and methods to use it."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from subprocess import CompletedProcess
from typing import Any, TypeVar

from lab.box import Box
from lab.env import TREE, free_ports
from lab.processes import Process, ProgramError, start
from lab.s3 import S3Server

CA = "/etc/s3daemon-ca.pem"
#: Installed path to the file in systemd/; the service and its instances share one text.
_PLACES = {
    "/etc/systemd/system/s3daemon.service": "s3daemon.service",
    "/etc/systemd/system/s3daemon@.service": "s3daemon.service",
    "/etc/systemd/system/s3daemon.socket": "s3daemon.socket",
    "/etc/systemd/system/s3daemon@.socket": "s3daemon@.socket",
    "/etc/systemd/system/s3daemon-http@.socket": "s3daemon-http@.socket",
    "/etc/systemd/system/s3daemon-unix@.socket": "s3daemon-unix@.socket",
    "/usr/lib/systemd/catalog/s3daemon.catalog": "s3daemon.catalog",
}
_SYSUSERS = "/usr/lib/sysusers.d/s3daemon.conf"

Found = TypeVar("Found")


class Service:
    """One instance of the service: ``s3daemon``, or ``s3daemon@PORT``."""

    def __init__(self, box: Box, name: str, port: int) -> None:
        """Describe it."""
        self.box = box
        self.name = name
        self.port = port
        self.unit, self.socket = f"{name}.service", f"{name}.socket"
        self.environment_file = box.root / "etc/sysconfig" / name

    def configure(self, server: S3Server, **variables: str) -> None:
        """Write the environment file, root's alone, for a store and with further variables."""
        settings = server.settings()
        if server.ca is not None:
            self.box.put(server.ca, CA)
            settings["AWS_CA_BUNDLE"] = CA
        self.write("".join(f"{name}={value}\n" for name, value in (settings | variables).items()))

    def write(self, text: str) -> None:
        """Write the environment file as it is given."""
        self.environment_file.parent.mkdir(exist_ok=True)
        self.environment_file.touch(mode=0o600)
        self.environment_file.write_text(text)

    def systemctl(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run systemctl."""
        return self.box.exec("systemctl", *words, check=check)

    def show(self, name: str, unit: str = "") -> str:
        """One property of the service, or of another unit."""
        return self.systemctl("show", "--value", "-p", name, unit or self.unit).stdout.strip()

    def wait_show(self, name: str, wanted: str | Callable[[str], bool], timeout: float = 60.0) -> str:
        """Wait until a property of the service is as wanted."""
        fits = wanted if callable(wanted) else wanted.__eq__
        return until(lambda: self.show(name), fits, f"{name} of {self.unit} as wanted", timeout)

    def main_pid(self) -> int:
        """The daemon's process id inside the box, 0 when there is none."""
        return int(self.show("MainPID"))

    def send(self, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Run `send` with these arguments to its end."""
        return self.box.exec("/usr/bin/send", *words, check=check, env=self._environ(), timeout=150)

    def sending(self, *words: str) -> AbstractContextManager[Process]:
        """Run `send` for the time of a ``with`` block."""
        return self.running("/usr/bin/send", *words)

    def running(self, *words: str) -> AbstractContextManager[Process]:
        """Run a command that may call `send` for the time of a ``with`` block."""
        settings = [f"{name}={value}" for name, value in self._environ().items()]
        return start(*self.box.command("env", *settings, *words), name=words[0].rpartition("/")[2])

    def _environ(self) -> dict[str, str]:
        return {"S3DAEMON_PORT": str(self.port)}

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """This service's journal entries with these fields."""
        self.box.exec("journalctl", "--sync")
        written = self.box.exec("journalctl", "-u", self.unit, "-o", "json", "--all", *matches).stdout
        return [json.loads(line) for line in written.splitlines()]

    def records(self, key: str, count: int = 1) -> list[dict[str, Any]]:
        """The records of transfers to a key, once there are so many: they come after the client's answer."""
        match = f"S3DAEMON_KEY={key}", "S3DAEMON_OUTCOME=stored"
        return until(lambda: self.journal(*match), lambda found: len(found) >= count, f"{count} records of {key}")

    @contextmanager
    def drop_in(self, text: str) -> Iterator[None]:
        """Change the unit for the time of a ``with`` block, as `systemctl edit --runtime` does."""
        folder = self.box.root / f"etc/systemd/system/{self.unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\n{text}\n")
        self.systemctl("daemon-reload")
        try:
            yield
        finally:
            shutil.rmtree(folder)
            self.systemctl("daemon-reload")

    def stop(self) -> None:
        """Stop it and remove its state and settings, so that a failed test does not affect the next one."""
        self.systemctl("stop", self.socket, self.unit)
        self.systemctl("reset-failed", self.socket, self.unit, check=False)
        if self.show("LoadState") == "loaded" and (self.box.root / f"var/lib/{self.name}").exists():
            self.systemctl("clean", "--what=state", self.unit)
        self.environment_file.unlink(missing_ok=True)


@contextmanager
def installed(box: Box) -> Iterator[Service]:
    """Install units, user and catalog for the time of a ``with`` block; at its end the service is stopped."""
    with ExitStack() as stack:
        stack.callback(box.exec, "systemctl", "daemon-reload")
        for place, name in _PLACES.items():
            stack.callback(box.put(TREE / "systemd" / name, place).unlink)
        stack.callback(box.put(TREE / "systemd/s3daemon.sysusers", _SYSUSERS).unlink)
        box.exec("systemd-sysusers")
        box.exec("journalctl", "--update-catalog")
        # The box shares the host's network, where another program may use the usual port.
        (port,) = free_ports(1)
        folder = box.root / "etc/systemd/system/s3daemon.socket.d"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder)
        (folder / "port.conf").write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
        box.exec("systemctl", "daemon-reload")
        service = Service(box, "s3daemon", port)
        stack.callback(service.stop)
        yield service


def until(look: Callable[[], Found], fits: Callable[[Found], bool], what: str, timeout: float = 60.0) -> Found:
    """Call `look` until its result fits, and return that. Raises ProgramError, with the last result, on timeout."""
    deadline = time.monotonic() + timeout
    while not fits(found := look()):
        if time.monotonic() > deadline:
            raise ProgramError(f"no {what} within {timeout:g} s, but {found!r}")
        time.sleep(0.1)
    return found


def write_file(box: Box, path: str, content: bytes) -> str:
    """Put a file that everybody can read into the box; its path there."""
    file = box.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(0o644)
    return path


def wait_for_one_more_each(loops: list[Process]) -> None:
    """Wait until each loop has completed another send."""
    before = [len(loop.lines()) for loop in loops]
    until(
        lambda: [len(loop.lines()) for loop in loops],
        lambda after: all(new > old for new, old in zip(after, before, strict=True)),
        "send in each loop",
    )
