"""The packages as packaging/build-rpm makes them, and functions to install them in the box.

The box has no database of its own system's packages, so dependencies are not checked (``--nodeps``); scriptlets run.
"""

import gzip
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.box import Box
from lab.env import MACHINE_ENV, SYSTEM_PATH, TREE, clean_env, free_ports, program
from lab.installed import CA, Service
from lab.processes import ProgramError
from lab.s3 import S3Server

UNITDIR = "/usr/lib/systemd/system"

PORT = 15555
"""The port of the packaged socket."""

PACKED = (
    *("CHANGELOG.rst", "LICENSE", "README.rst", "pyproject.toml", "setup.cfg"),
    *("send", "s3daemon", "systemd", "packaging", "tests"),
)
"""The files of the tree that a package is built from."""

_NICE = ("nice", "-n", "5")
"""Tests that measure time run beside a build."""

_LEFTOVERS = (
    "etc/systemd/system/**/s3daemon*",
    "usr/lib/systemd/**/*s3daemon*",
    "usr/lib/*/*s3daemon.conf",
    "usr/lib/s3daemon*",
    "usr/bin/s3daemon",
    "usr/bin/send",
    "usr/share/*/completions/s3daemon",
    "run/s3daemon*",
)


@dataclass(frozen=True)
class Packages:
    """One build: the packages of the daemon and the client, the one for plots, and that of the SELinux module."""

    version: str
    files: tuple[Path, ...]
    report: tuple[Path, ...]
    selinux: tuple[Path, ...]

    def install(self, box: Box) -> str:
        """``rpm -U`` in the box, whether anything is there before or not; the scriptlets' output."""
        return _install(box, self.files)

    def install_report(self, box: Box) -> str:
        """The same with the package for plots."""
        return _install(box, self.report)


def _install(box: Box, files: tuple[Path, ...]) -> str:
    inside = []
    for file in files:
        box.put(file, f"/root/{file.name}")
        inside.append(f"/root/{file.name}")
    done = box.exec("rpm", "-U", "--nodeps", *inside, timeout=180)
    return done.stdout + done.stderr


