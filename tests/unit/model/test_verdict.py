"""What a failed attempt means. The table of codes is the policy, so its rows are repeated here."""

import pytest

from s3daemon.errors import AttemptError, FileError
from s3daemon.model.verdict import Verdict, blames_endpoint, judge

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
        ("RequestTimeTooSkewed", 403, T, False),
        ("NeverHeardOf", 400, T, False),
        # the store, about all transfers
        ("InvalidAccessKeyId", 403, H, False),
        ("SignatureDoesNotMatch", 403, H, False),
        ("ExpiredToken", 400, H, False),
        ("InvalidToken", 400, H, False),
        ("TokenRefreshRequired", 400, H, False),
        ("AccountProblem", 403, H, False),
        ("QuotaExceeded", 403, H, False),
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


@pytest.mark.parametrize("code", ["NoSuchFile", "NotReadable", "NotRegularFile", "FileChanged", "Anything"])
def test_a_files_error_is_transient_and_never_the_endpoints_fault(code: str) -> None:
    """Whatever its code."""
    assert judge(FileError(code, "text")) is Verdict.TRANSIENT
    assert not blames_endpoint(FileError(code, "text"))


def test_a_status_counts_only_without_a_code() -> None:
    """A 413 with S3's SlowDown is transient."""
    assert judge(AttemptError("SlowDown", "text", status=413)) is Verdict.TRANSIENT
