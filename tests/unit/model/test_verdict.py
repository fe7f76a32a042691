"""What a failed attempt means. The table of codes is the policy, so its rows are repeated here."""

import pytest

from s3daemon.errors import AttemptError
from s3daemon.model.verdict import (
    Keys,
    Scope,
    Verdict,
    blames_endpoint,
    is_unlisted,
    judge,
    keys_after,
    suspect,
)

T, P, H = Verdict.TRANSIENT, Verdict.PERMANENT, Verdict.HOLD


@pytest.mark.parametrize(
    ("code", "status", "verdict", "blamed"),
    [
        # no answer
        ("ConnectionFailed", 0, T, True),
        ("Stalled", 0, T, True),
        ("NameNotResolved", 0, T, True),
        ("TLSRefused", 0, H, False),
        ("NoCredentials", 0, H, False),
        # the store, overloaded or broken
        ("SlowDown", 503, T, True),
        ("ServiceUnavailable", 503, T, True),
        ("InternalError", 500, T, True),
        ("RequestTimeout", 400, T, True),
        ("RequestTimeout", 408, T, True),
        ("TooManyRequests", 429, T, True),
        ("NeverHeardOf", 599, T, True),
        # the store, about this transfer
        ("NoSuchBucket", 404, P, False),
        ("AccessDenied", 403, P, False),
        ("EntityTooLarge", 400, P, False),
        ("InvalidBucketName", 400, P, False),
        ("KeyTooLongError", 400, P, False),
        ("MethodNotAllowed", 405, P, False),
        ("NotImplemented", 501, P, False),
        ("PermanentRedirect", 301, P, False),
        ("TemporaryRedirect", 307, T, False),
        ("BadDigest", 400, T, False),
        ("OperationAborted", 409, T, False),
        ("NoSuchUpload", 404, T, False),
        ("RequestTimeTooSkewed", 403, T, True),
        ("NeverHeardOf", 400, T, False),
        ("BadRequest", 0, P, False),
        ("InvalidArgument", 400, P, False),
        ("InvalidRequest", 400, P, False),
        ("InvalidTenantName", 400, P, False),
        ("XMinioInvalidObjectName", 400, P, False),
        ("XMinioInvalidResourceName", 400, P, False),
        ("DirectoryObjectContainsData", 400, P, False),
        ("ExistingObjectIsDirectory", 409, P, False),
        ("ObjectParentIsFile", 400, P, False),
        ("ETagMismatch", 0, T, False),
        ("HostLimit", 0, T, False),
        ("Overwritten", 0, T, False),
        ("Internal", 0, T, False),
        ("StaleConnection", 0, T, False),
        # the store, about a bucket
        ("QuotaExceeded", 403, T, False),
        ("XMinioAdminBucketQuotaExceeded", 400, T, False),
        # the store, full
        ("InsufficientStorage", 507, T, True),
        ("XMinioStorageFull", 507, T, True),
        ("507", 507, T, True),
        # the store, about all transfers
        ("InvalidAccessKeyId", 403, H, False),
        ("SignatureDoesNotMatch", 403, H, False),
        ("ExpiredToken", 400, H, False),
        ("InvalidToken", 400, H, False),
        ("TokenRefreshRequired", 400, H, False),
        ("AccountProblem", 403, H, False),
        ("UserSuspended", 403, H, False),
        # something in front of the store: no S3 code, or the status in its place
        ("403", 403, T, True),
        ("401", 401, T, True),
        ("404", 404, T, True),
        ("302", 302, T, True),
        ("", 403, T, True),
        ("502", 502, T, True),
        ("413", 413, P, False),
    ],
)
def test_verdict_and_blame_by_code_then_status(code: str, status: int, verdict: Verdict, blamed: bool) -> None:
    """The code decides; the status only where no S3 code came with it."""
    error = AttemptError(code, "text", status=status)
    assert judge(error) is verdict
    assert blames_endpoint(error) is blamed


def test_a_status_counts_only_without_a_code() -> None:
    """A 413 with S3's SlowDown is transient."""
    assert judge(AttemptError("SlowDown", "text", status=413)) is Verdict.TRANSIENT


def refused(code: str, status: int = 403) -> AttemptError:
    return AttemptError(code, "no", status=status)


