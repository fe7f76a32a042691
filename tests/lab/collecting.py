"""The daemon, which prints as it gets ready how many objects a full garbage collection would look through.

python -m lab.collecting serve
"""

from __future__ import annotations

import gc

from s3daemon import cli
from s3daemon.systemd.notify import Notifier


def main() -> None:
    """Run the daemon's command line."""
    ready = Notifier.ready

    def reporting(self: Notifier, status: str) -> None:
        print(f"{len(gc.get_objects())} objects are looked through", flush=True)
        ready(self, status)

    Notifier.ready = reporting  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
