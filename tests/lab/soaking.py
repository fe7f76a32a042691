"""The soak as a program beside the tests, as long as is asked for."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager

from lab.env import MACHINE_ENV, TREE, clean_env
from lab.processes import Process, start

MINUTES = float(MACHINE_ENV.get("S3DAEMON_TEST_SOAK") or (5 if os.environ.get("CI") == "true" else 0.5))


def soak() -> AbstractContextManager[Process]:
    """Start one; its last lines are its figures.

    At a low priority, since other tests measure time; not at the lowest, since its clients have time limits.
    """
    environ = clean_env(PYTHONPATH=f"{TREE}:{TREE / 'tests'}")
    command = ["nice", "-n", "10", sys.executable, str(TREE / "tests/soak/soak.py"), "--minutes", str(MINUTES)]
    return start(*command, name="soak", env=environ)
