"""Choose the transfers that a report is about, and count each of them once.

The selection is applied twice: journald's indices find one exposure among millions of entries, so journalctl is asked
for it too; but whether an entry counts is decided here, for every source alike.

Any local user may write an entry with the fields of a record. Only journald sets the fields that begin with an
underscore, so `_SYSTEMD_UNIT` says whether an entry is the service's. What root's `s3daemon queue drop` writes while no
daemon runs is of no unit of its own; there `_UID` says that root did.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from s3daemon.errors import Code
from s3daemon.model.record import MessageId, TransferRecord
from s3daemon.units import BEGIN_USEC, END_USEC, whole

JournalEntry = Mapping[str, object]
"""An entry as `journalctl -o json --all` gives it: by field a text, a list of byte values, or a list of these."""
Place = tuple[str, str]
"""Bucket and key."""

#: The fields that are read. The file and the ETag are not among them: no report shows them, and they would be a third
#: of what 200 000 records take in memory.
FIELDS = (
    "S3DAEMON_TRANSFER_ID", "S3DAEMON_KEY", "S3DAEMON_SIZE_BYTES", "S3DAEMON_START_USEC", "S3DAEMON_QUEUE_USEC",
    "S3DAEMON_UPLOAD_USEC", "S3DAEMON_TOTAL_USEC", "S3DAEMON_RTT_USEC", "MESSAGE_ID", "S3DAEMON_OUTCOME",
    "S3DAEMON_BUCKET", "S3DAEMON_TAG", "S3DAEMON_ATTEMPTS", "S3DAEMON_ENDPOINT", "S3DAEMON_ERROR",
    "S3DAEMON_RETRANSMITS", "S3DAEMON_CONNECTION", "S3DAEMON_RECEIVER", "S3DAEMON_CHANGED", "S3DAEMON_DELAY_USEC",
    "S3DAEMON_SINCE_USEC", "S3DAEMON_LOST", "_HOSTNAME", "_SYSTEMD_UNIT", "_UID",
)  # fmt: skip
#: The kinds of entries that tell what delayed transfers, what was refused, and how many entries are missing.
OTHERS = (
    MessageId.ATTEMPT_FAILED, MessageId.AWAY, MessageId.BACK, MessageId.HELD, MessageId.RELEASED, MessageId.REFUSED,
    MessageId.LOST,
)  # fmt: skip
#: The units that are the service: systemd/s3daemon.service, and the instances of s3daemon@.service.
_UNIT = re.compile(r"s3daemon(@.*)?\.service")


class ReportedTransfer(NamedTuple):
    """A transfer's record, and where it was made."""

    record: TransferRecord
    #: What the entry's host called itself; empty when the entry does not say.
    host: str
    #: The systemd unit of its daemon, likewise.
    unit: str = ""

    @property
    def end_usec(self) -> int:
        """When the transfer ended, microseconds since the epoch."""
        return self.record.end_usec

    @property
    def place(self) -> Place:
        """Where the object belongs."""
        return self.record.bucket, self.record.key

    @property
    def tags(self) -> Sequence[str]:
        """The tags of the transfer, in the order given."""
        return self.record.tags


