"""What s3daemon(8) says of error codes."""

from __future__ import annotations

import re

from lab.env import TREE


def explained_codes() -> list[tuple[str, str]]:
    """Return each code or status that the section ERRORS explains, with the title of its part."""
    text = (TREE / "packaging/man/s3daemon.8.rst").read_text()
    section = text[text.index("\nERRORS\n=") : text.index("\nTROUBLESHOOTING\n=")]
    found = []
    for part in re.split(r"^(?=.+\n-+$)", section, flags=re.M)[1:]:
        title = part.partition("\n")[0]
        terms = " ".join(re.findall(r"^\*\*.*$", part, re.M))
        found += [(code, title) for code in re.findall(r"\*\*(\w+)\*\*", terms)]
    return found
