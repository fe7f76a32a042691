"""A soak with its audit: half a minute, or with CI=true five minutes beside all other tests (see conftest.py).

S3DAEMON_TEST_SOAK sets another number of minutes. By hand: tests/soak/run --minutes 60.
"""

from __future__ import annotations

import json

from lab.processes import Process
from lab.soaking import MINUTES


def test_nothing_is_lost_torn_or_falsely_answered(soaking: Process) -> None:
    """Faults, kills and reloads took place, and the audit finds no fault."""
    status = soaking.wait(timeout=60 * MINUTES + 420)
    output = "\n".join(soaking.lines())
    print(output)
    assert status == 0
    figures = json.loads(output[output.index("\n{\n") :])
    wrong = ("lost", "torn", "false", "left_in_the_queue", "without_a_record")
    assert not [figures[name] for name in wrong if figures[name]]
    assert figures["transfers"] > 400 * MINUTES
    if MINUTES >= 2:
        assert figures["kill"]
        assert figures["terminate"]
        assert figures["reload"]
        assert figures["faults"] > 20
