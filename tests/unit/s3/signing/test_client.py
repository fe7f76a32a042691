"""The signer: where its keys come from, and that nothing but the settings decides what it signs."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import Any

import pytest
from aiobotocore.session import AioSession
from botocore.awsrequest import AWSResponse
from lab.sending import in_loop, settings_for

from s3daemon.config.settings import Settings
from s3daemon.errors import SettingsError
from s3daemon.s3.signing.client import Signer

CREDENTIALS = """
[default]
aws_access_key_id = default-key
aws_secret_access_key = default-secret
[camera]
aws_access_key_id = camera-key
aws_secret_access_key = camera-secret
aws_session_token = camera-token
"""


class Recorder:
    """Takes signed requests in place of a network, and answers them with a status."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[Any] = []
        self._status = status

    async def __call__(self, request: Any, **_: object) -> Any:
        self.requests.append(request)
        return Answer(request.url, self._status)


class Answer(AWSResponse):  # type: ignore[misc]  # botocore has no types
    """An empty answer; aiobotocore awaits its content."""

    def __init__(self, url: str, status: int) -> None:
        super().__init__(url, status, {"Content-Type": "application/xml"}, None)

    @property
    async def content(self) -> bytes:
        return b"<Error><Code>PermanentRedirect</Code></Error>" if self.status_code >= 300 else b""


async def signed(settings: Settings, recorder: Recorder, **params: Any) -> dict[str, str]:
    """The headers of a request that is signed by these settings."""
    signer = Signer(settings)
    await signer.open(recorder)
    try:
        await signer.call("put_object", Bucket="bucket", Key="key", Body=b"x", **params)
    finally:
        await signer.close()
    found = recorder.requests[-1].headers.items()
    return {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in found}


@in_loop
async def test_requests_are_signed_but_not_hashed() -> None:
    """Keys and region are the settings'; the payload is unsigned and has no trailing checksum."""
    headers = await signed(settings_for("http://store", access_key="mine", region="north"), Recorder())
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=mine/")
    assert "/north/s3/aws4_request" in headers["authorization"]
    assert headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert not {"x-amz-trailer", "transfer-encoding"} & headers.keys()


#: What botocore reads from the environment.
BOTOCORES = [
    "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT",
    "AWS_S3_USE_ARN_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    *(
        name
        for _, names, *_ in AioSession.SESSION_VARIABLES.values()
        for name in ([names] if isinstance(names, str) else names or ())
    ),
]


@pytest.mark.parametrize("text", ["", "other", "true", "http://other"])
@pytest.mark.parametrize("operation", ["put_object", "head_object"])
def test_the_environment_decides_nothing(monkeypatch: pytest.MonkeyPatch, operation: str, text: str) -> None:
    """A variable of botocore's is a setting of s3daemon's, or is ignored: it may be there for another program."""

    async def request() -> tuple[str, set[str]]:
        recorder = Recorder()
        signer = Signer(settings_for("http://store", profile="", region="north"))
        await signer.open(recorder)
        body = {"Body": b"x"} if operation == "put_object" else {}
        await signer.call(operation, Bucket="bucket", Key="key", **body)
        await signer.close()
        (sent,) = recorder.requests
        return sent.url, {name.lower() for name in sent.headers}

    expected = asyncio.run(request())
    for name in BOTOCORES:
        monkeypatch.setenv(name, text)
    assert asyncio.run(request()) == expected


@in_loop
async def test_a_redirect_is_not_followed() -> None:
    """One request is sent: botocore does not look for the bucket's region."""
    recorder, settings = Recorder(301), settings_for("http://store")
    signer = Signer(settings)
    await signer.open(recorder)
    with pytest.raises(signer.client.exceptions.ClientError):
        await signer.call("put_object", Bucket="bucket", Key="key", Body=b"x")
    await signer.close()
    assert len(recorder.requests) == 1


@pytest.mark.parametrize(
    ("profile", "key", "secrets"),
    [("", "default-key", ("default-secret",)), ("camera", "camera-key", ("camera-secret", "camera-token"))],
)
@in_loop
async def test_keys_from_a_shared_credentials_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, key: str, secrets: tuple[str, ...]
) -> None:
    """The file's profile counts, and the environment's keys do not."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stray")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "stray")
    file = tmp_path / "credentials"
    file.write_text(CREDENTIALS)
    settings = Settings(
        endpoint_url="http://store", shared_credentials_file=str(file), profile=profile, state_dir="/nonexistent"
    )
    assert f"Credential={key}/" in (await signed(settings, Recorder()))["authorization"]
    signer = Signer(settings)
    await signer.open(Recorder())
    await signer.close()
    assert tuple(filter(None, signer.keys[1:])) == secrets


@in_loop
async def test_a_credentials_file_without_keys(tmp_path: Path) -> None:
    """A file that lacks the profile is an error that names it; no metadata service is asked instead."""
    file = tmp_path / "credentials"
    file.write_text(CREDENTIALS)
    settings = Settings(
        endpoint_url="http://store", shared_credentials_file=str(file), profile="none", state_dir="/nonexistent"
    )
    with pytest.raises(SettingsError, match="no keys for profile none"):
        await Signer(settings).open(Recorder())


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"\xef\xbb\xbf[default]\naws_secret_access_key = s3cret\n", ", line 1,"),
        (b"aws_secret_access_key = s3cret\n", ", line 1,"),
        (b"[default]\n\naws_secret_access_key s3cret\n", ", line 3,"),
        (b"[default]\naws_secret_access_key = s3cret\naws_secret_access_key = s3cret\n", ", line 3,"),
        (b"[default]\naws_secret_access_key = s3cret\n[default]\n", ", line 3,"),
        (b"[default]\naws_secret_access_key = s3cret\xff\n", ""),
    ],
    ids=["byte order mark", "no section", "no equals sign", "twice", "section twice", "not UTF-8"],
)
@in_loop
async def test_a_credentials_file_of_another_form(tmp_path: Path, content: bytes, where: str) -> None:
    """The line is named and the form is described; the line, which may hold the secret, is not shown."""
    (file := tmp_path / "credentials").write_bytes(content)
    settings = Settings(endpoint_url="http://store", shared_credentials_file=str(file), state_dir="/nonexistent")
    with pytest.raises(SettingsError) as caught:
        await Signer(settings).open(Recorder())
    assert f"{file}{where} is not in the format of the AWS tools: " in caught.value.text
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


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
@in_loop
async def test_keys_that_no_request_could_be_signed_with(tmp_path: Path, text: str, reason: str) -> None:
    """They are refused with what is wrong, and without the keys: else every request would fail, as if by the store."""
    file = tmp_path / "credentials"
    file.write_text(f"[default]\n{text}\n")
    settings = Settings(endpoint_url="http://store", shared_credentials_file=str(file), state_dir="/nonexistent")
    with pytest.raises(SettingsError) as caught:
        await Signer(settings).open(Recorder())
    (fault,) = caught.value.faults
    assert fault.startswith(f"AWS_SHARED_CREDENTIALS_FILE: {reason}")
    assert not [part for part in ("s3c", "t0", "\n") if part in fault]
