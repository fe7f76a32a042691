"""Every setting that claims to be in force after a reload is: each is changed on a running daemon, and its effect seen.

The store is a small HTTP server that remembers what it was sent and by which address; in parts it is `lab.flaky`'s.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from lab.certs import Authority
from lab.daemon import Daemon, daemon
from lab.env import TREE
from lab.flaky import Fault, FlakyS3, flaky
from lab.s3 import S3Server

from s3daemon.config.settings import RELOADABLE, VARIABLES

#: No change is waited for longer, seconds. Settings are far above or far below this, so that load decides nothing.
PATIENCE_S = 60.0


@dataclass
class Put:
    """One PUT, as the store got it."""

    path: str
    headers: dict[str, str]
    address: str
    seconds: float


@dataclass
class Store:
    """A store that takes everything and remembers it; `etag` and `answering` change what it says, and when."""

    port: int = 0
    puts: list[Put] = field(default_factory=list)
    gets: int = 0
    etag: str = ""
    answering: threading.Event = field(default_factory=threading.Event)
    reading: threading.Event = field(default_factory=threading.Event)

    def server(self, scheme: str = "http", host: str = "127.0.0.1", ca: Path | None = None) -> S3Server:
        """How the daemon reaches it."""
        return S3Server(f"{scheme}://{host}:{self.port}", "testkey", "testsecret", ca)


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            assert store.reading.wait(2 * PATIENCE_S)
            began = time.monotonic()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            address = str(self.connection.getsockname()[0])
            store.puts.append(Put(self.path, headers, address, time.monotonic() - began))
            assert store.answering.wait(2 * PATIENCE_S)
            self._answer(store.etag or hashlib.md5(body, usedforsecurity=False).hexdigest())

        def do_GET(self) -> None:
            store.gets += 1
            self._answer("")

        do_HEAD = do_GET

        def _answer(self, etag: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """The daemon closes connections as it likes."""


@contextmanager
def a_store(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Store]:
    """A running store; with a context it speaks TLS."""
    store = Store()
    store.answering.set()
    store.reading.set()
    with _Server((host, 0), _handler(store)) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        store.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield store
        finally:
            store.answering.set()
            store.reading.set()
            server.shutdown()


@dataclass
class Case:
    """What a test of one setting has."""

    stack: ExitStack
    directory: Path
    certs: Authority
    store: Store
    file: Path

    def start(
        self,
        server: S3Server | None = None,
        *,
        http: bool = False,
        module: str = "s3daemon",
        prefix: Sequence[str] = (),
        **settings: str,
    ) -> Daemon:
        """A running daemon."""
        store, state_dir = server or self.store.server(), self.directory / "state"
        made = daemon(state_dir, store, settings, http=http, module=module, prefix=prefix)
        return self.stack.enter_context(made)

    def sized(self, size: int) -> Path:
        """A file of a size."""
        path = self.directory / f"file-{size}"
        path.write_bytes(os.urandom(size))
        return path


def reload(served: Daemon, **settings: str) -> None:
    """Change settings of a running daemon, which must say that they are in force."""
    served.set(**settings)
    answer = served.ask("reload", environ=served.environ)
    names = {name if name.isupper() else f"S3DAEMON_{name.upper()}" for name in settings}
    assert names <= set(answer["applied"]), answer


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a change."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def stored(served: Daemon, file: Path, key: str = "key") -> None:
    assert served.plain(file, f"alias/bucket/{key}") == b"Success"


def accepted(served: Daemon, file: Path, key: str = "key") -> None:
    assert served.extended(file, f"alias/bucket/{key}", wait=False)["result"] == "accepted"


def warm(served: Daemon) -> None:
    """Wait until all connections to the store are open."""
    served.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "warm")


def has_code(served: Daemon, code: str) -> Callable[[], bool]:
    """Whether an attempt of the only transfer failed with a code."""
    return lambda: [row["code"] for row in served.queue()] == [code]


def test_endpoint_url(case: Case) -> None:
    """Files go to another store."""
    served = case.start()
    with a_store() as other:
        stored(served, case.file, "first")
        reload(served, S3_ENDPOINT_URL=other.server().url)
        stored(served, case.file, "second")
        assert [put.path for put in other.puts] == ["/bucket/second"]
    assert [put.path for put in case.store.puts] == ["/bucket/first"]


def signed_by(put: Put) -> str:
    """The access key of a request."""
    return put.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def is_signed_with(put: Put, secret: str) -> bool:
    """Whether a request's signature is that of a secret key (AWS Signature Version 4)."""
    parts = dict(part.strip().split("=", 1) for part in put.headers["authorization"].partition(" ")[2].split(","))
    scope = parts["Credential"].partition("/")[2]
    names = parts["SignedHeaders"].split(";")
    lines = "".join(f"{name}:{put.headers[name].strip()}\n" for name in names)
    digest = put.headers["x-amz-content-sha256"]
    canonical = f"PUT\n{put.path}\n\n{lines}\n{parts['SignedHeaders']}\n{digest}"
    text = f"AWS4-HMAC-SHA256\n{put.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for word in (*scope.split("/"), text):
        key = hmac.digest(key, word.encode(), "sha256")
    return key.hex() == parts["Signature"]


