"""The store's receivers, the addresses behind its name: which of them serve, and which are left aside. Pure.

    state   event                                                    next    what goes there
    -----   -----                                                    ----    ---------------
    SERVES  a connection fails; or two transfers in a row do         ASIDE
    ASIDE   its time is up and a small request is answered           TRIAL   small requests of our own, now and then
    ASIDE   it is not                                                ASIDE   (for twice as long)
    TRIAL   an upload succeeds                                       SERVES  one connection
    TRIAL   anything fails                                           ASIDE   (for twice as long)

A small request proves little: a gateway may answer it and still refuse every PUT, as Ceph's does while its notification
queue is broken. So a receiver that is back gets one connection until an upload over it succeeded. The last one that
serves is never left aside: when all fail the endpoint is away, and that is another module's business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from s3daemon.errors import AttemptError, Code
from s3daemon.model.verdict import blames_endpoint

#: How long a receiver is left aside first, and at most, seconds: half an exposure is lost on a glitch, and one that is
#: broken for hours is tried a dozen times an hour.
ASIDE_FIRST_S, ASIDE_MAX_S = 5.0, 300.0
#: One failed transfer may be that transfer's fault; the next one's failure on the same receiver is not.
TRANSFERS_IN_A_ROW = 2
#: Nothing reached the receiver, so no transfer can be at fault.
_NOT_CONNECTED = (Code.CONNECTION_FAILED, Code.CONNECT_TIMEOUT, Code.TLS_FAILED)


@dataclass(slots=True)
class _Receiver:
    """What is known of one.

    Args:
        failed: ids of the transfers that failed there since one succeeded.
        times: how often it was left aside in a row.
        until: when it is to be probed, monotonic seconds; None while it serves.
        trial: it answers again, and no upload has succeeded yet.
        served: it answered something.
    """

    failed: set[str]
    times: int = 0
    until: float | None = None
    trial: bool = False
    served: bool = False


class Addresses:
    """The receivers of one endpoint.

    Args:
        clock: monotonic seconds.
        on_aside: told the address, the reason, and whether it ever served, when one is left aside, the first time in a
            row. Of a name's addresses one may be of a kind that this host cannot reach.
        on_back: told the address when an upload succeeded on one that had been.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        on_aside: Callable[[str, str, bool], None] = lambda address, why, served: None,
        on_back: Callable[[str], None] = lambda address: None,
    ) -> None:
        self._clock = clock
        self._on_aside = on_aside
        self._on_back = on_back
        self._known: dict[str, _Receiver] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def replace(self, addresses: Iterable[str]) -> None:
        """The name has these addresses now; what is known of those that it had before is kept."""
        self._known = {address: self._known.get(address) or _Receiver(set()) for address in addresses}

    @property
    def aside(self) -> list[str]:
        """Those left aside."""
        return [address for address, receiver in self._known.items() if receiver.until is not None]

    def serves(self, address: str) -> bool:
        """It is not left aside. Of an address that the name has no more nothing bad is known."""
        receiver = self._known.get(address)
        return receiver is None or receiver.until is None

    def elsewhere(self, tried: Iterable[str]) -> bool:
        """Another receiver serves than those that were `tried`."""
        before = set(tried)
        return any(self.serves(address) for address in self._known if address not in before)

    def order(self, lanes: Mapping[str, int], avoid: Iterable[str] = ()) -> list[str]:
        """All addresses in the order in which a new connection should try them.

        Args:
            lanes: how many connections go to each now; the one with the fewest comes first.
            avoid: come after all others that serve.
        """
        last = set(avoid)

        def rank(address: str) -> tuple[bool, bool, bool, int]:
            receiver, count = self._known[address], lanes.get(address, 0)
            return receiver.until is not None, receiver.trial and count > 0, address in last, count

        return sorted(self._known, key=rank)

    def surplus(self, lanes: Mapping[str, int]) -> str:
        """A receiver with two or more connections more than another one could take; empty when all have their share."""
        free = [address for address in self._known if self.serves(address)]
        room = [lanes.get(a, 0) for a in free if not (self._known[a].trial and lanes.get(a, 0))]
        most = max(free, key=lambda address: lanes.get(address, 0), default="")
        return most if room and lanes.get(most, 0) - min(room) > 1 else ""

    def failed(self, address: str, why: str, transfer: str = "") -> None:
        """Something failed there that blames the receiver.

        Args:
            address: where.
            why: one line.
            transfer: whose attempt it was; without one it was a connection that could not be opened.
        """
        receiver = self._known.get(address)
        if receiver is None or receiver.until is not None:
            return
        receiver.failed.add(transfer)
        enough = not transfer or receiver.trial or len(receiver.failed) >= TRANSFERS_IN_A_ROW
        if enough and self.elsewhere([address]):
            self._put_aside(receiver)
            if receiver.times == 1:
                self._on_aside(address, why, receiver.served)

    def blame(self, error: AttemptError, address: str, who: str, tried: Collection[str]) -> bool:
        """Note that an attempt failed at a receiver.

        Args:
            error: why.
            address: where it failed.
            who: the transfer, or what else was asked.
            tried: the receivers where it failed before.

        Returns:
            whether the receiver is at fault and another one serves that was not tried yet.
        """
        if not blames_endpoint(error) or error.code == Code.STALE_CONNECTION:
            return False
        self.failed(address, f"{error.code}, {error}", "" if error.code in _NOT_CONNECTED else who)
        return self.elsewhere({*tried, address})

    def _put_aside(self, receiver: _Receiver) -> None:
        receiver.until = self._clock() + min(ASIDE_FIRST_S * 2.0 ** min(receiver.times, 16), ASIDE_MAX_S)
        receiver.times += 1
        receiver.trial = False
        receiver.failed.clear()

    def answered(self, address: str) -> None:
        """A small request over it was answered."""
        if receiver := self._known.get(address):
            receiver.served = True

    def succeeded(self, address: str) -> None:
        """An upload over it was stored."""
        receiver = self._known.get(address)
        if receiver is None or receiver.until is not None:
            return  # an upload that began before it was left aside
        receiver.served = True
        receiver.failed.clear()
        receiver.trial = False
        if receiver.times:
            receiver.times = 0
            self._on_back(address)

    def due(self) -> list[str]:
        """Those to probe now."""
        now = self._clock()
        return [a for a, receiver in self._known.items() if receiver.until is not None and receiver.until <= now]

    def probed(self, address: str, *, answered: bool) -> None:
        """A small request was sent to one that is left aside."""
        receiver = self._known.get(address)
        if receiver is None or receiver.until is None:
            return
        if answered:
            receiver.until, receiver.trial = None, True
        else:
            self._put_aside(receiver)
