"""The type of clocks that are passed in, and a clock that counts only time in which transfers can proceed."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds of some monotonic clock, passed in so that tests can turn it."""


class ActiveClock:
    """Active seconds: those in which the daemon ran and its queue was not held, over all its lives. It starts running.

    Args:
        base: active seconds before this process, from the spool.
        monotonic: a monotonic clock in seconds.
    """

    def __init__(self, base: float, monotonic: Clock) -> None:
        self._base = base
        self._monotonic = monotonic
        self._since: float | None = monotonic()

    def now(self) -> float:
        """Return the active seconds so far; never goes back."""
        return self._base + (0.0 if self._since is None else self._monotonic() - self._since)

    def hold(self) -> None:
        """Stop, if it runs."""
        self._base, self._since = self.now(), None

    def resume(self) -> None:
        """Run again, if it was stopped."""
        if self._since is None:
            self._since = self._monotonic()
