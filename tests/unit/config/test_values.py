"""Values: text becomes the value that its unit says, and nothing else becomes a value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3daemon.config import values
from s3daemon.config.values import Kind, Variable
from s3daemon.errors import SettingsError

_DURATION = values.duration("100ms", "7d")
_SIZE = values.size("5MiB", "5GiB")
_RATE = values.rate()


def read(kind: Kind, text: str) -> object:
    """Read `text` as an operator's."""
    return Variable("NAME", "", kind, "").read(text)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (_DURATION, "5", 5.0),
        (_DURATION, "5s", 5.0),
        (_DURATION, "250ms", 0.25),
        (_DURATION, "2.5 min", 150.0),
        (_DURATION, "7d", 604800.0),
        (_DURATION, "100ms", 0.1),
        (_RATE, "0", 0),
        (_RATE, "4G", 4_000_000_000),
        (_RATE, "2.5M", 2_500_000),
        (_SIZE, "100MiB", 100 << 20),
        (_SIZE, "6 MB", 6_000_000),
        (_SIZE, "5242880", 5 << 20),
        (values.addresses(), "10.0.0.2, 2001:db8:0::1 10.0.0.2", ("10.0.0.2", "2001:db8::1")),
        (values.count(1, 65535), "65535", 65535),
        (values.choice("auto", "off"), "OFF", "off"),
        (values.priming(), "OFF", ""),
        (values.priming(), "Auto", "auto"),
        (values.priming(), "Bucket/off", "Bucket/off"),
        (values.priming(), "b/scratch/p-", "b/scratch/p-"),
        (values.path(), "/etc/x y", "/etc/x y"),
        (values.paths(), "/data/:/home:/", ("/data", "/home", "/")),
        (values.names(), r"a, b c,,SITE\d", ("a", "b", "c", r"SITE\d")),
        (values.buckets(), "a, b.c d_e,,tenant:F-1 :g", ("a", "b.c", "d_e", "tenant:F-1", ":g")),
        (values.hosts(), "node7 My_node.Example.org, 1.store", ("node7", "My_node.Example.org", "1.store")),
        (values.endpoint(), "https://s3.example.org", "https://s3.example.org"),
        (values.endpoint(), "http://10.0.0.1:7480/", "http://10.0.0.1:7480"),
        (values.endpoint(), "https://[2001:db8::1]:443", "https://[2001:db8::1]:443"),
        (values.endpoint(), "HTTPS://S3.Example.ORG:443/", "https://s3.example.org:443"),
        (values.endpoint(), "http://[2001:DB8::1]", "http://[2001:db8::1]"),
        (values.endpoint(), "http://[2001:db8:0:0:0:0:0:01]:80/", "http://[2001:db8::1]:80"),
        (values.endpoint(), "http://[::FFFF:192.0.2.1]:80", "http://192.0.2.1:80"),
        (values.endpoint(), "https://[::ffff:c000:201]", "https://192.0.2.1"),
        (values.endpoint(), "http://localhost", "http://localhost"),
        (values.endpoint(), "http://s3.example.org.", "http://s3.example.org."),
        (values.endpoint(), "http://1.store", "http://1.store"),
        (values.endpoint(), "http://xn--bcher-kva.example", "http://xn--bcher-kva.example"),
    ],
)
def test_reads(kind: Kind, text: str, value: object) -> None:
    """Each kind reads what an operator writes."""
    got = read(kind, text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (_DURATION, ["99ms", "7.01d", "5S", "5m", "-5", "+5", "1e3", "nan", "inf", "5s5", "s", "\u0665", "5  s", "."]),
        (_RATE, ["4", "99999", "1001G", "4g", "4Gi", "1.5"]),
        (_SIZE, ["5MB", "5.1GiB", "64M", "64mib", "5242880.5"]),
        (values.addresses(), ["store", "10.0.0.256", "10.0.0.1:80", ","]),
        (values.count(1, 65535), ["0", "65536", "1.5", "1k", "", "80 81", "9" * 5000]),
        (values.choice("auto", "off"), ["yes", "auto off"]),
        (values.priming(), ["on", "bucket", "bucket/", "/prefix", "b/p x", "b/p=x", "auto/", "offf"]),
        (values.path(), ["x", "../x", "/a/../b", "~"]),
        (values.paths(), ["/data:", ":/data", "/data:x", "/data /home:y", "/data:/a/.."]),
        (values.names(), [",", ", ,"]),
        (values.buckets(), [",", "raw/", "raw/night", "s3://raw", "raw;b", "r*", "a raw?", "a:b:c", "tenant:", "ü"]),
        (values.hosts(), [",", "a:1", "myhost:80", "cafe:1", "::1", "fe80::1", "10.0.0.6", "a b:1", "h/x"]),
        (
            values.endpoint(),
            [
                "s3.example.org", "ftp://h", "https://", "https:///p", "https://h/path", "https://h?x", "https://h#x",
                "https://h:", "https://h:0", "https://h:65536", "https://h:x", "https://u:p@h", "https://h h",
                "https://h\u00e9", "https://[::1", "https://h//", "HTTPS//h", "https://h:80:80", "https://h%20x",
                "http://my_store", "http://-h", "http://h-", "http://h-.x", "http://h..x", "http://.h", "http://.",
                "http://127.1", "http://127.0.0.1.", "http://0127.0.0.1", "http://1.2.3", "http://1.2.3.4.5",
                "http://256.0.0.1", "http://2130706433", "http://0x7f.1", "http://0x7f000001", "http://h.1",
                "http://[fe80::1%25eth0]", "http://[::1%lo]", "http://[1.2.3.4]", "http://" + "a" * 64,
                "http://" + "a." * 127,
            ],
        ),
    ],
)  # fmt: skip
def test_refuses(kind: Kind, texts: list[str]) -> None:
    """What is out of bounds or no such thing is refused, with what is expected."""
    for text in texts:
        with pytest.raises(SettingsError) as caught:
            read(kind, text)
        assert caught.value.faults[0].endswith(f"expected {kind.expected}"), text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x\nAWS_SECRET_ACCESS_KEY=y", "line break"),
        ("x\r", "line break"),
        ("x\ty", "control character"),
        ("x\x7f", "control character"),
        ("x\udcff", "not UTF-8"),
        ('x"', "quote"),
        ("'x", "quote"),
        ("xAWS_SECRET_ACCESS_KEY=y", "another setting"),
        ("x AWS_SESSION_TOKEN = y", "another setting"),
        ("/x:S3_ENDPOINT_URL=y", "another setting"),
        ("x,S3DAEMON_PRIME=auto", "another setting"),
        ("/data  # the array", "on a line of its own"),
        (" x", "space"),
        ("x ", "space"),
    ],
)
def test_garbled(text: str, why: str) -> None:
    """What a garbled environment file leaves in a value is named, and the value is not shown."""
    with pytest.raises(SettingsError) as caught:
        read(values.matching(".+", "anything"), text)
    (fault,) = caught.value.faults
    assert fault.startswith("NAME: ")
    assert why in fault


@given(st.text(min_size=1))
def test_no_text_breaks_a_kind(text: str) -> None:
    """Whatever is in the file: a value or a fault of one line, never another exception."""
    for kind in (_DURATION, _RATE, values.count(1, 9), values.path(), values.paths(), values.endpoint()):
        try:
            read(kind, text)
            fault = ""
        except SettingsError as exc:
            (fault,) = exc.faults
        assert fault.isprintable()


@given(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("s", 1), ("min", 60), ("h", 3600), ("d", 86400)]))
def test_durations_scale(number: int, unit: tuple[str, float]) -> None:
    """A suffix multiplies."""
    assert read(values.duration("0s", "1000000d"), f"{number}{unit[0]}") == pytest.approx(number * unit[1])
