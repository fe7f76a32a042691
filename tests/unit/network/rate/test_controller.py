"""The controller against a simulated link: what it finds, how close it comes, and what must not mislead it."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from s3daemon.network.rate.controller import SAMPLE_EVERY_S, Controller, Phase, Probed, Sample

MBIT = 1e6 / 8
STEP_S = 0.002


@dataclass
class Link:
    """A bottleneck with a queue, uploads in slow start before it, and perhaps a sender that fills the queue.

    A fluid model: what is sent in a step joins the queue, which gives out `rate`, to each sender by its share in the
    queue; acknowledgements return a round trip later. A full queue drops.

    Args:
        rate: of the link, bytes/s.
        queue: room in front of it, bytes.
        rtt_s: without a queue.
        rival: another sender's window, bytes, which it keeps in flight, halves after a drop and widens else.
        chance: share of what is sent that is lost by chance.
    """

    rate: float
    queue: float = 25e6
    rtt_s: float = 0.2
    rival: float = 0.0
    chance: float = 0.0
    now: float = 0.0
    window: float = 2e6
    ours: float = 0.0  # in the queue
    others: float = 0.0
    sent: float = 0.0
    delivered: float = 0.0
    dropped: float = 0.0
    rival_delivered: float = 0.0
    longest: float = 0.0
    lost: float = 0.0
    _flying: list[tuple[float, float, float]] = field(default_factory=list)
    _rival_flying: float = 0.0
    _halved_at: float = -1.0

    def step(self, pace: float | None, left: float) -> float:
        """Pass some time; return what was sent of `left` bytes."""
        self.now += STEP_S
        while self._flying and self._flying[0][0] <= self.now:
            _, ours, others = self._flying.pop(0)
            self.delivered += ours
            self.rival_delivered += others
            self._rival_flying -= others
            may_grow = (self.window < 90e6 and pace is None) or self.window < 2 * (self.rate * self.rtt_s + self.queue)
            self.window += ours if may_grow else 0
        room = max(0.0, self.window - (self.sent - self.delivered))
        most = min(room, self.window / self.rtt_s * 2 * STEP_S, left)
        sending = most if pace is None else min(most, pace * STEP_S)
        other = max(0.0, self.rival - self._rival_flying)
        other = min(other, 2 * self.rate * STEP_S)
        over = max(0.0, self.ours + self.others + sending + other - self.queue - self.rate * STEP_S)
        share = over / (sending + other) if over else 0.0
        lost = sending * (share + self.chance)
        self.dropped += sending * share
        if share and self.now - self._halved_at > self.rtt_s:
            self.rival *= 0.7
            self.window *= 0.7 if pace is None else 1
            self._halved_at = self.now
        elif self.rival:
            self.rival += 1.5e6 * STEP_S
        self.sent += sending - lost
        self.lost += lost
        self.ours += sending - lost
        self.others += other * (1 - share)
        self._rival_flying += other * (1 - share)
        out = min(self.ours + self.others, self.rate * STEP_S)
        mine = out * self.ours / (self.ours + self.others) if out else 0.0
        self.ours -= mine
        self.others -= out - mine
        self._flying.append((self.now + self.rtt_s, mine, out - mine))
        self.longest = max(self.longest, self.queued_s)
        return sending - lost

    @property
    def queued_s(self) -> float:
        """How long what is sent now will wait."""
        return (self.ours + self.others) / self.rate

    def sample(self, queued_s: float) -> Sample:
        """What is seen of it."""
        lost = round(self.lost)
        flying = round(self.sent - self.delivered)
        return Sample(self.now, round(self.sent), round(self.delivered), lost, flying, self.rtt_s, queued_s)


def expose(link: Link, controller: Controller, size: float = 193e6, *, late: random.Random | None = None) -> float:
    """Send one exposure; return how long it took, to its bytes through the link and half a round trip."""
    began, left, look_at, waits = link.now, size, link.now, list[tuple[float, float]]()
    link.dropped = link.longest = 0.0
    while left > 1 or link.sent - link.delivered > 1:
        left -= link.step(controller.pace, left)
        waits.append((link.now + link.rtt_s, link.queued_s))
        if link.now >= look_at:
            while len(waits) > 1 and waits[0][0] + waits[0][1] <= link.now:
                waits.pop(0)
            controller.observe(link.sample(waits[0][1]))
            look_at += (
                SAMPLE_EVERY_S if late is None else late.choice((SAMPLE_EVERY_S, SAMPLE_EVERY_S, 5 * SAMPLE_EVERY_S))
            )
        assert link.now - began < 120
    controller.pause()
    took = link.now - began
    link.now += 10
    return took / (size / link.rate + link.rtt_s)


@pytest.mark.parametrize("mbit", [100, 300, 1000, 2500])
@pytest.mark.parametrize("late", [None, random.Random(1)], ids=["in time", "late"])
def test_it_finds_the_rate_of_a_link(mbit: int, late: random.Random | None) -> None:
    """Within 3 % in the first exposure, ticks late or not; from the second on nothing is dropped and no queue stays."""
    link = Link(mbit * MBIT, queue=mbit * MBIT * 0.2)
    controller = Controller()
    expose(link, controller, late=late)
    assert controller.capacity == pytest.approx(link.rate, rel=0.03)
    for _ in range(2):
        assert expose(link, controller, late=late) < 1.1
        assert (link.dropped, link.longest < 0.05) == (0, True)


def test_a_known_rate_is_used_at_once() -> None:
    """After a restart the first exposure is as good as the third."""
    link = Link(1000 * MBIT, window=50e6)
    controller = Controller(990 * MBIT)
    assert expose(link, controller) < 1.1
    assert (controller.phase, link.dropped) == (Phase.CRUISE, 0)


@pytest.mark.parametrize("window", [1e6, 1.4e6, 2e6, 3e6])
def test_a_short_queue(window: float) -> None:
    """Where 1 MB is room for 8 ms the drops tell; later probes drop little, and the third exposure is in time."""
    link = Link(1000 * MBIT, queue=1e6, window=window)
    controller = Controller()
    ratios, dropped = zip(*((expose(link, controller), link.dropped) for _ in range(3)), strict=True)
    assert controller.capacity == pytest.approx(link.rate, rel=0.07)
    assert ratios[2] < 1.15
    assert (dropped[1] < 2.5e6, dropped[2] < 0.3e6) == (True, True), dropped


@pytest.mark.parametrize("rtt_s", [0.006, 0.01, 0.03, 0.05, 0.08, 0.2])
@pytest.mark.parametrize("mbit", [50, 300, 1000])
def test_a_first_rate_that_is_too_low_is_raised_on_paths_of_any_length(rtt_s: float, mbit: int) -> None:
    """A queue with room for a fifth of a round trip drops early, while little is delivered yet."""
    bdp = mbit * MBIT * rtt_s
    link = Link(mbit * MBIT, queue=max(0.2 * bdp, 64e3), rtt_s=rtt_s, window=max(0.1 * bdp, 23e4))
    controller = Controller()
    ratios = [expose(link, controller, min(193e6, link.rate * 6)) for _ in range(4)]
    assert ratios[3] < 1.15
    assert controller.capacity == pytest.approx(link.rate, rel=0.12)


class LateTicks(random.Random):
    """A host under load: samples come up to 50 ms apart."""

    def choice(self, seq: Any) -> Any:
        """Return the time to the next."""
        return self.uniform(SAMPLE_EVERY_S, 0.05)


@pytest.mark.parametrize(
    ("rtt_s", "queue_s", "late"),
    [
        *((rtt_s, 0.05, late) for rtt_s in (0.03, 0.05, 0.08, 0.2) for late in (None, LateTicks(4))),
        *((rtt_s, 0.01, None) for rtt_s in (0.006, 0.01, 0.03, 0.05)),
    ],
)
def test_a_link_that_has_its_rate_again_is_soon_used_in_full(
    rtt_s: float, queue_s: float, late: random.Random | None
) -> None:
    """A probe is measured by the samples around it, which need not come when it begins and ends.

    One that a short queue made fail is repeated within the exposure.
    """
    link, controller = Link(1000 * MBIT, rtt_s=rtt_s), Controller()
    for mbit in (1000, 300, 1000, 100, 1000):
        link.rate, link.queue = mbit * MBIT, mbit * MBIT * queue_s
        ratios = [expose(link, controller, min(193e6, 6 * link.rate), late=late) for _ in range(3)]
    assert (ratios[1] < 1.25, ratios[2] < 1.15) == (True, True), ratios


@pytest.mark.parametrize("queues", [(0.2, 0.2, 0.2), (0.008, 0.2, 0.2), (0.008, 0.008, 0.008)])
def test_a_link_that_narrows_and_widens(queues: tuple[float, ...]) -> None:
    """After 1 000 to 300 Mbit/s the second exposure is in time, and after 300 to 1 000 too; `queues` hold seconds."""
    link = Link(1000 * MBIT)
    controller = Controller()
    for mbit, queue_s in zip((1000, 300, 1000), queues, strict=True):
        link.rate, link.queue = mbit * MBIT, mbit * MBIT * queue_s
        ratios = [expose(link, controller) for _ in range(2)]
        assert ratios[1] < 1.2, mbit
        assert controller.pace == pytest.approx(link.rate, rel=0.05), mbit


@pytest.mark.parametrize("rtt_s", [0.02, 0.2])
def test_a_rate_that_is_lower_for_good_replaces_the_one_before(rtt_s: float) -> None:
    """Else a restart would begin with that, and beside another sender half of it would be more than the link has."""
    link, controller = Link(1000 * MBIT, rtt_s=rtt_s), Controller()
    for mbit in (1000, 300):
        link.rate, link.queue = mbit * MBIT, mbit * MBIT * 0.2
        for _ in range(3):
            expose(link, controller)
        assert controller.capacity == pytest.approx(link.rate, rel=0.03), mbit


def share_beside_a_rival(link: Link, known: float | None) -> float:
    """Return its share of a link whose queue another sender has filled before."""
    link.rival = link.rate * link.rtt_s + link.queue
    for _ in range(1000):
        link.step(1.0, 0)
    before = link.rival_delivered
    expose(link, Controller(known), 2e9)
    return 2e9 / (2e9 + link.rival_delivered - before)


@pytest.mark.parametrize("known", [None, 1000 * MBIT], ids=["not known", "known"])
def test_it_shares_with_another_sender(known: float | None) -> None:
    """Beside one that fills the queue it gets between 35 and 65 % of the link."""
    assert 0.35 < share_beside_a_rival(Link(1000 * MBIT), known) < 0.65


@pytest.mark.parametrize("queue_s", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("rtt_s", [0.01, 0.03, 0.08])
def test_it_shares_a_queue_that_is_longer_than_the_path(rtt_s: float, queue_s: float) -> None:
    """More is in flight then than the way holds without a queue, however little we send."""
    link = Link(1000 * MBIT, rtt_s=rtt_s, queue=1000 * MBIT * queue_s, window=150 * MBIT)
    assert 0.35 < share_beside_a_rival(link, link.rate) < 0.65


def test_two_exposures_are_enough_to_share_with_a_sender_that_comes_then() -> None:
    """Nothing was known at the start; what was found without the other is not forgotten while it is there."""
    link, controller = Link(1000 * MBIT), Controller()
    for _ in range(2):
        expose(link, controller)
    link.rival = 50e6
    expose(link, controller, 1e9)
    before = link.rival_delivered
    expose(link, controller, 2e9)
    others = link.rival_delivered - before
    assert 0.35 < 2e9 / (2e9 + others) < 0.65
    assert controller.capacity == pytest.approx(1000 * MBIT, rel=0.1)


def shares_beside_a_full_queue(controller: Controller, seconds: float, lossy_s: float = 0.0) -> list[float]:
    """Return the rates at which it sends beside one that fills a queue of 200 ms; 10 % is lost for `lossy_s`."""
    shares, sent_bps = list[float](), 500 * MBIT
    for number in range(round(seconds / SAMPLE_EVERY_S)):
        now = number * SAMPLE_EVERY_S
        lost = 0.1 * sent_bps * min(max(0.0, now - 2), lossy_s)
        sent = round(now * sent_bps)
        controller.observe(Sample(now, sent, sent, round(lost), round(50 * MBIT), 0.2, 0.2, packet=8948))
        if controller.phase is Phase.SHARE and controller.pace is not None:
            shares.append(controller.pace)
    return shares


def test_two_exposures_are_enough_to_know_that_the_link_was_ours_alone() -> None:
    """Each has few rounds in which the rate is used. The share of a sender that comes then is half at once."""
    link, controller = Link(1000 * MBIT), Controller()
    for _ in range(2):
        expose(link, controller)
    assert shares_beside_a_full_queue(controller, 2.0)[0] == pytest.approx(link.rate / 2, rel=0.05)


def test_losses_at_once_cut_the_share_once() -> None:
    """What a full queue dropped at one moment is seen to be lost for a round trip and the time in that queue."""
    shares = shares_beside_a_full_queue(Controller(1000 * MBIT), 4.0, lossy_s=0.4)
    assert sum(after < before for before, after in pairwise(shares)) == 1


def test_chance_loss_is_not_a_narrow_link() -> None:
    """0.01 %, and even 1 %, of the packets lost by chance change nothing."""
    for chance in (0.0001, 0.01):
        link = Link(1000 * MBIT, chance=chance)
        controller = Controller(990 * MBIT)
        link.window = 50e6
        expose(link, controller)
        assert controller.pace == pytest.approx(980 * MBIT, rel=0.03)


@dataclass
class Wide:
    """A link far wider than what a few uploads send, which loses some packets by chance; packet by packet.

    Args:
        chance: share of the packets that is lost.
        rng: chooses them.
        windows: packets that each upload may have in flight.
    """

    chance: float
    rng: random.Random
    windows: list[float] = field(default_factory=lambda: [10.0] * 4)
    rtt_s: float = 0.2
    packet: int = 9000
    now: float = 0.0
    sent: int = 0
    delivered: int = 0
    lost: int = 0

    def run(self, controller: Controller, seconds: float) -> float:
        """Send for that long; return bytes/s delivered."""
        until, before, count = self.now + seconds, self.delivered, len(self.windows)
        flying, credit, cut_at, look_at = [deque[tuple[float, bool]]() for _ in range(count)], [0.0] * count, 0.0, 0.0
        while self.now < until:
            self.now += STEP_S
            for n, packets in enumerate(flying):
                while packets and packets[0][0] <= self.now:
                    if packets.popleft()[1]:
                        self.lost += self.packet
                        if self.now >= cut_at:
                            self.windows[n], cut_at = max(2.0, 0.7 * self.windows[n]), self.now + self.rtt_s
                    self.delivered += self.packet
                    if len(packets) + 1 >= int(self.windows[n]):  # as in Linux: only a window that is used widens
                        self.windows[n] = min(1.8e6 / self.packet, self.windows[n] + 1 / self.windows[n])
                pace = controller.pace
                credit[n] = 20 if pace is None else min(3, credit[n] + pace / count * STEP_S / self.packet)
                while credit[n] >= 1 and len(packets) < self.windows[n]:
                    is_lost = self.rng.random() < self.chance
                    packets.append((self.now + self.rtt_s, is_lost))
                    credit[n] -= 1
                    self.sent += self.packet
            if self.now >= look_at:
                look_at = self.now + SAMPLE_EVERY_S
                up = self.sent - self.delivered
                sizes, windows = count * self.packet, self.packet * sum(self.windows)
                controller.observe(
                    Sample(
                        self.now,
                        self.sent,
                        self.delivered,
                        self.lost,
                        up,
                        self.rtt_s,
                        0.001,
                        sizes,
                        self.packet,
                        windows,
                    )
                )
        controller.pause()
        self.now += 10
        return (self.delivered - before) / seconds


@pytest.mark.parametrize("known", [None, 200 * MBIT], ids=["not known", "known"])
@pytest.mark.parametrize("chance", [0.002, 0.01, 0.02])
def test_chance_losses_of_a_few_packets_are_not_a_narrow_link(chance: float, known: float | None) -> None:
    """One packet of thirty is 3 %: the windows are narrow then, and no pace may make it worse."""
    for seed in range(5):
        wide, controller = Wide(chance, random.Random(seed)), Controller(known)
        for _ in range(3):
            used = wide.run(controller, 20)
            assert (controller.pace or 1e9) > 2 * used, seed


@pytest.mark.parametrize("mbit", [2, 4, 6, 20])
@pytest.mark.parametrize("packet", [1448, 8948])
@pytest.mark.parametrize("window", [3 * 8948, 9e5], ids=["narrow", "wide"])
def test_a_rate_that_is_far_too_low_is_left(mbit: float, packet: int, window: float) -> None:
    """A probe of 8 % more would be less than a packet of each upload; and windows that are as narrow must widen."""
    wide, controller = Wide(0.0, random.Random(1), [window / packet] * 4, packet=packet), Controller(mbit * MBIT)
    for _ in range(3):
        wide.run(controller, 20)
    assert (controller.pace or 0) > (40 if window > 1e5 else 15) * MBIT


def test_what_is_too_little_to_measure_changes_nothing() -> None:
    """Sidecars, an upload that the store refuses early, and a source that gives little at a time."""
    known, unknown = Controller(990 * MBIT), Controller()
    for controller in (known, unknown):
        link = Link(1000 * MBIT)
        for _ in range(30):
            expose(link, controller, 1e5)
        for _ in range(2000):  # 5 Mbit/s for 40 s
            for _ in range(10):
                link.step(5 * MBIT, 1e9)
            controller.observe(link.sample(0.0))
        controller.pause()
    assert known.pace == pytest.approx(0.99 * 990 * MBIT)
    assert (unknown.pace, unknown.capacity) == (None, None)


def test_a_burst_of_delay_is_not_a_queue() -> None:
    """A host that delays acknowledgements for half a round trip does not lower the rate."""
    link = Link(1000 * MBIT, window=50e6)
    controller = Controller(990 * MBIT)
    for tick in range(200):
        for _ in range(10):
            link.step(controller.pace, 1e9)
        controller.observe(link.sample(0.04 if tick % 50 < 5 else 0.0))
        assert controller.phase in (Phase.CRUISE, Phase.PROBE)


@pytest.mark.parametrize("outage_s", [1.0, 20.0])
def test_an_outage_does_not_lower_the_rate_for_long(outage_s: float) -> None:
    """Nothing arrives for a while, with the last round trip a long one; what was in flight is sent again afterwards."""
    link = Link(1000 * MBIT, window=50e6)
    controller = Controller(990 * MBIT)
    expose(link, controller, 100e6)
    for _ in range(round(outage_s / SAMPLE_EVERY_S)):
        link.now += SAMPLE_EVERY_S
        controller.observe(replace(link.sample(0.09), lost=link.sample(0.0).lost + 1_000_000))
    assert controller.pace == pytest.approx(0.99 * 990 * MBIT, rel=0.02)
    assert expose(link, controller) < 1.1


@pytest.mark.parametrize(("packets", "is_queue"), [(8 * 8948, False), (8 * 1448, True)])
def test_large_packets_of_several_uploads_are_not_a_queue(packets: int, is_queue: bool) -> None:
    """On a slow link each waits for those of the other uploads: at 20 Mbit/s eight of 9 kB take 29 ms."""
    rate, rtt_s, step_s = 20 * MBIT, 0.08, 0.02
    controller = Controller(rate)
    for tick in range(100):
        now, sent = tick * step_s, round(tick * step_s * rate)
        controller.observe(Sample(now, sent, max(0, sent - round(rtt_s * rate)), 0, 200_000, rtt_s, 0.028, packets))
        if controller.phase is not Phase.CRUISE:
            break
    assert (controller.phase is Phase.DRAIN) is is_queue


@pytest.mark.parametrize(
    ("probed", "has_room", "has_risen", "cleanly", "far"),
    [
        (Probed(0.0, 0.0, is_lossy=False), True, False, False, False),
        (Probed(0.49, 0.0, is_lossy=False), True, False, False, False),
        (Probed(0.5, 0.0, is_lossy=False), True, True, True, False),
        (Probed(0.69, 0.0, is_lossy=False), True, True, True, False),
        (Probed(0.7, 0.0, is_lossy=False), True, True, True, True),
        (Probed(1.0, 0.14, is_lossy=False), True, True, True, True),
        (Probed(1.0, 0.15, is_lossy=False), True, True, True, False),
        (Probed(1.0, 0.49, is_lossy=False), True, True, True, False),
        (Probed(1.0, 0.5, is_lossy=False), False, False, False, False),
        (Probed(1.0, 0.0, is_lossy=True), True, True, False, False),
        (Probed(0.5, 0.5, is_lossy=True), False, False, False, False),
    ],
)
def test_what_a_probe_shows(probed: Probed, has_room: bool, has_risen: bool, cleanly: bool, far: bool) -> None:
    """Half of what it sends more must arrive, and not wait in a queue; nearly all of it for a far higher rate."""
    assert (probed.has_room, probed.has_risen, probed.has_risen_cleanly, probed.has_risen_far) == (
        has_room, has_risen, cleanly, far,
    )  # fmt: skip
