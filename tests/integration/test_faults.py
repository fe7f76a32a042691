"""For each fault of the store or the network during a PUT, the daemon behaves as the table here lists, and s3daemon(8)
agrees; nothing is sent twice without need, no client gets a wrong answer, and no key appears in any output.

Each row has a daemon and a proxy of its own in front of one SeaweedFS (some use Ceph's gateway); all run in parallel.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from lab.certs import Authority, Certificate
from lab.daemon import Daemon, daemon
from lab.faults import (
    WITHIN,
    a_byte_a_second,
    continue_only,
    cut_short,
    cut_short_and_gone,
    early_refusal,
    early_refusal_closed,
    early_success,
    garbage,
    half_an_answer,
    late,
    reading_a_byte_a_second,
    wrong_etag,
)
from lab.manual import explained_codes
from lab.proxy import Proxy, kept_then, proxy
from lab.rgw import Gateway
from lab.s3 import S3Server
from lab.scripted import (
    Script,
    answering,
    hang_up_after,
    refusing,
    reset_after,
    silent_after,
)
from lab.sending import a_file

SIZE = 1 << 20
AT_ONCE = 12
#: Limits as short as they may be; a waiting client's is long, so that it gets the final answer.
LIMITS: dict[str, Any] = {
    "stall_timeout": "1s", "answer_timeout": "3s", "connect_timeout": "1s", "wait_limit": "20s", "max_connections": "2",
    "log_level": "debug",
}  # fmt: skip


# --- faults of the network ----------------------------------------------------------------------


@dataclass
class Scene:
    """One row's daemon and proxy, and what a row may change while they run."""

    served: Daemon
    between: Proxy
    store: S3Server
    certs: Authority

    def certificate(self, made: Certificate) -> None:
        """Have the proxy use this one from now on."""
        assert self.between.tls is not None
        self.between.tls.load_cert_chain(made.cert, made.key)

    def handshakes_end(self, alert: bytes | None) -> None:
        """Have the proxy end each handshake with these bytes; None: with success."""
        self.between.alert = alert

    def reload(self, **changes: str) -> None:
        """Reload with these changes to the settings."""
        self.served.set(**changes)
        answer = self.served.ask("reload", environ=self.served.environ)
        assert "applied" in answer, answer


Step = Callable[[Scene], object]


def nothing(_: Scene) -> None:
    """Do nothing: the fault is in a PUT alone, and passes by itself."""


def untrusted(scene: Scene) -> None:
    other = scene.certs.ca.parent / f"other-{scene.served.port}"
    other.mkdir()
    scene.certificate(Authority(other).issue("other"))


def trust_again(scene: Scene) -> None:
    scene.certificate(scene.certs.issue(f"good-{scene.served.port}"))
    scene.reload()


def hang_up_on_idle(scene: Scene) -> None:
    before = scene.served.ask("status")["connections"]["opened"]
    scene.between.close_idle()
    scene.served.wait_status(lambda now: now["connections"]["opened"] > before, "opened again")


# --- the table ----------------------------------------------------------------------------------

PASSES, FINAL, HELD = "Retried", "Permanent errors", "Errors that hold the queue"


@dataclass(frozen=True)
class Row:
    """One fault and its consequences.

    Args:
        fault: what happens.
        scripts: what the proxy does to the PUTs, one each; later ones pass.
        code: of the first attempt's error; "" where none fails.
        verdict: what the error means: it is retried, is final for this transfer, or holds the queue.
        attempts: in the record.
        puts: that arrived whole at the store.
        reply: a pattern for the start of a waiting client's reply.
        start: done before the daemon starts; `warm`: once its connections are open; `fix`: after the first failure.
        on: which store.
        at_least_s: the minimum duration.
        bucket: the name of a missing one, where that is the fault.
        says: the heading of the manual that the code is under; the verdict's where it is empty.
    """

    fault: str
    scripts: tuple[Script, ...]
    code: str
    verdict: str = PASSES
    attempts: int = 2
    puts: int = 1
    reply: str = "Success"
    start: Step = nothing
    warm: Step = nothing
    fix: Step = nothing
    on: str = "seaweed"
    at_least_s: float = 0.0
    bucket: str = ""
    says: str = ""


