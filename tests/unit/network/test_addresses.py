"""Addresses of the store: the last enabled one is never disabled, a broken one costs each transfer at most one attempt,
and is on trial when it answers again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.keeping import Clock

from s3daemon.errors import AttemptError
from s3daemon.network.address import (
    DISABLED_FIRST_S,
    DISABLED_MAX_S,
    SILENT_S,
    SLOW_FIRST_S,
    UPLOADS_COUNT_S,
    SmallRequestOutcome,
)
from s3daemon.network.addresses import REFUSING_S, Addresses, Limited

FOUR = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
ONE, TWO = FOUR[:2]


class Scene:
    """Addresses, a clock, and what was reported."""

    def __init__(self, addresses: tuple[str, ...] = FOUR) -> None:
        self.clock = Clock()
        self.disabled: list[tuple[str, str, bool]] = []
        """Address, reason, and whether it ever answered."""
        self.enabled: list[str] = []
        self.addresses = Addresses(
            self.clock,
            lambda address, reason, _, has_answered: self.disabled.append((address, reason, has_answered)),
            lambda address, disabled_s: self.enabled.append(address),
        )
        self.addresses.replace(addresses)

    def disable(self, address: str = ONE) -> None:
        """A connection to it fails."""
        self.addresses.failed(address, "refused")
        assert address in self.addresses.disabled

    def put_on_trial(self, address: str = ONE) -> None:
        """Its time is up, and it answers a small request."""
        self.clock.now += DISABLED_MAX_S
        assert address in self.addresses.to_probe()
        self.addresses.probed(address, SmallRequestOutcome.ANSWERED)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_one_transfers_failure_is_not_enough(scene: Scene) -> None:
    """An object that the store cannot handle says nothing of the address; a second transfer's failure does."""
    for _ in range(5):
        scene.addresses.failed(ONE, "500", "a")
    assert scene.addresses.disabled == []
    scene.addresses.failed(ONE, "503", "b")
    assert scene.addresses.disabled == [ONE]
    assert scene.disabled == [(ONE, "503", False)]


def test_a_success_between_two_failures_keeps_it_enabled(scene: Scene) -> None:
    """Failures before the success no longer count."""
    scene.addresses.failed(ONE, "500", "a")
    scene.addresses.succeeded(ONE)
    scene.addresses.failed(ONE, "500", "b")
    assert scene.addresses.disabled == []


def test_an_address_is_disabled_that_is_slow_for_two_transfers(scene: Scene) -> None:
    """Small uploads that are stored there between say nothing of its speed; a larger one does."""
    for transfer in ("a", "a", "b"):
        assert scene.addresses.disabled == []
        scene.addresses.succeeded(ONE, proves_speed=False)
        scene.addresses.slow(ONE, "9 kB/s", transfer)
    assert scene.disabled == [(ONE, "it is far slower than others, 9 kB/s", True)]
    scene.addresses.slow(TWO, "9 kB/s", "a")
    scene.addresses.succeeded(TWO)
    scene.addresses.slow(TWO, "9 kB/s", "b")
    assert scene.addresses.disabled == [ONE]


def test_a_slow_address_is_tried_later_and_by_a_large_upload(scene: Scene) -> None:
    """It answers every probe, and each trial makes an image late; slow again, it is disabled for twice as long."""
    for seconds in (SLOW_FIRST_S, 2 * SLOW_FIRST_S):
        scene.addresses.slow(ONE, "9 kB/s", "a")
        scene.addresses.slow(ONE, "9 kB/s", "b")
        scene.clock.now += seconds - 1
        assert not scene.addresses.to_probe()
        scene.clock.now += 1
        scene.addresses.probed(ONE, SmallRequestOutcome.ANSWERED)
        scene.addresses.succeeded(ONE, proves_speed=False)
        assert scene.enabled == []
    scene.addresses.succeeded(ONE)
    assert scene.enabled == [ONE]


def test_the_last_enabled_address_may_be_slow() -> None:
    """There is no other."""
    scene = Scene((ONE,))
    for transfer in ("a", "b", "c"):
        scene.addresses.slow(ONE, "9 kB/s", transfer)
    assert scene.addresses.disabled == []


