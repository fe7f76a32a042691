"""What systemd's queue of jobs says of a stop. Where nobody says, it is a restart: the next process may answer.

What clients are told then is tested under a real systemd, in test_systemd.py.
"""

import pytest

from s3daemon.systemd.stopping import has_stop, is_for_good, own_unit


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/s3daemon.service\n", "s3daemon.service"),
        ("0::/system.slice/system-s3daemon.slice/s3daemon@15556.service\n", "s3daemon@15556.service"),
        ("12:pids:/a.slice\n1:name=systemd:/system.slice/s3daemon.service\n0::/\n", "s3daemon.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(cgroups: str, unit: str) -> None:
    assert own_unit(cgroups) == unit


@pytest.mark.parametrize(
    ("jobs", "stop"),
    [
        ("812 s3daemon.service stop running\n", True),
        ("811 s3daemon.socket stop waiting\n812 s3daemon.service stop running\n", True),
        ("812 s3daemon.service restart running\n", False),
        ("812 s3daemon.service start waiting\n", False),
        ("811 s3daemon@15556.service stop running\n", False),
        ("", False),
    ],
)
def test_a_stop_is_told_from_a_restart(jobs: str, stop: bool) -> None:
    assert has_stop(jobs, "s3daemon.service") is stop


@pytest.mark.parametrize("path", ["/nonexistent", "the system's"])
def test_without_a_systemd_that_answers_it_is_none(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    if path == "/nonexistent":
        monkeypatch.setenv("PATH", path)
    assert is_for_good() is False
