"""The daemon, with what it does each half minute done every other second.

python -m lab.ticking serve
"""

from __future__ import annotations

from s3daemon import cli, service

if __name__ == "__main__":
    service.TICK_EVERY_S = 0.0
    cli.main()
