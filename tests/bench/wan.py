"""An exposure over the long fat network: 23 hooks at once, each sending 3 kB and then 8 MiB, 200 ms and 1 Gbit/s away.

    tests/bench/wan [--only CHECK] [--runs N] [--bwlimit RATE] [--store rgw] [--tools DIR] [--out PREFIX]

    burst      three exposures, 35 s apart, by s3daemon and by what else one would use; a table, a picture
    ...

What is measured is a ratio to the limit: the exposure's bytes through the link, and two round trips. Every check
prints its figure, its bar and its verdict. A run in which the emulator did not keep up is void and says so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.exposure import Burst, Files, Shape, cores, left_out, ours, plain, programs
from lab.certs import Authority
from lab.nginx import nginx
from lab.rgw import rgw
from lab.s3 import S3Server
from lab.wan import FAR, Wan, wan


@dataclass
class Bench:
    """What every check uses."""

    link: Wan
    shape: Shape
    server: S3Server
    files: Files
    work: Path
    args: argparse.Namespace
    found: dict[str, Any] = field(default_factory=dict)

    def directory(self) -> Path:
        """A new one, on a disk."""
        return Path(tempfile.mkdtemp(dir=self.work))

    def told(self, name: str, bursts: list[Burst], before: dict[str, Any]) -> None:
        """Print what a contender's bursts took, and keep it."""
        limit, stats = self.shape.limit_s(), self.link.stats()
        way, was = stats["near_to_far"], before["near_to_far"]
        link = {key: way[key] - was[key] for key in ("tx_pkts", "tx_bytes", "qdrop_pkts", "late_ns_sum", "late_5ms")}
        void = {k: way[k] - was[k] for k in ("odrop_pkts", "werr_pkts", "dev_drop_pkts") if way[k] != was[k]}
        self.found.setdefault(name, []).append(
            {"bursts": [{**asdict(b), "done": b.done} for b in bursts], "link": link, "void": void}
        )
        for number, burst in enumerate(bursts, 1):
            worst = max(burst.sidecars, default=float("nan"))
            note = f"  {len(burst.failures)} FAILED: {burst.failures[0]}" if burst.failures else ""
            print(
                f"{name:22} {number:3}   {burst.sidecar_p50:6.3f} {worst:6.3f}   {burst.done:7.3f} "
                f"{burst.done / limit:6.2f}   {burst.cores:4.2f}   {link['qdrop_pkts']:6} {link['late_5ms']:5}{note}"
                + (f"  VOID {void}" if void else ""),
                flush=True,
            )


def burst(bench: Bench) -> None:
    """Three exposures each, by every contender."""
    print(f"limit {bench.shape.limit_s():.3f} s; {cores()} cores")
    print("                      burst   sidecar p50, max   done, ratio    cores   dropped, late")
    args = bench.args
    wanted = args.contenders.split(",") if args.contenders else None
    tools = programs(bench.server, bench.directory(), args.tools)
    contenders = ["paced", "unpaced", "aiobotocore", *tools]
    for name in wanted or contenders:
        for _ in range(args.runs if name in ("paced", "unpaced") else 1):
            before = bench.link.stats()
            with ExitStack() as stack:
                if name in ("paced", "unpaced"):
                    settings = {"bwlimit": args.bwlimit} if name == "paced" else {}
                    settings |= dict(word.split("=", 1) for word in args.set)
                    _, deliver = stack.enter_context(ours(bench.server, bench.directory(), **settings))
                elif name == "aiobotocore":
                    deliver = stack.enter_context(plain(bench.server, bench.directory()))
                else:
                    deliver = tools[name]
                apart = 3.0 if name in tools else args.apart
                bursts = asyncio.run(bench.files.bursts(deliver, name, args.bursts, apart))
            bench.told(name, bursts, before)
    for name in left_out(tools):
        print(f"{name} is not here: left out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="burst")
    parser.add_argument("--contenders", default="")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--bursts", type=int, default=3)
    parser.add_argument("--apart", type=float, default=35.0)
    parser.add_argument("--bwlimit", default="1G")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--store", choices=("nginx", "rgw"), default="nginx")
    parser.add_argument("--tools", default="")
    parser.add_argument("--out", default="/var/tmp/s3daemon-wan")
    args = parser.parse_args()
    shape = Shape(0.2, 1e9)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        far = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        link = stack.enter_context(wan(slow_start_after_idle=0))
        with link.inside("far"):
            store = nginx if args.store == "nginx" else rgw
            server = stack.enter_context(store(far, Authority(work), host=FAR))
        stack.enter_context(link.inside("near"))
        bucket = server.new_bucket() if args.store == "rgw" else "bucket"
        bench = Bench(link, shape, server, Files(work / "files", bucket), work, args)
        burst(bench)
        Path(f"{args.out}.json").write_text(json.dumps(bench.found, indent=1))


if __name__ == "__main__":
    main()