def test_one_failed_connection_is_enough(scene: Scene) -> None:
    """No transfer can be at fault there."""
    scene.disable()
    assert not scene.addresses.is_enabled(ONE)
    assert scene.addresses.is_enabled(TWO)
    assert scene.addresses.is_enabled("an address that the name no longer has")


def test_the_last_one_stays_enabled(scene: Scene) -> None:
    """When all fail, attempts must still go somewhere."""
    for address in FOUR:
        scene.addresses.failed(address, "refused")
    assert scene.addresses.disabled == list(FOUR[:3])
    assert scene.addresses.in_order({})[0] == FOUR[3]
    alone = Scene((ONE,))
    alone.addresses.failed(ONE, "refused")
    assert alone.addresses.disabled == []


def test_the_report_says_whether_it_ever_answered(scene: Scene) -> None:
    """One that never did may be of a kind that this host cannot reach, and deserves no warning."""
    scene.disable(ONE)
    scene.addresses.asked(TWO, SmallRequestOutcome.ANSWERED, "")
    scene.disable(TWO)
    scene.addresses.succeeded(FOUR[2])
    scene.disable(FOUR[2])
    reported = [(address, has_answered) for address, _, has_answered in scene.disabled]
    assert reported == [(ONE, False), (TWO, True), (FOUR[2], True)]


def test_disabled_for_longer_each_time() -> None:
    """The time doubles up to its limit, whether probes fail or uploads on trial do; it is reported once."""
    scene, waits = Scene(), []
    scene.disable()
    for turn in range(12):
        began = scene.clock.now
        while not scene.addresses.to_probe():
            scene.clock.now += DISABLED_FIRST_S / 10
        waits.append(round(scene.clock.now - began, 1))
        scene.addresses.probed(ONE, SmallRequestOutcome.ANSWERED if turn % 2 else SmallRequestOutcome.NOT_ANSWERED)
        scene.addresses.failed(ONE, "503", "any")
    assert waits[:3] == [DISABLED_FIRST_S, 2 * DISABLED_FIRST_S, 4 * DISABLED_FIRST_S]
    assert all(after == min(2 * before, DISABLED_MAX_S) for before, after in pairwise(waits))
    assert len(scene.disabled) == 1


def test_on_trial_it_gets_one_connection(scene: Scene) -> None:
    """A small request proves little: until an upload succeeds, no second connection does."""
    scene.disable()
    assert scene.addresses.in_order({})[-1] == ONE
    scene.put_on_trial()
    assert scene.addresses.in_order({TWO: 5})[0] == ONE
    assert scene.addresses.in_order({ONE: 1, TWO: 5})[-1] == ONE
    assert scene.enabled == []
    scene.addresses.succeeded(ONE)
    assert scene.addresses.in_order({ONE: 1, TWO: 5, FOUR[2]: 5, FOUR[3]: 5})[0] == ONE
    assert scene.enabled == [ONE]
    scene.disable()
    scene.clock.now += DISABLED_FIRST_S
    assert scene.addresses.to_probe() == [ONE], "after a success the shortest time applies again"


@pytest.mark.parametrize(
    ("outcome", "uploaded_s_ago", "state"),
    [
        (SmallRequestOutcome.ANSWERED, None, "enabled"),
        (SmallRequestOutcome.ANSWERED, UPLOADS_COUNT_S, "enabled"),
        (SmallRequestOutcome.ANSWERED_BADLY, None, "on trial"),
        (SmallRequestOutcome.ANSWERED_BADLY, UPLOADS_COUNT_S, "enabled"),
        (SmallRequestOutcome.ANSWERED_BADLY, UPLOADS_COUNT_S + 1, "on trial"),
        (SmallRequestOutcome.NOT_ANSWERED, None, "disabled"),
        (SmallRequestOutcome.NOT_ANSWERED, UPLOADS_COUNT_S, "enabled"),
        (SmallRequestOutcome.NOT_ANSWERED, UPLOADS_COUNT_S + 1, "disabled"),
        (SmallRequestOutcome.NOT_CONNECTED, None, "disabled"),
        (SmallRequestOutcome.NOT_CONNECTED, 0.0, "disabled"),
    ],
)
def test_a_small_request_counts_where_no_upload_was_stored_lately(
    outcome: SmallRequestOutcome, uploaded_s_ago: float | None, state: str, scene: Scene
) -> None:
    """Uploads decide; only a connection that cannot be made is newer than they are."""
    if uploaded_s_ago is not None:
        scene.addresses.succeeded(ONE)
        scene.clock.now += uploaded_s_ago
    scene.addresses.asked(ONE, outcome, "")
    assert (ONE in scene.addresses.disabled) == (state == "disabled")
    is_on_trial = scene.addresses.in_order({ONE: 1, TWO: 5, FOUR[2]: 5, FOUR[3]: 5})[0] != ONE
    assert is_on_trial == (state != "enabled")


