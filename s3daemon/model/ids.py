"""A transfer's id as a UUID and back: clients over HTTP expect a UUID, everything else shows 16 hex digits."""

from __future__ import annotations

import re

# Version 8 leaves its content to the application (RFC 9562, section 5.8): twelve digits, fixed ones, four digits.
_UUID = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-8000-8000-0{8}([0-9a-f]{4})")


def uuid_of(transfer_id: str) -> str:
    """Return the UUID that stands for a transfer: `0a4f4b5ad7ef5b43` is `0a4f4b5a-d7ef-8000-8000-000000005b43`."""
    return f"{transfer_id[:8]}-{transfer_id[8:12]}-8000-8000-00000000{transfer_id[12:]}"


def id_of(text: str) -> str:
    """Return the id that a UUID of `uuid_of` stands for; any other text in lower case, as ids are."""
    match = _UUID.fullmatch(text.lower())
    return "".join(match.groups()) if match else text.lower()
