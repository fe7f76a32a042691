"""Records: what is written to the journal is read back unchanged, by either reader.

The line for people begins with what existing scripts look for: start, seconds, destination.
"""

import json
import syslog
import uuid
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.model.record import AttemptFailure, Field, MessageId, Priority, TransferRecord

STORED = TransferRecord(
    transfer_id="0123456789abcdef",
    outcome="stored",
    file="/data/a b.fits",
    bucket="raw",
    key="2025/a b.fits",
    tags=("exposure-1", "exposure-2"),
    size_bytes=8388608,
    start_usec=1_764_000_000_000_042,
    queue_usec=1_500,
    upload_usec=243_000,
    total_usec=245_499,
    attempts=1,
    endpoint="https://s3.example.org",
    etag="9e107d9d372bb6826bd81d3542a419d6",
    rtt_usec=200_000,
    retransmits=0,
    connection="warm",
    receiver="192.0.2.1",
    changed=True,
    parts=12,
    moved=2,
)
FAILED = TransferRecord(
    transfer_id="fedcba9876543210",
    outcome="failed",
    file="/data/gone",
    bucket="raw",
    key="gone",
    size_bytes=0,
    start_usec=7,
    total_usec=1_000_000,
    attempts=3,
    error="NoSuchFile: /data/gone is not there",
)


def as_json(fields: list[Field]) -> dict[str, Any]:
    """One entry as `journalctl -o json --all` prints it: byte values where it is not UTF-8, a list of what repeats."""
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for name, value in fields:
        data = value if isinstance(value, bytes) else str(value).encode()
        try:
            found[name].append(data.decode())
        except UnicodeDecodeError:
            found[name].append(list(data))
    text = json.dumps({name: values[0] if len(values) == 1 else values for name, values in found.items()})
    return {"_PID": "1", "__CURSOR": "s=1", **json.loads(text)}


@pytest.mark.parametrize("record", [STORED, FAILED], ids=["stored", "failed"])
def test_what_is_written_is_read_back(record: TransferRecord) -> None:
    """Every field."""
    assert TransferRecord.from_fields(as_json(record.fields())) == record


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name), st.lists(st.text(min_size=1), max_size=3))
def test_any_file_name_and_tags_are_read_back(name: bytes, tags: list[str]) -> None:
    """Also file names that are not UTF-8."""
    tags = [tag for tag in tags if tag.isprintable()]
    record = TransferRecord(
        transfer_id="0",
        outcome="stored",
        file="/" + name.decode(errors="surrogateescape"),
        bucket="b",
        key="k",
        tags=tuple(tags),
        size_bytes=0,
        start_usec=0,
        total_usec=0,
        attempts=1,
    )
    assert TransferRecord.from_fields(as_json(record.fields())) == record


def test_the_line_begins_with_start_seconds_destination() -> None:
    """Existing scripts look for exactly this form."""
    assert STORED.message() == "1764000000.000042 0.245 sec - raw/2025/a b.fits stored, 8388608 bytes, 1 attempt"
    assert FAILED.message() == (
        "0.000007 1.000 sec - raw/gone failed, 0 bytes, 3 attempts, NoSuchFile: /data/gone is not there"
    )


def test_the_outcome_shows_in_field_and_priority() -> None:
    """Both outcomes have the same MESSAGE_ID."""
    stored, failed = dict(STORED.fields()), dict(FAILED.fields())
    assert (stored["S3DAEMON_OUTCOME"], stored["PRIORITY"]) == ("stored", 6)
    assert (failed["S3DAEMON_OUTCOME"], failed["PRIORITY"]) == ("failed", 3)
    assert stored["MESSAGE_ID"] == failed["MESSAGE_ID"] == MessageId.RECORD


def test_tags_repeat_and_unknown_values_are_left_out() -> None:
    """A measured 0 is not left out."""
    assert [value for name, value in STORED.fields() if name == "S3DAEMON_TAG"] == ["exposure-1", "exposure-2"]
    assert not {"S3DAEMON_TAG", "S3DAEMON_ETAG", "S3DAEMON_UPLOAD_USEC", "S3DAEMON_RTT_USEC", "S3DAEMON_CHANGED"} & {
        name for name, _ in FAILED.fields()
    }
    assert dict(STORED.fields())["S3DAEMON_RETRANSMITS"] == 0


@pytest.mark.parametrize(
    "spoilt",
    [
        {"MESSAGE_ID": MessageId.DEFERRED},
        {"MESSAGE_ID": None},
        {"S3DAEMON_SIZE_BYTES": None},
        {"S3DAEMON_SIZE_BYTES": "many"},
        {"S3DAEMON_ATTEMPTS": "-1"},
        {"S3DAEMON_OUTCOME": "lost"},
        {"S3DAEMON_KEY": None},
        {"S3DAEMON_FILE": [300]},
    ],
    ids=repr,
)
def test_an_entry_that_is_not_a_record_reads_as_none(spoilt: dict[str, object]) -> None:
    """Another kind of entry, a missing field, or a bad value."""
    assert TransferRecord.from_fields(as_json(STORED.fields()) | spoilt) is None


def test_of_a_field_that_repeats_the_first_value_counts() -> None:
    """Only tags are written more than once."""
    ids = [MessageId.RECORD, MessageId.DEFERRED]
    repeated = {
        "MESSAGE_ID": ids,
        "S3DAEMON_KEY": [STORED.key, "other"],
        "S3DAEMON_SIZE_BYTES": [str(STORED.size_bytes), "1"],
    }
    assert TransferRecord.from_fields(as_json(STORED.fields()) | repeated) == STORED


@pytest.mark.parametrize(
    "wrong",
    [
        {"outcome": "deferred"},
        {"error": "Oops: stored and failed"},
        {"outcome": "failed"},
        {"connection": "cold"},
        {"key": ""},
        {"transfer_id": ""},
        {"total_usec": -1},
        {"rtt_usec": -1},
    ],
    ids=repr,
)
def test_a_bad_record_cannot_be_constructed(wrong: dict[str, Any]) -> None:
    """Values that contradict each other or are out of range."""
    values = {name: getattr(STORED, name) for name in STORED.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"."):
        TransferRecord(**(values | wrong))


def test_a_failed_attempt_is_a_warning_with_the_transfers_id() -> None:
    """It is not read as a record."""
    failure = AttemptFailure(
        transfer_id="0123456789abcdef",
        bucket="raw",
        key="a",
        attempt=2,
        code="SlowDown",
        text="reduce your request rate",
        receiver="192.0.2.3",
        delay_usec=1_540_000,
    )
    fields = dict(failure.fields())
    assert fields["PRIORITY"] == 4
    assert fields["S3DAEMON_TRANSFER_ID"] == "0123456789abcdef"
    assert fields["S3DAEMON_DELAY_USEC"] == 1_540_000
    assert fields["S3DAEMON_RECEIVER"] == "192.0.2.3"
    assert fields["MESSAGE"] == "raw/a attempt 2 failed, next in 1.5 s, SlowDown: reduce your request rate"
    assert TransferRecord.from_fields(as_json(failure.fields())) is None


def test_priorities_are_those_of_syslog() -> None:
    names = {"CRITICAL": "LOG_CRIT", "ERROR": "LOG_ERR"}
    assert {one.name: one.value for one in Priority} == {
        one.name: getattr(syslog, names.get(one.name, f"LOG_{one.name}")) for one in Priority
    }


def test_message_ids_are_distinct_and_valid() -> None:
    """32 hex digits each."""
    assert len(set(MessageId)) == len(MessageId.__members__)
    assert all(uuid.UUID(kind).hex == kind for kind in MessageId)
