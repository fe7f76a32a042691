"""What follows from a failed attempt: the table in the module's docstring, row by row."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, replace

import pytest

from s3daemon.delivery.decision import (
    BACKOFF_MAX_S,
    DENIED_FOR_S,
    FILE_GRACE_S,
    RETRY_AFTER_MAX_S,
    FailureState,
    Finding,
    LastError,
    backoff,
    decide,
)
from s3daemon.errors import AttemptError, FileError
from s3daemon.model.verdict import Keys

DAY_S = 86400.0
FIRST = FailureState(
    attempts=1,
    delays=0,
    previous_code="",
    failed_addresses=frozenset(),
    active_s=1.0,
    retry_for_s=7 * DAY_S,
    uptime_s=DAY_S,
)
"""A transfer whose first attempt has failed, a day after the daemon's start."""

NO_FINDING, SERVING, FULL = Finding.NO_FINDING, Finding.SERVING, Finding.FULL
FAILING, SUSPICIOUS, REFUSING = Finding.FAILING, Finding.SUSPICIOUS, Finding.REFUSING
DOWN = AttemptError("ConnectionFailed", "refused")
BUSY = AttemptError("SlowDown", "busy", status=503)
STALE = AttemptError("StaleConnection", "closed")
DENIED = AttemptError("AccessDenied", "denied", status=403)
BAD_KEY = AttemptError("InvalidAccessKeyId", "unknown key", status=403)
MISSING = FileError("NoSuchFile", "/f: no such file")


def at(address: str, *, other_serves: bool) -> AttemptError:
    """Return an error of one of the store's addresses."""
    return AttemptError("SlowDown", "busy", status=503, address=address, other_address=other_serves)


def elsewhere(code: str) -> AttemptError:
    """Return a refusal by one of the store's addresses, where another one is enabled."""
    return AttemptError(code, "x", status=403, address="a", other_address=True)


@dataclass
class Row:
    """A failure, and what is expected to follow. Seconds are those of the delay without jitter."""

    error: AttemptError | FileError
    state: FailureState
    finding: Finding
    final: bool = False
    seconds: float = 0.0
    avoided: frozenset[str] = frozenset()


def with_keys(keys: Keys) -> FailureState:
    """Return the state in which so much is known of the keys."""
    return replace(FIRST, keys=keys)


