"""The addresses behind the store's name: where new connections lead, and which addresses are disabled. Pure.

The states of one are in `address`. Here is what concerns all of them: the last enabled one is never disabled. When it
fails too, the endpoint is unreachable: an *outage*. The first answer of any of them ends it, and the disabled ones are
probed at once: probably they were down for the same cause. What an outage means for transfers is
`delivery.health.endpoint`'s to decide.

An address may refuse one bucket: it has a policy, keys or a limit of its own. Once another address has taken what it
refused, requests for that bucket avoid it for `REFUSING_S`, where they can; its state stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from s3daemon.clock import Clock
from s3daemon.errors import AttemptError
from s3daemon.model.verdict import UNREACHED, blames_endpoint, may_be_the_address
from s3daemon.network.address import DISABLED_FIRST_S, DISABLED_MAX_S, Address, SmallRequestOutcome, State

#: For so long a bucket avoids an address that refused it, seconds: as long as a broken one is disabled at most.
REFUSING_S = DISABLED_MAX_S
#: The transfers whose last refusal is remembered; one that another address takes is tried there at once.
_REFUSED_MAX = 256


@dataclass(frozen=True, slots=True)
class Limited:
    """The state of an address that does not get its share of connections.

    Args:
        reason: what happened there, one line; of what a probe found, the last.
        for_s: since when it does not get its share, seconds ago.
        next_probe_s: until it is asked again, seconds; None: it is on trial.
    """

    reason: str
    for_s: float
    next_probe_s: float | None


class Addresses:
    """The addresses of one endpoint.

    Args:
        clock: monotonic seconds.
        on_disabled: called with the address, the reason, the seconds until it is asked again, and whether it ever
            answered, when one is disabled for the first time in a row. Of a name's addresses one may be of a kind that
            this host cannot reach.
        on_enabled: called with the address and how long it was disabled, seconds, when an upload succeeded over one
            that had been.
    """

    def __init__(
        self,
        clock: Clock,
        on_disabled: Callable[[str, str, float, bool], None],
        on_enabled: Callable[[str, float], None],
    ) -> None:
        self._clock = clock
        self._on_disabled = on_disabled
        self._on_enabled = on_enabled
        self._known: dict[str, Address] = {}
        self._left: dict[str, Address] = {}  # of disabled ones that the last look-up did not give
        self._refused: dict[str, str] = {}  # by transfer, the address that refused it last
        self._refusing: dict[tuple[str, str], float] = {}  # by bucket and address, until when it is avoided
        self._is_outage = False
        self._unreachable = ""  # why, in an outage that an answer ends; else small requests may be answered meanwhile

    def __bool__(self) -> bool:
        return bool(self._known)

    def replace(self, addresses: Iterable[str]) -> None:
        """Take over the addresses that the name has now; what is known of those that it had before is kept.

        One that is disabled is so when it comes back: of a name with many addresses each answer may have only some.
        Where all are disabled, as the name has lost the others, they are on trial.
        """
        before = self._left | self._known
        self._known = {address: before.get(address) or Address() for address in addresses}
        self._left = {each: known for each, known in before.items() if known.is_disabled and each not in self._known}
        for known in () if self.enabled else self._known.values():
            known.state = State.TRIAL

    @property
    def disabled(self) -> list[str]:
        """The addresses that are disabled."""
        return [address for address, known in self._known.items() if known.is_disabled]

    @property
    def unexpectedly_disabled(self) -> list[str]:
        """The disabled addresses that an operator should hear of.

        Not one of a family, IPv4 or IPv6, of which none ever answered: many a name has addresses of both, and the store
        or this host's network serves only one. Before anything answers the endpoint itself is what is missing.
        """
        families = {_is_ipv6(address) for address, known in self._known.items() if known.has_answered}
        return [address for address in self.disabled if _is_ipv6(address) in families]

    @property
    def unreachable(self) -> str:
        """Why none accepted a connection and answered since the last enabled one failed; empty if one did.

        Also that the name has no address at all, or that all enabled ones are silent. A server that hangs accepts
        connections and bodies; uploads that were sent whole wait for its answer for a minute or longer, and small
        requests disable nothing while uploads were stored lately.
        """
        if self._unreachable:
            return self._unreachable
        now, enabled = self._clock(), [self._known[address] for address in self.enabled]
        are_silent = bool(enabled) and all(known.is_silent(now) for known in enabled)
        return "no address of the store answers" if are_silent else ""

    @property
    def have_answered(self) -> bool:
        """Whether any address has answered anything, ever."""
        return any(known.has_answered for known in self._known.values())

    @property
    def enabled(self) -> list[str]:
        """The addresses that are not disabled."""
        return [address for address, known in self._known.items() if not known.is_disabled]

    def next_probe_s(self, address: str) -> float:
        """Return the seconds until a disabled address is asked again; 0 when it is not disabled."""
        known = self._known.get(address)
        return max(0.0, known.probe_at - self._clock()) if known and known.is_disabled else 0.0

    @property
    def limited(self) -> dict[str, Limited]:
        """The addresses without their share of connections: on trial, or `unexpectedly_disabled`."""
        now = self._clock()
        unexpected = {*self.unexpectedly_disabled}
        return {
            address: Limited(
                known.reason, now - known.limited_at, self.next_probe_s(address) if known.is_disabled else None
            )
            for address, known in self._known.items()
            if known.is_on_trial or address in unexpected
        }

    def set_keeping(self, address: str, *, keeps: bool) -> bool:
        """Note whether it keeps connections open after its answers; return whether that is news."""
        known = self._known.get(address)
        if known is None or known.keeps == keeps:
            return False
        known.keeps = keeps
        return True

    def keeps(self, address: str) -> bool:
        """Return whether it keeps connections open after its answers, as far as is known."""
        known = self._known.get(address)
        return known is None or known.keeps

    def is_enabled(self, address: str) -> bool:
        """Return whether it is not disabled. Of an address that the name no longer has nothing bad is known."""
        known = self._known.get(address)
        return known is None or not known.is_disabled

    def awaits_upload(self, address: str) -> bool:
        """Return whether it is on trial until an upload is stored there, however small."""
        known = self._known.get(address)
        return known is not None and known.is_on_trial and not known.is_slow

    def has_alternative(self, tried: Iterable[str]) -> bool:
        """Return whether an address other than those in `tried` is enabled."""
        excluded = set(tried)
        return any(self.is_enabled(address) for address in self._known if address not in excluded)

    def in_order(self, per_address: Mapping[str, int], avoid: Iterable[str] = ()) -> list[str]:
        """Return all addresses in the order in which a new connection should try them.

        Args:
            per_address: how many connections go to each now; the address with the fewest comes first.
            avoid: these come after all others that are enabled; those that keep no connection after those that do.
        """
        avoided = set(avoid)

        def rank(address: str) -> tuple[bool, bool, bool, bool, int]:
            known, count = self._known[address], per_address.get(address, 0)
            return known.is_disabled, known.is_on_trial and count > 0, address in avoided, not known.keeps, count

        return sorted(self._known, key=rank)

    def overloaded(self, per_address: Mapping[str, int]) -> str:
        """Return an address with at least two connections more than another one that could take one more.

        Args:
            per_address: how many connections go to each now.

        Returns:
            One on trial that has more than one while another is not on trial, else the address with the most; empty
            when all have their share.
        """
        counts = {address: per_address.get(address, 0) for address in self.enabled if self._known[address].keeps}
        on_trial = [address for address in counts if self._known[address].is_on_trial]
        if len(on_trial) < len(counts) and (surplus := [address for address in on_trial if counts[address] > 1]):
            return surplus[0]
        can_take = [count for address, count in counts.items() if not (self._known[address].is_on_trial and count)]
        fullest = max(counts, key=lambda address: counts[address], default="")
        return fullest if can_take and counts[fullest] - min(can_take) > 1 else ""

    def failed(self, address: str, reason: str, transfer: str = "") -> None:
        """Note a failure for which the address is to blame.

        Args:
            address: where it happened.
            reason: one line.
            transfer: the id of the transfer whose attempt it was; empty for a connection that could not be opened.
        """
        known = self._known.get(address)
        if known is None or known.is_disabled or not known.note_failure(transfer):
            return
        if self.has_alternative([address]):
            self._disable(address, known, reason)
        else:
            self._is_outage, self._unreachable = True, "" if transfer else reason

    def unresolved(self, reason: str) -> None:
        """Note, in one line, that the name does not resolve; the last known addresses stay in use if there are any."""
        if not self._known:
            self._is_outage, self._unreachable = True, reason

    def slow(self, address: str, reason: str, transfer: str) -> None:
        """Note that an upload there was far slower than those at other addresses.

        Args:
            address: where it went.
            reason: one line.
            transfer: the id of the transfer that it belonged to.
        """
        known = self._known.get(address)
        if known is None or known.is_disabled:
            return
        if known.note_slow(transfer) and self.has_alternative([address]):
            known.is_slow = True
            self._disable(address, known, f"it is far slower than others, {reason}")

    def attempt_failed(self, error: AttemptError, address: str, transfer: str, tried: Collection[str]) -> bool:
        """Note the failure of an attempt.

        Args:
            error: why it failed.
            address: where it failed.
            transfer: the id of the transfer, or the name of what else was asked.
            tried: the addresses where it failed before, those included that did not accept this connection.

        Returns:
            Whether another address may do otherwise, and the transfer can be tried there at once.
        """
        if error.status and (known := self._known.get(address)) is not None:
            known.note_answer(self._clock())
        if blames_endpoint(error):
            self.failed(address, f"{error.code}, {error}", "" if error.code in UNREACHED else transfer)
        elif may_be_the_address(error):
            self._refused = dict([*self._refused.items(), (transfer, address)][-_REFUSED_MAX:])
        return may_be_the_address(error) and self.has_alternative({*tried, address})

    def taken(self, address: str, transfer: str, bucket: str) -> None:
        """Note that a transfer to `bucket` was stored at `address`; the address that refused it before is avoided."""
        self._refusing.pop((bucket, address), None)
        refused_at = self._refused.pop(transfer, address)
        if refused_at != address:
            now = self._clock()
            self._refusing = {key: until for key, until in self._refusing.items() if now < until}
            self._refusing[bucket, refused_at] = now + REFUSING_S

    def avoided(self, tried: Collection[str], bucket: str) -> Collection[str]:
        """Return the addresses to avoid for `bucket`: those `tried`, and those that refuse it if others are left."""
        now = self._clock()
        refusing = {address for (of, address), until in self._refusing.items() if of == bucket and now < until}
        return {*tried, *refusing} if refusing and self.has_alternative({*tried, *refusing}) else tried

    def _end_outage(self) -> None:
        if self._is_outage:
            for known in self._known.values():
                if known.is_disabled and not known.is_slow:
                    known.probe_at, known.times_disabled = self._clock(), 1
        self._is_outage, self._unreachable = False, ""

    def _disable(self, address: str, known: Address, reason: str) -> None:
        if known.disable(self._clock(), reason):
            self._on_disabled(address, reason, self.next_probe_s(address), known.has_answered)

    def asked(self, address: str, outcome: SmallRequestOutcome, reason: str, since: float = math.inf) -> None:
        """Note what became of a small request.

        Args:
            address: where it went.
            outcome: what became of it.
            reason: one line, for when the address is disabled.
            since: when it was sent, monotonic seconds; infinite: just now.
        """
        known = self._known.get(address)
        if known is None or outcome is SmallRequestOutcome.NOT_SENT:
            return
        now, says_nothing = self._clock(), known.has_uploaded_lately(self._clock())
        self._note_answer(known, outcome, since)
        if known.is_disabled:
            return
        match outcome:
            case SmallRequestOutcome.ANSWERED:
                known.end_doubt()
            case SmallRequestOutcome.ANSWERED_BADLY if not says_nothing and self.has_alternative([address]):
                known.doubt(now, reason)
            case SmallRequestOutcome.NOT_ANSWERED if not says_nothing:
                self.failed(address, reason)
            case SmallRequestOutcome.NOT_CONNECTED:
                self.failed(address, reason)

    def _note_answer(self, known: Address, outcome: SmallRequestOutcome, since: float = math.inf) -> None:
        """Note whether a small request, sent at `since`, was answered; an answer shows that they are reachable."""
        if outcome.is_answer:
            known.has_answered_small = True
            known.note_answer(self._clock())
            if self._unreachable:
                self._end_outage()
        elif outcome is SmallRequestOutcome.NOT_ANSWERED:
            known.note_silence(since, self._clock())

    def succeeded(self, address: str, *, proves_speed: bool = True) -> None:
        """Note that an upload over it was stored.

        Args:
            address: where it went.
            proves_speed: it was large enough to have a rate, and was not moved away.
        """
        known = self._known.get(address)
        if known is None:
            return
        self._end_outage()
        known.note_answer(self._clock())
        if known.is_disabled:
            return  # the upload began before it was disabled, or went there since no other took it
        if known.note_stored(self._clock(), proves_speed=proves_speed):
            self._on_enabled(address, self._clock() - known.limited_at)

    def to_probe(self) -> list[str]:
        """Return the disabled addresses whose time is up."""
        now = self._clock()
        return [address for address in self.disabled if self._known[address].probe_at <= now]

    def probed(self, address: str, outcome: SmallRequestOutcome, reason: str = "") -> None:
        """Note the outcome of a small request to a disabled address, and that in one line."""
        known = self._known.get(address)
        if known is None or not known.is_disabled:
            return
        if outcome.is_answer:
            known.state = State.TRIAL
            self._note_answer(known, outcome)
        elif outcome is SmallRequestOutcome.NOT_SENT:
            known.probe_at = self._clock() + DISABLED_FIRST_S
        else:
            known.reason = reason or known.reason
            self._disable(address, known, known.reason)


def _is_ipv6(address: str) -> bool:
    return ":" in address
