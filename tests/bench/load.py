"""What many clients at once, and many transfers in a row, leave behind in the daemon: its memory and descriptors.

    tests/bench/load [--clients 10000] [--transfers 100000] [--crowds 3]

The daemon has 1 024 slots for clients and 4 096 descriptors, the store is one in memory. Exit status 1: a client was
not served, an object is missing, or descriptors were leaked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lab.daemon import daemon
from lab.flaky import flaky
from lab.load import FEW_DESCRIPTORS, Held, crowd, held_at_rest, series


def main() -> int:
    """Both; the exit status."""
    parser = argparse.ArgumentParser(description="The daemon's memory and descriptors under load.")
    parser.add_argument("--clients", type=int, default=10_000, help="at once")
    parser.add_argument("--crowds", type=int, default=3, help="how often so many come")
    parser.add_argument("--transfers", type=int, default=100_000, help="in a row, 50 at a time")
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="s3daemon-load-") as name, flaky() as s3:
        folder = Path(name)
        file = folder / "file"
        file.write_bytes(b"x" * 3000)
        with daemon(folder / "state", s3.server, prefix=FEW_DESCRIPTORS, wait_limit="10min") as served:
            served.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
            start = Held.by(served)
            print(f"start: {start}", flush=True)
            for number in range(args.crowds):
                began = time.monotonic()
                replies = crowd(served, file, args.clients, f"crowd{number}")
                seconds = time.monotonic() - began
                after = held_at_rest(served, start.descriptors)
                stored = sum(put.name.startswith(f"crowd{number}/") for put in s3.puts)
                print(f"{args.clients} clients in {seconds:.0f} s: {dict(replies)}, {stored} stored;", end=" ")
                print(f"then {after}", flush=True)
                wrong += [] if replies == {"Success": args.clients} and stored == args.clients else ["a crowd"]
                wrong += [] if after.descriptors <= start.descriptors else ["descriptors"]
            before = len(s3.puts)
            row = series(served, file, args.transfers)
            after = held_at_rest(served, start.descriptors)
            stored = len(s3.puts) - before
            wrong += [] if row.replies == {"Success": args.transfers} and stored == args.transfers else ["the row"]
            wrong += [] if after.descriptors <= start.descriptors else ["descriptors"]
            print(f"{args.transfers} transfers in {row.seconds:.0f} s: {dict(row.replies)}, {stored} stored;", end=" ")
            print(f"then {after}")
            rss, descriptors = row.slope("rss") / 1e3, row.slope("descriptors")
            print(f"for 1 000 more: {rss:+.2f} kB resident, {descriptors:+.3f} descriptors")
            first, last = row.samples[0], row.samples[-1]
            print(f"after {first[0]}: {first[1]}; after {last[0]}: {last[1]}")
    print("wrong: " + ", ".join(wrong) if wrong else "all served, none lost, no descriptor kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
