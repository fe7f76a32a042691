"""The figures of a report: pure, from transfers to frozen values. Times are microseconds throughout.

Percentiles are by nearest rank: the smallest value that at least so many percent of all do not exceed. So each is a
time that some transfer took, and with fewer than 100 of them p99 is the longest.

A transfer's time is the sum of three: `total = queue + upload + rest`. The queue's ends where the attempt began that
stored the object, so earlier attempts are in it.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.model.record import TransferRecord
from s3daemon.model.request import prefix_of
from s3daemon.units import seconds, size

METHOD = "nearest rank"
#: The name of the group of transfers that are in no group.
NONE = "-"
#: How many of the slowest transfers a report lists.
SLOWEST = 10
#: A part below this share of the total is not given as a reason.
_MATTERS = 0.1


def percentile(ordered: Sequence[int], percent: int) -> int:
    """Return a percentile by nearest rank.

    Args:
        ordered: at least one value, the least first.
        percent: 0 to 100.
    """
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(rank, 1) - 1]


@dataclass(frozen=True, slots=True)
class Spread:
    """How times are distributed."""

    p50_usec: int
    p90_usec: int
    p99_usec: int
    max_usec: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Spread | None:
        """Return the spread of some values; None when there are none."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(percentile(ordered, 50), percentile(ordered, 90), percentile(ordered, 99), ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of some transfers. Sizes and times are of the stored ones.

    Args:
        transfers: stored and failed ones.
        stored: transfers whose object is in the store.
        failed: transfers that were given up.
        size_bytes: bytes stored.
        busy_usec: the time by the wall clock in which at least one of the stored was under way.
        repeated: transfers that took more than one attempt, stored or failed.
        over_limit: stored ones that took longer than the limit.
        first_usec: when the first was requested, since the epoch; None when there is none.
        last_usec: when the last one ended, stored or failed, since the epoch.
        last_stored_usec: when the last object was stored, since the epoch; None when none was.
        total: from request to the end.
        queue: from request to the start of the attempt that stored it.
        upload: how long that attempt took.
    """

    transfers: int
    stored: int
    failed: int
    size_bytes: int
    busy_usec: int
    repeated: int
    over_limit: int
    first_usec: int | None
    last_usec: int | None
    last_stored_usec: int | None
    total: Spread | None
    queue: Spread | None
    upload: Spread | None

    @classmethod
    def of(cls, transfers: Sequence[ReportedTransfer], limit_usec: int) -> Figures:
        """Count.

        Args:
            transfers: each given once.
            limit_usec: for `over_limit`.
        """
        stored = [one for one in transfers if one.record.stored]
        records = [one.record for one in stored]
        return cls(
            transfers=len(transfers),
            stored=len(stored),
            failed=len(transfers) - len(stored),
            size_bytes=sum(record.size_bytes for record in records),
            busy_usec=busy_usec((one.record.start_usec, one.end_usec) for one in stored),
            repeated=sum(one.record.attempts > 1 for one in transfers),
            over_limit=sum(record.total_usec > limit_usec for record in records),
            first_usec=min((one.record.start_usec for one in transfers), default=None),
            last_usec=max((one.end_usec for one in transfers), default=None),
            last_stored_usec=max((one.end_usec for one in stored), default=None),
            total=Spread.of(record.total_usec for record in records),
            queue=Spread.of(record.queue_usec for record in records),
            upload=Spread.of(record.upload_usec for record in records if record.upload_usec is not None),
        )

    @property
    def to_last_usec(self) -> int | None:
        """The time from the first request to the last object stored, which is what operations watch."""
        if self.first_usec is None or self.last_stored_usec is None:
            return None
        return self.last_stored_usec - self.first_usec

    @property
    def rate_bytes_per_s(self) -> float | None:
        """The bytes stored per second of `busy_usec`; None when there is nothing to divide by."""
        return self.size_bytes / self.busy_usec * 1e6 if self.busy_usec else None


def busy_usec(spans: Iterable[tuple[int, int]]) -> int:
    """Return how long at least one of the spans lasted, each given as begin and end."""
    busy, reached = 0, None
    for begin, end in sorted(spans):
        if reached is None or begin > reached:
            reached = begin
        busy += max(0, end - reached)
        reached = max(reached, end)
    return busy


Grouping = Callable[[ReportedTransfer], Iterable[str]]
"""Gives the names of the groups that a transfer belongs to."""


def grouping(how: str) -> Grouping:
    """Return the grouping that `--by` names.

    Args:
        how: `tag`; `host`; `receiver`; `prefix`, the key up to its last slash; or `prefix:N`, its first N parts.

    Raises:
        ValueError: `how` is something else.
    """
    word, colon, depth = how.partition(":")
    if how == "tag":
        return lambda one: dict.fromkeys(one.record.tags) or (NONE,)
    if how == "host":
        return lambda one: (one.host or NONE,)
    if how == "receiver":
        return lambda one: (one.record.receiver or NONE,)
    if word != "prefix" or (colon and not (depth.isdecimal() and int(depth))):
        raise ValueError(f"{how!r} is not one of tag, host, receiver, prefix, prefix:N")
    parts = int(depth) if colon else None

    def prefix(one: ReportedTransfer) -> tuple[str]:
        return (prefix_of(one.record.bucket, one.record.key, parts),)

    return prefix


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of one group, such as an exposure."""

    name: str
    figures: Figures