def held(code: str) -> dict[str, Any]:
    """The fields of a row whose fault, which a neutral request meets too, holds the queue until a reload."""
    reply = rf"Deferred: \S+ is kept; the queue is held: {code}: "
    warm = lambda s: setattr(s.between, "neutral", refusing(403, code))  # noqa: E731
    return {"code": code, "verdict": HELD, "reply": reply, "warm": warm, "fix": Scene.reload}


def final(code: str, puts: int = 0) -> dict[str, Any]:
    """The fields of a row whose transfer fails permanently."""
    return {"code": code, "verdict": FINAL, "attempts": 1, "puts": puts, "reply": f"{code}: "}


GONE: dict[str, Any] = {
    "code": "ConnectionFailed",
    "start": lambda s: s.between.refuse(),
    "fix": lambda s: s.between.open(),
}
#: A record that holds the fatal alert internal_error (RFC 8446, 6).
FATAL = b"\x15\x03\x03\x00\x02\x02\x50"


def handshake_ends(alert: bytes, code: str) -> dict[str, Any]:
    """The fields of a row in which every handshake ends with `alert` until one attempt has failed."""
    return {"code": code, "start": lambda s: s.handshakes_end(alert), "fix": lambda s: s.handshakes_end(None)}


TLS = held("TLSRefused") | {"warm": nothing, "fix": trust_again}
NAMELESS: dict[str, Any] = {
    "code": "NameNotResolved",
    "start": lambda s: s.served.set(S3_ENDPOINT_URL="https://store.invalid:7480"),
    "fix": lambda s: s.reload(S3_ENDPOINT_URL=s.store.url),
}

