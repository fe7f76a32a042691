"""Headless Chromium, with a profile of its own that is thrown away."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.env import clean_env, program
from lab.processes import Process, start

_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--no-proxy-server",
)  # fmt: skip
"""Only the page is loaded, also as root; no other server is contacted."""


@contextmanager
def browser(directory: Path, url: str, *options: str) -> Iterator[Process]:
    """Show a page for the time of a ``with`` block; raises UnavailableError without Chromium.

    Args:
        directory: for the profile, which must not be there.
        url: the page.
        options: further ones, such as ``--window-size=400,800``, ``--screenshot=FILE``, with which it ends by itself.
    """
    home = directory / "chromium"
    home.mkdir()
    environ = clean_env(HOME=str(home))
    command = (program("chromium"), *_QUIET, f"--user-data-dir={home / 'profile'}", *options, url)
    with start(*command, name="chromium", env=environ) as process:
        yield process
