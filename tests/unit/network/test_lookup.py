"""Look-ups of the endpoint's name: when they are made, and what becomes of the addresses known before."""

from __future__ import annotations

import socket

import pytest
from lab.keeping import Clock, ResolvingLoop, resolving
from lab.sending import settings_for

from s3daemon.network.addresses import Addresses
from s3daemon.network.lookup import GONE_AFTER_S, RESOLVE_EVERY_S, NameLookup

FIRST, SECOND = "192.0.2.1", "192.0.2.2"


class Names:
    """A look-up of one name, with the addresses that it fills."""

    def __init__(self, clock: Clock, host: str = "store.example") -> None:
        self.addresses = Addresses(clock, lambda *_: None, lambda *_: None)
        self.lookup = NameLookup(settings_for(f"http://{host}"), self.addresses, clock)


@resolving
async def test_the_last_addresses_stay_when_the_name_no_longer_resolves(
    loop: ResolvingLoop, caplog: pytest.LogCaptureFixture, clock: Clock
) -> None:
    """A failure of the name server does not stop uploads to addresses that are known. It is warned of once."""
    loop.addresses = (FIRST,)
    names = Names(clock)
    for lookups in (1, 2, 3):
        await names.lookup.resolve()
        assert (loop.lookups, names.addresses.enabled) == (lookups, [FIRST])
        loop.addresses = ()
        clock.now += RESOLVE_EVERY_S
    (message,) = caplog.messages
    why = "Temporary failure in name resolution"
    assert message == f"store.example no longer resolves, {why}; its last known addresses stay in use"


@pytest.mark.parametrize("host", ["xn--fa-hia.test", "xn--99zzzzzz9.test"], ids=["another when decoded", "undecodable"])
@resolving
async def test_a_name_is_looked_up_as_it_is_given(loop: ResolvingLoop, host: str, clock: Clock) -> None:
    with pytest.raises(socket.gaierror):
        await Names(clock, host).lookup.resolve()
    assert loop.asked == host


@resolving
async def test_the_name_is_looked_up_soon_while_no_address_can_be_reached(loop: ResolvingLoop, clock: Clock) -> None:
    """The store may have moved; however often that is noticed, there is one look-up every five seconds."""
    loop.addresses = (FIRST,)
    names = Names(clock)
    await names.lookup.resolve()
    loop.addresses = (SECOND,)
    for second in range(1, 13):
        clock.now += 1
        names.lookup.resolve_soon()
        assert names.lookup.must_resolve is (second in (6, 12)), "five seconds after it was noticed"
        if names.lookup.must_resolve:
            await names.lookup.resolve()
    assert (loop.lookups, names.addresses.enabled) == (3, [SECOND])


@resolving
async def test_an_address_is_gone_once_no_look_up_gave_it_for_long(loop: ResolvingLoop, clock: Clock) -> None:
    """One answer may have only some of them; after a reload what it does not have is gone."""
    loop.addresses = (FIRST,)
    lookup = Names(clock).lookup
    assert not lookup.is_gone(FIRST), "nothing was looked up"
    await lookup.resolve()
    loop.addresses = (SECOND,)
    for passed_s, is_gone in ((RESOLVE_EVERY_S, False), (GONE_AFTER_S - RESOLVE_EVERY_S, True)):
        clock.now += passed_s
        await lookup.resolve()
        assert lookup.is_gone(FIRST) is is_gone
    loop.addresses = (FIRST,)
    lookup.resolve_anew()
    await lookup.resolve()
    assert (lookup.is_gone(FIRST), lookup.is_gone(SECOND)) == (False, True)
