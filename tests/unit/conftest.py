"""What unit tests of several rooms share."""

import pytest
from lab.keeping import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()
