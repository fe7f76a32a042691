"""`s3daemon check` against real stores: each step from the keys to an object there."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from contextlib import closing
from pathlib import Path

import pytest
from fake_host import Looked
from lab.rgw import Gateway
from lab.s3 import S3Server

from s3daemon.commands.check.store import StoreChecks
from s3daemon.config.settings import Settings


def settings_of(server: S3Server, **more: str) -> Settings:
    """Make the daemon's settings for that server."""
    return Settings.from_environ({**server.settings(), "S3DAEMON_STATE_DIR": "/nowhere", **more})


def checked(tmp_path: Path, settings: Settings, target: str = "") -> Looked:
    """Run the checks of the store."""
    looked = Looked(tmp_path)
    looked.findings.hide(settings.secrets())
    asyncio.run(StoreChecks(settings, looked.findings).run(target))
    return looked


def test_gateway(rgw: Gateway, tmp_path: Path) -> None:
    """All is well: the object is put where the daemon would, seen there, and gone afterwards."""
    bucket = rgw.new_bucket()
    looked = checked(tmp_path, settings_of(rgw), f"{bucket}/some/prefix")
    assert looked.levels() == {"ok", "note"}
    assert looked.one("note").startswith(
        f"note bucket putting a small object, and deleting it again: {bucket}/some/prefix/s3daemon-check-"
    )
    assert "verified by its ETag" in looked.one("stored in")
    assert "TLSv1." in looked.one("ok connect")
    assert rgw.keys(bucket) == set()


def test_plain_http(moto: S3Server, tmp_path: Path) -> None:
    """Plain HTTP works and is noted; without a bucket nothing is put."""
    looked = checked(tmp_path, settings_of(moto))
    assert looked.one("tls").startswith("note")
    assert not looked.findings.failed
    assert not [line for line in looked.lines if " bucket " in line]


@pytest.mark.parametrize(
    ("name", "code", "cure"),
    [
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId", "fix the access key and reload"),
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch", "fix the secret key and reload"),
    ],
)
def test_wrong_keys(rgw: Gateway, tmp_path: Path, name: str, code: str, cure: str) -> None:
    """Which of the two is wrong is said, and the secret one is not shown."""
    looked = checked(tmp_path, settings_of(rgw, **{name: "somethingelse"}))
    assert looked.one("credentials").startswith(f"FAIL credentials {code}, ")
    assert cure in looked.one("credentials")
    if name == "AWS_SECRET_ACCESS_KEY":
        assert "somethingelse" not in looked.out.getvalue()


def test_untrusted(rgw: Gateway, tmp_path: Path) -> None:
    """Without the authority of its certificate no key is sent there."""
    looked = checked(tmp_path, dataclasses.replace(settings_of(rgw), ca_bundle=""))
    assert "AWS_CA_BUNDLE" in looked.one("FAIL connect")
    assert looked.one("credentials").startswith("note credentials not checked")


def test_no_such_bucket(rgw: Gateway, tmp_path: Path) -> None:
    """The keys may be valid and the bucket's name not."""
    assert checked(tmp_path, settings_of(rgw), "no-such-bucket").one("FAIL").startswith("FAIL bucket NoSuchBucket, ")


def test_bucket_of_another(rgw: Gateway, tmp_path: Path) -> None:
    """A bucket that the keys may not write to is a failure."""
    looked = checked(tmp_path, settings_of(rgw.new_account()), rgw.new_bucket())
    assert looked.one("FAIL").startswith("FAIL bucket AccessDenied, ")


def test_may_put_and_nothing_else(rgw: Gateway, tmp_path: Path) -> None:
    """With such a policy the daemon works, but sends again what got no answer; what cannot be deleted is named."""
    bucket, other = rgw.new_bucket(), rgw.new_account()
    whose = {
        "Principal": {"AWS": [f"arn:aws:iam:::user/{other.access_key}"]},
        "Resource": [f"arn:aws:s3:::{bucket}/*"],
    }
    statements = [
        {"Effect": "Allow", "Action": ["s3:PutObject"], **whose},
        # Without this the gateway lets an account read what it put.
        {"Effect": "Deny", "Action": ["s3:GetObject"], **whose},
    ]
    with closing(rgw.client()) as client:
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    looked = checked(tmp_path, settings_of(other), bucket)
    assert not looked.findings.failed
    assert "sent again" in looked.one("a HEAD request does not find")
    (key,) = rgw.keys(bucket)
    assert looked.one("deleted,").startswith(
        f"warn bucket it could not be deleted, AccessDenied: {bucket}/{key} is there"
    )


def test_keys_that_cannot_be_read(moto: S3Server, tmp_path: Path) -> None:
    """A shared credentials file without the profile is a failure; the rest is checked."""
    shared = tmp_path / "credentials"
    shared.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    named = {"S3_ENDPOINT_URL": moto.url, "AWS_SHARED_CREDENTIALS_FILE": str(shared), "S3DAEMON_STATE_DIR": "/nowhere"}
    assert not checked(tmp_path, Settings.from_environ(named), "").findings.failed
    looked = checked(tmp_path, Settings.from_environ({**named, "AWS_PROFILE": "night"}))
    assert looked.one("FAIL credentials AWS_SHARED_CREDENTIALS_FILE")
    assert looked.one(" keep-alive ")
