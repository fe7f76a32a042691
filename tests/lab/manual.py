"""What s3daemon(8) says of error codes."""

from __future__ import annotations

import re

from lab.env import TREE


def explained_codes() -> list[tuple[str, str]]:
    """Return each code or status that the section ERRORS explains, with the title of its part."""
    text = (TREE / "packaging/man/s3daemon.8.rst").read_text()
    section = re.split(r"^[A-Z ]+\n=+\n", text.partition("\nERRORS\n======\n")[2], maxsplit=1, flags=re.M)[0]
    found = []
    for part in re.split(r"^(?=.+\n-+$)", section, flags=re.M)[1:]:
        title = part.partition("\n")[0]
        terms = " ".join(re.findall(r"^\*\*.*$", part, re.M))
        found += [(code, title) for code in re.findall(r"\*\*(\w+)\*\*", terms)]
    return found
