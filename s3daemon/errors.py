"""Every error that s3daemon raises on purpose; any other exception is a bug.

    S3daemonError
    ├── SettingsError   the operator's: the environment is wrong; lists every fault at once
    ├── StartError      the operator's: the service cannot run here (socket, lock, state directory)
    ├── RequestError    the client's: the request cannot be understood or is not allowed
    │   └── FileError   the client's: the file cannot be sent (missing, a FIFO, unreadable, changed, ...)
    ├── SpoolError      the host's: the transfer cannot be made durable (disk full, read-only, corrupt)
    └── AttemptError    the network's or the store's: one attempt did not store the object

Each carries `code`, a stable word for programs (S3's own where S3 has one), and `text`, one line for people that says
what to do if something can be done. `str()` returns only the text.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum


class Code(StrEnum):
    """Our own stable words for programs. Where the store gives a code, that is used instead, see `model.verdict`."""

    # The operator's.
    BAD_SETTINGS = "BadSettings"
    BAD_DESCRIPTOR = "BadDescriptor"
    BAD_NOTIFY_SOCKET = "BadNotifySocket"
    BAD_STATE_DIRECTORY = "BadStateDirectory"
    CANNOT_LISTEN = "CannotListen"
    CONTROL_SOCKET = "ControlSocket"
    NO_SPOOL = "NoSpool"
    SPOOL_BROKEN = "SpoolBroken"
    SPOOL_CORRUPT = "SpoolCorrupt"
    SPOOL_DENIED = "SpoolDenied"
    SPOOL_LOCKED = "SpoolLocked"
    SPOOL_NEWER = "SpoolNewer"

    # The client's.
    BAD_REQUEST = "BadRequest"
    NOT_ALLOWED = "NotAllowed"
    INTERRUPTED = "Interrupted"

    # The file's.
    FILE_CHANGED = "FileChanged"
    NO_SUCH_FILE = "NoSuchFile"
    NOT_READABLE = "NotReadable"
    NOT_REGULAR_FILE = "NotRegularFile"
    READ_FAILED = "ReadFailed"

    # The spool's, beside SpoolBroken.
    SPOOL_CLOSED = "SpoolClosed"
    SPOOL_FULL = "SpoolFull"
    SPOOL_READ_ONLY = "SpoolReadOnly"

    # Of an attempt: the network's, or an answer that is not S3's.
    BAD_ANSWER = "BadAnswer"
    CONNECT_TIMEOUT = "ConnectTimeout"
    CONNECTION_CLOSED = "ConnectionClosed"
    CONNECTION_FAILED = "ConnectionFailed"
    ETAG_MISMATCH = "ETagMismatch"
    HOST_LIMIT = "HostLimit"
    NAME_NOT_RESOLVED = "NameNotResolved"
    NO_ANSWER = "NoAnswer"
    NO_CREDENTIALS = "NoCredentials"
    OVERTAKEN = "Overtaken"
    OVERWRITTEN = "Overwritten"
    SLOW_CONNECTION = "SlowConnection"
    STALE_CONNECTION = "StaleConnection"
    STALLED = "Stalled"
    TLS_FAILED = "TLSFailed"
    TLS_REFUSED = "TLSRefused"

    # Of a command.
    BAD_INPUT = "BadInput"
    NO_DAEMON = "NoDaemon"
    NO_INPUT = "NoInput"
    NO_JOURNAL = "NoJournal"
    NO_PLOTTING = "NoPlotting"
    NO_READER = "NoReader"
    NOT_PERMITTED = "NotPermitted"
    NOT_WRITABLE = "NotWritable"
    NOTHING_STORED = "NothingStored"

    # Anyone's.
    DEFERRED = "Deferred"
    INCOMPLETE = "Incomplete"
    UNKNOWN_TRANSFER = "UnknownTransfer"
    DROPPED = "Dropped"
    INTERNAL = "Internal"


class S3daemonError(Exception):
    """Base of the tree.

    Args:
        code: the stable word, for example `NoSuchFile`.
        text: one line for people.

    Attributes:
        faults: the text, or a line for each of several faults.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.faults: tuple[str, ...] = (text,)

    @property
    def brief(self) -> str:
        """The first fault, and how many more there are, for a line that has other things to say."""
        first, *others = self.faults
        return first + (f" (and {len(others)} more)" if others else "")


