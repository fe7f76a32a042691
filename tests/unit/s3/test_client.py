"""The client that signs: keys that it takes from a file are held to what the variables take."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from s3daemon.config.settings import Settings
from s3daemon.errors import SettingsError
from s3daemon.s3.client import Signer


def opened(tmp_path: Path, text: str) -> tuple[str, ...]:
    """The secrets of a signer whose keys are in a file of this text."""
    file = tmp_path / "credentials"
    file.write_text(text)
    settings = Settings(endpoint_url="http://127.0.0.1:9", shared_credentials_file=str(file), state_dir="/nonexistent")

    async def run() -> tuple[str, ...]:
        signer = Signer(settings)
        signer.send_with(lambda request: None)  # type: ignore[arg-type, return-value]
        await signer.open()
        await signer.close()
        return signer.secrets

    return asyncio.run(run())


def test_keys_of_a_file(tmp_path: Path) -> None:
    """A token is only there with temporary keys."""
    keys = "[default]\naws_access_key_id = a\naws_secret_access_key = s3cret\n"
    assert opened(tmp_path, keys) == ("s3cret",)
    assert opened(tmp_path, f"{keys}aws_session_token = t0ken\n") == ("s3cret", "t0ken")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("aws_access_key_id = a\naws_secret_access_key = s3cret\naws_session_token = t0\n  ken", "AWS_SESSION_TOKEN: "),
        ("aws_access_key_id = a\naws_secret_access_key =", "AWS_SECRET_ACCESS_KEY: "),
        ("aws_access_key_id =\naws_secret_access_key = s3cret", "AWS_ACCESS_KEY_ID: "),
        ("aws_access_key_id = a\naws_secret_access_key = s3c ret", "AWS_SECRET_ACCESS_KEY: "),
        ("aws_access_key_id = a", "Partial credentials found"),
        ("", "no keys for profile default"),
    ],
)
def test_keys_that_no_request_could_be_signed_with(tmp_path: Path, text: str, reason: str) -> None:
    """They are refused with what is wrong, and without the keys: else every request would fail, as if by the store."""
    with pytest.raises(SettingsError) as caught:
        opened(tmp_path, f"[default]\n{text}\n")
    (fault,) = caught.value.faults
    assert fault.startswith(f"AWS_SHARED_CREDENTIALS_FILE: {reason}")
    assert not [part for part in ("s3c", "t0", "\n") if part in fault]
