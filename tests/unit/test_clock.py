"""The active clock counts only the time in which the daemon runs and is not held."""

from lab.keeping import Clock

from s3daemon.clock import ActiveClock


def test_the_active_clock_runs_only_while_not_held(clock: Clock) -> None:
    """Time while held does not count; holding or resuming twice changes nothing."""
    active = ActiveClock(50.0, clock)
    assert active.now() == 50.0
    clock.now += 10
    assert active.now() == 60.0
    active.hold()
    clock.now += 100_000
    active.hold()
    assert active.now() == 60.0
    active.resume()
    clock.now += 1
    active.resume()
    clock.now += 1
    assert active.now() == 62.0
