"""`s3daemon status`: what is in flight right now and how fast, what waits, where connections go, the last exposures.

    status                     once
    status --watch [SECONDS]   again and again, in place on a terminal, until interrupted
    status --json              the daemon's whole answer; with --watch one object a line

The daemon is asked over its control socket, so this is for root and the service's own user.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from s3daemon.commands.status.text import lines
from s3daemon.commands.status.view import View, view_of
from s3daemon.control.client import Instance, NoDaemonError, add_instance, instance_of
from s3daemon.errors import S3daemonError, one_line

#: The daemon takes a sample of each upload as often.
WATCH_S = 2.0
_LEAST_WATCH_S = 0.1
_CLEAR = "\x1b[H\x1b[2J"


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="the whole answer as JSON")
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_interval,
        const=WATCH_S,
        metavar="SECONDS",
        help=f"again every {WATCH_S:g} seconds, or as many as given",
    )
    add_instance(parser)


def _interval(text: str) -> float:
    seconds = float(text)
    if not seconds >= _LEAST_WATCH_S:
        raise ValueError(text)
    return seconds


class Display(Protocol):
    """Shows views."""

    def show(self, view: View) -> None:
        """Print it below what is there."""

    def replace(self, view: View) -> None:
        """Put it in the place of the one before."""

    def close(self) -> None:
        """Give the terminal back as it was."""


class Plain:
    """Shows views as text; where there are no places to put one in, below each other.

    Args:
        out: a terminal or not.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, view: View) -> None:
        """As `Display`."""
        width = os.get_terminal_size(self._out.fileno()).columns if self._out.isatty() else None
        print(*lines(view, width, self._out.encoding or "ascii"), sep="\n", file=self._out)

    def replace(self, view: View) -> None:
        """As `Display`."""
        if self._out.isatty():
            print(_CLEAR, end="", file=self._out)
        self.show(view)
        if not self._out.isatty():
            print(file=self._out)
        self._out.flush()

    def close(self) -> None:
        """As `Display`."""


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Carry out the command.

    Args:
        args: as `configure` described them.
        environ: says where the daemon is, as `Instance.find` reads it.
        out: takes what is shown.
        err: takes one line when the daemon cannot be asked.
        sleep: waits so many seconds; KeyboardInterrupt ends a watch.

    Returns:
        The exit status: 0, or 1 when the daemon could not be asked.
    """
    place = instance_of(args, environ)
    try:
        if args.watch is None:
            _once(place, args, out)
        else:
            _watch(place, args, out, sleep)
    except S3daemonError as exc:
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    return 0


def _once(place: Instance, args: argparse.Namespace, out: TextIO) -> None:
    answer = place.ask("status")
    if args.json:
        print(json.dumps(answer, indent=2), file=out)
    else:
        _screen(out).show(view_of(answer))


def _watch(place: Instance, args: argparse.Namespace, out: TextIO, sleep: Callable[[float], None]) -> None:
    screen = _screen(out)
    try:
        while True:
            answer = _asked(place)
            if args.json:
                print(json.dumps(answer), file=out, flush=True)
            else:
                screen.replace(view_of(answer) if "status" in answer else View("down", "", str(answer["text"]), ()))
            sleep(args.watch)
    except KeyboardInterrupt:
        pass
    finally:
        screen.close()


def _asked(place: Instance) -> Mapping[str, object]:
    """The answer; while the daemon is being restarted, that there is none."""
    try:
        return place.ask("status")
    except NoDaemonError as exc:
        return {"state": "down", "text": exc.text}


def _screen(out: TextIO) -> Display:
    """Rich's where it is installed and the output is a terminal."""
    if out.isatty():
        try:
            from s3daemon.commands.status.screen import Screen
        except ImportError:
            pass
        else:
            return Screen(out)
    return Plain(out)
