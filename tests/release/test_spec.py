"""The spec file agrees with the tree, and expands correctly for the target systems.

What the packages do once they are built and installed is tested in tests/system/test_rpm.py.
"""

import configparser
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from s3daemon import __version__

TREE = Path(__file__).resolve().parents[2]
PACKAGING = TREE / "packaging"
SPEC = (PACKAGING / "s3daemon.spec").read_text()
LOCKS = ("requirements.lock", "report.lock", "build.lock")
#: Tags of the main package, and of s3daemon-report.
MAIN, REPORT = SPEC.partition("%description report")[0].split("%package report")


def tag(name: str, part: str = MAIN) -> str:
    """Return the value of a package's tag."""
    match = re.search(rf"^{name}: +(.+)$", part, re.M)
    assert match, name
    return match[1]


def macro(name: str) -> list[str]:
    """Return the words of a %global."""
    match = re.search(rf"^%global {name} (.+)$", SPEC, re.M)
    assert match, name
    return match[1].split()


def pins(name: str) -> dict[str, tuple[str, int]]:
    """Map each library of a lock to its version and its number of hashes."""
    entry = r"^([a-z0-9-]+)==([^ ;]+)[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)"
    entries = re.findall(entry, locked(name), re.M)
    return {entry: (version, hashes.count("--hash")) for entry, version, hashes in entries}


def locked(name: str) -> str:
    return (PACKAGING / name).read_text()


def test_versions_agree() -> None:
    """The spec has the version of the program, of the client and of the latest change."""
    assert tag("Version") == __version__
    assert f'VERSION = "{__version__}"' in (TREE / "send").read_text()
    assert re.search(rf"%changelog\n\* \w+ \w+ \d+ \d+ .+ - {re.escape(__version__)}-1\n", SPEC)
    assert re.search(rf"^{re.escape(__version__)} ", (TREE / "CHANGELOG.rst").read_text(), re.M)


@pytest.mark.parametrize(("lock", "part"), [("requirements.lock", MAIN), ("report.lock", REPORT)], ids=LOCKS[:2])
def test_what_is_bundled_is_declared(lock: str, part: str) -> None:
    """Each library of the lock is declared as bundled, with its version, and its licence is one of the package."""
    declared = re.findall(r"^%bundles ([a-z0-9-]+) (\S+) (.+)$", part, re.M)
    assert {name: version for name, version, _ in declared} == {n: version for n, (version, _) in pins(lock).items()}
    licences = {one for _, _, licence in declared for one in licence.split(" AND ")}
    assert set(tag("License", part).split(" AND ")) == licences | {"BSD-3-Clause"}


def test_the_lock_is_what_the_daemon_requires() -> None:
    """Every requirement of setup.cfg is in the lock, in a version that satisfies it."""
    setup = configparser.ConfigParser()
    setup.read(TREE / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        version, _ = pins("requirements.lock")[requirement.name]
        assert version in requirement.specifier


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_hashes_of_names(name: str) -> None:
    """Every entry of a lock has hashes, and no lock names a place to fetch from."""
    text = locked(name)
    assert len(pins(name)) == len(re.findall(r"^[a-z0-9-]+==", text, re.M)) > 0
    known = r"#.*|[a-z0-9-]+==\S+( ; [a-z_]+ [<>=!]+ '[\w.]+')? \\|    --hash=sha256:[0-9a-f]{64}( \\)?"
    assert [line for line in text.splitlines() if not re.fullmatch(known, line)] == []


def test_every_unit_is_known_to_the_scriptlets() -> None:
    """The scriptlets name exactly the units and templates that are installed; sockets are never restarted."""
    there = {path.name for path in (TREE / "systemd").iterdir() if path.suffix in (".service", ".socket")}
    there.add("s3daemon@.service")  # installed from s3daemon.service
    assert "install -p -m 0644 systemd/s3daemon.service %{buildroot}%{_unitdir}/s3daemon@.service\n" in SPEC
    assert set(macro("units")) | set(macro("templates")) == there
    assert set(macro("templates")) == {name for name in there if "@." in name}
    (restarted,) = re.findall(r"^%systemd_postun_with_restart (.+)$", SPEC, re.M)
    assert restarted.split() == ["s3daemon.service", "'s3daemon@*.service'"]
    (left_alone,) = re.findall(r"^%systemd_postun (.+)$", SPEC, re.M)
    assert set(left_alone.split()) == {name for name in there if name.endswith(".socket")}


def test_every_file_is_packaged() -> None:
    """Every file of systemd/ and every manual page is in a package."""
    install = SPEC[SPEC.index("%install") : SPEC.index("%check")]
    for path in (TREE / "systemd").iterdir():
        assert path.suffix in (".service", ".socket") or f"systemd/{path.name}" in install
    files = SPEC[SPEC.index("\n%files\n") :]
    for page in (PACKAGING / "man").glob("*.rst"):
        assert f"%{{_mandir}}/man{page.stem[-1]}/{page.stem}*" in files


def test_the_shim_defines_what_the_spec_uses() -> None:
    """packaging/macros.systemd defines every systemd macro that the spec uses, and no other."""
    shim = set(re.findall(r"^%(\w+)", locked("macros.systemd"), re.M)) - {"_systemd_settle"}
    used = set(re.findall(r"%\{?((?:systemd|sysusers)_\w+|_\w+dir)\b", SPEC))
    assert used - shim <= {"_bindir", "_datadir", "_mandir", "_sysconfdir"}
    assert shim <= used


def test_every_rpmlint_filter_has_a_reason() -> None:
    lines = [line for line in locked("rpmlintrc").splitlines() if line]
    for above, line in pairwise(lines):
        assert above.startswith("#") or line.startswith("#"), line


@pytest.mark.skipif(shutil.which("rpmspec") is None, reason="needs rpmspec")
@pytest.mark.parametrize(
    ("system", "python", "makes_user"),
    [
        ("rhel 9", "python3.12", True),
        ("rhel 10", "python3", False),
        ("fedora 42", "python3", False),
        ("neither 1", "python3", True),
    ],
)
def test_other_systems(system: str, python: str, makes_user: bool, tmp_path: Path) -> None:
    """Enterprise Linux 9 uses python3.12, others python3; where rpm creates users, no scriptlet does."""
    shutil.copy(TREE / "systemd/s3daemon.sysusers", tmp_path)
    defines = [word for one in (f"_sourcedir {tmp_path}", system) for word in ("--define", one)]
    done = subprocess.run(
        ["rpmspec", "--load", PACKAGING / "macros.systemd", *defines, "-P", PACKAGING / "s3daemon.spec"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^BuildRequires: +{re.escape(python)}-devel$", done.stdout, re.M)
    assert f"\n/usr/bin/{python} -m venv tools\n" in done.stdout
    assert ("\n%pre\n" in done.stdout) == makes_user
    assert ("u s3daemon - " in done.stdout) == makes_user
    assert not re.search(r"%\{?(systemd|sysusers|_\w+dir)", done.stdout)