def test_access_key(case: Case) -> None:
    served = case.start()
    reload(served, AWS_ACCESS_KEY_ID="otherkey")
    stored(served, case.file)
    assert signed_by(case.store.puts[-1]) == "otherkey"


def test_secret_key(case: Case) -> None:
    served = case.start()
    stored(served, case.file)
    reload(served, AWS_SECRET_ACCESS_KEY="othersecret")
    stored(served, case.file)
    before, after = case.store.puts
    assert is_signed_with(before, "testsecret")
    assert is_signed_with(after, "othersecret")


def test_session_token(case: Case) -> None:
    served = case.start()
    reload(served, AWS_SESSION_TOKEN="token")
    stored(served, case.file)
    assert case.store.puts[-1].headers["x-amz-security-token"] == "token"


def credentials(case: Case, name: str, **keys: str) -> str:
    """A credentials file with an access key for each profile."""
    path = case.directory / name
    path.write_text(
        "".join(f"[{section}]\naws_access_key_id={key}\naws_secret_access_key=s\n" for section, key in keys.items())
    )
    return str(path)


def test_shared_credentials_file(case: Case) -> None:
    one, two = credentials(case, "one", default="key1"), credentials(case, "two", default="key2")
    served = case.start(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_SHARED_CREDENTIALS_FILE=one)
    stored(served, case.file)
    reload(served, AWS_SHARED_CREDENTIALS_FILE=two)
    stored(served, case.file)
    assert [signed_by(put) for put in case.store.puts] == ["key1", "key2"]


def test_a_file_that_is_not_read_yet_stops_nothing(case: Case) -> None:
    """The file of new keys lies on a disk that does not answer for a while."""
    slow = case.directory / "slow"
    os.mkfifo(slow)
    served = case.start()
    served.set(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_SHARED_CREDENTIALS_FILE=str(slow))
    with ThreadPoolExecutor(1) as pool:
        reloading = pool.submit(served.command, "reload")
        with slow.open("w"):  # opened by the daemon by now, which reads until this is closed
            stored(served, case.file)
            assert not reloading.done()
        assert reloading.result().returncode == 1


