"""What people are told: entries about outages, and a line while nothing is stored; on a clock that the test moves."""

import logging
import random

import pytest
from lab.keeping import Clock

from s3daemon.delivery.health.endpoint import Health
from s3daemon.delivery.health.outages import FAILING_AFTER_S, UNREACHABLE_AFTER_S, Outages, StoringWatch
from s3daemon.errors import AttemptError
from s3daemon.model.record import MessageId
from s3daemon.model.request import Destination


def test_attempts_that_fail_while_nothing_is_stored() -> None:
    """At three destinations and for half a minute; an object that is stored, or a reload, ends it."""
    clock = Clock()
    watch = StoringWatch(clock)
    for key in "aaab":
        watch.failed(Destination("b", key), "Odd: no")
    clock.now += FAILING_AFTER_S
    assert watch.failing({}) == "", "two destinations may have a fault of their own"
    watch.failed(Destination("b", "c"), "Odder: no")
    assert watch.failing({}) == "nothing stored for 30s, the last error is Odder: no"
    clock.now += 60
    assert watch.failing({}) == "nothing stored for 1m30s, the last error is Odder: no"
    watch.clear()
    assert watch.failing({}) == ""
    for key in "abc":
        watch.failed(Destination("b", key), "Odd: no")
    clock.now += FAILING_AFTER_S - 1
    assert watch.failing({}) == "", "the next attempt may end it"


def test_attempts_without_an_answer_while_nothing_is_stored() -> None:
    """They count like failed ones once they have waited for half a minute; an object that is stored begins it anew."""
    clock = Clock()
    watch = StoringWatch(clock)
    unanswered = {Destination("b", key): clock.now for key in "abc"}
    clock.now += FAILING_AFTER_S - 1
    assert watch.failing(unanswered) == ""
    clock.now += 1
    assert watch.failing(unanswered) == "nothing stored for 30s, 3 uploads without an answer"
    two = {Destination("b", key): clock.now - FAILING_AFTER_S for key in "ab"}
    assert watch.failing({**two, Destination("b", "new"): clock.now}) == "", "the third has only begun"
    watch.failed(Destination("b", "c"), "Odd: no")
    assert watch.failing(two) == "nothing stored for 30s, the last error is Odd: no"
    watch.clear()
    clock.now += FAILING_AFTER_S - 1
    assert watch.failing(unanswered) == "", "something was stored meanwhile"


def test_outages_are_entries_with_their_times(caplog: pytest.LogCaptureFixture) -> None:
    """Away and back, held and released: one entry each, however often looked at, with its times."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    health = Health(random.Random(1), clock)
    outages = Outages(health, lambda: health.next_probe_s, clock, lambda: 1e9 + clock.now)
    shown = list[tuple[bool, bool, float | None]]()
    outages.on_change = lambda: shown.append((health.away, bool(health.held), outages.for_s))
    began_usec = round((1e9 + clock.now) * 1e6)

    def since_and_next() -> tuple[int | None, float | None]:
        return outages.since_usec, health.next_probe_s

    for key in "abcd":
        health.failed(AttemptError("ConnectionFailed", "refused"), Destination("b", key))
        outages.note()
        outages.note()
    assert outages.since_usec == began_usec
    assert health.next_probe_s is not None
    assert 0.75 <= health.next_probe_s <= 1.0
    clock.now += 82
    health.refused(AttemptError("InvalidAccessKeyId", "no", status=403), clock.now)
    outages.note()
    assert outages.since_usec == began_usec + 82_000_000
    clock.now += 10
    health.reload()
    outages.note()
    assert since_and_next() == (None, None)
    assert shown == [(True, False, 0.0), (False, True, 0.0), (False, False, None)], "once for each change, at once"
    kinds = [record.__dict__["journal"] for record in caplog.records]
    order = [MessageId.AWAY, MessageId.BACK, MessageId.HELD, MessageId.RELEASED]
    assert [kind["MESSAGE_ID"] for kind in kinds] == order
    assert [kind["S3DAEMON_SINCE_USEC"] - began_usec for kind in kinds] == [0, 0, 82_000_000, 82_000_000]
    away, back, held, released = (record.getMessage() for record in caplog.records)
    assert away.startswith("the endpoint is away: ConnectionFailed: refused; transfers are kept")
    assert back.startswith("the endpoint answers, but refuses the keys; it was away for 1m22s, since ")
    assert held.endswith("; next attempt in 5m00s")
    assert released.startswith("the queue is released; it was held for 10s, since ")


def test_a_store_that_is_unreachable_while_nothing_is_sent_is_an_entry(caplog: pytest.LogCaptureFixture) -> None:
    """Once that has lasted: a lost connection is no news. An outage of transfers has entries of its own."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    health = Health(random.Random(1), clock)
    outages = Outages(health, lambda: health.next_probe_s, clock, lambda: 1e9 + clock.now)

    def after(seconds: float, unreachable: str, *, has_answered: bool = True) -> list[tuple[str, str]]:
        clock.now += seconds
        caplog.clear()
        outages.note_reach(unreachable, has_answered=has_answered)
        return [(record.__dict__["journal"]["MESSAGE_ID"], record.getMessage()) for record in caplog.records]

    why = "TLSRefused, expired"
    entry = f"the store cannot be reached: {why}; s3daemon check shows where the path to it ends"
    assert after(0, why) == []
    assert after(UNREACHABLE_AFTER_S - 1, "") == []
    assert after(0, why) == []
    assert after(UNREACHABLE_AFTER_S - 1, why) == []
    assert [outages.for_s] == [None]
    assert after(1, why) == [(MessageId.UNREACHABLE, entry)]
    assert after(60, why) == []
    assert outages.for_s == UNREACHABLE_AFTER_S + 60, "from its beginning on, not from the entry"
    assert after(0, "", has_answered=False) == [], "of the addresses after a reload nothing is known yet"
    [(kind, text)] = after(0, "")
    assert kind == MessageId.REACHED
    assert text.startswith("the store can be reached again; it was unreachable for 1m30s, since ")
    for key in "abc":
        health.failed(AttemptError("ConnectionFailed", "refused"), Destination("b", key))
    assert [kind for kind, _ in after(0, why)] == [MessageId.AWAY]
    assert after(UNREACHABLE_AFTER_S, why) == [], "it is away, which is more"
    health.succeeded(clock.now)
    caplog.clear()
    outages.note()
    assert [record.getMessage()[:20] for record in caplog.records] == ["the endpoint is back"]
    assert after(1, "") == []
    assert after(0, why) == []
    assert [kind for kind, _ in after(UNREACHABLE_AFTER_S, why)] == [MessageId.UNREACHABLE]
    for key in "abc":
        health.failed(AttemptError("ConnectionFailed", "refused"), Destination("b", key))
    assert [kind for kind, _ in after(0, why)] == [MessageId.AWAY], "and not that it can be reached again"