class RefusedRequest(NamedTuple):
    """A request that was refused, so that there is no transfer.

    Args:
        place: where the object was to be stored; its parts are empty where the request did not say.
        tags: none, or the one that was given.
        code: the error's.
        usec: when it was refused, microseconds since the epoch.
        host: as of `ReportedTransfer`.
    """

    place: Place
    tags: Sequence[str]
    code: str
    usec: int
    host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is asked for. Several values of a kind are alternatives; an empty tuple is not a condition.

    Args:
        since_usec: recorded then or later, microseconds since the epoch.
        until_usec: recorded then or earlier.
        buckets: names.
        prefixes: what keys begin with.
        tags: whole tags.
        hosts: as the journal's _HOSTNAME has them.
        units: systemd units of daemons, with their suffix; without one those of the service.
        of_this_host: the entries are from the journal of this host, where the service's name their unit.
    """

    since_usec: int | None = None
    until_usec: int | None = None
    buckets: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    of_this_host: bool = False

    def matches(self) -> list[str]:
        """Return FIELD=VALUE for journalctl: values of one field are alternatives, each further field narrows.

        After the + are the other kinds: what delayed transfers carries no tag.
        """
        where = _matches(("_HOSTNAME", self.hosts), ("_SYSTEMD_UNIT", self.units))
        what = _matches(("S3DAEMON_BUCKET", self.buckets), ("S3DAEMON_TAG", self.tags))
        others = [f"MESSAGE_ID={kind}" for kind in OTHERS]
        return [f"MESSAGE_ID={MessageId.RECORD}", *what, *where, "+", *others, *where]

    def trusts(self, entry: JournalEntry) -> bool:
        """Whether an entry is from the units that are asked for.

        One without a unit is where no units are given, unless it is of this host: it may have lost its trusted fields
        in a copy, or be of a daemon that systemd did not start. One by which root dropped a transfer is where no units
        are given.
        """
        unit = entry.get("_SYSTEMD_UNIT")
        if self.units:
            return unit in self.units
        if entry.get("_UID") == "0" and str(entry.get("S3DAEMON_ERROR")).startswith(f"{Code.DROPPED}: "):
            return True
        return not self.of_this_host if unit is None else _UNIT.fullmatch(str(unit)) is not None

    def admits(self, one: ReportedTransfer | RefusedRequest, recorded_usec: int) -> bool:
        """Whether a transfer, or a refused request, meets every condition.

        Args:
            one: which.
            recorded_usec: when journald took its entry, microseconds since the epoch.
        """
        bucket, key = one.place
        return (
            self.covers(one.host, recorded_usec)
            and (not self.buckets or bucket in self.buckets)
            and (not self.prefixes or key.startswith(self.prefixes))
            and (not self.tags or not set(self.tags).isdisjoint(one.tags))
        )

    def covers(self, host: str, recorded_usec: int) -> bool:
        """Whether a host is selected, and a time of recording, in microseconds since the epoch."""
        return (
            (not self.hosts or host in self.hosts)
            and (self.since_usec is None or recorded_usec >= self.since_usec)
            and (self.until_usec is None or recorded_usec <= self.until_usec)
        )


def _matches(*wanted: tuple[str, tuple[str, ...]]) -> list[str]:
    return [f"{field}={value}" for field, values in wanted for value in values]


class Collection:
    """The selected transfers, each once, however often it was recorded.

    A transfer is recorded again after a crash between record and spool, when an operator has it tried again, and when
    the journals of one host are read twice. A record that says stored beats one that says failed. Among several that
    say stored the first is right, for the object was there by then; among several failures the last.

    Args:
        selection: what is kept; entries that it does not trust are not to be added.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._by_id: dict[str, ReportedTransfer] = {}
        #: Records and refusals that cannot be read, or have a number that cannot be true.
        self.unreadable = 0
        #: The selected requests that were refused, if they had a tag or a destination.
        self.refused: list[RefusedRequest] = []
        #: Entries that the selected hosts' journals did not take in the selected time.
        self.lost = 0

    def add(self, entry: JournalEntry) -> None:
        """Take an entry of a journal; one of another kind, or not selected, is ignored."""
        if entry.get("MESSAGE_ID") == MessageId.LOST:
            usec = decimal_of(entry.get("__REALTIME_TIMESTAMP")) or 0
            if self._selection.covers(str(entry.get("_HOSTNAME", "")), usec):
                self.lost += decimal_of(entry.get("S3DAEMON_LOST")) or 0
            return
        if entry.get("MESSAGE_ID") == MessageId.REFUSED:
            self._add_refused(entry)
            return
        fields = {name: _shared(entry[name]) for name in FIELDS if name in entry}
        record = TransferRecord.from_fields(fields)
        if record is None or not _is_plausible(record):
            self.unreadable += fields.get("MESSAGE_ID") == MessageId.RECORD
            return
        transfer = ReportedTransfer(record, str(fields.get("_HOSTNAME", "")), str(fields.get("_SYSTEMD_UNIT", "")))
        if not self._selection.admits(transfer, _recorded_usec(entry, transfer)):
            return
        known = self._by_id.get(record.transfer_id)
        if known is None or _supersedes(transfer, known):
            self._by_id[record.transfer_id] = transfer

    def _add_refused(self, entry: JournalEntry) -> None:
        names = ("BUCKET", "KEY", "TAG", "ERROR")
        bucket, key, tag, error = (str(entry.get(f"S3DAEMON_{name}", "")) for name in names)
        host = str(entry.get("_HOSTNAME", ""))
        usec = decimal_of(entry.get("__REALTIME_TIMESTAMP")) or 0
        if usec < BEGIN_USEC:
            self.unreadable += 1
            return
        one = RefusedRequest((bucket, key), (tag,) if tag else (), error.partition(":")[0], usec, host)
        if (tag or key) and self._selection.admits(one, usec):
            self.refused.append(one)

    def transfers(self) -> list[ReportedTransfer]:
        """Return what was kept, by the time of request."""
        return sorted(self._by_id.values(), key=lambda one: (one.record.start_usec, one.record.transfer_id))


def _shared(value: object) -> object:
    """Return one text for all that are alike, as most are; what is not a text is left to the record."""
    return sys.intern(value) if type(value) is str else value


def _is_plausible(record: TransferRecord) -> bool:
    """Whether its times can be true, and its other numbers have 64 bits at most, as all that a daemon writes have."""
    times = (record.end_usec, record.queue_usec, record.upload_usec or 0, record.rtt_usec or 0)
    numbers = (record.size_bytes, record.attempts, record.retransmits or 0)
    return record.start_usec >= BEGIN_USEC and max(times) < END_USEC and max(numbers) < 1 << 64


def _supersedes(new: ReportedTransfer, known: ReportedTransfer) -> bool:
    if new.record.stored != known.record.stored:
        return new.record.stored
    return (new.end_usec < known.end_usec) if new.record.stored else (new.end_usec > known.end_usec)


def _recorded_usec(entry: JournalEntry, transfer: ReportedTransfer) -> int:
    """When journald took the entry; the end of the transfer where the entry does not say."""
    usec = decimal_of(entry.get("__REALTIME_TIMESTAMP"))
    return transfer.end_usec if usec is None else usec


def decimal_of(value: object) -> int | None:
    """The microseconds that a field of an entry has; None when it has none, or more than can be shown."""
    with suppress(ValueError):
        usec = whole(value) if isinstance(value, str) else END_USEC
        return usec if usec < END_USEC else None
    return None
