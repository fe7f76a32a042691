"""`s3daemon queue`: list what is in flight, pending, held and failed; retry or drop it.

    queue [--json] [--failed]       list; `control.rows` explains the states
    queue retry ID...|--all         try now: failed transfers become pending again, and delays end
    queue drop ID...|--all-failed   give up; an attempt in flight is cancelled and its clients are notified

While the daemon runs it is asked over its control socket; otherwise the spool is opened under its lock, and never
created. For root and the service's own user.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, TypeVar

from s3daemon.commands.arguments import add_instance, instance_of
from s3daemon.commands.table import Column, Table, console_of, lines, width_of
from s3daemon.control.client import Instance, NoDaemonError
from s3daemon.control.rows import Row, row_of
from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.model.exposure import loss_of
from s3daemon.model.ids import id_of
from s3daemon.units import plural, size, span

if TYPE_CHECKING:
    from s3daemon.journal import Sink
    from s3daemon.spool.rows import Entry
    from s3daemon.spool.spool import Spool

_T = TypeVar("_T")

#: Ids in one request to the daemon, well below `control.client.MAX_REQUEST`.
_BATCH = 10_000
#: A journal that does not take the records of dropped transfers is waited for so long, seconds; of 54 000 it takes ten.
_JOURNAL_S = 60.0
_DROPPED = "dropped by an operator while the daemon was down"

#: The file is the first to give way, its name being mostly the key's; nothing else is ever cut.
_COLUMNS = (
    Column("ID"),
    Column("STATE"),
    Column("AGE", align="right"),
    Column("ATTEMPTS", align="right"),
    Column("NEXT", align="right"),
    Column("SIZE", align="right"),
    Column("DESTINATION", place="fold"),
    Column("LAST ERROR", place="fold"),
    Column("FILE", least=12, place="drop"),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="an array of objects, one on each line")
    parser.add_argument("--failed", action="store_true", help="only transfers that failed permanently")
    add_instance(parser)
    actions = parser.add_subparsers(dest="action", metavar="retry|drop")
    retry = actions.add_parser("retry", help="try now: failed transfers become pending again, and delays end")
    drop = actions.add_parser("drop", help="give up; an attempt in flight is cancelled and its clients are notified")
    for action, option, what in (
        (retry, "--all", "every transfer"),
        (drop, "--all-failed", "every transfer that failed permanently"),
    ):
        add_instance(action)
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument(option, action="store_true", dest="every", help=what)
        ids_help = "as listed, or the UUID of an answer over HTTP"
        which.add_argument("ids", nargs="*", default=[], metavar="ID", type=id_of, help=ids_help)


def record_dropped(entries: Sequence[Entry], sink: Sink | None = None) -> None:
    """Write the records of transfers that were dropped while no daemon ran, as the daemon would have.

    Args:
        entries: their rows; they were pending.
        sink: takes the records; by default the journal, wherever standard error leads, or text on a host without one.
    """
    from s3daemon.delivery.decision import LastError
    from s3daemon.delivery.records import record_of
    from s3daemon.delivery.schedule import QueuedTransfer
    from s3daemon.journal import JOURNAL_SOCKET, Journal, journal_sink, text_sink, warn_on

    sink = sink or (journal_sink() if JOURNAL_SOCKET.is_socket() else text_sink())
    journal = Journal(sink, warn=warn_on(), limit=len(entries))
    for entry in entries:
        queued = QueuedTransfer.of(entry)
        queued.last_error = LastError(Code.DROPPED, _DROPPED)
        journal.record(record_of(queued, None, now=time.monotonic(), wall=time.time()))
    journal.close(_JOURNAL_S)


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    on_dropped: Callable[[Sequence[Entry]], None] = record_dropped,
) -> int:
    """Carry out the command; raise argparse.ArgumentError where options do not go together."""
    if args.action and (args.json or args.failed):
        raise argparse.ArgumentError(None, f"--json and --failed are for the list; {args.action} takes neither")
    instance = instance_of(args, environ)
    try:
        if args.action is None:
            _list(_rows(instance, failed_only=args.failed), as_json=args.json, out=out)
            return 0
        done, notes = _act(instance, args.action, None if args.every else args.ids, on_dropped)
    except S3daemonError as exc:
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    what = "will be tried again" if args.action == "retry" else "dropped"
    unknown = sorted(set(args.ids) - done)
    if done or not unknown:
        print(f"{len(done)} {what}{notes}", file=out)
    for id_ in unknown:
        print(f"{Code.UNKNOWN_TRANSFER}: {one_line(id_, 40)} is not in the queue", file=err)
    return 1 if unknown else 0


def _list(rows: Sequence[Row], *, as_json: bool, out: TextIO) -> None:
    if as_json:  # one array with an object on each line, so that line tools can read it too
        print("[\n" + ",\n".join(json.dumps(row.as_dict()) for row in rows) + "\n]", file=out)
        return
    out.writelines(f"{line}\n" for line in lines(table(rows), width_of(console_of(out))))
    print(total(rows), file=out)


def table(rows: Iterable[Row]) -> Table:
    """The listing."""
    return Table(_COLUMNS, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.id,
        row.state if row.state != "failed" or row.notified else "failed, client not notified",
        span(row.age_s),
        str(row.attempts),
        "" if row.next_in_s is None else span(row.next_in_s),
        size(row.size_bytes),
        row.destination,
        f"{row.code}: {row.text}" if row.code else "",
        row.file,
    )


def total(rows: Sequence[Row]) -> str:
    """One line that counts the transfers by state."""
    if not rows:
        return "nothing in the queue"
    states = Counter(row.state for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    oldest = span(max(row.age_s for row in rows))
    transfers = f"{plural(len(rows), 'transfer')}, {size(sum(row.size_bytes for row in rows))}"
    return f"{transfers}: {counts}; the oldest {oldest} old"


def _rows(instance: Instance, *, failed_only: bool) -> list[Row]:
    try:
        return _ask_rows(instance, failed_only=failed_only)
    except NoDaemonError:
        entries = _with_spool(instance, _entries)
    wall = time.time()
    wanted = (entry for entry in entries if entry.failed or not failed_only)
    return [
        row_of(entry, "failed" if entry.failed else "pending", age_s=entry.transfer.age_s(wall)) for entry in wanted
    ]


def _ask_rows(instance: Instance, *, failed_only: bool) -> list[Row]:
    members = instance.ask("queue", failed=failed_only).get("transfers")
    return [Row.from_dict(member) for member in (members if isinstance(members, list) else ())]


def _act(
    instance: Instance, action: str, ids: Sequence[str] | None, on_dropped: Callable[[Sequence[Entry]], None]
) -> tuple[set[str], str]:
    """Carry out `action` on those ids, or on all that it is meant for.

    Returns:
        The ids that were found; and what the daemon says about it, to be appended to the count of them.
    """
    with suppress(NoDaemonError):
        return _ask_to_act(instance, action, ids)
    dropped: list[Entry] = []
    done = _with_spool(instance, lambda spool: _act_on(spool, action, ids, dropped))
    if dropped:
        on_dropped(dropped)  # the spool is free by then: a journal that stands still keeps no daemon from starting
    return done, ""


def _ask_to_act(instance: Instance, action: str, ids: Sequence[str] | None) -> tuple[set[str], str]:
    if ids is None and action == "retry":
        return result_of([instance.ask("retry", all=True)])
    given = [row.id for row in _ask_rows(instance, failed_only=True)] if ids is None else ids
    batches = [given[at : at + _BATCH] for at in range(0, len(given), _BATCH)]
    return result_of([instance.ask(action, ids=batch) for batch in batches])


async def _act_on(spool: Spool, action: str, ids: Sequence[str] | None, dropped: list[Entry]) -> set[str]:
    wanted = None if ids is None else set(ids)
    if action == "retry":
        entries = [entry for entry in spool.entries() if wanted is None or entry.transfer.id in wanted]
        pending = {entry.transfer.id for entry in entries if not entry.failed}  # tried as soon as the daemon runs
        done, error = await spool.retry([entry.transfer.id for entry in entries if entry.failed], spool.active_base_s)
        done |= pending
    else:
        entries = [e for e in spool.entries() if (e.failed if wanted is None else e.transfer.id in wanted)]
        losses = [loss_of(entry.transfer, f"{Code.DROPPED}: {_DROPPED}") for entry in entries if not entry.failed]
        done, error = await spool.drop([entry.transfer.id for entry in entries], losses)
    if error is not None:
        raise error  # what is not durable now ends with this process
    if action == "drop":
        # What had failed was recorded then, with its reason.
        dropped += [entry for entry in entries if not entry.failed and entry.transfer.id in done]
    return done


def result_of(answers: Iterable[Mapping[str, object]]) -> tuple[set[str], str]:
    """Return the ids in the daemon's answers, and what the last one says about them, to be appended to their count."""
    ids: set[str] = set()
    notes = ""
    for answer in answers:
        found = answer.get("ids")
        ids.update(map(str, found if isinstance(found, list) else ()))
        held, unsaved = (one_line(str(answer.get(name) or "")) for name in ("held", "unsaved"))
        notes = f" once the queue is no longer held ({held})" if held else ""
        notes += f"; not on disk yet, so a restart now would undo it: {unsaved}" if unsaved else ""
    return ids, notes


async def _entries(spool: Spool) -> list[Entry]:
    return spool.entries()


def _with_spool(instance: Instance, work: Callable[[Spool], Awaitable[_T]]) -> _T:
    """Open the spool under its lock, which no daemon holds, and never create one."""
    import asyncio

    from s3daemon.spool.spool import Spool

    async def run() -> _T:
        spool = Spool.open(instance.state_dir, create=False)
        try:
            return await work(spool)
        finally:
            await spool.close()

    return asyncio.run(run())
