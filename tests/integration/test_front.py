"""Real proxies in front of a real Ceph gateway, and keys that are rotated at it: what is said is so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from lab import rgw as lab_rgw
from lab.certs import Authority
from lab.daemon import daemon
from lab.env import UnavailableError, free_ports
from lab.nginx import front
from lab.proxy import kept_then, proxy
from lab.rgw import Gateway
from lab.scripted import hang_up_after
from lab.sending import a_file

QUICK = {"answer_timeout": "3s", "stall_timeout": "3s", "connect_timeout": "2s"}


@pytest.fixture
def bucket(rgw: Gateway) -> str:
    """A bucket of the gateway."""
    return rgw.new_bucket()


def size_of(gateway: Gateway, bucket: str, key: str) -> int | None:
    """What the gateway itself has, bytes; None: nothing."""
    client = gateway.client()
    try:
        size: int = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    except client.exceptions.ClientError:
        return None
    finally:
        client.close()
    return size


def test_a_page_in_place_of_a_dead_store_is_not_a_success(rgw: Gateway, bucket: str, tmp_path: Path) -> None:
    """With `error_page 502 =200` nginx answers every request by 200 while the gateway is away; a file with its ETag."""
    dead, sorry_port = free_ports(2)
    (tmp_path / "page").write_text("<html>Back soon</html>")
    (tmp_path / "nothing").touch()
    sorry = f"error_page 502 =200 @sorry; proxy_pass http://127.0.0.1:{dead};"
    server = (
        f"server {{ listen 127.0.0.1:{sorry_port}; root {tmp_path}; location ~ text {{ return 200 'Back soon'; }} "
        "location ~ page { try_files /page =404; } location / { try_files /nothing =404; } }"
    )
    to_it = f"location @sorry {{ proxy_method GET; proxy_pass http://127.0.0.1:{sorry_port}; }}"
    file, keys = a_file(tmp_path / "file", 3_000), ["text", "page", "nothing"]
    with (
        front(rgw.plain, tmp_path, sorry, server, to_it) as nginx,
        daemon(tmp_path / "state", nginx.server, QUICK, wait_limit="4s") as served,
        ThreadPoolExecutor() as pool,
    ):
        for reply in pool.map(lambda key: served.plain(file, f"alias/{bucket}/{key}"), keys):
            assert reply.startswith(b"Deferred: ")
        assert [size_of(rgw, bucket, key) for key in keys] == [None] * 3
        nginx.configure(f"proxy_pass {rgw.plain.url};")
        served.ask("reload", environ=served.environ)  # which does not wait for the next probe
        served.wait_idle(timeout=60)
        assert [size_of(rgw, bucket, key) for key in keys] == [3_000] * 3
        assert {record.outcome for record in served.records(len(keys))} == {"stored"}
        assert served.plain(file, f"alias/{bucket}/later") == b"Success"


def test_a_key_that_a_proxy_rewrites_waits_alone(rgw: Gateway, bucket: str, tmp_path: Path) -> None:
    """`proxy_pass .../;` folds `//`, and so breaks the signature of such keys: the others go at once."""
    file = a_file(tmp_path / "file", 3_000)
    with (
        front(rgw.plain, tmp_path, f"proxy_pass {rgw.plain.url}/;") as nginx,
        daemon(tmp_path / "state", nginx.server, QUICK) as served,
    ):
        assert served.extended(file, f"alias/{bucket}/x//y", wait=False)["result"] == "accepted"
        assert served.extended(file, f"alias/{bucket}/x//z", wait=False)["result"] == "accepted"
        served.process.wait_line("SignatureDoesNotMatch")
        began = time.monotonic()
        for n in range(40):
            assert served.plain(file, f"alias/{bucket}/k{n}") == b"Success"
        assert time.monotonic() - began < 10
        assert served.ask("status")["held"] == ""
        assert [row["code"] for row in served.queue()] == ["SignatureDoesNotMatch"] * 2
        assert size_of(rgw, bucket, "x/y") is None
        nginx.configure(f"proxy_pass {rgw.plain.url};")  # as the file of the manual says
        served.command("queue", "retry", "--all")
        served.wait_idle(timeout=60)
        assert size_of(rgw, bucket, "x//y") == 3_000


def test_an_object_is_found_again_behind_a_compressing_proxy(rgw: Gateway, bucket: str, tmp_path: Path) -> None:
    """nginx would leave out the size of what it compresses: the object would go twice."""
    file = a_file(tmp_path / "file.json", 30_000)
    http = "gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; gzip_http_version 1.0;"
    with (
        front(rgw.plain, tmp_path, f"proxy_pass {rgw.plain.url};", http) as nginx,
        proxy(nginx.server) as (between, through),
        daemon(tmp_path / "state", through, QUICK) as served,
    ):
        between.scripts.append(kept_then(hang_up_after()))
        assert served.plain(file, f"alias/{bucket}/file.json") == b"Success"
        assert between.whole[f"/{bucket}/file.json"] == 1
        assert size_of(rgw, bucket, "file.json") == 30_000


def test_keys_rotated_under_load_fail_nothing(tmp_path: Path, certs: Authority) -> None:
    """Ceph with `rgw_s3_auth_use_sts` says AccessDenied to wrong keys, as it does where a bucket denies good ones."""
    options = "rgw s3 auth use sts = true\nrgw sts key = abcdefghijklmnop"
    with ExitStack() as stack:
        (tmp_path / "rgw").mkdir()
        try:
            gateway = stack.enter_context(lab_rgw.rgw(tmp_path / "rgw", certs, options=options))
        except UnavailableError as missing:
            pytest.skip(str(missing))
        account = gateway.new_account()
        bucket, file = account.new_bucket(), a_file(tmp_path / "file", 3_000)
        store = replace(account, url=gateway.plain.url, ca=None)
        served = stack.enter_context(daemon(tmp_path / "state", store, QUICK, wait_limit="5s"))
        answers: dict[str, bytes] = {}
        stop = threading.Event()

        def load(client: int) -> None:
            number = 0
            while not stop.is_set():
                key = f"c{client}/{number}"
                answers[key] = served.plain(file, f"alias/{bucket}/{key}")
                number += 1
                time.sleep(0.05)

        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(load, client) for client in range(6)]
            time.sleep(1)
            words = ("--uid", account.access_key)
            gateway.admin("key", "rm", *words, "--key-type", "s3", "--access-key", account.access_key)
            gateway.admin("key", "create", *words, "--key-type", "s3", "--access-key", "new", "--secret-key", "new")
            served.wait_status(lambda now: bool(now["held"]), "held")
            time.sleep(1)  # of files that come while it is
            status = served.ask("status")
            stop.set()
            for one in running:
                one.result()
        served.set(AWS_ACCESS_KEY_ID="new", AWS_SECRET_ACCESS_KEY="new")
        served.ask("reload", environ=served.environ)
        served.wait_idle(timeout=60)
        new = replace(gateway, access_key="new", secret_key="new")
        found = {words[0] for words in (answer.split(b":") for answer in answers.values())}
        print(f"\n{len(answers)} transfers, held: {status['held']!r}, answers {found}")
        assert status["held"].startswith("AccessDenied")
        assert served.queue() == []
        assert new.keys(bucket) == set(answers)
        assert b"Success" in found