@pytest.mark.parametrize(
    ("outcome", "disabled"),
    [
        (SmallRequestOutcome.ANSWERED, False),
        (SmallRequestOutcome.ANSWERED_BADLY, False),
        (SmallRequestOutcome.NOT_ANSWERED, True),
        (SmallRequestOutcome.NOT_CONNECTED, True),
    ],
)
def test_any_answer_to_the_probe_begins_the_trial(outcome: SmallRequestOutcome, disabled: bool, scene: Scene) -> None:
    """Also a bad one: where every small request is answered with 503, uploads may still succeed."""
    scene.disable()
    scene.clock.now += DISABLED_FIRST_S
    scene.addresses.probed(ONE, outcome)
    assert scene.addresses.disabled == ([ONE] if disabled else [])
    assert scene.addresses.in_order({ONE: 1})[-1] == ONE


def test_a_probe_that_this_host_could_not_send_says_nothing(scene: Scene) -> None:
    """It is sent soon, and the time until the one after it does not grow: the address may have been back for long."""
    scene.disable()
    for _ in range(5):
        scene.clock.now += DISABLED_FIRST_S
        assert scene.addresses.to_probe() == [ONE]
        scene.addresses.probed(ONE, SmallRequestOutcome.NOT_SENT)
    scene.clock.now += DISABLED_FIRST_S
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_ANSWERED)
    assert scene.addresses.next_probe_s(ONE) == 2 * DISABLED_FIRST_S


def test_a_trial_after_a_bad_answer_ends_with_a_good_one_or_an_upload() -> None:
    """A trial after it was disabled ends only with an upload; an upload that fails on trial disables."""
    scene = Scene((ONE, TWO))
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED_BADLY, "it answers 503")
    assert scene.addresses.overloaded({ONE: 2, TWO: 2}) == ONE
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "")
    assert scene.addresses.overloaded({ONE: 2, TWO: 2}) == ""
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED_BADLY, "it answers 503")
    scene.addresses.failed(ONE, "503", "transfer")
    assert scene.addresses.disabled == [ONE]
    scene.put_on_trial()
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "")
    assert scene.addresses.overloaded({ONE: 2, TWO: 2}) == ONE


def test_where_all_answer_badly_all_are_used_alike(scene: Scene) -> None:
    """It is the store's way; nothing is disabled and none has to give up its connections."""
    for address in FOUR:
        scene.addresses.asked(address, SmallRequestOutcome.ANSWERED_BADLY, "it answers 503")
    assert scene.addresses.disabled == []
    assert scene.addresses.overloaded(dict.fromkeys(FOUR, 7)) == ""
    assert scene.addresses.in_order({ONE: 3, TWO: 1, FOUR[2]: 2, FOUR[3]: 2})[0] == TWO


def test_addresses_that_answer_nothing_any_more_are_unreachable_though_uploads_were_stored_lately() -> None:
    """A server that hangs accepts connections and bodies. None is disabled, and any answer ends it."""
    scene = Scene((ONE, TWO))
    assert [scene.addresses.have_answered] == [False]
    for address in (ONE, TWO):
        scene.addresses.asked(address, SmallRequestOutcome.ANSWERED, "")
        scene.addresses.succeeded(address)
    assert [scene.addresses.have_answered] == [True]
    sent_at = scene.clock.now = scene.clock.now + 1.0
    scene.clock.now += SILENT_S
    scene.addresses.asked(ONE, SmallRequestOutcome.NOT_ANSWERED, "no answer", sent_at)
    assert not scene.addresses.unreachable
    scene.addresses.asked(TWO, SmallRequestOutcome.NOT_ANSWERED, "no answer", sent_at)
    assert (scene.addresses.unreachable, scene.addresses.disabled) == ("no address of the store answers", [])
    scene.addresses.attempt_failed(AttemptError("SlowDown", "", status=503), TWO, "transfer", ())
    assert not scene.addresses.unreachable


