"""Why a transfer took as long as it did, from its record and other journal entries of that time. Pure.

A record says how long each part took and how many attempts there were. Which error cost the time is in the warnings
about failed attempts; when the endpoint was away or the queue was held is in other entries. Of equal warnings only a
few are written in a second, so those of this transfer may be missing: then the warnings about other transfers of the
same service at the same time are used.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import NamedTuple

from s3daemon.commands.report.select import JournalEntry, ReportedTransfer, decimal_of
from s3daemon.model.record import MessageId, TransferRecord
from s3daemon.units import moment, plural, recent, seconds, size

#: A part that took less than this share of the total is not mentioned.
_LEAST_SHARE = 0.1
_SECOND_USEC = 1_000_000
#: Of a transfer that waited through more periods than this, only their number is shown.
_MOST_PERIODS = 3

_Service = tuple[str, str]


class Failure(NamedTuple):
    """A failed attempt: when, microseconds since the epoch, how long the next one was put off, and the code."""

    at_usec: int
    delay_usec: int
    code: str


class Period(NamedTuple):
    """A time in which nothing was sent: microseconds since the epoch, and what it was.

    Args:
        begin_usec: when it began.
        end_usec: when it was over; None when no entry says so, as after a crash.
        state: `away` or `held`.
    """

    begin_usec: int
    end_usec: int | None
    state: str

    def text(self, zone: tzinfo | None, start_usec: int) -> str:
        """Return the state and from when to when, as text; a time on the day of `start_usec` without its date."""
        begin, end = (recent(usec, start_usec, zone) for usec in (self.begin_usec, self.end_usec or 0))
        return f"{self.state} from {begin}" + (f" to {end}" if self.end_usec else " on")


_STATES = {
    MessageId.AWAY: "away", MessageId.BACK: "away", MessageId.HELD: "held", MessageId.RELEASED: "held",
}  # fmt: skip
_ENDS = (MessageId.BACK, MessageId.RELEASED)


class Delays:
    """What delayed transfers, by the entries of the journal. Add these in any order, call `sort`, and only then ask."""

    def __init__(self) -> None:
        self._by_transfer: defaultdict[str, list[Failure]] = defaultdict(list)
        self._by_service: defaultdict[_Service, list[Failure]] = defaultdict(list)
        self._periods: defaultdict[_Service, dict[tuple[str, int], Period]] = defaultdict(dict)

    def add(self, entry: JournalEntry) -> None:
        """Add an entry of the journal; those of other kinds are ignored."""
        at_usec = decimal_of(entry.get("__REALTIME_TIMESTAMP"))
        kind = entry.get("MESSAGE_ID")
        if at_usec is None:
            return
        if kind in _STATES:
            self._add_period(
                _service(entry), MessageId(str(kind)), at_usec, decimal_of(entry.get("S3DAEMON_SINCE_USEC"))
            )
        if kind != MessageId.ATTEMPT_FAILED:
            return
        code = str(entry.get("S3DAEMON_ERROR", "")).partition(":")[0]
        failure = Failure(at_usec, decimal_of(entry.get("S3DAEMON_DELAY_USEC")) or 0, code)
        self._by_transfer[str(entry.get("S3DAEMON_TRANSFER_ID", ""))].append(failure)
        self._by_service[_service(entry)].append(failure)

    def _add_period(self, service: _Service, kind: MessageId, at_usec: int, since_usec: int | None) -> None:
        """Add the beginning or the end of a period. The entry of an end has the beginning too, exact to a second."""
        state, begin_usec = _STATES[kind], at_usec if since_usec is None else since_usec
        known = self._periods[service]
        key = (state, round(begin_usec / _SECOND_USEC))
        if kind in _ENDS:
            for near in (-1, 0, 1):
                known.pop((state, key[1] + near), None)
            known[key] = Period(begin_usec, at_usec, state)
        elif not any((state, key[1] + near) in known for near in (-1, 0, 1)):
            known[key] = Period(begin_usec, None, state)

    def sort(self) -> None:
        """Sort the failures by time, as `costliest_error` requires."""
        for failures in (*self._by_transfer.values(), *self._by_service.values()):
            failures.sort()

    def costliest_error(self, one: ReportedTransfer) -> str:
        """Return the code of the error that cost most of the time before the last attempt; "" when none is known."""
        begin, end = one.record.start_usec, one.record.start_usec + one.record.queue_usec
        costs: Counter[str] = Counter()
        free_usec = begin
        for failure in self._by_transfer.get(one.record.transfer_id) or self._meanwhile(one, begin, end):
            costs[failure.code] += max(0, failure.at_usec - free_usec) + failure.delay_usec
            free_usec = failure.at_usec + failure.delay_usec
        return costs.most_common(1)[0][0] if costs else ""

    def periods(self, one: ReportedTransfer) -> list[Period]:
        """Return the periods through which a transfer waited before its last attempt, in order.

        A period without an end counts only if it began while the transfer waited. What goes on after a restart of the
        daemon is one period.
        """
        begin, end = one.record.start_usec, one.record.start_usec + one.record.queue_usec
        known = self._periods.get((one.host, one.unit), {}).values()
        waited = (each for each in known if each.begin_usec < end and (each.end_usec or each.begin_usec) >= begin)
        return _join_over_restarts(sorted(waited, key=lambda each: each.begin_usec))

    def _meanwhile(self, one: ReportedTransfer, begin: int, end: int) -> Iterator[Failure]:
        failures = self._by_service.get((one.host, one.unit), ())
        for at in range(bisect_left(failures, (begin,)), len(failures)):
            if failures[at].at_usec > end:
                return
            yield failures[at]


def _join_over_restarts(periods: Iterable[Period]) -> list[Period]:
    """Continue a period without an end in the next of its state: a restart while a transfer waits makes two of one."""
    joined: list[Period] = []
    for each in periods:
        before = next((one for one in reversed(joined) if one.state == each.state), None)
        if before is not None and before.end_usec is None:
            joined[joined.index(before)] = before._replace(end_usec=each.end_usec)
        else:
            joined.append(each)
    return joined


def _service(entry: Mapping[str, object]) -> _Service:
    return str(entry.get("_HOSTNAME", "")), str(entry.get("_SYSTEMD_UNIT", ""))


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where one stored transfer's time went.

    Args:
        cause: the longest part of the time: "retried", "queued", "network" or "after".
        error: the code of the error that cost most of it; "" when no attempt failed, or none is known.
        text: one line for people: each part but the smallest, the longest first.
    """

    cause: str
    error: str
    text: str

    @classmethod
    def of(cls, one: ReportedTransfer, delays: Delays, zone: tzinfo | None) -> Breakdown:
        """Return the breakdown of a stored transfer's time; points in time are shown in `zone`, None: local time."""
        record = one.record
        upload = record.upload_usec or 0
        rest = max(0, record.total_usec - record.queue_usec - upload)
        waited = "retried" if record.attempts > 1 else "queued"
        error = delays.costliest_error(one) if record.attempts > 1 else ""
        waits = _waits(one, delays.periods(one), zone)
        parts = {waited: record.queue_usec, "network": upload, "after": rest}
        ordered = sorted(parts, key=lambda name: -parts[name])
        named = [name for name in ordered if name == ordered[0] or parts[name] > _LEAST_SHARE * record.total_usec]
        return cls(ordered[0], error, "; ".join(_reason(name, parts[name], record, error, waits) for name in named))


