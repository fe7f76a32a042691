"""`s3daemon queue`: what is in flight, pending, held and failed, and an operator's hand on it.

    queue [--json] [--failed]       list; `listing` has the columns
    queue retry ID...|--all         try now: what failed is pending again, a delay ends
    queue drop ID...|--all-failed   give up; an attempt in flight is cancelled and its clients are told

With the daemon up it is asked over its control socket; with it down the spool is opened under its lock and
never created. For root and the service's own user.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TextIO, TypeVar

from s3daemon.control.client import Instance, NoDaemonError, add_instance, instance_of
from s3daemon.control.listing import Row, row, table
from s3daemon.errors import Code, S3daemonError, one_line
from s3daemon.spool.rows import Entry
from s3daemon.spool.spool import Spool

_T = TypeVar("_T")

#: Ids in one request to the daemon, well below the bound of `control`.
_BATCH = 10_000


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--json", action="store_true", help="one array of objects, one object a line")
    parser.add_argument("--failed", action="store_true", help="only those that failed for good")
    add_instance(parser)
    actions = parser.add_subparsers(dest="action", metavar="retry|drop")
    retry = actions.add_parser("retry", help="try now: what failed is pending again, a delay ends")
    retry.add_argument("--all", action="store_true", dest="every", help="everything there is")
    drop = actions.add_parser("drop", help="give up; an attempt in flight is cancelled and its clients are told")
    drop.add_argument("--all-failed", action="store_true", dest="every", help="everything that failed for good")
    for action in (retry, drop):
        action.add_argument("ids", nargs="*", metavar="ID")
        add_instance(action)


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    dropped: Callable[[Sequence[Entry]], None] = lambda entries: None,
) -> int:
    """Carry out the command.

    Args:
        args: as `configure` described them.
        environ: says where the daemon is, as `Instance.find` reads it; the settings are not needed.
        out: takes the table.
        err: takes one line when something is wrong.
        dropped: is told of transfers dropped with no daemon up, so that they are recorded.

    Returns:
        The exit status: 0, or 1 when it could not be done or an id is unknown.
    """
    place = instance_of(args, environ)
    try:
        if args.action is None:
            rows = _rows(place, failed_only=args.failed)
            width = os.get_terminal_size(out.fileno()).columns if out.isatty() else None
            print(_json(rows) if args.json else "\n".join(table(rows, width)), file=out)
            return 0
        if bool(args.ids) == args.every:
            raise S3daemonError(Code.BAD_REQUEST, f"{args.action} takes either ids or the option for all")
        done = _act(place, args.action, None if args.every else args.ids, dropped)
    except S3daemonError as exc:
        print(f"{exc.code}: {one_line(exc.text)}", file=err)
        return 1
    print(f"{len(done)} {'will be tried again' if args.action == 'retry' else 'dropped'}", file=out)
    unknown = sorted(set(args.ids) - done)
    for id_ in unknown:
        print(f"NoSuchTransfer: {one_line(id_, 40)} is not in the queue", file=err)
    return 1 if unknown else 0


def _rows(place: Instance, *, failed_only: bool) -> list[Row]:
    try:
        return _asked_rows(place, failed_only=failed_only)
    except NoDaemonError:
        entries = asyncio.run(_offline(place, _entries))
    now_usec = time.time_ns() // 1000
    wanted = (entry for entry in entries if entry.failed or not failed_only)
    return [row(entry, "failed" if entry.failed else "pending", now_usec=now_usec) for entry in wanted]


def _asked_rows(place: Instance, *, failed_only: bool) -> list[Row]:
    members = place.ask("queue", failed=failed_only).get("transfers")
    return [Row.from_dict(member) for member in (members if isinstance(members, list) else ())]


def _act(
    place: Instance, action: str, ids: Sequence[str] | None, dropped: Callable[[Sequence[Entry]], None]
) -> set[str]:
    """Carry out `action` on those ids, or on all that it is meant for; the ids that there were."""
    wanted = None if ids is None else set(ids)

    async def carry_out(spool: Spool) -> set[str]:
        entries = [e for e in spool.entries() if (e.failed if wanted is None else e.transfer.id in wanted)]
        chosen = [entry.transfer.id for entry in entries]
        done = await (spool.retry(chosen, spool.active_base_s) if action == "retry" else spool.drop(chosen))
        if action == "drop":
            dropped([entry for entry in entries if entry.transfer.id in done])
        return done

    try:
        if ids is None and action == "retry":
            return _ids(place.ask("retry", all=True))
        given = [r.id for r in _asked_rows(place, failed_only=True)] if ids is None else ids
        batches = [given[at : at + _BATCH] for at in range(0, len(given), _BATCH)]
        return {id_ for batch in batches for id_ in _ids(place.ask(action, ids=batch))}
    except NoDaemonError:
        return asyncio.run(_offline(place, carry_out))


def _ids(answer: Mapping[str, object]) -> set[str]:
    ids = answer.get("ids")
    return {str(id_) for id_ in ids} if isinstance(ids, list) else set()


async def _entries(spool: Spool) -> list[Entry]:
    return spool.entries()


async def _offline(place: Instance, work: Callable[[Spool], Awaitable[_T]]) -> _T:
    """Open the spool under its lock, which no daemon holds, and never make one."""
    spool = Spool.open(place.state_dir, create=False)
    try:
        return await work(spool)
    finally:
        await spool.close()


def _json(rows: Iterable[Row]) -> str:
    """One array with an object a line, so that line tools can read it too."""
    return "[\n" + ",\n".join(json.dumps(row.as_dict()) for row in rows) + "\n]"
