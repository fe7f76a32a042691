"""Which transfers a report is about, and each of them once.

What is asked for twice, of journald and here, is asked of journald for speed alone: its indices find one exposure among
millions of entries. Whether an entry counts is decided here, for every source alike.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from s3daemon.model.record import MessageId, TransferRecord

#: One entry as a reader gives it: text, bytes, numbers, or lists of them, by field.
Entry = Mapping[str, object]

#: What is read of an entry. Not among it: the file and the ETag, which no report shows and which would be a third of
#: what 200 000 records take in memory.
_UNIQUE = (
    "S3DAEMON_TRANSFER_ID", "S3DAEMON_KEY", "S3DAEMON_SIZE_BYTES", "S3DAEMON_START_USEC", "S3DAEMON_QUEUE_USEC",
    "S3DAEMON_UPLOAD_USEC", "S3DAEMON_TOTAL_USEC", "S3DAEMON_RTT_USEC",
)  # fmt: skip
#: Those whose values occur again and again, each kept once.
_SHARED = (
    "MESSAGE_ID", "S3DAEMON_OUTCOME", "S3DAEMON_BUCKET", "S3DAEMON_TAG", "S3DAEMON_ATTEMPTS", "S3DAEMON_ENDPOINT",
    "S3DAEMON_ERROR", "S3DAEMON_RETRANSMITS", "S3DAEMON_CONNECTION", "S3DAEMON_RECEIVER", "S3DAEMON_CHANGED",
    "_HOSTNAME", "_SYSTEMD_UNIT",
)  # fmt: skip
#: Of 64 bits; more is no time, and from some thousand on Python refuses it.
_USEC_DIGITS = 20


class ReportedTransfer(NamedTuple):
    """A transfer's record and where it was made."""

    record: TransferRecord
    #: What the entry's host called itself; empty when the entry does not say.
    host: str

    @property
    def end_usec(self) -> int:
        """When the transfer ended: microseconds since the epoch."""
        return self.record.start_usec + self.record.total_usec


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which transfers are meant. Of several values of a kind any one will do; an empty tuple asks for nothing.

    Args:
        since_usec: recorded then or later, microseconds since the epoch.
        until_usec: recorded then or earlier.
        buckets: names.
        prefixes: what keys begin with.
        tags: whole tags.
        hosts: as the journal's _HOSTNAME has them.
        units: systemd units of daemons, with their suffix.
    """

    since_usec: int | None = None
    until_usec: int | None = None
    buckets: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def matches(self) -> list[str]:
        """FIELD=VALUE for journald: those of one field are alternatives, fields narrow each other."""
        wanted = (
            ("S3DAEMON_BUCKET", self.buckets),
            ("S3DAEMON_TAG", self.tags),
            ("_HOSTNAME", self.hosts),
            ("_SYSTEMD_UNIT", self.units),
        )
        return [f"MESSAGE_ID={MessageId.RECORD}", *(f"{field}={value}" for field, values in wanted for value in values)]

    def admits(self, sighting: ReportedTransfer, unit: str, recorded_usec: int) -> bool:
        """Whether it is meant.

        Args:
            sighting: the record and its host.
            unit: whose record it is.
            recorded_usec: when journald took the record, microseconds since the epoch.
        """
        record = sighting.record
        return (
            (self.since_usec is None or recorded_usec >= self.since_usec)
            and (self.until_usec is None or recorded_usec <= self.until_usec)
            and (not self.buckets or record.bucket in self.buckets)
            and (not self.prefixes or record.key.startswith(self.prefixes))
            and (not self.tags or not set(self.tags).isdisjoint(record.tags))
            and (not self.hosts or sighting.host in self.hosts)
            and (not self.units or unit in self.units)
        )


class Collection:
    """The transfers that were seen, each once, however often its record was.

    A transfer is recorded again after a crash between record and spool, when an operator has it tried again, and when
    the journals of one host come twice. A record that says stored beats one that says failed; among those that say
    stored the first is the truth, for the object was there by then; among failures it is the last.

    Args:
        selection: what is kept.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._by_id: dict[str, ReportedTransfer] = {}
        self._same: dict[object, str] = {}
        #: Records that repeat another.
        self.repeated = 0
        #: Entries that call themselves a record and cannot be read as one.
        self.unreadable = 0

    def add(self, entry: Entry) -> None:
        """Take an entry of a journal; one that is no record, or not meant, is passed over."""
        fields: dict[str, object] = {name: entry[name] for name in _UNIQUE if name in entry}
        for name in _SHARED:
            if name in entry:
                fields[name] = self._shared(entry[name])
        record = TransferRecord.from_fields(fields)
        if record is None:
            self.unreadable += fields.get("MESSAGE_ID") == MessageId.RECORD
            return
        sighting = ReportedTransfer(record, str(fields.get("_HOSTNAME", "")))
        if not self._selection.admits(sighting, str(fields.get("_SYSTEMD_UNIT", "")), _recorded_usec(entry, sighting)):
            return
        known = self._by_id.get(record.transfer_id)
        self.repeated += known is not None
        if known is None or _supersedes(sighting, known):
            self._by_id[record.transfer_id] = sighting

    def _shared(self, value: object) -> object:
        """The value as text, and one text for all that are alike; a field that repeats is left to the record."""
        if not isinstance(value, (str, bytes)):
            return value
        found = self._same.get(value)
        if found is None:
            found = self._same[value] = value if isinstance(value, str) else os.fsdecode(value)
        return found

    def sightings(self) -> list[ReportedTransfer]:
        """What was kept, by the time of request."""
        return sorted(self._by_id.values(), key=lambda seen: (seen.record.start_usec, seen.record.transfer_id))


def _supersedes(new: ReportedTransfer, known: ReportedTransfer) -> bool:
    if new.record.stored != known.record.stored:
        return new.record.stored
    return (new.end_usec < known.end_usec) if new.record.stored else (new.end_usec > known.end_usec)


def _recorded_usec(entry: Entry, sighting: ReportedTransfer) -> int:
    """When journald took the entry, in whichever form its reader says it; without that the end of the transfer."""
    match entry.get("__REALTIME_TIMESTAMP"):
        case int(usec):
            return usec
        case datetime() as when:
            return round(when.timestamp() * 1e6)
        case str(text) if text.isdecimal() and len(text) <= _USEC_DIGITS:
            return int(text)
    return sighting.end_usec
