"""What tests of the checks share."""

from pathlib import Path

import pytest
from fake_host import Looked


@pytest.fixture
def looked(tmp_path: Path) -> Looked:
    return Looked(tmp_path)
