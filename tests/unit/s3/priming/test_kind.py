"""What kind of store an upload with a wrong Content-MD5 shows."""

from __future__ import annotations

import pytest

from s3daemon.errors import AttemptError, Code
from s3daemon.s3.priming.kind import StoreKind, kind_of

REFUSES, STORES, UNREAD, CLOSES, DENIES = StoreKind


def refused(code: str, status: int = 400) -> AttemptError:
    return AttemptError(code, "the store answered", status=status)


@pytest.mark.parametrize(
    ("error", "was_read", "is_kept", "kind"),
    [
        (refused("BadDigest"), True, True, REFUSES),
        (refused("InvalidDigest"), True, True, REFUSES),
        (refused("BadDigest"), True, False, CLOSES),
        (refused("BadDigest"), False, True, UNREAD),
        (refused("BadDigest"), False, False, UNREAD),
        (None, True, True, STORES),
        (None, True, False, STORES),
        (AttemptError(Code.ETAG_MISMATCH, "another"), True, True, STORES),
        (refused("AccessDenied", 403), False, False, DENIES),
        (refused("AccessDenied", 403), True, True, DENIES),
        (refused("NoSuchBucket", 404), True, True, DENIES),
        (refused("QuotaExceeded", 403), True, True, DENIES),
        (refused("SignatureDoesNotMatch", 403), True, True, DENIES),
        (refused("InvalidAccessKeyId", 403), True, True, DENIES),
        (refused("PermanentRedirect", 301), True, True, DENIES),
        (refused("OfAKindUnknown", 400), True, True, DENIES),
        (refused("RequestTimeout", 400), False, False, None),
        (refused("SlowDown", 503), True, True, None),
        (refused("502", 502), True, True, None),
        (refused("403", 403), True, True, None),  # a proxy's
        (AttemptError(Code.BAD_ANSWER, "not S3's", status=200, ambiguous=True), True, True, None),
        (AttemptError(Code.NO_ANSWER, "none", ambiguous=True), True, False, None),
        (AttemptError(Code.STALLED, "no byte taken"), False, False, None),
        (AttemptError(Code.SLOW_CONNECTION, "slow"), False, False, None),
        (AttemptError(Code.CONNECTION_FAILED, "no connection"), False, False, None),
    ],
)
def test_kind(error: AttemptError | None, was_read: bool, is_kept: bool, kind: StoreKind | None) -> None:
    """The same whether or not it was thought to be of another kind before: of a store's receivers one may differ."""
    for is_known in (False, True):
        assert kind_of(error, was_read=was_read, is_kept=is_kept, is_known=is_known) is kind


@pytest.mark.parametrize("code", [Code.CONNECTION_CLOSED, Code.STALE_CONNECTION])
def test_a_close_without_an_answer(code: Code) -> None:
    """The first upload shows that the store does so; once it is known to refuse them, something else broke it."""
    for is_known, kind in ((False, CLOSES), (True, None)):
        assert kind_of(AttemptError(code, "closed"), was_read=False, is_kept=False, is_known=is_known) is kind