TWO_FAILED = replace(FIRST, attempts=3, failed_addresses=frozenset("ab"))
TABLE = {
    "the address is to blame": Row(at("a", other_serves=True), FIRST, NO_FINDING, avoided=frozenset("a")),
    "the third of many is to blame": Row(at("c", other_serves=True), TWO_FAILED, NO_FINDING, avoided=frozenset("abc")),
    "the last address is to blame": Row(at("c", other_serves=False), TWO_FAILED, FAILING, seconds=1.0),
    "a closed connection": Row(STALE, FIRST, NO_FINDING),
    "a closed connection to one of several": Row(
        AttemptError("StaleConnection", "closed", address="a", other_address=True),
        replace(FIRST, previous_code="StaleConnection"),
        NO_FINDING,
        avoided=frozenset("a"),
    ),
    "a closed connection after an address": Row(STALE, TWO_FAILED, NO_FINDING, avoided=frozenset("ab")),
    "a closed connection after another error": Row(STALE, replace(FIRST, previous_code="SlowDown"), NO_FINDING),
    "two closed connections in a row": Row(
        STALE, replace(FIRST, attempts=2, previous_code="StaleConnection"), NO_FINDING, seconds=1.0
    ),
    "no answer": Row(DOWN, FIRST, FAILING, seconds=1.0),
    "the store is overloaded": Row(BUSY, FIRST, FAILING, seconds=1.0),
    "the same error again": Row(
        BUSY, replace(FIRST, attempts=5, delays=4, previous_code="SlowDown"), FAILING, seconds=5.0625
    ),
    "the same error again at the last of three addresses": Row(
        at("c", other_serves=False), replace(TWO_FAILED, attempts=9, delays=2), FAILING, seconds=2.25
    ),
    "the address is to blame, after a back-off": Row(
        at("b", other_serves=True), replace(FIRST, delays=1), FAILING, seconds=1.5, avoided=frozenset("b")
    ),
    "a code that is new to us, after a back-off": Row(
        elsewhere("New"), replace(FIRST, delays=2), SERVING, seconds=2.25, avoided=frozenset("a")
    ),
    "a code that is new to us, at one of several addresses": Row(
        elsewhere("New"), FIRST, SERVING, avoided=frozenset("a")
    ),
    "a code that is new to us, at the fourth of many addresses": Row(
        elsewhere("New"),
        replace(FIRST, failed_addresses=frozenset("bcd")),
        SERVING,
        seconds=1.0,
        avoided=frozenset("a"),
    ),
    "a busy store at the fourth of many addresses": Row(
        at("a", other_serves=True),
        replace(FIRST, failed_addresses=frozenset("bcd")),
        FAILING,
        seconds=1.0,
        avoided=frozenset("a"),
    ),
    "a code that is new to us": Row(AttemptError("New", "?", status=409), FIRST, SERVING, seconds=1.0),
    "a late arrival": Row(AttemptError("Overwritten", "older"), FIRST, NO_FINDING, seconds=1.0),
    "the same address again": Row(
        at("a", other_serves=True), replace(FIRST, failed_addresses=frozenset("a")), FAILING, seconds=1.0
    ),
    "another ETag": Row(AttemptError("ETagMismatch", "x"), FIRST, NO_FINDING, seconds=1.0),
    "a bug": Row(AttemptError("Internal", "a bug"), FIRST, NO_FINDING, seconds=1.0),
    "refused before it was sent": Row(AttemptError("BadRequest", "arn:x"), FIRST, NO_FINDING, final=True),
    "a full bucket": Row(AttemptError("QuotaExceeded", "x", status=403), FIRST, FULL, seconds=1.0),
    "good keys, refused for this key": Row(BAD_KEY, with_keys(Keys.GOOD), SERVING, seconds=1.0),
    "bad keys, confirmed": Row(BAD_KEY, with_keys(Keys.BAD), REFUSING, seconds=1.0),
    "bad keys, suspected": Row(BAD_KEY, with_keys(Keys.UNKNOWN), SUSPICIOUS, seconds=1.0),
    "bad keys, which have worked": Row(BAD_KEY, with_keys(Keys.WORKED), SUSPICIOUS, seconds=1.0),
    "bad keys, replaced since": Row(BAD_KEY, with_keys(Keys.REPLACED), NO_FINDING, seconds=1.0),
    "denied with good keys": Row(DENIED, with_keys(Keys.GOOD), SERVING, final=True),
    "denied with keys that have worked": Row(DENIED, with_keys(Keys.WORKED), SERVING, seconds=1.0),
    "denied with keys that have worked, for some time": Row(
        DENIED, replace(with_keys(Keys.WORKED), denied_s=DENIED_FOR_S), SERVING, final=True
    ),
    "denied with keys that may be bad": Row(DENIED, with_keys(Keys.UNKNOWN), SUSPICIOUS, seconds=1.0),
    "denied with bad keys": Row(DENIED, with_keys(Keys.BAD), REFUSING, seconds=1.0),
    "permanent": Row(AttemptError("NoSuchBucket", "x", status=404), FIRST, SERVING, final=True),
    "permanent at one of several addresses": Row(elsewhere("NoSuchBucket"), FIRST, SERVING, avoided=frozenset("a")),
    "permanent at the second of three addresses": Row(
        elsewhere("NoSuchBucket"), replace(FIRST, failed_addresses=frozenset("b")), SERVING, avoided=frozenset("ab")
    ),
    "permanent at the fourth of many addresses": Row(
        elsewhere("NoSuchBucket"), replace(FIRST, failed_addresses=frozenset("bcd")), SERVING, final=True
    ),
    "permanent at the last address": Row(
        AttemptError("NoSuchBucket", "x", status=404, address="a"), TWO_FAILED, SERVING, final=True
    ),
    "permanent at one of several addresses, past the retry limit": Row(
        elsewhere("NoSuchBucket"), replace(FIRST, active_s=8 * DAY_S), SERVING, final=True
    ),
    "permanent at the same address again": Row(
        elsewhere("NoSuchBucket"), replace(FIRST, failed_addresses=frozenset("a")), SERVING, final=True
    ),
    "denied at one of several addresses": Row(
        elsewhere("AccessDenied"), with_keys(Keys.GOOD), SERVING, avoided=frozenset("a")
    ),
    "good keys, refused at one of several addresses": Row(
        elsewhere("SignatureDoesNotMatch"), with_keys(Keys.GOOD), SERVING, avoided=frozenset("a")
    ),
    "bad keys at each of several addresses": Row(
        elsewhere("InvalidAccessKeyId"), with_keys(Keys.BAD), REFUSING, seconds=1.0
    ),
    "TLS refused, without an answer": Row(
        AttemptError("TLSRefused", "no"), with_keys(Keys.BAD), REFUSING, seconds=1.0
    ),
    "a missing file": Row(MISSING, FIRST, NO_FINDING, final=True),
    "a missing file early after the start": Row(
        MISSING, replace(FIRST, uptime_s=FILE_GRACE_S - 1), NO_FINDING, seconds=1.0
    ),
    "a file that changes": Row(FileError("FileChanged", "changed"), FIRST, NO_FINDING, seconds=1.0),
    "a file that cannot be read": Row(FileError("ReadFailed", "I/O"), FIRST, NO_FINDING, seconds=1.0),
    "at the retry limit": Row(BUSY, replace(FIRST, active_s=7 * DAY_S), FAILING, seconds=1.0),
    "past the retry limit": Row(BUSY, replace(FIRST, active_s=7 * DAY_S + 1), FAILING, final=True),
    "bad keys past the retry limit": Row(
        BAD_KEY, replace(with_keys(Keys.BAD), active_s=8 * DAY_S), REFUSING, final=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
def test_each_failure_has_its_consequence(row: Row) -> None:
    decision = decide(row.error, row.state, random.Random(1))
    assert decision.finding is row.finding
    assert decision.final is row.final
    assert 0.75 * row.seconds <= decision.delay_s <= 1.25 * row.seconds
    assert decision.failed_addresses == row.avoided


def test_the_error_is_recorded_with_its_address() -> None:
    error = decide(at("192.0.2.1", other_serves=False), FIRST, random.Random(1)).error
    assert error == LastError("SlowDown", "busy", "192.0.2.1")
    assert decide(MISSING, FIRST, random.Random(1)).error == LastError("NoSuchFile", "/f: no such file")


def test_past_the_retry_limit_the_record_says_so() -> None:
    late = replace(FIRST, attempts=99, active_s=8 * DAY_S)
    error = decide(BUSY, late, random.Random(1)).error
    assert error == LastError("SlowDown", "given up after 99 attempts; the last error: busy")
    assert decide(DENIED, replace(late, keys=Keys.GOOD), random.Random(1)).error.text == "denied", (
        "it is permanent anyway"
    )


def test_a_store_that_asks_for_time_gets_it() -> None:
    error = AttemptError("SlowDown", "busy", status=503, retry_after=120.0)
    assert 120.0 <= decide(error, FIRST, random.Random(1)).delay_s <= 132.0


def test_the_back_off_grows_to_a_minute_with_jitter() -> None:
    rng = random.Random(1)
    for before, middle in [(0, 1), (1, 1.5), (2, 2.25), (4, 5.0625), (11, 60), (50, 60), (100_000, 60)]:
        delays = [backoff(before, rng) for _ in range(200)]
        assert 0.75 * middle <= min(delays) < 0.8 * middle
        assert 1.2 * middle < max(delays) <= 1.25 * middle


def test_an_object_without_luck_makes_no_exposure_late_or_lost_soon() -> None:
    """Late after 10 s, lost after 30 s: a store that fails at one request of three gets five and seven attempts."""
    rng = random.Random(1)
    for failures, limit_s in [(4, 10), (6, 30)]:
        waits = [sum(backoff(before, rng) for before in range(failures)) for _ in range(200)]
        assert statistics.mean(waits) < 0.85 * limit_s


def test_retry_after_lengthens_the_back_off_up_to_a_maximum() -> None:
    rng = random.Random(1)
    assert 20 <= backoff(0, rng, 20) <= 22
    assert backoff(0, rng, 0.1) >= 0.75
    assert backoff(50, rng, 5) >= 0.75 * BACKOFF_MAX_S
    assert RETRY_AFTER_MAX_S <= backoff(0, rng, 86400) <= 1.1 * RETRY_AFTER_MAX_S
