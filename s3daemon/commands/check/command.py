"""`s3daemon check [BUCKET[/PREFIX]]`: its options, and the order of the checks.

The settings are read as the service reads them: from the environment if S3_ENDPOINT_URL is set there, otherwise from
the instance's environment file, with the state directory that systemd adds to either. systemd itself reads that file,
because its rules are peculiar: an open quote swallows the next line without an error. Every check runs, whatever the
others found; only checks that need valid settings are left out without them.

The checks cannot see variables that a drop-in sets by Environment=. They see credentials that systemd passes only if
the service runs and root runs the check.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from s3daemon.commands.arguments import PORT
from s3daemon.commands.check import host as checks_host
from s3daemon.commands.check import unit as checks_unit
from s3daemon.commands.check.findings import Findings
from s3daemon.commands.check.store import StoreChecks
from s3daemon.commands.check.system import Host
from s3daemon.commands.check.unit import Unit
from s3daemon.config.envfile import logged_by_systemd, not_set_by_file
from s3daemon.config.settings import VARIABLES, Settings, read_file, retired
from s3daemon.control.client import Instance
from s3daemon.errors import SettingsError, one_line
from s3daemon.journal import JOURNAL_SOCKET
from s3daemon.units import plural

_ENVIRONMENT = "the environment"
#: What a file may leave to systemd's credentials.
_AS_CREDENTIALS = [VARIABLES[name].name for name in ("endpoint_url", "access_key", "secret_key")]


def configure(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "target",
        nargs="?",
        type=_target,
        metavar="BUCKET[/PREFIX]",
        help="put a small object there with the service's keys, and delete it",
    )
    parser.add_argument("--instance", metavar="PORT", type=PORT, help="check s3daemon@PORT")
    parser.add_argument("--env-file", metavar="FILE", type=Path, help="have systemd read the settings from FILE")


def _target(text: str) -> str:
    """Check that a text names a bucket first, without a scheme such as s3:// or a slash before it.

    Raises:
        argparse.ArgumentTypeError: it does not.
    """
    if text.partition("/")[0][-1:] in ("", ":") and text:
        raise argparse.ArgumentTypeError(f"'{one_line(text, 80)}' is not BUCKET or BUCKET/PREFIX, such as raw/tests")
    return text


def main(
    args: argparse.Namespace,
    environ: Mapping[str, str],
    *,
    out: TextIO,
    err: TextIO,
    host: Host | None = None,
) -> int:
    """Carry out the command on this host, or another that is given; all that is wrong is a finding, for `out`."""
    host = host or Host()
    # What the store's client logs about a failure is in our lines already.
    logging.getLogger().addHandler(logging.NullHandler())
    findings = Findings(out)
    unit = _unit(args, environ)
    variables: Mapping[str, str] = {}
    settings: Settings | None = None
    with findings.guard("settings"):
        usual = {"STATE_DIRECTORY": str(Instance.find(environ).state_dir)}
        variables = _variables(findings, host, unit) if unit else {**environ, **usual}
        settings = _settings(findings, host, variables, unit)
        if unit and not settings and host.path(saved := Path(f"{unit.env_file}.rpmsave")).exists():
            findings.note("settings", f"those from before the package was removed are in {saved}")
    instance = Instance.find({**(unit.environ(host) if unit else {}), **variables})
    if settings:
        checks = StoreChecks(settings, findings)
        asyncio.run(checks.run(args.target or ""))
        with findings.guard("sysctl"):
            checks_host.sysctls(findings, host, settings, checks.rtt_s)
        with findings.guard("limits"):
            checks_host.limit(findings, settings, checks.rtt_s, instance.ask)
    else:
        findings.note("store", "not checked: the settings have faults")
    _local(findings, host, unit, instance, settings)
    if settings:
        # Last, because a directory of a file server that does not answer may block.
        with findings.guard("access"):
            checks_host.access(findings, host, settings)
    return 1 if findings.failed else 0


def _unit(args: argparse.Namespace, environ: Mapping[str, str]) -> Unit | None:
    """Return the instance whose environment file is read; None for the environment."""
    name = f"s3daemon@{args.instance}" if args.instance else "s3daemon"
    if not args.env_file and not args.instance and environ.get(VARIABLES["endpoint_url"].name):
        return None
    return Unit(name, (args.env_file or Path("/etc/sysconfig", name)).absolute())


def _variables(findings: Findings, host: Host, unit: Unit) -> Mapping[str, str]:
    """Return what the service's environment would have; nothing where that cannot be known."""
    export = "or export the variables, which count without --env-file and --instance"
    try:
        host.path(unit.env_file).open("rb").close()
    except FileNotFoundError:
        findings.fail("settings", f"there is no {unit.env_file}: write it, {export}")
        return {}
    except OSError as exc:
        cure = "run it as root" if isinstance(exc, PermissionError) else "give a file with a NAME=value in each line"
        findings.fail("settings", f"{unit.env_file} cannot be read: {exc.strerror}: {cure}")
        return {}
    content = read_file(host.path(unit.env_file))
    exposed = logged_by_systemd(content)
    for text in exposed:
        findings.fail("settings", f"{unit.env_file}: {text}")
    if exposed:  # so this command would have it logged too
        return {}
    read = host.environment(unit.env_file)
    if read is None:
        if host.uid:
            text = f"systemd reads {unit.env_file} for root only: run it as root, {export}"
        else:
            text = f"systemd does not run here, or does not accept {unit.env_file}: see journalctl -e, {export}"
        findings.fail("settings", text)
        return {}
    for text in not_set_by_file(content, read):
        findings.fail("settings", f"{unit.env_file}: {text}")
    return {**read, **unit.environ(host)}


