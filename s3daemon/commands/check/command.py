"""`s3daemon check [BUCKET[/PREFIX]]`: what works and what does not, a line each, and what to do about it.

The settings are read as the service would: from the environment where S3_ENDPOINT_URL is set, else from the instance's
environment file as systemd reads it, with the directories that systemd makes. Every check runs, whatever came of the
others; only what takes valid settings is left out without them. Nothing is changed, but for the object that is put and
deleted where a bucket is named.

Not seen: variables that a drop-in sets by Environment=, and credentials that systemd passes, unless the service runs
and root looks.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from s3daemon.clock import Clock
from s3daemon.commands.check import host as checks_host
from s3daemon.commands.check import unit as checks_unit
from s3daemon.commands.check.findings import Host, Report
from s3daemon.commands.check.store import StoreChecks
from s3daemon.commands.check.unit import Unit
from s3daemon.config.envfile import EnvFile
from s3daemon.config.settings import VARIABLES, Settings
from s3daemon.control.client import Instance
from s3daemon.errors import SettingsError
from s3daemon.journal import JOURNAL_SOCKET


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "target",
        nargs="?",
        default="",
        metavar="BUCKET[/PREFIX]",
        help="put a small object there with the service's keys, and delete it",
    )
    parser.add_argument("--instance", metavar="PORT", default="", help="check s3daemon@PORT")
    parser.add_argument("--env-file", metavar="FILE", type=Path, help="read the settings from FILE, as systemd does")


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    out: TextIO,
    *,
    host: Host | None = None,
    wall: Clock = time.time,
) -> int:
    """Carry out the command.

    Args:
        args: as `configure` described them.
        environ: the process's.
        out: takes the findings.
        host: what is looked at; this one unless another is given.
        wall: seconds since the epoch.

    Returns:
        The exit status: 0, or 1 when something does not work.
    """
    host = host or Host()
    # What the store's client logs about a failure is in our lines already.
    logging.getLogger().addHandler(logging.NullHandler())
    report = Report(out, os.get_terminal_size(out.fileno()).columns if out.isatty() else None)
    unit = _unit(args, environ)
    variables: Mapping[str, str] = {}
    settings: Settings | None = None
    with report.guard("settings"):
        variables = _variables(report, host, unit) if unit else environ
        settings = _settings(report, variables, str(unit.env_file) if unit else "the environment")
    rtt_s: float | None = None
    if settings:
        checks = StoreChecks(settings, report, wall)
        asyncio.run(checks.run(args.target))
        rtt_s = checks.rtt_s
    else:
        report.note("store", "not checked: that takes settings without a fault")
    _local(report, host, unit, variables=variables, settings=settings, rtt_s=rtt_s)
    return 1 if report.failed else 0


def _unit(args: argparse.Namespace, environ: Mapping[str, str]) -> Unit | None:
    """The instance whose environment file is read; None for the environment."""
    name = f"s3daemon@{args.instance}" if args.instance else "s3daemon"
    if not args.env_file and not args.instance and environ.get(VARIABLES["endpoint_url"].name):
        return None
    return Unit(name, args.env_file or Path("/etc/sysconfig", name))


def _variables(report: Report, host: Host, unit: Unit) -> Mapping[str, str]:
    """What the service's environment would have."""
    try:
        parsed = EnvFile.parse(host.path(unit.env_file).read_bytes())
    except FileNotFoundError:
        text = "and S3_ENDPOINT_URL is not in the environment: write the file, or export the variables"
        report.fail("settings", f"there is no {unit.env_file}, {text}")
        return {}
    except OSError as exc:
        report.fail("settings", f"{unit.env_file} cannot be read: {exc.strerror}: run it as root")
        return {}
    for text in parsed.passed_over:
        report.warn("settings", f"{unit.env_file}, {text}")
    return {**parsed.variables, **unit.environ(host)}


def _settings(report: Report, variables: Mapping[str, str], origin: str) -> Settings | None:
    if not variables:
        return None
    try:
        settings = Settings.from_environ(variables)
    except SettingsError as exc:
        for fault in exc.faults:
            report.fail("settings", f"{origin}: {fault}")
        if any("systemd credentials" in fault for fault in exc.faults):
            report.note("settings", "systemd credentials are seen by root only, and while the service runs")
        return None
    report.hide(settings.secrets())
    report.ok("settings", f"from {origin}: {settings.max_connections} connections to {settings.endpoint_url}")
    return settings


def _local(
    report: Report,
    host: Host,
    unit: Unit | None,
    *,
    variables: Mapping[str, str],
    settings: Settings | None,
    rtt_s: float | None,
) -> None:
    """What takes no store."""
    port = (unit and unit.port) or (settings.port if settings else int(VARIABLES["port"].default))
    place = Instance.find({**(unit.environ(host) if unit else {}), **variables})
    with report.guard("socket"):
        listening = checks_unit.door(report, host, unit, port)
        activated = unit is not None and unit.installed(host)
        checks_unit.daemon(report, place.ask, listening=listening, activated=activated)
    with report.guard("state"):
        checks_host.state_directory(report, host, place.state_dir, unit.USER if unit else "")
    with report.guard("journal"):
        checks_host.journal(report, host, JOURNAL_SOCKET)
    with report.guard("sysctl"):
        checks_host.sysctls(report, host, settings, rtt_s)
    if settings:
        with report.guard("limits"):
            checks_host.limits(report, settings, rtt_s)
        with report.guard("access"):
            checks_host.access(report, host, settings)
    with report.guard("service"):
        if unit and host.uid == 0:
            checks_unit.installation(report, host, unit, settings)
        elif unit:
            report.note("service", "how it is installed is checked for root only")
