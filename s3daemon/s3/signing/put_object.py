"""A PutObject without aiobotocore's client: of small files half the CPU went into its models, events and serializers.

The request is made here and equals the client's; so does what an answer is taken for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, urlsplit

import botocore.exceptions
import botocore.parsers

from s3daemon import __version__
from s3daemon.s3.signing.signature import Signature

Send = Callable[..., Awaitable[Any]]
"""Called as `send(request=...)` with a signed request; returns its answer."""

USER_AGENT = f"s3daemon/{__version__}"


@dataclass(frozen=True, slots=True)
class _Request:
    """A signed request, as botocore's `AWSPreparedRequest`."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: Any


class PutObject:
    """PutObject as the client does it, without what the client repeats for each request.

    Args:
        client: aiobotocore's, whose model and events say what an answer means.
        signature: signs the requests.
        endpoint_url: the store's.
        send: sends the signed request.
    """

    def __init__(self, client: Any, signature: Signature, endpoint_url: str, send: Send) -> None:
        self._model = client.meta.service_model.operation_model("PutObject")
        self._parser = botocore.parsers.create_parser("rest-xml")
        self._client, self._signature, self._url, self._send = client, signature, endpoint_url, send
        self._host = _host_of(endpoint_url)

    async def __call__(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Carry out a PutObject of Body, Bucket and Key, perhaps with Metadata and ContentMD5."""
        headers = {f"x-amz-meta-{name}": value for name, value in params.get("Metadata", {}).items()}
        if "ContentMD5" in params:
            headers["content-md5"] = params["ContentMD5"]
        path = f"/{quote(params['Bucket'], safe='~')}/{quote(params['Key'], safe='/~')}"
        headers = self._signature.sign("PUT", self._host, path, headers, time.time())
        headers |= {"user-agent": USER_AGENT, "content-length": str(len(params["Body"]))}
        request = _Request("PUT", self._url + path, headers, params["Body"])
        answer = await self._send(request=request, event_name="before-send.s3.PutObject")
        body = await answer.content
        if not body.strip() and HTTPStatus.OK <= answer.status_code < HTTPStatus.MULTIPLE_CHOICES:
            return {
                "ETag": answer.headers.get("etag", ""),
                "ServerSideEncryption": answer.headers.get("x-amz-server-side-encryption", ""),
            }
        given = {
            "headers": answer.headers,
            "status_code": answer.status_code,
            "body": body,
            "context": {"operation_name": "PutObject"},
        }
        # An error in an answer 200 becomes one of 500 here.
        await self._client.meta.events.emit(
            "before-parse.s3.PutObject", operation_model=self._model, response_dict=given, customized_response_dict={}
        )
        parsed = self._parser.parse(given, self._model.output_shape)
        if given["status_code"] >= HTTPStatus.MULTIPLE_CHOICES:
            raise botocore.exceptions.ClientError(parsed, "PutObject")
        return cast(Mapping[str, Any], parsed)


def _host_of(url: str) -> str:
    """Return the host of a URL as HTTP sends it: in small letters, with a port that is not the scheme's own."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return host if parts.port in (None, {"http": 80, "https": 443}[parts.scheme]) else f"{host}:{parts.port}"
