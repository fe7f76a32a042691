"""Arguments that commands share: which daemon is meant; and values of a setting's kind.

The latter are taken, and refused, as in the environment file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from s3daemon.config.values import Kind, count
from s3daemon.control.client import Instance


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


#: An instance is named by the port that it listens on.
PORT = of_kind(count(1, 65535))


def add_instance(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which daemon is meant, for `instance_of`."""
    # No default: a subcommand's would overwrite what was given before the subcommand.
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--instance", metavar="PORT", type=PORT, default=argparse.SUPPRESS, help="ask s3daemon@PORT")
    which.add_argument(
        "--state-dir", metavar="DIR", default=argparse.SUPPRESS, help="ask the daemon whose state is in DIR"
    )


def instance_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Instance:
    """Return the daemon that the options name."""
    return Instance.find(environ, state_dir=getattr(args, "state_dir", ""), instance=getattr(args, "instance", 0))
