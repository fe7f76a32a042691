"""Records of transfers for tests, and their journal entries."""

import json
from dataclasses import replace
from typing import Any

from s3daemon.model.record import Refusal, TransferRecord

START_USEC = 1_795_400_000_000_000
"""2026-11-23 02:13:20 UTC."""

_PLAIN = TransferRecord(
    transfer_id="0000000000000000",
    outcome="stored",
    file="/data/f.fits",
    bucket="raw",
    key="night/f.fits",
    tags=("exposure-1",),
    size_bytes=8_000_000,
    start_usec=START_USEC,
    queue_usec=1_000,
    upload_usec=400_000,
    total_usec=402_000,
    attempts=1,
    endpoint="https://s3.example.org",
    rtt_usec=200_000,
    retransmits=0,
    connection="warm",
)


def record(number: int, **changes: Any) -> TransferRecord:
    """A stored transfer, with an id made of its number, and with these changes."""
    return replace(_PLAIN, transfer_id=f"{number:016x}", **changes)


def failed(number: int, error: str = "NoSuchBucket: it is not there", **changes: Any) -> TransferRecord:
    """One that failed."""
    return record(number, outcome="failed", error=error, upload_usec=None, **changes)


def entry(made: TransferRecord, host: str = "node1", recorded_usec: int | None = None, **others: str) -> dict[str, Any]:
    """Its journal entry as `journalctl -o json --all` shows it, recorded at its end unless `recorded_usec` is given."""
    found: dict[str, Any] = {}
    for name, value in made.fields():
        text = value.decode() if isinstance(value, bytes) else str(value)
        found[name] = [*found[name], text] if isinstance(found.get(name), list) else (
            [found[name], text] if name in found else text
        )  # fmt: skip
    end_usec = made.start_usec + made.total_usec if recorded_usec is None else recorded_usec
    return found | {"_HOSTNAME": host, "__REALTIME_TIMESTAMP": str(end_usec)} | others


def line(made: TransferRecord, host: str = "node1", **others: str) -> bytes:
    """That entry as a line."""
    return json.dumps(entry(made, host) | others).encode() + b"\n"


def refusal(destination: str, tag: str = "", code: str = "NotReadable", second: int = 0, **others: str) -> bytes:
    """The line of a refused request's entry, so many seconds after `START_USEC`; of node1 unless `others` say more."""
    fields = Refusal(code=code, text="no", destination=destination, tag=tag).fields()
    at = {"_HOSTNAME": "node1", "__REALTIME_TIMESTAMP": str(START_USEC + second * 1_000_000)}
    return json.dumps({name: str(value) for name, value in fields} | at | others).encode() + b"\n"
