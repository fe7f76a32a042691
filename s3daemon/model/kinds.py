"""The kinds of entries that the journal gets from the daemon, and how urgent each is."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class MessageId(StrEnum):
    """MESSAGE_ID of each kind of entry; `systemd/s3daemon.catalog` explains them under the same ids."""

    #: The transfer ended, stored or failed: one id for both, so that one match finds every transfer.
    RECORD = "59de861c00b54c97810d5760a3b1b9a0"
    ATTEMPT_FAILED = "e3e2e43e172e458d9cce4364dccb89e8"
    DEFERRED = "8e30c6257aeb45cfa6adcb1bf5ba5ba6"
    HELD = "3aba696119f64c20a250e69b4fda689f"
    ADDRESS_DISABLED = "deef83802f6b4baca55f48fbe103025c"
    SPOOL_FULL = "8fddd14d9438493b8285f10ebc69eb78"
    SPOOL_WRITABLE = "cbb9ce6e3e7b49aa9becfd35516eb903"
    REFUSED = "339529112b20454a9cf8be29ffb8e24e"


class Priority(IntEnum):
    """PRIORITY, as syslog(3) numbers it."""

    CRITICAL = 2
    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7