def build(directory: Path, *options: str, tree: Path = TREE) -> Packages:
    """Build the packages of a tree into a directory, at a low priority; raises UnavailableError without rpmbuild.

    What is bundled is fetched the first time on a machine and kept, so this gets the machine's own environment.
    """
    program("rpmbuild")
    environ = {**MACHINE_ENV, "PATH": SYSTEM_PATH}
    done = subprocess.run(
        [*_NICE, tree / "packaging" / "build-rpm", "--output", directory, *options],
        env={name: value for name, value in environ.items() if not name.startswith("PYTHON")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode != 0:
        raise ProgramError(f"build-rpm: status {done.returncode}\n{done.stdout}{done.stderr}")
    return built(directory)


def built(directory: Path) -> Packages:
    """The packages that were built into a directory."""
    report, selinux = (tuple(directory.glob(f"s3daemon-{name}-*.rpm")) for name in ("report", "selinux"))
    files = tuple(sorted({*directory.glob("*.rpm")} - {*report, *selinux}))
    match = re.search(r"-([0-9.]+)-[0-9]+\.", files[0].name)
    return Packages(match[1] if match else "", files, report, selinux)


@dataclass(frozen=True)
class Builds:
    """What is being made.

    Args:
        this: this version's packages, built without the unit tests.
        lint: what rpmlint has to say of them.
        later: the next version's, built with them.
    """

    this: Future[Packages]
    lint: Future[str]
    later: Future[Packages]


@contextmanager
def building(directory: Path) -> Iterator[Builds]:
    """Make these in an empty directory beside what is done in the ``with`` block, at a low priority."""
    tree = later_tree(directory)
    pool = ThreadPoolExecutor(2)
    this = pool.submit(build, directory / "this", "--no-check")
    later = pool.submit(build, directory / "later", "--no-report", tree=tree)
    try:
        yield Builds(this, pool.submit(lambda: _lint(this.result())), later)
    finally:
        pool.shutdown(cancel_futures=True)


def query(package: Path, what: str) -> list[str]:
    """The lines of `rpm -qp` for a package."""
    done = subprocess.run(
        [program("rpm"), "-qp", what, package], env=clean_env(), capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


def extract(package: Path, pattern: str, directory: Path) -> None:
    """Put the files of a package whose paths match below a directory."""
    with subprocess.Popen([program("rpm2cpio"), package], stdout=subprocess.PIPE) as unpacked:
        subprocess.run(
            [program("cpio"), "-id", "--quiet", pattern], stdin=unpacked.stdout, cwd=directory, check=True, timeout=60
        )


def render(page: Path) -> tuple[str, str]:
    """Groff's warnings about a manual page, with tables as man(1) has them, and the page as plain text.

    Raises UnavailableError without groff.
    """
    content = page.read_bytes()
    source = gzip.decompress(content) if page.suffix == ".gz" else content
    done = subprocess.run(
        [program("groff"), "-t", "-man", "-ww", "-Tutf8", "-P-cbou"],
        input=source, env=clean_env(), capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stderr.decode(), done.stdout.decode()


def _lint(packages: Packages) -> str:
    """Rpmlint's output for the packages and the spec; raises UnavailableError without it."""
    what = [*map(str, packages.files + packages.report + packages.selinux), "packaging/s3daemon.spec"]
    done = subprocess.run(
        [*_NICE, program("rpmlint"), "--rpmlintrc", "packaging/rpmlintrc", *what],
        cwd=TREE, env=clean_env(), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    return done.stdout + done.stderr


def later_tree(directory: Path) -> Path:
    """A copy of the tree that is the next version, with a template of the settings that changed too."""
    tree = directory / "tree"
    tree.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (TREE / name).is_dir() else shutil.copy2
        copy(TREE / name, tree / name)
    versions = {
        "s3daemon/__init__.py": r'(__version__ = ")[^"]+',
        "send": r'(VERSION = ")[^"]+',
        "packaging/s3daemon.spec": r"(Version: +)\S+",
    }
    for name, pattern in versions.items():
        file = tree / name
        text, count = re.subn(pattern, r"\g<1>99.0.0", file.read_text(), count=1)
        if count != 1:
            raise ProgramError(f"no version in {name}")
        file.write_text(text)
    with (tree / "packaging/s3daemon.env").open("a") as template:
        template.write("\n# A line of the next version's template.\n")
    return tree


def remove(box: Box) -> str:
    """``rpm -e``; its output and that of the scriptlets."""
    done = box.exec("rpm", "-e", "s3daemon", "s3daemon-send")
    return done.stdout + done.stderr


def is_installed(box: Box) -> bool:
    """Whether the daemon's package is installed."""
    return box.exec("rpm", "-q", "s3daemon", check=False).returncode == 0


@contextmanager
def installed(box: Box, packages: Packages) -> Iterator[Service]:
    """The packaged service, stopped; installed unless it is.

    At the end everything is stopped and disabled, its state and settings are removed, and the package stays.
    """
    if not is_installed(box):
        packages.install(box)
    with ExitStack() as stack:
        port = free_port()
        if port != PORT:
            folder = box.root / "etc/systemd/system/s3daemon.socket.d"
            folder.mkdir()
            (folder / "port.conf").write_text(f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
            stack.callback(box.exec, "systemctl", "daemon-reload")
            stack.callback(shutil.rmtree, folder)
            box.exec("systemctl", "daemon-reload")
        made = Service(box, "s3daemon", port)
        try:
            yield made
        finally:
            for each in (instance(made), made):
                if is_installed(box):
                    each.systemctl("disable", "--now", each.socket, each.unit)
                    each.systemctl("reset-failed", each.socket, each.unit, check=False)
                each.environment_file.unlink(missing_ok=True)
                shutil.rmtree(box.root / "var/lib" / each.name, ignore_errors=True)


def instance(service: Service) -> Service:
    """A further instance beside the service."""
    return Service(service.box, f"s3daemon@{service.port + 1}", service.port + 1)


def edit(service: Service, server: S3Server) -> None:
    """Fill in the packaged template as an operator does: three lines, and the certificate's."""
    service.box.put(server.ca or Path("/dev/null"), CA)
    text = service.environment_file.read_text()
    for name, value in (server.settings() | {"AWS_CA_BUNDLE": CA}).items():
        text, count = re.subn(rf"^#?{name}=.*$", f"{name}={value}", text, flags=re.M)
        if count != 1:
            raise ProgramError(f"the template has {count} lines for {name}")
    service.environment_file.write_text(text)


def unit_files(box: Box) -> list[str]:
    """The packaged units, by name."""
    return sorted(path.name for path in (box.root / UNITDIR[1:]).glob("s3daemon*"))


def leftovers(box: Box) -> list[str]:
    """What a removed package must not leave: units and links to them, programs, the library directory, processes."""
    paths = [path for pattern in _LEFTOVERS for path in box.root.glob(pattern)]
    # The test's own drop-ins stay.
    found = [str(path.relative_to(box.root)) for path in paths if ".d" not in (path.suffix, path.parent.suffix)]
    units = box.exec("systemctl", "list-units", "--all", "--plain", "--no-legend", "s3daemon*").stdout.splitlines()
    # Of a unit that is gone and stopped systemd forgets the name when it is idle; never, where there is a drop-in.
    loaded = [unit for unit in units if " not-found inactive dead " not in unit]
    running = box.exec("ps", "-u", "s3daemon", "-o", "args=", check=False).stdout
    return found + loaded + running.splitlines()


def free_port() -> int:
    """The port that the unit names, or another one if it or the instance's is in use on this host, whose network the
    box shares."""
    with socket.socket() as probe, socket.socket() as for_instance:
        try:
            for port, sock in enumerate((probe, for_instance), PORT):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))
        except OSError:
            return free_ports(1)[0]
    return PORT


def environment_of(box: Box, pid: str) -> bytes:
    """The environment of a process in the box, b"" if it has ended."""
    done = subprocess.run(box.command("cat", f"/proc/{pid}/environ"), capture_output=True, check=False)
    return done.stdout


def processes(box: Box) -> list[str]:
    """The ids of the processes in the box."""
    return box.exec("ps", "-e", "-o", "pid=").stdout.split()
