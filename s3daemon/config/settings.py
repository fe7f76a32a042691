"""Every setting: its environment variable, unit, default and bounds, with reasons.

`Settings` is the one table. `Settings.from_environ` reads a mapping that is passed in, once; a bad value, a missing one
and an unknown `S3DAEMON_` name, of a variable or of a credential, are faults, and all are reported at once. An empty
value counts as not set.

The text of a variable comes from the environment, or from a systemd credential of its name in lower case: a file in
$CREDENTIALS_DIRECTORY such as `aws_secret_access_key`. A variable that is set in both places is a fault, since one of
the two would be out of date one day.

Secrets are in no repr, in no fault and in no traceback.
"""

from __future__ import annotations

import difflib
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from s3daemon.config.directories import own_directory
from s3daemon.config.values import (
    Kind,
    Variable,
    addresses,
    buckets,
    choice,
    count,
    duration,
    endpoint,
    hosts,
    matching,
    names,
    path,
    paths,
    priming,
    rate,
    size,
)
from s3daemon.errors import SettingsError, one_line

#: What botocore takes as the name of a region, a label of a host name (`validate_region_name`, botocore 1.43).
_REGION = matching(
    "(?![0-9]+$)(?!-)[A-Za-z0-9-]{1,63}(?<!-)",
    "1 to 63 letters, digits and hyphens, not only digits, such as us-east-1",
)
_NAME = matching("[A-Za-z0-9._:-]+", "a name without spaces")
_KEY = matching("[!-~]{1,128}", "1 to 128 characters without spaces")
_TOKEN = matching("[!-~]{1,16384}", "text without spaces")
#: Where systemd puts the credentials of services (systemd.exec(5)). The daemon can read its own; its clients must not.
_CREDENTIALS = "/run/credentials"
#: The value of S3DAEMON_PRIME that needs no scratch objects.
PRIME_AUTO = "auto"
#: The bounds of two settings that others are sized by.
MAX_CONNECTIONS, MAX_CLIENTS = 1024, 8192
_HOST_IS_ADDRESS = re.compile(r"//(\[|[0-9.]+(:|$))")


Read = Callable[[Path], str]
"""Returns the content of a file, or raises OSError."""


def read_file(file: Path) -> str:
    """Return a file's content, with bytes that are not UTF-8 as lone surrogates."""
    return file.read_text("utf-8", errors="surrogateescape")


