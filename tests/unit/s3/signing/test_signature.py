"""The signature of a PUT. That it is the client's: tests/property/test_put_object.py."""

from __future__ import annotations

from collections.abc import Mapping

from s3daemon.s3.signing.signature import Signature

MIDNIGHT = 1_800_057_600.0  # 2027-01-16


def _signed(signature: Signature, now: float) -> Mapping[str, str]:
    return signature.sign("PUT", "store:9000", "/bucket/key", {"x-amz-meta-a": "1"}, now)


def test_each_day_has_a_key() -> None:
    """What is signed on either side of midnight, in any order, is signed with the key of its own day."""
    signature = Signature("key", "secret", "token", "north")
    for now in (MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 1, MIDNIGHT - 1):
        assert _signed(signature, now) == _signed(Signature("key", "secret", "token", "north"), now)
    before, after = (_signed(signature, now) for now in (MIDNIGHT - 1, MIDNIGHT))
    assert (before["x-amz-date"], after["x-amz-date"]) == ("20270115T235959Z", "20270116T000000Z")
    assert before["authorization"] != after["authorization"]


def test_it_shows_no_secret() -> None:
    """Neither the secret key nor what is derived from it is in its text or in what it signs, but the token is sent."""
    signature = Signature("key", "secret", "token", "north")
    signed = _signed(signature, MIDNIGHT)
    assert "secret" not in f"{signed}{signature!r}"
    assert signed["x-amz-security-token"] == "token"
