"""`s3daemon reload`: pass the operator's variables to the running daemon. ExecReload= runs it.

systemd reads the environment file again for ExecReload=, so the environment of this process has the new settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TextIO

from s3daemon.config.settings import of_operator
from s3daemon.control.client import Instance
from s3daemon.errors import S3daemonError, SettingsError


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line: it takes nothing, for the environment says all."""
    parser.description = "Pass the settings in the environment to the running daemon; systemctl reload does this."


def main(args: argparse.Namespace, environ: Mapping[str, str], *, out: TextIO, err: TextIO) -> int:
    """Carry out the command."""
    # What came of it the daemon itself logs; where systemd runs this, the output would go to the same journal again.
    logged = "JOURNAL_STREAM" in environ
    try:
        invocation = environ.get("INVOCATION_ID", "")
        answer = Instance.find(environ).ask("reload", environ=of_operator(environ), invocation=invocation)
    except SettingsError as exc:
        if not logged:
            print(*exc.faults, "refused: the previous settings stay in force", sep="\n", file=err)
        return 1
    except S3daemonError as exc:
        print(f"{exc.code}: {exc.text}", file=err)
        return 1
    if logged:
        return 0
    applied, restart = answer.get("applied"), answer.get("restart")
    if isinstance(applied, list) and applied:
        print("in force:", ", ".join(map(str, applied)), file=out)
    if isinstance(restart, list) and restart:
        print("takes effect at the next restart:", ", ".join(map(str, restart)), file=out)
    if not applied and not restart:
        print("nothing changed", file=out)
    return 0
