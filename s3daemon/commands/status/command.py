"""`s3daemon status`: transfers in flight and their rates, waiting transfers, receivers, and the last exposures.

    status                     once
    status --watch [SECONDS]   again and again, in place on a terminal, until interrupted or terminated
    status --json              the daemon's whole answer; with --watch one object on each line

The daemon is asked over its control socket, so this is for root and the service's own user.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from rich.console import Group
from rich.live import Live
from rich.text import Text

from s3daemon.commands.arguments import add_instance, instance_of, of_kind
from s3daemon.commands.status.view import View, view_of
from s3daemon.commands.table import console_of, texts, width_of
from s3daemon.config.values import duration
from s3daemon.control.client import Instance, NoDaemonError
from s3daemon.control.status import Status
from s3daemon.errors import S3daemonError, one_line
from s3daemon.units import plural

#: The daemon takes a sample of each upload at the same interval.
WATCH_S = 2.0
_HEADS = {"OK": "bold white on dark_cyan", **dict.fromkeys(("AWAY", "FAILING", "UNREACHABLE"), "bold black on orange3")}
_ALARM = "bold white on dark_red"


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=of_kind(duration("100ms", "1d")),
        const=WATCH_S,
        metavar="SECONDS",
        help=f"repeat every {WATCH_S:g} seconds, or every SECONDS",
    )
    add_instance(parser)


class Screen:
    """Shows views: on a terminal in colours and, where wanted, in place; else as lines of text.

    Args:
        out: a terminal or not.
        width: of the terminal, where it is known better.
    """

    def __init__(self, out: TextIO, width: int | None = None) -> None:
        self._console = console_of(out, width)
        self._live: Live | None = None

    def show(self, view: View) -> None:
        """Print a view below what is there."""
        for text in self._texts(view):
            self._console.print(text, soft_wrap=True)

    def replace(self, view: View) -> None:
        """Put a view in the place of the one before; without a terminal, below it."""
        if width_of(self._console) is None:
            self.show(view)
            self._console.print()
            self._console.file.flush()
            return
        if self._live is None:
            self._live = Live(console=self._console, screen=True, auto_refresh=False)
            self._live.start()
        lines = [line for text in self._texts(view) for line in text.wrap(self._console, self._console.width)]
        if (hidden := len(lines) - self._console.height) > 0:
            hidden += 1  # the line that says so hides one more
            lines[-hidden:] = [Text(f"{plural(hidden, 'more line')}: make the terminal higher", style="reverse")]
        self._live.update(Group(*lines), refresh=True)

    def close(self) -> None:
        """Give the terminal back as it was."""
        if self._live is not None:
            self._live.stop()

    def _texts(self, view: View) -> Iterator[Text]:
        if view.about:
            yield Text(view.about, style="dim")
        yield Text.assemble((f"{view.head}:", _HEADS.get(view.head, _ALARM)), " ", view.line)
        for table in view.tables:
            yield Text()
            yield from texts(table, width_of(self._console))


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Carry out the command."""
    instance = instance_of(args, environ)
    try:
        if args.watch is None:
            _once(instance, args, out)
        else:
            _watch(instance, args, out, sleep)
    except S3daemonError as exc:
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    return 0


def _once(instance: Instance, args: argparse.Namespace, out: TextIO) -> None:
    answer = instance.ask("status")
    if args.json:
        print(json.dumps(answer, indent=2), file=out)
    else:
        Screen(out).show(view_of(Status.from_dict(answer)))


def _watch(instance: Instance, args: argparse.Namespace, out: TextIO, sleep: Callable[[float], None]) -> None:
    screen = Screen(out)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `timeout` does; the terminal is given back
    try:
        while True:
            try:
                answer = instance.ask("status")
            except NoDaemonError as exc:  # it is being restarted
                answer = {"state": "down", "text": exc.text}
            if args.json:
                print(json.dumps(answer), file=out, flush=True)
            elif answer["state"] == "down":
                screen.replace(View("DOWN", "", one_line(str(answer["text"]))))
            else:
                screen.replace(view_of(Status.from_dict(answer)))
            sleep(args.watch)
    except KeyboardInterrupt:
        pass
    finally:
        screen.close()
        signal.signal(signal.SIGTERM, before)