@pytest.mark.parametrize(("answers", "heard_s_ago"), [(True, 1.0), (False, 60.0)])
def test_one_unanswered_small_request_makes_no_address_silent(answers: bool, heard_s_ago: float) -> None:
    """Others were answered meanwhile, so its connection is to blame; or the store never answers unsigned requests."""
    scene = Scene((ONE,))
    if answers:
        scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "")
    scene.addresses.succeeded(ONE)
    scene.clock.now += heard_s_ago
    scene.addresses.asked(ONE, SmallRequestOutcome.NOT_ANSWERED, "no answer", scene.clock.now - 15.0)
    scene.clock.now += SILENT_S
    assert not scene.addresses.unreachable


def test_whether_an_address_keeps_connections_is_news_once(scene: Scene) -> None:
    """Nothing is noted of one that the name no longer has, which was asked while it had it."""
    told = [scene.addresses.set_keeping(ONE, keeps=keeps) for keeps in (True, False, False, True)]
    assert told == [False, True, False, True]
    assert not scene.addresses.set_keeping("192.0.2.99", keeps=False)
    assert scene.addresses.keeps("192.0.2.99")


def test_why_the_store_is_unreachable() -> None:
    """As the last address that failed says, until one answers; also before any address is known."""
    scene = Scene(())
    steps: tuple[Callable[[], None], ...] = (
        lambda: scene.addresses.unresolved("NameNotResolved, no"),
        lambda: scene.addresses.replace((ONE,)),
        lambda: scene.addresses.asked(ONE, SmallRequestOutcome.NOT_CONNECTED, "TLSRefused, expired"),
        lambda: scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "it answers 200"),
        lambda: scene.addresses.unresolved("NameNotResolved, no"),  # the last known addresses stay in use
    )
    found = []
    for step in steps:
        step()
        found.append(scene.addresses.unreachable)
    assert found == ["NameNotResolved, no", "NameNotResolved, no", "TLSRefused, expired", "", ""]


def test_a_probe_that_fails_says_what_is_wrong_now(scene: Scene) -> None:
    """Of a connection that tried several addresses in turn it is not known why each one failed."""
    scene.addresses.asked(TWO, SmallRequestOutcome.ANSWERED, "")
    scene.addresses.failed(ONE, "no connection")
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_CONNECTED, "ConnectionFailed, Connection refused")
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_SENT, "a limit of this host")
    assert scene.addresses.limited[ONE].reason == "ConnectionFailed, Connection refused"


def test_a_hang_up_is_no_silence_until_nothing_follows_it() -> None:
    scene = Scene((ONE,))
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "")
    scene.addresses.succeeded(ONE)
    scene.clock.now += 200.0
    scene.addresses.asked(ONE, SmallRequestOutcome.NOT_ANSWERED, "hung up", scene.clock.now)
    assert not scene.addresses.unreachable
    scene.clock.now += SILENT_S
    assert scene.addresses.unreachable


HOUR_S = 3600.0


def out_for_an_hour(scene: Scene, last: str = TWO, transfer: str = "") -> None:
    """The last enabled address fails too, and no probe of the others is answered."""
    began = scene.clock.now
    while scene.clock.now - began < HOUR_S:
        scene.addresses.failed(last, "it fails", transfer and f"{transfer}{scene.clock.now}")
        for address in scene.addresses.to_probe():
            scene.addresses.probed(address, SmallRequestOutcome.NOT_ANSWERED)
        scene.clock.now += 1.0
    scene.clock.now += 0.5


