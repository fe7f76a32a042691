"""How many clients fit into a limit of descriptors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from s3daemon.config.settings import MAX_CLIENTS, MAX_CONNECTIONS
from s3daemon.errors import SettingsError
from s3daemon.systemd.descriptors import WANTED, clients_within


@pytest.mark.parametrize(
    ("limit", "max_clients", "max_connections", "clients"),
    [
        (65536, 1024, 25, 1024),
        (4096, 1024, 25, 981),
        (1024, 1024, 25, 213),
        (1024, 100, 25, 100),
        (256, 1024, 25, 21),
        (82, 1024, 25, 4),
        (2080, 1024, 1024, 4),
    ],
)
def test_clients_leave_descriptors_to_uploads(limit: int, max_clients: int, max_connections: int, clients: int) -> None:
    assert clients_within(limit, max_clients, max_connections) == clients


@pytest.mark.parametrize(("limit", "max_connections", "least"), [(81, 25, 82), (10, 1, 34), (1024, 1024, 2080)])
def test_a_limit_that_uploads_alone_would_use_up_is_a_fault(limit: int, max_connections: int, least: int) -> None:
    with pytest.raises(SettingsError) as caught:
        clients_within(limit, 1024, max_connections)
    (fault,) = caught.value.faults
    assert f"needs {least} descriptors at least, and may have {limit}" in fault


def test_the_units_limit_is_enough_for_the_highest_settings() -> None:
    assert clients_within(WANTED, MAX_CLIENTS, MAX_CONNECTIONS) == MAX_CLIENTS


@pytest.mark.parametrize(("soft", "hard", "found"), [(100, 500, 500), (600, 600, 600)])
def test_the_soft_limit_is_raised_as_far_as_it_may_be(soft: int, hard: int, found: int) -> None:
    code = "from s3daemon.systemd.descriptors import raise_limit as r; import resource as q;"
    code += "print(r(), q.getrlimit(q.RLIMIT_NOFILE)[0])"
    command = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(found)] * 2
