"""What an error of an attempt means: whom it blames, and what follows for its transfer.

A *neutral request*, for the list of buckets, tells whether the keys are at fault or the transfer.

One error alone accuses a party, its `Scope`; each scope may stop no more than its own:

    scope     evidence                                                          what may be stopped
    --------  ----------------------------------------------------------------  ------------------------------------
    REQUEST   refused permanently; refused before it was sent; another ETag;    this transfer
              overwritten; our bug; a closed idle connection;
              an S3 code that is not listed here
    BUCKET    the bucket's quota is used up                                     the transfers to this bucket
    KEYS      keys, account, region, certificate                                this transfer; everything, once a
                                                                                neutral request is refused alike, or
                                                                                a second destination
    ADDRESS   no connection: nothing was sent, so no transfer is at fault       the address; everything, once all
                                                                                addresses have failed
    SERVICE   5xx, 408, 429; clocks differ; an answer not S3's; none, though    the address, after two transfers;
              it was connected                                                  everything, after three destinations

What stops everything needs evidence that it is everybody's, and a success refutes it (`delivery.health.endpoint`).

There are three verdicts for the transfer itself. *Transient*: it is tried again, later. *Permanent*: it has failed, at
once. *Hold*: all other transfers would fail too, so the queue is held until that is fixed. When in doubt, the verdict
is transient: that costs attempts, where a wrong permanent one costs data and a wrong hold costs the night.
"""

from __future__ import annotations

from enum import Enum

from s3daemon.errors import AttemptError, Code


class Verdict(Enum):
    """What follows from a failed attempt."""

    TRANSIENT = "transient"
    PERMANENT = "permanent"
    HOLD = "hold"


class Scope(Enum):
    """Whom one error alone accuses."""

    REQUEST = "this transfer"
    BUCKET = "the bucket"
    KEYS = "the keys, the account or the certificate"
    ADDRESS = "the address"
    SERVICE = "the address, the endpoint, or this destination"


class Keys(Enum):
    """What is known of the keys when the store refuses an attempt as it refuses bad keys."""

    GOOD = "it has accepted a neutral request with them since"
    BAD = "it refuses a neutral request in the same way"
    WORKED = "they have stored something since the start or the last reload, and no neutral request settles it"
    UNKNOWN = "no neutral request settles it, and they have stored nothing yet"
    REPLACED = "since the attempt began, a reload has replaced them, or the store accepts them again"


#: S3's codes that fail one transfer. What is listed nowhere is transient. Sources: "Error responses" in the Amazon S3
#: API Reference, rgw_http_s3_errors in Ceph's rgw_common.cc, api-errors.go of MinIO, s3err of versitygw.
_PERMANENT = frozenset(
    {
        "AllAccessDisabled",
        Code.BAD_REQUEST,  # refused here, by botocore, before anything was sent
        "DirectoryObjectContainsData",  # versitygw's, as the next two
        "EntityTooLarge",
        "ExistingObjectIsDirectory",
        "InvalidArgument",
        "InvalidBucketName",
        "InvalidObjectName",  # Ceph's
        "InvalidRequest",
        "InvalidStorageClass",
        "InvalidTenantName",  # Ceph's
        "InvalidURI",
        "KeyTooLong",
        "KeyTooLongError",
        "MaxMessageLengthExceeded",
        "MetadataTooLarge",
        "MethodNotAllowed",
        "NoSuchBucket",
        "NotImplemented",
        "ObjectParentIsFile",
        "PermanentRedirect",  # the bucket lives behind another endpoint; a TemporaryRedirect is transient
        "XMinioInvalidObjectName",
        "XMinioInvalidResourceName",
    }
)
#: Of this bucket, if the keys are good; Ceph RGW with `rgw_s3_auth_use_sts` gives it for wrong keys too.
ACCESS_DENIED = "AccessDenied"
#: Codes that all transfers would get if the keys, the account, the region or the certificate are at fault. A proxy that
#: normalizes paths causes SignatureDoesNotMatch for single keys, though.
_KEYS = frozenset(
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
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UserSuspended",  # Ceph's
        Code.NO_CREDENTIALS,
        Code.TLS_REFUSED,
    }
)
#: Ceph's and MinIO's words for a bucket whose quota is used up.
_BUCKET = frozenset({"QuotaExceeded", "XMinioAdminBucketQuotaExceeded"})
#: No other address would do otherwise: they are of this host, or of the object and its parts, the same everywhere.
_OF_NO_ADDRESS = frozenset(
    {
        Code.BAD_REQUEST,
        Code.HOST_LIMIT,
        Code.INTERNAL,
        Code.NO_CREDENTIALS,
        Code.OVERWRITTEN,
        Code.SLOW_CONNECTION,  # it is sent again at once, and the address noted
        "EntityTooSmall",
        "InvalidPart",
        "InvalidPartOrder",
        "NoSuchKey",
        "OperationAborted",
    }
)
#: With these nothing was sent, so no transfer can be at fault.
UNREACHED = frozenset({Code.CONNECTION_FAILED, Code.CONNECT_TIMEOUT, Code.NAME_NOT_RESOLVED, Code.TLS_FAILED})
#: With these no connection was opened.
UNCONNECTED = UNREACHED | {Code.TLS_REFUSED}
#: With these the store was waited for in vain.
SILENCES = frozenset({Code.NO_ANSWER, Code.STALLED})
#: With these it may be the transfer's fault, unless a neutral request has no answer either.
UNANSWERED = SILENCES | {Code.CONNECTION_CLOSED}
#: The way to the store, or what answers there, does not work, at least for this transfer.
_SERVICE = frozenset(
    {
        Code.BAD_ANSWER,
        Code.CONNECTION_CLOSED,
        Code.NO_ANSWER,
        Code.STALLED,
        "RequestTimeTooSkewed",  # its clock is wrong, or this host's
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XMinioStorageFull",
    }
)
_SERVICE_STATUSES = frozenset({408, 429})
FIRST_SERVER_STATUS = 500
#: Statuses that are clear even without an S3 code. A proxy's 413 will be the same for the same file.
#: A 401, 403, 404, 405 or redirect without a code is left out on purpose: S3 always gives a code, so it was not the
#: store that answered but something in front of it, which says nothing about this transfer and may be fixed soon.
_PERMANENT_STATUSES = frozenset({413})
#: Only these are a clear refusal: anything else a proxy may answer for a store that has carried the request out.
CLIENT_STATUSES = range(400, 500)


