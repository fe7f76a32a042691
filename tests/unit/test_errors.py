"""What is a limit of this host; and what is shown in one line."""

from __future__ import annotations

import errno

import aiohttp
import pytest

from s3daemon.errors import FileError, is_host_limit, one_line

NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")


def caused(error: Exception, by: Exception) -> Exception:
    """An error that another one caused."""
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NO_DESCRIPTOR, True),
        (OSError(errno.ENFILE, ""), True),
        (OSError(errno.ENOMEM, ""), True),
        (OSError(errno.ENOBUFS, ""), True),
        (caused(FileError("HostLimit", "none"), NO_DESCRIPTOR), True),
        (caused(aiohttp.ClientConnectionError(), caused(RuntimeError(), NO_DESCRIPTOR)), True),
        (OSError(errno.ENOSPC, ""), False),
        (OSError(errno.EADDRNOTAVAIL, ""), False),  # also what connecting to ::1 is answered where there is no IPv6
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), False),
        (TimeoutError(), False),
        (None, False),
    ],
)
def test_is_host_limit_recognizes_the_kernels_errors(error: Exception | None, expected: bool) -> None:
    """By the number that the kernel gave, of the error or of what caused it."""
    assert is_host_limit(error) is expected


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("x" * 500, "x" * 500),
        ("/" + "n" * 600 + ": no such file", "/" + "n" * 330 + "..." + "n" * 152 + ": no such file"),
    ],
)
def test_a_long_line_is_cut_in_its_middle(text: str, wanted: str) -> None:
    """Its beginning names the file, its end says what is wrong and what to do."""
    assert one_line(text) == wanted
