"""Decide after a failed attempt whether the transfer failed permanently, and otherwise when and where it is retried.

Pure: `decide` takes the error and the state of the transfer, and returns a `Decision` that the uploader carries out.
`model.verdict` classifies errors one by one; here the history of the transfer is added:

    error                                              transfer                     endpoint    next attempt
    -----                                              --------                     --------    ------------
    the address is to blame, and is one of the first   stays as it is               NO_FINDING  at once, not to that one
    three of more
    that address is to blame again                     backlog                      FAILING     after the back-off
    a connection closed before the request arrived     stays as it is               NO_FINDING  at once, not to that one
    such a connection, no other address is enabled     stays as it is               NO_FINDING  at once
    that again, directly after                         backlog                      NO_FINDING  after the back-off
    transient, the endpoint may be to blame            backlog                      FAILING     after the back-off
    transient, another answer of the store             backlog                      SERVING     after the back-off
    likewise, at the first three addresses of more     stays as it is               SERVING     at once, not to that one
    transient, what is stored is not what was sent     backlog                      NO_FINDING  after the back-off
    permanent, at the first three addresses of more    stays as it is               SERVING     at once, not to that one
    permanent                                          failed                       SERVING     none
    the bucket's quota                                 backlog                      FULL        after the back-off
    keys, account, TLS; a neutral request is refused   backlog                      REFUSING    after the back-off
    keys ...; a neutral request is accepted            backlog                      SERVING     after the back-off
    keys ...; no clear answer to a neutral request     backlog                      SUSPICIOUS  after the back-off
    denied; the keys have stored something             backlog                      SERVING     after the back-off
    that again and again, for `DENIED_FOR_S`           failed                       SERVING     none
    denied; nothing yet, a neutral request is accepted failed                       SERVING     none
    denied; the keys have not worked yet               as for keys, account, TLS
    a file that changes or cannot be read              backlog                      NO_FINDING  after the back-off
    another error of a file, early after the start     backlog                      NO_FINDING  after the back-off
    another error of a file                            failed                       NO_FINDING  none
    any that is not permanent, past the retry limit    failed, "given up after ..." as above    none

"At once" is so at up to `MOST_ADDRESSES`, and only before the first back-off; further attempts are made at one address
after the other, each after a back-off. Else a store that is overloaded would get as many attempts as it has addresses.
A permanent error is passed on at once at any time.

Every time is a difference in seconds, so a wall clock that steps or was wrong at boot neither expires nor delays
anything.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from s3daemon.errors import AttemptError, Code, FileError
from s3daemon.model.verdict import ACCESS_DENIED, Keys, Scope, Verdict, blames_endpoint, judge, suspect
from s3daemon.units import plural

#: A hook that waits gives up after 30 s, so the second and third attempt must come within seconds.
BACKOFF_FIRST_S = 1.0
#: Each delay is so many times the one before. With 2, the fifth attempt comes after 15 s and the sixth after 31 s.
#: Behind a balancer that gives every third request to a gateway that fails, one of 46 objects would often need these,
#: and its exposure be late or lost. With 1.5 they come after 8 s and 13 s.
BACKOFF_FACTOR = 1.5
#: There is about one exposure a minute: a longer delay would make data late for nothing.
BACKOFF_MAX_S = 60.0
#: A store's Retry-After is respected, but a proxy that says "tomorrow" does not stop a night's transfers.
RETRY_AFTER_MAX_S = 300.0
#: After a start a file may be missing because its file system is mounted late; after this long it does not exist.
FILE_GRACE_S = 3600.0
#: A store, or one of its gateways, may deny everything for some seconds, as while it starts. So once these keys have
#: stored something, a transfer fails only after it was denied for so long; with the back-off that is at its fourth or
#: fifth attempt.
DENIED_FOR_S = 5.0
#: Errors of a file that may be over at any moment.
_PASSING = (Code.FILE_CHANGED, Code.HOST_LIMIT, Code.READ_FAILED)
#: A transfer is tried at this many addresses before it waits or fails. One may be broken or set up differently, but
#: what fails at so many fails at all, and each attempt may send the whole file; a name may have dozens of addresses.
MOST_ADDRESSES = 4
#: The statuses from here on refuse a request. A success with the wrong content, and what was never answered, say
#: nothing of the keys or of other transfers.
_FIRST_REFUSAL_STATUS = 300


class Finding(Enum):
    """What a failed attempt says about the endpoint as a whole."""

    NO_FINDING = "it was not asked, or something else is to blame"
    SERVING = "it answered, and accepted the keys"
    FULL = "it answered, and accepted the keys; the bucket takes no more"
    FAILING = "it does not answer, or cannot serve, at least not this destination"
    SUSPICIOUS = "it may refuse all transfers, or this destination: a second one will tell"
    REFUSING = "it would refuse all transfers: the queue must be held"


_KEYS_FINDINGS = {
    Keys.GOOD: Finding.SERVING,
    Keys.BAD: Finding.REFUSING,
    Keys.WORKED: Finding.SUSPICIOUS,
    Keys.UNKNOWN: Finding.SUSPICIOUS,
    Keys.REPLACED: Finding.NO_FINDING,
}


@dataclass(frozen=True, slots=True)
class LastError:
    """The error of the last attempt, as it is recorded.

    Args:
        code: the stable word; empty when there was no error.
        text: one line for people.
        address: the store's address where it failed; empty when none was reached.
    """

    code: str = ""
    text: str = ""
    address: str = ""


#: The error of a transfer that an operator has given up.
DROPPED = LastError(Code.DROPPED, "dropped by an operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureState:
    """The state of a transfer whose attempt has failed.

    Args:
        attempts: made so far, the failed one included.
        delays: how many of them, in this process, were followed by a delay; the others by an attempt at once.
        previous_code: of the error before this one; empty when there was none.
        failed_addresses: where attempts failed, one directly after the other.
        active_s: seconds since acceptance in which the daemon ran and the queue was not held.
        retry_for_s: the limit of `active_s`.
        uptime_s: seconds since this process started.
        denied_s: seconds since the first of the denials that have followed one another.
        keys: what is known of them where the error accuses them (`accuses_keys`); None where it does not.
    """

    attempts: int
    delays: int
    previous_code: str
    failed_addresses: frozenset[str]
    active_s: float
    retry_for_s: float
    uptime_s: float
    denied_s: float = 0.0
    keys: Keys | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done after a failed attempt.

    Args:
        error: what is recorded.
        finding: what the attempt says about the endpoint.
        final: the transfer has failed permanently; the fields below are then without meaning.
        delay_s: seconds until the next attempt; after a delay the transfer is of the backlog, behind fresh ones.
        failed_addresses: addresses that the next attempt avoids if another one is enabled.
    """

    error: LastError
    finding: Finding
    final: bool = False
    delay_s: float = 0.0
    failed_addresses: frozenset[str] = frozenset()