def suspect(error: AttemptError) -> Scope:
    """Return whom `error` alone accuses."""
    if _is_permanent(error):
        return Scope.REQUEST
    for scope, codes in ((Scope.KEYS, _KEYS), (Scope.BUCKET, _BUCKET), (Scope.ADDRESS, UNREACHED)):
        if error.code in codes:
            return scope
    is_service_status = error.status in _SERVICE_STATUSES or error.status >= FIRST_SERVER_STATUS
    return Scope.SERVICE if error.code in _SERVICE or is_service_status or _bare_status(error) else Scope.REQUEST


def judge(error: AttemptError, keys: Keys | None = None) -> Verdict:
    """Return what `error` means for its transfer.

    Args:
        error: why the attempt failed.
        keys: what is known of the keys; None where nobody has asked: what the error says is then taken as it is.
    """
    if suspect(error) is Scope.KEYS:
        return Verdict.HOLD if keys in (None, Keys.BAD) else Verdict.TRANSIENT
    if error.code == ACCESS_DENIED:
        return _judge_denial(keys)
    return Verdict.PERMANENT if _is_permanent(error) else Verdict.TRANSIENT


def _judge_denial(keys: Keys | None) -> Verdict:
    if keys is Keys.BAD:
        return Verdict.HOLD
    return Verdict.TRANSIENT if keys in (Keys.UNKNOWN, Keys.REPLACED) else Verdict.PERMANENT


def _is_permanent(error: AttemptError) -> bool:
    return error.code in _PERMANENT or _bare_status(error) in _PERMANENT_STATUSES


def accuses_keys(error: AttemptError) -> bool:
    """Return whether bad keys may be the reason, so that a neutral request should be asked."""
    return suspect(error) is Scope.KEYS or error.code == ACCESS_DENIED


def keys_after(
    refusal: AttemptError, neutral: AttemptError | None, *, ever_accepted: bool, ever_stored: bool, replaced: bool
) -> Keys:
    """Return what is known of the keys after the store has refused an attempt.

    Args:
        refusal: the attempt's error, which `accuses_keys`.
        neutral: the error of a neutral signed request that was sent after that; None: it was accepted.
        ever_accepted: a neutral request was accepted with these keys before.
        ever_stored: something was stored with these keys.
        replaced: since the attempt began a reload has come, or the store has begun to accept neutral requests again.
    """
    if replaced:
        return Keys.REPLACED
    if neutral is None:
        # Behind one address there may be several gateways, of which one that starts denies everything.
        return Keys.WORKED if refusal.code == ACCESS_DENIED and ever_stored else Keys.GOOD
    if neutral.code == refusal.code:
        # Keys that may write need not be allowed the neutral request: a denial tells only if it was accepted before.
        tells = refusal.code != ACCESS_DENIED or ever_accepted or not ever_stored
        return Keys.BAD if tells else Keys.WORKED
    if _is_s3_refusal(neutral) and suspect(neutral) is not Scope.KEYS:
        return Keys.GOOD  # such as AccessDenied after SignatureDoesNotMatch: the signature was good
    return Keys.WORKED if ever_stored else Keys.UNKNOWN


def _is_s3_refusal(error: AttemptError) -> bool:
    return error.status in CLIENT_STATUSES and not _bare_status(error) and suspect(error) is not Scope.SERVICE


def _bare_status(error: AttemptError) -> int:
    """Return the status of an answer without an S3 code (botocore then takes the status for one), else 0."""
    return error.status if not error.code or error.code.isdigit() else 0


def blames_endpoint(error: AttemptError) -> bool:
    """Return whether the address, or the endpoint as a whole, may be down, overloaded or replaced by something else."""
    return suspect(error) in (Scope.ADDRESS, Scope.SERVICE)


def may_be_the_address(error: AttemptError) -> bool:
    """Return whether another address may do otherwise: this one may be broken, serve another store, or have other keys.

    A closed idle connection proves none of that; but a gateway that resets every upload as it begins looks the same.
    """
    return suspect(error) is not Scope.BUCKET and error.code not in _OF_NO_ADDRESS


def is_unlisted(code: str, status: int) -> bool:
    """Return whether an answer has a 4xx status with a code of which nothing is known here, so that it is retried."""
    error = AttemptError(code, "", status=status)
    is_listed = code in _LISTED or judge(error) is not Verdict.TRANSIENT or suspect(error) is not Scope.REQUEST
    return status in CLIENT_STATUSES and not is_listed


#: 4xx codes that are transient although the store means this transfer: the next attempt is another one, or comes later.
_LISTED = frozenset(
    {
        "BadDigest",
        "EntityTooSmall",
        "IncompleteBody",
        "InvalidPart",
        "InvalidPartOrder",
        "NoSuchKey",
        "NoSuchUpload",
        "OperationAborted",
    }
)
