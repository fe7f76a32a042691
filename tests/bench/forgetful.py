"""The daemon with a spool that writes nothing: the baseline for the cost of durability.

python -m bench.forgetful serve
"""

from __future__ import annotations

from unittest import mock

from s3daemon import cli
from s3daemon.spool.writer import Writer, WriteRequest


class ForgetfulWriter(Writer):
    """A `Writer` for which every change is durable at once, and leaves nothing on the disk."""

    def put(self, request: WriteRequest) -> None:
        """Drop the changes and wake who waits for them."""
        request.taken = True
        if request.durable is not None:
            request.durable.set_result(None)


def main() -> None:
    """Run the daemon's command line with that writer."""
    with mock.patch("s3daemon.spool.spool.Writer", ForgetfulWriter):
        cli.main()


if __name__ == "__main__":
    main()
