"""What is found is printed line by line, folded on a terminal, without secrets."""

from __future__ import annotations

import io

import pytest
from lab.terminal import Terminal

from s3daemon.commands.check.findings import Findings

SECRET = "wJalrXUtnFEMI"


def test_lines_of_a_file() -> None:
    """Each finding is one aligned line, and secrets are hidden in it."""
    out = io.StringIO()
    findings = Findings(out)
    findings.hide([SECRET])
    findings.ok("clock", f"right {SECRET}")
    findings.warn("credentials", "one two three four\nfive [six] seven eight" + " nine" * 20)
    failed = [findings.failed]
    findings.fail("state", "gone")
    failed.append(findings.failed)
    assert failed == [False, True]
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

    def broken() -> None:
        raise ValueError(SECRET)

    with findings.guard("state"):
        broken()
    assert findings.failed
    assert out.getvalue() == "FAIL state       a bug in this check, please report it: ValueError\n"
