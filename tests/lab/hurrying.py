"""The daemon, with limits that take long to pass made short.

python -m lab.hurrying serve
"""

from __future__ import annotations

from s3daemon import cli, service
from s3daemon.delivery.health import outages
from s3daemon.ingress import listener, server

if __name__ == "__main__":
    service.TICK_EVERY_S = 0.0
    outages.UNREACHABLE_AFTER_S = 2.0
    server.LINE_LIMIT_S = 2.0
    server.REPLY_LIMIT_S = listener.CLOSE_LIMIT_S = 1.0
    cli.main()
