"""The daemon, which prints that it begins to recover transfers, and takes a second longer for it.

python -m lab.recovering serve
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from s3daemon import cli
from s3daemon.delivery.uploader import Uploader
from s3daemon.spool.spool import Entry


def main() -> None:
    """Run the daemon's command line."""
    recover = Uploader.recover

    def slowly(self: Uploader, entries: Iterable[Entry]) -> None:
        print("transfers are being recovered", flush=True)
        time.sleep(1)
        recover(self, entries)

    Uploader.recover = slowly  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
