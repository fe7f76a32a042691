"""The metrics of the present state say what is true at the moment."""

import asyncio

import pytest
from fakes import House, figures_of, flying_with, operations_of

from s3daemon.model.exposure import Exposures


@flying_with(House)
async def test_figures_are_those_of_the_moment(house: House) -> None:
    house.store.seconds = 1000.0
    for _ in range(2):  # to one destination, so that one waits for the other
        await house.intake.submit(house.request(key="a"))
    await asyncio.sleep(4)
    operations = operations_of(house, house.spool, Exposures())
    figures = {figure.name.removeprefix("s3daemon_"): figure.value for figure in figures_of(house, operations)}
    assert (figures["in_flight"], figures["pending"]) == (1, 1)
    assert (figures["clients"], figures["http_clients"], figures["refused"]) == (2, 5, {"NotReadable": 3})
    assert figures["oldest_pending_age_seconds"] == pytest.approx(4.0, abs=0.01)
    assert (figures["connections_warm"], figures["receivers_disabled"], figures["unreachable"]) == (2, 1, 0)
    assert figures["receiver_connections"] == {"192.0.2.1": 3, "192.0.2.2": 0}
    assert (figures["bandwidth_limit_bytes_per_second"], figures["bandwidth_limit_found"]) == (994e6 / 8, True)
