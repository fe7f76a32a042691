"""The manuals and the front page are complete, refer to what exists, and are in the form that the packages need."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab.manual import explained_codes

from s3daemon.control.status import Condition, Connections
from s3daemon.errors import AttemptError, Code
from s3daemon.model.verdict import ACCESS_DENIED, Verdict, judge

TREE = Path(__file__).resolve().parents[2]
README = (TREE / "README.rst").read_text()
PAGES = {path.stem: path.read_text() for path in (TREE / "packaging/man").glob("*.rst")}
#: Longer is a manual, not a front page.
README_LINES = 200
#: Pages of commands. Formats and overviews have no exit status.
COMMANDS = ("s3daemon.8", "send.1")


def sections(page: str) -> list[str]:
    """Return the titles of a page's sections."""
    return re.findall(r"^([A-Z][A-Z ]+)\n=+$", PAGES[page], re.M)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_has_its_sections(page: str) -> None:
    found = sections(page)
    assert "DESCRIPTION" in found
    assert "EXAMPLES" in found
    assert found[-1] == "SEE ALSO"
    assert ("SYNOPSIS" in found) == (page[-1] != "7")
    assert ("EXIT STATUS" in found) == (page in COMMANDS)
    assert ("FILES" in found) == (page != "send.1")  # send has none
    name, section = page.rpartition(".")[::2]
    assert re.match(rf"=+\n{re.escape(name)}\n=+\n\n-+\n.+\n-+\n\n:Manual section: {section}\n", PAGES[page])


def test_references_between_pages_exist() -> None:
    """A page of this project that is referred to, from a manual, a unit or README, is there."""
    texts = [README, *PAGES.values(), *(path.read_text() for path in (TREE / "systemd").iterdir())]
    reference = re.compile(r"\b(s3daemon(?:\.env|-[a-z]+)?|send)(?:\*\*\\ )?\(([1-8])\)")
    assert {".".join(found) for text in texts for found in reference.findall(text)} == PAGES.keys()


def test_the_front_page_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES


def test_commands_and_files_of_documents_exist() -> None:
    """Every path of the tree that a document names is there."""
    documents = {"README": README, "packaging": (TREE / "packaging/README.rst").read_text(), **PAGES}
    for name, text in documents.items():
        for path in re.findall(r"(?<![\w/.])((?:packaging|tests|systemd|s3daemon)/[\w./-]*\w)", text):
            if path != "s3daemon/control":  # below /run
                assert (TREE / path).exists(), f"{name}: {path}"


def test_every_code_is_explained() -> None:
    """Our own, and those of stores that the daemon knows: each has an entry under ERRORS."""
    known = re.findall(r'^ {4,8}"([A-Z]\w+)",', (TREE / "s3daemon/model/verdict.py").read_text(), re.M)
    assert len(known) > 30
    assert sorted({*Code, *known} - {code for code, _ in explained_codes()}) == []


def test_codes_are_explained_where_they_belong() -> None:
    """What the manual calls permanent fails its transfer, and what it says holds the queue does."""
    verdicts = {Verdict.PERMANENT: "Permanent errors", Verdict.HOLD: "Errors that hold the queue"}
    apart = {Code.DROPPED, Code.OVERTAKEN, ACCESS_DENIED}  # no attempt failed; it depends on what is known of the keys
    for code, title in explained_codes():
        status = int(code) if code.isdigit() else 0
        found = verdicts.get(judge(AttemptError(code, "", status=status)))
        if title in verdicts.values() and code not in apart:
            assert found == title, code
        elif title == "Retried":
            assert found is None, code


def test_what_the_status_line_begins_with_is_explained() -> None:
    """Under OPERATION, in the order in which it is shown: of several, the line begins with the first."""
    operation = PAGES["s3daemon.8"].partition("\nOPERATION\n=")[2].partition("\n=====")[0]
    words = re.findall(r"^    \*([A-Za-z ]+)\*\n        ", operation, re.M)
    calm = Condition(in_flight=0, pending=0, oldest_s=None, failed=0, clients=0, connections=Connections(0, 0, 30))
    wrong: tuple[dict[str, Any], ...] = (
        {"stopping": "draining for up to 20 s"},
        {"spool_fault": "the disk is full"},
        {"held": "ExpiredToken"},
        {"away": True, "away_reason": "ConnectTimeout"},
        {"unreachable": "no address answers"},
        {"failing": "nothing stored for 30s"},
        {"reload_fault": "a bad value"},
    )
    for at, word in enumerate(words):
        assert replace(calm, **{name: value for one in wrong[at:] for name, value in one.items()}).line.startswith(word)
    assert len(words) == len(wrong)


def test_costs_are_those_of_the_tuning_page() -> None:
    """What a setting costs by `s3daemon check` and by the kernel settings' file is what was measured last."""
    figure = re.compile(r"[\d.]+(?: to [\d.]+)? s instead of [\d.]+ s")
    measured = " ".join(PAGES["s3daemon-tuning.7"].split())
    for path in ("s3daemon/commands/check/host.py", "systemd/s3daemon.sysctl"):
        found = figure.findall((TREE / path).read_text())
        assert found, path
        assert [cost for cost in found if cost not in measured] == [], path


def test_the_front_page_has_the_times_of_the_tuning_page() -> None:
    """Each bar is the third exposure of the row of that name in the benchmark's table."""
    bars = re.findall(r"^    (\S.*\S) +([\d.]+) +s +█+$", README, re.M)
    assert len(bars) == 3
    for name, seconds in bars:
        assert re.search(rf"^    {re.escape(name)} .* {re.escape(seconds)} +s$", PAGES["s3daemon-tuning.7"], re.M), name


def test_every_page_is_named_by_the_front_page() -> None:
    for page in PAGES:
        assert f"{page[:-2]}({page[-1]})" in README