def _var(name: str, default: str | None, kind: Kind, meaning: str, **options: Any) -> Any:
    """Make a field of the table. Its default is read as an operator's text is; None makes it required."""
    variable = Variable(name, default or "", kind, meaning, **options)
    value = variable.read(default) if default else MISSING if default is None else kind.empty
    return field(default=value, metadata={"variable": variable}, repr=not variable.secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one daemon; each field's documentation is its `Variable`.

    Raises:
        SettingsError: a value that its kind does not admit, or keys that do not go together.
    """

    endpoint_url: str = _var(
        "S3_ENDPOINT_URL", None, endpoint(), "The URL of the store, such as https://s3.example.org:7480."
    )
    access_key: str = _var("AWS_ACCESS_KEY_ID", "", _KEY, "The access key.", secret=True)
    secret_key: str = _var("AWS_SECRET_ACCESS_KEY", "", _KEY, "The secret key.", secret=True)
    session_token: str = _var("AWS_SESSION_TOKEN", "", _TOKEN, "The token that belongs to temporary keys.", secret=True)
    shared_credentials_file: str = _var(
        "AWS_SHARED_CREDENTIALS_FILE",
        "",
        path(),
        "A file with the keys, in the format of the AWS tools. It is used if the two key variables are not set. "
        "It is read at the start and at a reload: whatever renews temporary keys there has to reload the service.",
    )
    profile: str = _var(
        "AWS_PROFILE", "", _TOKEN, "The section of AWS_SHARED_CREDENTIALS_FILE. If this is not set, [default] is used."
    )
    receivers: tuple[str, ...] = _var(
        "S3DAEMON_RECEIVERS",
        "",
        addresses(),
        "IP addresses of the store, separated by commas. If this is not set, all addresses of its host name are used.",
    )
    region: str = _var(
        "AWS_DEFAULT_REGION",
        "us-east-1",
        _REGION,
        "The region, part of every signature. Ceph accepts any region. If this is not set, AWS_REGION is used.",
        fallback="AWS_REGION",
    )
    ca_bundle: str = _var(
        "AWS_CA_BUNDLE",
        "",
        path(),
        "A PEM file with the certificate authorities to trust for https. If this is not set, the system's are used.",
    )
    host: str = _var(
        "S3DAEMON_HOST",
        "localhost",
        _NAME,
        "The address to listen on. It is not used if systemd passes the socket.",
        restart=True,
    )
    port: int = _var(
        "S3DAEMON_PORT",
        "15555",
        count(1, 65535),
        "The port to listen on. It is not used if systemd passes the socket.",
        restart=True,
    )
    max_connections: int = _var(
        "S3DAEMON_MAX_CONNECTIONS",
        "25",
        count(1, MAX_CONNECTIONS),
        "How many uploads run at a time, each on a warm connection of its own.",
    )
    # Each costs a descriptor here and one in systemd's store, whose own bound is in the unit.
    max_clients: int = _var(
        "S3DAEMON_MAX_CLIENTS",
        "1024",
        count(1, MAX_CLIENTS),
        "How many clients are served at a time, by the line protocol and by HTTP each. Others wait in the socket's "
        "backlog.",
    )
    connect_timeout_s: float = _var(
        "S3DAEMON_CONNECT_TIMEOUT",
        "5s",
        duration("100ms", "5min"),
        "The longest time for opening a connection, TLS handshake included.",
    )
    # Less than a second is less than one lost packet and its repetition take on a slow line.
    stall_timeout_s: float = _var(
        "S3DAEMON_STALL_TIMEOUT",
        "10s",
        duration("1s", "10min"),
        "An attempt fails when none of its data has been acknowledged for this long.",
    )
    wait_limit_s: float = _var(
        "S3DAEMON_WAIT_LIMIT",
        "30s",
        duration("0s", "1h"),
        "The longest time that a client waits; a restart of the service begins it anew. Then the client is answered "
        '"deferred", and the transfer continues.',
    )
    retry_for_s: float = _var(
        "S3DAEMON_RETRY_FOR",
        "7d",
        duration("1s", "365d"),
        "How long a transfer is tried. Time counts only while the daemon runs and the queue is not held.",
    )
    answer_timeout_s: float = _var(
        "S3DAEMON_ANSWER_TIMEOUT",
        "60s",
        duration("1s", "1h"),
        "The longest time to wait for the store's answer after it has received the whole file.",
    )
    keep_failed_s: float = _var(
        "S3DAEMON_KEEP_FAILED",
        "7d",
        duration("1s", "3650d"),
        "How long a failed transfer stays listed. Time counts only while the daemon runs and the queue is not held.",
    )
    # systemd is asked for this much more time, so nothing but patience bounds it.
    drain_timeout_s: float = _var(
        "S3DAEMON_DRAIN_TIMEOUT",
        "20s",
        duration("0s", "10min"),
        "How long uploads in flight may continue when the service stops.",
    )
    # Above: servers close idle connections after some 60 s. Below: more pings than uploads.
    keepalive_interval_s: float = _var(
        "S3DAEMON_KEEPALIVE_INTERVAL",
        "10s",
        duration("1s", "10min"),
        "How often an idle connection is used, so that it stays open and fast.",
    )
    bwlimit_bps: int | None = _var(
        "S3DAEMON_BWLIMIT",
        "auto",
        rate(),
        "The maximum combined rate of all uploads, such as 4G. auto: the rate of the narrowest link to the store, "
        "which the daemon finds and keeps across restarts. 0 or off: no limit.",
    )
    # TCP_CA_NAME_MAX is 16 with its NUL.
    congestion: str = _var(
        "S3DAEMON_CONGESTION",
        "",
        matching("[a-z0-9_-]{1,15}", "a name such as bbr or cubic"),
        "The TCP congestion control of uploads. If this is not set, the system's default is used.",
    )
    prime: str = _var(
        "S3DAEMON_PRIME",
        "off",
        priming(),
        "How to widen the congestion window of each new connection, which makes the first exposure after a start a "
        "quarter shorter. auto, for paths with a round trip of 50 ms or more: send 1 MB that the store must refuse for "
        "its wrong Content-MD5. A store that checks it stores nothing, and logs a BadDigest for each connection. "
        "bucket/key-prefix: write scratch objects with that prefix.",
    )
    # 5 GiB is S3's limit for one PUT, 5 MiB its least for a part ("Amazon S3 multipart upload limits").
    multipart_threshold_bytes: int = _var(
        "S3DAEMON_MULTIPART_THRESHOLD",
        "100MiB",
        size("5MiB", "5GiB"),
        "Files larger than this, and than one part, are sent in parts, several at a time.",
    )
    part_size_bytes: int = _var(
        "S3DAEMON_PART_SIZE",
        "64MiB",
        size("5MiB", "5GiB"),
        "The size of a part. It is larger for a file that would otherwise have more than 10000 parts.",
    )
    verify: str = _var(
        "S3DAEMON_VERIFY",
        "auto",
        choice("auto", "off", "no-etag"),
        "How a stored object is verified. auto: by the store's ETag, if that is an MD5 sum. off: the ETag is not "
        "compared. no-etag, only for sinks in benchmarks: any answer from 200 to 299 counts as stored, even one that a "
        "proxy or a login page gives without storing anything.",
    )
    allowed_roots: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_ROOTS",
        "",
        paths(),
        "Directories, separated by colons. Only files below them may be sent. If this is not set, all files may be.",
    )
    allowed_buckets: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_BUCKETS",
        "",
        buckets(),
        "Buckets that may be written, separated by commas. A colon is part of a name, as in Ceph's tenant:bucket. If "
        "this is not set, all buckets may be.",
    )
    allowed_users: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_USERS",
        "",
        names(),
        "Users who may make requests, by name or number, separated by commas. If this is not set, all users may.",
    )
    http_names: tuple[str, ...] = _var(
        "S3DAEMON_HTTP_NAMES",
        "",
        hosts(),
        "Further host names, separated by commas, by which HTTP clients may address the daemon, besides localhost.",
    )
    state_dir: str = _var(
        "S3DAEMON_STATE_DIR",
        None,
        path(),
        "The directory for accepted transfers. If this is not set, systemd's STATE_DIRECTORY is used.",
        restart=True,
    )
    log_level: str = _var(
        "S3DAEMON_LOG_LEVEL",
        "info",
        choice("debug", "info", "warning", "error"),
        "The lowest level of messages that are logged.",
    )

    def __post_init__(self) -> None:
        faults: list[str] = []
        for name, variable in VARIABLES.items():
            value = getattr(self, name)
            if (value != variable.kind.empty or variable.default) and not variable.kind.admits(value):
                faults += variable.unexpected(value).faults
        if faults := [*faults, *_conflicts({name for name in VARIABLES if getattr(self, name)}, self.endpoint_url)]:
            raise SettingsError(faults)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, read: Read = read_file) -> Settings:
        """Read the environment.

        Args:
            environ: the variables; those of other programs are ignored.
            read: reads a file (a credential, the CA bundle).

        Raises:
            SettingsError: with every fault, in the order of the table; or that the credentials cannot be listed, alone.
        """
        faults: list[str] = []
        present: set[str] = set()
        values: dict[str, Any] = {}
        credentials = _credentials(environ)
        for name, variable in VARIABLES.items():
            try:
                variable, text = _given(variable, environ, read)  # noqa: PLW2901 - a fault names it
                if not text:
                    continue
                present.add(name)
                values[name] = variable.read(text)
                if name in ("ca_bundle", "shared_credentials_file"):
                    _check_file(variable, Path(text), read)
            except SettingsError as exc:
                present.add(name)
                faults += exc.faults
        faults += [*_conflicts(present, values.get("endpoint_url", "")), *_unknown(environ, credentials)]
        if faults:
            raise SettingsError(faults)
        return cls(**values)

    def private_paths(self) -> tuple[str, ...]:
        """Files and directories of the daemon's own, which no client may have sent."""
        return (_CREDENTIALS, self.state_dir, *filter(None, [self.shared_credentials_file]))

    def secrets(self) -> tuple[str, ...]:
        """Return what no log may hold. An access key's id is not a secret: a store names it when it refuses it."""
        return tuple(filter(None, (self.secret_key, self.session_token)))


class SettingsHolder:
    """The settings in force. A reload replaces them here, once, for every object that was given the holder.

    An object that needs values which do not change, such as a connection or an attempt, takes `current` once.
    """

    def __init__(self, current: Settings) -> None:
        self.current = current


#: The table by field name, in its order.
VARIABLES: Mapping[str, Variable] = {f.name: f.metadata["variable"] for f in fields(Settings)}
#: Variables of the original s3daemon that have no use here, and what holds instead: a warning each, not a fault.
RETIRED: Mapping[str, str] = {
    "S3DAEMON_MAX_RETRIES": "a transfer is tried for S3DAEMON_RETRY_FOR, however often that is",
    "S3DAEMON_ACCEPT_WAIT": "clients are accepted at once, up to S3DAEMON_MAX_CLIENTS",
    "S3DAEMON_LOG": "the log is in the systemd journal, and S3DAEMON_LOG_LEVEL chooses what is logged",
}
_PREFIX = "S3DAEMON_"
_NAMES = [name for v in VARIABLES.values() for name in (v.name, v.fallback) if name]
#: The fields that restrict what clients may do. One that is not set means no limit.
RESTRICTIONS = ("allowed_users", "allowed_roots", "allowed_buckets")
#: The fields that a reload puts in force.
RELOADABLE = frozenset(name for name, variable in VARIABLES.items() if not variable.restart)


def differences(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """Return the variables in which two settings differ: those that a reload puts in force, and those that do not."""
    changed = [name for name in VARIABLES if getattr(old, name) != getattr(new, name)]
    applied = [VARIABLES[name].name for name in changed if name in RELOADABLE]
    return applied, [VARIABLES[name].name for name in changed if name not in RELOADABLE]


def reloaded(old: Settings, new: Settings) -> Settings:
    """Return the new settings, with the old values of what a reload does not put in force."""
    return replace(new, **{name: getattr(old, name) for name in VARIABLES if name not in RELOADABLE})


def lifted(old: Settings, new: Settings) -> list[str]:
    """Return the variables of the restrictions that the old settings have and the new ones have not."""
    return [VARIABLES[name].name for name in RESTRICTIONS if getattr(old, name) and not getattr(new, name)]


def of_operator(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an operator sets, misspelt ones of ours included: what a reload hands over."""
    return {name: text for name, text in environ.items() if name in _NAMES or _is_named_as_ours(name)}


def of_service(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that systemd sets, which a reload keeps as the running daemon has them."""
    ours = ("CREDENTIALS_DIRECTORY", "RUNTIME_DIRECTORY", "STATE_DIRECTORY")
    return {name: environ[name] for name in ours if name in environ}


def _conflicts(present: set[str], url: str) -> Iterator[str]:
    """Yield what is missing or does not go together, given the fields that are set, to good values or bad ones."""
    if "endpoint_url" not in present:
        yield "S3_ENDPOINT_URL is not set: the address of the store, such as https://s3.example.org"
    keys = {"access_key", "secret_key"}
    if not keys & present and "shared_credentials_file" not in present:
        yield (
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set: set both, pass them as systemd credentials, "
            "or name a file that holds them in AWS_SHARED_CREDENTIALS_FILE"
        )
    elif len(keys & present) == 1:
        (missing,) = keys - present
        yield f"{VARIABLES[missing].name} is not set, though the other of the two keys is"
    if "session_token" in present and not keys & present:
        yield "AWS_SESSION_TOKEN is set without the keys that it goes with"
    if "profile" in present and "shared_credentials_file" not in present:
        yield "AWS_PROFILE is a section of the file that AWS_SHARED_CREDENTIALS_FILE names, which is not set"
    if "receivers" in present and url and _HOST_IS_ADDRESS.search(url):
        yield "S3DAEMON_RECEIVERS is set, but S3_ENDPOINT_URL has an address: give it the name that TLS and Host go by"
    if "state_dir" not in present:
        yield "S3DAEMON_STATE_DIR is not set: a directory for accepted transfers; under systemd StateDirectory= sets it"


def unused_address(settings: Settings, listening: Sequence[str]) -> str:
    """Return a warning if the address that is set is none of those at which systemd's sockets listen; else "".

    Args:
        settings: those of the daemon.
        listening: HOST:PORT of each socket that systemd passed, or a path.
    """
    hosts, _, ports = zip(*(at.rpartition(":") for at in listening), strict=True)
    taken = {"host": (Settings.host, *hosts), "port": (str(Settings.port), *ports)}
    unused = [VARIABLES[name].name for name in taken if str(getattr(settings, name)) not in taken[name]]
    text = f"not used, as systemd listens on {', '.join(listening)}: use ListenStream= in a drop-in of the socket unit"
    return f"{' and '.join(unused)}: {text}" if unused else ""


def retired(environ: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable of the original s3daemon that is ignored."""
    return [f"{name} is ignored: {instead}; remove it" for name, instead in RETIRED.items() if name in environ]


def _given(variable: Variable, environ: Mapping[str, str], read: Read) -> tuple[Variable, str]:
    """Return the variable that counts, this one or its fallback, and its text, "" when neither is set.

    Raises:
        SettingsError: as for `_text_of`.
    """
    text = _text_of(variable, environ, read)
    if text or not variable.fallback:
        return variable, text
    variable = replace(variable, name=variable.fallback)
    return variable, _text_of(variable, environ, read)


def _text_of(variable: Variable, environ: Mapping[str, str], read: Read) -> str:
    """Return the text of a variable from the environment or its credential, "" when it is in neither.

    Raises:
        SettingsError: it is in both, or the credential cannot be read or has several lines.
    """
    text, credential = environ.get(variable.name, ""), ""
    if directory := environ.get("CREDENTIALS_DIRECTORY", ""):
        file = Path(directory, variable.name.lower())
        shown = f"the credential {one_line(str(file))}"
        try:
            credential = read(file).rstrip("\r\n")
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise SettingsError([f"{variable.name}: {shown} cannot be read: {exc.strerror}"]) from exc
    if "\n" in credential:
        raise SettingsError([f"{variable.name}: {shown} has several lines: write the value alone"])
    if text and credential:
        raise SettingsError([f"{variable.name} is set in the environment and as a systemd credential: keep one"])
    if variable.name == "S3DAEMON_STATE_DIR":
        return text or credential or own_directory(environ.get("STATE_DIRECTORY", ""))
    return text or credential


def _check_file(variable: Variable, file: Path, read: Read) -> None:
    """Check that the file that a variable names can be used.

    Raises:
        SettingsError: it cannot.
    """
    try:
        content = read(file)
        if variable.name == "AWS_CA_BUNDLE":
            # Comments of a bundle are in any script; Python takes ASCII alone.
            ssl.create_default_context(cadata=content.encode("ascii", "ignore").decode() or "\n")
    except ssl.SSLError:
        raise variable.fault(file, "no certificate in PEM form can be read from it") from None
    except OSError as exc:
        raise variable.fault(file, f"it cannot be read: {exc.strerror}") from exc


def _credentials(environ: Mapping[str, str]) -> list[str]:
    """Return the names of the systemd credentials.

    Raises:
        SettingsError: they cannot be listed.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        return [file.name for file in Path(directory).iterdir()] if directory else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:  # ValueError: no path holds a null byte
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise SettingsError([f"the systemd credentials in {one_line(directory)} cannot be listed: {why}"]) from exc


def _unknown(environ: Mapping[str, str], credentials: Iterable[str]) -> Iterator[str]:
    """Yield a fault for each variable and each credential that is named as ours are, in any case, and is none."""
    for name in sorted(filter(_is_named_as_ours, environ)):
        if name not in _NAMES and name not in RETIRED:
            hint = f": is {meant} meant?" if (meant := _nearest(name)) else ""
            yield f"{one_line(name)} is not a variable of s3daemon{hint}"
    for name in sorted(filter(_is_named_as_ours, credentials)):
        if name != name.lower() or name.upper() not in _NAMES:
            hint = f": is the credential {meant.lower()} meant?" if (meant := _nearest(name)) else ""
            yield f"the systemd credential {one_line(name)} is not a variable of s3daemon{hint}"


def _is_named_as_ours(name: str) -> bool:
    return name.upper().startswith(_PREFIX)


def _nearest(name: str) -> str:
    """Return the variable that a misspelt name is likely to mean; "" when none is near."""
    # Without the prefix, which would make all of them look alike.
    words = [known.removeprefix(_PREFIX) for known in _NAMES if known.startswith(_PREFIX)]
    close = difflib.get_close_matches(name.upper().removeprefix(_PREFIX), words, n=1)
    return _PREFIX + close[0] if close else ""
