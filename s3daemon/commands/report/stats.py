"""The figures of a report: pure, from sightings to frozen values. Times are microseconds throughout.

Percentiles are by nearest rank: the smallest value that at least so many percent of all do not exceed. So each is a
time that some transfer took, and with fewer than 100 of them p99 is the longest.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from s3daemon.commands.report.select import ReportedTransfer
from s3daemon.model.request import prefix_of

METHOD = "nearest rank"
#: What `by` calls the group of those that are in none.
NONE = "-"
#: How many of the slowest are told.
SLOWEST = 10


def percentile(ordered: Sequence[int], percent: int) -> int:
    """By nearest rank.

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
        """That of some values; None when there is none."""
        ordered = sorted(values)
        if not ordered:
            return None
        return cls(percentile(ordered, 50), percentile(ordered, 90), percentile(ordered, 99), ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What became of some transfers. Sizes and times are those of the stored ones.

    Args:
        transfers: stored and failed ones.
        stored: whose object is in the store.
        failed: for good.
        size_bytes: stored.
        busy_usec: during which at least one of the stored was under way, by the wall clock.
        repeated: transfers that took more than one attempt, stored or failed.
        over_limit: stored ones that took longer than the limit.
        first_usec: when the first was requested, since the epoch; None when there is none.
        last_usec: when the last one ended, stored or failed, since the epoch.
        last_stored_usec: when the last object was stored, since the epoch; None when none was.
        total: from request to the end.
        queue: from request to the start of the attempt that stored it.
        upload: that attempt.
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
    def of(cls, sightings: Sequence[ReportedTransfer], limit_usec: int) -> Figures:
        """Those of some transfers.

        Args:
            sightings: each transfer once.
            limit_usec: for `over_limit`.
        """
        stored = [seen for seen in sightings if seen.record.stored]
        records = [seen.record for seen in stored]
        return cls(
            transfers=len(sightings),
            stored=len(stored),
            failed=len(sightings) - len(stored),
            size_bytes=sum(record.size_bytes for record in records),
            busy_usec=busy_usec((seen.record.start_usec, seen.end_usec) for seen in stored),
            repeated=sum(seen.record.attempts > 1 for seen in sightings),
            over_limit=sum(record.total_usec > limit_usec for record in records),
            first_usec=min((seen.record.start_usec for seen in sightings), default=None),
            last_usec=max((seen.end_usec for seen in sightings), default=None),
            last_stored_usec=max((seen.end_usec for seen in stored), default=None),
            total=Spread.of(record.total_usec for record in records),
            queue=Spread.of(record.queue_usec for record in records),
            upload=Spread.of(record.upload_usec for record in records if record.upload_usec is not None),
        )

    @property
    def to_last_usec(self) -> int | None:
        """From the first request to the last object stored: what operations watch."""
        if self.first_usec is None or self.last_stored_usec is None:
            return None
        return self.last_stored_usec - self.first_usec

    @property
    def rate_bytes_per_s(self) -> float | None:
        """Bytes stored per second of `busy_usec`; None when there is nothing to divide by."""
        return self.size_bytes / self.busy_usec * 1e6 if self.busy_usec else None


def busy_usec(spans: Iterable[tuple[int, int]]) -> int:
    """How long at least one of the spans lasted, each given as begin and end."""
    busy, reached = 0, None
    for begin, end in sorted(spans):
        if reached is None or begin > reached:
            reached = begin
        busy += max(0, end - reached)
        reached = max(reached, end)
    return busy


#: The groups that a sighting belongs to.
Grouping = Callable[[ReportedTransfer], Iterable[str]]


def grouping(how: str) -> Grouping:
    """What `--by` names.

    Args:
        how: `tag`; `host`; `receiver`; `prefix`, the key up to its last slash; or `prefix:N`, its first N parts.

    Raises:
        ValueError: it is something else.
    """
    word, colon, depth = how.partition(":")
    if how == "tag":
        return lambda seen: dict.fromkeys(seen.record.tags) or (NONE,)
    if how == "host":
        return lambda seen: (seen.host or NONE,)
    if how == "receiver":
        return lambda seen: (seen.record.receiver or NONE,)
    if word != "prefix" or (colon and not (depth.isdecimal() and int(depth))):
        raise ValueError(f"{how!r} is none of tag, host, receiver, prefix, prefix:N")
    parts = int(depth) if colon else None

    def prefix(seen: ReportedTransfer) -> tuple[str]:
        return (prefix_of(seen.record.bucket, seen.record.key, parts),)

    return prefix


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of one exposure, say."""

    name: str
    figures: Figures


def groups(sightings: Iterable[ReportedTransfer], of: Grouping, limit_usec: int) -> list[Group]:
    """Figures by group, in the order of the first request; a transfer counts in each of its groups."""
    members: defaultdict[str, list[ReportedTransfer]] = defaultdict(list)
    for seen in sightings:
        for name in of(seen):
            members[name].append(seen)
    made = [Group(name, Figures.of(seens, limit_usec)) for name, seens in members.items()]
    return sorted(made, key=lambda group: (group.figures.first_usec or 0, group.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All there is to tell of some transfers.

    Args:
        sightings: the transfers, by the time of request.
        limit_usec: what a transfer may take.
        late_usec: what a group may take, from its first request to its last object stored.
        figures: of all.
        codes: the error codes of failures, each with how often it was the end, the most frequent first.
        failed: the failures, the latest first.
        slowest: the stored ones that took longest, the longest first.
        by: what groups are made by; empty when they were not asked for.
        groups: in the order of the first request.
    """

    sightings: Sequence[ReportedTransfer]
    limit_usec: int
    late_usec: int
    figures: Figures
    codes: Sequence[tuple[str, int]]
    failed: Sequence[ReportedTransfer]
    slowest: Sequence[ReportedTransfer]
    by: str
    groups: Sequence[Group]

    @classmethod
    def of(cls, sightings: Sequence[ReportedTransfer], *, limit_usec: int, late_usec: int, by: str = "") -> Report:
        """The report on some transfers, each given once.

        Raises:
            ValueError: `by` is nothing that groups are made by.
        """
        failed = sorted((seen for seen in sightings if not seen.record.stored), key=lambda seen: -seen.end_usec)
        stored = (seen for seen in sightings if seen.record.stored)
        return cls(
            sightings=sightings,
            limit_usec=limit_usec,
            late_usec=late_usec,
            figures=Figures.of(sightings, limit_usec),
            codes=Counter(seen.record.error.partition(":")[0] for seen in failed).most_common(),
            failed=failed,
            slowest=heapq.nlargest(SLOWEST, stored, key=lambda seen: seen.record.total_usec),
            by=by,
            groups=groups(sightings, grouping(by), limit_usec) if by else (),
        )

    def grouped(self) -> Report:
        """The same with groups, for charts: by tag where there are tags, else by prefix, if none were asked for."""
        if self.by:
            return self
        by = "tag" if any(seen.record.tags for seen in self.sightings) else "prefix"
        return replace(self, by=by, groups=groups(self.sightings, grouping(by), self.limit_usec))

    def late(self, group: Group) -> bool:
        """Whether a group's last object came too late, or never; a host or a receiver waits for no last object."""
        if self.by in ("host", "receiver"):
            return False
        to_last_usec = group.figures.to_last_usec
        return to_last_usec is None or to_last_usec > self.late_usec

    @property
    def hosts(self) -> list[str]:
        """Where the records were made."""
        return sorted({seen.host for seen in self.sightings if seen.host})
