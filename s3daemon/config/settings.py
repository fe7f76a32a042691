"""Every variable of the environment: what it is called, its unit, its default, its bounds and why.

`Settings` is the one table. `Settings.from_environ` reads a mapping that is passed in, once; a bad value, a missing one
and an unknown `S3DAEMON_` name are faults, and all are told at once. An empty value counts as not set.

Secrets are in no repr, in no fault and in no traceback.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from s3daemon.config.environ import Read, check_file, read_file, text_of, unknown
from s3daemon.config.values import (
    Kind,
    Variable,
    addresses,
    choice,
    count,
    duration,
    endpoint,
    hosts,
    matching,
    names,
    path,
    paths,
    rate,
    size,
)
from s3daemon.errors import SettingsError

_NAME = matching("[A-Za-z0-9._:-]+", "a name without spaces")
_KEY = matching("[!-~]{1,128}", "1 to 128 characters without spaces")
_TOKEN = matching("[!-~]{1,16384}", "text without spaces")
#: Where systemd puts the credentials of services (systemd.exec(5)). The daemon can read its own; its clients must not.
_CREDENTIALS = "/run/credentials"
#: The bounds of two settings that others are sized by.
MAX_CONNECTIONS, MAX_CLIENTS = 1024, 8192
_HOST_IS_ADDRESS = re.compile(r"//(\[|[0-9.]+(:|$))")


class Row(NamedTuple):
    """One variable as the manuals list it; `unit` is that of a plain number."""

    name: str
    default: str
    unit: str
    meaning: str


def _var(name: str, default: str | None, kind: Kind, meaning: str, **flags: bool) -> Any:
    """A field of the table: the default's text is read by the very kind that reads an operator's; None is required."""
    variable = Variable(name, default or "", kind, meaning, **flags)
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
        "A file with the keys, in the format of the AWS tools. It is used when the two key variables are not set.",
    )
    profile: str = _var("AWS_PROFILE", "", _TOKEN, "The section of that file. If this is not set, [default] is used.")
    receivers: tuple[str, ...] = _var(
        "S3DAEMON_RECEIVERS",
        "",
        addresses(),
        "IP addresses of the store, separated by commas. If this is not set, all addresses of its name are used.",
    )
    region: str = _var(
        "AWS_DEFAULT_REGION", "us-east-1", _NAME, "The region, which is part of every signature. Ceph accepts any."
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
        "The address to listen on. Not used when systemd passes the socket.",
        restart=True,
    )
    port: int = _var(
        "S3DAEMON_PORT",
        "15555",
        count(1, 65535),
        "The port to listen on. Not used when systemd passes the socket.",
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
        "How many clients are served at a time. Others wait in the socket's backlog.",
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
        "An attempt fails when the network acknowledged none of its data for this long.",
    )
    wait_limit_s: float = _var(
        "S3DAEMON_WAIT_LIMIT",
        "30s",
        duration("0s", "1h"),
        'The longest time that a client waits. Then it is answered "deferred", and the transfer continues.',
    )
    retry_for_s: float = _var(
        "S3DAEMON_RETRY_FOR",
        "7d",
        duration("1s", "365d"),
        "How long a transfer is tried. Only time in which the daemon runs and the queue is not held counts.",
    )
    answer_timeout_s: float = _var(
        "S3DAEMON_ANSWER_TIMEOUT",
        "60s",
        duration("1s", "1h"),
        "The longest wait for the store's answer after it received the whole file.",
    )
    keep_failed_s: float = _var(
        "S3DAEMON_KEEP_FAILED",
        "7d",
        duration("1s", "3650d"),
        "How long a failed transfer stays listed. Only time in which the daemon runs counts.",
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
    # Below 100 kbit/s an image takes many minutes: someone wrote 4 for 4G.
    bwlimit_bps: int = _var(
        "S3DAEMON_BWLIMIT",
        "0",
        rate("100k", "1000G"),
        "The most that all uploads together may send, such as 4G; 0 is no limit.",
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
        "",
        matching("[^/\\s=]+/[^\\s=]+", "bucket/key-prefix, no = or space in it"),
        "Bucket and key prefix of scratch objects that widen each new connection's window. If not set, there are none.",
    )
    # 5 GiB is S3's limit for one PUT, 5 MiB its least for a part ("Amazon S3 multipart upload limits").
    multipart_threshold_bytes: int = _var(
        "S3DAEMON_MULTIPART_THRESHOLD",
        "100MiB",
        size("5MiB", "5GiB"),
        "Larger files are sent in parts, several at a time.",
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
        choice("auto", "off"),
        "auto: what was sent is compared with the store's ETag if that is an MD5 sum. off: only the length is.",
    )
    allowed_roots: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_ROOTS",
        "",
        paths(),
        "Directories, separated by colons. Only files below them may be sent. If this is not set, any file may be.",
    )
    allowed_buckets: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_BUCKETS",
        "",
        names(),
        "Buckets that may be written, separated by commas. If this is not set, any bucket may be.",
    )
    allowed_users: tuple[str, ...] = _var(
        "S3DAEMON_ALLOWED_USERS",
        "",
        names(),
        "Local users who may make requests, by name or number, separated by commas. If this is not set, any user may.",
    )
    http_names: tuple[str, ...] = _var(
        "S3DAEMON_HTTP_NAMES",
        "",
        hosts(),
        "Host names, separated by commas, by which HTTP clients may address the daemon besides localhost.",
    )
    state_dir: str = _var(
        "S3DAEMON_STATE_DIR",
        None,
        path(),
        "The directory of accepted transfers. If this is not set, systemd's STATE_DIRECTORY is used.",
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
            environ: the variables; those that are not ours are passed over.
            read: the content of a file (a credential, the CA bundle), or OSError.

        Raises:
            SettingsError: with every fault, in the order of the table.
        """
        faults: list[str] = []
        present: set[str] = set()
        values: dict[str, Any] = {}
        for name, variable in VARIABLES.items():
            try:
                text = text_of(variable, environ, read)
                if not text:
                    continue
                present.add(name)
                values[name] = variable.read(text)
                if name in ("ca_bundle", "shared_credentials_file"):
                    check_file(variable, Path(text), read)
            except SettingsError as exc:
                present.add(name)
                faults += exc.faults
        faults += [*_conflicts(present, values.get("endpoint_url", "")), *unknown(environ, VARIABLES.values())]
        if faults:
            raise SettingsError(faults)
        return cls(**values)

    def private_paths(self) -> tuple[str, ...]:
        """Files and directories of the daemon's own, which no client may have sent."""
        return (_CREDENTIALS, self.state_dir, *filter(None, [self.shared_credentials_file]))

    def secrets(self) -> tuple[str, ...]:
        """What no log may hold. An access key's id is no secret: a store names it when it refuses it."""
        return tuple(filter(None, (self.secret_key, self.session_token)))