def _settings(findings: Findings, host: Host, variables: Mapping[str, str], unit: Unit | None) -> Settings | None:
    origin = str(unit.env_file) if unit else _ENVIRONMENT
    if not variables:
        return None
    try:
        settings = Settings.from_environ(variables)
    except SettingsError as exc:
        for fault in exc.faults:
            findings.fail("settings", f"{origin}: {fault}")
        if origin != _ENVIRONMENT and not all(map(variables.get, _AS_CREDENTIALS)):
            text = "what the unit has as credentials (LoadCredential=) is visible to root only, while the service runs"
            findings.note("settings", text)
        return None
    for text in retired(variables):
        findings.warn("settings", f"{origin}: {text}")
    findings.hide(settings.secrets())
    if unit:
        named = ("ca_bundle", "shared_credentials_file")
        files = {VARIABLES[name].name: getattr(settings, name) for name in named}
        checks_unit.readable_files(findings, host, unit, files)
    findings.ok(
        "settings", f"from {origin}: {plural(settings.max_connections, 'connection')} to {settings.endpoint_url}"
    )
    return settings


def _local(findings: Findings, host: Host, unit: Unit | None, instance: Instance, settings: Settings | None) -> None:
    """Check what does not need the store."""
    endpoint = settings.endpoint_url if settings else ""
    with findings.guard("socket"):
        knows_users = settings is not None and bool(settings.allowed_users)
        activated = unit is not None and checks_unit.units(findings, host, unit, knows_users=knows_users)
        checks_unit.daemon(findings, host, unit, instance.ask, activated=activated, endpoint=endpoint)
    with findings.guard("state"):
        if not instance.state_dir.is_absolute():
            pass  # a fault of the settings
        elif checks_host.shared_directory(findings, host, instance.state_dir):
            pass
        elif not unit or checks_unit.may_write(findings, host, unit, instance.state_dir):
            checks_host.state_directory(
                findings, host, instance.state_dir, checks_unit.user_of(host, unit) if unit else ""
            )
        if unit:
            checks_host.unused_spool(findings, host, Path("/var/lib", unit.name), instance.state_dir)
    with findings.guard("journal"):
        checks_host.journal(findings, host, JOURNAL_SOCKET, unit.name if unit else "s3daemon")
    with findings.guard("service"):
        if unit:
            checks_unit.files_with_keys(findings, host, unit, settings.shared_credentials_file if settings else "")
            checks_unit.hidden_files(findings, host, unit)
