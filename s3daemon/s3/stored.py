"""What is known of an object that is in the store, and the marks by which it is found again."""

from __future__ import annotations

import re
from dataclasses import dataclass

from s3daemon.model.request import Transfer

#: The object's metadata (`x-amz-meta-...` on the wire): the transfer that stored it, and which content of its file.
ID_KEY, FILE_KEY = "s3daemon-id", "s3daemon-file"
#: The ETag of what was stored in parts, on S3 and all that follow it: MD5 of the parts' MD5s, and how many there were.
_OF_PARTS = re.compile(r"[0-9a-fA-F]{32}-([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of an object that is in the store.

    Args:
        etag: as the store gave it, without quotes.
        size: bytes.
        upload_usec: of the attempt that stored it, from taking a connection to the answer, microseconds; 0 when it was
            found there. Of a file in parts, earlier attempts' parts take none of it.
        rtt_usec: smoothed round-trip time at the end, microseconds, of parts their median; 0 when unknown.
        retransmits: TCP segments sent again meanwhile, by all connections that took part.
        connection: `warm`; `new` when one had to be opened for it; empty when it was found there.
        parts: how many it was stored in.
        receiver: the address that took it, of parts the last one's; empty when it was found there.
    """

    etag: str
    size: int
    upload_usec: int = 0
    rtt_usec: int = 0
    retransmits: int = 0
    connection: str = ""
    parts: int = 1
    receiver: str = ""


def marks_of(transfer: Transfer) -> dict[str, str]:
    """The metadata of a transfer's object."""
    return {ID_KEY: transfer.id, FILE_KEY: transfer.file_state.mark}


def parts_of(etag: str) -> int:
    """How many parts an object was stored in, as far as its ETag tells."""
    found = _OF_PARTS.fullmatch(etag)
    return int(found[1]) if found else 1
