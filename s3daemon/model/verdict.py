"""What a failed attempt means for its transfer, and when the next one starts. Pure: no clock, no sleep.

All times are differences in seconds, so neither a wall clock that steps nor one that was wrong at boot can expire or
delay anything. Randomness is passed in.

There are three verdicts. *Transient*: the same transfer is tried again, later. *Permanent*: this transfer has failed,
at once. *Hold*: the configuration or the account is at fault, so all other transfers would fail too; the queue is held
until that is fixed. When in doubt, the verdict is transient: that costs attempts, where a wrong permanent one costs
data and a wrong hold costs the night.
"""

from __future__ import annotations

import random
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

#: A hook that waits gives up after 30 s, so the second and third attempt must come within seconds.
BACKOFF_FIRST_S = 1.0
#: There is about one exposure a minute: a longer delay would make data late for nothing.
BACKOFF_MAX_S = 60.0
#: A store's Retry-After is respected, but a proxy that says "tomorrow" does not stop a night's transfers.
RETRY_AFTER_MAX_S = 300.0
#: After a start a file may be missing because its file system is mounted late; after this long it does not exist.
FILE_GRACE_S = 3600.0


def judge(error: AttemptError | FileError) -> Verdict:
    """Return what `error` means for its transfer.

    All errors of files are transient here; the uploader limits that to `FILE_GRACE_S` after each start.
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


def backoff(attempts: int, rng: random.Random, retry_after: float = 0.0) -> float:
    """Return the delay in seconds after the failed attempt number `attempts` (1 is the first).

    It doubles from `BACKOFF_FIRST_S` to `BACKOFF_MAX_S`, each a quarter more or less, so that nine hosts that failed
    together do not try again together. `retry_after` (seconds, what the store asked for) lengthens it, up to
    `RETRY_AFTER_MAX_S`.
    """
    doublings = min(max(attempts, 1) - 1, 16)  # 2**16 s is far over the maximum; bounded, since 2.0**1024 overflows
    delay = min(BACKOFF_FIRST_S * 2.0**doublings, BACKOFF_MAX_S) * rng.uniform(0.75, 1.25)
    return max(delay, min(retry_after, RETRY_AFTER_MAX_S) * rng.uniform(1.0, 1.1))
