"""An S3 server of the lab, as tests see it."""

import uuid
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config


@dataclass(frozen=True)
class S3Server:
    """A running S3 server, and an account on it that may do everything."""

    url: str
    """The endpoint, without a path."""
    access_key: str
    secret_key: str
    ca: Path | None = None
    """The certificate to trust; None for plain HTTP."""
    token: str = ""
    """Of a temporary account."""

    def settings(self) -> dict[str, str]:
        """The daemon's variables for this server."""
        named = {
            "S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        if self.token:
            named["AWS_SESSION_TOKEN"] = self.token
        if self.ca is not None:
            named["AWS_CA_BUNDLE"] = str(self.ca)
        return named

    def client(self) -> Any:
        """A boto3 client, independent of the product's code. Close it after use.

        No checksums unless required: Ceph's gateway refuses the trailers in which they would be sent.
        """
        config = Config(
            proxies={},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        )
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            verify=str(self.ca) if self.ca else None,
            config=config,
        )

    def keys(self, bucket: str, prefix: str = "") -> set[str]:
        """All keys with this prefix."""
        with closing(self.client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            return {entry["Key"] for page in pages for entry in page.get("Contents", ())}

    def new_bucket(self) -> str:
        """Create a bucket with a new name, so that tests that share the server do not interfere."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        with closing(self.client()) as client:
            client.create_bucket(Bucket=name)
        return name
