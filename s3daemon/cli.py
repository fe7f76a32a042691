"""The command line: `s3daemon [COMMAND]`, without one `serve`. Each command imports its own modules."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from s3daemon import __version__
from s3daemon.config.settings import Settings
from s3daemon.control import client as asking
from s3daemon.errors import S3daemonError, SettingsError, one_line
from s3daemon.journal import Journal
from s3daemon.model.record import TransferRecord
from s3daemon.sinks import choose_sink, note_on
from s3daemon.spool.spool import Entry

_COMMANDS = {
    "serve": "run the daemon (the default)",
    "check": "say what works and what does not",
    "queue": "list, retry or drop transfers",
    "status": "what is in flight right now, and how things are",
    "report": "what became of transfers, and where the time went, from the journal",
    "reload": "hand new settings to the running daemon (what ExecReload= runs)",
}
_MODULES = {
    "check": "s3daemon.commands.check.command",
    "queue": "s3daemon.commands.queue",
    "report": "s3daemon.commands.report.command",
    "status": "s3daemon.commands.status.command",
}


def main() -> None:
    """Run the command and exit with its status."""
    about = "Deliver files to S3 storage across long fat networks."
    parser = argparse.ArgumentParser(prog="s3daemon", description=about)
    parser.add_argument("--version", action="version", version=f"s3daemon {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text) for name, text in _COMMANDS.items()}
    chosen = next((word for word in sys.argv[1:] if word in ("check", "queue", "status", "report")), None)
    module = importlib.import_module(_MODULES[chosen]) if chosen else None
    if chosen and module:
        module.configure(parsers[chosen])
    args = parser.parse_args()
    try:
        match args.command:
            case "queue" if module:
                status = module.main(args, os.environ, out=sys.stdout, err=sys.stderr, dropped=_record_dropped)
            case "report" | "status" if module:
                status = module.main(args, os.environ, out=sys.stdout, err=sys.stderr)
            case "check" if module:
                status = module.main(args, os.environ, sys.stdout)
            case "reload":
                status = asking.reload(os.environ, sys.stdout, sys.stderr)
            case _:
                status = _serve()
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _serve() -> int:
    """Run the daemon and return its exit status; what keeps it from starting is logged, one line for each fault."""
    from s3daemon.service import Service
    from s3daemon.systemd.notify import Notifier
    from s3daemon.systemd.sockets import passed_sockets, stop_signals

    journal = Journal(choose_sink(os.environ), note=note_on())
    logging.getLogger().addHandler(journal.handler())
    package = logging.getLogger("s3daemon")

    async def run() -> bool:
        return await Service(settings, os.environ, journal, notifier).run(
            passed, stop_signals(asyncio.get_running_loop())
        )

    try:
        settings = Settings.from_environ(os.environ)
        journal.hide(settings.secrets())
        package.setLevel(settings.log_level.upper())
        notifier = Notifier(os.environ)
        passed = passed_sockets(os.environ)
        status = 0 if asyncio.run(run()) else 1
    except S3daemonError as exc:
        for fault in exc.faults if isinstance(exc, SettingsError) else [exc.text]:
            package.critical("cannot start: %s", one_line(fault))
        status = 1
    except Exception:
        package.critical("a bug ended the daemon", exc_info=True)
        status = 1
    journal.close(1.0)
    # A thread may be blocked by a dead file system for ever; nothing is left that waits for it.
    os._exit(status)


def _record_dropped(entries: Sequence[Entry]) -> None:
    """Record what an operator dropped while no daemon was up to do it."""
    journal = Journal(choose_sink(os.environ), note=note_on())
    for entry in entries:
        transfer = entry.transfer
        journal.record(
            TransferRecord(
                transfer_id=transfer.id,
                outcome="failed",
                file=transfer.file,
                bucket=transfer.destination.bucket,
                key=transfer.destination.key,
                size_bytes=transfer.seen.size,
                start_usec=transfer.accepted_usec,
                queue_usec=0,
                total_usec=0,
                attempts=entry.attempts,
                tags=transfer.tags,
                error="Dropped: dropped by an operator while the daemon was down",
            )
        )
    journal.close(5.0)
