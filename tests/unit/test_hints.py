"""Hints in the state directory, by that of the rate: what is read back, and what is not believed."""

import logging
from pathlib import Path

import pytest

from s3daemon.network.rate.bandwidth import RATE_FILE, kept_rate

STORE = "https://s3.example.org"


def test_what_is_written_is_read_back_for_the_same_endpoint_only(tmp_path: Path) -> None:
    """Another endpoint begins anew; nothing but the file is left."""
    kept_rate(tmp_path, STORE).write(300_000_000)
    kept_rate(tmp_path, STORE).write(994_000_000)
    assert kept_rate(tmp_path, STORE).read() == 994_000_000
    assert kept_rate(tmp_path, "https://other").read() is None
    assert [path.name for path in tmp_path.iterdir()] == [RATE_FILE]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"endpoint": "https://s3.example.org"}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": "1G"}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": 0}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": true}',
        b'{"endpoint": "https://s3.example.org", "rate_bps": 1e400}',
        b"\xff\xfe",
        b"9" * 5000,
        b"[" * 4000,
    ],
)
def test_a_damaged_file_is_ignored_with_a_trace(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is known then, and the next write repairs it."""
    (tmp_path / RATE_FILE).write_bytes(content)
    kept = kept_rate(tmp_path, STORE)
    assert kept.read() is None
    assert "is found anew" in caplog.text
    kept.write(1_000_000)
    assert kept.read() == 1_000_000


def test_no_file_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the first start nothing is logged."""
    assert kept_rate(tmp_path, STORE).read() is None
    assert caplog.text == ""


def test_what_cannot_be_written_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon goes on; the rate is found anew after a restart."""
    caplog.set_level(logging.INFO)
    kept = kept_rate(tmp_path / "gone", STORE)
    for rate in (1_000_000, 2_000_000):
        kept.write(rate)
    assert caplog.text.count("cannot be written") == 1
