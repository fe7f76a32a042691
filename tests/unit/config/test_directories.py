"""Of the directories that systemd lists, the unit's own is found by its name, wherever it stands."""

import pytest

from s3daemon.config.directories import own_directory


@pytest.mark.parametrize(
    ("listed", "own"),
    [
        ("", ""),
        ("/var/lib/s3daemon", "/var/lib/s3daemon"),
        ("/var/lib/images:/var/lib/s3daemon", "/var/lib/s3daemon"),
        ("/var/lib/s3daemon:/var/lib/scratch", "/var/lib/s3daemon"),
        ("/run/images:/run/s3daemon@15557", "/run/s3daemon@15557"),
        ("/var/lib/s3daemon-images:/var/lib/s3daemon", "/var/lib/s3daemon"),
        ("/var/lib/images/s3:/var/lib/scratch", "/var/lib/images/s3"),
    ],
)
def test_own_directory(listed: str, own: str) -> None:
    """A drop-in may add directories, or replace the unit's."""
    assert own_directory(listed) == own
