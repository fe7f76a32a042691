"""The figures of a report: pure, from transfers to frozen values. Times are microseconds throughout.

Percentiles are by nearest rank: the smallest value that at least so many percent of all do not exceed. So each is a
time that some transfer took, and with fewer than 100 of them p99 is the longest.

A transfer's time is the sum of three: `total = queue + upload + rest`. The queue's ends where the attempt began that
stored the object, so earlier attempts are in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from s3daemon.commands.report.select import Place, RefusedRequest, ReportedTransfer
from s3daemon.commands.report.why import Delays
from s3daemon.model.exposure import LOST_S, is_understood, verdict_of
from s3daemon.model.request import prefix_of

METHOD = "nearest rank"
#: The name of the group of transfers that are in no group.
NONE = "-"
#: The groupings that make exposures; of other groups the time is not judged.
EXPOSURES_BY = ("tag", "prefix")
LOST_USEC = round(LOST_S * 1e6)
#: The verdicts on an exposure with which something is wrong.
WRONG = ("late", "incomplete", "lost")
#: How many of the slowest transfers a report lists.
SLOWEST = 10
#: And how many of one exposure at most: more say no more, and hide the others.
_OF_ONE = 2
#: The number of files of an exposure is learned from at least this many exposures, and more than half of all.
_LEARNED_FROM = 3


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
        busy_usec: the time by the wall clock in which at least one of the attempts that stored an object ran.
        repeated: transfers that took more than one attempt, stored or failed.
        over_limit: stored ones that took longer than the limit.
        first_usec: when the first was requested, or a request refused, since the epoch; None when there is none.
        last_usec: when the last one ended, stored or failed, or a request was refused, since the epoch.
        last_stored_usec: when the last object was stored, since the epoch; None when none was.
        total: from request to the end.
        queue: from request to the start of the attempt that stored it.
        upload: how long that attempt took.
        codes: the error codes of the failed ones, each with the number of transfers that it ended, the most first.
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
    codes: Sequence[tuple[str, int]]

    @classmethod
    def of(
        cls, transfers: Sequence[ReportedTransfer], limit_usec: int, refused: Sequence[RefusedRequest] = ()
    ) -> Figures:
        """Count.

        Args:
            transfers: each given once.
            limit_usec: for `over_limit`.
            refused: requests that belong to the period.
        """
        refused_usec = [one.usec for one in refused]
        stored = [one for one in transfers if one.record.stored]
        records = [one.record for one in stored]
        return cls(
            transfers=len(transfers),
            stored=len(stored),
            failed=len(transfers) - len(stored),
            size_bytes=sum(record.size_bytes for record in records),
            busy_usec=busy_usec((one.record.start_usec + one.record.queue_usec, one.end_usec) for one in stored),
            repeated=sum(one.record.attempts > 1 for one in transfers),
            over_limit=sum(record.total_usec > limit_usec for record in records),
            first_usec=min([one.record.start_usec for one in transfers] + refused_usec, default=None),
            last_usec=max([one.end_usec for one in transfers] + refused_usec, default=None),
            last_stored_usec=max((one.end_usec for one in stored), default=None),
            total=Spread.of(record.total_usec for record in records),
            queue=Spread.of(record.queue_usec for record in records),
            upload=Spread.of(record.upload_usec for record in records if record.upload_usec is not None),
            codes=Counter(
                one.record.error.partition(":")[0] for one in transfers if not one.record.stored
            ).most_common(),
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
    """Return how long at least one of the spans lasted, each given as start and end."""
    busy, reached = 0, None
    for begin, end in sorted(spans):
        if reached is None or begin > reached:
            reached = begin
        busy += max(0, end - reached)
        reached = max(reached, end)
    return busy


@dataclass(frozen=True, slots=True)
class MissingFiles:
    """The destinations that failed or were refused and have no object stored later, as `Exposure.missing` has them.

    Args:
        failed: by code those whose last request failed, each with the number of destinations, the most first.
        refused: likewise those whose last request was refused.
    """

    failed: Sequence[tuple[str, int]]
    refused: Sequence[tuple[str, int]]

    @classmethod
    def of(cls, transfers: Iterable[ReportedTransfer], refused: Iterable[RefusedRequest]) -> MissingFiles:
        """Count; `transfers` are each given once."""
        stored_usec: dict[Place, int] = {}
        lost = [(one.usec, one.place, "refused", one.code) for one in refused]
        for one in transfers:
            if one.record.stored:
                stored_usec[one.place] = max(one.end_usec, stored_usec.get(one.place, 0))
            else:
                lost.append((one.end_usec, one.place, "failed", one.record.error.partition(":")[0]))
        last = {
            place: (outcome, code)
            for usec, place, outcome, code in sorted(lost, key=lambda each: each[0])
            if usec > stored_usec.get(place, -1)
        }
        found: dict[str, Counter[str]] = {"failed": Counter(), "refused": Counter()}
        for outcome, code in last.values():
            found[outcome][code] += 1
        return cls(found["failed"].most_common(), found["refused"].most_common())

    @property
    def count(self) -> int:
        """The number of destinations."""
        return sum(count for _, count in (*self.failed, *self.refused))


class GroupName(NamedTuple):
    """A group that a transfer or a refused request belongs to.

    Its time is judged where it is known to be one exposure.
    """

    text: str
    exposure: bool


Grouping = Callable[[ReportedTransfer | RefusedRequest], Iterable[GroupName]]
"""Gives the names of the groups that a transfer or a refused request belongs to."""


def _by_tag(one: ReportedTransfer | RefusedRequest) -> Iterable[GroupName]:
    return [GroupName(tag, exposure=True) for tag in dict.fromkeys(one.tags)] or _by_prefix(one, exposure=False)


def _by_host(one: ReportedTransfer | RefusedRequest) -> Iterable[GroupName]:
    return [GroupName(one.host or NONE, exposure=False)]


def _by_receiver(one: ReportedTransfer | RefusedRequest) -> Iterable[GroupName]:
    """A refused request has no receiver, not even an unknown one."""
    return [GroupName(one.record.receiver or NONE, exposure=False)] if isinstance(one, ReportedTransfer) else ()


def _by_prefix(one: ReportedTransfer | RefusedRequest, *, exposure: bool = True) -> Iterable[GroupName]:
    if isinstance(one, RefusedRequest) and not is_understood(one.code):
        return ()
    return [GroupName(prefix_of("/".join(one.place)), exposure=exposure)]


#: What `--by` takes.
GROUPINGS: Mapping[str, Grouping] = {
    "tag": _by_tag, "host": _by_host, "receiver": _by_receiver, "prefix": _by_prefix,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """The figures of one group, such as an exposure.

    Args:
        name: of the group.
        figures: of its transfers.
        files: how many destinations it has objects at; one that was stored twice counts once.
        last: the transfer whose object was stored last; None when none was.
        missing: what it lacks for a known reason.
    """

    name: GroupName
    figures: Figures
    files: int
    last: ReportedTransfer | None
    missing: MissingFiles

    @property
    def first_usec(self) -> int:
        """When the first request of the group was accepted or refused, microseconds since the epoch."""
        return self.figures.first_usec or 0

    @classmethod
    def of(
        cls,
        name: GroupName,
        transfers: Sequence[ReportedTransfer],
        limit_usec: int,
        refused: Sequence[RefusedRequest],
    ) -> Group:
        """Count; the arguments are as of `Figures.of`."""
        stored = [one for one in transfers if one.record.stored]
        return cls(
            name,
            Figures.of(transfers, limit_usec, refused),
            files=len({one.place for one in stored}),
            last=max(stored, key=lambda one: one.end_usec, default=None),
            missing=MissingFiles.of(transfers, refused),
        )


def groups(
    transfers: Iterable[ReportedTransfer], of: Grouping, limit_usec: int, refused: Iterable[RefusedRequest] = ()
) -> list[Group]:
    """Return figures by group, in the order of the first request; a transfer counts in each of its groups.

    A group that has refused requests alone is a group too: nothing of it is stored.
    """
    members: defaultdict[GroupName, list[ReportedTransfer]] = defaultdict(list)
    for one in transfers:
        for name in of(one):
            members[name].append(one)
    kept_out: defaultdict[GroupName, list[RefusedRequest]] = defaultdict(list)
    for request in refused:
        for name in of(request):
            kept_out[name].append(request)
    names = dict.fromkeys([*members, *kept_out])
    made = [Group.of(name, members.get(name, []), limit_usec, kept_out.get(name, [])) for name in names]
    return sorted(made, key=lambda group: (group.first_usec, group.name))


def worst_first(group: Group) -> tuple[float, ...]:
    """The order of hosts and receivers: what failed or was refused, was over its limit, took longest."""
    figures = group.figures
    return (
        -figures.failed - sum(count for _, count in group.missing.refused),
        -figures.over_limit,
        -(figures.total.max_usec if figures.total else 0),
    )


class Expected(NamedTuple):
    """The number of files that an exposure has.

    Args:
        files: the number; 0 when it is not known.
        learned_from: how many exposures have just as many; 0 when the operator gave the number.
    """

    files: int
    learned_from: int

    @classmethod
    def learn(cls, found: Sequence[Group]) -> Expected:
        """Take the number that most exposures have, if more than half have it."""
        counts = Counter(group.files for group in found if group.name.exposure)
        for files, many in counts.most_common(1):
            if files and many >= _LEARNED_FROM and 2 * many > counts.total():
                return cls(files, many)
        return cls(0, 0)


def slowest(transfers: Iterable[ReportedTransfer]) -> list[ReportedTransfer]:
    """The stored ones that took longest, the longest first, and no more than two of one exposure."""
    found: list[ReportedTransfer] = []
    listed: Counter[GroupName] = Counter()
    stored = (one for one in transfers if one.record.stored)
    for one in sorted(stored, key=lambda one: -one.record.total_usec):
        names = list(_by_tag(one))
        if any(name.exposure and listed[name] >= _OF_ONE for name in names):
            continue
        listed.update(names)
        found.append(one)
        if len(found) == SLOWEST:
            break
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is known of some transfers.

    Args:
        transfers: by the time of request.
        limit_usec: what a transfer may take.
        late_usec: what a group may take from its first request to its last object stored.
        figures: of all transfers.
        failed: the failures, the latest first.
        slowest: of the function of that name.
        by: how groups are made; empty when they were not asked for.
        groups: in the order of the first request; by host or receiver the worst at the head.
        expected: how many files an exposure has.
        delays: what delayed transfers.
        refused: the requests that were refused.
        wrong_only: groups and slowest are those of exposures with which something is wrong.
    """

    transfers: Sequence[ReportedTransfer]
    limit_usec: int
    late_usec: int
    figures: Figures
    failed: Sequence[ReportedTransfer]
    slowest: Sequence[ReportedTransfer]
    by: str
    groups: Sequence[Group]
    expected: Expected
    delays: Delays
    refused: Sequence[RefusedRequest]
    wrong_only: bool = False

    @classmethod
    def of(
        cls,
        transfers: Sequence[ReportedTransfer],
        *,
        limit_usec: int,
        late_usec: int,
        by: str = "",
        expect: int = 0,
        delays: Delays | None = None,
        refused: Sequence[RefusedRequest] = (),
    ) -> Report:
        """Make the report on some transfers, each given once; the arguments are those of the class.

        `expect` is how many files an exposure has; with 0 it is learned where groups are made.
        """
        failed = sorted((one for one in transfers if not one.record.stored), key=lambda one: -one.end_usec)
        report = cls(
            transfers=transfers,
            limit_usec=limit_usec,
            late_usec=late_usec,
            figures=Figures.of(transfers, limit_usec, refused),
            failed=failed,
            slowest=slowest(transfers),
            by="",
            groups=(),
            expected=Expected(expect, 0),
            delays=delays or Delays(),
            refused=refused,
        )
        return report.by_groups(by) if by else report

    @property
    def refused_codes(self) -> Sequence[tuple[str, int]]:
        """The codes of the requests that were refused, as `MissingFiles.refused` has them, of all destinations."""
        return MissingFiles.of(self.transfers, self.refused).refused if self.refused else ()

    def by_groups(self, by: str) -> Report:
        """Return the same with groups."""
        found = groups(self.transfers, GROUPINGS[by], self.limit_usec, self.refused)
        if by not in EXPOSURES_BY:
            return replace(self, by=by, groups=sorted(found, key=worst_first))
        return replace(
            self, by=by, groups=found, expected=self.expected if self.expected.files else Expected.learn(found)
        )

    def grouped(self) -> Report:
        """Return the same with groups for a chart: those asked for, if they have a time that is theirs.

        Otherwise, as of hosts and receivers, by tag if there are tags, else by prefix.
        """
        if self.by in EXPOSURES_BY:
            return self
        by = "tag" if any(one.tags for one in self.transfers) else "prefix"
        return self.by_groups(by)

    def late_only(self) -> Report:
        """Return the same without the groups with which nothing is wrong, and the slowest of the others."""
        wrong, of = [group for group in self.groups if self.verdict(group) in WRONG], GROUPINGS[self.by]
        names = {group.name for group in wrong}
        theirs = [one for one in self.transfers if not names.isdisjoint(of(one))]
        return replace(self, groups=wrong, slowest=slowest(theirs), wrong_only=True)

    def missing(self, group: Group) -> int:
        """How many files an exposure lacks, as far as is known."""
        short = self.expected.files - group.files if group.name.exposure and self.expected.files else 0
        return max(short, group.missing.count)

    def verdict(self, group: Group) -> str:
        """The verdict on an exposure, as `status` and the page have it; "" for a host or a receiver."""
        if self.by not in EXPOSURES_BY:
            return ""
        to_last_usec = group.figures.to_last_usec
        return verdict_of(
            None if to_last_usec is None else to_last_usec / 1e6,
            missing=self.missing(group) > 0,
            tagged=group.name.exposure,
            late_s=self.late_usec / 1e6,
        )

    @property
    def hosts(self) -> list[str]:
        """The hosts on which the records were made."""
        return sorted({one.host for one in self.transfers if one.host})
