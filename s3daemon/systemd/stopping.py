"""Whether a stop is for good: SIGTERM says nothing of what systemd does next.

In a restart it passes the stored connections to the next process; after a stop it drops them, and whoever still waits
there is hung up on. Its queue of jobs tells the two apart.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

#: PID 1 answers at once, or stands still; then the clients are worth no longer wait than this.
_PATIENCE_S = 2.0


def is_for_good() -> bool:
    """Whether systemd is stopping this service, and not in order to start it again; False too where nobody says."""
    try:
        unit = own_unit(Path("/proc/self/cgroup").read_text())
        program = shutil.which("systemctl")
        if not unit or program is None:
            return False
        command = [program, "--no-pager", "--plain", "--no-legend", "list-jobs", unit]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)  # noqa: S603 - words are ours
    except (OSError, subprocess.SubprocessError):
        return False
    return has_stop(done.stdout, unit)


def own_unit(cgroups: str) -> str:
    """The service that a process is in; "" outside of any.

    Args:
        cgroups: its /proc/PID/cgroup.
    """
    names = (line.rpartition("/")[2] for line in cgroups.splitlines())
    return next((name for name in names if name.endswith(".service")), "")


def has_stop(jobs: str, unit: str) -> bool:
    """Whether a unit is being stopped: a restart shows as `restart` until nothing runs any more, then as `start`.

    Args:
        jobs: what `systemctl list-jobs` prints: number, unit, type and state of each.
        unit: its name.
    """
    return any(words[1:3] == [unit, "stop"] for words in map(str.split, jobs.splitlines()))
