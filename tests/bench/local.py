"""What the daemon costs on this machine, each figure a ratio to a baseline of the same run. Not a test: run it alone.

    tests/bench/local [--store rgw|seaweed] [--rounds N] [--daemon NAME=COMMAND]

    small      1 000 files of 3 kB through the wire, 25 at a time, against a bare aiobotocore put_object loop, by rate
    cpu        the same by CPU time
    durable    the same against a daemon whose spool stores nothing, by rate
    accept     --no-wait acceptances by 50 clients, a second, while the endpoint is away
    send       `send` of a 3 kB file against curl's PUT of it to the store, wall time
    sidecars   23 files of 3 kB at once, 200 ms away: the median's ms above the round trip, against a raw aiohttp daemon
    late       how many ms the worst of them came after their median
    large      60 files of 16 MiB over TLS, user+sys seconds a GB against the bare loop, and against curl; verify off
    verified   the same with verification, against curl

The store is Ceph's gateway for the small ones, a program that answers late for the sidecars, and nginx as a sink for
the large ones. A daemon that is given (contenders.py says what it has to do) takes part in small, cpu and sidecars.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.common import cpu_of, make_files
from bench.contenders import Deliver, given
from bench.sidecars import measure
from lab.certs import Authority
from lab.daemon import Daemon, daemon
from lab.env import TREE, clean_env, free_ports
from lab.nginx import nginx
from lab.processes import ProgramError
from lab.rgw import rgw
from lab.s3 import S3Server
from lab.seaweed import seaweed

SMALL, LARGE = 3_000, 16 << 20
SMALL_COUNT, LARGE_COUNT, AT_ONCE = 1_000, 60, 25

#: Runs as a program of its own, so that its CPU time is measured alone: what a user's first daemon would do.
BARE = """
import asyncio, json, resource, sys, time
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
url, ca, key, secret, bucket, at_once, *files = sys.argv[1:]
async def main():
    config = AioConfig(max_pool_connections=int(at_once), s3={"addressing_style": "path"},
                       request_checksum_calculation="when_required")
    made = get_session().create_client("s3", endpoint_url=url, verify=ca or None, aws_access_key_id=key,
                                       aws_secret_access_key=secret, region_name="us-east-1", config=config)
    async with made as client:
        left = iter(files)
        async def worker():
            for file in left:
                with open(file, "rb") as body:
                    await client.put_object(Bucket=bucket, Key="bare" + file, Body=body)
        used, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        await asyncio.gather(*(worker() for _ in range(int(at_once))))
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        print(json.dumps({"wall": wall, "cpu": cpu}))
asyncio.run(main())
"""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, check=True)
    return done.stdout


def bare(server: S3Server, bucket: str, files: Sequence[Path], at_once: int) -> dict[str, float]:
    arguments = (server.url, str(server.ca or ""), server.access_key, server.secret_key, bucket, str(at_once))
    found: dict[str, float] = json.loads(run(sys.executable, "-c", BARE, *arguments, *map(str, files)))
    return found


def curl(server: S3Server, files: Sequence[Path]) -> float:
    """User and system seconds of one curl that sends all, connections kept."""
    words: list[str] = []
    for file in files:
        words += ["--next"] * bool(words) + ["-sf", "-o", "/dev/null", "--cacert", str(server.ca), "-H", "Expect:"]
        words += ["-T", str(file), f"{server.url}/bucket/curl/{file.name}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("curl", "-q", *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def through_the_wire(served: Daemon, bucket: str, files: Sequence[Path], at_once: int, *, wait: bool = True) -> float:
    """Seconds for all of `files`, each asked for on a connection of its own, as hooks do."""

    async def ask(file: Path) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        if wait:
            writer.write(f"{file} a/{bucket}/wire{file}\n".encode())
        else:
            members = {"file": str(file), "destination": f"a/{bucket}/later{file}", "wait": False}
            writer.write(json.dumps(members).encode() + b"\n")
            writer.write_eof()
        answer = await reader.read()
        writer.close()
        assert answer == b"Success" or b'"accepted"' in answer, answer

    return asyncio.run(_seconds_for(ask, files, at_once))


def by_daemon(deliver: Deliver, prefix: str, files: Sequence[Path], at_once: int) -> float:
    """Seconds for all of `files` by another daemon, their keys below `prefix`."""
    return asyncio.run(_seconds_for(lambda file: deliver(file, f"{prefix}{file}"), files, at_once))


async def _seconds_for(ask: Callable[[Path], Coroutine[Any, Any, None]], files: Sequence[Path], at_once: int) -> float:
    left = iter(files)

    async def worker() -> None:
        for file in left:
            await ask(file)

    began = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return time.monotonic() - began


@contextmanager
def serving(server: S3Server, directory: Path, *, module: str = "s3daemon", **settings: Any) -> Iterator[Daemon]:
    """A daemon of that module, with its connections open."""
    state = Path(tempfile.mkdtemp(dir=directory))
    path = f"{TREE}:{TREE / 'tests'}"
    with daemon(state, server, module=module, PYTHONPATH=path, **settings) as running:
        running.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")
        try:
            yield running
        except OSError as exc:
            raise ProgramError(f"{module}: {exc}\n{running.process.tail()}") from exc


def show(name: str, ratios: Sequence[float], bar: str, detail: str) -> None:
    figures = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"{name:9} {statistics.median(ratios):8.2f}   bar {bar:8} {detail}   ({figures})", flush=True)


def small_ones(store: S3Server, work: Path, rounds: int, count: int, daemons: Sequence[str]) -> None:
    bucket = store.new_bucket()
    files = make_files(work / "small", count, SMALL)
    with ExitStack() as stack:
        durable = stack.enter_context(serving(store, work))
        forgetful = stack.enter_context(serving(store, work, module="bench.forgetful"))
        others = {text.partition("=")[0]: stack.enter_context(given(text, store)) for text in daemons}
        rates: dict[str, list[float]] = {name: [] for name in ("bare", "wire", "forgetful", *others)}
        used: dict[str, list[float]] = {name: [] for name in ("bare", "wire", *others)}
        for _ in range(rounds):
            loop = bare(store, bucket, files, AT_ONCE)
            rates["bare"].append(count / loop["wall"])
            used["bare"].append(loop["cpu"] / count)
            before = cpu_of(durable.process.pid)
            rates["wire"].append(count / through_the_wire(durable, bucket, files, AT_ONCE))
            used["wire"].append((cpu_of(durable.process.pid) - before) / count)
            rates["forgetful"].append(count / through_the_wire(forgetful, bucket, files, AT_ONCE))
            for name, (process, deliver) in others.items():
                before = cpu_of(process.pid)
                rates[name].append(count / by_daemon(deliver, f"{bucket}/{name}", files, AT_ONCE))
                used[name].append((cpu_of(process.pid) - before) / count)
        detail = ", ".join(f"{name} {statistics.median(found):.0f}/s" for name, found in rates.items())
        show("small", [w / b for w, b in zip(rates["wire"], rates["bare"], strict=True)], ">= 1.10", detail)
        spent = ", ".join(f"{name} {1000 * statistics.median(found):.2f}" for name, found in used.items()) + " ms"
        show("cpu", [w / b for w, b in zip(used["wire"], used["bare"], strict=True)], "<= 0.90", spent)
        show("durable", [w / f for w, f in zip(rates["wire"], rates["forgetful"], strict=True)], ">= 0.70", detail)
        sends(durable, store, bucket, files)
    away = S3Server(f"http://127.0.0.1:{free_ports(1)[0]}", "key", "secret")
    with daemon(Path(tempfile.mkdtemp(dir=work)), away) as alone:
        accepted = [count / through_the_wire(alone, f"b{n}", files, 50, wait=False) for n in range(rounds)]
        show("accept", accepted, ">= 1500", "acceptances a second")


def sends(served: Daemon, store: S3Server, bucket: str, files: Sequence[Path]) -> None:
    environ = clean_env(S3DAEMON_HOST="127.0.0.1", S3DAEMON_PORT=str(served.port))
    signed = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{store.access_key}:{store.secret_key}"]
    signed += ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", *(["--cacert", str(store.ca)] if store.ca else [])]

    def timed(*command: str) -> float:
        began = time.monotonic()
        subprocess.run(command, env=environ, check=True)
        return (time.monotonic() - began) * 1000

    takes: dict[str, list[float]] = {"send": [], "python3 send": [], "curl": []}
    for file in files[:20]:
        takes["send"].append(timed(str(TREE / "send"), str(file), f"a/{bucket}/send/{file.name}"))
        takes["python3 send"].append(timed("/usr/bin/python3", str(TREE / "send"), str(file), f"a/{bucket}/send/"))
        takes["curl"].append(timed("curl", "-qsSf", *signed, "-T", str(file), f"{store.url}/{bucket}/curl/{file.name}"))
    detail = ", ".join(f"{name} {statistics.median(found):.1f}" for name, found in takes.items()) + " ms"
    show("send", [statistics.median(takes["send"]) / statistics.median(takes["curl"])], "<= 1.45", detail)


def sidecars(work: Path, authority: Authority, rounds: int, daemons: Sequence[str]) -> None:
    found = measure(work, authority, rounds, daemons)
    detail = ", ".join(f"{name} {above.median:.1f}" for name, above in found.items()) + " ms above the round trip"
    show("sidecars", [found["wire"].median / found["raw"].median], "<= 2.50", detail)
    detail = ", ".join(f"{name} {above.late:.1f}" for name, above in found.items()) + " ms after the median"
    show("late", [found["wire"].late], "<= 25", detail)


def large_ones(sink: S3Server, work: Path, rounds: int, count: int) -> None:
    files = make_files(work / "large", count, LARGE)
    sent = count * LARGE / 1e9
    found: dict[str, list[float]] = {"bare": [], "curl": [], "off": [], "auto": []}

    def cpu(served: Daemon) -> float:
        before = cpu_of(served.process.pid)
        through_the_wire(served, "bucket", files, AT_ONCE)
        return cpu_of(served.process.pid) - before

    with serving(sink, work, verify="off") as off, serving(sink, work, verify="auto") as auto:
        takes: dict[str, Callable[[], float]] = {
            "bare": lambda: bare(sink, "bucket", files, AT_ONCE)["cpu"],
            "curl": lambda: curl(sink, files),
            "off": lambda: cpu(off),
            "auto": lambda: cpu(auto),
        }
        for _ in range(rounds):
            for name, take in takes.items():
                found[name].append(take() / sent)
    detail = ", ".join(f"{name} {statistics.median(figures):.2f}" for name, figures in found.items()) + " s/GB"
    for name, over, under, bar in (
        ("large", "off", "bare", "<= 0.95"),
        ("curl", "off", "curl", "<= 1.05"),
        ("verified", "auto", "curl", "<= 2.40"),
    ):
        show(name, [a / b for a, b in zip(found[over], found[under], strict=True)], bar, detail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("rgw", "seaweed"), default="rgw", help="where the small ones go")
    parser.add_argument("--rounds", type=int, default=10, help="of each, in turn (10)")
    parser.add_argument("--only", choices=("small", "sidecars", "large"), help="a part of it")
    parser.add_argument("--daemon", action="append", default=[], metavar="NAME=COMMAND", help="another contender")
    parser.add_argument("--small", type=int, default=SMALL_COUNT, help=f"how many small files ({SMALL_COUNT})")
    parser.add_argument("--large", type=int, default=LARGE_COUNT, help=f"how many large files ({LARGE_COUNT})")
    args = parser.parse_args()
    with ExitStack() as stack:
        # A disk file system: tmpfs refuses the reads that the daemon makes without a thread.
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        authority = Authority(work)
        if args.only in (None, "small"):
            (work / "store").mkdir()
            store = rgw(work / "store", authority) if args.store == "rgw" else seaweed(work / "store")
            small_ones(stack.enter_context(store), work, args.rounds, args.small, args.daemon)
        if args.only in (None, "sidecars"):
            sidecars(work, authority, args.rounds, args.daemon)
        if args.only in (None, "large"):
            (work / "sink").mkdir()
            large_ones(stack.enter_context(nginx(work / "sink", authority)), work, args.rounds, args.large)


if __name__ == "__main__":
    main()