ROWS = [
    Row("refused", (), **GONE),
    Row("reset before the body", (reset_after(0),), "StaleConnection"),
    Row("reset within the body", (reset_after(WITHIN),), "StaleConnection"),
    Row("reset after the body", (reset_after(),), "ConnectionClosed"),
    Row("reset after the body, which is stored", (kept_then(reset_after()),), "ConnectionClosed"),
    Row("hung up on within the body", (hang_up_after(WITHIN),), "StaleConnection"),
    Row("hung up on after the body", (hang_up_after(),), "ConnectionClosed"),
    Row("hung up on after the body, which is stored", (kept_then(hang_up_after()),), "ConnectionClosed"),
    Row("three times reset within the body", (reset_after(WITHIN),) * 3, "StaleConnection", attempts=4),
    Row("closed when idle", (), "", attempts=1, warm=hang_up_on_idle),
    Row("500", (refusing(500, "InternalError"),), "InternalError"),
    Row("500, and it is stored", (kept_then(refusing(500, "InternalError")),), "InternalError"),
    Row("502 of a proxy", (answering(502, b"<html>"),), "502"),
    Row("503", (answering(503),), "503"),
    Row("503 with Retry-After", (answering(503, Retry_After="3"),), "503", at_least_s=3),
    Row("503 with a date in Retry-After", (answering(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"),), "503"),
    Row("503 SlowDown", (refusing(503, "SlowDown"),), "SlowDown"),
    Row("503 SlowDown with Retry-After", (refusing(503, "SlowDown", Retry_After="3"),), "SlowDown", at_least_s=3),
    Row("429", (answering(429),), "429"),
    Row("429 with Retry-After", (answering(429, Retry_After="3"),), "429", at_least_s=3),
    Row("400 RequestTimeout", (refusing(400, "RequestTimeout"),), "RequestTimeout"),
    Row("403 of a proxy", (answering(403, b"<html>"),), "403"),
    Row("403 RequestTimeTooSkewed", (refusing(403, "RequestTimeTooSkewed"),), "RequestTimeTooSkewed"),
    Row("403 ExpiredToken", (refusing(403, "ExpiredToken"),), **held("ExpiredToken")),
    Row("403 QuotaExceeded", (refusing(403, "QuotaExceeded"),), "QuotaExceeded", at_least_s=3),
    Row("400 of a full bucket", (refusing(400, "XMinioAdminBucketQuotaExceeded"),), "XMinioAdminBucketQuotaExceeded",
        at_least_s=3),
    Row("507 of a full store", (refusing(507, "InsufficientStorage"),), "InsufficientStorage"),
    Row("400 of a store that cannot have the name", (refusing(400, "XMinioInvalidObjectName"),),
        **final("XMinioInvalidObjectName")),
    Row("403 SignatureDoesNotMatch of this key alone", (refusing(403, "SignatureDoesNotMatch"),),
        "SignatureDoesNotMatch", says=HELD),
    Row("403 AccessDenied", (refusing(403, "AccessDenied"),), **final("AccessDenied")),
    Row("404 NoSuchBucket", (refusing(404, "NoSuchBucket"),), **final("NoSuchBucket")),
    Row("413 of a proxy", (answering(413),), **final("413")),
    Row("307 to another host", (refusing(307, "TemporaryRedirect", Location="http://127.0.0.1:9/"),),
        "TemporaryRedirect"),
    Row("301 to another host", (refusing(301, "PermanentRedirect", Location="http://127.0.0.1:9/"),),
        **final("PermanentRedirect")),
    Row("wrong ETag", (wrong_etag,), "ETagMismatch", puts=2),
    Row("wrong length stored", (cut_short,), "ETagMismatch"),
    Row("wrong length stored, no answer", (cut_short_and_gone,), "ConnectionClosed"),
    Row("200 of a login page", (answering(200, b"<html><body/></html>"),), "BadAnswer"),
    Row("200 without an ETag, and it is stored", (kept_then(answering()),), "BadAnswer"),
    Row("204", (answering(204, ETag='"x"'),), "BadAnswer"),
    Row("302 without a document", (answering(302, Location="http://127.0.0.1:9/"),), "BadAnswer"),
    Row("503 of a proxy, and it is stored", (kept_then(answering(503)),), "503"),
    Row("truncated answer", (half_an_answer,), "BadAnswer"),
    Row("truncated answer, and it is stored", (kept_then(half_an_answer),), "BadAnswer"),
    Row("garbage for an answer", (garbage,), "BadAnswer"),
    Row("200 before the body is read", (early_success,), "BadAnswer"),
    Row("503 before the body is read", (early_refusal,), "SlowDown"),
    Row("503 before the body is read, and closed", (early_refusal_closed,), "SlowDown"),
    Row("100-continue only", (continue_only,), "NoAnswer"),
    Row("no answer", (silent_after(),), "NoAnswer"),
    Row("no answer, and it is stored", (kept_then(silent_after()),), "NoAnswer"),
    Row("answer after the limit", (late,), "NoAnswer"),
    Row("answer of one byte a second", (a_byte_a_second,), "NoAnswer"),
    Row("taken at one byte a second", (reading_a_byte_a_second,), "Stalled"),
    Row("stops reading", (silent_after(WITHIN),), "Stalled"),
    Row("TLS alert", (), **handshake_ends(FATAL, "TLSFailed")),
    Row("closed within the handshake", (), **handshake_ends(b"", "ConnectionFailed")),
    Row("expired certificate", (), **TLS, start=lambda s: s.certificate(s.certs.expired(f"old-{s.served.port}"))),
    Row("certificate of another name", (), **TLS,
        start=lambda s: s.certificate(s.certs.issue(f"else-{s.served.port}", "DNS:elsewhere.example"))),
    Row("certificate of another authority", (), **TLS, start=untrusted),
    Row("DNS gone", (), **NAMELESS),
    Row("Ceph: reset after the body, which is stored", (kept_then(reset_after()),), "ConnectionClosed", on="rgw"),
    Row("Ceph: wrong length stored", (cut_short,), "ETagMismatch", on="rgw"),
    Row("Ceph: 503 SlowDown", (refusing(503, "SlowDown"),), "SlowDown", on="rgw"),
    Row("Ceph: no such bucket", (), **final("NoSuchBucket"), bucket="no-such-bucket", on="rgw"),
]  # fmt: skip


# --- running the table --------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """The outcome of a row; `written` is all that the daemon logged and answered, `signatures` those that it sent."""

    code: str
    outcome: str
    attempts: int
    puts: int
    reply: str
    seconds: float
    whole: bool
    listed: list[str]
    written: str = field(repr=False)
    signatures: set[str] = field(repr=False)


def carry_out(row: Row, folder: Path, store: S3Server, certs: Authority, bucket: str) -> Seen:
    """Run one row, with a daemon and a proxy of its own."""
    bucket, key = row.bucket or bucket, re.sub("[^a-z0-9]+", "-", row.fault.lower())
    folder = folder / key
    folder.mkdir()
    file = a_file(folder / "file", SIZE)
    with (
        proxy(store, certs) as (between, through),
        daemon(folder / "state", through, activated=True, running=False, **LIMITS) as served,
    ):
        scene = Scene(served, between, through, certs)
        row.start(scene)
        served.start()
        if row.start is nothing:
            served.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "connected")
        row.warm(scene)
        between.scripts.extend(row.scripts)
        shown = ""
        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(served.plain, file, f"alias/{bucket}/{key}")
            if row.fix is not nothing:
                served.process.wait_line(r" attempt 1 failed, ")
                shown = str(served.ask("status"))
                if row.verdict == HELD:
                    asked.result()
                row.fix(scene)
            reply = asked.result().decode()
        served.wait_idle()
        queue = served.queue()
        served.terminate()
        failure = re.search(r" attempt 1 failed, .*?, (\w+): ", "\n".join(served.lines()))
        (record,) = served.records()
        return Seen(
            failure[1] if failure else record.error.partition(":")[0],
            record.outcome,
            record.attempts,
            between.whole[f"/{bucket}/{key}"],
            reply,
            record.seconds,
            whole=record.outcome == "failed" or is_there(store, bucket, key, file.read_bytes()),
            listed=[each["state"] for each in queue],
            written="\n".join([*served.lines(), shown, reply, str(queue)]),
            signatures=between.signatures,
        )


def is_there(store: S3Server, bucket: str, key: str, content: bytes) -> bool:
    """Whether the store has the whole object, asked without the proxy."""
    with closing(store.client()) as client:
        found: bytes = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return found == content


@pytest.fixture(scope="module")
def seen(
    tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server, rgw: Gateway, certs: Authority
) -> Mapping[str, Future[Seen]]:
    """The outcome of every row, or the exception that prevented it."""
    folder = tmp_path_factory.mktemp("faults")
    stores = {"seaweed": seaweed, "rgw": rgw.plain}
    buckets = {name: store.new_bucket() for name, store in stores.items()}
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = {row.fault: pool.submit(carry_out, row, folder, stores[row.on], certs, buckets[row.on]) for row in ROWS}
    print(f"\n{len(ROWS)} faults in {time.monotonic() - began:.0f} s")
    return made


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
def test_a_fault_has_the_listed_outcome(seen: Mapping[str, Future[Seen]], row: Row) -> None:
    """The outcome is the one in the table."""
    found = seen[row.fault].result()
    wanted = "failed" if row.verdict == FINAL else "stored"
    print(f"{row.fault}: {row.verdict}, {found}")
    print(*(line for line in found.written.splitlines() if " attempt " in line), sep="\n")
    assert (found.code, found.attempts, found.puts, found.outcome) == (row.code, row.attempts, row.puts, wanted)
    assert re.match(row.reply, found.reply)
    assert found.whole
    assert found.listed == (["failed"] if row.verdict == FINAL else [])
    assert found.seconds >= row.at_least_s


def test_no_output_contains_a_key_or_signature(seen: Mapping[str, Future[Seen]]) -> None:
    """Neither the debug log, nor a reply, nor an operator's command contains credentials."""
    found = [one.result() for one in seen.values() if not one.exception()]
    assert len(found) > len(ROWS) / 2
    assert all(one.signatures for one in found)
    for one in found:
        for secret in ("testsecret", *one.signatures):
            assert secret not in one.written
        assert not re.search("(?i)authorization|x-amz-(signature|credential|security)|Credential=", one.written)


@pytest.mark.parametrize("row", [row for row in ROWS if row.code], ids=lambda row: row.fault)
def test_the_manual_lists_the_fault(row: Row) -> None:
    """s3daemon(8) lists the code, or the status, once, under the heading that describes what happens."""
    names = {row.code} | ({"5xx"} if re.fullmatch(r"5\d\d", row.code) else set())
    assert [heading for code, heading in explained_codes() if code in names] == [row.says or row.verdict]
