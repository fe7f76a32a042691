"""Arguments of commands that are values of a setting's kind: taken, and refused, as in the environment file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from s3daemon.config.values import Kind


def of_kind(kind: Kind) -> Callable[[str], Any]:
    """Return what argparse takes as a `type`: text to a value that `kind` admits.

    Raises:
        argparse.ArgumentTypeError: from what is returned; the text says what is expected.
    """

    def convert(text: str) -> Any:
        try:
            value = kind.convert(text)
        except ValueError:
            value = None
        if value is None or not kind.admits(value):
            raise argparse.ArgumentTypeError(f"expected {kind.expected}")
        return value

    return convert