@pytest.mark.parametrize(
    ("error", "scope"),
    [
        (refused("NoSuchBucket", 404), Scope.REQUEST),
        (refused("NeverHeardOf", 400), Scope.REQUEST),
        (AttemptError("BadRequest", "arn:x"), Scope.REQUEST),
        (AttemptError("ETagMismatch", "other"), Scope.REQUEST),
        (AttemptError("HostLimit", "no descriptor"), Scope.REQUEST),
        (refused("QuotaExceeded"), Scope.BUCKET),
        (refused("XMinioAdminBucketQuotaExceeded", 400), Scope.BUCKET),
        (refused("SignatureDoesNotMatch"), Scope.KEYS),
        (AttemptError("TLSRefused", "expired"), Scope.KEYS),
        (AttemptError("ConnectionFailed", "refused"), Scope.ADDRESS),
        (AttemptError("NameNotResolved", "gone"), Scope.ADDRESS),
        (AttemptError("ConnectionClosed", "reset"), Scope.SERVICE),
        (AttemptError("BadAnswer", "a page"), Scope.SERVICE),
        (refused("SlowDown", 503), Scope.SERVICE),
        (refused("404", 404), Scope.SERVICE),
    ],
    ids=lambda value: value.code if isinstance(value, AttemptError) else None,
)
def test_whom_one_error_accuses(error: AttemptError, scope: Scope) -> None:
    assert suspect(error) is scope


WRONG, DENIED, SILENT = refused("SignatureDoesNotMatch"), refused("AccessDenied"), AttemptError("NoAnswer", "silent")


@pytest.mark.parametrize(
    ("refusal", "neutral", "ever", "keys", "verdict"),
    [
        # one key through a proxy that normalizes paths
        (WRONG, None, "", Keys.GOOD, T),
        (WRONG, refused("AccessDenied"), "", Keys.GOOD, T),
        # a wrong secret
        (WRONG, WRONG, "", Keys.BAD, H),
        (WRONG, WRONG, "accepted stored", Keys.BAD, H),
        # nothing is learned: a second destination has to tell
        (WRONG, SILENT, "", Keys.UNKNOWN, T),
        (WRONG, refused("403"), "", Keys.UNKNOWN, T),
        (WRONG, refused("SlowDown", 503), "stored", Keys.WORKED, T),
        (WRONG, refused("ExpiredToken", 400), "stored", Keys.WORKED, T),
        # a bucket that is not ours
        (DENIED, None, "", Keys.GOOD, P),
        # ... or a gateway that has just started
        (DENIED, None, "stored", Keys.WORKED, P),
        (DENIED, SILENT, "stored", Keys.WORKED, P),
        # ... of keys that may write and may not list buckets
        (DENIED, DENIED, "stored", Keys.WORKED, P),
        # wrong keys at Ceph RGW with rgw_s3_auth_use_sts, from the start and after they were changed at the store
        (DENIED, DENIED, "", Keys.BAD, H),
        (DENIED, DENIED, "accepted stored", Keys.BAD, H),
        (DENIED, SILENT, "", Keys.UNKNOWN, T),
        # the keys that were refused are no longer in force
        (DENIED, None, "replaced", Keys.REPLACED, T),
        (WRONG, WRONG, "replaced", Keys.REPLACED, T),
        # a certificate that is not trusted
        (AttemptError("TLSRefused", "no"), AttemptError("TLSRefused", "no"), "", Keys.BAD, H),
    ],
)  # fmt: skip
def test_what_follows_for_the_keys(
    refusal: AttemptError, neutral: AttemptError | None, ever: str, keys: Keys, verdict: Verdict
) -> None:
    """A neutral request decides where it can; what the keys have done before where it cannot."""
    found = keys_after(
        refusal,
        neutral,
        ever_accepted="accepted" in ever,
        ever_stored="stored" in ever,
        replaced="replaced" in ever,
    )
    assert found is keys
    assert judge(refusal, found) is verdict


@pytest.mark.parametrize(
    ("code", "status", "unlisted"),
    [
        ("NeverHeardOf", 400, True),
        ("NeverHeardOf", 500, False),
        ("BadDigest", 400, False),
        ("NoSuchBucket", 404, False),
        ("AccessDenied", 403, False),
        ("SignatureDoesNotMatch", 403, False),
        ("QuotaExceeded", 403, False),
        ("XMinioAdminBucketQuotaExceeded", 400, False),
        ("404", 404, False),
    ],
)
def test_a_4xx_code_that_is_listed_nowhere_is_noticed(code: str, status: int, unlisted: bool) -> None:
    assert is_unlisted(code, status) is unlisted
