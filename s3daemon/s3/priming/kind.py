"""Classify what a store does with an upload that it must refuse, because its Content-MD5 is wrong. Pure.

    outcome of the upload                                       kind
    ----------------------------------------------------------  -------
    stored, or stored with another ETag                         STORES
    the wrong digest is refused, and not all of it was read     UNREAD
    the same, all of it was read, the connection was closed     CLOSES
    the same, all of it was read, the connection stays open     REFUSES
    closed without an answer, and nothing is known yet          CLOSES
    refused for another reason (keys, bucket)                   DENIES
    anything else: no answer, a server error                    none: it is tried again later

Only REFUSES primes a connection and leaves nothing behind. Ceph RGW 16, MinIO, versitygw and rclone are of that kind;
s3proxy closes the connection.
"""

from __future__ import annotations

from enum import Enum

from s3daemon.errors import AttemptError, Code
from s3daemon.model.verdict import Scope, suspect

#: S3's codes for a Content-MD5 that is not the body's, and for one that cannot be any body's.
_WRONG_DIGEST = frozenset({"BadDigest", "InvalidDigest"})
_CLOSED = frozenset({Code.CONNECTION_CLOSED, Code.STALE_CONNECTION})
#: The statuses of answers that refuse this request alone, redirects included.
_REFUSALS = range(300, 500)


class StoreKind(Enum):
    """What a store does; the values are predicates for a sentence that begins with "the store"."""

    REFUSES = "reads an upload with a wrong Content-MD5, refuses it, and keeps the connection"
    STORES = "stores an upload with a wrong Content-MD5"
    UNREAD = "refuses an upload with a wrong Content-MD5 before it has read it"
    CLOSES = "closes the connection after an upload with a wrong Content-MD5"
    DENIES = "refuses the upload for another reason"


def kind_of(error: AttemptError | None, *, was_read: bool, is_kept: bool, is_known: bool) -> StoreKind | None:
    """Return the kind of store, from the outcome of an upload with a wrong Content-MD5; None when that is no evidence.

    Args:
        error: how the upload failed; None: it was stored.
        was_read: all of it was acknowledged.
        is_kept: the connection stays open.
        is_known: an earlier upload has shown `REFUSES`: a connection that breaks now was broken by something else.
    """
    if error is None or error.code == Code.ETAG_MISMATCH:
        return StoreKind.STORES
    if error.code in _WRONG_DIGEST:
        if not was_read:
            return StoreKind.UNREAD
        return StoreKind.REFUSES if is_kept else StoreKind.CLOSES
    if error.code in _CLOSED:
        return None if is_known else StoreKind.CLOSES
    return StoreKind.DENIES if error.status in _REFUSALS and suspect(error) is not Scope.SERVICE else None