def test_profile(case: Case) -> None:
    file = credentials(case, "both", default="key1", other="key2")
    served = case.start(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", AWS_SHARED_CREDENTIALS_FILE=file)
    stored(served, case.file)
    reload(served, AWS_PROFILE="other")
    stored(served, case.file)
    assert [signed_by(put) for put in case.store.puts] == ["key1", "key2"]


def test_receivers(case: Case) -> None:
    """Uploads go to the addresses of the list."""
    store = case.stack.enter_context(a_store(host="0.0.0.0"))
    served = case.start(store.server(host="localhost"))
    stored(served, case.file)
    reload(served, receivers="127.0.0.2")
    stored(served, case.file)
    assert [put.address for put in store.puts] == ["127.0.0.1", "127.0.0.2"]


def test_region(case: Case) -> None:
    served = case.start()
    reload(served, AWS_DEFAULT_REGION="elsewhere")
    stored(served, case.file)
    assert "/elsewhere/s3/aws4_request" in case.store.puts[-1].headers["authorization"]


def test_ca_bundle(case: Case) -> None:
    """A store is trusted once its authority is."""
    certificate = case.certs.issue("reload")
    store = case.stack.enter_context(a_store(certificate.context()))
    served = case.start(store.server("https"))
    accepted(served, case.file)
    until(lambda: [row["code"] for row in served.queue()] not in ([], [""]), "a failure without the authority")
    assert not store.puts
    reload(served, AWS_CA_BUNDLE=str(case.certs.ca))
    until(lambda: store.puts, "stored with the authority")


def test_max_connections(case: Case) -> None:
    """So many files are in flight at once."""
    case.store.answering.clear()
    served = case.start()
    reload(served, max_connections="7")
    for number in range(10):
        accepted(served, case.file, str(number))
    served.wait_status(lambda now: now["in_flight"] == 7 and now["pending"] == 3, "7 in flight")


@pytest.mark.parametrize("http", [False, True], ids=["wire", "HTTP"])
def test_max_clients(case: Case, http: bool) -> None:
    """More clients are served at once after a reload."""
    served = case.start(http=True, max_clients="2")
    port = served.http_port if http else served.port
    with ExitStack() as connected:
        socks = [connected.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(6)]
        until(lambda: served_now(served, socks) == 2, "2 clients")
        reload(served, max_clients="5")
        until(lambda: served_now(served, socks) == 5, "5 clients")
        assert served_now(served, socks) == 5


def served_now(served: Daemon, socks: list[socket.socket]) -> int:
    """How many of these connections the daemon has accepted: each is a descriptor of its."""
    ends = {f"{sock.getsockname()[0]}:{sock.getsockname()[1]}" for sock in socks}
    words = ["ss", "-Htnp", "state", "established"]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return sum(f"pid={served.process.pid}," in line and line.split()[3] in ends for line in lines)


def test_connect_timeout(case: Case) -> None:
    """An attempt over a connection that never opens fails within it."""
    silent = case.stack.enter_context(socket.create_server(("127.0.0.1", 0)))  # takes connections, and speaks no TLS
    served = case.start(S3Server(f"https://127.0.0.1:{silent.getsockname()[1]}", "k", "s"), connect_timeout="5min")
    reload(served, connect_timeout="200ms")
    accepted(served, case.file)
    until(has_code(served, "ConnectTimeout"), "a timeout")


def test_stall_timeout(case: Case) -> None:
    """An attempt of which nothing arrives any more fails within it."""
    case.store.reading.clear()
    served = case.start(stall_timeout="10min")
    reload(served, stall_timeout="1s")
    accepted(served, case.sized(32_000_000))
    until(has_code(served, "Stalled"), "a stalled attempt")


def test_wait_limit(case: Case) -> None:
    case.store.answering.clear()
    served = case.start(wait_limit="1h", answer_timeout="1h")
    reload(served, wait_limit="100ms")
    assert served.plain(case.file, "alias/bucket/key").startswith(b"Deferred: ")


def test_retry_for(case: Case) -> None:
    """A transfer fails once it was tried for so long."""
    with flaky() as away:
        away.refuse()
        served = case.start(away.server)
        accepted(served, case.file)
        until(lambda: [row["attempts"] > 0 for row in served.queue()] == [True], "an attempt")
        reload(served, retry_for="1s")
        until(lambda: [row["state"] for row in served.queue()] == ["failed"], "given up")


def test_answer_timeout(case: Case) -> None:
    """An attempt whose answer does not come fails within it."""
    case.store.answering.clear()
    served = case.start(answer_timeout="1h")
    reload(served, answer_timeout="1s")
    accepted(served, case.file)
    until(has_code(served, "NoAnswer"), "no answer")


def test_keep_failed(case: Case) -> None:
    """A failure is no longer listed after it; expiry is looked at every 30 s, and here every other second."""
    with flaky() as denying:
        denying.faults = {Fault.DENIED: 1.0}
        served = case.start(denying.server, module="lab.hurrying", PYTHONPATH=f"{TREE}:{TREE / 'tests'}")
        assert served.plain(case.file, "alias/bucket/key").startswith(b"AccessDenied: ")
        assert len(served.queue()) == 1
        reload(served, keep_failed="1s")
        until(lambda: served.queue() == [], "expired")


def test_drain_timeout(case: Case) -> None:
    """A stop does not wait longer for uploads."""
    case.store.answering.clear()
    served = case.start(drain_timeout="10min", answer_timeout="1h")
    accepted(served, case.file)
    until(lambda: case.store.puts, "an upload in flight")
    reload(served, drain_timeout="0s")
    assert served.terminate(PATIENCE_S) == 0


def test_keepalive_interval(case: Case) -> None:
    """Idle connections are used as often."""
    served = case.start(keepalive_interval="10min", max_connections="2")
    warm(served)
    reload(served, keepalive_interval="1s")
    before = case.store.gets
    until(lambda: case.store.gets > before + 6, "requests on idle connections")


def test_bwlimit(case: Case) -> None:
    """An upload is sent no faster."""
    served, file = case.start(), case.sized(500_000)
    stored(served, file)
    reload(served, bwlimit="1600k")  # bits a second: two and a half seconds for the file
    stored(served, file)
    unlimited, limited = case.store.puts
    assert limited.seconds > max(1.25, unlimited.seconds)


def test_congestion(case: Case) -> None:
    """New connections have that congestion control; reno is in every Linux, and here not the default."""
    served = case.start(max_connections="2")

    def controls() -> set[str]:
        words = ["ss", "-Htni", "dport", f"= :{case.store.port}"]
        lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
        return {line.split()[0] for line in lines if line.startswith("\t")}

    warm(served)
    if controls() == {"reno"}:
        pytest.skip("reno is the default here")
    reload(served, congestion="reno")
    until(lambda: controls() == {"reno"}, "reno")


def test_prime(case: Case) -> None:
    """New connections carry a scratch object first."""
    served = case.start(max_connections="2")
    warm(served)
    assert not case.store.puts
    reload(served, prime="bucket/scratch-")
    until(lambda: any(put.path.startswith("/bucket/scratch-") for put in case.store.puts), "a scratch object")


def test_multipart_threshold(case: Case, s3: FlakyS3) -> None:
    """A larger file goes in parts."""
    served, file = case.start(s3.server, part_size="5MiB"), case.sized(6 << 20)
    stored(served, file)
    reload(served, multipart_threshold="5MiB")
    stored(served, file)
    assert ["-" in put.etag for put in s3.puts] == [False, True]


def test_part_size(case: Case, s3: FlakyS3) -> None:
    served, file = case.start(s3.server, multipart_threshold="5MiB"), case.sized(11 << 20)
    stored(served, file)
    reload(served, part_size="5MiB")
    stored(served, file)
    assert [put.etag.partition("-")[2] for put in s3.puts] == ["", "3"]


def test_verify(case: Case) -> None:
    """A wrong MD5 in the answer fails an attempt, or is ignored."""
    case.store.etag = "0" * 32
    served = case.start()
    accepted(served, case.file)
    until(has_code(served, "ETagMismatch"), "a mismatch")
    reload(served, verify="off")
    until(lambda: served.queue() == [], "stored")


def test_allowed_roots(case: Case) -> None:
    served = case.start()
    stored(served, case.file)
    reload(served, allowed_roots="/nowhere")
    assert served.plain(case.file, "alias/bucket/key").startswith(b"NotAllowed: ")


def test_allowed_buckets(case: Case) -> None:
    served = case.start()
    stored(served, case.file)
    reload(served, allowed_buckets="other")
    assert served.plain(case.file, "alias/bucket/key").startswith(b"NotAllowed: ")


def test_allowed_users(case: Case) -> None:
    """A list with an unknown name changes nothing at all. That there is no list any more is a warning."""
    served = case.start(log_level="warning")
    stored(served, case.file)
    reload(served, allowed_users=str(os.geteuid() + 1))
    assert served.plain(case.file, "alias/bucket/key").startswith(b"NotAllowed: ")
    served.set(allowed_users=f"{os.geteuid()} no-such-user", allowed_buckets="other")
    assert served.command("reload").returncode != 0
    assert served.plain(case.file, "alias/bucket/key").startswith(b"NotAllowed: user ")
    served.set(allowed_users="", allowed_buckets="")
    assert served.command("reload").returncode == 0
    stored(served, case.file)
    served.process.wait_line("in force: S3DAEMON_ALLOWED_USERS; no limit any more: S3DAEMON_ALLOWED_USERS$")


def test_http_names(case: Case) -> None:
    served = case.start(http=True)
    request = Request(f"http://127.0.0.1:{served.http_port}/version", headers={"Host": "node7"})
    with pytest.raises(HTTPError, match="403") as refused:
        urlopen(request)
    refused.value.close()
    reload(served, http_names="node7")
    with urlopen(request) as answer:
        assert json.loads(answer.read())["settings"]["S3DAEMON_HTTP_NAMES"] == ["node7"]


def test_log_level(case: Case) -> None:
    """The reload itself is an entry of level info."""
    served = case.start(log_level="error")
    reload(served, log_level="info")
    served.process.wait_line("reloaded; in force: S3DAEMON_LOG_LEVEL")


def test_what_takes_a_restart_is_not_in_force(case: Case) -> None:
    """It is named, at each reload again; what the daemon shows and protects is the state directory that it has."""
    served = case.start(http=True)
    changed = {**served.environ, "S3DAEMON_PORT": "1", "S3DAEMON_STATE_DIR": "/nowhere"}
    for _ in range(2):
        assert served.ask("reload", environ=changed)["restart"] == ["S3DAEMON_PORT", "S3DAEMON_STATE_DIR"]
    with urlopen(f"http://127.0.0.1:{served.http_port}/version") as answer:
        shown = json.loads(answer.read())["settings"]
    assert (shown["S3DAEMON_PORT"], shown["S3DAEMON_STATE_DIR"]) == (served.port, str(served.state_dir))
    answered = served.plain(served.state_dir / "spool.db", "alias/bucket/spool")
    assert answered.endswith(b": it is one of the daemon's own files\n")
    assert case.store.puts == []


@pytest.mark.parametrize("of_systemd", [True, False])
def test_a_reload_by_hand_changes_nothing_of_a_daemon_of_systemd(case: Case, *, of_systemd: bool) -> None:
    """An operator's shell has other variables, or none. systemd gives a unit's commands the identifier of its run.

    It does so with the shells of terminals too, which are units of their own; what they start is not systemd's.
    """
    as_systemd = ("sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh")
    served = case.start(prefix=as_systemd if of_systemd else (), INVOCATION_ID="5f" * 16)
    assert served.command("reload").returncode == 0
    served.set(INVOCATION_ID="6e" * 16 if of_systemd else "")
    done = served.command("reload")
    text = "NotPermitted: a daemon that systemd runs takes its settings from its unit: systemctl reload s3daemon\n"
    expected = (1, "", text) if of_systemd else (0, "nothing changed\n", "")
    assert (done.returncode, done.stdout, done.stderr) == expected
    served.set(INVOCATION_ID="", S3_ENDPOINT_URL="")
    assert served.command("reload").returncode == 1
    assert ("REFUSED" in served.ask("status")["status"]) is not of_systemd


def test_every_reloadable_setting_has_a_test_here() -> None:
    """Named as its field is, without the unit."""
    without_units = {re.sub("_(s|bps|bytes)$", "", name) for name in RELOADABLE}
    assert [name for name in without_units if f"test_{name}" not in globals()] == []
    assert {name for name in VARIABLES if name not in RELOADABLE} == {"host", "port", "state_dir"}


@pytest.fixture
def case(tmp_path: Path, certs: Authority, file: Path) -> Iterator[Case]:
    with a_store() as store, ExitStack() as stack:
        yield Case(stack, tmp_path, certs, store, file)
