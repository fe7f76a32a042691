"""The parsers under a coverage-guided fuzzer, atheris, from the corpus in tests/property/corpus.

    tests/property/fuzz --runs 10000000              all targets, the runs shared among them; the figures at the end
    tests/property/fuzz --runs 100000 --target wire  one
    tests/property/fuzz --runs 100000 --keep         inputs that covered more are kept, as few as do it, in the corpus

A failure is shown as a traceback, and its input kept as crash-... in the current directory; exit status 1. Each target
runs in a process of its own, one after the other, because atheris ends the process that it ran in.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CORPUS = Path(__file__).resolve().parent / "corpus"
#: More than a request line may have, so that too long ones are tried too.
MAX_BYTES = 9000


def main() -> int:
    """Run them; return the exit status."""
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("--runs", type=int, default=100_000, help="executions, all targets together")
    parser.add_argument("--target", help="this one alone")
    parser.add_argument("--seed", type=int, default=0, help="of its chance; 0 (the default): a new one")
    parser.add_argument("--keep", action="store_true", help="add what covered more to the corpus")
    args = parser.parse_args()
    names = [args.target] if args.target else _names()
    total = failed = 0
    began = time.monotonic()
    for name in names:
        runs, found = _fuzz(name, -(-args.runs // len(names)), seed=args.seed, keep=args.keep)
        total += runs
        failed += found
    seconds = time.monotonic() - began
    print(f"{total} executions of {len(names)} targets in {seconds:.0f} s, {failed} of the targets with a finding")
    return 1 if failed else 0


def _names() -> list[str]:
    from lab.targets import TARGETS

    return list(TARGETS)


def _fuzz(name: str, runs: int, *, seed: int, keep: bool) -> tuple[int, bool]:
    """Fuzz one target; return the number of executions, and whether there was a failure."""
    seeds = CORPUS / name
    with tempfile.TemporaryDirectory(prefix="s3daemon-fuzz-") as folder:
        flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_BYTES}"]
        flags += ["-print_final_stats=1", "-artifact_prefix=./"]
        made = Path(folder, "made")
        made.mkdir()
        done = _atheris(name, *flags, str(made), *([str(seeds)] if seeds.is_dir() else []))
        if keep and done.returncode == 0:
            seeds.mkdir(parents=True, exist_ok=True)
            _atheris(name, "-merge=1", f"-max_len={MAX_BYTES}", str(seeds), str(made))
        stats = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
        count = int(stats[1]) if stats else 0
        print(f"{name}: {count} executions, edges and features {' '.join(covered[-1]) if covered else '?'}", flush=True)
        if done.returncode == 0:
            return count, False
        trace = done.stdout + done.stderr
        print(trace[trace.find(" === Uncaught") :][:4000], *re.findall("written to (.*)", trace), sep="\n", flush=True)
        return count, True


def _atheris(name: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--atheris", name, *flags]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def _in_atheris(name: str, flags: list[str]) -> None:
    """The process of one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["s3daemon", "json"]):
        from lab.targets import TARGETS
    atheris.Setup([name, *flags], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--atheris"]:
        _in_atheris(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
