"""An exposure over the long fat network: 23 hooks at once, each sending 3 kB and then 8 MiB, 200 ms and 1 Gbit/s away.

    tests/bench/wan                                            # burst: the table, the picture, JSON
    tests/bench/wan --only stalls --only single                # single checks
    tests/bench/wan --tools ~/go/bin --contender rclone        # the alternatives
    tests/bench/wan --daemon 'other=/opt/other --quiet'        # any daemon that answers POST /upload; see contenders.py

    burst      three exposures, 35 s apart, by s3daemon and by the alternatives
    idle       after ten minutes (--idle) without one
    idleclose  the server closes idle connections after 15 s
    loss       0.01 % loss each way, with bbr
    single     one file of 1 GiB
    bwlimit    a limit of 200 Mbit/s, with 1 and with 25 uploads
    stalls     a receiver fails during one of 25 uploads, in each of four ways
    receivers  one of four receivers answers 503 to everything
    rates      links of 100, 300 and 2 500 Mbit/s, nothing set
    queue      a queue of 1 MB in front of the link, nothing set
    change     a link of 1 000 Mbit/s that has 300 for some exposures, nothing set
    rival      a bulk transfer on the link, begun before and after ours, nothing set
    slowstart  tcp_slow_start_after_idle left on, nothing set
    nowait     exposures by hooks that do not wait, and one question about all at the end; the limit has one round trip
    restart    the rate known from before; PRIME=auto needs --store rgw

The figure of an exposure is its ratio to the limit: its bytes through the link, and a round trip each for a sidecar and
its image. Every check prints its figure, its bar and its verdict. A run in which the emulator did not keep up is
reported as void. `dropped` counts packets that found the queue full, `late` those that were delivered more than 5 ms
late, both over all exposures of a run; `cores` near the machine's number means that the CPU was the limit, not the
network. tests/bench/local measures the CPU that s3daemon uses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.checks import CHECKS, Bench, Finding, listed
from bench.contenders import Deliver, given, plain, raw
from bench.exposure import Files, Shape, cores, left_out, programs
from bench.picture import draw
from lab.certs import Authority
from lab.nginx import nginx
from lab.rgw import rgw
from lab.s3 import S3Server
from lab.wan import FAR, wan

OURS: dict[str, dict[str, str]] = {
    "s3daemon": {},
    "s3daemon, limit set": {"bwlimit": "{bwlimit}"},
    "s3daemon, primed": {"bwlimit": "{bwlimit}", "prime": "{bucket}/prime"},
    "s3daemon, no limit": {"bwlimit": "off"},
}
PLAIN, RAW = "aiobotocore daemon", "raw aiohttp daemon"
#: Programs keep nothing from one exposure to the next.
PROGRAMS_APART_S = 5.0


def burst(bench: Bench) -> Iterator[Finding]:
    """Three exposures by every contender."""
    args = bench.args
    tools = programs(bench.server, bench.directory(), args.tools)
    print(f"the limit is {bench.shape.limit_s():.3f} s; {cores()} cores")
    print(f"{'':20} exposure  sidecar: p50    max   all: done  ratio   cores  dropped  late")
    for name in args.contender or [*OURS, *_daemons(bench), *tools]:
        for _ in range(args.runs if name in OURS else 1):
            _run(bench, name, tools)
    for name in left_out(tools):
        print(f"{name:20} is not installed: left out")
    yield from _verdicts(bench)


def _daemons(bench: Bench) -> dict[str, Callable[[], Any]]:
    """The other daemons by name, and what starts each; the raw one is understood by a sink alone."""
    found: dict[str, Callable[[], Any]] = {PLAIN: partial(plain, bench.server)}
    if bench.args.store == "nginx":
        found[RAW] = partial(raw, bench.server)
    return found | {text.partition("=")[0]: partial(given, text, bench.server) for text in bench.args.daemon}


def _run(bench: Bench, name: str, tools: dict[str, Deliver]) -> None:
    """The exposures of one run, which starts with a new daemon."""
    args = bench.args
    with ExitStack() as stack:
        if name in OURS:
            given = {"bwlimit": args.bwlimit, "bucket": bench.files.bucket}
            settings: dict[str, Any] = {key: text.format(**given) for key, text in OURS[name].items()}
            _, deliver = stack.enter_context(bench.daemon(**settings))
        elif name in (others := _daemons(bench)):
            _, deliver = stack.enter_context(others[name]())
        else:
            deliver = tools[name]
        was = bench.link.stats()["near_to_far"]
        bursts = bench.bursts(deliver, name.replace(" ", ""), args.bursts, PROGRAMS_APART_S if name in tools else None)
    now = bench.link.stats()["near_to_far"]
    grown = {key: now[key] - was[key] for key in now}
    void = {key: grown[key] for key in ("odrop_pkts", "werr_pkts", "dev_drop_pkts") if grown[key]}
    run: dict[str, Any] = {"bursts": [{**asdict(b), "done": b.done} for b in bursts], "link": grown, "void": void}
    run["ratios"] = bench.ratios(bursts)
    bench.runs.setdefault(name, []).append(run)
    for number, (burst, ratio) in enumerate(zip(bursts, run["ratios"], strict=True), 1):
        notes = f"  {len(burst.failures)} FAILED: {burst.failures[0]}" if burst.failures else ""
        notes += f"  VOID, the emulator did not keep up: {void}" if void else ""
        print(
            f"{name:20} {number:8}  {burst.sidecar_p50:12.3f} {burst.sidecar_max:6.3f}   {burst.done:9.3f} {ratio:6.2f}"
            f"   {burst.cores:5.2f}  {grown['qdrop_pkts']:7}  {grown['late_5ms']:4}{notes}",
            flush=True,
        )


def _verdicts(bench: Bench) -> Iterator[Finding]:
    """The bars of the exposures; runs that are void do not count."""
    rtt = bench.shape.rtt_s
    for name in OURS:
        runs = [run for run in bench.runs.get(name, []) if not run["void"]]
        if not runs:
            continue
        lost = sum(len(burst["failures"]) for run in runs for burst in run["bursts"])
        yield Finding(f"{name}: files not delivered", str(lost), "0", lost == 0)
        first, last = ([run["ratios"][n] for run in runs] for n in (0, -1))
        small = [seconds for run in runs for seconds in run["bursts"][-1]["sidecars"]]
        bars = {
            "s3daemon": (1.8, 1.1), "s3daemon, limit set": (1.6, 1.1), "s3daemon, primed": (1.25, 1.1)
        }.get(name)  # fmt: skip
        for which, ratios, bar in (("first", first, bars and bars[0]), ("last", last, bars and bars[1])):
            middle = statistics.median(ratios)
            met = middle <= bar if bar else None
            yield Finding(f"{name}: {which} exposure", listed([middle]), f"<= {bar:.2f}" if bar else "", met)
        middle, most = statistics.median(small) / rtt, max(small) / rtt
        yield Finding(f"{name}: sidecar p50, RTT", listed([middle]), "<= 1.25", middle <= 1.25)
        yield Finding(f"{name}: sidecar max, RTT", listed([most]), "<= 2.00", most <= 2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=("burst", *CHECKS), help="these checks (burst)")
    parser.add_argument("--contender", action="append", help="these only, by their names in the table")
    parser.add_argument("--runs", type=int, default=1, help="of s3daemon in each of its settings (1)")
    parser.add_argument("--bursts", type=int, default=3, help="exposures a run (3)")
    parser.add_argument("--apart", type=float, default=35.0, help="seconds between them (35)")
    parser.add_argument("--idle", type=float, default=600.0, help="seconds of idleness (600)")
    parser.add_argument("--rtt", type=float, default=200.0, help="of the link, ms (200)")
    parser.add_argument("--rate", type=float, default=1000.0, help="of the link, Mbit/s (1000)")
    parser.add_argument("--queue", type=int, help="before the link, bytes (what it carries in a round trip)")
    parser.add_argument("--slow-start-after-idle", action="store_true", help="leave that sysctl on")
    parser.add_argument("--bwlimit", default="1G", help="S3DAEMON_BWLIMIT, at the link's rate (1G)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=TEXT", help="another of its settings")
    parser.add_argument("--store", choices=("nginx", "rgw"), default="nginx", help="the far end (nginx, a sink)")
    parser.add_argument("--daemon", action="append", default=[], metavar="NAME=COMMAND", help="another contender")
    parser.add_argument("--tools", default="", help="directories with s5cmd, rclone, aws; colons between")
    parser.add_argument("--out", default="/var/tmp/s3daemon-wan", help="where .json and .png go")
    parser.add_argument("--add", action="store_true", help="to the exposures that are there already")
    args = parser.parse_args()
    args.link = {
        "rtt_ms": args.rtt,
        "rate_mbit": args.rate,
        "slow_start_after_idle": int(args.slow_start_after_idle),
        **({"queue": args.queue} if args.queue else {}),
    }
    return args


def main() -> None:
    """Make both ends, run what was asked for."""
    args = _arguments()
    with ExitStack() as stack:
        # A disk file system: tmpfs refuses the reads that the daemon makes without a thread. The far end is in memory.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        far = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        authority = Authority(work)
        link = stack.enter_context(wan(**args.link))
        with link.inside("far"):
            (far / "store").mkdir()
            store: Callable[..., AbstractContextManager[S3Server]] = rgw if args.store == "rgw" else nginx
            server = stack.enter_context(store(far / "store", authority, host=FAR))
        stack.enter_context(link.inside("near"))
        bucket = server.new_bucket() if args.store == "rgw" else "bucket"
        shape = Shape(args.rtt / 1000, args.rate * 1e6)
        bench = Bench(link, shape, server, Files(work / "files", bucket), work, far, authority, args)
        findings: dict[str, list[dict[str, Any]]] = {}
        kept = Path(f"{args.out}.json")
        if args.add and kept.exists():
            bench.runs = json.loads(kept.read_text())["runs"]
        checks: dict[str, Callable[[Bench], Iterator[Finding]]] = {"burst": burst, **CHECKS}
        for name in args.only or ["burst"]:
            for finding in checks[name](bench):
                print(finding.line(), flush=True)
                findings.setdefault(name, []).append(asdict(finding))
            if overrun := link.overrun():
                print(f"{name} is VOID, the emulator did not keep up: {overrun}", flush=True)
        results = {
            "limit_s": shape.limit_s(),
            **asdict(shape),
            "cores": cores(),
            "runs": bench.runs,
            "findings": findings,
        }
        kept.write_text(json.dumps(results, indent=1))
        if bench.runs:
            draw(Path(f"{args.out}.png"), bench.runs, shape)


if __name__ == "__main__":
    main()
