"""The HTTP server of a whole daemon, asked by curl and by a browser: hooks are served, pages of other sites are not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from lab.browser import browser
from lab.daemon import PATIENCE_S, Daemon, daemon
from lab.env import UnavailableError, clean_env
from lab.flaky import Fault, FlakyS3
from lab.installed import until
from lab.processes import ProgramError
from lab.rgw import Gateway

from s3daemon import __version__
from s3daemon.model.ids import id_of


def curl(served: Daemon, path: str, *options: str) -> tuple[int, dict[str, str], str]:
    """Returns what curl gets: the status, the headers by their names in lower case, the body."""
    url = f"http://localhost:{served.http_port}{path}"
    command = ["curl", "-sS", "-i", "--max-time", f"{PATIENCE_S:g}", *options, url]
    done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.removeprefix("HTTP/1.1 100 Continue\n\n").partition("\n\n")
    first, *lines = head.splitlines()
    pairs = (line.partition(": ") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}, body


def upload(served: Daemon, file: Path | str, uri: str, *options: str, slug: str = "") -> dict[str, Any]:
    """Ask as deployed hooks do; returns the answer's members, with the `X-Error` header under its name."""
    given = options or ("-d", f"file={file}", "-d", f"uri={uri}", "-d", f"slug={slug}")
    status, headers, body = curl(served, "/upload", *given)
    assert body.endswith("}\n")
    members: dict[str, Any] = json.loads(body)
    assert members["code"] == status
    return members | {"X-Error": headers.get("x-error")}


@pytest.fixture
def served(s3: FlakyS3, tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path / "state", s3.server, activated=True, http=True, keeping=True, stall_timeout="10min") as made:
        yield made


def test_curl_against_ceph(rgw: Gateway, tmp_path: Path) -> None:
    """The hook's command with another port: 200 and the object is there, over HTTPS; a refusal says why."""
    bucket = rgw.new_bucket()
    file = tmp_path / "f \xe9.fits"
    file.write_bytes(os.urandom(1_000_000))
    with daemon(tmp_path / "state", rgw, http=True) as made, ExitStack() as stack:
        plain = tmp_path / "f.json"
        plain.write_bytes(b"{}")
        done = upload(made, plain, f"s3://{bucket}/night/f.json", slug="AB_1")
        task = done["task"]
        assert (done["msg"], done["X-Error"], done["version"]) == ("upload succeeded", None, __version__)
        assert (task["uri"], task["file"], task["slug"]) == (f"s3://{bucket}/night/f.json", str(plain), "AB_1")
        assert (task["attempts"], task["size_bytes"], task["upload_parts"]) == (1, 2, 1)
        uri = f"s3://{bucket}/night/f é+&.fits"
        for options in (("-F", f"file={file}", "-F", f"uri={uri}"),
                        ("--data-urlencode", f"file={file}", "--data-urlencode", f"uri={uri}")):  # fmt: skip
            task = upload(made, "", "", *options)["task"]
            assert (task["size_bytes"], task["uri"]) == (1_000_000, uri)
            assert task["transfer_rate_mbits"] > 0
            assert task["duration"].startswith("0:00:0")
        client = rgw.client()
        stack.callback(client.close)
        assert client.get_object(Bucket=bucket, Key="night/f é+&.fits")["Body"].read() == file.read_bytes()
        assert client.head_object(Bucket=bucket, Key="night/f.json")["Metadata"]["s3daemon-id"]
        none = upload(made, tmp_path / "none", f"s3://{bucket}/k")
        assert (none["code"], none["task"]) == (400, {"file": f"{tmp_path}/none", "uri": f"s3://{bucket}/k"})
        assert none["X-Error"] == none["msg"] == f"bad request: NoSuchFile: {tmp_path}/none: no such file"
        refused = upload(made, plain, "s3://no-such-bucket/k")
        assert refused["code"] == 404
        assert refused["X-Error"].startswith("NoSuchBucket: ")
        assert [record.outcome for record in made.records(4)] == ["stored"] * 3 + ["failed"]


