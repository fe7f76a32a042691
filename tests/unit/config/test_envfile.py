"""The environment file: what systemd makes of a text is what we make of it, by a table and by systemd's own reader."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3daemon.config.envfile import EnvFile

TABLE = [
    ("A=b", {"A": "b"}),
    ("A=b\nC=d\n", {"A": "b", "C": "d"}),
    ("A=b\r\nC=d\r\n", {"A": "b", "C": "d"}),
    ("  A  =  b c \t\n", {"A": "b c"}),
    ("A=", {"A": ""}),
    ("A=\nB=c", {"A": "", "B": "c"}),
    ("A=1\nA=2", {"A": "2"}),
    ("# A=b\n; C=d\n  # E=f\nG=h", {"G": "h"}),
    # No comment follows a value.
    ("A=b # c", {"A": "b # c"}),
    ('A="b c" ', {"A": "b c"}),
    ("A='b \"c\" \\n'", {"A": 'b "c" \\n'}),
    ('A="b \\"c\\" \\$d \\`e \\\\f \\g"', {"A": 'b "c" $d `e \\f \\g'}),
    ('A="b" "c"\'d\' e', {"A": "bcde"}),
    # Inside an unquoted value a quote is a character like others.
    ('A=b"c"', {"A": 'b"c"'}),
    ("A=b\\ \\\\c\\d ", {"A": "b \\cd"}),
    ("A=b \\ ", {"A": "b  "}),
    ("A=b\\\nc", {"A": "bc"}),
    ('A="b\\\nc"', {"A": "bc"}),
    ('A="b\nc"', {"A": "b\nc"}),
    # An open quote swallows the lines below it.
    ('A="b\nC=d\n', {"A": "b\nC=d\n"}),
    ("A='b\nC=d", {"A": "b\nC=d"}),
    ("A=b \\", {"A": "b "}),
    ('A="b\\', {"A": "b"}),
    ("A=b=c", {"A": "b=c"}),
    ("A=é", {"A": "é"}),
]


@pytest.mark.parametrize(("text", "variables"), TABLE, ids=[repr(text) for text, _ in TABLE])
def test_table(text: str, variables: dict[str, str]) -> None:
    """What is written, and what the service gets."""
    parsed = EnvFile.parse(text.encode())
    assert (parsed.variables, parsed.passed_over) == (variables, ())


@pytest.mark.parametrize(
    ("content", "variables", "said"),
    [
        (b"A=b\nsome words\nC=d", {"A": "b", "C": "d"}, "line 2: there is no equals sign"),
        (b"\r\n\r\nexport A=b", {}, "line 3: .*without export"),
        (b"A B=c", {}, "line 1: .*no name of a variable"),
        (b"=A=b", {}, "line 1: .*no name of a variable"),
        (b"A=b\n1A=c", {"A": "b"}, "line 2: .*no name of a variable"),
        (b"# \xff\nA=b", {"A": "b"}, ""),
        (b"A=b\nC=\xff", {}, "line 2: it is not UTF-8"),
        (b"A=b\n# C\0", {}, "NUL"),
        # Up to systemd 253, which is the reading taken.
        (b"# x \\\nA=b\nC=d", {"C": "d"}, "line 1: a comment ends in a backslash"),
    ],
)
def test_passed_over(content: bytes, variables: dict[str, str], said: str) -> None:
    """What systemd passes over is said, by its line and without its text."""
    parsed = EnvFile.parse(content)
    assert parsed.variables == variables
    assert len(parsed.passed_over) == bool(said)
    assert re.search(said, "".join(parsed.passed_over))


def test_shows_no_value() -> None:
    """A secret that ends up in the wrong place is in no message and in no repr."""
    parsed = EnvFile.parse(b"A=b\\\nhidden\nhidden=\nhid den=x\nB=hidden")
    assert "hid" not in repr(parsed)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], dict[str, str] | None]:
    """systemd's own reader, from its private library: the variables, or None for a file that it does not take."""
    libraries = [path for top in ("/usr/lib", "/lib") for path in Path(top).glob("**/systemd/libsystemd-shared-*.so")]
    if not libraries:
        pytest.skip("libsystemd-shared is not installed")
    library = ctypes.CDLL(os.fspath(libraries[0]))
    strings = ctypes.POINTER(ctypes.c_char_p)
    library.load_env_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(strings)]
    library.strv_env_clean_with_callback.argtypes = [strings, ctypes.c_void_p, ctypes.c_void_p]
    library.strv_env_clean_with_callback.restype = ctypes.c_void_p
    library.log_set_max_level(0)
    file = tmp_path_factory.mktemp("systemd") / "env"

    def read(content: bytes) -> dict[str, str] | None:
        file.write_bytes(content)
        found = strings()
        if library.load_env_file(None, os.fsencode(file), ctypes.byref(found)) < 0:
            return None
        variables: dict[str, str] = {}
        if found:
            library.strv_env_clean_with_callback(found, None, None)
            for at in itertools.count():
                if (entry := found[at]) is None:
                    break
                name, _, value = entry.decode().partition("=")
                variables[name] = value
        return variables

    return read


_PIECES = ["A", "B", "=", "=", "\n", " ", "\t", "\\", "'", '"', ";", "x", "$", "`", "\r", "é", "\x01", "export ", "1"]


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(_PIECES), max_size=24).map("".join), st.booleans())
def test_as_systemd(systemd: Callable[[bytes], dict[str, str] | None], text: str, latin: bool) -> None:
    """Whatever is written, systemd's own reader gives the same variables."""
    content = text.encode("latin-1" if latin else "utf-8")
    parsed = EnvFile.parse(content)
    expected = systemd(content)
    assert parsed.variables == (expected or {})
    assert expected is not None or parsed.passed_over
