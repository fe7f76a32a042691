"""The metrics of the present state say what is true at the moment."""

import asyncio

import pytest
from fakes import House, away, figures_of, flying_with, operations_of

from s3daemon.errors import AttemptError
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


@pytest.mark.parametrize("is_away", [False, True])
@flying_with(House)
async def test_a_store_that_answers_and_stores_nothing_is_failing_and_not_away(house: House, is_away: bool) -> None:
    """One of both at a time, so that one outage raises one alert."""
    house.store.answer = away if is_away else lambda _: AttemptError("TemporaryRedirect", "elsewhere", status=307)
    for key in "abc":
        await house.intake.submit(house.request(key=key))
    operations = operations_of(house, house.spool, Exposures())
    found = []
    for answer in (house.store.answer, lambda _: None):
        house.store.answer = answer
        await asyncio.sleep(100)
        figures = {figure.name: figure.value for figure in figures_of(house, operations)}
        found.append((figures["s3daemon_away"], figures["s3daemon_failing"]))
    assert found == [(is_away, not is_away), (False, False)]