def test_a_client_that_keeps_its_connection(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Forms by every method, refusals and pages come one after the other on one connection."""
    client = HTTPConnection("localhost", served.http_port, timeout=PATIENCE_S)
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    client.connect()
    sock = client.sock
    for number, method in enumerate(("POST", "PUT", "PATCH") * 2):
        client.request(method, "/upload", f"file={file}&uri=S3://bucket/{number}&slug=%0A%FF", headers)
        answer = client.getresponse()
        members = json.loads(answer.read())
        assert (answer.status, members["task"]["slug"]) == (200, r"\n\udcff")
        client.request("POST", "/upload", f"file={file}&uri=bad", headers)
        refused = client.getresponse()
        assert (refused.status, json.loads(refused.read())["task"]) == (400, {"file": str(file), "uri": "bad"})
        client.request("GET", "/healthz")
        page = client.getresponse()
        assert (page.status, page.read()[-1:]) == (200, b"\n")
        client.request("GET", "/transfers?tag=%0A%FF&expect=1")  # the slug as it was sent
        found = client.getresponse()
        assert (found.status, json.loads(found.read())["stored"]) == (200, number + 1)
        assert client.sock is sock
    assert len(s3.objects) == 6
    assert served.terminate() == 0
    assert sock.recv(1) == b""
    client.close()


def test_a_large_form_of_curl_does_not_wait(served: Daemon, file: Path, tmp_path: Path) -> None:
    """curl asks whether it may send a form of this size, and waits a second for the answer before it sends."""
    (tmp_path / "more").write_text("x" * 1_000_000)
    begun = time.monotonic()
    fields = ("-F", f"file={file}", "-F", "uri=s3://bucket/k", "-F", f"more=<{tmp_path}/more")
    answer = upload(served, "", "", "-H", "Expect: 100-continue", *fields)
    assert (answer["code"], answer["msg"]) == (200, "upload succeeded")
    assert time.monotonic() - begun < 0.9


def test_a_page_by_http_1_0_without_a_host(served: Daemon) -> None:
    """As a balancer asks for the health."""
    assert curl(served, "/healthz", "--http1.0", "-H", "Host:")[0] == 200


def test_http_to_the_port_of_the_line_protocol(served: Daemon, file: Path) -> None:
    """curl shows a 400 that names the right port."""
    url = f"http://localhost:{served.port}/upload"
    done = subprocess.run(
        ["curl", "-sS", "-w", "%{http_code}", "-d", f"file={file}", "-d", "uri=s3://bucket/k", url],
        env=clean_env(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    text, _, code = done.stdout.partition("\n")
    assert (done.returncode, done.stderr, code) == (0, "", "400")
    assert text.endswith(f" the socket for HTTP is 127.0.0.1:{served.http_port}")


def test_a_name_that_is_not_utf_8(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """Sent as it is."""
    name = os.fsencode(tmp_path) + b"/\xff.fits"
    Path(os.fsdecode(name)).write_bytes(b"content")
    assert upload(served, "", "", "-d", f"file={quote(name)}&uri=s3://bucket/k")["code"] == 200
    assert s3.objects["bucket/k"].body == b"content"


def test_a_failure_is_reported(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """502; the queue lists it as one of which its client was notified, and the metrics count it."""
    s3.faults = {Fault.DENIED: 1.0}
    failed = upload(served, file, "s3://bucket/k")
    assert failed["code"] == 502
    assert failed["msg"].startswith("AccessDenied: ")
    until = time.monotonic() + 10
    while not served.queue()[0]["told"]:
        assert time.monotonic() < until
    served.wait_status(lambda now: now["failed"] == 1, "counted")
    text = curl(served, "/metrics")[2]
    assert '\ns3daemon_transfers_total{outcome="failed"} 1.0\n' in text
    assert "\ns3daemon_failed_listed 1.0\n" in text
    retried = served.command("queue", "retry", failed["task"]["id"])
    assert retried.stdout == "1 will be tried again\n"


def test_the_metrics_show_the_connections(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Each idle open connection is warm; that of an upload is only open."""

    def live(*names: str) -> list[float]:
        """Return the values of one scrape."""
        text = curl(served, "/metrics")[2]
        found = [re.search(rf"^s3daemon_{name} (.*)$", text, re.MULTILINE) for name in names]
        return [float(match[1]) for match in found if match]

    served.set(max_connections="1", keepalive_interval="10min")
    served.restart()
    served.wait_status(lambda now: now["connections"]["open"] == now["connections"]["limit"], "all connections open")
    warm, opened, limit = live("connections_warm", "connections_open", "connections_limit")
    assert warm == opened == limit
    s3.hold_bodies()
    assert served.send("--no-wait", file, "any/bucket/key").returncode == 0
    served.wait_status(lambda now: now["in_flight"] == 1, "in flight")
    warm, opened = live("connections_warm", "connections_open")
    assert warm == opened - 1
    assert live("in_flight", "pending", "receivers_disabled") == [1, 0, 0]
    s3.release()


def test_both_protocols_keep_the_order_of_one_key(served: Daemon, s3: FlakyS3, tmp_path: Path) -> None:
    """Requests for one key, alternately over the wire and HTTP, are uploaded in the order accepted."""
    s3.hold_bodies()
    asked: list[Future[dict[str, Any]]] = []
    with ThreadPoolExecutor(10) as pool:
        for number in range(20):
            file = tmp_path / f"f{number}"
            file.write_bytes(b"%d" % number)
            if number % 2:
                asked.append(pool.submit(upload, served, file, "s3://bucket/key"))
            else:
                assert served.send("--no-wait", file, "any/bucket/key").returncode == 0
            served.wait_status(partial(lambda n, now: now["pending"] + now["in_flight"] == n + 1, number), "accepted")
        s3.release()
        assert {one.result()["code"] for one in asked} == {200}
    served.wait_idle()
    ids = [put.id for put in s3.puts]
    assert [record.attempts for record in served.records(20)] == [1] * 20
    assert len(set(ids)) == 20
    assert s3.objects["bucket/key"].body == b"19"
    assert [id_of(one.result()["task"]["id"]) for one in asked] == ids[1::2]


def test_both_protocols_with_a_file_that_changes(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Whichever says stored, the object is what the file held when it was asked."""
    for number in range(10):
        file.write_bytes(b"version %d" % number)
        if number % 2:
            assert upload(served, file, "s3://bucket/key")["code"] == 200
        else:
            assert served.send(file, "any/bucket/key").returncode == 0
        assert s3.objects["bucket/key"].body == b"version %d" % number


def test_the_service_stops_while_a_client_waits(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """The next process stores the file and answers the client. New clients wait for that process."""
    served.set(drain_timeout="200ms")
    served.restart()
    s3.hold_bodies()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(upload, served, file, "s3://bucket/kept")
        served.wait_status(lambda now: now["in_flight"] == 1, "in flight")
        assert served.terminate() == 0
        early = pool.submit(curl, served, "/version")
        s3.release()
        served.start()
        assert early.result()[0] == 200
        answer = waiting.result()
    assert (answer["code"], answer["X-Error"]) == (200, None)
    assert s3.objects["bucket/kept"].id == id_of(answer["task"]["id"])


def test_no_client_is_refused_during_restarts(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """Forms and pages are requested while the service restarts: each gets an answer. The backlog is unchanged."""
    stop = threading.Event()

    def loop(ask: Any, *words: Any) -> set[int]:
        seen = set()
        while not stop.is_set():
            answer = ask(served, *words)
            seen.add(answer["code"] if isinstance(answer, dict) else answer[0])
        return seen

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(loop, upload, file, f"s3://bucket/{number}") for number in range(2)]
        loops += [pool.submit(loop, curl, path) for path in ("/version", "/metrics")]
        for _ in range(3):
            time.sleep(0.5)  # of loops at work
            assert served.terminate() == 0
            served.start()
        stop.set()
        seen = [one.result() for one in loops]
    assert seen == [{200}] * 4
    words = ["ss", "-Hltn", f"sport = {served.http_port}"]
    listening = subprocess.run(words, capture_output=True, text=True, check=True)
    assert listening.stdout.split()[2] == "4096"


def test_users_and_names_are_checked_at_each_request(s3: FlakyS3, file: Path, tmp_path: Path) -> None:
    """S3DAEMON_ALLOWED_USERS applies as on the wire; a reload puts it and S3DAEMON_HTTP_NAMES in force."""
    with daemon(tmp_path / "state", s3.server, http=True, allowed_users="4711") as made:
        named = ("-H", "Host: node7:15556")
        refused = upload(made, file, "s3://bucket/k")
        ours = f"user {os.geteuid()}"
        assert (refused["code"], refused["msg"]) == (
            400,
            f"bad request: NotAllowed: {ours} is not in S3DAEMON_ALLOWED_USERS",
        )
        said = f"refused {file} to bucket/k, asked by {ours}"
        until(made.lines, lambda lines: any(said in line for line in lines), said)
        assert curl(made, "/version", *named)[0] == 403
        made.set(allowed_users=f"4711 {os.geteuid()}", http_names="node7", wait_limit="77s")
        assert made.command("reload").returncode == 0
        assert upload(made, file, "s3://bucket/k")["code"] == 200
        version = json.loads(curl(made, "/version", *named)[2])
        shown = version["settings"]
        assert version["config"]["S3DAEMON_WAIT_LIMIT"] == "77"
        assert (shown["S3DAEMON_HTTP_NAMES"], shown["S3DAEMON_WAIT_LIMIT"]) == (["node7"], 77.0)
        assert "AWS_SECRET_ACCESS_KEY" not in shown


def test_health_follows_the_store(served: Daemon, s3: FlakyS3, file: Path) -> None:
    """503 and the reason while the store is away; requests are still accepted, deferred soon, and kept."""
    assert curl(served, "/healthz")[0] == 200
    s3.refuse()
    ids = [id_of(upload(served, file, f"s3://bucket/{number}")["task"]["id"]) for number in range(2)]
    status, _, line = curl(served, "/healthz")
    assert status == 503
    assert re.match(r"AWAY, \w+: .*, for \w+, next attempt in \d+s; 0 in flight; 2 pending; the oldest is ", line)
    text = curl(served, "/metrics")[2]
    assert "\ns3daemon_away 1.0\n" in text
    assert "\ns3daemon_pending 2.0\n" in text
    s3.open()
    served.wait_idle()
    assert curl(served, "/healthz")[0] == 200
    assert {s3.objects[f"bucket/{number}"].id for number in range(2)} == set(ids)


# Every way in which a page of today can have a browser send something, to each of TARGETS in turn.
_PAGE = """<!doctype html><meta charset=utf-8><title>Another site</title><body><script>
const targets = TARGETS, file = FILE, read = [];
const fields = way => ({file, uri: 's3://bucket/' + way, slug: way});
const encoded = way => new URLSearchParams(fields(way));
const form = way => { const made = new FormData(); for (const [k, v] of Object.entries(fields(way))) made.append(k, v);
                      return made; };
const patience = () => new Promise(done => setTimeout(done, 5000));
const event = (element, ...names) => Promise.race(
    [patience(), ...names.map(name => new Promise(done => element.addEventListener(name, done)))]);
async function ask(target, path, options) {
  try {
    const answer = await fetch(target + path, options);
    if (answer.type !== 'opaque') read.push(path + ' ' + answer.status + ' ' + await answer.text());
  } catch (refused) { }
}
async function submit(target, enctype, way) {
  // Named before it is there: else its name is unknown, and a form for it a window that is kept from opening.
  const frame = Object.assign(document.createElement('iframe'), {name: way + target});
  document.body.appendChild(frame);
  const made = document.body.appendChild(document.createElement('form'));
  Object.assign(made, {method: 'POST', enctype, action: target + '/upload', target: frame.name});
  for (const [name, value] of Object.entries(fields(way)))
    made.appendChild(Object.assign(document.createElement('input'), {name, value}));
  const loaded = event(frame, 'load');
  made.submit();
  await loaded;
}
(async () => {
  for (const target of targets) {
    for (const mode of ['no-cors', 'cors']) {
      await ask(target, '/upload', {method: 'POST', mode, body: encoded('fetch-' + mode)});
      await ask(target, '/upload', {method: 'POST', mode, body: form('parts-' + mode)});
    }
    await ask(target, '/upload', {method: 'POST', mode: 'no-cors', body: encoded('text').toString()});
    await ask(target, '/upload', {method: 'PUT', body: encoded('put')});
    navigator.sendBeacon(target + '/upload', encoded('beacon'));
    for (const path of ['/version', '/metrics', '/status.json', '/healthz', '/']) await ask(target, path, {});
    await submit(target, 'application/x-www-form-urlencoded', 'form');
    await submit(target, 'multipart/form-data', 'form-parts');
    for (const kind of ['img', 'script', 'iframe']) {
      const element = document.createElement(kind);
      const over = event(element, 'load', 'error');
      element.src = target + '/upload?' + encoded(kind);
      document.body.appendChild(element);
      await over;
    }
  }
  await fetch('/done', {method: 'POST', body: JSON.stringify(read)});
})();
</script>"""


class Site:
    """Another site: serves one page, records its requests, and lets only its own pages read an answer."""

    def __init__(self) -> None:
        self.page = b""
        self.asked: deque[tuple[str, str, bytes]] = deque()
        self.done: Future[list[str]] = Future()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(site.page if self.path == "/page" else b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/done":
                    site.done.set_result(json.loads(body))
                site.asked.append((self.path, self.headers["Origin"], body))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]


@contextmanager
def site() -> Iterator[Site]:
    made = Site()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()


@pytest.mark.parametrize("name", ["evil.example", "localhost", "127.0.0.1"])
def test_a_page_of_another_site_uploads_nothing(
    served: Daemon, s3: FlakyS3, tmp_path: Path, file: Path, name: str
) -> None:
    """Forms, scripts and images of a page in a real browser are sent, as another site sees; here they do nothing.

    From a foreign name, from another port of ours, and with a foreign name for us, as after DNS rebinding.
    """
    with site() as evil, site() as control:
        targets = [f"http://{host}:{served.http_port}" for host in ("localhost", "127.0.0.1", "evil.example")]
        page = _PAGE.replace("TARGETS", json.dumps([*targets, f"http://localhost:{control.port}"]))
        evil.page = page.replace("FILE", json.dumps(str(file))).encode()
        rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
        try:
            with browser(tmp_path, f"http://{name}:{evil.port}/page", rules) as process:
                try:
                    read = evil.done.result(PATIENCE_S)
                except TimeoutError:
                    raise ProgramError(f"the page did not end\n{process.tail()}") from None
        except UnavailableError as missing:
            pytest.skip(str(missing))
        sent = [body.decode() for path, _, body in control.asked if path == "/upload"]
        assert {way for way in _WAYS if any(way in body for body in sent)} == set(_WAYS)
        assert {origin for _, origin, _ in control.asked} == {f"http://{name}:{evil.port}"}
    assert read == []
    assert s3.puts == []
    assert served.records() == []
    assert served.queue() == []
    served.process.wait_line(" warning refused POST /upload over HTTP: ")
    assert upload(served, file, "s3://bucket/after")["code"] == 200


_WAYS = ("fetch-no-cors", "fetch-cors", "parts-no-cors", "parts-cors", "text", "beacon", "form", "form-parts")
