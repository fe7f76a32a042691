"""What the benchmarks share: files to send, and the CPU that sending them took."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def make_files(directory: Path, count: int, size: int, suffix: str = "") -> list[Path]:
    """That many files that no compression helps with, in the page cache."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / f"{n}{suffix}" for n in range(count)]
    for file in files:
        file.write_bytes(os.urandom(size))
    return files


def cpu_of(pid: int) -> float:
    """User and system seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def cpu_of_machine() -> float:
    """Seconds that all cores together have been busy with anything."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS_PER_S