def groups(transfers: Iterable[ReportedTransfer], of: Grouping, limit_usec: int) -> list[Group]:
    """Return figures by group, in the order of the first request; a transfer counts in each of its groups."""
    members: defaultdict[str, list[ReportedTransfer]] = defaultdict(list)
    for one in transfers:
        for name in of(one):
            members[name].append(one)
    made = [Group(name, Figures.of(those, limit_usec)) for name, those in members.items()]
    return sorted(made, key=lambda group: (group.figures.first_usec or 0, group.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is known of some transfers.

    Args:
        transfers: by the time of request.
        limit_usec: what a transfer may take.
        late_usec: what a group may take from its first request to its last object stored.
        figures: of all transfers.
        codes: the error codes of failures, each with the number of transfers that it ended, the most frequent first.
        failed: the failures, the latest first.
        slowest: the stored ones that took longest, the longest first.
        by: how groups are made; empty when they were not asked for.
        groups: in the order of the first request.
    """

    transfers: Sequence[ReportedTransfer]
    limit_usec: int
    late_usec: int
    figures: Figures
    codes: Sequence[tuple[str, int]]
    failed: Sequence[ReportedTransfer]
    slowest: Sequence[ReportedTransfer]
    by: str
    groups: Sequence[Group]

    @classmethod
    def of(cls, transfers: Sequence[ReportedTransfer], *, limit_usec: int, late_usec: int, by: str = "") -> Report:
        """Make the report on some transfers, each given once.

        Raises:
            ValueError: `by` does not name a grouping.
        """
        failed = sorted((one for one in transfers if not one.record.stored), key=lambda one: -one.end_usec)
        stored = (one for one in transfers if one.record.stored)
        return cls(
            transfers=transfers,
            limit_usec=limit_usec,
            late_usec=late_usec,
            figures=Figures.of(transfers, limit_usec),
            codes=Counter(one.record.error.partition(":")[0] for one in failed).most_common(),
            failed=failed,
            slowest=heapq.nlargest(SLOWEST, stored, key=lambda one: one.record.total_usec),
            by=by,
            groups=groups(transfers, grouping(by), limit_usec) if by else (),
        )

    def grouped(self) -> Report:
        """Return the same with groups for a chart: those asked for, else by tag if there are tags, else by prefix."""
        if self.by:
            return self
        by = "tag" if any(one.record.tags for one in self.transfers) else "prefix"
        return replace(self, by=by, groups=groups(self.transfers, grouping(by), self.limit_usec))

    def late(self, group: Group) -> bool:
        """Whether a group's last object came too late, or never; groups by host or receiver have no last object."""
        if self.by in ("host", "receiver"):
            return False
        to_last_usec = group.figures.to_last_usec
        return to_last_usec is None or to_last_usec > self.late_usec

    @property
    def hosts(self) -> list[str]:
        """The hosts on which the records were made."""
        return sorted({one.host for one in self.transfers if one.host})


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where one stored transfer's time went.

    Args:
        cause: the longest part of the time: "retried", "queued", "network" or "after".
        text: each part that matters, the longest first, for people.
    """

    cause: str
    text: str

    @classmethod
    def of(cls, record: TransferRecord) -> Breakdown:
        """Say why a stored transfer took as long as it did."""
        upload = record.upload_usec or 0
        rest = max(0, record.total_usec - record.queue_usec - upload)
        waited = "retried" if record.attempts > 1 else "queued"
        parts = {waited: record.queue_usec, "network": upload, "after": rest}
        ordered = sorted(parts, key=lambda name: -parts[name])
        named = [name for name in ordered if name == ordered[0] or parts[name] > _MATTERS * record.total_usec]
        return cls(ordered[0], "; ".join(_reason(name, parts[name], record) for name in named))


def _reason(part: str, usec: int, record: TransferRecord) -> str:
    match part:
        case "retried":
            return f"{record.attempts} attempts, the last began after {seconds(usec)}"
        case "queued":
            return f"queued {seconds(usec)}"
        case "after":
            return f"{seconds(usec)} after the upload, for checking that the object is there or for the disk"
        case _:
            return f"upload {seconds(usec)}{_network(usec, record)}"


def _network(usec: int, record: TransferRecord) -> str:
    """Say what the network did to an upload."""
    found = [f"{size(record.size_bytes / usec * 1e6)}/s"] if usec else []
    if record.rtt_usec is not None:
        found.append(f"RTT {record.rtt_usec / 1000:.3g} ms")
    if record.retransmits:
        found.append(f"{record.retransmits} segment{'' if record.retransmits == 1 else 's'} sent again")
    if record.connection == "new":
        found.append("new connection")
    if record.receiver:
        found.append(f"to {record.receiver}")
    return f" ({', '.join(found)})" if found else ""
