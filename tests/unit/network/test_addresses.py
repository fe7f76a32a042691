"""Receivers: the last one that serves is never left aside, a broken one costs each transfer one attempt, and comes back
on trial."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab.keeping import Clock

from s3daemon.errors import AttemptError
from s3daemon.network.addresses import ASIDE_FIRST_S, ASIDE_MAX_S, Addresses

FOUR = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
ONE, TWO = FOUR[:2]


class Told:
    """Hears who is left aside and who is back."""

    def __init__(self) -> None:
        self.aside: list[tuple[str, str]] = []
        self.served: list[tuple[str, str]] = []
        self.back: list[str] = []


class Scene:
    """Four receivers, a clock and an ear."""

    def __init__(self, addresses: tuple[str, ...] = FOUR) -> None:
        self.clock, self.told = Clock(), Told()
        self.receivers = Addresses(
            self.clock,
            lambda address, why, served: (self.told.served if served else self.told.aside).append((address, why)),
            self.told.back.append,
        )
        self.receivers.replace(addresses)

    def put_aside(self, address: str = ONE) -> None:
        """A connection to it fails."""
        self.receivers.failed(address, "refused")
        assert address in self.receivers.aside

    def bring_back(self, address: str = ONE) -> None:
        """Its time is up, and it answers a small request."""
        self.clock.now += ASIDE_MAX_S
        assert address in self.receivers.due()
        self.receivers.probed(address, answered=True)


def test_one_transfers_failure_is_not_enough() -> None:
    """An object that the store chokes on says nothing of the receiver, however often; a second transfer's does."""
    scene = Scene()
    for _ in range(5):
        scene.receivers.failed(ONE, "500", "a")
    assert scene.receivers.aside == []
    scene.receivers.failed(ONE, "503", "b")
    assert scene.receivers.aside == [ONE]
    assert scene.told.aside == [(ONE, "503")]


def test_a_success_between_two_failures() -> None:
    """What failed before it counts no more."""
    scene = Scene()
    scene.receivers.failed(ONE, "500", "a")
    scene.receivers.succeeded(ONE)
    scene.receivers.failed(ONE, "500", "b")
    assert scene.receivers.aside == []


def test_no_connection_is_enough() -> None:
    """No transfer can be at fault there."""
    scene = Scene()
    scene.put_aside()
    assert not scene.receivers.serves(ONE)
    assert scene.receivers.serves(TWO)
    assert scene.receivers.serves("of a name that has it no more")


def test_the_last_one_stays() -> None:
    """When all fail it is the endpoint's affair: attempts must go somewhere."""
    scene = Scene()
    for address in FOUR:
        scene.receivers.failed(address, "refused")
    assert scene.receivers.aside == list(FOUR[:3])
    assert scene.receivers.order({})[0] == FOUR[3]
    alone = Scene((ONE,))
    alone.receivers.failed(ONE, "refused")
    assert alone.receivers.aside == []


def test_one_that_served_is_missed() -> None:
    """An address that never answered, of a kind that this host cannot reach, is no news; one that did is."""
    scene = Scene()
    scene.put_aside(ONE)
    scene.receivers.answered(TWO)
    scene.put_aside(TWO)
    scene.receivers.succeeded(FOUR[2])
    scene.put_aside(FOUR[2])
    assert [address for address, _ in scene.told.aside] == [ONE]
    assert [address for address, _ in scene.told.served] == [TWO, FOUR[2]]


def test_left_aside_for_ever_longer() -> None:
    """The time doubles from the first to the most, whether probes fail or uploads on trial do; it is told once."""
    scene, waits = Scene(), []
    scene.put_aside()
    for turn in range(12):
        began = scene.clock.now
        while not scene.receivers.due():
            scene.clock.now += ASIDE_FIRST_S / 10
        waits.append(round(scene.clock.now - began, 1))
        scene.receivers.probed(ONE, answered=turn % 2 == 1)
        scene.receivers.failed(ONE, "503", "any")
    assert waits[:3] == [ASIDE_FIRST_S, 2 * ASIDE_FIRST_S, 4 * ASIDE_FIRST_S]
    assert all(after == min(2 * before, ASIDE_MAX_S) for before, after in pairwise(waits))
    assert len(scene.told.aside) == 1


