"""The rates that follow from samples: between any two times, over the last bytes, and while nothing is acknowledged."""

import pytest

from s3daemon.network.uploads.samples import GAP_S, OPENING_ROUND_TRIPS, Samples


def samples(*given: tuple[float, int]) -> Samples:
    """Samples of a body that began at 10 s."""
    made = Samples()
    made.begin(10.0)
    for at, acked in given:
        made.add(at, acked)
    return made


@pytest.mark.parametrize(
    ("since", "until", "rate"),
    [
        (10.0, 11.0, 100.0),
        (10.5, 11.5, 200.0),  # half of a sample's bytes, and half of the next one's
        (11.0, 99.0, 300 / 88),  # nothing is known of what follows the last sample
        (11.0, 11.0, 0.0),
        (0.0, 11.0, 100 / 11),
    ],
)
def test_a_rate_is_interpolated(since: float, until: float, rate: float) -> None:
    assert samples((11.0, 100), (12.0, 400)).rate(since, until) == pytest.approx(rate)


def test_a_recent_rate_begins_with_the_body_at_the_earliest() -> None:
    made = samples((11.0, 100), (12.0, 400))
    assert (made.recent_rate(1.0), made.recent_rate(60.0), made.age_s) == (300.0, 200.0, 2.0)


def test_the_time_of_the_last_bytes() -> None:
    made = samples((11.0, 100), (12.0, 400), (13.0, 400))
    assert [made.time_of_last(count) for count in (0, 1, 300, 301, 400, 401)] == [13.0, 11.0, 11.0, 10.0, 10.0, None]


def test_silence_ends_with_a_byte_and_does_not_count_a_stop_of_this_process() -> None:
    made = samples((10.25, 0), (10.5, 0))
    assert made.silent_s == 0.5
    made.add(99.0, 0)
    assert made.silent_s == 0.5 + GAP_S
    made.add(99.1, 1)
    assert made.silent_s == 0.0


def test_a_rate_that_grows_is_that_of_a_new_connection_for_some_round_trips() -> None:
    growing = samples((10.1, 100), (10.2, 300))
    assert growing.is_speeding_up(0.2, 0.1)
    assert not samples((10.1, 100), (10.2, 220)).is_speeding_up(0.2, 0.1)
    assert not growing.is_speeding_up(0.2, 0.19 / OPENING_ROUND_TRIPS)