class SettingsError(S3daemonError):
    """The environment is wrong.

    Args:
        faults: one line each, all that were found.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(Code.BAD_SETTINGS, "; ".join(faults))
        self.faults = tuple(faults)


class StartError(S3daemonError):
    """The service cannot run here, whatever the settings say."""


class RequestError(S3daemonError):
    """The client's request is refused; nothing was accepted."""


class FileError(RequestError):
    """The file cannot be sent as it is: when it is asked for, or later, at an attempt of an accepted transfer.

    Attributes:
        status, retry_after, address, other_address: as in `AttemptError`, so that both are handled alike; constant,
            since a file's error involves no store.
    """

    status = 0
    retry_after = 0.0
    address = ""
    other_address = False


class SpoolError(S3daemonError):
    """The spool cannot record what it was asked to; what it holds already is safe."""


class AttemptError(S3daemonError):
    """One attempt to store an object failed.

    Args:
        code: S3's error code, or one of ours for what never became an answer (`ConnectionFailed`, `Stalled`, ...).
        text: one line.
        status: the HTTP status, 0 when there was no answer.
        ambiguous: the whole body may have arrived, so the object may be in the store.
        retry_after: seconds that the store asked us to wait (Retry-After), 0 when it did not.
        address: the store's address where it failed; empty when none was reached.
        other_address: the address is to blame, and another one is enabled where this transfer has not failed yet.
        silent_s: seconds without a sign of life of the store before the attempt was given up; 0: it was heard of, or
            hung up, just then.
    """

    def __init__(
        self,
        code: str,
        text: str,
        *,
        status: int = 0,
        ambiguous: bool = False,
        retry_after: float = 0.0,
        address: str = "",
        other_address: bool = False,
        silent_s: float = 0.0,
    ) -> None:
        super().__init__(code, text)
        self.status = status
        self.ambiguous = ambiguous
        self.retry_after = retry_after
        self.address = address
        self.other_address = other_address
        self.silent_s = silent_s


#: Redacting shorter words would garble half of a text; they are no secrets, and no store gives such keys.
MIN_SECRET_CHARS = 4


def to_redact(secrets: Iterable[str]) -> list[str]:
    """Return the secrets that no text may show, the longest first, since one may be part of another."""
    return sorted({secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS}, key=len, reverse=True)


def one_line(text: str, limit: int = 500) -> str:
    r"""Make `text` fit for one line: control characters and undecodable bytes are shown as `\n`, `\x1b`, `\udcff`.

    Args:
        text: anything; may hold lone surrogates from undecodable file names.
        limit: characters kept; longer text has "..." in its middle. Its end says what to do, behind a name that may be
            long: of the 4096 bytes of a path each may be shown as six characters.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    tail = limit // 3
    return shown if len(shown) <= limit else f"{shown[: limit - tail - 3]}...{shown[-tail:]}"


def quoted(text: str, limit: int = 500) -> str:
    """Return `one_line(text, limit)` in quotes, for a message that shows what a client gave."""
    return f"'{one_line(text, limit)}'"


#: What the kernel says when this host has no descriptor or no memory left, which passes; no one else is to blame.
_HOST_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: The text of `HostLimit`.
HOST_LIMIT_TEXT = "this host has no descriptor or no memory left: see LimitNOFILE= of the unit, and free"


def is_host_limit(error: BaseException | None) -> bool:
    """Return whether `error`, or what caused it, is such a limit of this host."""
    return is_caused_by(error, _HOST_LIMITS)


def is_caused_by(error: BaseException | None, numbers: Collection[int]) -> bool:
    """Return whether `error`, or what caused it, is one of the kernel's errors with these numbers."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
