"""Finds the rate of the narrowest link from what all uploads together get delivered. Pure: samples in, a rate out.

    STARTUP   nothing is known: no limit, while what is delivered grows
    DRAIN     packets queue or are lost: what is delivered meanwhile is the link's rate. Send half of that until the
              queue is empty, or what is left of it cannot be ours
    CRUISE    send a little less than the rate, so that no queue builds
    PROBE     send more for half a round trip: if more is delivered, the rate has risen
    SHARE     the queue stays whatever we do: someone else fills it. Send half of what the link carries

A round is one round trip. What is delivered is never more than the link carries, so a window of it needs no filter; it
is less whenever uploads have nothing to send, so it lowers the rate only while a queue shows that the link is full.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import Enum

from s3daemon.config.values import LEAST_BPS

#: How often the controller expects a sample, seconds. A late one does no harm: rates are over the time that passed.
SAMPLE_EVERY_S = 0.02
#: How late one may come; what a probe is measured by is kept for so much longer, seconds.
_LATE_S = 0.2
#: On shorter paths TCP finds the rate by itself within milliseconds, and a busy host's delays look like a queue.
LEAST_RTT_S = 0.005
#: What counts as a rate at all, bytes/s.
_LEAST_RATE = LEAST_BPS / 8
#: A queue is one when packets wait this long in it: of the round trip, and at least, seconds. A machine under load
#: delays acknowledgements by a few milliseconds.
_QUEUED_SHARE, _QUEUED_S = 0.15, 0.004
#: A queue stands after so many rounds, or after one if it is twice as long: a host under load delays some
#: acknowledgements, and so does a burst of someone else's.
_STANDING_ROUNDS, _STANDING_AT_ONCE = 4, 2
#: Of the link's rate, so that what else is sent, headers first of all, builds no queue.
_CRUISE = 0.99
#: Empties a queue of one round trip within two.
_DRAIN = 0.5
#: Our queue is empty when this share of what the way holds without one is in flight, and a queue is others' when no
#: more than this is. The rate is in use when this share of it is delivered.
_DRAINED, _OTHERS, _LOADED = 0.95, 0.8, 0.9
#: Beside another sender, of what the link carries: at first, and at most as long as nothing is lost.
_SHARE = (0.5, 0.6)
#: Likewise while that is not known: of what was measured, and by how much it grows in a round of use without losses.
_SHARE_UNSURE = (0.7, 1.07)
#: How much more a probe sends: a little while nothing is known, for a queue may have room for 1 MB only and 1.08 for
#: 0.1 s at 1 Gbit/s is 1 MB; more and more as long as all of it is delivered.
_GAINS = (1.08, 1.3, 1.6, 2.0)
#: What was measured as the link overran may be too low by this factor. Up to there a probe sends only a little more,
#: however much of it is delivered: the queue has no room.
_OVERRUN_LOW = 1.2
#: Of a probe's excess, what must be delivered to show that the rate has risen; what must be delivered, and what may at
#: most wait in a queue, to show that it may have risen by far more.
#: Beside another sender a probe yields half of its excess at half of the link: the share at which probing for more
#: ends by itself.
_SUCCESS, _ALL, _UNQUEUED = 0.5, 0.7, 0.15
#: What is lost of that which was sent in a round, from which on the link counts as overrun; less is chance. BBRv2 takes
#: 2 % too (draft-cardwell-iccrg-bbr-congestion-control, BBRLossThresh). Of few packets, chance takes a larger share: as
#: many more as so many standard deviations, and those of one upload's timeout.
_LOSSY, _DEVIATIONS, _TIMEOUT_PACKETS = 0.02, 3, 6
#: A probe sends at least so many packets more of each upload, if that does not take more than double the rate: fewer
#: cannot be told from the packets that happen to be on their way. Where the windows are too narrow for that, it lasts
#: until they are not, up to so many rounds.
_PROBE_PACKETS, _PROBE_ROUNDS = 2, 8
#: Rounds in which the rate was used before the next probe.
_PROBE_EVERY = 8
#: Rounds of use without any queue after which the rate counts as what the link carries: at 200 ms, one exposure has
#: some six beside its probe; and after which a rate far below what was found before does.
_SETTLED, _LOWERED = 4, 20
#: A probe for what was there a moment ago, more than this share below it, is repeated after so many rounds.
_NEARLY, _AGAIN = 0.97, 4
#: What is measured again and is less than this share of the time before has gone to someone else.
_PUSHED = 0.93
#: A probe that lost packets: this many times as many rounds before the next, up to a maximum.
_PATIENCE, _MOST_PATIENCE = 4, 64
#: Rounds beside another sender before it is tried whether it has gone, or never was.
_SHARE_ROUNDS = 30
#: Rounds in a crowded start without growth by a quarter after which the rate counts as found, as in BBR's STARTUP.
_FULL_ROUNDS, _GROWTH = 3, 1.25


@dataclass(frozen=True, slots=True)
class Sample:
    """All uploads together, at one moment.

    Args:
        now: monotonic seconds.
        sent, delivered, lost: bytes since any moment; lost are those that were sent again.
        in_flight: bytes sent and not yet delivered.
        rtt_s: the round trip without any queue, seconds.
        queued_s: how much longer the round trip is at present, seconds.
        packets: bytes of one packet of each upload, added up.
        packet: bytes of one packet.
        windows: bytes that may be in flight.
    """

    now: float
    sent: int
    delivered: int
    lost: int
    in_flight: int
    rtt_s: float
    queued_s: float
    packets: int = 0
    packet: int = 1
    windows: float = math.inf


class Phase(Enum):
    """What the controller is doing; the module's docstring describes each."""

    STARTUP = "startup"
    DRAIN = "drain"
    CRUISE = "cruise"
    PROBE = "probe"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of that which a probe sent more.

    Args:
        yielded: the share of it that was delivered.
        queued: the share of it that waits in a queue.
        is_lossy: more than chance was lost.
    """

    yielded: float
    queued: float
    is_lossy: bool

    @property
    def has_room(self) -> bool:
        """Whether little of it waits in a queue."""
        return self.queued < 1 - _SUCCESS

    @property
    def has_risen(self) -> bool:
        """Whether so much was delivered that the link's rate has risen."""
        return self.yielded >= _SUCCESS and self.has_room

    @property
    def has_risen_cleanly(self) -> bool:
        """Whether it has risen, and nothing was lost."""
        return self.has_risen and not self.is_lossy

    @property
    def has_risen_far(self) -> bool:
        """Whether it may have risen by far more."""
        return self.has_risen_cleanly and self.yielded >= _ALL and self.queued < _UNQUEUED


