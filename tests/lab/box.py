"""The box: a small Debian system booted by a real systemd, for units, socket activation and the journal.

In the cache directory::

    lock                held while one of the others is made or removed
    root-HASH/          the root file system, made once per list of packages by debootstrap
    live-*/             a throw-away copy of it, flock'ed while its test run lives; the next run removes leftovers

The box shares the host's network: a port opened there on 127.0.0.1 is the host's too, and the S3 servers that tests
run on the host are in its reach. It is of the host's own Debian release, so what was built here runs there.
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.env import MACHINE_ENV, SYSTEM_PATH, TREE, UnavailableError, clean_env, program
from lab.processes import Process, ProgramError, start

CACHE = Path("/var/tmp/s3daemon-tests")
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "iproute2", "procps", "libsystemd0", "rpm")
UNUSED = (
    *("usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man"),
    *("var/cache/apt/archives", "var/lib/apt/lists"),
)
"""What no test reads of it: half of the files, which each box would copy and remove."""
_POWER_OFF = signal.SIGRTMIN + 4
"""What systemd as PID 1 takes for a clean power-off."""

_CGROUP = () if Path("/run/systemd/system").is_dir() else ("--keep-unit",)
"""Where the host runs systemd, that gives the container a scope of its own; elsewhere it takes the caller's cgroup."""


class Box:
    """A booted system."""

    def __init__(self, root: Path, *arguments: str) -> None:
        """Describe it; nothing runs before ``boot``."""
        self.root = root
        """Its root file system as the host sees it: files may be put there at any time."""
        self._arguments = arguments
        self._running: tuple[ExitStack, Process] | None = None

    def boot(self) -> None:
        """Start it and wait until systemd reports that it is up."""
        stack = ExitStack()
        process = stack.enter_context(
            start(
                program("systemd-nspawn"),
                "--quiet",
                f"--directory={self.root}",
                "--boot",
                "--register=no",
                *_CGROUP,
                "--notify-ready=yes",
                "--console=pipe",
                "--resolv-conf=off",
                "--hostname=box",
                *self._arguments,
                name="box",
                notify=True,
            )
        )
        self._running = stack, process
        try:
            process.wait_ready()
        except ProgramError:
            stack.close()
            self._running = None
            raise

    def power_off(self) -> None:
        """Shut it down in order; its files stay."""
        if self._running is None:
            return
        stack, process = self._running
        self._running = None
        with stack:
            os.kill(self._leader(process), _POWER_OFF)
            process.wait(60)

    def reboot(self) -> None:
        """Power it off and boot the same files again."""
        self.power_off()
        self.boot()

    def command(self, *words: str | Path) -> list[str]:
        """The host's command that runs these words inside, as root, for ``processes.start`` or subprocess."""
        if self._running is None:
            raise ValueError("the box is not up")
        leader = str(self._leader(self._running[1]))
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return [program("nsenter"), "--target", leader, *spaces, "--", *map(str, words)]

    def exec(
        self,
        *words: str | Path,
        check: bool = True,
        text_in: str = "",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root, and wait for it; with ``check`` a status other than 0 raises ProgramError."""
        environ = clean_env(HOME="/root", **(env or {}))
        done = subprocess.run(
            self.command(*words),
            env=environ,
            input=text_in,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise ProgramError(f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def put(self, source: Path, target: str, mode: int = 0o644) -> Path:
        """Copy a file to an absolute path inside; returns where the host sees it."""
        copied = self.root / target.lstrip("/")
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copied)
        copied.chmod(mode)
        return copied

    @staticmethod
    def _leader(process: Process) -> int:
        return int(process.status["X_NSPAWN_LEADER_PID"])


@contextmanager
def box(*arguments: str, cache: Path = CACHE) -> Iterator[Box]:
    """Boot a throw-away copy of the root file system; the tree is at /tree inside, read-only.

    The arguments go to systemd-nspawn. Raises UnavailableError without root, on another distribution, or without the
    programs; the first call on a machine takes a minute.
    """
    if os.geteuid() != 0:
        raise UnavailableError("booting a container takes root")
    program("systemd-nspawn")
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        with _locked(cache / "lock"):
            _remove_leftovers(cache)
            root = _root(cache)
            live = Path(tempfile.mkdtemp(prefix="live-", dir=cache))
            stack.callback(subprocess.run, ["/bin/rm", "-rf", str(live)], check=False)  # in half of shutil's time
            stack.enter_context(_locked(live))
        live.chmod(0o755)
        subprocess.run(["/bin/cp", "-a", "--reflink=auto", f"{root}/.", str(live)], check=True)
        (live / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        made = Box(live, f"--bind-ro={TREE}:/tree", *arguments)
        stack.callback(made.power_off)
        made.boot()
        yield made


def _root(cache: Path) -> Path:
    """The root file system to copy, made by debootstrap if it is not there."""
    release = _debian_release()
    name = hashlib.sha256(" ".join((release, *PACKAGES, *UNUSED)).encode()).hexdigest()[:12]
    root = cache / f"root-{name}"
    if root.exists():
        return root
    made = cache / "making"
    shutil.rmtree(made, ignore_errors=True)
    command = [program("debootstrap"), "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(made)]
    environ = {**MACHINE_ENV, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"debootstrap failed: {' / '.join(done.stdout.splitlines()[-3:])}{done.stderr}")
    for name in UNUSED:
        shutil.rmtree(made / name, ignore_errors=True)
    (made / "etc/hosts").write_text("127.0.0.1 localhost box\n::1 localhost\n")
    (made / "var/log/journal").mkdir(exist_ok=True)  # journald's sign to keep the journal over a boot
    made.rename(root)
    return root


def _debian_release() -> str:
    """The host's code name."""
    lines = Path("/etc/os-release").read_text().splitlines()
    fields = {name: value.strip('"') for name, _, value in (line.partition("=") for line in lines)}
    if fields.get("ID") != "debian":
        raise UnavailableError(f"the box is made for Debian hosts; this is {fields.get('PRETTY_NAME')}")
    return fields["VERSION_CODENAME"]


def _remove_leftovers(cache: Path) -> None:
    for live in cache.glob("live-*"):
        descriptor = os.open(live, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(live, ignore_errors=True)
        except BlockingIOError:
            pass  # another test run's
        finally:
            os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
