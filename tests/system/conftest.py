"""What tests of the installed service share: packages, the gateway behind a network that can fail, and a bucket."""

from collections.abc import Iterator

import pytest
from lab import rpm
from lab.relay import Relay, relay
from lab.rgw import Gateway
from lab.s3 import S3Server


@pytest.fixture(scope="session", autouse=True)
def builds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[rpm.Builds | None]:
    """If a test takes packages, they are made beside all tests here from the first one on."""
    if not any("packages" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    with rpm.building(tmp_path_factory.mktemp("packages")) as made:
        yield made


@pytest.fixture
def line(rgw: Gateway) -> Iterator[tuple[Relay, S3Server]]:
    """The network between the daemon and the gateway, and the gateway as it is reached through it."""
    with relay(rgw) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(rgw: Gateway) -> str:
    return rgw.new_bucket()
