"""The rows of the queue: made of what the spool and the daemon know, and read back from JSON as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.control.rows import Row, row_of
from s3daemon.errors import S3daemonError
from s3daemon.model.request import Destination, FileState, Transfer
from s3daemon.spool.rows import Entry

TRANSFER = Transfer(
    "0123456789abcdef",
    "/data/2025/img_0001.fits",
    Destination("raw", "2025/img_0001.fits"),
    ("exposure-1",),
    FileState(8_388_608, 1, 2, 3),
    accepted_usec=1_000_000_000,
)
ROW = row_of(
    Entry(7, TRANSFER, 0.0, 3, False, "SlowDown", "busy"), "pending", age_s=TRANSFER.age_s(4661.9), next_in_s=12.7
)

texts = st.text(max_size=80)
rows = st.builds(
    Row,
    id=st.text("0123456789abcdef", min_size=16, max_size=16),
    state=st.sampled_from(["in flight", "pending", "behind", "held", "failed"]),
    age_s=st.integers(0, 10**8),
    attempts=st.integers(0, 10**5),
    code=texts,
    text=texts,
    next_in_s=st.none() | st.floats(0, 300),
    size_bytes=st.integers(0, 1 << 43),
    destination=texts,
    file=texts,
    notified=st.booleans(),
)


def test_the_row_of_an_entry() -> None:
    """What the spool knows and what the daemon adds."""
    assert ROW.as_dict() == {
        "id": "0123456789abcdef",
        "state": "pending",
        "age_s": 3661,
        "attempts": 3,
        "code": "SlowDown",
        "text": "busy",
        "next_in_s": 12.7,
        "size_bytes": 8_388_608,
        "destination": "raw/2025/img_0001.fits",
        "file": "/data/2025/img_0001.fits",
        "told": False,
    }


def test_an_age_is_never_negative() -> None:
    """A clock that was set back makes it 0."""
    assert row_of(Entry(7, TRANSFER, 0.0), "pending", age_s=TRANSFER.age_s(0.0)).age_s == 0


@given(rows)
def test_through_json_and_back(one: Row) -> None:
    """Rows come back as they were, whatever a later version adds."""
    assert Row.from_dict(json.loads(json.dumps({**one.as_dict(), "later": 1}))) == one


@pytest.mark.parametrize("members", [None, [], "x", {}])
def test_what_is_not_a_row_is_an_error(members: Any) -> None:
    """What lacks a member is named as what it is: another version's."""
    with pytest.raises(S3daemonError, match="of another version"):
        Row.from_dict(members)
