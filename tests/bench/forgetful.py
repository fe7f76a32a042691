"""The daemon with a spool that stores nothing: the baseline for the cost of durability.

python -m bench.forgetful serve
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import s3daemon.service
from s3daemon import cli
from s3daemon.spool.exposures import KeptExposures
from s3daemon.spool.open_uploads import OpenUploads
from s3daemon.spool.rows import Hint


class ForgetfulSpool:
    """A stand-in for `spool.Spool` whose changes are done at once and leave nothing on the disk."""

    active_base_s, last_seq, fault = 0.0, 0, ""

    def __init__(self) -> None:
        self.open_uploads = OpenUploads()
        self.kept = KeptExposures()
        self.hint = Hint()

    @classmethod
    def open(cls, directory: Path, **_: object) -> ForgetfulSpool:
        """Create the directory, in which the control socket is made, and nothing in it."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls()

    def entries(self, **_: object) -> list[Any]:
        """Return no rows."""
        return []

    async def _nothing(self, *_: object, **__: object) -> int:
        return 0

    add = update = start_attempt = fail = retry = drop = restore = close = _nothing

    def _nothing_lazily(self, *_: object, **__: object) -> None:
        pass

    record_attempt = remove = clear_failures = save_loss = mark_notified = save_clock = save_hint = expire = (
        _nothing_lazily
    )


def main() -> None:
    """Run the daemon's command line with that spool."""
    s3daemon.service.Spool = ForgetfulSpool  # type: ignore[assignment, attr-defined]
    cli.main()


if __name__ == "__main__":
    main()
