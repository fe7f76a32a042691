"""Turn the text of a setting into a value: quantities with units, lists, paths, an endpoint. Pure.

A `Kind` knows what it takes, in words that finish the sentence "expected ...", how text converts, and which values it
admits. Converting and admitting are separate, so that settings made in code have the bounds of those in a file. A
`Variable` gives a kind its name in the environment and words the faults, without ever showing a secret.

    quantity = number [SP] [suffix]     5, 2.5min, 64 MiB, 4G; a suffix is case-sensitive, as M is not m
    list     = words between commas or spaces; lists of paths have colons between, as PATH has
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from s3daemon.errors import SettingsError, one_line

_Units = Mapping[str, int | Fraction]
#: The bounds of a limit of the bandwidth, set or found, bit/s. Below them an image takes many minutes; such
#: a value is probably a typo, as 4 for 4G.
LEAST_BPS, MOST_BPS = 100_000, 10**12
_DURATIONS: _Units = {"": 1, "ms": Fraction(1, 1000), "s": 1, "min": 60, "h": 3600, "d": 86400}
_SIZES: _Units = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RATES: _Units = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
#: The widest rule for names, S3's first one, and before a colon Ceph's tenant.
_BUCKET = re.compile(r"(?:[A-Za-z0-9_]*:)?[A-Za-z0-9._-]+")
_LABEL = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
#: What botocore takes as the host of an endpoint, RFC 1123; the resolver takes a trailing dot as the end of the name.
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}\.?")
_MAX_HOST_NAME = 253
#: To the resolver a name that ends in a number is an address in an old form, such as 127.1, which aiohttp refuses.
_NUMBER_LAST = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")

#: What may be a secret key in the wrong line, alone or beside something else, as in `25 # KEY`.
_LIKE_A_KEY = re.compile("[A-Za-z0-9/+]{20,}")
#: The part of a path that may be one; the slashes of a path do not count.
_PART_LIKE_A_KEY = re.compile("[A-Za-z0-9+]{20,}")


@dataclass(frozen=True)
class Kind:
    """What a setting takes.

    Args:
        expected: what is taken, in words.
        convert: text to value; ValueError when it is not such a thing at all.
        admits: whether a value is within bounds.
        empty: the value of a setting that is not set and has no default.
    """

    expected: str
    convert: Callable[[str], Any]
    admits: Callable[[Any], bool]
    empty: Any = ""


@dataclass(frozen=True)
class Variable:
    """One variable of the environment.

    Args:
        name: what the environment calls it.
        default: as an operator would write it, empty where there is none.
        kind: what it takes.
        meaning: one line for the manual.
        restart: a change requires a restart; a reload does not put it in force.
        secret: the value is never shown.
        fallback: another variable, which counts when this one is not set.
    """

    name: str
    default: str
    kind: Kind
    meaning: str
    restart: bool = False
    secret: bool = False
    fallback: str = ""

    def read(self, text: str) -> Any:
        """Return the value that `text` stands for.

        Raises:
            SettingsError: it stands for nothing, or for a value out of bounds.
        """
        if why := _garbled(text):
            raise SettingsError([f"{self.name}: {why}"])
        try:
            value = self.kind.convert(text)
        except ValueError:
            # Not `from` it: that error's text is the value, and the value may be a secret.
            raise self.unexpected(text) from None
        if not self.kind.admits(value):
            raise self.unexpected(text)
        return value

    def unexpected(self, value: object) -> SettingsError:
        """Return the error for a value that the kind does not take."""
        return self.fault(value, f"expected {self.kind.expected}")

    def fault(self, value: object, why: str) -> SettingsError:
        """Return the error for one fault, with the value where it may be shown.

        Not shown are secrets, what may hold a key, URLs that may hold one, and what has an equals sign: a backslash at
        the end of a line of the environment file joins the next to it, and that may be the secret key's.
        """
        text = str(value)
        hidden = self.secret or "=" in text or (self.name.endswith("_URL") and ("@" in text or "?" in text))
        # A path as such is fine, and its file is at fault.
        hidden = hidden or may_hold_key(text, is_path=isinstance(value, PurePath))
        return SettingsError([f"{self.name}: {why}" if hidden else f"{self.name} is '{one_line(text, 80)}': {why}"])


def may_hold_key(text: str, *, is_path: bool = False) -> bool:
    """Whether some of a text looks like a secret key, so that no message may quote it."""
    return (_PART_LIKE_A_KEY if is_path else _LIKE_A_KEY).search(text) is not None


#: What a text cannot have been meant to be, and what that says of the file it came from.
_GARBLED: Sequence[tuple[Callable[[str], object], str]] = (
    (re.compile("[\n\r]").search, "it has a line break: is a quote left open in this line or the one above?"),
    (
        lambda text: any(unicodedata.category(c) in ("Cc", "Cs") for c in text),
        "it has a control character or is not UTF-8",
    ),
    (re.compile("^['\"]|['\"]$").search, "it begins or ends with a quote: is one left open or doubled?"),
    (
        re.compile(r"(?:AWS|S3|S3DAEMON)_[A-Z_]+\s*=").search,
        "it has another setting in it: each has a line of its own, and none ends in a backslash",
    ),
    (re.compile(r"\s#").search, "a comment after a value is a part of it: write it on a line of its own"),
    (lambda text: text != text.strip(), "it begins or ends with a space"),
)


def _garbled(text: str) -> str:
    """Return why `text` cannot have been meant, or "".

    To systemd a garbled environment file is not an error: an open quote swallows the next line, a doubled one is kept.
    What that leaves behind is found here, in the values; it may hold another line's secret, so it is not shown.
    """
    return next((why for is_so, why in _GARBLED if is_so(text)), "")


def _scale(units: _Units, text: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return Fraction(match[1]) * units[match[2]]


def _whole(units: _Units, text: str) -> int:
    value = _scale(units, text)
    if value.denominator != 1:
        raise ValueError(text)
    return value.numerator


def duration(low: str, high: str) -> Kind:
    """Return a kind for seconds, as a float."""

    def convert(text: str) -> float:
        return float(_scale(_DURATIONS, text))

    expected = f"a duration from {low} to {high}: a number of seconds, or one with ms, s, min, h or d"
    return Kind(expected, convert, lambda v: convert(low) <= v <= convert(high))


def rate() -> Kind:
    """Return a kind for bits per second, as an int: 0 for no limit, and None for one that is found."""

    def convert(text: str) -> int | None:
        word = text.lower()
        return None if word == "auto" else 0 if word == "off" else _whole(_RATES, text)

    bounds = f"{LEAST_BPS // 1000}k to {MOST_BPS // 10**9}G"
    expected = f"auto, off or 0 for no limit, or {bounds}: a number of bit/s, or one with k, M or G (decimal)"
    return Kind(expected, convert, lambda v: v is None or v == 0 or LEAST_BPS <= v <= MOST_BPS)


def size(low: str, high: str) -> Kind:
    """Return a kind for bytes, as an int."""

    def convert(text: str) -> int:
        return _whole(_SIZES, text)

    expected = f"a size from {low} to {high}: a number of bytes, or one with kB, MB, GB, KiB, MiB or GiB"
    return Kind(expected, convert, lambda v: convert(low) <= v <= convert(high))


def count(low: int, high: int) -> Kind:
    """Return a kind for a plain number."""
    return Kind(f"a number from {low} to {high}", lambda text: _whole({"": 1}, text), lambda v: low <= v <= high)


def choice(*words: str) -> Kind:
    """Return a kind for one of a few words."""
    return Kind(f"one of {', '.join(words)}", str.lower, lambda v: v in words)


def matching(pattern: str, expected: str) -> Kind:
    """Return a kind for text that a regular expression matches as a whole; it must not match the empty text."""
    compiled = re.compile(pattern)
    return Kind(expected, str, lambda v: compiled.fullmatch(v) is not None)


def priming() -> Kind:
    """Return a kind for the way to prime connections: `auto`, bucket/key-prefix, or empty for `off`."""
    bucket_prefix = re.compile("[^/\\s=]+/[^\\s=]+")

    def convert(text: str) -> str:
        word = text.lower()
        return "" if word == "off" else word if word == "auto" else text

    expected = "off, auto, or bucket/key-prefix without = or spaces"
    return Kind(expected, convert, lambda v: v in ("", "auto") or bucket_prefix.fullmatch(v) is not None)


def _absolute(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/")


def path() -> Kind:
    """Return a kind for an absolute path, kept as text; it need not exist."""
    return Kind("an absolute path without ..", str, _absolute)


def paths() -> Kind:
    """Return a kind for absolute paths with colons between, as a tuple without trailing slashes."""

    def convert(text: str) -> tuple[str, ...]:
        return tuple(part.rstrip("/") or "/" if part else part for part in text.split(":"))

    expected = "absolute paths without .., separated by colons"
    return Kind(expected, convert, lambda v: all(_absolute(part) for part in v), empty=())


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in re.split("[, ]+", text) if word)


def names() -> Kind:
    """Return a kind for words with commas or spaces between, as a tuple."""
    return Kind("names separated by commas or spaces", _words, bool, empty=())


def buckets() -> Kind:
    """Return a kind for names of buckets, as `names` does; one that no bucket has would have all requests refused."""
    expected = "names of buckets, without paths or wildcards, separated by commas or spaces"
    return Kind(expected, _words, lambda v: bool(v) and all(map(_BUCKET.fullmatch, v)), empty=())


def hosts() -> Kind:
    """Return a kind for names of hosts, as `names` does; no addresses, which the guard of HTTP does not look up."""

    def is_name(word: str) -> bool:
        return _HOST.fullmatch(word) is not None and not _NUMBER_LAST.fullmatch(word.lower())

    expected = "host names without ports, separated by commas or spaces"
    return Kind(expected, _words, lambda v: bool(v) and all(map(is_name, v)), empty=())


def addresses() -> Kind:
    """Return a kind for IP addresses with commas or spaces between, as a tuple."""

    def convert(text: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(ip_address(word)) for word in _words(text)))

    return Kind("IP addresses separated by commas or spaces", convert, bool, empty=())


def _is_host(host: str) -> bool:
    """Whether botocore and aiohttp both take a host, in lower case, as a name or an address."""
    try:
        if ":" in host:
            return bool(IPv6Address(host)) and "%" not in host
        if _NUMBER_LAST.fullmatch(host):
            return bool(IPv4Address(host))
    except ValueError:
        return False
    return len(host) <= _MAX_HOST_NAME and _HOST_NAME.fullmatch(host) is not None


def endpoint() -> Kind:
    """Return a kind for the URL of a store, without a trailing slash, in lower case, an IPv6 address in its short form.

    botocore signs the host in lower case, and would send it as it is. Of an address aiohttp connects to what stands
    there, and the kernel calls it by its short form; one that stands for an IPv4 address is taken as that, as Python
    and the kernel write it in two ways.
    """

    def shorten(found: re.Match[str]) -> str:
        address = IPv6Address(found[1])
        return str(address.ipv4_mapped or f"[{address}]")

    def convert(text: str) -> str:
        url = text.removesuffix("/").lower()
        try:
            return re.sub(r"(?<=//)\[([0-9a-f:.]+)\]", shorten, url)
        except ValueError:
            return url

    def admits(url: str) -> bool:
        # urlsplit drops some characters that it does not like, so the text is checked before it is split.
        if not re.fullmatch("[!-~]+", url):
            return False
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return False
        plain = f"{parts.scheme}://{parts.netloc}" == url and "@" not in url and not parts.netloc.endswith(":")
        return plain and parts.scheme in ("http", "https") and _is_host(parts.hostname or "") and port != 0

    expected = (
        "http:// or https://, a host name of letters, digits, hyphens and dots or an IP address, an optional port, "
        "and nothing else (no path, query or user)"
    )
    return Kind(expected, convert, admits)