def decide(error: AttemptError | FileError, state: FailureState, rng: random.Random) -> Decision:
    """Return what follows from a failed attempt.

    Args:
        error: why it failed.
        state: of the transfer.
        rng: jitter of the delay.
    """
    recorded = LastError(error.code, error.text, error.address)
    verdict = _verdict(error, state)
    elsewhere = error.other_address and error.address not in state.failed_addresses and verdict is not Verdict.HOLD
    is_first_round = verdict is Verdict.PERMANENT or not state.delays
    at_once = elsewhere and is_first_round and len(state.failed_addresses) + 1 < MOST_ADDRESSES
    is_passed_on = at_once and isinstance(error, AttemptError) and blames_endpoint(error)
    finding = Finding.NO_FINDING if is_passed_on else _finding(error, state.keys, verdict)
    if verdict is Verdict.PERMANENT and not at_once:
        return Decision(recorded, finding, final=True)
    if state.active_s > state.retry_for_s:
        text = f"given up after {plural(state.attempts, 'attempt')}; the last error: {error.text}"
        return Decision(LastError(error.code, text, recorded.address), finding, final=True)
    if at_once:
        return Decision(recorded, finding, failed_addresses=state.failed_addresses | {error.address})
    is_stale_again = error.code == state.previous_code
    if error.code == Code.STALE_CONNECTION and not is_stale_again:  # a closed one says nothing against another one
        return Decision(recorded, finding, failed_addresses=state.failed_addresses)
    avoided = frozenset({error.address}) if elsewhere else frozenset()
    return Decision(recorded, finding, delay_s=backoff(state.delays, rng, error.retry_after), failed_addresses=avoided)


def _verdict(error: AttemptError | FileError, state: FailureState) -> Verdict:
    if isinstance(error, AttemptError):
        is_doubtful = state.keys is Keys.WORKED and state.denied_s < DENIED_FOR_S
        return Verdict.TRANSIENT if is_doubtful else judge(error, state.keys)
    passing = error.code in _PASSING or state.uptime_s < FILE_GRACE_S
    return Verdict.TRANSIENT if passing else Verdict.PERMANENT


def _finding(error: AttemptError | FileError, keys: Keys | None, verdict: Verdict) -> Finding:
    if not isinstance(error, AttemptError):
        return Finding.NO_FINDING
    if keys is not None:
        is_own = verdict is Verdict.PERMANENT or (error.code == ACCESS_DENIED and keys is Keys.WORKED)
        return Finding.SERVING if is_own else _KEYS_FINDINGS[keys]
    if blames_endpoint(error):
        return Finding.FAILING
    if suspect(error) is Scope.BUCKET:
        return Finding.FULL
    return Finding.SERVING if error.status >= _FIRST_REFUSAL_STATUS else Finding.NO_FINDING


def backoff(delays: int, rng: random.Random, retry_after: float = 0.0) -> float:
    """Return the next delay in seconds, after so many that the transfer had before.

    It grows from `BACKOFF_FIRST_S` to `BACKOFF_MAX_S`, each a quarter more or less, so that nine hosts that failed
    together do not try again together. `retry_after` (seconds, what the store asked for) lengthens it, up to
    `RETRY_AFTER_MAX_S`.
    """
    steps = min(delays, 16)  # far over the maximum by then; bounded, since a large power overflows
    delay = min(BACKOFF_FIRST_S * BACKOFF_FACTOR**steps, BACKOFF_MAX_S) * rng.uniform(0.75, 1.25)
    return max(delay, min(retry_after, RETRY_AFTER_MAX_S) * rng.uniform(1.0, 1.1))
