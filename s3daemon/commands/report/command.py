"""`s3daemon report`: what became of transfers and where the time went, from the journal.

Nothing here asks the daemon or the store: it reads records, of this host or of many.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TextIO

from s3daemon.commands.report import plot as report_plot
from s3daemon.commands.report.data import write_csv, write_json
from s3daemon.commands.report.files import JournalFiles
from s3daemon.commands.report.read import from_journal, from_lines, reader
from s3daemon.commands.report.select import Collection, Entry, Selection
from s3daemon.commands.report.stats import Report, grouping
from s3daemon.commands.report.term import charts
from s3daemon.commands.report.text import lines, moment
from s3daemon.commands.report.when import usec_of
from s3daemon.config.values import duration
from s3daemon.errors import Code, S3daemonError, one_line

#: Seconds between two signs of progress, and how wide a chart is where no terminal says.
_PROGRESS_S = 0.2
_CHART_WIDTH = 100
_DURATION = duration("1ms", "30d")
_BY = """a line for each tag, host, receiver, prefix (the key up to its last slash) or prefix:N (its first N parts): the
first request, the last object stored, the time between"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    # `--since -2h`, as journalctl takes it: argparse would look for an option -2.
    parser._negative_number_matcher = re.compile(r"-[0-9]")
    parser.description = "Transfers that ended: how many, how fast, which failed, which were slow and why."
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, metavar="PATH", help="read a saved journal: a directory, or one file")
    source.add_argument("--stdin", action="store_true", help="read what `journalctl -o json --all` printed")
    which = parser.add_argument_group("which transfers; options but the first two may be given more than once")
    which.add_argument("-S", "--since", type=_when, metavar="TIME", help="recorded then or later, as for journalctl")
    which.add_argument("-U", "--until", type=_when, metavar="TIME", help="recorded then or earlier")
    for name, text in (
        ("bucket", "into this bucket"),
        ("prefix", "with a key that begins so"),
        ("tag", "with this tag"),
        ("host", "of this host"),
        ("unit", "of this instance of the service, such as s3daemon@15557"),
    ):
        which.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=text)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--by", type=_by, metavar="HOW", help=_BY)
    shown.add_argument("--limit", type=_duration, default="7s", metavar="TIME", help="a transfer's; default 7s")
    shown.add_argument("--late", type=_duration, default="10s", metavar="TIME", help="for the last object; default 10s")
    shown.add_argument("--utc", action="store_true", help="times in UTC; also those of --since and --until")
    form = shown.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one object; times in microseconds")
    form.add_argument("--csv", action="store_true", help="a line for each transfer, or with --by for each group")
    shown.add_argument("--plot", nargs="?", const="", metavar="FILE", help="draw a .png or .svg; without FILE, in text")


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    stdin: Iterable[bytes] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Carry out the command.

    Args:
        args: as `configure` described them.
        environ: COLUMNS is read of it.
        out: takes the report.
        err: takes one line when something is wrong, and progress when it is a terminal.
        stdin: what `--stdin` reads; without it, standard input.
        clock: monotonic seconds.

    Returns:
        The exit status: 0, or 1 when there is no report.
    """
    zone = UTC if args.utc else None
    try:
        selection = _selection(args, datetime.now(zone))
        plot = _plot_file(args)
        collection = Collection(selection)
        entries = _entries(args, selection, sys.stdin.buffer if stdin is None else stdin, err)
        for entry in _with_progress(entries, err, clock):
            collection.add(entry)
        report = Report.of(collection.sightings(), limit_usec=args.limit, late_usec=args.late, by=args.by or "")
        if collection.unreadable:
            print(f"records left out, cut (journalctl --all?) or of another version: {collection.unreadable}", file=err)
        if not report.sightings:
            print(f"no transfer was recorded{_period(selection, zone)}", file=err)
        if plot:
            report_plot.save(report.grouped(), plot, zone)
    except S3daemonError as exc:
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    _write(report, args, zone, _width(out, environ), out)
    return 0


def _selection(args: argparse.Namespace, now: datetime) -> Selection:
    since, until = (None if text is None else usec_of(text, now) for text in (args.since, args.until))
    if since is not None and until is not None and since > until:
        raise S3daemonError(Code.BAD_REQUEST, "--since is later than --until")
    return Selection(
        since_usec=since,
        until_usec=until,
        buckets=tuple(args.bucket),
        prefixes=tuple(args.prefix),
        tags=tuple(args.tag),
        hosts=tuple(args.host),
        units=tuple(unit if unit.endswith(".service") else f"{unit}.service" for unit in args.unit),
    )


def _plot_file(args: argparse.Namespace) -> Path | None:
    """Where to draw; found out before a long read, not after it."""
    if args.plot is None:
        return None
    if not args.plot:
        if args.json or args.csv:
            raise S3daemonError(Code.BAD_REQUEST, "--json and --csv go with --plot FILE, not with a chart in text")
        return None
    path = Path(args.plot)
    if path.suffix.lower() not in report_plot.SUFFIXES:
        raise S3daemonError(Code.BAD_REQUEST, f"--plot takes a file that ends in {' or '.join(report_plot.SUFFIXES)}")
    return path


def _entries(args: argparse.Namespace, selection: Selection, stdin: Iterable[bytes], err: TextIO) -> Iterator[Entry]:
    def note(text: str) -> None:
        print(f"note: {text}", file=err)

    if args.stdin:
        return from_lines(stdin, note)
    opener = reader()
    files = JournalFiles.saved(args.file) if args.file else JournalFiles.of_host()
    return from_journal(files, selection, opener, note)


def _with_progress(entries: Iterable[Entry], err: TextIO, clock: Callable[[], float]) -> Iterator[Entry]:
    """The same, with a line on a terminal that counts, and is gone in the end."""
    if not err.isatty():
        yield from entries
        return
    shown = clock()
    for count, entry in enumerate(entries, 1):
        yield entry
        if count % 100 == 0 and clock() - shown > _PROGRESS_S:
            shown = clock()
            print(f"\r{count} records read", end="", file=err, flush=True)
    print("\r\x1b[K", end="", file=err, flush=True)


def _write(report: Report, args: argparse.Namespace, zone: tzinfo | None, width: int | None, out: TextIO) -> None:
    if args.json:
        write_json(report, out)
    elif args.csv:
        write_csv(report, out)
    elif report.sightings:
        encoding = out.encoding or "utf-8"
        shown = [*lines(report, zone, width), ""]
        if args.plot == "":
            shown += [*charts(report.grouped(), zone, width or _CHART_WIDTH, encoding), ""]
        for line in (*shown, "What is pending has no record yet: s3daemon queue"):
            print(line.encode(encoding, "replace").decode(encoding), file=out)


def _period(selection: Selection, zone: tzinfo | None) -> str:
    since, until = selection.since_usec, selection.until_usec
    begin = "" if since is None else f" since {moment(since, zone)}"
    return begin + ("" if until is None else f" until {moment(until, zone)}")


def _width(out: TextIO, environ: Mapping[str, str]) -> int | None:
    """Of the terminal; None where the output is none."""
    if not out.isatty():
        return None
    columns = environ.get("COLUMNS", "")
    return int(columns) if columns.isdecimal() and int(columns) else os.get_terminal_size(out.fileno()).columns


def _when(text: str) -> str:
    """Text that names a point in time; which one depends on --utc."""
    try:
        usec_of(text, datetime.now(UTC))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _duration(text: str) -> int:
    """Microseconds."""
    try:
        value: float | None = _DURATION.convert(text)
    except ValueError:
        value = None
    if value is None or not _DURATION.admits(value):
        raise argparse.ArgumentTypeError(f"expected {_DURATION.expected}")
    return round(value * 1e6)


def _by(text: str) -> str:
    try:
        grouping(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text