@pytest.mark.parametrize(
    ("cause", "ending", "probed"),
    [
        ("", "an upload", True),
        ("", "a small request", True),
        ("", "a small request answered badly", True),
        ("", "no answer", False),
        ("upload", "an upload", True),
        ("upload", "a small request", False),
    ],
)
def test_after_an_outage_of_all_the_others_are_probed_at_once(cause: str, ending: str, probed: bool) -> None:
    """A small request that is answered ends an outage of connections, not one in which uploads failed."""
    scene = Scene((ONE, TWO))
    scene.disable(ONE)
    out_for_an_hour(scene, transfer=cause)
    assert scene.addresses.next_probe_s(ONE) > 10.0, "its interval grew"
    assert bool(scene.addresses.unreachable) is (not cause)
    match ending:
        case "an upload":
            scene.addresses.succeeded(TWO)
        case "a small request":
            scene.addresses.asked(TWO, SmallRequestOutcome.ANSWERED, "")
        case "a small request answered badly":
            scene.addresses.asked(TWO, SmallRequestOutcome.ANSWERED_BADLY, "503")
        case _:
            scene.addresses.asked(TWO, SmallRequestOutcome.NOT_ANSWERED, "hung up")
    assert scene.addresses.to_probe() == ([ONE] if probed else [])
    assert bool(scene.addresses.unreachable) is (not cause and not probed)


def test_one_that_comes_back_after_the_first_is_probed_soon() -> None:
    """Its interval begins anew, its return is reported, and that it is disabled was reported once."""
    scene = Scene((ONE, TWO))
    scene.disable(ONE)
    out_for_an_hour(scene)
    scene.addresses.succeeded(TWO)
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_ANSWERED)
    scene.addresses.succeeded(TWO)
    assert scene.addresses.next_probe_s(ONE) == 2 * DISABLED_FIRST_S, "an outage ends once"
    scene.put_on_trial(ONE)
    scene.addresses.succeeded(ONE)
    assert ([address for address, *_ in scene.disabled], scene.enabled) == ([ONE], [ONE])


def test_a_disabled_address_has_a_reason_and_times() -> None:
    """Those of the first time in a row; a probe without an answer puts off the next."""
    scene = Scene((ONE, TWO))
    scene.addresses.succeeded(TWO)
    scene.addresses.failed(ONE, "refused")
    scene.clock.now += DISABLED_FIRST_S
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_ANSWERED)
    scene.clock.now += 1.0
    assert scene.addresses.limited == {ONE: Limited("refused", DISABLED_FIRST_S + 1, 2 * DISABLED_FIRST_S - 1)}
    scene.clock.now += 2.0
    scene.addresses.probed(ONE, SmallRequestOutcome.ANSWERED)
    assert scene.addresses.limited == {ONE: Limited("refused", DISABLED_FIRST_S + 3, None)}
    scene.addresses.succeeded(ONE)
    assert scene.addresses.limited == {}


def test_an_address_on_trial_for_a_bad_answer_has_the_first_as_its_reason() -> None:
    scene = Scene((ONE, TWO))
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED_BADLY, "503")
    scene.clock.now += 1.0
    scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED_BADLY, "502")
    assert scene.addresses.limited == {ONE: Limited("503", 1.0, None)}


@pytest.mark.parametrize("by", ["an upload", "a small request"])
def test_a_disabled_address_where_something_succeeds_in_an_outage_is_probed(by: str) -> None:
    """A connection falls back on it when the last enabled one does not take it; however long it has been disabled."""
    scene = Scene((ONE, TWO))
    scene.disable(ONE)
    scene.clock.now += HOUR_S
    scene.addresses.probed(ONE, SmallRequestOutcome.NOT_ANSWERED)
    out_for_an_hour(scene)
    if by == "an upload":
        scene.addresses.succeeded(ONE)
    else:
        scene.addresses.asked(ONE, SmallRequestOutcome.ANSWERED, "")
    assert scene.addresses.to_probe() == [ONE]
    scene.addresses.probed(ONE, SmallRequestOutcome.ANSWERED)
    scene.addresses.failed(TWO, "refused")
    assert scene.addresses.disabled == [TWO]


def test_a_probe_that_is_answered_has_the_others_probed(scene: Scene) -> None:
    """Of three that failed together the first to answer may be a disabled one; a slow one has nothing to do with it."""
    for transfer in ("a", "b"):
        scene.addresses.slow(FOUR[3], "9 kB/s", transfer)
    scene.disable(ONE)
    scene.disable(FOUR[2])
    out_for_an_hour(scene)
    scene.addresses.probed(ONE, SmallRequestOutcome.ANSWERED)
    assert scene.addresses.to_probe() == [FOUR[2]]


