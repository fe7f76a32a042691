"""What is found is printed line by line, folded on a terminal, without secrets; and a host is read as it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from lab.terminal import Terminal

from s3daemon.commands.check.findings import Findings, Host, last_reason

SECRET = "wJalrXUtnFEMI"


def test_lines_of_a_file() -> None:
    """Each finding is one aligned line, and secrets are hidden in it."""
    out = io.StringIO()
    findings = Findings(out)
    findings.hide([SECRET])
    findings.ok("clock", f"right {SECRET}")
    findings.warn("credentials", "one two three four\nfive [six] seven eight" + " nine" * 20)
    assert not findings.failed
    findings.fail("state", "gone")
    assert findings.failed
    first, second, third = out.getvalue().splitlines()
    assert first == "ok   clock       right ***"
    assert second.startswith("warn credentials one two three four\\nfive [six] seven eight nine")
    assert third == "FAIL state       gone"


@pytest.mark.parametrize(
    ("secrets", "shown"),
    [
        (["e"], "the secret seven"),  # a letter would leave nothing to read
        (["", "sec"], "the secret seven"),
        (["seven"], "the secret ***"),
        (["secr", "secret"], "the *** seven"),  # no end of the longer one is left
    ],
)
def test_a_secret_is_hidden_and_a_letter_is_not_one(secrets: list[str], shown: str) -> None:
    """A secret has at least four characters; of two the longer one is hidden first."""
    out = io.StringIO()
    findings = Findings(out)
    findings.hide(secrets)
    findings.ok("clock", "the secret seven")
    assert out.getvalue() == f"ok   clock       {shown}\n"


def test_lines_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are folded beneath their text, and nothing in them is markup."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    Findings(out).warn("credentials", "one two three four five [six] seven eight nine ten")
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert max(map(len, lines)) <= 40
    assert lines[0] == "warn credentials one two three four five"
    assert lines[1] == " " * 17 + "[six] seven eight nine"


def test_a_bug_in_a_check_is_a_finding() -> None:
    """Its text, which may quote anything, is not shown, and what follows runs."""
    out = io.StringIO()
    findings = Findings(out)
    with findings.guard("state"):
        raise ValueError(SECRET)
    assert findings.failed
    assert out.getvalue() == "FAIL state       a bug in this check, please report it: ValueError\n"


def test_sysctl(tmp_path: Path) -> None:
    """Blanks are single; what cannot be read is empty."""
    file = tmp_path / "proc/sys/net/ipv4/tcp_wmem"
    file.parent.mkdir(parents=True)
    file.write_text("4096\t16384\t4194304\n")
    host = Host(tmp_path)
    assert host.sysctl("net.ipv4.tcp_wmem") == "4096 16384 4194304"
    assert host.sysctl("net.ipv4.gone") == ""


def test_users_are_looked_up_on_this_host() -> None:
    """Users are looked up on this host."""
    root = Host().user("root")
    assert root is not None
    assert root.pw_uid == 0
    assert Host().user("no-such-user-here") is None


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([], ""),
        (['{"MESSAGE": "cannot start: BadSettings: a"}', '{"MESSAGE": "cannot start: BadSettings: b"}'],
         "cannot start: BadSettings: b"),
        (['{"MESSAGE": "cannot start: BadSettings: a"}',
          '{"MESSAGE": "Failed to start x", "MESSAGE_ID": "be02cf6855d2428ba40df7e9d022f03d"}'],
         "cannot start: BadSettings: a"),
        (['{"MESSAGE": "Failed to start x", "MESSAGE_ID": "be02cf6855d2428ba40df7e9d022f03d"}'], ""),
        (['{"MESSAGE": "Watchdog timeout (limit 30s)!"}'], "Watchdog timeout (limit 30s)!"),
    ],
)  # fmt: skip
def test_the_reason_is_not_that_the_start_failed(entries: list[str], reason: str) -> None:
    assert last_reason(entries) == reason
