"""The lab's servers as fixtures, one of each per session; with CI=true a skip is a failure."""

import gc
import os
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from lab import box as box_lab
from lab import deploy, env, processes
from lab import moto as moto_lab
from lab import nginx as nginx_lab
from lab import rgw as rgw_lab
from lab import seaweed as seaweed_lab
from lab import soaking as soaking_lab
from lab.certs import Authority
from lab.flaky import FlakyS3, flaky
from lab.s3 import S3Server
from lab.schemes import Scheme, scheme_of

from s3daemon.network import tcp

_EVERYTHING_REQUIRED = os.environ.get("CI") == "true"

Thing = TypeVar("Thing")


def pytest_configure() -> None:
    """Libraries inside the tests must not read the machine's proxies, certificates and AWS variables.

    No generated example fails for taking long: what is slow is the machine.
    """
    env.scrub(os.environ)
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A failing test shows what the programs wrote while it ran, and not what they wrote before."""
    processes.mark()
    if item.path != _collected.get("for"):
        _collected["for"] = item.path
        _exempt_from_collection()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skip is a failure; a failure shows what the started programs wrote."""
    report = yield
    if report.skipped and _EVERYTHING_REQUIRED and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything is required: {call.excinfo and call.excinfo.value}"
    if report.failed:
        report.sections.extend((f"output of {name}", text) for name, text in processes.written_since_mark())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Likewise for a whole module that skips itself."""
    report = yield
    if report.skipped and _EVERYTHING_REQUIRED:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: skipped, where everything is required: {report.longrepr}"
    return report


def _entered(thing: AbstractContextManager[Thing]) -> Iterator[Thing]:
    """Enter a context for the life of a fixture; skip, with the reason, where a part of it is missing."""
    with ExitStack() as stack:
        try:
            made = stack.enter_context(thing)
        except env.UnavailableError as missing:
            pytest.skip(str(missing))
        yield made


@pytest.fixture
def unsent_unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the kernel take as much of a body as its buffers hold."""
    monkeypatch.setattr(tcp, "UNSENT_BYTES", 1 << 30)


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority and what it issues."""
    try:
        return Authority(tmp_path_factory.mktemp("certs"))
    except env.UnavailableError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A moto server."""
    yield from _entered(moto_lab.moto())


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server."""
    yield from _entered(seaweed_lab.seaweed(tmp_path_factory.mktemp("seaweed")))


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory, certs: Authority) -> Iterator[rgw_lab.Gateway]:
    """Ceph's object gateway over HTTPS; ``rgw.plain`` is the same over HTTP."""
    yield from _entered(rgw_lab.rgw(tmp_path_factory.mktemp("rgw"), certs))


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, certs: Authority) -> Iterator[nginx_lab.Sink]:
    """A sink for PUTs."""
    yield from _entered(nginx_lab.nginx(tmp_path_factory.mktemp("nginx"), certs))


@pytest.fixture(scope="session")
def box() -> Iterator[box_lab.Box]:
    """A booted Debian system with the daemon's program in /usr/lib/s3daemon; tests install its units."""
    for made in _entered(box_lab.box()):
        deploy.lay_out(made.root)
        yield made


_collected: dict[str, Path] = {}
"""The module for which that was done last."""


def _exempt_from_collection() -> None:
    """Exempt what imports and earlier modules left in memory from garbage collection: many tests end with one."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The soak's result comes last."""
    items.sort(key=lambda item: "soaking" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", autouse=True)
def _soak_beside(request: pytest.FixtureRequest) -> Iterator[processes.Process | None]:
    """With CI=true the soak runs beside all tests from the first one on, so that it does not make the run longer."""
    wanted = any("soaking" in getattr(item, "fixturenames", ()) for item in request.session.items)
    if not (wanted and _EVERYTHING_REQUIRED):
        yield None
        return
    with soaking_lab.soak() as running:
        yield running


@pytest.fixture
def soaking(_soak_beside: processes.Process | None) -> Iterator[processes.Process]:
    """The soak that runs beside all tests, or one that is started now."""
    if _soak_beside is not None:
        yield _soak_beside
        return
    with soaking_lab.soak() as running:
        yield running


@pytest.fixture
def s3() -> Iterator[FlakyS3]:
    """An S3 server in memory, for one test, that can fail and go away."""
    with flaky() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small file to send."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture(params=["plain", "tls"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    """HTTP and HTTPS."""
    return scheme_of(request)