def test_an_earlier_upload_does_not_enable_it(scene: Scene) -> None:
    """An upload that began before it was disabled may still succeed or fail; neither changes anything."""
    scene.disable()
    scene.addresses.succeeded(ONE)
    scene.addresses.failed(ONE, "503", "late")
    assert scene.addresses.disabled == [ONE]
    scene.clock.now += DISABLED_FIRST_S
    assert scene.addresses.to_probe() == [ONE]


def test_has_alternative(scene: Scene) -> None:
    """Each address is tried once; then there is no alternative left."""
    assert scene.addresses.has_alternative([ONE])
    assert not scene.addresses.has_alternative(FOUR)
    scene.disable(TWO)
    assert not scene.addresses.has_alternative([ONE, *FOUR[2:]])


@pytest.mark.parametrize(
    ("error", "elsewhere", "disabled"),
    [
        (AttemptError("SlowDown", "", status=503), True, []),
        (AttemptError("ConnectionFailed", ""), True, [ONE]),
        (AttemptError("ConnectTimeout", ""), True, [ONE]),
        (AttemptError("Stalled", ""), True, []),
        (AttemptError("StaleConnection", ""), True, []),
        (AttemptError("AccessDenied", "", status=403), True, []),
        (AttemptError("NoSuchBucket", "", status=404), True, []),
        (AttemptError("SignatureDoesNotMatch", "", status=403), True, []),
        (AttemptError("TLSRefused", ""), True, []),
        (AttemptError("ETagMismatch", "", status=200), True, []),
        (AttemptError("RequestTimeTooSkewed", "", status=403), True, []),
        (AttemptError("TemporaryRedirect", "", status=307), True, []),
        (AttemptError("BadDigest", "", status=400), True, []),
        (AttemptError("NeverHeardOf", "", status=400), True, []),
        (AttemptError("QuotaExceeded", "", status=403), False, []),
        (AttemptError("NoSuchKey", "", status=404), False, []),
        (AttemptError("NoSuchUpload", "", status=404), True, []),
        (AttemptError("InvalidPart", "", status=400), False, []),
        (AttemptError("EntityTooSmall", "", status=400), False, []),
        (AttemptError("OperationAborted", "", status=409), False, []),
        (AttemptError("HostLimit", ""), False, []),
        (AttemptError("Internal", ""), False, []),
        (AttemptError("BadRequest", ""), False, []),
        (AttemptError("Overwritten", ""), False, []),
    ],
    ids=lambda value: value.code if isinstance(value, AttemptError) else None,
)
def test_a_failed_attempt(error: AttemptError, elsewhere: bool, disabled: list[str], scene: Scene) -> None:
    """A failure that an address can cause is tried elsewhere at once; the store's verdict on the transfer is not."""
    assert scene.addresses.attempt_failed(error, ONE, "transfer", ()) is elsewhere
    assert scene.addresses.disabled == disabled


def test_a_bucket_avoids_an_address_that_refuses_it(scene: Scene) -> None:
    """Once another one has taken what it refused, for a while, and if another one is left; no other bucket does."""
    denied, slow = AttemptError("AccessDenied", "", status=403), AttemptError("SlowDown", "", status=503)
    addresses = scene.addresses
    for transfer, error in (("failed for good", denied), ("a", denied), ("b", slow)):
        addresses.attempt_failed(error, ONE, transfer, ())
    assert addresses.avoided((), "bucket") == ()
    addresses.taken(TWO, "b", "bucket")
    addresses.taken(ONE, "c", "bucket")
    assert addresses.avoided((), "bucket") == (), "what it did not refuse says nothing"
    addresses.taken(TWO, "a", "bucket")
    assert set(addresses.avoided((), "bucket")) == {ONE}
    assert set(addresses.avoided((TWO,), "bucket")) == {ONE, TWO}
    assert addresses.avoided(FOUR[1:], "bucket") == FOUR[1:], "better refused than not tried"
    assert addresses.avoided((), "other") == ()
    assert addresses.disabled == []
    scene.clock.now += REFUSING_S
    assert addresses.avoided((), "bucket") == ()
    addresses.attempt_failed(denied, ONE, "d", ())
    addresses.taken(TWO, "d", "bucket")
    assert set(addresses.avoided((), "bucket")) == {ONE}
    addresses.taken(ONE, "e", "bucket")
    assert addresses.avoided((), "bucket") == (), "it takes it now"