def test_on_trial_one_connection_goes_there() -> None:
    """A small request proves little: until an upload succeeds, no second connection does."""
    scene = Scene()
    scene.put_aside()
    assert scene.receivers.order({})[-1] == ONE
    scene.bring_back()
    assert scene.receivers.order({TWO: 5})[0] == ONE
    assert scene.receivers.order({ONE: 1, TWO: 5})[-1] == ONE
    assert scene.told.back == []
    scene.receivers.succeeded(ONE)
    assert scene.receivers.order({ONE: 1, TWO: 5, FOUR[2]: 5, FOUR[3]: 5})[0] == ONE
    assert scene.told.back == [ONE]
    scene.put_aside()
    scene.clock.now += ASIDE_FIRST_S
    assert scene.receivers.due() == [ONE], "after a success the time begins anew"


def test_a_straggler_ends_no_time_aside() -> None:
    """An upload that began before may still succeed or fail; neither changes anything."""
    scene = Scene()
    scene.put_aside()
    scene.receivers.succeeded(ONE)
    scene.receivers.failed(ONE, "503", "late")
    assert scene.receivers.aside == [ONE]
    scene.clock.now += ASIDE_FIRST_S
    assert scene.receivers.due() == [ONE]


def test_elsewhere() -> None:
    """Each receiver is worth one attempt; then patience is due."""
    scene = Scene()
    assert scene.receivers.elsewhere([ONE])
    assert not scene.receivers.elsewhere(FOUR)
    scene.put_aside(TWO)
    assert not scene.receivers.elsewhere([ONE, *FOUR[2:]])


@pytest.mark.parametrize(
    ("error", "elsewhere", "aside"),
    [
        (AttemptError("SlowDown", "", status=503), True, []),
        (AttemptError("ConnectionFailed", ""), True, [ONE]),
        (AttemptError("ConnectTimeout", ""), True, [ONE]),
        (AttemptError("Stalled", ""), True, []),
        (AttemptError("StaleConnection", ""), False, []),
        (AttemptError("AccessDenied", "", status=403), False, []),
        (AttemptError("TLSRefused", ""), False, []),
        (AttemptError("ETagMismatch", "", status=200), False, []),
    ],
    ids=lambda value: value.code if isinstance(value, AttemptError) else None,
)
def test_blame(error: AttemptError, elsewhere: bool, aside: list[str]) -> None:
    """What a receiver can be blamed for is tried elsewhere at once; what the store says of a transfer is not."""
    scene = Scene()
    assert scene.receivers.blame(error, ONE, "transfer", ()) is elsewhere
    assert scene.receivers.aside == aside


def test_blame_ends_with_the_last_receiver() -> None:
    """A transfer that failed at all of them waits."""
    scene = Scene()
    error = AttemptError("SlowDown", "", status=503)
    assert not scene.receivers.blame(error, FOUR[3], "transfer", FOUR[:3])


def test_surplus() -> None:
    """One that has two more than another can give one away; to one on trial only its first."""
    scene = Scene((ONE, TWO))
    assert scene.receivers.surplus({ONE: 3, TWO: 2}) == ""
    assert scene.receivers.surplus({ONE: 4, TWO: 2}) == ONE
    scene.put_aside(TWO)
    assert scene.receivers.surplus({ONE: 6}) == ""
    scene.bring_back(TWO)
    assert scene.receivers.surplus({ONE: 6}) == ONE
    assert scene.receivers.surplus({ONE: 5, TWO: 1}) == ""


def test_addresses_come_and_go() -> None:
    """What is known of an address that stays is kept."""
    scene = Scene()
    scene.put_aside()
    scene.receivers.replace((ONE, "10.0.0.9"))
    assert scene.receivers.aside == [ONE]
    assert set(scene.receivers.order({})) == {ONE, "10.0.0.9"}


@given(st.lists(st.tuples(st.sampled_from(["fail", "connect", "succeed", "probe", "wait"]), st.sampled_from(FOUR))))
def test_one_always_serves(history: list[tuple[str, str]]) -> None:
    """Whatever happens, and every one that is left aside will be probed."""
    scene = Scene()
    for number, (what, address) in enumerate(history):
        match what:
            case "fail":
                scene.receivers.failed(address, "", str(number))
            case "connect":
                scene.receivers.failed(address, "")
            case "succeed":
                scene.receivers.succeeded(address)
            case "probe":
                scene.receivers.probed(address, answered=number % 2 == 0)
            case _:
                scene.clock.now += ASIDE_FIRST_S
        assert any(map(scene.receivers.serves, FOUR))
        assert sorted(scene.receivers.order({})) == sorted(FOUR)
    scene.clock.now += ASIDE_MAX_S
    assert scene.receivers.due() == scene.receivers.aside
