"""What is found out about the keys, from neutral requests that are answered as the test says."""

import asyncio

import pytest
from fakes import flying_with

from s3daemon.delivery.health.keys import LEARN_AGAIN_S, KeyEvidence
from s3daemon.errors import AttemptError
from s3daemon.model.verdict import Keys

DOWN = AttemptError("ConnectionFailed", "connection refused")
BUSY = AttemptError("SlowDown", "slow down", status=503)
BAD_KEY = AttemptError("InvalidAccessKeyId", "no such key", status=403)
DENIED = AttemptError("AccessDenied", "denied", status=403)


class Asked:
    """A neutral request that is answered as the test says, and counted; and what it tells of the keys."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.count = 0
        self.now = asyncio.get_running_loop().time
        self.evidence = KeyEvidence(self, self.now)

    async def __call__(self) -> None:
        self.count += 1
        await asyncio.sleep(0.2)
        if self.error is not None:
            raise self.error


@flying_with(Asked)
async def test_refusals_share_a_neutral_request_that_was_sent_after_them(asked: Asked) -> None:
    first = [asyncio.create_task(asked.evidence.examine(BAD_KEY, asked.now())) for _ in range(20)]
    await asyncio.sleep(0.1)
    asked.error = BAD_KEY
    later = [asyncio.create_task(asked.evidence.examine(BAD_KEY, asked.now())) for _ in range(20)]
    assert set(await asyncio.gather(*first, *later)) == {Keys.BAD}
    assert asked.count == 2


@flying_with(Asked)
async def test_a_denial_of_the_neutral_request_tells_only_of_keys_that_it_was_accepted_with(asked: Asked) -> None:
    asked.evidence.stored(asked.now())
    asked.error = DENIED
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.WORKED
    asked.error = None
    assert await asked.evidence.ask() is None
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.WORKED  # one gateway of several may deny
    asked.error = DENIED
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.BAD


@flying_with(Asked)
async def test_a_denial_of_a_neutral_request_after_a_bad_signature_is_no_acceptance(asked: Asked) -> None:
    """The signature was good; but whether valid keys are allowed that request is not known."""
    asked.evidence.stored(asked.now())
    asked.error = DENIED
    bad_signature = AttemptError("SignatureDoesNotMatch", "a proxy's doing", status=403)
    assert await asked.evidence.examine(bad_signature, asked.now()) is Keys.GOOD
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.WORKED


@flying_with(Asked)
async def test_what_was_denied_while_the_neutral_request_was_too_tells_nothing_of_its_bucket(asked: Asked) -> None:
    """The store denied everything, and has just stopped that."""
    started_at = asked.now()
    asked.error = DENIED
    await asked.evidence.ask()
    asked.error = None
    assert await asked.evidence.examine(DENIED, started_at) is Keys.REPLACED
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.GOOD


@flying_with(Asked)
async def test_a_neutral_request_that_fails_was_not_refused(asked: Asked) -> None:
    """So an attempt from before tells of its bucket still."""
    started_at = asked.now()
    asked.error = AttemptError("SlowDown", "busy", status=503)
    await asked.evidence.ask()
    asked.error = None
    assert await asked.evidence.examine(DENIED, started_at) is Keys.GOOD


@flying_with(Asked)
async def test_after_the_first_success_it_is_learned_whether_a_denial_will_tell(asked: Asked) -> None:
    """By one neutral request: keys that were good, and are denied it later, have been replaced at the store."""
    for _ in range(3):
        asked.evidence.stored(asked.now())
    await asyncio.sleep(1)
    assert asked.count == 1
    asked.error = DENIED
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.BAD


@pytest.mark.parametrize(
    ("error", "count"), [(DOWN, 2), (BUSY, 2), (AttemptError("AccessDenied", "no", status=403), 1)]
)
@flying_with(Asked)
async def test_an_unanswered_neutral_request_is_sent_again_a_minute_later(
    asked: Asked, error: AttemptError, count: int
) -> None:
    """Not after each object: a store that never answers it would get two requests for each."""
    asked.error = error
    for pause_s in (1, LEARN_AGAIN_S, 1, LEARN_AGAIN_S):
        asked.evidence.stored(asked.now())
        await asyncio.sleep(pause_s)
        asked.error = None if pause_s > 1 else error
    assert asked.count == count


@flying_with(Asked)
async def test_what_was_learned_of_keys_is_forgotten_with_them(asked: Asked) -> None:
    """Even when they are replaced by a reload while the neutral request is under way."""
    asked.evidence.stored(asked.now())
    await asyncio.sleep(0.05)
    asked.evidence.reload()
    await asyncio.sleep(1)
    asked.error = DENIED
    asked.evidence.stored(asked.now())
    assert await asked.evidence.examine(DENIED, asked.now()) is Keys.WORKED


@flying_with(Asked)
async def test_a_refusal_of_the_old_keys_says_nothing_of_the_new_ones(asked: Asked) -> None:
    started_at = asked.now()
    overtaken = asyncio.create_task(asked.evidence.examine(DENIED, started_at))
    await asyncio.sleep(0.1)
    asked.evidence.reload()
    assert await overtaken is Keys.REPLACED
    assert await asked.evidence.examine(DENIED, started_at) is Keys.REPLACED


@flying_with(Asked)
async def test_what_was_denied_since_the_last_success_deserves_another_attempt_after_a_reload(asked: Asked) -> None:
    asked.evidence.denied("before")
    await asyncio.sleep(1)
    asked.evidence.stored(asked.now())
    await asyncio.sleep(1)
    asked.evidence.denied("after")
    assert asked.evidence.reload() == {"after"}
    assert asked.evidence.reload() == set()


@flying_with(Asked)
async def test_a_bug_in_the_neutral_request_tells_nothing(asked: Asked, caplog: pytest.LogCaptureFixture) -> None:
    asked.error = RuntimeError("a bug")
    assert await asked.evidence.examine(BAD_KEY, asked.now()) is Keys.UNKNOWN
    assert "a bug in the neutral request" in caplog.text