def test_no_address_is_left_to_try(scene: Scene) -> None:
    """A transfer that failed at all of them has to wait."""
    error = AttemptError("SlowDown", "", status=503)
    assert not scene.addresses.attempt_failed(error, FOUR[3], "transfer", FOUR[:3])


def test_overloaded() -> None:
    """An address with two connections more than another can give one away; one on trial takes only its first."""
    scene = Scene((ONE, TWO))
    assert scene.addresses.overloaded({ONE: 3, TWO: 2}) == ""
    assert scene.addresses.overloaded({ONE: 4, TWO: 2}) == ONE
    scene.disable(TWO)
    assert scene.addresses.overloaded({ONE: 6}) == ""
    scene.put_on_trial(TWO)
    assert scene.addresses.overloaded({ONE: 6}) == ONE
    assert scene.addresses.overloaded({ONE: 5, TWO: 1}) == ""


def test_addresses_come_and_go(scene: Scene) -> None:
    """What is known of an address that stays is kept."""
    scene.disable()
    scene.addresses.replace((ONE, "10.0.0.9"))
    assert scene.addresses.disabled == [ONE]
    assert set(scene.addresses.in_order({})) == {ONE, "10.0.0.9"}
    scene.addresses.replace((TWO,))
    scene.addresses.replace((ONE, TWO))
    assert scene.addresses.disabled == [ONE], "it is the same again when it is back"
    scene.addresses.replace((ONE,))
    assert (scene.addresses.enabled, scene.addresses.limited[ONE].next_probe_s) == ([ONE], None), "the last one"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fail", "connect", "succeed", "ask", "probe", "resolve", "wait"]), st.sampled_from(FOUR)
        )
    )
)
def test_one_is_always_enabled(history: list[tuple[str, str]]) -> None:
    """Whatever happens, one stays enabled, and every disabled one will be probed."""
    scene, present = Scene(), list(FOUR)
    for number, (what, address) in enumerate(history):
        match what:
            case "fail":
                scene.addresses.failed(address, "", str(number))
            case "connect":
                scene.addresses.failed(address, "")
            case "succeed":
                scene.addresses.succeeded(address)
            case "ask":
                scene.addresses.asked(address, list(SmallRequestOutcome)[number % 4], "")
            case "probe":
                scene.addresses.probed(address, list(SmallRequestOutcome)[number % 4])
            case "resolve":
                present = sorted({*FOUR[number % 4 :: 2], address})
                scene.addresses.replace(present)
            case _:
                scene.clock.now += DISABLED_FIRST_S
        assert scene.addresses.enabled
        assert sorted(scene.addresses.in_order({})) == present
    scene.clock.now += DISABLED_MAX_S
    assert scene.addresses.to_probe() == scene.addresses.disabled


@pytest.mark.parametrize(
    ("addresses", "answered", "broken", "reported"),
    [
        (("::1", "127.0.0.1"), ["127.0.0.1"], ["::1"], []),
        (("::1", "127.0.0.1"), ["::1"], ["127.0.0.1"], []),
        (("::1", "127.0.0.1"), ["::1", "127.0.0.1"], ["::1"], ["::1"]),
        (("::1", "127.0.0.1"), [], ["::1"], []),
        (FOUR, [TWO], [ONE], [ONE]),
        ((*FOUR, "::1"), [TWO], [ONE, "::1"], [ONE]),
        (("fd00::1", "fd00::2", ONE), ["fd00::2"], ["fd00::1", ONE], ["fd00::1"]),
    ],
)
def test_an_operator_hears_of_addresses_that_ought_to_work(
    addresses: tuple[str, ...], answered: list[str], broken: list[str], reported: list[str]
) -> None:
    """Of a name with IPv4 and IPv6 often only one is served; a dead address among living ones of its kind counts."""
    scene = Scene(addresses)
    for address in answered:
        scene.addresses.asked(address, SmallRequestOutcome.ANSWERED, "")
    for address in broken:
        scene.disable(address)
    assert scene.addresses.unexpectedly_disabled == reported