class Controller:
    """The rate at which all uploads together should send.

    Args:
        known: the link's rate as found before, bytes/s; None when it is not known.

    Attributes:
        phase: what it is doing.
        capacity: the link's rate, bytes/s; None until it is found.
        is_used: the rate was found here, or, known from before, in use without a queue.
        is_overrun: too much is lost, in an unlimited start or at a rate that the link carried before.
    """

    def __init__(self, known: float | None = None) -> None:
        self.capacity = known
        self.phase = Phase.STARTUP if known is None else Phase.CRUISE
        self._rate = known or 0.0
        self._gain = _CRUISE
        self.is_used = False
        self._is_sure = known is not None  # nobody else was on the link when it was found
        self._samples: deque[Sample] = deque()
        self._since = 0.0  # when the phase began
        self._queue_since: float | None = None
        self._loaded_rounds = float(_PROBE_EVERY)  # used in full since the last probe: the first comes early
        self._clean_rounds = 0.0
        self._patience = 1
        self._probe_gain = 0
        self._narrow_until = 0.0
        self._excess = self._probed_s = 0.0  # what the probe sends more, of the rate, and how long it did
        self._was_crowded = self.is_overrun = False
        self._overrun_rate = 0.0  # measured as the link overran
        self._full_rounds, self._full_at, self._full_best = 0, 0.0, 0.0
        self._adapt_at = 0.0  # when the share grows or is cut next
        self._drained_at: float | None = None
        self._drain_until = 0.0  # whoever's queue is there then, it is not ours
        self._shared = 0.0  # sent beside another sender, before it was tried whether that has gone
        self._measured: float | None = None  # by the last drain, not so long ago
        self._queue_before = 0.0
        self._from = Sample(0.0, 0, 0, 0, 0, 0.0, 0.0)  # where the measurement in a queue began

    @property
    def pace(self) -> float | None:
        """Bytes/s for all uploads together; None for no limit."""
        return None if self.phase is Phase.STARTUP else self._rate * self._gain

    def pause(self) -> None:
        """Nothing is being sent any more; what was going on ends without a finding."""
        if self.phase is Phase.DRAIN:  # what it was delivered in a queue is the best that is known
            self._enter_cruise(self._rate)
        elif self.phase is not Phase.STARTUP:
            self._enter(Phase.CRUISE, _CRUISE)
        self._samples.clear()
        self._queue_since = None
        self._probe_gain = 0
        self._loaded_rounds += _PROBE_EVERY  # each exposure begins with a probe

    def observe(self, sample: Sample) -> None:
        """Take the next sample; `pace` may be another after it."""
        if not self._samples:
            self._since = self._full_at = sample.now
            self._was_crowded = self._is_queued(sample)
            self._full_rounds, self._full_best = 0, 0.0
        self._samples.append(sample)
        oldest = sample.now - 2 * self._round(sample) - sample.queued_s - _LATE_S
        while self._samples[0].now < oldest and self._samples[1].now <= oldest:
            self._samples.popleft()
        is_silent = sample.delivered == self._at(sample.now - self._round(sample)).delivered
        if not self._is_queued(sample) or is_silent:  # nothing was acknowledged: the round trip is an old one
            self._queue_since = None
        elif self._queue_since is None:
            self._queue_since = sample.now
        {
            Phase.STARTUP: self._in_startup,
            Phase.DRAIN: self._in_drain,
            Phase.CRUISE: self._in_cruise,
            Phase.PROBE: self._in_probe,
            Phase.SHARE: self._in_share,
        }[self.phase](sample)

    # What is seen.

    def _is_queued(self, sample: Sample, times: float = 1.0) -> bool:
        # On a slow link the packets of several uploads wait for each other, which takes long where they are large.
        rate = self._rate or (self._delivered(self._round(sample)) if self._samples else 0.0)
        packets_s = sample.packets / rate if rate else 0.0
        return sample.queued_s > times * max(_QUEUED_S, _QUEUED_SHARE * sample.rtt_s) + packets_s

    def _at(self, when: float) -> Sample:
        """The last sample that was taken at `when` or before; the first when there is none."""
        return next((each for each in reversed(self._samples) if each.now <= when), self._samples[0])

    def _delivered(self, seconds: float) -> float:
        """Return bytes/s delivered over about the last `seconds`; 0 when not known."""
        last = self._samples[-1]
        first = self._at(last.now - seconds)
        took = last.now - first.now
        return (last.delivered - first.delivered) / took if took >= seconds else 0.0

    def _delivered_by(self, when: float) -> float:
        """Return the bytes delivered at a time between two samples, as if they had come evenly."""
        before = self._at(when)
        after = next((each for each in self._samples if each.now >= when), before)
        passed = (when - before.now) / (after.now - before.now) if after.now > before.now else 0.0
        return before.delivered + passed * (after.delivered - before.delivered)

    def _half_round(self, sample: Sample) -> float:
        return max(sample.rtt_s / 2, 3 * SAMPLE_EVERY_S)

    def _round(self, sample: Sample) -> float:
        return max(sample.rtt_s, 3 * SAMPLE_EVERY_S)

    def _is_overrun(self, sample: Sample) -> bool:
        """Whether more than chance was lost within a round."""
        first = self._at(sample.now - self._round(sample))
        if sample.now - first.now < self._round(sample):
            return False
        by_chance = _LOSSY * (sample.sent - first.sent) / sample.packet
        most = by_chance + _DEVIATIONS * math.sqrt(by_chance) + _TIMEOUT_PACKETS
        return (sample.lost - first.lost) / sample.packet > most

    # What is done.

    def _enter(self, phase: Phase, gain: float) -> None:
        self.phase, self._gain = phase, gain
        self._since = self._samples[-1].now if self._samples else 0.0

    def _enter_drain(self, sample: Sample) -> None:
        """Begin to empty the queue, if what is delivered meanwhile is known."""
        queued = sample.now - self._queue_since if self._queue_since is not None else 0.0
        measured = min(max(queued, self._half_round(sample)), self._round(sample))
        found = self._delivered(measured)
        if found >= _LEAST_RATE:
            self._from = self._at(sample.now - queued) if queued >= measured else sample
            self._rate, self._drained_at, self._clean_rounds = found, None, 0.0
            self._drain_until = sample.now + 2 * self._round(sample) + sample.queued_s / (1 - _DRAIN)
            self._enter(Phase.DRAIN, _DRAIN)

    def _enter_cruise(self, rate: float) -> None:
        self._rate, self._shared = rate, 0.0
        self.is_overrun = False
        self.capacity = max(self.capacity or 0.0, rate)
        self.is_used = True
        self._enter(Phase.CRUISE, _CRUISE)

    def _enter_share(self) -> None:
        self.is_overrun = False
        self.capacity = self.capacity or self._rate
        # What was found beside the other may be a part only: begin with most of that, and grow.
        share = _SHARE[0] * self.capacity if self._is_sure else _SHARE_UNSURE[0] * self._rate
        self._rate = max(share, self._shared)
        self._enter(Phase.SHARE, 1.0)

    def _in_startup(self, sample: Sample) -> None:
        was_crowded = self._was_crowded
        if was_crowded and sample.now - self._full_at >= self._round(sample):
            delivered = self._delivered(self._round(sample))
            self._full_at = sample.now
            grows = delivered > _GROWTH * self._full_best
            self._full_rounds = 0 if grows else self._full_rounds + 1
            self._full_best = max(self._full_best, delivered)
        is_full = self._full_rounds >= _FULL_ROUNDS if was_crowded else self._queue_since is not None
        self.is_overrun = self._is_overrun(sample)
        if is_full or self.is_overrun:
            self._enter_drain(sample)

    def _in_drain(self, sample: Sample) -> None:
        took = self._round(sample)
        is_queued = self._queue_since is not None or sample.now - self._since <= took  # what arrives was
        if is_queued and sample.now - self._from.now >= self._half_round(sample):
            found = (sample.delivered - self._from.delivered) / (sample.now - self._from.now)
            best = 0.0 if self.capacity else self._rate  # at first a small queue empties before a round has passed
            self._rate = max(_LEAST_RATE, best, found)
        if self._drained_at is None:
            is_empty = sample.in_flight <= _DRAINED * self._rate * sample.rtt_s
            if is_empty or sample.now >= self._drain_until:
                self._drained_at, self._gain = sample.now, _CRUISE
        elif self._queue_since is None:
            self._end_drain()
        elif sample.now - self._drained_at >= 2 * took:
            if self._is_queued(sample, _STANDING_AT_ONCE):  # ours is gone, and there is still one
                self._enter_share()
            else:
                self._end_drain()

    def _end_drain(self) -> None:
        """Use the rate that was measured; if it is lower again than a short time ago, share with another sender.

        The first rate of all is probed at once: beside another sender it is only a part of what the link carries.
        """
        is_first = self.capacity is None and not self.is_overrun
        if self.is_overrun:
            self._overrun_rate = self._rate
        is_pushed = self._measured is not None and self._rate < _PUSHED * self._measured
        self._measured = self._rate
        if is_pushed:
            self._enter_share()
        else:
            self._enter_cruise(self._rate)
        if is_first:
            self._probe_gain, self._loaded_rounds = 1, float(_PROBE_EVERY)

    @property
    def _is_share_left(self) -> bool:
        """Whether less than our share of what the link carries is sent, so that a queue is someone else's."""
        return self._is_sure and self._rate < _SHARE[0] * (self.capacity or 0.0)

    def _is_others(self, sample: Sample) -> bool:
        """Whether a queue stands before as much of ours was in flight, for a round, as the way holds without one."""
        since = sample.now - self._round(sample)
        most = max(each.in_flight for each in self._samples if each.now >= since)
        return most <= _OTHERS * self._rate * sample.rtt_s

    def _in_cruise(self, sample: Sample) -> None:
        took = self._round(sample)
        delivered = self._delivered(took)
        queued = 0.0 if self._queue_since is None else (sample.now - self._queue_since) / took
        is_large = self._is_queued(sample, _STANDING_AT_ONCE)
        is_standing = queued >= (1 if is_large else _STANDING_ROUNDS)
        is_overrun = self._is_overrun(sample)
        if (is_standing or is_overrun) and sample.now - self._since >= 2 * took:
            if self._is_share_left:
                self._enter_share()
            elif is_overrun or not self._is_others(sample):
                self.is_overrun = is_overrun
                self._enter_drain(sample)
            elif is_large:
                self._enter_share()
        elif delivered >= _LOADED * self._rate * self._gain and self._queue_since is None:
            self._count_rounds(sample)
            if self._loaded_rounds >= _PROBE_EVERY * self._patience:
                self._enter_probe(sample)

    def _count_rounds(self, sample: Sample) -> None:
        """Count rounds in which the rate was used and no queue built."""
        rounds = (sample.now - self._samples[-2].now) / self._round(sample)
        self.is_used = True
        self._loaded_rounds += rounds
        is_lower = self._rate < _NEARLY * (self.capacity or 0.0)
        # Where it is lower, probes are frequent, and what one leaves in the queue is our own.
        most_s = (_GAINS[0] - 1) * self._half_round(sample) if is_lower else _QUEUED_SHARE / 2 * sample.rtt_s
        is_clean = sample.queued_s <= max(_QUEUED_S, most_s)
        self._clean_rounds = self._clean_rounds + rounds if is_clean else 0.0
        if self._clean_rounds >= (_LOWERED if is_lower else _SETTLED):
            self.capacity, self._measured, self._is_sure = self._rate, None, True

    def _in_probe(self, sample: Sample) -> None:
        passed, most = sample.now - self._since, self._probe_s(sample)
        if self._gain > 1:
            if passed < most:
                return
            if self._is_narrow(sample):
                self._since = sample.now - most
                return
            self._probed_s = passed
        # Give back what a queue may have taken, up to a tenth.
        self._gain = _CRUISE - (_GAINS[0] - 1) if passed < 2 * self._probed_s else _CRUISE
        arrives = self._since + sample.rtt_s + self._queue_before
        arrived = arrives + self._probed_s
        if sample.now >= arrived:
            delivered = (self._delivered_by(arrived) - self._delivered_by(arrives)) / self._probed_s
            yielded = (delivered / self._rate - 1) / self._excess
            queued = (sample.queued_s - self._queue_before) / self._excess / self._probed_s
            self._end_probe(sample, delivered, Probed(yielded, queued, self._is_overrun(sample)))

    def _is_narrow(self, sample: Sample) -> bool:
        """Whether the windows are too narrow for what a probe sends, and may yet widen."""
        is_narrow = sample.windows < self._rate * self._gain * sample.rtt_s
        return is_narrow and sample.now < self._narrow_until and self._queue_since is None

    def _end_probe(self, sample: Sample, delivered: float, probed: Probed) -> None:
        """Use what a probe showed: probe for more at once, or empty the queue that it built, or cruise."""
        gain, before = self._probe_gain, self.capacity or 0.0
        self._probe_gain, self._loaded_rounds = 0, 0.0
        self._patience = min(_MOST_PATIENCE, self._patience * _PATIENCE) if probed.is_lossy else 1
        self._enter_cruise(delivered if probed.has_risen else self._rate)
        if probed.has_risen_cleanly:
            self._measured = None
        if probed.has_risen_far:
            if self._rate > _OVERRUN_LOW * self._overrun_rate:
                self._probe_gain = min(gain + 1, len(_GAINS) - 1)
            self._enter_probe(sample)
        elif gain and not probed.has_room and self._is_queued(sample):
            self._measured = None  # the queue is our own: empty it, and what arrives meanwhile is the rate
            self._enter_drain(sample)
        elif probed.has_risen_cleanly or self._rate < _NEARLY * before or delivered < _LOADED * self._rate:
            # A little more may be left, or it is less than before, or there was not enough to send.
            self._loaded_rounds = float(self._patience * _PROBE_EVERY - _AGAIN)

    def _enter_probe(self, sample: Sample) -> None:
        self._queue_before = sample.queued_s
        least = _PROBE_PACKETS * sample.packets / (self._rate * self._probe_s(sample))
        self._excess = max(_GAINS[self._probe_gain] - 1, min(least, _GAINS[-1] - 1))
        self._narrow_until = sample.now + _PROBE_ROUNDS * self._round(sample)
        self._enter(Phase.PROBE, 1 + self._excess)

    def _probe_s(self, sample: Sample) -> float:
        return self._round(sample) if self._probe_gain else self._half_round(sample)

    def _in_share(self, sample: Sample) -> None:
        capacity, step = self.capacity or 0.0, self._round(sample)
        passed = sample.now - self._since
        if sample.now >= self._adapt_at:
            self._adapt_at = sample.now + step
            if self._is_overrun(sample):
                # What is lost of that which was sent before is seen for a round and the queue, and counts for a round.
                self._adapt_at += sample.queued_s + step
                self._rate = max(_LEAST_RATE, 0.7 * self._rate)
            elif self._is_sure:
                self._rate = min(_SHARE[1] * capacity, self._rate + 0.02 * capacity)
            elif self._delivered(step) >= _OTHERS * self._rate:
                self._rate *= _SHARE_UNSURE[1]
        if passed >= 2 * step and self._is_clear(2 * step):
            self._measured = None
            self._loaded_rounds = float(_PROBE_EVERY * self._patience)  # whoever it was has gone: look for what is left
            if self._is_share_left:
                self._rate = _SHARE[0] * capacity
            self._enter(Phase.CRUISE, _CRUISE)
        elif passed >= _SHARE_ROUNDS * step and self._queue_since is not None:
            self._shared = self._rate
            self._enter_drain(sample)

    def _is_clear(self, seconds: float) -> bool:
        """Whether no sample of the last `seconds` showed a queue."""
        last = self._samples[-1].now
        return not any(self._is_queued(each) for each in self._samples if each.now >= last - seconds)