class SettingsHolder:
    """The settings in force. A reload replaces them here, once, for everyone who was given the holder.

    Who needs values that must not change under it, such as a connection or an attempt, takes `current` once.
    """

    def __init__(self, current: Settings) -> None:
        self.current = current


#: The table by field name, in its order.
VARIABLES: Mapping[str, Variable] = {f.name: f.metadata["variable"] for f in fields(Settings)}
#: The fields that a reload puts in force.
RELOADABLE = frozenset(name for name, variable in VARIABLES.items() if not variable.restart)


def describe() -> list[Row]:
    """The table for people."""
    return [Row(v.name, v.default, v.kind.unit, v.meaning) for v in VARIABLES.values()]


def differences(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """The variables in which two settings differ: those that a reload puts in force, and those that take a restart."""
    changed = [name for name in VARIABLES if getattr(old, name) != getattr(new, name)]
    applied = [VARIABLES[name].name for name in changed if name in RELOADABLE]
    return applied, [VARIABLES[name].name for name in changed if name not in RELOADABLE]


def of_operator(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are an operator's to set, misspelt ones of ours included: what a reload hands over."""
    known = {variable.name for variable in VARIABLES.values()}
    return {name: text for name, text in environ.items() if name in known or name.startswith("S3DAEMON_")}


def _conflicts(present: set[str], url: str) -> Iterator[str]:
    """What is missing or does not go together, given the fields that are set, well or badly."""
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
