"""What an error of an attempt means for its transfer.

There are three verdicts. *Transient*: the same transfer is tried again, later. *Permanent*: this transfer has failed,
at once. *Hold*: the configuration or the account is at fault, so all other transfers would fail too; the queue is held
until that is fixed. When in doubt, the verdict is transient: that costs attempts, where a wrong permanent one costs
data and a wrong hold costs the night.
"""

from __future__ import annotations

from enum import Enum

from s3daemon.errors import AttemptError, Code, FileError


class Verdict(Enum):
    """What follows from a failed attempt."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    HOLD = "hold"


#: S3's codes that fail one transfer; what is in neither table is transient. Sources: "Error responses" in the Amazon
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
#: Codes that all transfers would get: keys, account, quota, signing region; the last two are our own codes.
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
#: Statuses that are clear even without an S3 code. A proxy's 413 will be the same for the same file.
#: A 401, 403, 404, 405 or redirect without a code is left out on purpose: S3 always gives a code, so it was not the
#: store that answered but something in front of it, which says nothing about this transfer and may be fixed soon.
_PERMANENT_STATUSES = frozenset({413})

#: The store, or what is in front of it, is overloaded or down.
_ENDPOINT_STATUSES = frozenset({408, 429})
_ENDPOINT_CODES = frozenset({"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests"})
_FIRST_SERVER_STATUS = 500


def judge(error: AttemptError | FileError) -> Verdict:
    """Return what `error` means for its transfer.

    A file that is gone, unreadable, stale or changed is transient here; `delivery.decision` limits that in time.
    """
    if error.code in _HOLD:
        return Verdict.HOLD
    if error.code in _PERMANENT or _bare_status(error) in _PERMANENT_STATUSES:
        return Verdict.PERMANENT
    return Verdict.TRANSIENT


def _bare_status(error: AttemptError | FileError) -> int:
    """Return the status of an answer without an S3 code (botocore then takes the status for one), else 0."""
    return error.status if not error.code or error.code.isdigit() else 0


def blames_endpoint(error: AttemptError | FileError) -> bool:
    """Return whether the endpoint as a whole seems to be down or overloaded, rather than this transfer at fault.

    That is so without any answer (no connection, no address, timeouts, stalls), for 5xx, 408 and 429, and for any error
    status without an S3 code (something in front of the store answered in its place). It is not so for an error that is
    permanent for a transfer or holds the queue.
    """
    if not isinstance(error, AttemptError) or judge(error) is not Verdict.TRANSIENT:
        return False
    if error.status == 0 or error.status >= _FIRST_SERVER_STATUS or _bare_status(error):
        return True
    return error.status in _ENDPOINT_STATUSES or error.code in _ENDPOINT_CODES
