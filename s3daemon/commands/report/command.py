"""`s3daemon report`: its options, and the steps from journal entries to the output.

Nothing here asks the daemon or the store: the report reads records, of this host or of many.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, tzinfo
from pathlib import Path
from typing import TextIO

from rich.progress import Progress, TextColumn

from s3daemon.commands.arguments import of_kind
from s3daemon.commands.report.data import write_csv, write_json
from s3daemon.commands.report.plot import picture
from s3daemon.commands.report.read import Note, from_journal, from_lines, usec_of
from s3daemon.commands.report.select import Collection, JournalEntry, Selection
from s3daemon.commands.report.stats import EXPOSURES_BY, GROUPINGS, Report
from s3daemon.commands.report.text import lines
from s3daemon.commands.report.why import Delays
from s3daemon.commands.table import console_of, width_of
from s3daemon.config.values import count, duration
from s3daemon.errors import S3daemonError, one_line
from s3daemon.units import moment

_duration, _count = of_kind(duration("1ms", "30d")), of_kind(count(1, 1_000_000))
_BY = """a line for each tag, host, receiver or prefix (the key up to its last slash): the first request, the last
object stored, the time between; files without a tag by prefix"""
_LATE_ONLY = "only exposures that are late, lost or incomplete; by tag unless --by prefix is given"
_EXPECT = "the number of files of an exposure; by default the number that most exposures have"


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    # `--since -2h` is what journalctl takes; argparse would look for an option -2. Its public interface has no way to
    # say so; this name is the same in Python 3.11 to 3.14.
    parser._negative_number_matcher = re.compile(r"-[0-9]")
    parser.description = "Transfers that ended: how many, how fast, which failed, which were slow and why."
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--file", type=Path, metavar="PATH", help="read a saved journal: a directory, or one file")
    source.add_argument("--stdin", action="store_true", help="read what `journalctl -o json --all` printed")
    which = parser.add_argument_group("which transfers; all options except --since and --until may be repeated")
    which.add_argument("-S", "--since", metavar="TIME", help="recorded at TIME or later; formats as for journalctl")
    which.add_argument("-U", "--until", metavar="TIME", help="recorded at TIME or earlier")
    for name, text in (
        ("bucket", "into this bucket"),
        ("prefix", "with a key that begins with PREFIX"),
        ("tag", "with this tag"),
        ("host", "of this host"),
        ("unit", "of this unit, such as s3daemon@15557; by default s3daemon and all its instances"),
    ):
        which.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=text)
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--by", choices=tuple(GROUPINGS), metavar="HOW", help=_BY)
    shown.add_argument(
        "--limit", type=_duration, default="7s", metavar="TIME", help="the longest time a transfer may take; default 7s"
    )
    shown.add_argument(
        "--late", type=_duration, default="10s", metavar="TIME", help="when an exposure is late; default 10s"
    )
    shown.add_argument("--late-only", action="store_true", help=_LATE_ONLY)
    shown.add_argument("--expect", type=_count, default=0, metavar="N", help=_EXPECT)
    shown.add_argument("--utc", action="store_true", help="show times in UTC, and read --since and --until so")
    form = shown.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one object; times in microseconds")
    form.add_argument("--csv", action="store_true", help="a line for each transfer, or with --by for each group")
    shown.add_argument("--plot", type=Path, metavar="FILE", help="draw a .png or .svg as well")


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    stdin: Iterable[bytes] | None = None,
) -> int:
    """Carry out the command; raise argparse.ArgumentError where options do not go together."""
    zone = UTC if args.utc else None
    notes: list[str] = []
    try:
        selection = _selection(args)
        _check_output(args)
        collection, delays = Collection(selection), Delays()
        entries = _with_progress(_entries(args, selection, stdin, notes.append), err)
        complete = _collect(entries, selection, collection, delays, notes)
        delays.sort()
        by = args.by or ("tag" if args.late_only or args.expect else "")
        limits = {"limit_usec": round(args.limit * 1e6), "late_usec": round(args.late * 1e6), "expect": args.expect}
        report = Report.of(collection.transfers(), **limits, by=by, delays=delays, refused=collection.refused)
        if not report.transfers:
            notes.append(f"no transfer was recorded{_period(selection, zone)}")
        if args.plot:
            picture.save(report.grouped(), args.plot, zone)
        if args.late_only:
            report = report.late_only()
    except S3daemonError as exc:
        _print_notes(notes, err)
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    _print_notes(notes, err)
    _write(report, args, zone, out)
    return 0 if complete else 1


def _collect(
    entries: Iterable[JournalEntry], selection: Selection, collection: Collection, delays: Delays, notes: list[str]
) -> bool:
    """Add the entries that the selection trusts, and note what is missing; return whether all could be read.

    Raises:
        S3daemonError: nothing could be read.
    """
    untrusted, complete = 0, True
    try:
        for entry in entries:
            if selection.trusts(entry):
                collection.add(entry)
                delays.add(entry)
            else:
                untrusted += 1
    except S3daemonError as exc:
        # A damaged entry ends journalctl's output, and what came before it may be the night.
        if not collection.transfers():
            raise
        complete = False
        notes.append(f"the report is not complete, what follows is missing: {exc.code}: {one_line(exc.text)}")
    if collection.unreadable:
        what = "cut (journalctl --all?), of another version, or with impossible numbers"
        notes.append(f"records left out, {what}: {collection.unreadable}")
    if collection.lost:
        what = "as the journal did not take them in time: transfers may be missing here"
        notes.append(f"entries lost, {what}: {collection.lost}")
    if untrusted and not selection.units:
        what = "not written by s3daemon.service or s3daemon@*.service (--unit names others)"
        notes.append(f"entries left out, {what}: {untrusted}")
    return complete


def _print_notes(notes: Iterable[str], err: TextIO) -> None:
    for text in notes:
        print(f"note: {text}", file=err)


def _selection(args: argparse.Namespace) -> Selection:
    since, until = _moment(args, "since"), _moment(args, "until")
    if since is not None and until is not None and since > until:
        raise argparse.ArgumentError(None, "--since is later than --until")
    return Selection(
        since_usec=since,
        until_usec=until,
        buckets=tuple(args.bucket),
        prefixes=tuple(args.prefix),
        tags=tuple(args.tag),
        hosts=tuple(args.host),
        units=tuple(unit if unit.endswith(".service") else f"{unit}.service" for unit in args.unit),
        of_this_host=not (args.stdin or args.file),
    )


def _moment(args: argparse.Namespace, option: str) -> int | None:
    """Return the time that an option names, in microseconds since the epoch; None where it is not given."""
    text = getattr(args, option)
    try:
        return None if text is None else usec_of(text, utc=args.utc)
    except ValueError as exc:
        raise argparse.ArgumentError(None, f"argument --{option}: {exc}") from exc


def _check_output(args: argparse.Namespace) -> None:
    if args.plot and args.plot.suffix.lower() not in picture.SUFFIXES:
        raise argparse.ArgumentError(None, f"--plot takes a file that ends in {' or '.join(picture.SUFFIXES)}")
    if args.late_only and args.by not in (None, *EXPOSURES_BY):
        raise argparse.ArgumentError(None, f"--late-only shows exposures: --by {' or '.join(EXPOSURES_BY)}")


def _entries(
    args: argparse.Namespace, selection: Selection, stdin: Iterable[bytes] | None, note: Note
) -> Iterator[JournalEntry]:
    if args.stdin:
        return from_lines(sys.stdin.buffer if stdin is None else stdin, note)
    return from_journal(args.file, selection, note)


def _with_progress(entries: Iterator[JournalEntry], err: TextIO) -> Iterator[JournalEntry]:
    """Yield the same, and count on a terminal meanwhile, in a line that is erased in the end."""
    column = TextColumn("{task.completed} records read")
    with Progress(column, console=console_of(err), transient=True, disable=not err.isatty()) as progress:
        yield from progress.track(entries)


def _write(report: Report, args: argparse.Namespace, zone: tzinfo | None, out: TextIO) -> None:
    if args.json:
        write_json(report, out)
    elif args.csv:
        write_csv(report, out)
    elif report.transfers or report.refused:
        for line in lines(report, zone, width_of(console_of(out))):
            print(line, file=out)
        print("\nPending transfers have no record yet: see s3daemon queue", file=out)


def _period(selection: Selection, zone: tzinfo | None) -> str:
    since, until = selection.since_usec, selection.until_usec
    begin = "" if since is None else f" since {moment(since, zone)}"
    return begin + ("" if until is None else f" until {moment(until, zone)}")
