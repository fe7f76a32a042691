"""Multipart uploads as an S3 server keeps them, in memory and without I/O: requests in, responses out.

The servers of the lab that are ours share it. What is completed is handed to its owner, who keeps objects.
"""

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qs

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

PAGE = 4
"""Parts in one listing; S3's 1000 would never be reached here."""

BUCKETS = b"<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>"
"""The body of an answer to ListBuckets."""


@dataclass
class Upload:
    """A multipart upload that has begun."""

    name: str
    metadata: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Assembly:
    """All multipart uploads of a server.

    Args:
        complete: takes name, content, metadata and ETag of an object that was made of parts.
    """

    complete: Callable[[str, bytes, dict[str, str], str], None]
    uploads: dict[str, Upload] = field(default_factory=dict)
    begun: int = 0
    stored: list[int] = field(default_factory=list)
    """The numbers of all parts that were stored, in order, whichever upload they belong to."""

    def answer(self, method: str, name: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """Answer a request; None when it does not belong to a multipart upload."""
        given = {key: values[0] for key, values in parse_qs(query, keep_blank_values=True).items()}
        if method == "POST" and "uploads" in given:
            return self._begin(name, headers)
        if "uploadId" not in given:
            return None
        upload = self.uploads.get(given["uploadId"])
        if upload is None or upload.name != name:
            return refusal(404, "NoSuchUpload")
        if method == "PUT":
            number = int(given["partNumber"])
            upload.parts[number] = body
            self.stored.append(number)
            return 200, {"ETag": f'"{_md5(body)}"'}, b""
        if method == "GET":
            return _listing(upload, int(given.get("part-number-marker", "0")))
        del self.uploads[given["uploadId"]]
        return (204, {}, b"") if method == "DELETE" else self._complete(given["uploadId"], upload, body)

    def _begin(self, name: str, headers: Mapping[str, str]) -> Answer:
        self.begun += 1
        id_ = secrets.token_hex(16)
        self.uploads[id_] = Upload(name, {key: text for key, text in headers.items() if key.startswith("x-amz-meta-")})
        return 200, {}, _xml("InitiateMultipartUploadResult", f"<UploadId>{id_}</UploadId>")

    def _complete(self, id_: str, upload: Upload, body: bytes) -> Answer:
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
        etags = re.findall(rb"<ETag>(?:&quot;|\")?([0-9a-f]+)", body)
        if numbers != sorted(upload.parts) or [_md5(upload.parts[n]).encode() for n in numbers] != etags:
            self.uploads[id_] = upload
            return refusal(400, "InvalidPart")
        digests = b"".join(hashlib.md5(upload.parts[n], usedforsecurity=False).digest() for n in numbers)
        etag = f"{_md5(digests)}-{len(numbers)}"
        self.complete(upload.name, b"".join(upload.parts[n] for n in numbers), upload.metadata, etag)
        return 200, {}, _xml("CompleteMultipartUploadResult", f"<ETag>&quot;{etag}&quot;</ETag>")


def refusal(status: int, code: str) -> Answer:
    """S3's own form of an error."""
    return status, {"Content-Type": "application/xml"}, _xml("Error", f"<Code>{code}</Code><Message>no</Message>")


def _listing(upload: Upload, marker: int) -> Answer:
    after = [number for number in sorted(upload.parts) if number > marker]
    shown = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{_md5(upload.parts[n])}&quot;</ETag>"
        f"<Size>{len(upload.parts[n])}</Size></Part>"
        for n in after[:PAGE]
    )
    more = str(len(after) > PAGE).lower()
    return 200, {}, _xml("ListPartsResult", f"<IsTruncated>{more}</IsTruncated>{shown}")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _xml(root: str, inner: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{root}>{inner}</{root}>'.encode()