def _waits(one: ReportedTransfer, periods: Sequence[Period], zone: tzinfo | None) -> str:
    if len(periods) > _MOST_PERIODS:
        states = " or ".join(sorted({period.state for period in periods}))
        return f"; {states} {len(periods)} times, first from {moment(periods[0].begin_usec, zone)}"
    return "".join(f"; {period.text(zone, one.record.start_usec)}" for period in periods)


def _reason(part: str, usec: int, record: TransferRecord, error: str, waits: str) -> str:
    match part:
        case "retried":
            return f"{record.attempts} attempts over {seconds(usec)}" + (f", {error}" if error else "") + waits
        case "queued":
            return f"queued {seconds(usec)}{waits}"
        case "after":
            return f"{seconds(usec)} after the upload, for checking that the object is there or for the disk"
        case _:
            return f"upload {seconds(usec)}{_network(usec, record)}"


def _network(usec: int, record: TransferRecord) -> str:
    """Return what the record has of the network, in parentheses; empty when it has nothing."""
    found = [f"{size(record.size_bytes / usec * 1e6)}/s"] if usec else []
    if record.rtt_usec is not None:
        found.append(f"RTT {record.rtt_usec / 1000:.3g} ms")
    if record.retransmits:
        found.append(f"{plural(record.retransmits, 'segment')} sent again")
    if record.connection == "new":
        found.append("new connection")
    if record.receiver:
        found.append(f"to {record.receiver}")
    return f" ({', '.join(found)})" if found else ""
