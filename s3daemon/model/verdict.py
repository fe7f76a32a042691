"""What an error of an attempt means for its transfer.

Three verdicts. *Transient*: the same transfer is tried again, later. *Permanent*: this transfer fails for good, at
once. *Hold*: the configuration or the account is at fault, so every other transfer would fail alike; the queue stands
until it is mended. A verdict in doubt is transient: that costs attempts, where a wrong permanent one costs data and a
wrong hold costs the night.
"""

from __future__ import annotations

from enum import Enum

from s3daemon.errors import AttemptError, Code, FileError


class Verdict(Enum):
    """What a failed attempt means for its transfer."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    HOLD = "hold"


#: S3's codes that condemn one transfer; what is in neither table is transient. Sources: "Error responses" in the Amazon
#: S3 API Reference, and rgw_http_s3_errors in Ceph's rgw_common.cc.
_PERMANENT = frozenset(
    {
        "AccessDenied",  # on this bucket: the keys themselves were good, else it would be one of the codes below
        "AllAccessDisabled",
        "EntityTooLarge",
        "InvalidBucketName",
        "InvalidObjectName",  # Ceph's
        "InvalidStorageClass",
        "InvalidURI",
        "KeyTooLong",
        "KeyTooLongError",
        "MaxMessageLengthExceeded",
        "MetadataTooLarge",
        "MethodNotAllowed",
        "NoSuchBucket",
        "NotImplemented",
        "PermanentRedirect",  # the bucket lives behind another endpoint; a TemporaryRedirect is transient
    }
)
#: Codes that would meet every transfer alike: keys, account, quota, signing region; the last two are our own words.
_HOLD = frozenset(
    {
        "AccountProblem",
        "AuthorizationHeaderMalformed",  # the region in the signature is not the store's
        "CredentialsNotSupported",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidPayer",
        "InvalidSecurity",
        "InvalidToken",
        "NotSignedUp",
        "QuotaExceeded",  # Ceph's
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UserSuspended",  # Ceph's
        Code.NO_CREDENTIALS,
        Code.TLS_REFUSED,
    }
)
#: Statuses that speak for themselves when no S3 code comes with them. A proxy's 413 will be the same for the same file.
#: A bare 401, 403, 404, 405 or redirect is not here on purpose: S3 always gives a code, so it was not the store that
#: answered but something in front of it, which says nothing about this transfer and may be mended without us.
_PERMANENT_STATUSES = frozenset({413})

#: The store, or the way to it, is overloaded or gone.
_ENDPOINT_STATUSES = frozenset({408, 429})
_ENDPOINT_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"})
_FIRST_SERVER_STATUS = 500


def judge(error: AttemptError | FileError) -> Verdict:
    """What `error` means for its transfer.

    A file that is gone, unreadable, stale or changed is transient here; `delivery.decision` limits that in time.
    """
    if error.code in _HOLD:
        return Verdict.HOLD
    if error.code in _PERMANENT or _bare_status(error) in _PERMANENT_STATUSES:
        return Verdict.PERMANENT
    return Verdict.TRANSIENT


def _bare_status(error: AttemptError | FileError) -> int:
    """Give the status of an answer without an S3 code (botocore then makes one of the status), else 0."""
    return error.status if isinstance(error, AttemptError) and (not error.code or error.code.isdigit()) else 0


def blames_endpoint(error: AttemptError | FileError) -> bool:
    """Whether the endpoint as a whole seems to be away or overloaded, rather than this transfer to be at fault.

    So say: no answer at all (no connection, no address, timeouts, stalls), 5xx, 408 and 429, and any error status
    without an S3 code (something in front of the store answered in its place). What is permanent for a transfer, or
    holds the queue, does not.
    """
    if not isinstance(error, AttemptError) or judge(error) is not Verdict.TRANSIENT:
        return False
    if error.status == 0 or error.status >= _FIRST_SERVER_STATUS or _bare_status(error):
        return True
    return error.status in _ENDPOINT_STATUSES or error.code in _ENDPOINT_CODES
