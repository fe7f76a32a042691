"""The command line: `s3daemon [COMMAND]`; without a command, `serve`.

Each command has a module with `configure(parser)` and `main(args, environ, ...)`. Only that of the command in question
is imported: `reload`, for which systemd waits, takes 0.06 s, while importing `check` alone takes 0.3 s.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from s3daemon import __version__

_COMMANDS = {
    "serve": ("", "run the daemon (the default)"),
    "check": ("s3daemon.commands.check.command", "say what works and what does not"),
    "queue": ("s3daemon.commands.queue", "list, retry or drop transfers"),
    "status": ("s3daemon.commands.status.command", "show what is in flight now, and what is wrong"),
    "report": ("s3daemon.commands.report.command", "summarize how transfers ended, and where the time went"),
    "reload": ("s3daemon.commands.reload", "pass new settings to the running daemon (ExecReload= runs it)"),
}


#: The exit status after an interrupt from the keyboard, as of programs that SIGINT ends.
_INTERRUPTED = 130

#: How long a process lives on after the entry that says why it ends: journald looks up whose entry one is when it reads
#: it, and `journalctl -u` does not show those of a process that was gone by then, which happened once in 100 times.
_LAST_ENTRY_S = 0.2

#: What `--help` of a command ends with: examples, then what its exit status means.
_EPILOGS = {
    "check": ("s3daemon check\ns3daemon check raw/tests --instance 15557", "1: something does not work"),
    "queue": ("s3daemon queue --failed\ns3daemon queue retry 0123456789abcdef", "1: refused, or an id is unknown"),
    "status": ("s3daemon status --watch", "1: the daemon cannot be reached"),
    "report": (
        "s3daemon report --since yesterday --by tag\n"
        "s3daemon report --since -12h --late-only --expect 46 --plot night.png\n"
        "ssh node2 journalctl -u s3daemon -o json --all | s3daemon report --stdin",
        "1: the journal cannot be read, or the picture cannot be drawn",
    ),
    "reload": ("systemctl reload s3daemon", "1: refused, the previous settings stay in force"),
    "serve": ("systemctl start s3daemon.socket", "1: it cannot start; the journal says why"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status.

    Args:
        argv: the words after `s3daemon`; None for those of this process, whose standard streams are then taken over.
    """
    if argv is None:
        _take_streams()
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
        finally:  # argparse ends the process itself after --help
            sys.stdout.flush()
    except _OutputError as exc:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the rest would be written at the end
        if not isinstance(exc.__cause__, BrokenPipeError):  # `| head` has read enough
            _complain(str(exc))
        status = 1
    except OSError as exc:
        _complain(str(exc))
        status = 1
    except ImportError as exc:
        _complain(f"the installation is not complete, {exc}: install the package again")
        status = 1
    except KeyboardInterrupt:
        status = _INTERRUPTED
    sys.exit(status)


def _complain(text: str) -> None:
    """Print a line on standard error, if that can be written."""
    try:
        print(f"s3daemon: {text}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # or Python would try again at the end, and exit with 120


def _run(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    command = _command_in(argv)
    name, _ = _COMMANDS.get(command, ("", ""))
    module = importlib.import_module(name) if name else None
    args = _parser({command: module} if module else {}).parse_args(argv)
    if module is None:
        _serve()
    try:
        return int(module.main(args, os.environ, out=sys.stdout, err=sys.stderr))
    except argparse.ArgumentError as exc:
        parser: argparse.ArgumentParser = args.parser
        parser.error(str(exc))


class _OutputError(Exception):
    """Standard output cannot be written; its cause says why. No OSError, which argparse and others pass over."""


class _Output(io.FileIO):
    """Standard output, which raises errors of its own, `_OutputError`."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as exc:
            raise _OutputError(f"cannot write to standard output: {exc.strerror}") from exc


def _take_streams() -> None:
    """Make the standard streams what every command expects, also those that are closed or of a narrow encoding."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # `>&-`; no other file may take its number, and what is written to it fails
            os.open(os.devnull, os.O_RDONLY)
    encoding = sys.stdout.encoding if sys.stdout else None
    output = io.BufferedWriter(_Output(1, "wb", closefd=False))
    sys.stdout = io.TextIOWrapper(output, encoding, "backslashreplace", line_buffering=output.isatty())
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


class _Parser(argparse.ArgumentParser):
    """Takes options by their full names only, and refuses what it does not know with its own usage."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an argument that is empty or unknown ends the process."""
        if any(re.fullmatch("(--[^=]*=)?", word) for word in args):
            self.error("an argument is empty: is a variable not set?")
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def _command_in(argv: Sequence[str]) -> str:
    """Find the first word that is no option, which names the command; the full parser judges the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("command", nargs="?", default="serve")
    return str(parser.parse_known_args(argv)[0].command)


def full_parser() -> argparse.ArgumentParser:
    """Make the parser in which every command has its options, for what is generated from it."""
    return _parser({command: importlib.import_module(name) for command, (name, _) in _COMMANDS.items() if name})


def _parser(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    """Make a parser of all commands, in which those of these modules have their options."""
    parser = _Parser(
        prog="s3daemon",
        description="Deliver files to S3 storage over networks with a long delay.",
        epilog="Exit status: 0 for success, 1 for a failure, 2 for a wrong command line.\nManual: man s3daemon",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"s3daemon {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, (_, text) in _COMMANDS.items():
        examples, status = _EPILOGS[command]
        lines = "\n".join(f"  {line}" for line in examples.splitlines())
        made = commands.add_parser(
            command,
            help=text,
            epilog=f"examples:\n{lines}\n\nexit status:\n  0: done; {status}; 2: a wrong command line",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(parser=made)
        if command in modules:
            modules[command].configure(made)
    return parser


def _serve() -> NoReturn:
    """Run the daemon; log each fault that keeps it from starting; never return."""
    import asyncio
    import logging

    from s3daemon.config.settings import Settings, retired
    from s3daemon.errors import S3daemonError, one_line
    from s3daemon.journal import Journal, choose_sink, warn_on
    from s3daemon.service import Service
    from s3daemon.systemd.notify import Notifier
    from s3daemon.systemd.sockets import passed_sockets, stop_signals

    journal = Journal(choose_sink(os.environ), warn=warn_on())
    logging.getLogger().addHandler(journal.handler())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # its warnings name neither connection nor transfer
    package = logging.getLogger("s3daemon")

    async def run() -> bool:
        return await Service(settings, os.environ, journal, notifier).run(
            passed, stop_signals(asyncio.get_running_loop())
        )

    notifier = Notifier({})
    try:
        notifier = Notifier(os.environ)
        settings = Settings.from_environ(os.environ)
        journal.hide(settings.secrets())
        package.setLevel(settings.log_level.upper())
        for text in retired(os.environ):
            package.warning("%s", text)
        passed = passed_sockets(os.environ)
        status = 0 if asyncio.run(run()) else 1
    except S3daemonError as exc:
        for fault in exc.faults:
            package.critical("cannot start: %s: %s", exc.code, one_line(fault))
        # systemd shows it until the next start: the journal's last lines may be about its own attempts.
        notifier.status(f"cannot start: {exc.code}: {exc.brief}")
        status = 1
    except Exception:
        package.critical("a bug ended the daemon", exc_info=True)
        status = 1
    journal.close(1.0)
    if status:
        time.sleep(_LAST_ENTRY_S)
    # A thread may be blocked in a dead file system for ever; os._exit does not wait for it.
    os._exit(status)
