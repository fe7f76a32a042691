"""PutObject, which is made and signed past aiobotocore's client: it equals the client's, and so does its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import botocore.exceptions
import pytest
from aiobotocore.awsrequest import AioAWSResponse
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab.sending import settings_for

from s3daemon.s3.signing.client import Signer

#: Headers that differ from one request to the next, are signed by neither, and mean nothing to a store.
UNSIGNED = {"amz-sdk-invocation-id", "amz-sdk-request", "user-agent", "expect"}
#: Characters that are quoted, or not, in one place and not in another.
ODD = "abcXYZ019-_.~/ +%&=?#:@!$'()*,;[]{}|^`\"\\<>äß€😀\u0301\x7f"
KEYS = st.text(ODD, min_size=1, max_size=30) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30
)
BUCKETS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{1,30}", fullmatch=True) | st.sampled_from(
    ["tenant:bucket", "arn:aws:s3:::bucket", "arn", "zone--x-s3", "x--op-s3", "1.2.3.4", "xn--bucket", "b", "..", "."]
)
METADATA = st.dictionaries(
    st.sampled_from(["s3daemon-id", "s3daemon-file"]), st.text(st.characters(codec="ascii", exclude_categories=["Cc"]))
)
Sent = tuple[str, str, dict[str, str]]
Outcome = Sent | tuple[str, str]


class Answering:
    """Takes a signed request and gives one answer."""

    def __init__(self, status: int = 200, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.requests: list[Any] = []
        self._answer = (status, dict(headers or {"etag": '"e"'}), body)

    async def __call__(self, request: Any, **_: object) -> AioAWSResponse:
        self.requests.append(request)
        status, headers, body = self._answer

        class Raw:
            async def read(self) -> bytes:
                return body

        return AioAWSResponse(request.url, status, headers, Raw())

    @property
    def sent(self) -> Sent:
        request = self.requests[-1]
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        return request.method, request.url, {name: headers[name] for name in sorted(headers) if name not in UNSIGNED}


async def _both(url: str, region: str, token: str, params: Mapping[str, Any]) -> tuple[Outcome, Outcome]:
    """What this package sends, and what the client does, or the errors; both dated alike."""
    answering = Answering()
    signer = Signer(settings_for(url, region=region, session_token=token))
    await signer.open(answering)

    async def outcome(made: Any) -> Outcome:
        before = len(answering.requests)
        try:
            await made
        except (botocore.exceptions.BotoCoreError, ValueError) as exc:
            return type(exc).__name__, str(exc)
        assert len(answering.requests) == before + 1
        return answering.sent

    try:
        while True:
            ours = await outcome(signer.call("put_object", Body=b"x", **params))
            theirs = await outcome(signer.client.put_object(Body=b"x", **params))
            if len(ours) < 3 or len(theirs) < 3 or ours[2]["x-amz-date"] == theirs[2]["x-amz-date"]:
                return ours, theirs
    finally:
        await signer.close()


@settings(max_examples=60)  # two requests each, by a client of its own
@given(
    url=st.sampled_from(
        ["http://store", "https://store:8443", "http://Store:80", "https://10.0.0.1:443", "http://[::1]:9000"]
    ),
    region=st.sampled_from(["us-east-1", "north", "aws-global", "eu-central-1", "us-gov-west-1-fips"]),
    token=st.sampled_from(["", "session-token"]),
    bucket=BUCKETS,
    key=KEYS,
    metadata=METADATA,
    md5=st.sampled_from(["", "1B2M2Y8AsgTpgAmY7PhCfg=="]),
)
@example("http://store", "us-east-1", "", "bucket", "/a//b/../c d+e%20é~", {}, "")
@example("http://store", "us-east-1-fips", "", "bucket", "key", {}, "")
@example("http://store", "fips-aws-global", "", "bucket", "key", {}, "")
def test_it_is_signed_as_the_client_signs(
    url: str, region: str, token: str, bucket: str, key: str, metadata: dict[str, str], md5: str
) -> None:
    """Method, URL and every header that a store reads are the client's, the signature included; so are errors."""
    params: dict[str, Any] = {"Bucket": bucket, "Key": key, "Metadata": metadata}
    ours, theirs = asyncio.run(_both(url, region, token, params | ({"ContentMD5": md5} if md5 else {})))
    assert ours == theirs


ERROR = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Wait</Message><RequestId>r</RequestId></Error>"


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"etag": '"e"', "content-length": "0"}, b""),
        (200, {"etag": '"e"'}, b"<Fine/>"),
        (200, {"etag": '"e"'}, b"not XML"),
        (200, {}, ERROR),
        (204, {}, b""),
        (301, {"location": "http://other/"}, ERROR),
        (307, {}, b""),
        (400, {}, ERROR.replace(b"SlowDown", b"BadDigest")),
        (403, {"content-type": "text/html"}, b"<html><p>no"),
        (404, {}, ERROR.replace(b"SlowDown", b"NoSuchBucket")),
        (404, {}, b""),
        (412, {}, b'{"Error": 1}'),
        (503, {"retry-after": "7", "x-amz-request-id": "i"}, ERROR),
        (503, {}, b""),
        (500, {}, b"<Error><Code></Code></Error>"),
    ],
)
def test_its_answer_is_taken_as_the_client_takes_it(status: int, headers: dict[str, str], body: bytes) -> None:
    """The ETag, or the same code, message and status of the same error."""

    async def main() -> list[Any]:
        signer = Signer(settings_for("http://store"))
        answering = Answering(status, headers, body)
        await signer.open(answering)
        found: list[Any] = []
        try:
            for made in (signer.call, lambda _, **params: signer.client.put_object(**params)):
                try:
                    found.append((await made("put_object", Bucket="bucket", Key="key", Body=b"x")).get("ETag", ""))
                except botocore.exceptions.ClientError as exc:
                    meta = exc.response["ResponseMetadata"]
                    found.append((exc.response["Error"], meta["HTTPStatusCode"], meta["HTTPHeaders"]))
        finally:
            await signer.close()
        return found

    ours, theirs = asyncio.run(main())
    assert ours == theirs
