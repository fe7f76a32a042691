"""The options that say which daemon is meant."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from s3daemon.commands.arguments import add_instance, instance_of
from s3daemon.control.client import Instance


@pytest.mark.parametrize(
    ("argv", "environ", "state_dir", "sockets"),
    [
        ([], {}, "/var/lib/s3daemon", ["/var/lib/s3daemon/control", "/run/s3daemon/control"]),
        (
            ["--instance", "15556"],
            {"RUNTIME_DIRECTORY": "/run/s3daemon"},
            "/var/lib/s3daemon@15556",
            ["/var/lib/s3daemon@15556/control", "/run/s3daemon@15556/control"],
        ),
        (["--state-dir", "/s"], {"S3DAEMON_STATE_DIR": "/t", "RUNTIME_DIRECTORY": "/r"}, "/s", ["/s/control"]),
        ([], {"S3DAEMON_STATE_DIR": "/s"}, "/s", ["/s/control"]),
        ([], {"STATE_DIRECTORY": "/s:/t", "RUNTIME_DIRECTORY": "/r:/q"}, "/s", ["/r/control", "/s/control"]),
        (
            [],
            {"STATE_DIRECTORY": "/s:/t/s3daemon", "RUNTIME_DIRECTORY": "/r:/r/s3daemon"},
            "/t/s3daemon",
            ["/r/s3daemon/control", "/t/s3daemon/control"],
        ),
    ],
)
def test_where_an_instance_is_found(
    argv: list[str], environ: dict[str, str], state_dir: str, sockets: list[str]
) -> None:
    """Options go before the environment, and that before where systemd puts the plain service's."""
    parser = argparse.ArgumentParser()
    add_instance(parser)
    instance = instance_of(parser.parse_args(argv), environ)
    assert instance == Instance(Path(state_dir), tuple(map(Path, sockets)))


@pytest.mark.parametrize("text", ["foo", "0", "65536", "-1", "٣", "", "s3daemon@15556", "9" * 5000])
def test_an_instance_is_a_port(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything else is refused as a wrong command line, which says so."""
    parser = argparse.ArgumentParser()
    add_instance(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([f"--instance={text}"])
    assert caught.value.code == 2
    assert "argument --instance: expected a number from 1 to 65535" in capsys.readouterr().err
