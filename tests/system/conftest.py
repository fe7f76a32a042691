"""What tests of the installed service share: the gateway behind a network that can fail, and a bucket."""

from collections.abc import Iterator

import pytest
from lab.relay import Relay, relay
from lab.rgw import Gateway
from lab.s3 import S3Server


@pytest.fixture
def line(rgw: Gateway) -> Iterator[tuple[Relay, S3Server]]:
    """The network between the daemon and the gateway, and the gateway as it is reached through it."""
    with relay(rgw) as made:
        yield made


@pytest.fixture(scope="module")
def bucket(rgw: Gateway) -> str:
    return rgw.new_bucket()
